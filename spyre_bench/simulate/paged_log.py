"""What engines of continuous batching ran, kept in few bytes a pass, and as a run's arrays."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from spyre_bench.cost.shape_cost import ShapeCosts
from spyre_bench.policy.continuous import Decode, Prefill, Rules
from spyre_bench.simulate.replicas import ranges
from spyre_bench.simulate.result import (
    DECODE,
    PREFILL,
    ContinuousRun,
    PagedPasses,
    Requests,
)
from spyre_bench.workload.workload import Workload


class PassLog:
    """The passes of one engine: columns, one element a pass or stretch, and their members."""

    def __init__(self) -> None:
        self.shape, self.start_s, self.seconds = array("h"), array("d"), array("d")
        self.count = array("i")  # decode passes; 0 of a chunk
        self.yields = array("i")  # tokens that each member got
        self.before, self.width = array("q"), array("i")
        self.useful, self.again = array("i"), array("i")
        self.joins = array("b")  # a chunk that admits its request
        self.rows, self.members = array("i"), array("i")
        self.hit_row, self.hit_tokens = array("i"), array("i")

    def chunk(
        self, step: Prefill[Any], shape: int, now: float, seconds: float, before: int, fresh: int
    ) -> None:
        """A chunk behind `before` tokens, of which `fresh` were never computed."""
        again = step.tokens + step.again_tokens - fresh
        self._add(shape, now, seconds, 0, step.is_last, before - step.again_tokens, 0)
        self.useful.append(fresh)
        self.again.append(again)
        self.joins.append(step.is_first)
        self.rows.append(1)
        self.members.append(step.request.row)

    def decode(
        self, step: Decode[Any], shape: int, now: float, seconds: float, count: int, context: int
    ) -> None:
        """Passes of the same rows, whose contexts sum to `context` in the first."""
        rows = len(step.rows)
        self._add(shape, now, seconds, count, count, context - rows, step.context_tokens)
        self.useful.append(rows * count)
        self.again.append(0)
        self.joins.append(0)
        self.rows.append(rows)
        self.members.extend([row.row for row in step.rows])

    def hit(self, row: int, tokens: int) -> None:
        """A request was admitted with so many tokens in the prefix cache."""
        self.hit_row.append(row)
        self.hit_tokens.append(tokens)

    def _add(
        self,
        shape: int,
        now: float,
        seconds: float,
        count: int,
        yields: int,
        before: int,
        width: int,
    ) -> None:
        self.shape.append(shape)
        self.start_s.append(now)
        self.seconds.append(seconds)
        self.count.append(count)
        self.yields.append(yields)
        self.before.append(before)
        self.width.append(width)


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

    def joined(of: Callable[[PassLog], array[Any]], dtype: type) -> np.ndarray:
        return np.concatenate([np.array(of(log), dtype) for log in logs])

    joins = joined(lambda log: log.joins, np.bool_)
    start_s = joined(lambda log: log.start_s, np.float64)
    replica = np.repeat(np.arange(len(logs), dtype=np.int16), [len(log.joins) for log in logs])
    order = np.arange(len(joins))
    if len(logs) > 1:  # by the start of the batch, which is the last join on the replica
        batch_s = start_s[joins][np.cumsum(joins) - 1]
        order = np.lexsort((replica, batch_s))

    def sorted_(of: Callable[[PassLog], array[Any]], dtype: type) -> np.ndarray:
        return joined(of, dtype)[order]

    rows = joined(lambda log: log.rows, np.int32)
    members = joined(lambda log: log.members, np.int32)
    if len(logs) > 1:
        members = members[ranges((np.cumsum(rows) - rows)[order], rows[order])]
    joins, start_s, replica, rows = joins[order], start_s[order], replica[order], rows[order]
    shape = sorted_(lambda log: log.shape, np.int16)
    count = sorted_(lambda log: log.count, np.int32)
    yields = sorted_(lambda log: log.yields, np.int32)
    width = sorted_(lambda log: log.width, np.int32)
    useful = sorted_(lambda log: log.useful, np.int64)
    again = sorted_(lambda log: log.again, np.int64)
    total_s = sorted_(lambda log: log.seconds, np.float64)
    is_decode = count > 0
    count = np.maximum(count, 1)
    ends_s = start_s + total_s
    row = np.repeat(np.arange(len(rows), dtype=np.int32), rows)
    tokens = yields[row]
    following = _by_member(members, tokens > 0, len(workload))
    waited_s = np.zeros(len(members))
    same = members[following[1:]] == members[following[:-1]]
    later, earlier = following[1:][same], following[:-1][same]
    waited_s[later] = start_s[row[later]] - ends_s[row[earlier]]
    passes = PagedPasses(
        kind=np.where(is_decode, np.int8(DECODE), np.int8(PREFILL)),
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
        width=width,
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
