"""What a static batching engine would do with a workload: exact event times, no randomness.

An idle engine asks `policy.static.next_batch` who runs; a batch whose longest output has S tokens
runs one prefill, which yields every member's first token, and S - 1 decode passes, and then the
engine is idle again. Nothing joins or leaves a running batch. At equal times arrivals come before
decisions.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.cost.spread import Pace, steady
from spyre_bench.policy.static import Batch, Hold, Policy, Step, next_batch
from spyre_bench.policy.window import Window
from spyre_bench.simulate.replicas import (
    REQUESTS_AT_A_TIME,
    ranges,
    require,
    require_replicas,
    serve,
)
from spyre_bench.simulate.result import (
    DECODE,
    LEFT,
    PREFILL,
    UNSERVED,
    Passes,
    Requests,
    StaticRun,
    sums,
)
from spyre_bench.workload.workload import Workload


class Request(NamedTuple):
    """A row of the workload as the policy sees it, and what it does not use: its true output
    tokens, when the engine reads it, and when its client gives up."""

    arrival_s: float
    prompt_tokens: int
    max_tokens: int
    output_tokens: int
    seen_s: float
    leaves_s: float
    row: int


def at_once(event_s: float) -> float:
    return event_s


def simulate(
    workload: Workload,
    costs: Sequence[BucketCost],
    policy: Policy | None = None,
    *,
    replicas: int = 1,
    router: str = "round_robin",
    ready_s: float = 0.0,
    client_overhead_s: float = 0.0,
    estimated: Sequence[BucketCost] | None = None,
    pace: Pace = steady,
    seen_s: np.ndarray | None = None,
    leaves_s: np.ndarray | None = None,
    looks: Callable[[float], float] = at_once,
) -> StaticRun:
    """Serves the workload on engines that have the buckets of `costs` compiled.

    Every replica starts its first batch `ready_s` after the workload's start at the earliest (a
    start-up's warmup, 0 for engines that are ready); requests wait until then. A request that fits
    no bucket is rejected before it reaches a router. `round_robin` deals the others out in turn;
    `least_loaded` sends each to the replica with the fewest unfinished requests, ties to the first.
    A client's TTFT and E2EL have `client_overhead_s` more than the engine's (HTTP, tokenizing, the
    way back). The policy decides by `costs`, or by `estimated` ones, a server's own estimate of the
    same buckets.

    `pace` says how many times its cost a prefill and a decode pass of each batch take: a machine's
    noise, or what was measured. `seen_s` is when an engine reads each request, ascending and not
    before its arrival, which is the default and what the policy counts its age from. Whoever still
    waits at `leaves_s` is gone by then; one that gives up later has its output tokens end there.
    `looks` says when an engine notices what happens at a time, that and not before: a server's
    loop was elsewhere.

    Raises ValueError for no bucket, a replica count below 1, an unknown router, a negative time.
    """
    costs = tuple(costs)
    require(len(costs) > 0, "costs is empty: price at least one bucket")
    require_replicas(replicas, router, ready_s, client_overhead_s)
    estimated = costs if estimated is None else tuple(estimated)
    require(
        [cost.bucket for cost in estimated] == [cost.bucket for cost in costs],
        "estimated costs are of other buckets than costs: give one for each, in the same order",
    )
    policy = policy or Policy()
    rejected = _rejections(workload, costs)
    rows = np.flatnonzero(rejected == 0)
    first_s = workload.start_s + ready_s
    seen_s = workload.arrival_s if seen_s is None else seen_s
    leaves_s = np.full(len(workload), math.inf) if leaves_s is None else leaves_s
    engines = [_Engine(costs, estimated, policy, first_s, pace, looks) for _ in range(replicas)]
    serve(engines, router, rows, lambda some: _requests(workload, seen_s, leaves_s, some))
    passes = _passes(workload, costs, engines)
    requests = _served(workload, rejected, passes)
    return StaticRun(
        workload, replicas, ready_s, client_overhead_s, requests, passes, policy, costs
    )


class _Engine:
    """One replica: its queue, its clock and the log of its batches."""

    def __init__(
        self,
        costs: tuple[BucketCost, ...],
        estimated: tuple[BucketCost, ...],
        policy: Policy,
        first_s: float,
        pace: Pace,
        looks: Callable[[float], float],
    ):
        self.costs, self.estimated, self.policy = costs, estimated, policy
        self.free_s = first_s  # the running batch ends
        self.look_s = 0.0  # nothing can happen before
        self.queue: deque[Request] = deque()  # arrived and passed over, then those to come
        self.running: Batch[Request] | None = None
        self._upcoming: Iterator[Request] = iter(())
        self._read: list[Request] = []
        self._window: Window[Request] = Window(estimated)  # of `length_aware`: before the queue
        self._first_leaves_s = math.inf  # of those in the window
        self._index = {id(cost): index for index, cost in enumerate(estimated)}
        self._pace, self._looks = pace, looks
        self.bucket, self.start_s, self.passes = array("h"), array("d"), array("i")
        self.prefill_s, self.decode_s = array("d"), array("d")
        self.rows, self.members = array("i"), array("i")

    def serve(self, requests: Iterator[Request]) -> None:
        """Runs everything, with few of the requests in memory at a time."""
        self._upcoming = requests
        self.advance(math.inf)

    def push(self, request: Request) -> None:
        """Takes a request at its arrival; the clock must have been advanced to there."""
        self.queue.append(request)
        self.look_s = min(self.look_s, request.seen_s)

    def advance(self, until_s: float) -> None:
        """Starts every batch that starts before `until_s`."""
        waiting = self._in_window if self.policy.name == "length_aware" else self._waiting
        while self._window or self.queue or self._refill():
            first = self.queue[0] if not self._window else next(iter(self._window))
            now = self._looks(max(self.free_s, first.seen_s, self.look_s))
            if now >= until_s:
                return
            step: Step[Request] | None = next_batch(waiting(now), self.estimated, self.policy, now)
            if isinstance(step, Hold):
                self._put_back(())
                self.look_s = min(step.until_s, self._next_change_s(now))
            elif step:  # otherwise all who had arrived have left
                self._start(step, now)

    def unfinished(self, now: float) -> int:
        """Requests here that have not got their last token by `now`; `now` is not before the
        start of the running batch."""
        waiting = len(self._window) + len(self.queue)
        if self.running is None or now >= self.free_s:
            return waiting
        first_s, decode_s = self.start_s[-1] + self.prefill_s[-1], self.decode_s[-1]
        return waiting + sum(
            first_s + (member.output_tokens - 1) * decode_s > now for member in self.running.members
        )

    def _waiting(self, now: float) -> Iterator[Request]:
        """Takes from the queue what has arrived by `now` and not left, as far as it is asked to."""
        queue, read = self.queue, self._read
        while (queue or self._refill()) and queue[0].seen_s <= now:
            request = queue.popleft()
            if request.leaves_s > now:
                read.append(request)
                yield request

    def _in_window(self, now: float) -> Window[Request]:
        """The window, filled with who has arrived by `now`, and without who has left."""
        window = self._window
        if self._first_leaves_s <= now:
            window.remove([request for request in window if request.leaves_s <= now])
            self._first_leaves_s = min([r.leaves_s for r in window], default=math.inf)
        queue, room = self.queue, window.room - len(window)
        while room and (queue or self._refill()) and queue[0].seen_s <= now:
            request = queue.popleft()
            if request.leaves_s > now:
                window.add(request)
                room -= 1
                if request.leaves_s < self._first_leaves_s:
                    self._first_leaves_s = request.leaves_s
        return window

    def _start(self, batch: Batch[Request], now: float) -> None:
        decided, members = batch
        index = self._index[id(decided)]
        cost = self.costs[index]
        of_prefill, of_decode = self._pace(now)
        prefill_s, decode_s = cost.prefill_s * of_prefill, cost.decode_s * of_decode
        passes = max([member.output_tokens for member in members])
        rows = [member.row for member in members]
        self.running = Batch(cost, members)
        self.free_s = now + prefill_s + (passes - 1) * decode_s
        self.look_s = 0.0
        self.bucket.append(index)
        self.start_s.append(now)
        self.prefill_s.append(prefill_s)
        self.decode_s.append(decode_s)
        self.passes.append(passes)
        self.rows.append(len(rows))
        self.members.extend(rows)
        self._put_back(rows)
        if self._window:
            self._window.remove(members)

    def _put_back(self, taken: Sequence[int]) -> None:
        """What the policy has read and not taken goes back to its place in the queue."""
        read = self._read
        if len(read) > len(taken):
            gone = set(taken)
            self.queue.extendleft([r for r in reversed(read) if r.row not in gone])
        read.clear()

    def _next_change_s(self, now: float) -> float:
        """When the next request is read, or one of those before it leaves."""
        change_s = math.inf
        for request in itertools.chain(self._window, self.queue):
            if request.seen_s > now:
                return min(change_s, request.seen_s)
            change_s = min(change_s, request.leaves_s)
        return change_s

    def _refill(self) -> bool:
        """Fetches a request to come, if there is one."""
        request = next(self._upcoming, None)
        if request is None:
            return False
        self.queue.append(request)
        return True


def _rejections(workload: Workload, costs: Sequence[BucketCost]) -> np.ndarray:
    """int8 [n], why no bucket takes each request: 0 where one does."""
    prompt_tokens, max_tokens = workload.prompt_tokens, workload.max_tokens
    taken = np.zeros(len(workload), dtype=bool)
    for bucket in {cost.bucket for cost in costs}:
        taken |= workload.fits(bucket)
    too_long = prompt_tokens > max(cost.bucket.prompt_length for cost in costs)
    too_large = max_tokens > max(cost.bucket.new_tokens for cost in costs)
    return np.select([taken, too_long, too_large], [0, 1, 2], 3).astype(np.int8)


def _requests(
    workload: Workload, seen_s: np.ndarray, leaves_s: np.ndarray, rows: np.ndarray
) -> Iterator[Request]:
    """The rows of the workload one by one, turned into Python's numbers a chunk at a time."""
    columns = (
        workload.arrival_s,
        workload.prompt_tokens,
        workload.max_tokens,
        workload.output_tokens,
        seen_s,
        leaves_s,
    )
    for first in range(0, len(rows), REQUESTS_AT_A_TIME):
        some = rows[first : first + REQUESTS_AT_A_TIME]
        yield from map(Request, *(column[some].tolist() for column in columns), some.tolist())


def _passes(workload: Workload, costs: Sequence[BucketCost], engines: Sequence[_Engine]) -> Passes:
    """The engines' logs as one, batches in the order of their start: a prefill each, and a row of
    decode passes where an output has more than one token."""

    def joined(of: Callable[[_Engine], array[Any]], dtype: type) -> np.ndarray:
        return np.concatenate([np.array(of(engine), dtype) for engine in engines])

    start_s = joined(lambda engine: engine.start_s, np.float64)
    replica = np.repeat(np.arange(len(engines), dtype=np.int16), [len(e.rows) for e in engines])
    order = np.lexsort((replica, start_s))
    steps = joined(lambda engine: engine.passes, np.int32)[order]
    batch = np.repeat(np.arange(len(order), dtype=np.int32), 1 + (steps > 1))
    decode = np.diff(batch, prepend=-1) == 0
    logged = order[batch]  # where in the logs each row's batch is
    shape = joined(lambda engine: engine.bucket, np.int16)[logged]
    rows = joined(lambda engine: engine.rows, np.int32)
    first, rows = (np.cumsum(rows) - rows)[logged], rows[logged]
    members = joined(lambda engine: engine.members, np.int32)[ranges(first, rows)]
    of_decode = np.repeat(decode, rows)
    tokens = np.where(of_decode, workload.output_tokens[members] - 1, np.int32(1))
    useful = tokens + np.where(of_decode, np.int32(0), workload.prompt_tokens[members])
    sizes = np.array([(c.bucket.batch_size, c.bucket.prompt_length) for c in costs], np.int64)
    batch_size, prompt_length = sizes[shape].T
    prefill_s = joined(lambda engine: engine.prefill_s, np.float64)[logged]
    decode_s = joined(lambda engine: engine.decode_s, np.float64)[logged]
    return Passes(
        kind=np.where(decode, np.int8(DECODE), np.int8(PREFILL)),
        shape=shape,
        batch=batch,
        replica=replica[logged],
        start_s=start_s[logged] + np.where(decode, prefill_s, 0.0),
        seconds=np.where(decode, decode_s, prefill_s),
        count=np.where(decode, steps[batch] - 1, np.int32(1)),
        slots=batch_size * np.where(decode, 1, prompt_length + 1),
        useful=sums(useful, np.cumsum(rows) - rows),
        rows=rows,
        members=members,
        tokens=tokens,
        waited_s=np.broadcast_to(0.0, len(members)),  # decode passes follow without a pause
    )


def _served(workload: Workload, rejected: np.ndarray, passes: Passes) -> Requests:
    """When the passes of static batches served each request."""
    first = passes.first_of_batch
    batch = np.full(len(workload), -1, dtype=np.int32)
    batch[passes.members_of("prefill")] = np.repeat(passes.batch[first], passes.rows[first])
    left = np.int8(1 + UNSERVED.index(LEFT))

    def of_batch(values: np.ndarray) -> np.ndarray:
        """A value of each batch as one of each request."""
        return np.append(values, np.nan)[batch]

    start_s = passes.start_s[first]
    first_token_s = of_batch(start_s + passes.seconds[first])
    last = np.append(first[1:], len(passes)) - 1  # its decode passes, where a member has further
    decode_s = of_batch(passes.seconds[last[: len(first)]])
    further = workload.output_tokens - 1
    return Requests(
        batch=batch,
        replica=np.append(passes.replica[first], np.int16(-1))[batch],
        start_s=of_batch(start_s),
        first_token_s=first_token_s,
        finish_s=first_token_s + further * decode_s,
        tpot_s=np.where(further > 0, decode_s, np.nan),
        rejected=np.where((batch < 0) & (rejected == 0), left, rejected),
    )
