"""What engines of continuous batching ran, kept in few bytes a pass, and as a run's arrays."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from spyre_bench.cost.shape_cost import ShapeCosts
from spyre_bench.policy.continuous import Prefill, Rules
from spyre_bench.simulate.replicas import ranges
from spyre_bench.simulate.result import (
    DECODE,
    PREFILL,
    ContinuousRun,
    PagedPasses,
    Requests,
)
from spyre_bench.workload.workload import Workload

CHUNK, ADMITS, YIELDS = 1, 2, 4  # flags of a row of the log; 0: decode passes


KEPT = 4096  # passes that exist as Python objects at a time


class PassLog:
    """The passes of one engine, and their members: kept as columns, one element a pass or stretch,
    which the newest ones join together."""

    def __init__(self) -> None:
        self.flags, self.shape = array("b"), array("h")
        self.start_s, self.seconds = array("d"), array("d")
        self.number = array("i")  # decode passes; of a chunk: tokens never computed before
        self.before = array("q")  # tokens in the cache, of all members
        self.width = array("i")  # tokens of the longest context; of a chunk: those computed again
        self.rows, self.members = array("i"), array("i")
        self.hit_row, self.hit_tokens = array("i"), array("i")
        self._newest: list[tuple[Any, ...]] = []

    def chunk(
        self, step: Prefill[Any], shape: int, now: float, seconds: float, before: int, fresh: int
    ) -> None:
        """A chunk behind `before` tokens, of which `fresh` were never computed."""
        request, tokens, _, is_first, is_last, again = step
        flags = CHUNK + ADMITS * is_first + YIELDS * is_last
        computed = tokens + again - fresh
        members = (request.row,)
        newest = self._newest
        newest.append((flags, shape, now, seconds, fresh, before - again, computed, 1, members))
        if len(newest) > KEPT:  # seen often enough here: nobody decodes without a chunk before
            self.settle()

    def decode(
        self,
        members: tuple[int, ...],
        shape: int,
        now: float,
        seconds: float,
        count: int,
        stored: int,
        longest: int,
    ) -> None:
        """Passes of the same rows, which have `stored` tokens in the cache before the first, in
        which the longest context has `longest`."""
        size = len(members)
        self._newest.append((0, shape, now, seconds, count, stored, longest, size, members))

    def hit(self, row: int, tokens: int) -> None:
        """A request was admitted with so many tokens in the prefix cache."""
        self.hit_row.append(row)
        self.hit_tokens.append(tokens)

    def settle(self) -> None:
        """Moves the newest passes into the columns."""
        if not self._newest:
            return
        *values, members = zip(*self._newest, strict=True)
        columns: tuple[array[Any], ...] = (
            self.flags,
            self.shape,
            self.start_s,
            self.seconds,
            self.number,
            self.before,
            self.width,
            self.rows,
        )
        for column, some in zip(columns, values, strict=True):
            column.extend(some)
        self.members.extend(chain.from_iterable(members))
        self._newest.clear()


def paged_run(
    workload: Workload,
    costs: ShapeCosts,
    rules: Rules,
    logs: Sequence[PassLog],
    rejected: np.ndarray,
    ready_s: float,
    client_overhead_s: float,
) -> ContinuousRun:
    """The logs of the replicas as one run."""
    for log in logs:
        log.settle()

    def joined(of: Callable[[PassLog], array[Any]], dtype: type) -> np.ndarray:
        return np.concatenate([np.array(of(log), dtype) for log in logs])

    flags = joined(lambda log: log.flags, np.int8)
    joins = flags & ADMITS > 0
    start_s = joined(lambda log: log.start_s, np.float64)
    replica = np.repeat(np.arange(len(logs), dtype=np.int16), [len(log.flags) for log in logs])
    order = np.arange(len(flags))
    if len(logs) > 1:  # by the start of the batch, which is the last join on the replica
        batch_s = start_s[joins][np.cumsum(joins) - 1]
        order = np.lexsort((replica, batch_s))

    def sorted_(of: Callable[[PassLog], array[Any]], dtype: type) -> np.ndarray:
        return joined(of, dtype)[order]

    rows = joined(lambda log: log.rows, np.int32)
    members = joined(lambda log: log.members, np.int32)
    if len(logs) > 1:
        members = members[ranges((np.cumsum(rows) - rows)[order], rows[order])]
    flags, joins, start_s = flags[order], joins[order], start_s[order]
    replica, rows = replica[order], rows[order]
    shape = sorted_(lambda log: log.shape, np.int16)
    number = sorted_(lambda log: log.number, np.int32)
    width = sorted_(lambda log: log.width, np.int32)
    total_s = sorted_(lambda log: log.seconds, np.float64)
    is_chunk = flags > 0
    count = np.where(is_chunk, np.int32(1), number)
    yields = np.where(is_chunk, (flags & YIELDS > 0).astype(np.int32), number)
    useful = np.where(is_chunk, number, rows.astype(np.int64) * number)
    again = np.where(is_chunk, width, 0).astype(np.int64)
    ends_s = start_s + total_s
    row = np.repeat(np.arange(len(rows), dtype=np.int32), rows)
    tokens = yields[row]
    following = _by_member(members, tokens > 0, len(workload))
    waited_s = np.zeros(len(members))
    same = members[following[1:]] == members[following[:-1]]
    later, earlier = following[1:][same], following[:-1][same]
    waited_s[later] = start_s[row[later]] - ends_s[row[earlier]]
    passes = PagedPasses(
        kind=np.where(is_chunk, np.int8(PREFILL), np.int8(DECODE)),
        shape=shape,
        batch=(np.cumsum(joins) - 1).astype(np.int32),
        replica=replica,
        start_s=start_s,
        seconds=total_s / count,
        count=count,
        slots=_slots(costs, shape, rows, useful + again),
        useful=useful,
        rows=rows,
        members=members,
        tokens=tokens,
        waited_s=waited_s,
        again=again,
        before=sorted_(lambda log: log.before, np.int64),
        width=np.where(is_chunk, np.int32(0), width),
    )
    requests = _requests(workload, passes, joins, following, row, ends_s, rejected)
    hit_tokens = np.zeros(len(workload), dtype=np.int64)
    hits = joined(lambda log: log.hit_tokens, np.int64)
    np.add.at(hit_tokens, joined(lambda log: log.hit_row, np.int32), hits)
    return ContinuousRun(
        workload,
        len(logs),
        ready_s,
        client_overhead_s,
        requests,
        passes,
        rules,
        costs,
        hit_tokens,
    )


def _by_member(members: np.ndarray, which: np.ndarray, requests: int) -> np.ndarray:
    """The places of these memberships, those of each request together and in order of time."""
    places = np.flatnonzero(which)
    if not len(places):
        return places
    table = (np.ones(len(places), np.int8), (members[places], places))
    return np.asarray(csr_array(table, shape=(requests, len(members))).indices)


def _slots(
    costs: ShapeCosts, shape: np.ndarray, rows: np.ndarray, tokens: np.ndarray
) -> np.ndarray:
    """int64 [p], tokens that one pass computes: a chunk with its padding, a row each."""
    size = [(c.shape.chunk_length, c.shape.chunk_step, True) for c in costs.prefill]
    size += [(c.shape.rows, c.shape.rows_step, False) for c in costs.decode]
    most, step, is_chunk = np.array(size, dtype=np.int64)[shape].T
    padded = -(-np.where(is_chunk, tokens, rows) // step) * step
    return np.asarray(np.minimum(padded, most))


def _requests(
    workload: Workload,
    passes: PagedPasses,
    joins: np.ndarray,
    following: np.ndarray,
    row: np.ndarray,
    ends_s: np.ndarray,
    rejected: np.ndarray,
) -> Requests:
    """When the passes served each request; preempted ones count from their first start."""
    of = passes.members[following]
    is_first = np.diff(of, prepend=-1) != 0
    is_last = np.diff(of, append=-1) != 0
    times = np.full((3, len(workload)), np.nan)
    start_s, first_token_s, finish_s = times
    first_token_s[of[is_first]] = ends_s[row[following[is_first]]]
    finish_s[of[is_last]] = ends_s[row[following[is_last]]]
    joined = np.flatnonzero(joins)[::-1]
    who = passes.members[passes.first_member[joined]]
    start_s[who] = passes.start_s[joined]
    batch = np.full(len(workload), -1, dtype=np.int32)
    replica = np.full(len(workload), -1, dtype=np.int16)
    batch[who], replica[who] = passes.batch[joined], passes.replica[joined]
    further = workload.output_tokens - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        tpot_s = np.where(further > 0, (finish_s - first_token_s) / further, np.nan)
    return Requests(batch, replica, start_s, first_token_s, finish_s, tpot_s, rejected)
