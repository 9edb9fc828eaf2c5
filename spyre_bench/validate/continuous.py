"""A server of continuous batching beside its simulation: constants from a few requests of its own,
a run that a real client measures, and the simulation of the same requests.

`step_decisions` asks whether the simulator takes the server's steps; here it has constants alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spyre_bench.cost.shape_cost import DecodeCost, PrefillCost, ShapeCosts, warmed_costs
from spyre_bench.cost.spread import Spread, log_deviation
from spyre_bench.metrics.vllm_json import bench_result
from spyre_bench.pass_log import (
    Step,
    count_steps,
    read_shape_warmup,
    read_step_rows,
    read_step_rules,
)
from spyre_bench.policy.continuous import Rules
from spyre_bench.shape_set import ShapeSet
from spyre_bench.simulate.continuous import simulate
from spyre_bench.simulate.result import ContinuousRun
from spyre_bench.validate import compare
from spyre_bench.validate import server as serving
from spyre_bench.validate.check import APART_S, PAUSE_S, as_sent
from spyre_bench.validate.constants import OF_A_MEDIAN
from spyre_bench.validate.step_decisions import StepDecisions, logged_decisions, pass_ends
from spyre_bench.workload.workload import Workload

FEWEST = 3  # passes of a shape that tell its seconds
OUTPUTS = 12  # tokens of a request of the calibration


@dataclass(frozen=True)
class StepConstants:
    """What the simulation of a server of continuous batching rests on."""

    costs: ShapeCosts  # seconds of a pass in the server, vLLM's own time included
    estimated: ShapeCosts  # what the server's scheduler decides by, from its warmup
    rules: Rules
    client_overhead_s: float = 0.0
    spread: Spread | None = None

    def simulate(self, workload: Workload) -> ContinuousRun:
        return simulate(
            workload,
            self.costs,
            self.rules,
            estimated=self.estimated,
            client_overhead_s=self.client_overhead_s,
        )


@dataclass(frozen=True)
class StepCheck:
    """One run of the real server and its simulation."""

    constants: StepConstants
    workload: Workload  # as it was sent, at the times at which the client really sent
    measured: dict[str, Any]  # in vLLM's form, with all arrays
    simulated: dict[str, Any]
    steps: list[Step]

    def by_quantity(self) -> pd.DataFrame:
        """See `compare.by_quantity`."""
        return compare.by_quantity(self.measured, self.simulated)

    def by_request(self) -> pd.DataFrame:
        """See `compare.by_request`."""
        return compare.by_request(self.measured, self.simulated)

    @property
    def cost_bias(self) -> float:
        """All of the run's passes together took longer than the constants say, as a share."""
        return self.busy_s / sum(expected_s(self.steps, self.constants.costs)) - 1

    @property
    def busy_s(self) -> float:
        """In which the server ran a pass, vLLM's own time included."""
        return float(taken_s(self.steps).sum())


def on_server(
    model_directory: Path,
    shapes: ShapeSet,
    workload: Workload,
    directory: Path,
    name: str = "run",
    **setting: Any,
) -> tuple[StepCheck, StepDecisions]:
    """A server of its own for one workload: `check_steps`, and whether the simulator takes the
    server's steps where it is fed with its passes, those of the calibration too."""
    setting = setting_of(shapes) | setting
    with serving.serve(model_directory, None, directory, **setting) as server:
        constants = calibrate_steps(server, directory)
        done = check_steps(server, constants, workload, directory, name)
        return done, logged_decisions(server.pass_log)


def setting_of(shapes: ShapeSet) -> dict[str, Any]:
    """What a server that compiles these shapes is started with."""
    prefill, decode = (" ".join(map(str, of)) for of in (shapes.prefill, shapes.decode))
    sizes = {"prefill_shapes": prefill, "decode_shapes": decode, "blocks": shapes.blocks}
    return {"batching": "continuous", **sizes}


def calibrate_steps(server: serving.Server, directory: Path, name: str = "first") -> StepConstants:
    """A few requests on an idle server: how much longer its passes take than those of its warmup,
    and what a client waits beyond the engine."""
    said, began = read_step_rules(server.pass_log), count_steps(server.pass_log)
    rules = Rules(**said.rules)
    estimated = warmed_costs(read_shape_warmup(server.pass_log), said.blocks)
    workload = few_requests(StepConstants(estimated, estimated, rules))
    result = serving.replay(server, workload, directory, f"{name}-calibration")
    steps = read_step_rows(server.pass_log)[began:]
    costs = as_taken(steps, estimated)
    constants = StepConstants(costs, estimated, rules, spread=step_spread(steps, costs))
    waited_s = np.array(result["ttfts"]) - constants.simulate(workload).ttft_s
    return replace(constants, client_overhead_s=max(0.0, float(np.median(waited_s))))


def check_steps(
    server: serving.Server,
    constants: StepConstants,
    workload: Workload,
    directory: Path,
    name: str,
) -> StepCheck:
    """Sends the workload, and simulates it as it was sent."""
    began = count_steps(server.pass_log)
    measured = serving.replay(server, workload.from_zero(), directory, name)
    sent = as_sent(workload, measured["start_times"])
    simulated = bench_result(constants.simulate(sent), detailed=True)
    return StepCheck(constants, sent, measured, simulated, read_step_rows(server.pass_log)[began:])


def few_requests(constants: StepConstants) -> Workload:
    """As many at once as decode together, with prompts of every chunk; then, when they are done,
    one of each chunk by itself."""
    shapes = constants.costs.shapes
    longest = shapes.max_model_len - OUTPUTS
    chunks = sorted({min(shape.chunk_length, longest) for shape in shapes.prefill})
    together = list(itertools.islice(itertools.cycle(chunks), shapes.max_rows))
    arrival_s = [APART_S * place for place in range(len(together))]
    for alone in range(len(chunks)):
        run = constants.simulate(_asking(arrival_s, [*together, *chunks[:alone]]))
        arrival_s.append(float(run.requests.finish_s.max()) + PAUSE_S)
    return _asking(arrival_s, [*together, *chunks])


def _asking(arrival_s: list[float], prompt_tokens: list[int]) -> Workload:
    outputs = np.full(len(prompt_tokens), OUTPUTS)
    times, prompts = np.array(arrival_s), np.array(prompt_tokens)
    return Workload("a few requests", times, prompts, outputs, outputs)


def as_taken(steps: Sequence[Step], estimated: ShapeCosts) -> ShapeCosts:
    """The costs times how much longer the passes took: of each shape in the median, and of its
    kind where it ran fewer than `FEWEST`. From the start of a pass to that of the next, so that
    vLLM's own time is in it."""
    longer = _longer(steps, estimated)
    by_kind = longer.groupby("kind")["ratio"].median()
    by_shape = longer.groupby("shape")["ratio"].agg(["median", "size"])
    known = by_shape.loc[by_shape["size"] >= FEWEST, "median"]
    return estimated.scaled(
        [
            float(known.get(cost.shape.name, by_kind.get(_kind(cost), 1.0)))
            for cost in estimated.each
        ]
    )


def step_spread(steps: Sequence[Step], costs: ShapeCosts) -> Spread:
    """How far a run's passes may be from medians of these: each median by how few passes it is of,
    and one that was taken from its kind as shapes of a kind differ."""
    longer = _longer(steps, costs)
    single = longer.groupby("kind")["ratio"].agg(log_deviation)
    counts = longer.groupby("shape").size()
    medians = longer.groupby("shape").agg(kind=("kind", "first"), ratio=("ratio", "median"))
    apart = medians.groupby("kind")["ratio"].agg(log_deviation)
    deviations = []
    for cost in costs.each:
        own, kind = int(counts.get(cost.shape.name, 0)), _kind(cost)
        of_one = single.get(kind, 0.0) * OF_A_MEDIAN / math.sqrt(max(own, 1))
        deviations.append([math.hypot(of_one, apart.get(kind, 0.0) if own < FEWEST else 0.0)])
    own = np.array(deviations)
    return Spread(f"{len(steps)} passes of a few requests", own, own)


def _longer(steps: Sequence[Step], costs: ShapeCosts) -> pd.DataFrame:
    """Of each pass: shape, kind, and ratio, how many times as long as its cost it took."""
    return pd.DataFrame(
        {
            "shape": [step.shape.name for step in steps],
            "kind": [step.kind for step in steps],
            "ratio": taken_s(steps) / expected_s(steps, costs),
        }
    )


def _kind(cost: PrefillCost | DecodeCost) -> str:
    return "chunk" if isinstance(cost, PrefillCost) else "rows"


def taken_s(steps: Sequence[Step]) -> np.ndarray:
    """Seconds of each pass in the server, until the next one where the engine was not idle."""
    return np.array(pass_ends(steps)) - [step.start_s for step in steps]


def expected_s(steps: Sequence[Step], costs: ShapeCosts) -> list[float]:
    """What each pass takes by these costs."""
    by_shape = {cost.shape: cost for cost in costs.each}
    return [_expected_s(step, by_shape[step.shape]) for step in steps]


def _expected_s(step: Step, cost: PrefillCost | DecodeCost) -> float:
    context_tokens = sum(step.context_tokens)
    if isinstance(cost, PrefillCost):
        return cost.pass_s(context_tokens - sum(step.tokens) - step.again_tokens)
    return cost.pass_s(len(step.requests), context_tokens)
