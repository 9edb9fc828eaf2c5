"""Seconds of device time that no scheduler can go below, for requests on given buckets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.cost.closed_form import FittedCost
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
