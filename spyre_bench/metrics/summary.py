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
from spyre_bench.simulate.result import Trace

LEDGER = tuple(field.name for field in fields(WasteLedger))
METRICS = ("ttft", "tpot", "itl", "e2el")
GROWING = 1.5  # queue of the second half over that of the first, beyond which it grows
PASSES_AT_ONCE = 2**21  # rows of the largest temporary array


def requests(trace: Trace) -> pd.DataFrame:
    """One row a request: arrival_s, prompt_tokens, output_tokens, max_tokens, batch (-1: rejected),
    queue_s, ttft_s, tpot_s (nan for one token), e2el_s, rejected (the reason, or empty)."""
    workload = trace.workload
    arrival_s, output_tokens = workload.arrival_s, workload.output_tokens
    return workload.frame().assign(
        batch=trace.batch,
        queue_s=trace.start_s - arrival_s,
        ttft_s=_latency_s(trace, "ttft"),
        tpot_s=np.where(output_tokens > 1, trace.decode_s, np.nan),
        e2el_s=_latency_s(trace, "e2el"),
        rejected=np.array(("", *REJECTIONS))[trace.rejected],
    )


def batches(trace: Trace) -> pd.DataFrame:
    """One row a batch: batch, replica, bucket, start_s, seconds, rows, passes, the waste ledger in
    token slots (see `policy.ledger.WasteLedger`), computed and fill."""
    names = np.array([str(cost.bucket) for cost in trace.costs])
    frame = pd.DataFrame(
        {
            "batch": np.arange(len(trace.batch_rows)),
            "replica": trace.batch_replica,
            "bucket": names[trace.batch_bucket],
            "start_s": trace.batch_start_s,
            "seconds": trace.batch_seconds,
            "rows": trace.batch_rows,
            "passes": trace.batch_passes,
            **_ledgers(trace),
        }
    )
    computed = frame[list(LEDGER)].sum(axis=1)
    return frame.assign(computed=computed, fill=frame["useful"] / computed)


def ledger(trace: Trace) -> WasteLedger:
    """The waste ledger of the whole run."""
    return WasteLedger(**{name: int(tokens.sum()) for name, tokens in _ledgers(trace).items()})


def by_bucket(batches: pd.DataFrame) -> pd.DataFrame:
    """One row a bucket that ran: batches, rows, seconds, the ledger's sums, computed and fill."""
    columns = ["rows", "seconds", *LEDGER, "computed"]
    frame = batches.groupby("bucket")[columns].sum()
    frame.insert(0, "batches", batches.groupby("bucket").size())
    return frame.assign(fill=frame["useful"] / frame["computed"]).reset_index()


def _ledgers(trace: Trace) -> dict[str, np.ndarray]:
    """Each part of `WasteLedger.of_batch` for each batch, int64 [b]."""
    rows = trace.batch_rows.astype(np.int64)
    first = np.cumsum(rows) - rows
    prompts = trace.workload.prompt_tokens[trace.members]
    outputs = trace.workload.output_tokens[trace.members]
    if not len(rows):
        return {name: np.zeros(0, dtype=np.int64) for name in LEDGER}
    prompt_sum, output_sum = (
        np.add.reduceat(tokens, first, dtype=np.int64) for tokens in (prompts, outputs)
    )
    longest = np.maximum.reduceat(prompts, first)
    sizes = [(c.bucket.batch_size, c.bucket.prompt_length) for c in trace.costs]
    batch_size, prompt_length = np.array(sizes, dtype=np.int64)[trace.batch_bucket].T
    passes = trace.batch_passes.astype(np.int64)
    return {
        "useful": prompt_sum + output_sum,
        "batch_pad": (batch_size - rows) * (prompt_length + passes),
        "prompt_pad": rows * longest - prompt_sum,
        "bucket_pad": rows * (prompt_length - longest),
        "decode_tail": rows * passes - output_sum,
        "cap": np.zeros_like(rows),  # a batch ends with its longest answer
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
        cls, values_s: np.ndarray, percentiles: Sequence[float], counts: np.ndarray | None = None
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


def latencies(trace: Trace, percentiles: Sequence[float] = (50, 90, 99)) -> dict[str, Statistics]:
    """Statistics of queue, ttft, tpot, itl and e2el over the served requests."""
    served = trace.served
    arrival_s = trace.workload.arrival_s[served]
    longer = served & (trace.workload.output_tokens > 1)
    # Every gap in a bucket is a decode pass of it: one value, as often as tokens followed a first.
    # Spelled out, they would be the largest array of all.
    bucket = trace.batch_bucket[trace.batch[longer]]
    gaps = np.bincount(
        bucket, weights=trace.workload.output_tokens[longer] - 1, minlength=len(trace.costs)
    ).astype(np.int64)
    decode_s = np.array([cost.decode_s for cost in trace.costs])
    return {
        "queue": Statistics.of(trace.start_s[served] - arrival_s, percentiles),
        "ttft": Statistics.of(_latency_s(trace, "ttft")[served], percentiles),
        "tpot": Statistics.of(decode_s, percentiles, np.bincount(bucket, minlength=len(decode_s))),
        "itl": Statistics.of(decode_s, percentiles, gaps),
        "e2el": Statistics.of(_latency_s(trace, "e2el")[served], percentiles),
    }


def good_requests(trace: Trace, limits_ms: Mapping[str, float]) -> int:
    """Served requests within every one of the limits on ttft, tpot and e2el, in milliseconds; the
    TPOT of a single token counts as 0. Raises ValueError for another name."""
    require_limits(limits_ms)
    good = trace.served.copy()
    for name, limit_ms in limits_ms.items():
        good[good] = _latency_s(trace, name)[good] <= limit_ms / 1e3
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


def _latency_s(trace: Trace, name: str) -> np.ndarray:
    if name == "tpot":
        return np.where(trace.workload.output_tokens > 1, trace.decode_s, 0.0)
    end_s = trace.first_token_s if name == "ttft" else trace.finish_s
    return end_s - trace.workload.arrival_s + trace.client_overhead_s


# --- the run as a whole ---------------------------------------------------------------------------


def duration_s(trace: Trace) -> float:
    """From the first arrival to the last token; 0 where nothing was served."""
    if not len(trace.batch_rows):
        return 0.0
    end_s = (trace.batch_start_s + trace.batch_seconds).max()
    return float(end_s - trace.workload.arrival_s[0])


def busy_s(trace: Trace) -> float:
    """Seconds in which a replica ran a batch, summed over the replicas."""
    return float(trace.batch_seconds.sum())


def utilisation(trace: Trace) -> float:
    """Busy seconds over the seconds there were, of all replicas."""
    seconds = duration_s(trace) * trace.replicas
    return busy_s(trace) / seconds if seconds else 0.0


def distance_to_shape_bound(trace: Trace) -> float:
    """Busy seconds over L1, the least that any batching of the served requests on these buckets
    takes: 1 is perfect. nan where nothing was served."""
    if not len(trace.batch_rows):
        return float("nan")
    return busy_s(trace) / shape_bound_s(trace.workload, trace.costs)


def summary(trace: Trace) -> dict[str, float]:
    """The run in one row: served, rejected, batches, duration_s, busy_s, throughput_rps,
    utilisation, busy_over_shape_bound, fill, the ledger as `<part>_tokens`, and mean, median, p95
    and p99 of queue, ttft, tpot and e2el as `p95_ttft_ms`."""
    seconds, served, tokens = duration_s(trace), int(trace.served.sum()), ledger(trace)
    latency = latencies(trace, (95, 99))
    return {
        "served": served,
        "rejected": len(trace.workload) - served,
        "batches": len(trace.batch_rows),
        "duration_s": seconds,
        "busy_s": busy_s(trace),
        "throughput_rps": served / seconds if seconds else float("nan"),
        "utilisation": utilisation(trace),
        "busy_over_shape_bound": distance_to_shape_bound(trace),
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


def saturation(trace: Trace) -> str:
    """Why latencies of this run measure the backlog and not the service; empty where they do not.

    Certain, if the least work the requests can be takes longer than they took to arrive. Otherwise
    a run counts as saturated if its queue grew: the mean queue time of the second half of the
    served requests is above 1.5 times that of the first half plus the longest batch.
    """
    served = np.flatnonzero(trace.served)
    if len(served) < 2:
        return ""
    arrival_s = trace.workload.arrival_s[served]
    span_s = float(arrival_s[-1] - arrival_s[0])
    if span_s == 0:
        return "all requests came at once: their latency is that of the backlog"
    least_s = shape_bound_s(trace.workload, trace.costs) / trace.replicas
    if least_s > span_s:
        return (
            f"the requests came in {span_s:.0f} s and are at least {least_s:.0f} s of work for "
            f"{trace.replicas} replica{'s' if trace.replicas > 1 else ''}: the queue grows without "
            f"end"
        )
    queue_s = trace.start_s[served] - arrival_s
    half = len(served) // 2
    first_s, second_s = queue_s[:half].mean(), queue_s[half:].mean()
    if second_s > GROWING * first_s + trace.batch_seconds.max():
        return (
            f"the queue grew: the second half of the requests waited {second_s:.0f} s on average, "
            f"the first half {first_s:.0f} s"
        )
    return ""


def busiest_second(trace: Trace) -> tuple[float, int]:
    """Most tokens put out, and most requests in the system, in one second of the clock that starts
    with the first served arrival; as vLLM counts them."""
    served = np.flatnonzero(trace.served)
    if not len(served):
        return 0.0, 0
    start_s = trace.workload.arrival_s[served[0]]
    arrived = np.floor(trace.workload.arrival_s[served] - start_s)
    ended = np.floor(trace.finish_s[served] - start_s)
    change = np.repeat([1, -1], len(served))
    _, changes = _summed(np.concatenate([arrived, ended + 1]), change)
    return _most_tokens_per_second(trace, start_s), int(np.cumsum(changes).max())


def _summed(seconds: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct seconds, ascending, and the sum of the values of each: as long as what happened,
    however long the clock ran between."""
    distinct, place = np.unique(seconds, return_inverse=True)
    return distinct, np.bincount(place, weights=values, minlength=len(distinct))


def _most_tokens_per_second(trace: Trace, start_s: float) -> float:
    """Most tokens put out in a second after `start_s`, counted in blocks of batches."""
    passes = trace.batch_passes.astype(np.int64)
    first = np.cumsum(passes + 1) - (passes + 1)  # of each batch in a row of all passes
    end_s = (trace.batch_start_s + trace.batch_seconds).max() - start_s
    blocks = []
    last_member = np.cumsum(trace.batch_rows)
    prefill_s = np.array([cost.prefill_s for cost in trace.costs])
    decode_s = np.array([cost.decode_s for cost in trace.costs])
    low = 0
    while low < len(passes):
        high = max(low + 1, int(np.searchsorted(first, first[low] + PASSES_AT_ONCE)))
        some = trace.members[last_member[low] - trace.batch_rows[low] : last_member[high - 1]]
        place = first[trace.batch[some]] - first[low]
        slots = int(first[high - 1] - first[low] + passes[high - 1] + 1)
        # each member is there from its batch's first pass to its own last one
        running = np.bincount(place, minlength=slots)
        running -= np.bincount(place + trace.workload.output_tokens[some], minlength=slots)
        running = np.cumsum(running)
        batch = np.repeat(np.arange(low, high), passes[low:high] + 1)
        bucket = trace.batch_bucket[batch]
        number = np.arange(slots) - (first[batch] - first[low])
        at_s = trace.batch_start_s[batch] + prefill_s[bucket] + number * decode_s[bucket] - start_s
        blocks.append(_summed(np.minimum(np.floor(at_s), np.floor(end_s) + 1), running))
        low = high
    seconds, tokens = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return float(_summed(seconds, tokens)[1].max())
