"""What starting an engine costs: how it grows with the buckets, what it will be for others, and
after how many requests a bucket has earned its share.

A frame of *starts* has one row for each bucket of each start, in the order of warmup: role
("fitted" or "held out"), start ("cold" or "warm"), bucket, compile_s, first_run_s, startup_s
(their sum), prefill_s and decode_s of one pass.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from spyre_bench.shapes import Bucket, BucketSet

DIMENSIONS = {"batch size B": (1, 0, 0), "prompt length P": (0, 1, 0), "new tokens N": (0, 0, 1)}
STAGES = {
    "compile, cold": ("cold", "compile_s"),
    "compile, warm": ("warm", "compile_s"),
    "first runs, cold": ("cold", "first_run_s"),
}


CHOICES = tuple(
    choice + code
    for choice in ("eager,layer", "inductor,layer", "inductor,model")
    for code in ("", ",vllm")
)
"""Compile backend, compile scope and, where it is not FMS's, whose model code."""


def setting(choice: str) -> dict[str, str]:
    """One of `CHOICES` as `measure_starts` takes it."""
    names = ("compile_backend", "compile_scope", "model_code")
    return dict(zip(names, choice.split(","), strict=False))


def corners(base: Bucket, factor: int) -> tuple[BucketSet, BucketSet]:
    """The buckets to fit on, which are `base` with none, one or all of its dimensions grown by
    `factor`, and those to hold out, with two grown."""
    fitted: list[Bucket] = []
    held_out: list[Bucket] = []
    for grown in itertools.product((0, 1), repeat=3):
        (held_out if sum(grown) == 2 else fitted).append(_grow(base, factor, grown))
    return BucketSet(tuple(fitted)), BucketSet(tuple(held_out))


def _grow(base: Bucket, factor: int, grown: tuple[int, ...]) -> Bucket:
    sizes = (base.batch_size, base.prompt_length, base.new_tokens)
    return Bucket(*(size * factor**by for size, by in zip(sizes, grown, strict=True)))


def growth(starts: pd.DataFrame, base: Bucket, factor: int) -> pd.DataFrame:
    """Seconds of each stage with one dimension grown, relative to the base bucket's: dimension,
    stage, ratio."""
    seconds = starts.set_index(["start", "bucket"]).to_dict()
    return pd.DataFrame(
        {
            "dimension": dimension,
            "stage": stage,
            "ratio": seconds[column][start, str(_grow(base, factor, grown))]
            / seconds[column][start, str(base)],
        }
        for dimension, grown in DIMENSIONS.items()
        for stage, (start, column) in STAGES.items()
    )


@dataclass(frozen=True)
class StartupFit:
    """Start-up seconds of the buckets of one engine: what each costs, what grows with the tokens
    its prefill computes and with the KV slots its cache holds, and what every start pays once."""

    bucket_s: float
    prompt_token_s: float
    kv_slot_s: float
    once_s: float  # falls on the bucket that is warmed first

    @classmethod
    def of(cls, buckets: Sequence[Bucket], seconds: Sequence[float]) -> StartupFit:
        """Least squares over one start's buckets, in the order of their warmup. No part is below
        zero: more work never costs less. Raises ValueError for fewer than three buckets."""
        if len(set(buckets)) < 3:
            raise ValueError(
                f"{len(set(buckets))} buckets in the start: growth shows in three different "
                f"ones or more, since the first also carries what is paid once"
            )
        solution, _ = nnls(_work(buckets), np.array(seconds))
        return cls(*map(float, solution))

    def predict(self, buckets: Sequence[Bucket]) -> list[float]:
        """Seconds of each bucket of another start, in the order of its warmup."""
        parts = (self.bucket_s, self.prompt_token_s, self.kv_slot_s, self.once_s)
        return (_work(buckets) @ parts).tolist()


def _work(buckets: Sequence[Bucket]) -> np.ndarray:
    return np.array(
        [
            (1, b.batch_size * b.prompt_length, b.batch_size * b.context_length, index == 0)
            for index, b in enumerate(buckets)
        ],
        dtype=float,
    )


def predict(starts: pd.DataFrame) -> pd.DataFrame:
    """The starts with predicted_s, of a fit on the "fitted" buckets of a cold or warm start;
    error, relative to what was measured; and marginal_s, the start-up without what is paid once,
    which is what the bucket adds to an engine that has others."""
    done = []
    for _, start in starts.groupby("start", sort=False):
        groups = dict(iter(start.groupby("role")))
        buckets = {role: list(map(Bucket.parse, rows["bucket"])) for role, rows in groups.items()}
        fit = StartupFit.of(buckets["fitted"], groups["fitted"]["startup_s"].tolist())
        for role, rows in groups.items():
            once_s = np.where(np.arange(len(rows)) == 0, fit.once_s, 0.0)
            done.append(
                rows.assign(
                    predicted_s=fit.predict(buckets[role]),
                    # noise can put more into what is paid once than this start took in all
                    marginal_s=(rows["startup_s"] - once_s).clip(lower=0.0),
                )
            )
    frame = pd.concat(done)
    return frame.assign(error=frame["predicted_s"] / frame["startup_s"] - 1)


def break_even(predicted: pd.DataFrame, fallback: Bucket, output_tokens: int) -> pd.DataFrame:
    """After how many requests each bucket but `fallback` has earned what it adds to a start: its
    full batches would otherwise run, padded, in `fallback`. Requests have `output_tokens`; a bucket
    that has no room for them runs no batch (nan) and never earns anything."""
    passes = predicted.groupby("bucket")[["prefill_s", "decode_s"]].median()
    seconds = batch_s(passes["prefill_s"], passes["decode_s"], output_tokens)
    room = passes.index.map(lambda name: Bucket.parse(name).new_tokens)
    seconds = seconds.where(room >= output_tokens)
    rows = predicted[predicted["bucket"] != str(fallback)]
    return pd.DataFrame(
        {
            "bucket": row["bucket"],
            "start": row["start"],
            "marginal_s": row["marginal_s"],
            "batch_s": seconds[row["bucket"]],
            "fallback_batch_s": seconds[str(fallback)],
            "requests": break_even_requests(
                row["marginal_s"],
                seconds[row["bucket"]],
                seconds[str(fallback)],
                Bucket.parse(row["bucket"]).batch_size,
            ),
        }
        for row in rows.to_dict("records")
    )


def pays(paid: pd.DataFrame) -> dict[str, str]:
    """For each start, of what `break_even` gives: when the first bucket has paid, in words."""
    fewest = paid.groupby("start")["requests"].min()
    return {
        str(start): f"after {requests:,.0f} requests or more" if requests < math.inf else "never"
        for start, requests in fewest.items()
    }


def unless(paid: pd.DataFrame) -> str:
    """What would change the answer, of what `break_even` gives."""
    cold = paid[paid["start"] == "cold"]
    if (fewest := cold["requests"].min()) < math.inf:
        return f"fewer than {fewest:,.0f} requests a cold start: then no further bucket pays."
    nearest = (cold["batch_s"] / cold["fallback_batch_s"]).min()
    return f"batches of a further bucket that are {1 - 1 / nearest:.0%} faster: then one can pay."


Seconds = TypeVar("Seconds", float, pd.Series)


def start_s(predicted: pd.DataFrame, start: str, buckets: Sequence[str]) -> float:
    """Seconds of a cold or warm start with some of the measured buckets: what each of them adds,
    and what is paid once."""
    rows = predicted[predicted["start"] == start]
    once_s = (rows["startup_s"] - rows["marginal_s"]).max()
    return float(once_s + rows.loc[rows["bucket"].isin(buckets), "marginal_s"].sum())


def batch_s(prefill_s: Seconds, decode_s: Seconds, output_tokens: int) -> Seconds:
    """Engine seconds of a batch whose longest output has `output_tokens`; the prefill yields the
    first of them."""
    assert output_tokens >= 1
    return prefill_s + (output_tokens - 1) * decode_s


def break_even_requests(startup_s: float, own_s: float, fallback_s: float, rows: int) -> float:
    """After how many requests the start-up of a bucket is earned back: `rows` of them run in a
    batch of `own_s`, and would run in one of `fallback_s` without it. Infinite where that saves
    nothing, or is not known to (nan)."""
    saving_s = (fallback_s - own_s) / rows
    return startup_s / saving_s if saving_s > 0 else math.inf
