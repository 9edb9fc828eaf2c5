"""The first of three errors: does the simulator decide as the server did?

The simulator gets what the server had: when its scheduler saw each request, which left the queue,
and what every pass took. It then has to form the same batches, in the same order, at the same
times. What is off here is a fault of the simulator; no cost can explain it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
ROUNDED_S = 1e-6  # more than sums of times round to
AWAKE_S = 0.05  # a decision this soon after a batch is a step of the loop, and not late


@dataclass(frozen=True)
class Decisions:
    """The batches of a server beside those of the simulator that was fed with its passes; and where
    one differs, the first (None: it has no further one)."""

    batches: int
    first_other: int | None  # the first batch that differs in bucket or members; None: none does
    latest_s: float  # the largest difference of any request's start, in the batches before it
    measured: Formed | None = None
    simulated: Formed | None = None

    @property
    def same(self) -> bool:
        return self.first_other is None

    @property
    def agree(self) -> bool:
        """The same batches in the same order, every request at its time."""
        return self.same and self.latest_s <= NEAR_S

    def __str__(self) -> str:
        times = f"starts at most {1e3 * self.latest_s:.1f} ms apart"
        if self.first_other is None:
            return f"the simulator forms the server's {self.batches:,} batches, {times}"
        return (
            f"batch {self.first_other:,} of {self.batches:,} (counted from 0) differs: the "
            f"server's {self.measured or 'none'}; the simulator's {self.simulated or 'none'}; "
            f"before it {times}"
        )


class Formed(NamedTuple):
    """A batch as it is compared, and what explains a difference."""

    bucket: str
    places: frozenset[int]  # of its members, among all requests that came
    start_s: float  # from the first arrival

    def __str__(self) -> str:
        who = ", ".join(map(str, sorted(self.places)))
        return f"{self.bucket} with requests {who} at {self.start_s:.6f} s"

    def is_as(self, other: Formed) -> bool:
        return self[:2] == other[:2]


def decisions(passes: pd.DataFrame, policy: Policy, estimated: Sequence[BucketCost]) -> Decisions:
    """From a pass log with what the scheduler knew (`read_passes(..., waits=True)`), the server's
    policy and the costs that it decided by. Raises ValueError for a log without it."""
    server = _measured(passes)
    order = np.argsort(server.place)  # of its queue
    looks = _Looks(server)
    run = _replay(server, order, looks, policy, estimated)
    place = server.place.astype(int)
    simulated = [
        Formed(
            str(run.costs[run.passes.shape[row]].bucket),
            frozenset(place[order[run.passes.of_row(row)[0]]].tolist()),
            looks.event_s.get(start_s := float(run.passes.start_s[row]), start_s),
        )
        for row in run.passes.first_of_batch
    ]
    members = np.split(place, np.cumsum(server.members))[:-1]
    measured = [
        Formed(bucket, frozenset(some.tolist()), float(start_s))
        for bucket, some, start_s in zip(server.bucket, members, server.start_s, strict=True)
    ]
    latest_s = 0.0
    for at, (ours, theirs) in enumerate(itertools.zip_longest(measured, simulated)):
        if not (ours and theirs and ours.is_as(theirs)):
            return Decisions(len(measured), at, latest_s, ours, theirs)
        latest_s = max(latest_s, abs(ours.start_s - theirs.start_s))
    return Decisions(len(measured), None, latest_s)


def _replay(
    server: _Server,
    order: np.ndarray,
    looks: _Looks,
    policy: Policy,
    estimated: Sequence[BucketCost],
) -> SimulatedRun:
    """The simulator's run on the requests of a pass log, with every batch as long as it was."""
    workload = Workload(
        "pass log",
        np.maximum.accumulate(server.arrival_s[order]),
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
        looks=looks,
    )


class _Looks:
    """When the server's loop noticed what happened at a time: a batch or a hold had ended. The log
    knows from when on it had not looked, before each batch and before each request that left; in
    between somebody else may have come or gone, whom the decision then knew of."""

    def __init__(self, server: _Server):
        ends_s = pd.Series(
            np.concatenate([server.decided_s, server.leaves_s[server.members.sum() :]])
        )
        ends_s = ends_s.groupby(server.looked_s).max()  # with whoever left there was no look yet
        self._begin_s, self._end_s = ends_s.index.to_numpy(), ends_s.to_numpy()
        self.event_s: dict[float, float] = {}  # by when it was noticed

    def __call__(self, event_s: float) -> float:
        place = np.searchsorted(self._end_s, event_s, side="right")
        if place == len(self._end_s) or event_s <= self._begin_s[place] + ROUNDED_S:
            return event_s
        noticed_s = float(self._end_s[place])
        self.event_s[noticed_s] = event_s
        return noticed_s


@dataclass(frozen=True)
class _Server:
    """What a pass log says: its batches, then its requests, members batch by batch and after them
    those that left. Seconds are from the first arrival."""

    bucket: list[str]
    start_s: np.ndarray  # float64 [batches]
    looked_s: np.ndarray  # float64 [batches + left], the decision before began
    decided_s: np.ndarray  # float64 [batches], and the one to start it was made
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
    looks = starts["looked_s"].map(len).to_numpy()
    if (members != starts["prompt_tokens"].map(len)).any() or (looks[1:] != 2).any():
        raise ValueError(
            "the pass log does not say when requests were seen: an older server wrote it; serve "
            "and log again"
        )
    looked_s = np.array([times[0] if len(times) > 1 else -np.inf for times in starts["looked_s"]])
    decided_s = np.array([times[-1] for times in starts["looked_s"]])
    ends_s = zip(batches, _ends(batches, looked_s, decided_s), strict=True)
    at_s = [np.append(some["start_s"], end_s) for some, end_s in ends_s]
    left = np.array([one for some in starts["left"] for one in some]).reshape(-1, 7)

    def of_requests(name: str, column: int) -> np.ndarray:
        return np.concatenate([*starts[name], left[:, column]])

    arrival_s, seen_s = of_requests("arrival_s", 1), of_requests("seen_s", 2)
    earliest_s = arrival_s.min()  # the log's clock starts with its first pass
    outputs = np.concatenate([*map(output_tokens, batches), np.ones(len(left))])
    return _Server(
        bucket=starts["bucket"].tolist(),
        start_s=starts["start_s"].to_numpy() - earliest_s,
        looked_s=np.append(looked_s, left[:, 3]) - earliest_s,
        decided_s=decided_s - earliest_s,
        prefill_end_s=np.array([times[1] for times in at_s]) - earliest_s,
        decode_s=np.array([(times[-1] - times[1]) / max(1, len(times) - 2) for times in at_s]),
        members=members,
        place=of_requests("place", 0),
        arrival_s=arrival_s - earliest_s,
        seen_s=seen_s - earliest_s,
        leaves_s=np.append(np.full(members.sum(), np.inf), left[:, 4] - earliest_s),
        prompt_tokens=of_requests("prompt_tokens", 5).astype(int),
        output_tokens=outputs.astype(int),
        max_tokens=of_requests("max_tokens", 6).astype(int),
    )


def _ends(
    batches: Sequence[pd.DataFrame], looked_s: np.ndarray, decided_s: np.ndarray
) -> Iterator[float]:
    """When each batch leaves the engine free: with the next decision where that follows at once,
    else with its last pass."""
    following = zip([*looked_s[1:], np.inf], [*decided_s[1:], np.inf], strict=True)
    for some, (looked, decided) in zip(batches, following, strict=True):
        last = some.iloc[-1]
        end_s = last["start_s"] + last["seconds"]
        is_next = looked <= last["start_s"] and decided - end_s < AWAKE_S
        yield decided - ROUNDED_S if is_next else end_s


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
