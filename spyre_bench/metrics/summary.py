"""A simulated run in figures: its requests and batches as frames, latency, throughput, waste,
saturation, and how far it is from the bounds.

Definitions are those of `vllm bench serve`, as its client sees them: TTFT arrival to first token
(the queue included), TPOT = (E2EL - TTFT) / (output tokens - 1), ITL every gap between two tokens
of a request; linear percentiles, population standard deviation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import pandas as pd

from spyre_bench.metrics.bounds import shape_bound_s
from spyre_bench.policy.ledger import WasteLedger
from spyre_bench.shapes import REJECTIONS
from spyre_bench.simulate.result import DECODE, PREFILL, SimulatedRun

LEDGER = tuple(field.name for field in fields(WasteLedger))
METRICS = ("ttft", "tpot", "itl", "e2el")
GROWING = 1.5  # queue of the second half over that of the first, beyond which it grows
PASSES_AT_ONCE = 2**14  # rows of a temporary array: it stays in the processor's cache


def requests(run: SimulatedRun) -> pd.DataFrame:
    """One row a request: arrival_s, prompt_tokens, output_tokens, max_tokens, batch (-1: rejected),
    queue_s, ttft_s, tpot_s (nan for one token), e2el_s, rejected (the reason, or empty)."""
    served = run.requests
    return run.workload.frame().assign(
        batch=served.batch,
        queue_s=served.start_s - run.workload.arrival_s,
        ttft_s=run.ttft_s,
        tpot_s=served.tpot_s,
        e2el_s=run.e2el_s,
        rejected=np.array(("", *REJECTIONS))[served.rejected],
    )


def batches(run: SimulatedRun) -> pd.DataFrame:
    """One row a batch: batch, replica, bucket, start_s, seconds, rows, passes, the waste ledger in
    token slots (see `policy.ledger.WasteLedger`), computed and fill."""
    names = np.array([str(cost.bucket) for cost in run.costs])
    passes, first = run.passes, run.passes.first_of_batch
    frame = pd.DataFrame(
        {
            "batch": passes.batch[first],
            "replica": passes.replica[first],
            "bucket": names[passes.shape[first]],
            "start_s": passes.start_s[first],
            "seconds": passes.batch_seconds,
            "rows": passes.rows[first],
            "passes": passes.sum_over_batches(passes.count),
            **{name: passes.sum_over_batches(some) for name, some in _ledgers(run).items()},
        }
    )
    computed = frame[list(LEDGER)].sum(axis=1)
    return frame.assign(computed=computed, fill=frame["useful"] / computed)


def ledger(run: SimulatedRun) -> WasteLedger:
    """The waste ledger of the whole run."""
    return WasteLedger(**{name: int(tokens.sum()) for name, tokens in _ledgers(run).items()})


def by_bucket(batches: pd.DataFrame) -> pd.DataFrame:
    """One row a bucket that ran: batches, rows, seconds, the ledger's sums, computed and fill."""
    columns = ["rows", "seconds", *LEDGER, "computed"]
    frame = batches.groupby("bucket")[columns].sum()
    frame.insert(0, "batches", batches.groupby("bucket").size())
    return frame.assign(fill=frame["useful"] / frame["computed"]).reset_index()


def _ledgers(run: SimulatedRun) -> dict[str, np.ndarray]:
    """Each part of `WasteLedger.of_batch` for each row of passes of a static batch, int64 [p]."""
    passes = run.passes
    if not len(passes):
        return {name: np.zeros(0, dtype=np.int64) for name in LEDGER}
    prefill = passes.kind == PREFILL
    sizes = [(c.bucket.batch_size, c.bucket.prompt_length) for c in run.costs]
    batch_size, prompt_length = np.array(sizes, dtype=np.int64)[passes.shape].T
    prompt_length = np.where(prefill, prompt_length, 0)
    prompts = run.workload.prompt_tokens[passes.members]
    longest = np.where(prefill, np.maximum.reduceat(prompts, passes.first_member), 0)
    rows, outputs = passes.rows.astype(np.int64), passes.outputs
    return {
        "useful": passes.useful,
        "batch_pad": (batch_size - rows) * (prompt_length + passes.count),
        "prompt_pad": rows * longest - (passes.useful - outputs),
        "bucket_pad": rows * (prompt_length - longest),
        "decode_tail": rows * passes.count - outputs,
        "cap": np.zeros_like(rows),  # a batch ends with its longest output
    }


# --- latency --------------------------------------------------------------------------------------


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
    late = np.flatnonzero((passes.waited_s > 0) & (passes.tokens > 0))
    row = np.searchsorted(passes.first_member, late, side="right") - 1
    counts = np.where(passes.kind == DECODE, passes.outputs, 0)
    return (
        np.concatenate([passes.seconds, passes.waited_s[late] + passes.seconds[row]]),
        np.concatenate([passes.shape, passes.shape[row]]),
        np.concatenate([counts - np.bincount(row, minlength=len(passes)), np.ones_like(late)]),
    )


def _distinct(
    values: np.ndarray, shape: np.ndarray, counts: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values of each shape, and how often each is there."""
    found, often = [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
    for one in np.unique(shape):
        of = shape == one
        if counts is None:
            value, count = np.unique(values[of], return_counts=True)
        else:
            value, place = np.unique(values[of], return_inverse=True)
            count = np.bincount(place, weights=counts[of]).astype(np.int64)
        found.append(value)
        often.append(count)
    return np.concatenate(found), np.concatenate(often)


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


# --- the run as a whole ---------------------------------------------------------------------------


def duration_s(run: SimulatedRun) -> float:
    """From the first arrival to the last token; 0 where nothing was served."""
    if not len(run.passes):
        return 0.0
    start_s = run.passes.start_s[run.passes.first_of_batch]
    end_s = (start_s + run.passes.batch_seconds).max()
    return float(end_s - run.workload.arrival_s[0])


def busy_s(run: SimulatedRun) -> float:
    """Seconds in which a replica ran a batch, summed over the replicas."""
    return float(run.passes.batch_seconds.sum())


def utilisation(run: SimulatedRun) -> float:
    """Busy seconds over the seconds there were, of all replicas."""
    seconds = duration_s(run) * run.replicas
    return busy_s(run) / seconds if seconds else 0.0


def distance_to_shape_bound(run: SimulatedRun) -> float:
    """Busy seconds over L1, the least that any batching of the served requests on these buckets
    takes: 1 is perfect. nan where nothing was served."""
    if not len(run.passes):
        return float("nan")
    return busy_s(run) / shape_bound_s(run.workload, run.costs)


def summary(run: SimulatedRun) -> dict[str, float]:
    """The run in one row: served, rejected, batches, duration_s, busy_s, throughput_rps,
    utilisation, busy_over_shape_bound, fill, the ledger as `<part>_tokens`, and mean, median, p95
    and p99 of queue, ttft, tpot and e2el as `p95_ttft_ms`."""
    seconds, served, tokens = duration_s(run), int(run.served.sum()), ledger(run)
    latency = latencies(run, (95, 99))
    return {
        "served": served,
        "rejected": len(run.workload) - served,
        "batches": len(run.passes.first_of_batch),
        "duration_s": seconds,
        "busy_s": busy_s(run),
        "throughput_rps": served / seconds if seconds else float("nan"),
        "utilisation": utilisation(run),
        "busy_over_shape_bound": distance_to_shape_bound(run),
        "fill": tokens.fill,
        **{f"{name}_tokens": count for name, count in asdict(tokens).items()},
        **{
            f"{of}_{name}_ms": value
            for name in ("queue", "ttft", "tpot", "e2el")
            for of, value in {
                "mean": latency[name].mean_ms,
                "median": latency[name].median_ms,
                **{f"p{p}": value for p, value in latency[name].percentiles_ms.items()},
            }.items()
        },
    }


def saturation(run: SimulatedRun) -> str:
    """Why latencies of this run measure the backlog and not the service; empty where they do not.

    Certain, if the least work the requests can be takes longer than they took to arrive. Otherwise
    a run counts as saturated if its queue grew: the mean queue time of the second half of the
    served requests is above 1.5 times that of the first half plus the longest batch.
    """
    served = np.flatnonzero(run.served)
    if len(served) < 2:
        return ""
    arrival_s = run.workload.arrival_s[served]
    span_s = float(arrival_s[-1] - arrival_s[0])
    if span_s == 0:
        return "all requests came at once: their latency is that of the backlog"
    least_s = shape_bound_s(run.workload, run.costs) / run.replicas
    if least_s > span_s:
        return (
            f"the requests came in {span_s:.0f} s and are at least {least_s:.0f} s of work for "
            f"{run.replicas} replica{'s' if run.replicas > 1 else ''}: the queue grows without "
            f"end"
        )
    queue_s = run.requests.start_s[served] - arrival_s
    half = len(served) // 2
    first_s, second_s = queue_s[:half].mean(), queue_s[half:].mean()
    if second_s > GROWING * first_s + run.passes.batch_seconds.max():
        return (
            f"the queue grew: the second half of the requests waited {second_s:.0f} s on average, "
            f"the first half {first_s:.0f} s"
        )
    return ""


def busiest_second(run: SimulatedRun) -> tuple[float, int]:
    """Most tokens put out, and most requests in the system, in one second of the clock that starts
    with the first served arrival; as vLLM counts them."""
    served = np.flatnonzero(run.served)
    if not len(served):
        return 0.0, 0
    start_s = run.workload.arrival_s[served[0]]
    arrived, came = np.unique(
        np.floor(run.workload.arrival_s[served] - start_s), return_counts=True
    )
    ended, went = np.unique(np.floor(run.requests.finish_s[served] - start_s), return_counts=True)
    _, changes = _summed(np.append(arrived, ended + 1), np.append(came, -went))
    return _most_tokens_per_second(run, start_s), int(np.cumsum(changes).max())


def _summed(seconds: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct seconds, ascending, and the sum of the values of each: as long as what happened,
    however long the clock ran between."""
    distinct, place = np.unique(seconds, return_inverse=True)
    return distinct, np.bincount(place, weights=values, minlength=len(distinct))


def _most_tokens_per_second(run: SimulatedRun, start_s: float) -> float:
    """Most tokens put out in a second after `start_s`, counted in blocks of rows of passes."""
    passes = run.passes
    first = np.cumsum(passes.count, dtype=np.int64) - passes.count  # of each row among all passes
    members = np.append(passes.first_member, len(passes.members))
    blocks, low = [], 0
    while low < len(passes):
        high = max(low + 1, int(np.searchsorted(first, first[low] + PASSES_AT_ONCE)))
        row = np.repeat(np.arange(low, high), passes.count[low:high])
        # each member is there from the first pass of its row to its own last one
        place = np.repeat(first[low:high] - first[low], passes.rows[low:high])
        change = np.bincount(place, minlength=len(row) + 1)
        tokens = passes.tokens[members[low] : members[high]]
        change -= np.bincount(place + tokens, minlength=len(row) + 1)
        number = np.arange(1, len(row) + 1) - (first[row] - first[low])
        at_s = passes.start_s[row] + number * passes.seconds[row] - start_s
        blocks.append(_summed(np.floor(at_s), np.cumsum(change)[:-1]))
        low = high
    seconds, tokens = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return float(_summed(seconds, tokens)[1].max())
