"""Paged attention on the card: the ops of FMS that its compiler knows, over slot-major pools.

Shapes: B rows, Q query tokens of this pass, n entries of a block table, H KV heads on this rank,
D head dim. The pools are [blocks, 64, H, D]; block 0 is the dummy. Of the Q tokens of a row the
last real one stands in the last column, and each sees what lies before it: no mask goes in.
"""

from __future__ import annotations

from typing import Any

import torch
from fms.utils.spyre import paged  # noqa: F401  registers the ops
from torch import Tensor

from spyre_bench.shape_set import BLOCK_TOKENS

SPYRE_CARD_PAGED = "spyre_paged_attn"
"""FMS's name for them. They return the pools instead of writing in place."""


def card_arguments(table: Tensor, slots: Tensor, lengths: Tensor) -> dict[str, Any]:
    """What the ops want to be told: table [B, n], slots (block and place [2, B * Q]) of the new
    tokens, tokens [B] of each row's context with them."""
    block, place = slots.unbind()
    return {
        "attn_name": SPYRE_CARD_PAGED,
        "block_table": table,
        "slot_mapping": (block * BLOCK_TOKENS + place).view(len(table), -1),
        "current_tkv_mask": lengths,
        "left_padded_prompt_mask": torch.zeros_like(lengths),  # a table begins with real tokens
    }
