"""A simulated run as a whole: throughput, saturation, distance to the bound; in one row."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pandas as pd

from spyre_bench.metrics.bounds import bound_s, served_shares_s
from spyre_bench.metrics.latency import latencies
from spyre_bench.metrics.waste import ledger, paid
from spyre_bench.simulate.result import UNSERVED, ContinuousRun, SimulatedRun

GROWING = 1.5  # queue of the second half over that of the first, beyond which it grows
PASSES_AT_ONCE = 2**14  # rows of a temporary array: it stays in the processor's cache


def requests(run: SimulatedRun) -> pd.DataFrame:
    """One row per request: arrival_s, prompt_tokens, output_tokens, max_tokens, batch (-1: none),
    queue_s, ttft_s, tpot_s (nan for one token), e2el_s, rejected (the reason, or empty)."""
    served = run.requests
    return run.workload.frame().assign(
        batch=served.batch,
        queue_s=served.start_s - run.workload.arrival_s,
        ttft_s=run.ttft_s,
        tpot_s=served.tpot_s,
        e2el_s=run.e2el_s,
        rejected=np.array(("", *UNSERVED))[served.rejected],
    )


def duration_s(run: SimulatedRun) -> float:
    """From the first arrival to the last token; 0 where nothing was served."""
    passes = run.passes
    if not len(passes):
        return 0.0
    end_s = (passes.start_s[passes.first_of_batch] + passes.batch_seconds).max()
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
    return busy_s(run) / bound_s(run)


def summary(run: SimulatedRun) -> dict[str, float]:
    """The run in one row: served, rejected, batches, duration_s, busy_s, throughput_rps,
    utilisation, busy_over_shape_bound, fill, the ledger as `<part>_tokens`, and mean, median, p95
    and p99 of queue, ttft, tpot and e2el as `p95_ttft_ms`. Under continuous batching also what the
    busy seconds were paid for, as `paid_<part>_s`, and hit_tokens."""
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
        **_of_continuous(run),
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


def _of_continuous(run: SimulatedRun) -> dict[str, float]:
    if not isinstance(run, ContinuousRun):
        return {}
    seconds = {f"paid_{name}": value for name, value in asdict(paid(run)).items()}
    return seconds | {"hit_tokens": int(run.hit_tokens.sum())}


SATURATED = " (saturated: depends on the length of the run)"


def saturation(run: SimulatedRun) -> str:
    """Why latencies of this run measure the backlog and not the service; empty where they do not.

    Certain, if the least work the requests can be takes longer than they took to arrive, that of
    the last, which nobody came after, left out. Otherwise
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
    least_s = float(served_shares_s(run)[: served[-1]].sum()) / run.replicas
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
