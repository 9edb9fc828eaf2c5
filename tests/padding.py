"""`make bench`, part padding: is a padded slot a cost on this engine?

Passes of compiled shapes with all of them in use, with fewer live rows, and with prompts at a
boundary, below and above it, all in turns; and what share of the seconds that padding takes up in
proportion to its slots is really paid.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.shape_set import DecodeShape, PrefillShape
from spyre_bench.shapes import Bucket, BucketSet

if TYPE_CHECKING:
    from spyre_bench.engine.causal_lm import SpyreCausalLM
    from spyre_bench.engine.paged_causal_lm import PagedCausalLM

MEASURED = ["bucket", "rows", "prompt_tokens", "prefill_s", "decode_s"]
ROWS, PROMPT = "rows", "prompt"  # the axes along which a batch is padded
PAID = ["axis", "bucket", "needed", "padded", "prefill_paid", "decode_paid"]


@dataclass(frozen=True)
class Content:
    """What is in a batch of a bucket: so many live rows, each with a prompt of so many tokens."""

    bucket: Bucket
    rows: int
    prompt_tokens: int


def contents(buckets: BucketSet, boundaries: Sequence[int] = ()) -> list[Content]:
    """Every bucket full; with each smaller number of rows that a bucket of its lengths has; and, of
    full batches, prompts of each boundary less one, and of one token more in the next bucket."""
    found = [Content(it, it.batch_size, it.prompt_length) for it in buckets]
    for it in buckets:
        alike = (b for b in buckets if b.prompt_length == it.prompt_length)
        widths = sorted({b.batch_size for b in alike if b.batch_size < it.batch_size})
        found += [Content(it, rows, it.prompt_length) for rows in widths]
    for boundary in boundaries:
        for it in buckets:
            lengths = sorted(b.prompt_length for b in buckets if b.batch_size == it.batch_size)
            if it.prompt_length == boundary:
                found.append(Content(it, it.batch_size, boundary - 1))
            elif it.prompt_length == next((n for n in lengths if n > boundary), None):
                found.append(Content(it, it.batch_size, boundary + 1))
    return found


def time_contents(
    model: SpyreCausalLM, asked: Sequence[Content], rounds: int, decodes: int = 8
) -> pd.DataFrame:
    """Medians over the rounds of a prefill, and of the decode passes that follow it, a row for each
    that is asked: bucket, rows, prompt_tokens, prefill_s, decode_s. The model is warmed. All are
    run in turns, so that a machine that changes its pace is slow for every one."""
    times: dict[Content, list[tuple[float, float]]] = {content: [] for content in asked}
    for _ in range(rounds):
        for content, measured in times.items():
            measured.append(_once(model, content, decodes))
    medians = {content: np.median(measured, axis=0) for content, measured in times.items()}
    rows = [
        (content.bucket, content.rows, content.prompt_tokens, *map(float, seconds))
        for content, seconds in medians.items()
    ]
    return pd.DataFrame(rows, columns=MEASURED)


def full(measured: pd.DataFrame) -> list[BucketCost]:
    """The costs of the buckets that were measured full, for `paid_shares`."""
    return [
        BucketCost(row.bucket, row.prefill_s, row.decode_s)
        for row in measured.itertuples()
        if (row.rows, row.prompt_tokens) == (row.bucket.batch_size, row.bucket.prompt_length)
    ]


def _once(model: SpyreCausalLM, content: Content, decodes: int) -> tuple[float, float]:
    """Seconds of one prefill, and the median of its first decode passes."""
    prompts = [[1] * content.prompt_tokens] * content.rows
    started = time.perf_counter()
    model.prefill(content.bucket, prompts)
    prefill_s = time.perf_counter() - started
    steps = []
    for _ in range(min(decodes, content.bucket.new_tokens - 1)):
        started = time.perf_counter()
        model.decode([1] * content.rows)
        steps.append(time.perf_counter() - started)
    return prefill_s, float(np.median(steps))


# --- shapes of continuous batching ----------------------------------------------------------------


def time_live(model: PagedCausalLM, rounds: int) -> pd.DataFrame:
    """Medians over the rounds of passes of a warmed model: a chunk of each prefill shape with as
    many tokens as each of them has, a decode pass of each shape with as many live rows as each of
    them has, every context full. shape, kind, size (tokens or rows that it computes), live,
    seconds; and what is paid of its padding, `paid`, against the shape of that very size (see
    `paid_share`; nan where all is live)."""
    asked = [
        (shape, _size(other))
        for shape in model.shapes
        for other in model.shapes
        if type(other) is type(shape)
        and other.context_length == shape.context_length
        and _size(other) <= _size(shape)
    ]
    times: dict[tuple[PrefillShape | DecodeShape, int], list[float]] = {key: [] for key in asked}
    for _ in range(rounds):
        for (shape, live), seconds in times.items():
            started = time.perf_counter()
            _pass(model, shape, live)
            seconds.append(time.perf_counter() - started)
    medians = {key: float(np.median(seconds)) for key, seconds in times.items()}
    enough = {
        (type(shape), shape.context_length, live): taken_s
        for (shape, live), taken_s in medians.items()
        if live == _size(shape)
    }
    rows = []
    for (shape, live), taken_s in medians.items():
        size, needed_s = _size(shape), enough[type(shape), shape.context_length, live]
        paid = paid_share(taken_s, needed_s, 1 - live / size) if live < size else np.nan
        kind = "decode" if isinstance(shape, DecodeShape) else "chunk"
        rows.append((str(shape), kind, size, live, taken_s, paid))
    return pd.DataFrame(rows, columns=["shape", "kind", "size", "live", "seconds", "paid"])


def _size(shape: PrefillShape | DecodeShape) -> int:
    return shape.rows if isinstance(shape, DecodeShape) else shape.chunk_length


def _pass(model: PagedCausalLM, shape: PrefillShape | DecodeShape, live: int) -> None:
    from spyre_bench.engine.paged_causal_lm import Chunk, DecodeRow

    def table(row: int) -> list[int]:
        return [row * shape.blocks + block for block in range(1, shape.blocks + 1)]

    if isinstance(shape, PrefillShape):
        model.prefill(shape, Chunk([1] * live, shape.context_length - live, table(0)))
    else:
        rows = [DecodeRow(1, shape.context_length - 1, table(row)) for row in range(live)]
        model.decode(shape, rows)


# --- what is paid ---------------------------------------------------------------------------------


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
    return pd.DataFrame(found, columns=PAID)


def _axis(bigger: BucketCost, smaller: BucketCost) -> str | None:
    wide, enough = bigger.bucket, smaller.bucket
    if wide.new_tokens != enough.new_tokens:
        return None
    if wide.prompt_length == enough.prompt_length and wide.batch_size > enough.batch_size:
        return ROWS
    if wide.batch_size == enough.batch_size and wide.prompt_length > enough.prompt_length:
        return PROMPT
    return None
