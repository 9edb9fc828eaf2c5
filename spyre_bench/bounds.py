"""Seconds of device time that no scheduler can go below, for requests on given buckets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spyre_bench.cost import BucketCost, FittedCost
from spyre_bench.workload import Workload


def shares_s(workload: Workload, costs: Sequence[BucketCost]) -> np.ndarray:
    """Each request's share of a full batch of its own kind, in the bucket where that is least:
    `min over fitting buckets of (prefill + (o - 1)·decode) / B`, float64 [requests], infinite where
    no bucket fits."""
    best = np.full(len(workload), np.inf)
    further_passes = workload.output_tokens - 1
    for cost in costs:
        fits = workload.prompt_tokens <= cost.bucket.prompt_length
        fits &= workload.max_tokens <= cost.bucket.new_tokens
        share_s = (cost.prefill_s + further_passes * cost.decode_s) / cost.bucket.batch_size
        np.minimum(best, share_s, out=best, where=fits)
    return best


def shape_bound_s(workload: Workload, costs: Sequence[BucketCost]) -> float:
    """L1: busy seconds of these buckets under any batching of the requests that fit one.

    A batch costs at least the mean over its B rows of what each row alone would make it cost,
    so the sum of the shares is a lower bound.
    """
    shares = shares_s(workload, costs)
    return float(shares[np.isfinite(shares)].sum())


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
