"""What a check rests on under continuous batching: how much longer than in its warmup the passes of
each shape take, from a few requests, and the steps that a pass log has."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

import numpy as np
import pandas as pd

from spyre_bench.cost.shape_cost import ShapeCosts, warmed_costs
from spyre_bench.cost.spread import Draw, Spread, log_deviation
from spyre_bench.metrics.served_steps import expected_s, pass_ends
from spyre_bench.pass_log import (
    STEPS,
    Step,
    count_steps,
    read_shape_warmup,
    read_step_rows,
    read_step_rules,
)
from spyre_bench.policy.continuous import Rules
from spyre_bench.policy.ledger import StepLedger
from spyre_bench.shape_set import PrefillShape, ShapeSet
from spyre_bench.simulate.continuous import simulate
from spyre_bench.simulate.result import DECODE, KINDS, PREFILL, ContinuousRun
from spyre_bench.validate.constants import (
    APART_S,
    DRIFT,
    OF_A_MEDIAN,
    PAUSE_S,
    WEIGHT,
    Constants,
)
from spyre_bench.validate.hosts import LiveHost
from spyre_bench.validate.step_decisions import StepDecisions, step_decisions
from spyre_bench.workload.workload import Workload

FEWEST = 3  # passes of a shape that tell its seconds
OUTPUTS = 12  # tokens of a request of the calibration
ALONE = 2  # requests of each length that come by themselves


@dataclass(frozen=True)
class StepConstants(Constants):
    """See `Constants`; passes are steps from an idle server on, in their order."""

    costs: ShapeCosts  # seconds of a pass in the server, vLLM's own time included
    estimated: ShapeCosts  # what the server's scheduler decides by, from its warmup
    rules: Rules
    prefix_cache: bool = True

    def simulate(self, workload: Workload, draw: Draw | None = None) -> ContinuousRun:
        """Of requests that share no prefix."""
        return simulate(
            workload,
            self.costs.scaled(draw.factors[:, 0].tolist()) if draw else self.costs,
            self.rules,
            estimated=self.estimated,
            client_overhead_s=self.client_overhead_s,
        )

    def scaled(self, factor: float) -> Self:
        return replace(self, costs=self.costs.scaled([factor] * len(self.costs.each)))

    def calibration(self) -> Workload:
        """As many at once as decode together, with prompts of every chunk; then, when they are
        done, `ALONE` of each chunk and of each context, one after the other."""
        shapes = self.costs.shapes
        longest = shapes.max_model_len - OUTPUTS
        chunks = {min(shape.chunk_length, longest) for shape in shapes.prefill}
        fill = {min(shape.context_length - OUTPUTS, longest) for shape in shapes}
        prompts = list(itertools.islice(itertools.cycle(sorted(chunks)), shapes.max_rows))
        arrival_s = [APART_S * place for place in range(len(prompts))]
        for alone in sorted(chunks | fill) * ALONE:
            finish_s = self.simulate(_asking(arrival_s, prompts)).requests.finish_s
            arrival_s.append(float(np.max(finish_s)) + PAUSE_S)
            prompts.append(alone)
        return _asking(arrival_s, prompts)

    def taken(self, passes: Sequence[Step]) -> Self:
        """The costs times how much longer the passes took: of each shape in the median, and of its
        kind where it ran fewer than `FEWEST`."""
        longer = _longer(self.timed(passes))
        by_kind = longer.groupby("kind")["ratio"].median()
        by_shape = longer.groupby("name")["ratio"].agg(["median", "size"])
        known = by_shape.loc[by_shape["size"] >= FEWEST, "median"]
        costs = self.costs.scaled(
            [
                float(known.get(cost.shape.name, by_kind.get(_kind(cost.shape), 1.0)))
                for cost in self.costs.each
            ]
        )
        found = replace(self, costs=costs)
        return replace(found, spread=_spread(_longer(found.timed(passes)), costs))

    def timed(self, passes: Sequence[Step]) -> pd.DataFrame:
        ends_s = pass_ends(passes)
        rows = [
            (str(it.shape), _kind(it.shape), end_s - it.start_s, expected_s(it, self.costs))
            for (it, following), end_s in zip(itertools.pairwise(passes), ends_s, strict=False)
            if end_s == following.start_s  # else the engine was idle in between
        ]
        return pd.DataFrame(rows, columns=["bucket", "kind", "slot_s", "expected_s"])

    def busy_s(self, run: ContinuousRun) -> float:
        passes, each = run.passes, self.costs.each
        return sum(
            each[shape].pass_s(before)
            if kind == PREFILL
            else each[shape].passes_s(rows, before + rows, count)
            for kind, shape, before, rows, count in zip(
                passes.kind.tolist(),
                passes.shape.tolist(),
                passes.before.tolist(),
                passes.rows.tolist(),
                passes.count.tolist(),
                strict=True,
            )
        )

    def decisions(self, passes: Sequence[Step]) -> StepDecisions:
        return step_decisions(passes, self.rules, self.estimated, prefix_cache=self.prefix_cache)

    def rows_distance(self, passes: Sequence[Step], run: ContinuousRun) -> float:
        decode = run.passes.kind == DECODE
        simulated = np.repeat(run.passes.rows[decode], run.passes.count[decode])
        measured = [len(step.requests) for step in passes if step.kind == STEPS[DECODE]]
        most = self.costs.shapes.max_rows + 1
        of = [np.bincount(rows, minlength=most) / len(rows) for rows in (simulated, measured)]
        return float(np.abs(of[0] - of[1]).sum() / 2)

    def counted(self, passes: Sequence[Step]) -> dict[str, float]:
        ledgers = [_ledger(step) for step in passes]
        useful, computed = (sum(getattr(it, of) for it in ledgers) for of in ("useful", "computed"))
        return {"spyre_fill": useful / computed}

    def began_at(self, passes: Sequence[Step]) -> str:
        return datetime.fromtimestamp(passes[0].start_s, UTC).isoformat()

    def frame(self) -> pd.DataFrame:
        """Seconds are of a pass whose context is full."""
        return pd.DataFrame(
            {
                "shape": [cost.shape.name for cost in self.costs.each],
                "full_s": [cost.full_s for cost in self.costs.each],
                "estimated_full_s": [cost.full_s for cost in self.estimated.each],
                "client_overhead_s": self.client_overhead_s,
                "measured_at": self.fixed_at,
            }
        )

    def said(self) -> dict[str, Any]:
        rules = {"rules": asdict(self.rules), "blocks": self.costs.blocks}
        return {"shapes": self.frame().to_dict("records"), **rules}


@dataclass(frozen=True)
class ContinuousHost(LiveHost):
    """A server of continuous batching: shapes and rules are in its pass log."""

    def warmed(self) -> StepConstants:
        said = read_step_rules(self.server.pass_log)
        costs = warmed_costs(read_shape_warmup(self.server.pass_log), said.blocks)
        return StepConstants(costs, costs, Rules(**said.rules), said.prefix_cache)

    def count(self) -> int:
        return count_steps(self.server.pass_log)

    def passes(self, since: int = 0) -> list[Step]:
        return read_step_rows(self.server.pass_log)[since:]


def fitting(workload: Workload, shapes: ShapeSet) -> Workload:
    """The requests that the shapes take. Raises ValueError where there is none."""
    return workload.only(
        workload.prompt_tokens + workload.max_tokens <= shapes.max_model_len,
        f"no request of {workload.name} fits {shapes.max_model_len} tokens, the longest of "
        f"{shapes}: scale it down",
    )


def busy_s(passes: Sequence[Step]) -> float:
    """Seconds in which a server ran passes, vLLM's own time between two of them included."""
    return sum(pass_ends(passes)) - sum(step.start_s for step in passes)


def _asking(arrival_s: Sequence[float], prompt_tokens: Sequence[int]) -> Workload:
    outputs = np.full(len(prompt_tokens), OUTPUTS)
    times, prompts = np.array(arrival_s), np.array(prompt_tokens)
    return Workload("a few requests", times, prompts, outputs, outputs)


def _longer(timed: pd.DataFrame) -> pd.DataFrame:
    """With `ratio`, how many times as long as its cost a pass took, and the shape's whole name."""
    ratio = timed["slot_s"] / timed["expected_s"]
    return timed.assign(ratio=ratio, name=timed["kind"] + " " + timed["bucket"])


def _spread(longer: pd.DataFrame, costs: ShapeCosts) -> Spread:
    """How far a run's passes may be from medians of these: each median by how few passes it is of,
    one that was taken from its kind as shapes of a kind differ, at least as a machine drifts, and
    the machine by that. Single passes are so many that what they differ by cancels out."""
    single = longer.groupby("kind")["ratio"].agg(log_deviation)
    medians = longer.groupby("name").agg(kind=("kind", "first"), ratio=("ratio", "median"))
    apart = medians.groupby("kind")["ratio"].agg(log_deviation)
    counts = longer.groupby("name").size()
    deviations = []
    for cost in costs.each:
        own, kind = int(counts.get(cost.shape.name, 0)), _kind(cost.shape)
        of_median = OF_A_MEDIAN * single.get(kind, 0.0) / math.sqrt(max(own, 1))
        of_kind = max(apart.get(kind, 0.0), DRIFT) if own < FEWEST else 0.0
        deviations.append([math.hypot(of_median, of_kind)])
    own_deviations = np.array(deviations)
    source = f"{len(longer)} passes of a few requests"
    return Spread(source, own_deviations, own_deviations, pace=DRIFT, freedom=WEIGHT)


def _kind(shape: object) -> str:
    return KINDS[not isinstance(shape, PrefillShape)]


def _ledger(step: Step) -> StepLedger:
    if step.kind == STEPS[PREFILL]:
        tokens = sum(step.tokens) + step.again_tokens
        return StepLedger.of_chunk(step.shape, tokens, step.again_tokens)
    return StepLedger.of_decode(step.shape, len(step.requests))
