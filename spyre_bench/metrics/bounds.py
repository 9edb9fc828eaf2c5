"""Seconds of device time that no scheduler can go below, for requests on given shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.cost.closed_form import FittedCost
from spyre_bench.cost.shape_cost import DecodeCost, PrefillCost, ShapeCosts
from spyre_bench.shape_set import BLOCK_TOKENS
from spyre_bench.simulate.result import ContinuousRun, SimulatedRun, StaticRun
from spyre_bench.workload.workload import Workload


def shares_s(workload: Workload, costs: Sequence[BucketCost]) -> np.ndarray:
    """Each request's share of a full batch of its own kind, in the bucket where that is least:
    `min over fitting buckets of (prefill + (o - 1)·decode) / B`, float64 [requests], infinite where
    no bucket fits."""
    best = np.full(len(workload), np.inf)
    for cost in costs:
        np.minimum(best, _share_s(workload, cost), out=best)
    return best


def _share_s(workload: Workload, cost: BucketCost) -> np.ndarray:
    """The shares in one bucket, float64 [requests], infinite where it does not fit."""
    seconds = cost.prefill_s + (workload.output_tokens - 1) * cost.decode_s
    return np.where(workload.fits(cost.bucket), seconds / cost.bucket.batch_size, np.inf)


def bound_by_bucket(workload: Workload, costs: Sequence[BucketCost]) -> pd.DataFrame:
    """Which bucket the shape bound puts the requests in, one row per bucket: bucket, batch_size,
    prompt_length, new_tokens, compile_s, share (of the requests that fit one, 0 to 1) and seconds
    (of the shape bound)."""
    shares = np.array([_share_s(workload, cost) for cost in costs])
    fits = np.isfinite(shares).any(axis=0)
    best, least_s = shares.argmin(axis=0)[fits], shares.min(axis=0)[fits]
    return pd.DataFrame(
        {
            "bucket": [str(cost.bucket) for cost in costs],
            "batch_size": [cost.bucket.batch_size for cost in costs],
            "prompt_length": [cost.bucket.prompt_length for cost in costs],
            "new_tokens": [cost.bucket.new_tokens for cost in costs],
            "compile_s": [cost.compile_s for cost in costs],
            "share": np.bincount(best, minlength=len(costs)) / max(1, len(best)),
            "seconds": np.bincount(best, weights=least_s, minlength=len(costs)),
        }
    )


def shape_bound_s(workload: Workload, costs: Sequence[BucketCost]) -> float:
    """L1: busy seconds of these buckets under any batching of the requests that fit one.

    A batch costs at least the mean over its B rows of what each row alone would make it cost,
    so the sum of the shares is a lower bound.
    """
    shares = shares_s(workload, costs)
    return float(shares[np.isfinite(shares)].sum())


def bound_s(run: SimulatedRun) -> float:
    """L1 of the served requests, whichever way they were batched. What a prefix cache had counts as
    never computed."""
    return float(served_shares_s(run).sum())


def served_shares_s(run: SimulatedRun) -> np.ndarray:
    """The part of L1 of each request, 0 of those that nobody served."""
    if isinstance(run, StaticRun):
        shares = shares_s(run.workload, run.costs)
    else:
        assert isinstance(run, ContinuousRun)
        shares = step_shares_s(run.workload, run.costs, run.hit_tokens)
    return np.where(run.served & np.isfinite(shares), shares, 0.0)


def step_shares_s(
    workload: Workload, costs: ShapeCosts, hit_tokens: np.ndarray | None = None
) -> np.ndarray:
    """The least seconds of paged passes that each request can be, under any batching: float64
    [requests], infinite where it is longer than the shapes take.

    Chunks, which nobody shares: the cheapest shapes that hold the tokens that were in no cache,
    and for each token the seconds of what stands before any chunk that holds it. Decode passes:
    for each output token but the first, a row's part of a full pass where that is least,
    `min over shapes with T >= context of base/B + row + slot·context`.
    """
    prompt, output = (c.astype(int) for c in (workload.prompt_tokens, workload.output_tokens))
    hit = np.zeros(len(workload), dtype=int) if hit_tokens is None else hit_tokens
    fits = prompt + workload.max_tokens <= costs.max_model_len
    prompt, output, hit = (np.where(fits, c, 1) for c in (prompt, output, np.minimum(hit, prompt)))
    least = np.cumsum(np.append(0.0, least_row_s(costs.decode)))
    decode_s = least[prompt + output - 1] - least[prompt]
    blocks = -(-(prompt - hit) // BLOCK_TOKENS)
    chunk_s = _least_chunks_s(costs.prefill, int(blocks.max()))[blocks]
    before = np.arange(int(prompt.max())) + 1 - costs.max_chunk
    slots = np.cumsum(np.append(0.0, np.maximum(before, 0)))
    slot_s = min(cost.slot_s for cost in costs.prefill) / costs.max_chunk
    chunk_s += slot_s * (slots[prompt] - slots[hit])
    return np.where(fits, chunk_s + decode_s, np.inf)


def least_row_s(decode: Sequence[DecodeCost]) -> np.ndarray:
    """A row's part of a full pass in the shape where that is least, float64 [longest context]; the
    first for a context of one token."""
    context = np.arange(1, max(cost.shape.context_length for cost in decode) + 1)
    least = np.full(len(context), np.inf)
    for cost in decode:
        part_s = cost.base_s / cost.shape.rows + cost.row_s + cost.slot_s * context
        least = np.minimum(least, np.where(context <= cost.shape.context_length, part_s, np.inf))
    return least


def _least_chunks_s(prefill: Sequence[PrefillCost], blocks: int) -> np.ndarray:
    """The least seconds of chunks that hold so many blocks, float64 [blocks + 1]."""
    least = [0.0]
    for held in range(1, blocks + 1):
        ways = [
            cost.base_s + least[max(0, held - cost.shape.chunk_length // BLOCK_TOKENS)]
            for cost in prefill
        ]
        least.append(min(ways))
    return np.array(least)


def work_bound_s(workload: Workload, machine: FittedCost, batch_size: int) -> float:
    """L0: busy seconds of a machine of this closed form without shapes: every batch full, no token
    padded, a cache as long as the request alone needs.

    `sum over requests of a0/B + a1·p + (o - 1)·(d0/B + d1 + d2·(p + o))`.
    """
    a0, a1 = machine.prefill_s
    d0, d1, d2 = machine.decode_s
    prompt, output = (c.astype(float) for c in (workload.prompt_tokens, workload.output_tokens))
    decode_s = d0 / batch_size + d1 + d2 * (prompt + output)
    return float((a0 / batch_size + a1 * prompt + (output - 1) * decode_s).sum())
