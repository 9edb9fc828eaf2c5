"""Latencies of a simulated run, and how many requests meet an SLO.

Definitions are those of `vllm bench serve`, as its client sees them: TTFT arrival to first token
(the queue included), TPOT = (E2EL - TTFT) / (output tokens - 1), ITL every gap between two tokens
of a request; linear percentiles, population standard deviation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spyre_bench.simulate.result import DECODE, SimulatedRun

METRICS = ("ttft", "tpot", "itl", "e2el")


@dataclass(frozen=True)
class Statistics:
    """Of one latency, in milliseconds; all 0 where nothing was served, as vLLM has it."""

    mean_ms: float
    median_ms: float
    std_ms: float
    percentiles_ms: dict[float, float]

    @classmethod
    def of(
        cls, percentiles: Sequence[float], values_s: np.ndarray, counts: np.ndarray | None = None
    ) -> Statistics:
        """Of values in seconds; `counts` says how often each stands for itself."""
        if counts is None:
            counts = np.ones(1, dtype=np.int64)
            levels = np.percentile(values_s, [50, *percentiles]) if len(values_s) else None
        else:
            values_s, counts = values_s[counts > 0], counts[counts > 0]
            levels = _percentiles(values_s, counts, [50, *percentiles]) if len(values_s) else None
        if levels is None:
            return cls(0.0, 0.0, 0.0, dict.fromkeys(percentiles, 0.0))
        weights = np.broadcast_to(counts, values_s.shape)
        mean = np.average(values_s, weights=weights)
        std = np.sqrt(np.average((values_s - mean) ** 2, weights=weights))
        median, *others = (float(level) * 1e3 for level in levels)
        return cls(
            float(mean) * 1e3, median, float(std) * 1e3, dict(zip(percentiles, others, strict=True))
        )


def _percentiles(
    values: np.ndarray, counts: np.ndarray, percentiles: Sequence[float]
) -> np.ndarray:
    """numpy's linear percentiles of `np.repeat(values, counts)`, without building it."""
    order = np.argsort(values)
    values, last = values[order], np.cumsum(counts[order])
    place = (last[-1] - 1) * np.asarray(percentiles, dtype=float) / 100
    low, high = (
        values[np.searchsorted(last, at(place), side="right")] for at in (np.floor, np.ceil)
    )
    return low + (high - low) * (place - np.floor(place))


def latencies(
    run: SimulatedRun, percentiles: Sequence[float] = (50, 90, 99)
) -> dict[str, Statistics]:
    """Statistics of queue, ttft, tpot, itl and e2el over the served requests."""
    served, passes, times = run.served, run.passes, run.requests
    queue_s = times.start_s[served] - run.workload.arrival_s[served]
    longer = np.isfinite(times.tpot_s)
    shape = passes.shape[passes.first_of_batch][times.batch[longer]]
    return {
        "queue": Statistics.of(percentiles, queue_s),
        "ttft": Statistics.of(percentiles, run.ttft_s[served]),
        "tpot": Statistics.of(percentiles, *_distinct(times.tpot_s[longer], shape)),
        "itl": Statistics.of(percentiles, *_distinct(*_gaps(run))),
        "e2el": Statistics.of(percentiles, run.e2el_s[served]),
    }


def _gaps(run: SimulatedRun) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seconds between two tokens of a request, of which shape, and how often. Spelled out they
    would be the largest array of all: most are one of a row of equal passes."""
    passes = run.passes
    waited = (passes.waited_s > 0) & (passes.tokens > 0)
    waited[passes.resumed] = True
    late = np.flatnonzero(waited)
    row = np.searchsorted(passes.first_member, late, side="right") - 1
    decode = passes.kind == DECODE
    counts = np.where(decode, passes.outputs, 0)
    among = np.bincount(row[decode[row]], minlength=len(passes))  # a chunk after a preemption adds
    return (
        np.concatenate([passes.seconds, passes.waited_s[late] + passes.seconds[row]]),
        np.concatenate([passes.shape, passes.shape[row]]),
        np.concatenate([counts - among, np.ones_like(late)]),
    )


def _distinct(
    values: np.ndarray, shape: np.ndarray, counts: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values of each shape, and how often each is there."""
    distinct, often = [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
    for one in np.unique(shape):
        of = shape == one
        if counts is None:
            value, count = np.unique(values[of], return_counts=True)
        else:
            value, place = np.unique(values[of], return_inverse=True)
            count = np.bincount(place, weights=counts[of]).astype(np.int64)
        distinct.append(value)
        often.append(count)
    return np.concatenate(distinct), np.concatenate(often)


def good_requests(run: SimulatedRun, limits_ms: Mapping[str, float]) -> int:
    """Served requests within every one of the limits on ttft, tpot and e2el, in milliseconds; the
    TPOT of a single token counts as 0. Raises ValueError for another name."""
    require_limits(limits_ms)
    good = run.served.copy()
    for name, limit_ms in limits_ms.items():
        good[good] = _latency_s(run, name)[good] <= limit_ms / 1e3
    return int(good.sum())


def require_limits(limits_ms: Mapping[str, float]) -> None:
    """Raises ValueError for a limit that goodput does not know, or that nothing can be within."""
    for name, limit_ms in limits_ms.items():
        if name not in ("ttft", "tpot", "e2el"):
            raise ValueError(f"goodput has no limit on {name!r}: use ttft, tpot or e2el")
        if not limit_ms > 0:
            raise ValueError(
                f"goodput limit {name}:{limit_ms} is not above 0 milliseconds: write, for example, "
                f"{name}:2000"
            )


def _latency_s(run: SimulatedRun, name: str) -> np.ndarray:
    if name == "tpot":
        return np.nan_to_num(run.requests.tpot_s, nan=0.0)
    return run.ttft_s if name == "ttft" else run.e2el_s
