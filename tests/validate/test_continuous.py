"""A server of continuous batching beside its simulation, on a server that is made up."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from spyre_bench.cost.shape_cost import DecodeCost, PrefillCost, ShapeCosts
from spyre_bench.metrics.vllm_json import bench_result
from spyre_bench.pass_log import Came, Gone, PassLog, ShapeWarmup, Step, StepRules, read_step_rows
from spyre_bench.policy.continuous import RULES
from spyre_bench.shape_set import DecodeShape, PrefillShape
from spyre_bench.simulate.continuous import simulate
from spyre_bench.simulate.result import PREFILL
from spyre_bench.validate import continuous, server
from spyre_bench.validate.continuous import (
    StepConstants,
    as_taken,
    calibrate_steps,
    check_steps,
    few_requests,
)
from tests.simulate.test_continuous import workload

ZERO_S = 1e6
WARMED = ShapeCosts(
    (
        PrefillCost(PrefillShape(64, 256), 0.1, 1e-4),
        PrefillCost(PrefillShape(128, 256), 0.18, 1e-4),
    ),
    (
        DecodeCost(DecodeShape(2, 256), 0.05, 0.0, 1e-5),
        DecodeCost(DecodeShape(4, 256), 0.06, 0.0, 1e-5),
    ),
    20,
)
LONGER = [1.3, 1.2, 1.1, 1.05]
"""How many times as long as in its warmup passes of each shape take in the server."""
REQUESTS = workload((0, 100, 9), (0.2, 30, 20), (0.3, 128, 6), (2.0, 60, 12), (2.0, 140, 5))


class MadeUp:
    """A server that takes the simulator's steps by its own seconds, and a client that waits a
    little longer."""

    def __init__(self, directory: Path, overhead_s: float = 0.004):
        self.server = server.Server("", Path(), directory / "passes.jsonl", 0)
        self.overhead_s, self.clock_s = overhead_s, ZERO_S
        self.log = PassLog(self.server.pass_log)
        self.log.write(StepRules(WARMED.blocks, True, asdict(RULES)))
        for cost in WARMED.each:
            empty_s = cost.base_s
            self.log.write(ShapeWarmup(cost.shape, 5.0, cost.full_s, empty_s, False, 1))

    def replay(self, to, asked, directory, name):
        run = simulate(asked, WARMED.scaled(LONGER), RULES, estimated=WARMED)
        for step in steps_of(run, self.clock_s):
            self.log.write(step)
        result = bench_result(run, detailed=True)
        for times in ("ttfts", "latencies"):
            result[times] = (np.array(result[times]) + self.overhead_s).tolist()
        result["start_times"] = (self.clock_s + asked.arrival_s).tolist()
        self.clock_s += 1000.0
        return result


def steps_of(run, zero_s: float) -> list[Step]:
    """The run pass by pass."""
    passes, steps, seen, left = run.passes, [], set(), set()
    for row in range(len(passes)):
        members = passes.of_row(row)[0].tolist()
        cost, chunk = run.costs.each[passes.shape[row]], passes.kind[row] == PREFILL
        context, at_s = int(passes.before[row]), zero_s + float(passes.start_s[row])
        for _ in range(int(passes.count[row])):
            computed = int(passes.useful[row]) if chunk else len(members)
            seconds = (
                cost.pass_s(context) if chunk else cost.pass_s(len(members), context + computed)
            )
            context += computed
            new = [it for it in members if it not in seen]
            seen |= set(new)
            times = [zero_s + float(run.workload.arrival_s[it]) for it in new]
            came = [
                Came(f"{zero_s:g}-{it}", s, s, 1, 1, []) for it, s in zip(new, times, strict=True)
            ]
            ended_s = zero_s + run.requests.finish_s
            gone = [it for it in sorted(seen - left - set(members)) if ended_s[it] < at_s + 1e-9]
            left |= set(gone)
            gone = [Gone(f"{zero_s:g}-{it}", True, 1) for it in gone]
            share = [context // len(members)] * len(members)
            share[0] += context - sum(share)
            tokens = [computed] if chunk else [1] * len(members)
            names = [f"{zero_s:g}-{it}" for it in members]
            kind = "chunk" if chunk else "rows"
            of = names, tokens, 0, share, max(share), 0, 0, 9
            steps.append(Step(kind, cost.shape, at_s, seconds, *of, came=came, gone=gone))
            at_s += seconds
    return steps


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    host = MadeUp(tmp_path)
    monkeypatch.setattr(continuous.serving, "replay", host.replay)
    return host


def test_a_few_requests_tell_what_passes_take_in_a_server_and_a_client_beyond_it(made_up, tmp_path):
    constants = calibrate_steps(made_up.server, tmp_path)
    estimated_s = [cost.full_s for cost in constants.estimated.each]
    assert estimated_s == pytest.approx([cost.full_s for cost in WARMED.each])
    ran = {step.shape.name for step in read_step_rows(made_up.server.pass_log)}
    assert ran == {cost.shape.name for cost in WARMED.each}
    for found, warmed, longer in zip(constants.costs.each, WARMED.each, LONGER, strict=True):
        near = 0.1 if found.shape == PrefillShape(64, 256) else 1e-6  # it ran too seldom
        assert found.full_s == pytest.approx(longer * warmed.full_s, rel=near)
    assert constants.client_overhead_s == pytest.approx(0.004, abs=1e-3)


def test_the_simulation_of_other_requests_is_what_the_client_measures(made_up, tmp_path):
    exact = StepConstants(WARMED.scaled(LONGER), WARMED, RULES, 0.004)
    done = check_steps(made_up.server, exact, REQUESTS, tmp_path, "run")
    for times in ("ttfts", "latencies"):
        assert done.simulated[times] == pytest.approx(done.measured[times], abs=1e-6)
    assert done.cost_bias == pytest.approx(0.0, abs=1e-6)
    assert len(done.steps) == len(read_step_rows(made_up.server.pass_log))


def test_passes_that_take_longer_than_the_constants_are_a_bias_of_the_costs(made_up, tmp_path):
    slow = WARMED.scaled([1.1 * longer for longer in LONGER])
    done = check_steps(
        made_up.server, StepConstants(slow, WARMED, RULES), REQUESTS, tmp_path, "run"
    )
    assert done.cost_bias == pytest.approx(1 / 1.1 - 1, abs=1e-6)


def test_a_shape_that_ran_too_seldom_is_taken_to_be_off_as_its_kind_is():
    run = simulate(workload((0, 128, 9), (0, 128, 9)), WARMED.scaled(LONGER), RULES)
    found = as_taken(steps_of(run, ZERO_S), WARMED)
    ratios = [it.full_s / was.full_s for it, was in zip(found.each, WARMED.each, strict=True)]
    assert ratios[0] == pytest.approx(ratios[1])  # no chunk of 64 ran
    assert ratios[2] == pytest.approx(1.1)
    assert ratios[3] == pytest.approx(1.1)  # nor four rows


def test_the_few_requests_fill_every_row_and_then_come_one_by_one():
    asked = few_requests(StepConstants(WARMED, WARMED, RULES))
    assert asked.prompt_tokens.tolist() == [64, 128, 64, 128, 64, 128]
    run = simulate(asked, WARMED, RULES)
    assert run.requests.finish_s[:4].max() < asked.arrival_s[4]
    assert run.requests.finish_s[4] < asked.arrival_s[5]
