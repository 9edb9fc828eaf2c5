"""Attention over a KV cache in blocks, which rows find through tables of their own.

Shapes: B rows, Q query tokens of this pass (a chunk in prefill, 1 in decode), n entries of a block
table, T = n * 64 context slots, H KV heads on this rank, G query heads a KV head, D head dim.
The cache is a pool [blocks, H, 64, D]; block 0 is the dummy that all padding points at.
"""

from __future__ import annotations

import torch
from fms.modules.attention import register_attention_op
from torch import Tensor

from spyre_bench.engine.static_attention import attend_many, capped

SPYRE_PAGED = "spyre_paged"
"""Pass as `attn_name`, with `mask`, `table` and `slots`, to an FMS model."""


def _store(
    keys: Tensor, values: Tensor, key_pool: Tensor, value_pool: Tensor, *, slots: Tensor, **_
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Writes the new tokens [B, Q, H, D] to their slots (block and place [2, B * Q]), in place.
    Returns the pools, to attend over, and once more as the caches."""
    block, place = slots.unbind()
    # before anything reads the pools: Inductor then writes in place, else it copies them
    key_pool[block, :, place] = keys.flatten(0, 1)
    value_pool[block, :, place] = values.flatten(0, 1)
    return key_pool, value_pool, key_pool, value_pool


def _prefill(
    query,
    key_pool,
    value_pool,
    heads,
    kv_heads,
    dropout,
    scale,
    *,
    mask,
    table,
    soft_cap=None,
    **_,
):
    """Attention of a chunk over its request's context: query [1, Q, H*G, D], table [1, n], mask
    [1, 1, Q, T], added. Returns [1, Q, H*G, D]."""
    keys = _gathered(key_pool, table).repeat_interleave(heads // kv_heads, 1)
    values = _gathered(value_pool, table).repeat_interleave(heads // kv_heads, 1)
    return attend_many(query.transpose(1, 2), keys, values, mask, scale, soft_cap)


def _decode(
    query,
    key_pool,
    value_pool,
    heads,
    kv_heads,
    dropout,
    scale,
    *,
    mask,
    table,
    soft_cap=None,
    **_,
):
    """Attention of one token of each row over its context: query [B, 1, H*G, D], table [B, n], mask
    [B, 1, 1, T], added. Returns [B, 1, H*G, D]."""
    rows, _, _, head_dim = query.shape
    scale = head_dim**-0.5 if scale is None else scale
    query = query.view(rows, kv_heads, heads // kv_heads, head_dim) * scale
    if torch.compiler.is_compiling():
        out = _fused(query, key_pool, value_pool, mask, table, soft_cap)
    else:
        products = capped(query @ _gathered(key_pool, table).transpose(-1, -2), soft_cap)
        out = (products + mask).softmax(-1) @ _gathered(value_pool, table)
    return out.view(rows, 1, heads, head_dim)


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    pools: tuple[Tensor, Tensor],
    scale: float,
    *,
    prefills: bool,
    mask: Tensor,
    table: Tensor,
    slots: Tensor,
    soft_cap: float | None,
) -> Tensor:
    """Stores new tokens and attends, for model code that is not FMS's: query [B, Q, H*G, D], keys
    and values [B, Q, H, D], the rest as above. Returns [B, Q, H*G, D]."""
    heads, kv_heads = query.shape[2], keys.shape[2]
    over_keys, over_values, *_ = _store(keys, values, *pools, slots=slots)
    op = _prefill if prefills else _decode
    return op(
        *(query, over_keys, over_values, heads, kv_heads, 0.0, scale),
        mask=mask,
        table=table,
        soft_cap=soft_cap,
    )


def _gathered(pool: Tensor, table: Tensor) -> Tensor:
    """The blocks of each row's table as one context: [B, H, T, D]."""
    return pool[table].transpose(1, 2).flatten(2, 3)


def _fused(
    query: Tensor,
    key_pool: Tensor,
    value_pool: Tensor,
    mask: Tensor,
    table: Tensor,
    soft_cap: float | None = None,
) -> Tensor:
    """The same as gathering, in sums of products that Inductor fuses with the gathering, so that no
    context is copied. query [B, H, G, D] -> [B, H, G, D]."""
    rows, kv_heads, group, head_dim = query.shape
    # as_strided makes Inductor store the query: it would else work it out anew for every slot
    query = query.contiguous().as_strided(
        query.shape, (kv_heads * group * head_dim, group * head_dim, head_dim, 1)
    )
    keys, values = key_pool[table], value_pool[table]  # [B, n, H, 64, D]
    entries, block = keys.shape[1], keys.shape[3]
    products = (query[:, None, :, :, None] * keys[:, :, :, None]).sum(-1)  # [B, n, H, G, 64]
    seen = capped(products, soft_cap) + mask.view(rows, entries, 1, 1, block)
    weights = seen.permute(0, 2, 3, 1, 4).flatten(3).softmax(-1)
    weights = weights.view(rows, kv_heads, group, entries, block).permute(0, 3, 1, 2, 4)
    return (weights[..., None] * values[:, :, :, None]).sum((1, 4))


register_attention_op(
    SPYRE_PAGED,
    _store,
    _prefill,
    is_prefill_op=lambda *, prefills, **_: prefills,
    compute_decode_op=_decode,
)
