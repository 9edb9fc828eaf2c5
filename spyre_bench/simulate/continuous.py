"""What an engine of continuous batching would do with a workload: exact event times, no randomness.

Before every pass the engine asks `policy.continuous.next_step` what runs, as vLLM's scheduler does.
Decode passes that nothing can interrupt are one stretch: until the answer may change, the next true
end, or the pass in which somebody hangs up, or arrives who could be admitted. Chunks of a prompt,
and the passes between them, are run without asking again where the answer says that they follow.

A client that hangs up during a pass is gone when it ends, before those whose last token comes with
it: vLLM's engine reads aborts there. Blocks go back in this order, which decides what a prefix
cache keeps. At equal times ends of passes come first, then arrivals and those who hang up, then
decisions.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import islice
from typing import Any

import numpy as np

from spyre_bench.cost.shape_cost import ShapeCosts
from spyre_bench.policy.blocks import BlockPool
from spyre_bench.policy.continuous import (
    NEVER,
    RULES,
    Decode,
    Preempt,
    Prefill,
    Rules,
    next_chunk,
    next_step,
)
from spyre_bench.shape_set import BLOCK_TOKENS, PrefillShape, blocks_of
from spyre_bench.simulate.paged_log import SimulatedPasses, paged_run
from spyre_bench.simulate.pass_times import ByCost, Measured, PassTimes
from spyre_bench.simulate.replicas import REQUESTS_AT_A_TIME, require, require_replicas, serve
from spyre_bench.simulate.result import ContinuousRun
from spyre_bench.workload.workload import Workload

Prefixes = Sequence[Sequence[Hashable]]
"""For each request: a name for each whole block of its prompt, or for the first of them. Two that
are equal stand for equal tokens up to the block's end. Behind all of its prompt's may stand those
of its outputs, where it is known what they will be."""


class Request:
    """A request on an engine that only counts blocks. With admission by reservation all that it
    may ever need are as good as taken when it is admitted."""

    __slots__ = (
        "arrival_s",
        "computed_tokens",
        "end_tokens",
        "gone",
        "held_blocks",
        "highest_tokens",
        "leaves_s",
        "max_tokens",
        "paused_for",
        "prompt_tokens",
        "row",
        "seen_s",
    )
    hit_blocks = shared_blocks = reserved_blocks = 0

    def __init__(
        self,
        arrival_s: float,
        prompt_tokens: int,
        max_tokens: int,
        output_tokens: int,
        seen_s: float,
        leaves_s: float,
        row: int,
    ):
        self.arrival_s, self.seen_s, self.leaves_s, self.row = arrival_s, seen_s, leaves_s, row
        self.gone = False  # it ended, or its client hung up
        self.prompt_tokens, self.max_tokens = prompt_tokens, max_tokens
        self.end_tokens = prompt_tokens + output_tokens - 1  # computed when the last token comes
        self.computed_tokens = self.highest_tokens = self.held_blocks = self.paused_for = 0


class Named(Request):
    """A request on an engine with a prefix cache: its blocks have names."""

    __slots__ = ("kept", "pool", "prefixes", "table")
    pool: BlockPool  # of the engine that it came to
    prefixes: Sequence[Hashable]
    table: list[int]
    kept: int  # blocks of its table that keep a prefix

    @property
    def reserved_blocks(self) -> int:  # type: ignore[override]
        return blocks_of(self.prompt_tokens + self.max_tokens) - len(self.table)

    def hit(self) -> list[int]:
        """The blocks of its prompt that are cached; the last token is always computed."""
        most = (self.prompt_tokens - 1) // BLOCK_TOKENS
        named = self.pool.hit(self.prefixes[:most])
        if len(named) < min(most, len(self.prefixes)):
            return named
        return named + self.pool.hit([(self.row, at) for at in range(len(named), most)])

    @property
    def hit_blocks(self) -> int:  # type: ignore[override]
        return len(self.hit())

    @property
    def shared_blocks(self) -> int:  # type: ignore[override]
        return self.pool.held(self.hit())

    def prefix(self, at: int) -> Hashable:
        return self.prefixes[at] if at < len(self.prefixes) else (self.row, at)


def simulate(
    workload: Workload,
    costs: ShapeCosts,
    rules: Rules = RULES,
    *,
    prefixes: Prefixes | None = None,
    replicas: int = 1,
    router: str = "round_robin",
    ready_s: float = 0.0,
    client_overhead_s: float = 0.0,
    seen_s: np.ndarray | None = None,
    leaves_s: np.ndarray | None = None,
    ends_s: np.ndarray | None = None,
    estimated: ShapeCosts | None = None,
) -> ContinuousRun:
    """Serves the workload on engines that have the shapes of `costs` compiled. The policy decides
    by `costs`, or by `estimated` ones of the same shapes.

    With `prefixes` the engines have a prefix cache; without, blocks are counted and not named. The
    rest is as in `simulate.static`. A request longer than the shapes take is rejected.

    `seen_s` is when an engine reads each request, ascending and not before its arrival, which is
    the default. At `leaves_s` a request's client hangs up, and it gives its blocks back whether it
    waits or runs; it is not served, and the pass that runs then still computes a token of it. Of
    one engine `ends_s` may say when each of its passes ends, ascending, as a server's did; passes
    behind the last take their cost.

    Raises ValueError for a replica count below 1, an unknown router, a negative time, times or
    prefixes of another number of requests, ends of passes that do not ascend or are of several
    engines, estimated costs of other shapes, and for a request that the rules never let run.
    """
    require_replicas(replicas, router, ready_s, client_overhead_s)
    for name, given in (("prefixes", prefixes), ("seen_s", seen_s), ("leaves_s", leaves_s)):
        require(
            given is None or len(given) == len(workload),
            f"{name} are of {0 if given is None else len(given)} requests and the workload has "
            f"{len(workload)}: give one for each",
        )
    if ends_s is not None:
        require(replicas == 1, f"ends_s are of one engine and replicas is {replicas}: use 1")
        require(bool((np.diff(ends_s) >= 0).all()), "ends_s do not ascend: sort the passes by time")
    estimated = costs if estimated is None else estimated
    require(
        estimated.shapes == costs.shapes,
        "estimated costs are of other shapes than costs: give those of the same shapes and blocks",
    )
    seen_s = workload.arrival_s if seen_s is None else seen_s
    leaves_s = np.full(len(workload), math.inf) if leaves_s is None else leaves_s
    too_long = workload.prompt_tokens >= costs.max_model_len
    too_large = workload.prompt_tokens + workload.max_tokens.astype(int) > costs.max_model_len
    rejected = np.select([too_long, too_large], [1, 2], 0).astype(np.int8)
    kind = _Engine if prefixes is None else _CachingEngine
    times = ByCost() if ends_s is None else Measured(ends_s.tolist())
    first_s = workload.start_s + ready_s
    in_turn = prefixes is None and bool((leaves_s == math.inf).all())
    engines = [kind(costs, estimated, rules, first_s, times, in_turn) for _ in range(replicas)]

    def requests(rows: np.ndarray) -> Iterator[Request]:
        return _requests(workload, seen_s, leaves_s, rows, prefixes)

    serve(engines, router, np.flatnonzero(rejected == 0), requests)
    assert all(engine.free_blocks == costs.blocks - 1 for engine in engines), "blocks leaked"
    logs = [engine.log for engine in engines]
    return paged_run(workload, costs, rules, logs, rejected, ready_s, client_overhead_s)


def _requests(
    workload: Workload,
    seen_s: np.ndarray,
    leaves_s: np.ndarray,
    rows: np.ndarray,
    prefixes: Prefixes | None,
) -> Iterator[Request]:
    """The rows of the workload one by one, turned into Python's numbers a chunk at a time."""
    kind = Request if prefixes is None else Named
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
        made = map(kind, *(column[some].tolist() for column in columns), some.tolist())
        if prefixes is None:
            yield from made
            continue
        for request in made:
            assert isinstance(request, Named)
            request.prefixes = prefixes[request.row][:]
            request.table, request.kept = [], 0
            yield request


class _Engine:
    """One replica: its queue, its clock and the log of its passes."""

    def __init__(
        self,
        costs: ShapeCosts,
        estimated: ShapeCosts,
        rules: Rules,
        first_s: float,
        times: PassTimes,
        in_turn: bool,
    ):
        self.costs, self.rules, self.times = estimated, rules, times
        self._runs_in_turn = in_turn  # nobody hangs up, and no pass gives blocks their names
        self.now = first_s  # the running pass ends
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.free_blocks = costs.blocks - 1
        self.log = SimulatedPasses()
        self._coming: deque[Request] = deque()
        self._upcoming: Iterator[Request] = iter(())
        self._next_s = math.inf  # somebody arrives
        self._leaving: list[tuple[float, int, Request]] = []  # a heap: whose client hangs up when
        self._decodes_since_chunk = NEVER
        self._has_paused = False
        self._gone_s: list[float] = []  # when those went who did since the last pass began
        self._members: list[int] = []  # who decodes, by row of the workload
        self._stored = 0  # computed tokens of all of them
        self._left = NEVER  # passes until the first of them ends
        self._chunks: dict[tuple[int, int], Any] = {}  # by prompt and computed tokens
        self._reserves = rules.admission == "reserve"
        # where each shape is among the costs, by identity: the policy gives back what it was given
        decided = [id(cost.shape) for cost in estimated.each]
        after = len(costs.prefill)
        self._prefill = dict(zip(decided, enumerate(costs.prefill), strict=False))
        self._decode = dict(zip(decided[after:], enumerate(costs.decode, after), strict=True))

    def serve(self, requests: Iterator[Request]) -> None:
        """Runs everything, with few of the requests in memory at a time."""
        self._upcoming = requests
        self._await()
        self.advance(math.inf)

    def push(self, request: Request) -> None:
        """Takes a request at its arrival; the clock must have been advanced to there."""
        self._coming.append(request)
        self._await()

    def advance(self, until_s: float) -> None:
        """Starts every pass that starts before `until_s`."""
        waiting, running, costs, rules = self.waiting, self.running, self.costs, self.rules
        while True:
            while self._next_s <= self.now:
                self._arrive(self._coming.popleft())
            if self._leaving and self._hang_up(math.nextafter(self.now, math.inf)):
                self._sum_up(self._all_decoding())
            if not waiting and not running:
                if self._next_s >= until_s:
                    return
                self.now = self._next_s
                continue
            if self.now >= until_s:
                return
            step = next_step(
                waiting,
                running,
                self.free_blocks,
                costs,
                rules,
                self._decodes_since_chunk,
                self.now,
            )
            if isinstance(step, Prefill):
                self._run_prefill(step, until_s)
            elif isinstance(step, Preempt):
                self._preempt(step.request)
            else:
                assert step is not None, "somebody waits or runs"
                self._run_decode(step, until_s)

    def unfinished(self, now: float) -> int:
        """Requests here that have not got their last token by `now`, nor hung up."""
        here = len(self.waiting) + len(self.running)
        here += sum(request.leaves_s > now for request in self._coming)
        return here + sum(gone_s > now for gone_s in self._gone_s)

    def _await(self) -> None:
        """Looks for who comes next, and when."""
        coming = self._coming
        if not coming:
            coming.extend(islice(self._upcoming, REQUESTS_AT_A_TIME))
        self._next_s = coming[0].seen_s if coming else math.inf

    def _arrive(self, request: Request) -> None:
        self.waiting.append(request)
        if request.leaves_s < math.inf:
            heappush(self._leaving, (request.leaves_s, request.row, request))
        self._await()

    def _run_prefill(self, step: Prefill[Request], until_s: float) -> None:
        request, tokens, shape, is_first, is_last, again, goes_on = step
        if is_first:
            if request is self.waiting[0]:
                self.waiting.popleft()
            else:
                self.waiting.remove(request)
            self.running.append(request)
            self._admit(request)
        self._chunk(request, tokens, shape, is_first, is_last, again)
        if goes_on and self._runs_in_turn:
            while not is_last and self.now < until_s:
                is_last = self._further_chunk(request)
        self._decodes_since_chunk = 0
        hung_up = self._pass_ends()
        if is_last:
            self._prompt_ends(request)
        if hung_up:
            self._sum_up(self._all_decoding())

    def _chunk(
        self,
        request: Request,
        tokens: int,
        shape: PrefillShape,
        is_first: bool,
        is_last: bool,
        again: int,
    ) -> None:
        before = request.computed_tokens
        index, cost = self._prefill[id(shape)]
        start_s = self.now
        seconds, self.now = self.times.chunk(start_s, cost, before - again)
        self._store((request,), tokens)
        fresh = tokens
        if request.highest_tokens > before:  # it was preempted
            fresh = max(0, request.computed_tokens - request.highest_tokens)
        self.log.chunk(
            request.row,
            is_first,
            is_last,
            index,
            start_s,
            seconds,
            before - again,
            fresh,
            tokens + again - fresh,
        )

    def _further_chunk(self, request: Request) -> bool:
        """The chunk that follows, which the prompt alone decides; whether it is the last."""
        at = request.prompt_tokens, request.computed_tokens
        chunk = self._chunks.get(at)
        if chunk is None:
            chunk = self._chunks[at] = next_chunk(request, at[1], self.costs, self.rules)[1:6]
        self._chunk(request, *chunk)
        return chunk[3]

    def _prompt_ends(self, request: Request) -> None:
        """One more decodes, unless it has no second token, or its client is gone."""
        if request.gone:
            return
        left = request.end_tokens - request.computed_tokens
        if left:
            self._members.append(request.row)
            self._stored += request.computed_tokens
            self._left = min(self._left, left)
        else:
            self._go(request, self.now)

    def _run_in_turn(self, step: Decode[Request], until_s: float) -> None:
        """Passes of the rows and chunks of the request in prefill in turn, to its last, or to the
        pass in which a row ends."""
        rows, shape, longest_tokens, count, most = step
        request, size = self.running[-1], len(rows)
        index, cost = self._decode[id(shape)]
        most = min(most, self._left)
        count = min(count, most)
        ran, is_last = 0, False
        while not is_last and ran + count <= most and self.now < until_s:
            start_s, stored = self.now, self._stored
            _, seconds, self.now = self.times.decode(
                start_s, cost, size, stored + size, count, math.inf
            )
            self.log.decode(
                self._members, index, start_s, seconds, count, stored, longest_tokens + ran
            )
            self._stored = stored + size * count
            ran += count
            self._decodes_since_chunk += count
            if ran < most and self.now < until_s:
                is_last = self._further_chunk(request)
                self._decodes_since_chunk = 0
                count = self.rules.decode_between
        self._store(rows, ran)
        self._left -= ran
        self._gone_s.clear()
        if is_last:
            self._prompt_ends(request)
        elif not self._left:
            self._end()

    def _run_decode(self, step: Decode[Request], until_s: float) -> None:
        rows, shape, longest_tokens, count, alternates_for = step
        if alternates_for and self._runs_in_turn:
            self._run_in_turn(step, until_s)
            return
        size = len(rows)
        pauses = size < len(self._members)
        if pauses:
            self._sum_up(rows)
        if count > self._left:
            count = self._left
        stored = self._stored
        index, cost = self._decode[id(shape)]
        cut_s = self._next_to_hang_up_s() if self._leaving else math.inf
        if not self.waiting and len(self.running) == size < self.costs.max_rows:
            cut_s = min(cut_s, until_s, self._next_s)  # who arrives could be admitted
        count, seconds, end_s = self.times.decode(self.now, cost, size, stored + size, count, cut_s)
        self.log.decode(self._members, index, self.now, seconds, count, stored, longest_tokens)
        self.now = end_s
        self._decodes_since_chunk += count
        self._store(rows, count)
        self._stored = stored + size * count
        self._left -= count
        if pauses or self._has_paused:
            self._take_turns(rows, pauses)
        hung_up = self._pass_ends()
        if not self._left:
            self._end()
        elif pauses or hung_up:
            self._sum_up(self._all_decoding())

    def _take_turns(self, rows: Sequence[Request], pauses: bool) -> None:
        """Who sits passes out, and who has to wait no more."""
        for row in self._all_decoding():
            row.paused_for += 1
        for row in rows:
            row.paused_for = 0
        self._has_paused = pauses

    def _preempt(self, request: Request) -> None:
        request.highest_tokens = max(request.highest_tokens, request.computed_tokens)
        done = max(0, request.computed_tokens + 1 - request.prompt_tokens)
        self._leave(request)
        request.prompt_tokens += done
        request.max_tokens -= done
        request.computed_tokens = request.paused_for = 0
        self.waiting.appendleft(request)
        self._sum_up(self._all_decoding())

    def _end(self) -> None:
        """Those who decode leave that have their last token."""
        for row in self._sum_up(self._all_decoding()):
            self._go(row, self.now)

    def _go(self, request: Request, at_s: float) -> None:
        """One that runs is here no more."""
        self._leave(request)
        request.gone = True
        self._gone_s.append(at_s)

    def _leave(self, request: Request) -> None:
        self.running.remove(request)
        self._give_back(request)

    # --- clients that hang up

    def _next_to_hang_up_s(self) -> float:
        """When the next client does whose request is still here."""
        leaving = self._leaving
        while leaving:
            at_s, _, request = leaving[0]
            if not request.gone:
                return at_s
            heappop(leaving)
        return math.inf

    def _pass_ends(self) -> bool:
        """Who hung up during the pass is gone; whether anybody did."""
        if self._gone_s:
            self._gone_s.clear()
        return bool(self._leaving) and self._hang_up(self.now)

    def _hang_up(self, before_s: float) -> bool:
        """Who hangs up before then is gone; whether anybody was. Who decodes is not summed up."""
        any_gone = False
        while (at_s := self._next_to_hang_up_s()) < before_s:
            request = heappop(self._leaving)[-1]
            any_gone = True
            self.log.left.append(request.row)
            if request.held_blocks:
                self._go(request, at_s)
            else:
                self.waiting.remove(request)
                request.gone = True
                self._gone_s.append(at_s)
        return any_gone

    # --- who decodes, summed up, so that a pass need not look at each of them

    def _all_decoding(self) -> Sequence[Request]:
        running = self.running
        if running and running[-1].computed_tokens < running[-1].prompt_tokens:
            return running[:-1]
        return running

    def _sum_up(self, rows: Sequence[Request]) -> list[Request]:
        """As if these were all who decode. Returns, and leaves out, who has the last token."""
        members, ended, stored, left = [], [], 0, NEVER
        for row in rows:
            done = row.computed_tokens
            still = row.end_tokens - done
            if not still:
                ended.append(row)
                continue
            members.append(row.row)
            stored += done
            if still < left:
                left = still
        self._members, self._stored, self._left = members, stored, left
        return ended

    # --- blocks, counted

    def _admit(self, request: Request) -> None:
        if self._reserves:
            request.held_blocks = blocks_of(request.prompt_tokens + request.max_tokens)
            self.free_blocks -= request.held_blocks

    def _store(self, rows: Sequence[Request], tokens: int) -> None:
        """So many tokens more of each."""
        for row in rows:
            row.computed_tokens += tokens
        if not self._reserves:
            for row in rows:
                missing = blocks_of(row.computed_tokens) - row.held_blocks
                row.held_blocks += missing
                self.free_blocks -= missing

    def _give_back(self, request: Request) -> None:
        self.free_blocks += request.held_blocks
        request.held_blocks = 0


class _CachingEngine(_Engine):
    """One replica with a prefix cache: its blocks, and what they keep, are named."""

    def __init__(self, costs: ShapeCosts, *others: Any):
        super().__init__(costs, *others)
        self.pool = BlockPool(costs.blocks)

    def _arrive(self, request: Request) -> None:
        assert isinstance(request, Named)
        request.pool = self.pool
        super()._arrive(request)

    def _run_decode(self, step: Decode[Request], until_s: float) -> None:
        """Asks anew where an output completes a block that somebody who waits may begin with."""
        count = step.stable_for
        for row in step.rows if self.waiting else ():
            assert isinstance(row, Named)
            if row.computed_tokens // BLOCK_TOKENS < len(row.prefixes):
                count = min(count, BLOCK_TOKENS - row.computed_tokens % BLOCK_TOKENS)
        super()._run_decode(step._replace(stable_for=count), until_s)

    def _admit(self, request: Request) -> None:
        assert isinstance(request, Named)
        request.table = request.hit()
        self.pool.hold(request.table)
        request.kept = request.held_blocks = len(request.table)
        request.computed_tokens = request.kept * BLOCK_TOKENS
        request.highest_tokens = max(request.highest_tokens, request.computed_tokens)
        self.log.hit(request.row, request.computed_tokens)
        self.free_blocks = self.pool.free_blocks

    def _store(self, rows: Sequence[Request], tokens: int) -> None:
        for row in rows:
            assert isinstance(row, Named)
            row.computed_tokens += tokens
            missing = blocks_of(row.computed_tokens) - row.held_blocks
            if missing > 0:
                row.table += self.pool.take(missing)
                row.held_blocks += missing
            while row.kept < row.computed_tokens // BLOCK_TOKENS:
                self.pool.keep(row.table[row.kept], row.prefix(row.kept))
                row.kept += 1
        self.free_blocks = self.pool.free_blocks

    def _give_back(self, request: Request) -> None:
        assert isinstance(request, Named)
        self.pool.give_back(request.table)
        request.table, request.kept, request.held_blocks = [], 0, 0
        self.free_blocks = self.pool.free_blocks
