"""Is a padded slot a cost? What share of the seconds that padding takes up in proportion to its
slots is really paid.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pandas as pd

from spyre_bench.cost.bucket_cost import BucketCost

ROWS, PROMPT = "rows", "prompt"  # the axes along which a batch is padded
COLUMNS = ["axis", "bucket", "needed", "padded", "prefill_paid", "decode_paid"]


def paid_share(taken_s: float, needed_s: float, padded: float) -> float:
    """(1 - needed_s / taken_s) / padded: 1 where padded slots cost what useful ones do, 0 where
    they cost nothing, below 0 where the larger shape is the faster one.

    `taken_s` is of the pass that was compiled, `needed_s` of one compiled for what was in it,
    `padded` the padding's share of the compiled one's slots. Raises ValueError for no padding.
    """
    if not 0 < padded < 1:
        raise ValueError(
            f"a padded share of {padded} is nothing to judge: give one above 0, below 1"
        )
    return (1 - needed_s / taken_s) / padded


def paid_shares(costs: Iterable[BucketCost]) -> pd.DataFrame:
    """What padding costs between any two of the buckets that differ in rows alone, or in the prompt
    alone: axis (ROWS or PROMPT), bucket (what runs), needed (what would have been enough), padded
    (share of the slots of its prefill), prefill_paid and decode_paid (see `paid_share`).

    A decode pass computes one slot a row, so that what a longer prompt pads in it is the cache that
    it reads: its share is of P + N slots.
    """
    found = []
    for bigger, smaller in itertools.permutations(costs, 2):
        axis = _axis(bigger, smaller)
        if axis is None:
            continue
        wide, enough = bigger.bucket, smaller.bucket
        slots = enough.batch_size * enough.prompt_length
        padded = 1 - slots / (wide.batch_size * wide.prompt_length)
        cached = 1 - enough.batch_size * enough.context_length / (
            wide.batch_size * wide.context_length
        )
        prefill = paid_share(bigger.prefill_s, smaller.prefill_s, padded)
        decode = paid_share(bigger.decode_s, smaller.decode_s, cached)
        found.append((axis, str(wide), str(enough), padded, prefill, decode))
    return pd.DataFrame(found, columns=COLUMNS)


def _axis(bigger: BucketCost, smaller: BucketCost) -> str | None:
    wide, enough = bigger.bucket, smaller.bucket
    if wide.new_tokens != enough.new_tokens:
        return None
    if wide.prompt_length == enough.prompt_length and wide.batch_size > enough.batch_size:
        return ROWS
    if wide.batch_size == enough.batch_size and wide.prompt_length > enough.prompt_length:
        return PROMPT
    return None
