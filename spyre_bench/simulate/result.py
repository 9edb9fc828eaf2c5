"""What a simulated run leaves: when each request was served, and which passes the engines ran."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.cost.shape_cost import ShapeCosts
from spyre_bench.policy.continuous import Rules
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import REJECTIONS
from spyre_bench.workload.workload import Workload

PREFILL, DECODE = 0, 1
KINDS = ("prefill", "decode")
LEFT = "left"  # its client gave up: static batching runs to the end what has begun
UNSERVED = (*REJECTIONS, LEFT)


@dataclass(frozen=True, eq=False)
class Requests:
    """When each of the n requests of the workload was served, in its order; seconds of its clock.

    Times are nan, `batch` and `replica` -1 where a request was rejected or its client left; what
    ran of it until then is in the passes.
    """

    batch: np.ndarray  # int32 [n], the batch that it started in
    replica: np.ndarray  # int16 [n]
    start_s: np.ndarray  # float64 [n], its first pass began
    first_token_s: np.ndarray  # float64 [n]
    finish_s: np.ndarray  # float64 [n], its own last token came
    tpot_s: np.ndarray  # float64 [n], mean seconds between its tokens; nan where it has only one
    rejected: np.ndarray  # int8 [n], 0 where served, otherwise 1 + index into UNSERVED

    @property
    def served(self) -> np.ndarray:
        """bool [n]"""
        return self.rejected == 0


@dataclass(frozen=True, eq=False)
class Passes:
    """What the engines ran: p rows of one pass each, or of `count` equal ones without a pause.

    Rows are in the order of their batch, then of time; batches in that of their start (ties: of
    their replica). A batch is what runs together until somebody joins. Its rows name their members
    and what each of them got, m memberships in all.
    """

    kind: np.ndarray  # int8 [p], index into KINDS
    shape: np.ndarray  # int16 [p], index into the run's costs
    batch: np.ndarray  # int32 [p], ascending from 0
    replica: np.ndarray  # int16 [p]
    start_s: np.ndarray  # float64 [p], of the first of them
    seconds: np.ndarray  # float64 [p], of one of them; their mean where they differ
    count: np.ndarray  # int32 [p]
    slots: np.ndarray  # int64 [p], tokens that one of them computes, padding included
    useful: np.ndarray  # int64 [p], tokens of prompts and outputs among the slots of all of them
    rows: np.ndarray  # int32 [p], members
    members: np.ndarray  # int32 [m], the requests of the first row, then those of the second, ...
    tokens: np.ndarray  # int32 [m], output tokens that the member got, one per pass until its last
    waited_s: np.ndarray  # float64 [m], since the member's token before, where it has one

    def __len__(self) -> int:
        return len(self.kind)

    @cached_property
    def first_member(self) -> np.ndarray:
        """int64 [p], where the members of each row begin."""
        return np.cumsum(self.rows) - self.rows

    @cached_property
    def first_of_batch(self) -> np.ndarray:
        """int64 [batches], the row that each batch begins with."""
        return np.flatnonzero(np.diff(self.batch, prepend=-1))

    @cached_property
    def outputs(self) -> np.ndarray:
        """int64 [p], output tokens that the row put out."""
        return self.sum_over_members(self.tokens)

    @cached_property
    def batch_seconds(self) -> np.ndarray:
        """float64 [batches], from the start of the first pass to the end of the last."""
        return self.sum_over_batches(self.count * self.seconds)

    def of_row(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Its members, the tokens that each got, and the seconds that each had waited."""
        some = slice(self.first_member[row], self.first_member[row] + self.rows[row])
        return self.members[some], self.tokens[some], self.waited_s[some]

    def members_of(self, kind: str) -> np.ndarray:
        """The members of all passes of a kind, row by row."""
        return self.members[np.repeat(self.kind == KINDS.index(kind), self.rows)]

    @cached_property
    def resumed(self) -> np.ndarray:
        """int64, the memberships whose prefill yields a later token than the request's first: after
        a preemption."""
        yields = np.flatnonzero(np.repeat(self.kind == PREFILL, self.rows) & (self.tokens > 0))
        _, first = np.unique(self.members[yields], return_index=True)
        return np.delete(yields, first)

    def sum_over_members(self, values: np.ndarray) -> np.ndarray:
        """[m] -> [p]"""
        return sums(values, self.first_member)

    def sum_over_batches(self, values: np.ndarray) -> np.ndarray:
        """[p] -> [batches]"""
        return sums(values, self.first_of_batch)


@dataclass(frozen=True, eq=False)
class PagedPasses(Passes):
    """Chunks of prompts, and decode passes of rows whose contexts differ."""

    again: np.ndarray  # int64 [p], tokens among the slots that had been computed before
    before: np.ndarray  # int64 [p], tokens in the cache before the first, summed over the rows
    width: np.ndarray  # int32 [p], tokens of the longest row's context in the first, padding too


@dataclass(frozen=True, eq=False, repr=False)
class SimulatedRun:
    """A workload served by simulated engines: its requests, and the passes that served them."""

    workload: Workload
    replicas: int
    ready_s: float
    client_overhead_s: float  # what a client waits beyond the engine's times
    requests: Requests
    passes: Passes
    policy: Policy | Rules

    @property
    def shapes(self) -> tuple[str, ...]:
        """What `passes.shape` counts, as text."""
        raise NotImplementedError

    @property
    def extrapolated(self) -> tuple[str, ...]:
        """The shapes whose costs are outside of what was measured."""
        raise NotImplementedError

    @property
    def compile_s(self) -> float:
        """Of one engine, cold."""
        raise NotImplementedError

    @property
    def warmup_s(self) -> float:
        """A cold start of one engine."""
        raise NotImplementedError

    @property
    def served(self) -> np.ndarray:
        """bool [n]"""
        return self.requests.served

    @property
    def ttft_s(self) -> np.ndarray:
        """float64 [n], from arrival to first token, as a client sees it; nan where rejected."""
        return self.requests.first_token_s - self.workload.arrival_s + self.client_overhead_s

    @property
    def e2el_s(self) -> np.ndarray:
        """float64 [n], from arrival to last token, as a client sees it; nan where rejected."""
        return self.requests.finish_s - self.workload.arrival_s + self.client_overhead_s

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(f'{k}: {v}' for k, v in self._in_short().items())})"
        )

    def _repr_html_(self) -> str:
        return str(pd.Series(self._in_short()).to_frame(self.workload.name).to_html())

    def _in_short(self) -> dict[str, str]:
        served = self.served
        short = {"requests": f"{len(served):,}", "served": f"{served.sum():,}"}
        if not served.any():
            return short
        span_s = self.requests.finish_s[served].max() - self.workload.arrival_s[0]
        fill = self.passes.useful.sum() / (self.passes.slots.astype(float) @ self.passes.count)
        for name, values in (("TTFT", self.ttft_s), ("E2EL", self.e2el_s)):
            median_s, p95_s = np.percentile(values[served], [50, 95])
            short |= {f"P50/P95 {name}": f"{median_s:.3g} / {p95_s:.3g} s"}
        return {
            "requests": short.pop("requests"),
            "served": short.pop("served"),
            "span": f"{span_s:.4g} s",
            **short,
            "fill": f"{fill:.0%}",
        }


@dataclass(frozen=True, eq=False, repr=False)
class StaticRun(SimulatedRun):
    """By batches in buckets."""

    policy: Policy
    costs: tuple[BucketCost, ...]

    @property
    def shapes(self) -> tuple[str, ...]:
        return tuple(str(cost.bucket) for cost in self.costs)

    @property
    def extrapolated(self) -> tuple[str, ...]:
        return tuple(str(cost.bucket) for cost in self.costs if cost.extrapolated)

    @property
    def compile_s(self) -> float:
        return sum(cost.compile_s for cost in self.costs)

    @property
    def warmup_s(self) -> float:
        return sum(cost.warmup_s for cost in self.costs)


@dataclass(frozen=True, eq=False, repr=False)
class ContinuousRun(SimulatedRun):
    """By chunks and decode passes of paged shapes, prefill shapes first."""

    passes: PagedPasses
    policy: Rules
    costs: ShapeCosts
    hit_tokens: np.ndarray  # int64 [n], prompt tokens that the prefix cache had

    @property
    def shapes(self) -> tuple[str, ...]:
        return tuple(cost.shape.name for cost in self.costs.each)

    @property
    def extrapolated(self) -> tuple[str, ...]:
        return tuple(cost.shape.name for cost in self.costs.each if cost.extrapolated)

    @property
    def compile_s(self) -> float:
        return self.costs.compile_s

    @property
    def warmup_s(self) -> float:
        return self.costs.warmup_s


def sums(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The sum of each group of values that begins at `first`, and ends where the next begins."""
    if not len(first):
        return np.zeros(0, dtype=values.dtype)
    return np.asarray(np.add.reduceat(values, first, dtype=np.result_type(values, np.int64)))
