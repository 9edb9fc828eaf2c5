"""The first of three errors: does the simulator decide as the server did?

The simulator gets what the server had: when its scheduler saw each request, which left the queue,
and what every pass took. It then has to form the same batches, in the same order, at the same
times. What is off here is a fault of the simulator; no cost can explain it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.cost.spread import Pace
from spyre_bench.metrics.served import output_tokens
from spyre_bench.policy.static import Policy
from spyre_bench.simulate.result import SimulatedRun
from spyre_bench.simulate.static import simulate
from spyre_bench.workload.workload import Workload

NEAR_S = 0.010  # within which a request's times agree
ROUNDED_S = 1e-6  # a batch is longer by: whoever was seen by its end is so whatever sums round to
AWAKE_S = 0.05  # a next batch that starts this soon: the engine was not idle in between


@dataclass(frozen=True)
class Decisions:
    """The batches of a server beside those of the simulator that was fed with its passes."""

    batches: int
    first_other: int | None  # the first batch that differs in bucket or members; None: none does
    latest_s: float  # the largest difference of any request's start, in the batches before it

    @property
    def same(self) -> bool:
        return self.first_other is None

    @property
    def agree(self) -> bool:
        """The same batches in the same order, every request at its time."""
        return self.same and self.latest_s <= NEAR_S


def decisions(passes: pd.DataFrame, policy: Policy, estimated: Sequence[BucketCost]) -> Decisions:
    """From a pass log with what the scheduler knew (`read_passes(..., waits=True)`), the server's
    policy and the costs that it decided by. Raises ValueError for a log without it."""
    server = _measured(passes)
    order = np.argsort(server.place)  # of its queue
    run = _replay(server, order, policy, estimated)
    first = run.passes.first_of_batch
    simulated = [
        (str(run.costs[run.passes.shape[row]].bucket), set(order[run.passes.of_row(row)[0]]))
        for row in first
    ]
    ends = np.cumsum(server.members)
    measured = [
        (bucket, set(range(end - members, end)))
        for bucket, members, end in zip(server.bucket, server.members, ends, strict=True)
    ]
    both = itertools.zip_longest(measured, simulated)
    other = next((place for place, (ours, theirs) in enumerate(both) if ours != theirs), None)
    alike = len(measured) if other is None else other
    off_s = run.passes.start_s[first][:alike] - server.start_s[:alike]
    return Decisions(len(measured), other, float(np.abs(off_s).max(initial=0.0)))


def _replay(
    server: _Server, order: np.ndarray, policy: Policy, estimated: Sequence[BucketCost]
) -> SimulatedRun:
    """The simulator's run on the requests of a pass log, with every batch as long as it was."""
    workload = Workload(
        "pass log",
        np.maximum.accumulate(_noticed(server, policy)[order]),
        server.prompt_tokens[order],
        server.output_tokens[order],
        server.max_tokens[order],
    )
    return simulate(
        workload,
        estimated,
        policy,
        pace=_pace(server, estimated),
        seen_s=server.seen_s[order],
        leaves_s=server.leaves_s[order],
    )


def _noticed(server: _Server, policy: Policy) -> np.ndarray:
    """Arrivals with which a hold ends when the server's loop noticed that it was over, and not a
    step before: in between, somebody else may have been seen."""
    arrival_s, last = server.arrival_s.copy(), np.cumsum(server.members)
    for start_s, first, end in zip(server.start_s, last - server.members, last, strict=True):
        members = slice(first, end)
        for hold_s in filter(None, {policy.gather_s, policy.max_wait_s}):
            if 0 < start_s - (arrival_s[members].min() + hold_s) < NEAR_S:
                arrival_s[members] = np.maximum(arrival_s[members], start_s - hold_s)
    return arrival_s


@dataclass(frozen=True)
class _Server:
    """What a pass log says: its batches, then its requests, members batch by batch and after them
    those that left. Seconds are from the first arrival."""

    bucket: list[str]
    start_s: np.ndarray  # float64 [batches]
    prefill_end_s: np.ndarray  # float64 [batches], where the next pass starts
    decode_s: np.ndarray  # float64 [batches], mean of the others; the last ends with the batch
    members: np.ndarray  # int [batches]
    place: np.ndarray  # [requests], in the order of the queue
    arrival_s: np.ndarray  # float64 [requests]
    seen_s: np.ndarray
    leaves_s: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray
    max_tokens: np.ndarray


def _measured(passes: pd.DataFrame) -> _Server:
    batches = [some for _, some in passes.groupby("batch", sort=True)]
    starts = pd.DataFrame([some.iloc[0] for some in batches])
    members = starts["seen_s"].map(len).to_numpy()
    if (members != starts["prompt_tokens"].map(len)).any():
        raise ValueError(
            "the pass log does not say when requests were seen: an older server wrote it; serve "
            "and log again"
        )
    ends_s = zip(batches, _ends(batches), strict=True)
    at_s = [np.append(some["start_s"], end_s) for some, end_s in ends_s]
    left = np.array([one for some in starts["left"] for one in some]).reshape(-1, 6)

    def of_requests(name: str, column: int) -> np.ndarray:
        return np.concatenate([*starts[name], left[:, column]])

    arrival_s, seen_s = of_requests("arrival_s", 1), of_requests("seen_s", 2)
    earliest_s = arrival_s.min()  # the log's clock starts with its first pass
    outputs = np.concatenate([*map(output_tokens, batches), np.ones(len(left))])
    return _Server(
        bucket=starts["bucket"].tolist(),
        start_s=starts["start_s"].to_numpy() - earliest_s,
        prefill_end_s=np.array([times[1] for times in at_s]) - earliest_s,
        decode_s=np.array([(times[-1] - times[1]) / max(1, len(times) - 2) for times in at_s]),
        members=members,
        place=of_requests("place", 0),
        arrival_s=arrival_s - earliest_s,
        seen_s=seen_s - earliest_s,
        leaves_s=np.append(np.full(members.sum(), np.inf), left[:, 3] - earliest_s),
        prompt_tokens=of_requests("prompt_tokens", 4).astype(int),
        output_tokens=outputs.astype(int),
        max_tokens=of_requests("max_tokens", 5).astype(int),
    )


def _ends(batches: Sequence[pd.DataFrame]) -> list[float]:
    """When each batch leaves the engine free: with the start of the next where that follows at
    once, else with its last pass and the time that lies between two passes."""
    passes = pd.concat(batches)
    between_s = passes["start_s"].diff() - passes["seconds"].shift()
    gap_s = between_s[passes["batch"].diff() == 0].median()
    ends_s = []
    for some, following in zip(batches, [*batches[1:], None], strict=True):
        last = some.iloc[-1]
        end_s = last["start_s"] + last["seconds"]
        next_s = np.inf if following is None else following["start_s"].iloc[0]
        end_s = next_s if next_s - end_s < AWAKE_S else end_s + np.nan_to_num(gap_s)
        ends_s.append(end_s + ROUNDED_S)
    return ends_s


def _pace(server: _Server, costs: Sequence[BucketCost]) -> Pace:
    """Passes that end when the server's did, and so take from the next batch on what went into the
    start of this one: a step of the server's loop is no decision."""
    by_name = {str(cost.bucket): cost for cost in costs}
    batches = zip(server.bucket, server.prefill_end_s, server.decode_s, strict=True)

    def pace(start_s: float) -> tuple[float, float]:
        name, end_s, decode_s = next(batches, ("", 0.0, 0.0))
        if name not in by_name:  # more batches than the server had
            return 1.0, 1.0
        cost = by_name[name]
        prefill_s = max(end_s - start_s, ROUNDED_S)
        return prefill_s / cost.prefill_s, decode_s / cost.decode_s or 1.0

    return pace
