"""What engines of continuous batching ran, kept in few bytes per pass, and as a run's arrays."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

from spyre_bench.cost.shape_cost import ShapeCosts
from spyre_bench.policy.continuous import Rules
from spyre_bench.simulate.replicas import ranges
from spyre_bench.simulate.result import (
    DECODE,
    LEFT,
    PREFILL,
    UNSERVED,
    ContinuousRun,
    PagedPasses,
    Requests,
)
from spyre_bench.workload.workload import Workload

CHUNK, ADMITS, YIELDS = 1, 2, 4  # flags of a row of the log; 0: decode passes


COLUMNS = ("flags", "shape", "start_s", "seconds", "number", "before", "width", "rows")
"""Of each pass or stretch; whole numbers up to 2**53 are themselves as float64.

- `number`: decode passes; of a chunk: tokens never computed before
- `before`: tokens in the cache, of all members
- `width`: tokens of the longest context; of a chunk: those computed again
- `rows`: members
"""
KEPT = 4096 * len(COLUMNS)  # numbers that exist as Python objects at a time


class SimulatedPasses:
    """The passes of one engine in order, a number for each of COLUMNS, and their members."""

    def __init__(self) -> None:
        self._numbers: list[float] = []
        self._members: list[int] = []
        self._settled: list[tuple[np.ndarray, np.ndarray]] = []
        self.hit_row, self.hit_tokens = array("i"), array("i")
        self.left = array("i")  # whose clients hung up

    def chunk(
        self,
        row: int,
        is_first: bool,
        is_last: bool,
        shape: int,
        now: float,
        seconds: float,
        before: int,
        fresh: int,
        again: int,
    ) -> None:
        """A chunk behind `before` tokens: `fresh` were never computed, then `again` that were."""
        flags = CHUNK + ADMITS * is_first + YIELDS * is_last
        self._numbers += (flags, shape, now, seconds, fresh, before, again, 1)
        self._members.append(row)
        if len(self._numbers) > KEPT:  # seen often enough here: each request has a chunk
            self._settle()

    def decode(
        self,
        members: Sequence[int],
        shape: int,
        now: float,
        seconds: float,
        count: int,
        stored: int,
        longest: int,
    ) -> None:
        """Passes of the same rows, which have `stored` tokens in the cache before the first, in
        which the longest context has `longest`."""
        self._numbers += (0, shape, now, seconds, count, stored, longest, len(members))
        self._members += members

    def hit(self, row: int, tokens: int) -> None:
        """A request was admitted with so many tokens in the prefix cache."""
        self.hit_row.append(row)
        self.hit_tokens.append(tokens)

    def passes(self) -> np.ndarray:
        """float64 [p, COLUMNS]"""
        self._settle()
        return np.concatenate([passes for passes, _ in self._settled])

    def members(self) -> np.ndarray:
        """int32 [m], those of the first pass, then those of the second, ..."""
        self._settle()
        return np.concatenate([members for _, members in self._settled])

    def _settle(self) -> None:
        passes = np.array(self._numbers, np.float64).reshape(-1, len(COLUMNS))
        self._settled.append((passes, np.array(self._members, np.int32)))
        self._numbers.clear()
        self._members.clear()


def paged_run(
    workload: Workload,
    costs: ShapeCosts,
    rules: Rules,
    logs: Sequence[SimulatedPasses],
    rejected: np.ndarray,
    ready_s: float,
    client_overhead_s: float,
) -> ContinuousRun:
    """The logs of the replicas as one run."""
    passes_of = [log.passes() for log in logs]
    replica = np.repeat(np.arange(len(logs), dtype=np.int16), list(map(len, passes_of)))
    columns = dict(zip(COLUMNS, np.concatenate(passes_of).T, strict=True))
    del passes_of
    members = np.concatenate([log.members() for log in logs])
    joins = columns["flags"].astype(np.int8) & ADMITS > 0
    if len(logs) > 1:  # by the start of the batch, which is the last join on the replica
        batch_s = columns["start_s"][joins][np.cumsum(joins) - 1]
        order = np.lexsort((replica, batch_s))
        rows = columns["rows"].astype(np.int32)
        members = members[ranges((np.cumsum(rows) - rows)[order], rows[order])]
        columns = {name: values[order] for name, values in columns.items()}
        joins, replica = joins[order], replica[order]
    flags = columns["flags"].astype(np.int8)
    start_s, total_s = (np.ascontiguousarray(columns[name]) for name in ("start_s", "seconds"))
    shape, number = columns["shape"].astype(np.int16), columns["number"].astype(np.int32)
    width, rows = columns["width"].astype(np.int32), columns["rows"].astype(np.int32)
    before = columns["before"].astype(np.int64)
    del columns
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
        before=before,
        width=np.where(is_chunk, np.int32(0), width),
    )
    rejected = rejected.copy()
    for log in logs:
        rejected[log.left] = 1 + UNSERVED.index(LEFT)
    requests = _requests(workload, passes, joins, following, row, ends_s, rejected)
    hit_tokens = np.zeros(len(workload), dtype=np.int64)
    for log in logs:
        np.add.at(hit_tokens, log.hit_row, log.hit_tokens)
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
    times[:, rejected > 0], batch[rejected > 0], replica[rejected > 0] = np.nan, -1, -1
    further = workload.output_tokens - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        tpot_s = np.where(further > 0, (finish_s - first_token_s) / further, np.nan)
    return Requests(batch, replica, start_s, first_token_s, finish_s, tpot_s, rejected)
