"""Checks of continuous batching, from calibration to judgement, on a machine that is made up;
`tests/notebooks` runs some on a real server."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spyre_bench.cost.shape_cost import DecodeCost, PrefillCost, ShapeCosts
from spyre_bench.metrics import summary
from spyre_bench.pass_log import PassLog, ShapeWarmup, StepRules
from spyre_bench.policy.continuous import RULES, Rules
from spyre_bench.shape_set import DecodeShape, PrefillShape
from spyre_bench.simulate.continuous import simulate
from spyre_bench.simulate.result import DECODE
from spyre_bench.validate import continuous, hosts
from spyre_bench.validate.bench_client import BenchClient
from spyre_bench.validate.check import Checks, calibrate, pass_errors
from spyre_bench.validate.constants import DRIFT
from spyre_bench.validate.continuous import ContinuousHost, StepConstants
from spyre_bench.validate.coverage import aims, coverage
from spyre_bench.validate.server import Server
from spyre_bench.workload.workload import Workload
from tests.simulate.test_continuous import workload
from tests.validate.machine import PagedMachine, steps_of

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
LONGER = (1.3, 1.2, 1.1, 1.05)
REQUESTS = workload((0, 100, 9), (0.2, 30, 20), (0.3, 128, 6), (2.0, 60, 12), (2.0, 140, 5))
OF_WARMUP = StepConstants(WARMED, WARMED, RULES)


def requests(rng: np.random.Generator, rps: float, count: int = 24) -> Workload:
    outputs, prompts = rng.integers(1, 24, count), rng.integers(5, 160, count)
    return Workload("some", np.cumsum(rng.exponential(1 / rps, count)), prompts, outputs, outputs)


def steady(**setting) -> PagedMachine:
    return PagedMachine(WARMED, LONGER, **{"drift": 0.0, "delay_s": 0.004} | setting)


@pytest.fixture
def a_check(tmp_path):
    def run(machine: PagedMachine, requests: Workload = REQUESTS):
        return Checks(machine, tmp_path).check("a run", requests)

    return run


# --- constants ------------------------------------------------------------------------------------


def test_the_few_requests_fill_every_row_and_then_come_one_by_one():
    asked = OF_WARMUP.calibration()
    assert asked.prompt_tokens.tolist() == [64, 128] * 2 + [64, 128, 244] * 2
    finish_s = simulate(asked, WARMED, RULES).requests.finish_s
    assert finish_s[:4].max() < asked.arrival_s[4]
    assert (finish_s[4:-1] < asked.arrival_s[5:]).all()


def test_they_tell_what_passes_take_in_a_server_and_a_client_beyond_it(tmp_path):
    found = calibrate(steady(), tmp_path, "first")
    assert found.estimated == WARMED
    for cost, warmed, longer in zip(found.costs.each, WARMED.each, LONGER, strict=True):
        assert cost.full_s == pytest.approx(longer * warmed.full_s, rel=1e-6)
    assert found.client_overhead_s == pytest.approx(0.004, abs=1e-6)
    assert found.overhead_deviation_s == pytest.approx(0, abs=1e-6)
    assert found.spread.above == pytest.approx(np.zeros((4, 1)), abs=1e-6)
    assert found.spread.pace == DRIFT
    kept = pd.read_csv(tmp_path / "first-constants.csv")
    assert kept["shape"].tolist() == [cost.shape.name for cost in WARMED.each]


def test_a_shape_that_ran_too_seldom_is_taken_to_be_off_as_its_kind_is_and_less_sure():
    run = simulate(workload((0, 128, 9), (0, 128, 9)), WARMED.scaled(LONGER), RULES)
    found = OF_WARMUP.taken(list(steps_of(run, 0.0)))
    longer = [it.full_s / was.full_s for it, was in zip(found.costs.each, WARMED.each, strict=True)]
    assert longer == pytest.approx([1.2, 1.2, 1.1, 1.1])
    # a chunk of 128 ran twice, one of 64 and four rows never
    assert found.spread.above[:, 0] == pytest.approx([DRIFT, DRIFT, 0, DRIFT], abs=1e-6)


def test_a_pass_is_timed_to_the_start_of_the_next_unless_the_engine_was_idle_in_between():
    run = simulate(workload((0, 10, 3), (9, 10, 1)), WARMED, RULES)
    timed = OF_WARMUP.scaled(2.0).timed(list(steps_of(run, 0.0)))
    assert list(zip(timed["bucket"], timed["kind"], strict=True)) == [
        ("64,256", "prefill"),
        ("2,256", "decode"),  # the last before the gap, and the last of all, are left out
    ]
    assert timed["slot_s"].tolist() == pytest.approx([0.1, 0.05 + 11e-5])
    assert timed["expected_s"].tolist() == pytest.approx([0.2, 0.1 + 22e-5])


def test_seconds_of_a_run_by_other_constants():
    run = OF_WARMUP.simulate(REQUESTS)
    assert OF_WARMUP.busy_s(run) == pytest.approx(summary.busy_s(run))
    assert OF_WARMUP.scaled(1.5).busy_s(run) == pytest.approx(1.5 * summary.busy_s(run))
    assert continuous.busy_s(list(steps_of(run, 7.0))) == pytest.approx(summary.busy_s(run))


def test_requests_that_no_context_holds_are_left_out():
    shapes = WARMED.shapes
    some = workload((0, 250, 6), (1, 250, 7), (2, 10, 10))
    assert continuous.fitting(some, shapes).prompt_tokens.tolist() == [250, 10]
    with pytest.raises(ValueError, match="no request of made fits 256 tokens"):
        continuous.fitting(some.take(slice(1, 2)), shapes)


# --- checks ---------------------------------------------------------------------------------------


def test_on_a_steady_machine_all_is_as_was_said(a_check):
    check = a_check(steady())
    assert check.decisions().agree
    for times in ("ttfts", "latencies"):
        assert check.simulated[times] == pytest.approx(check.measured[times], abs=1e-6)
    assert check.measured["spyre_fill"] == pytest.approx(check.simulated["spyre_fill"])
    assert check.costs().bias == pytest.approx(0, abs=1e-6)
    assert pass_errors(check)["error"].abs().max() < 1e-6
    assert set(check.judged()["state"]) == {"inside"}
    assert not check.told_apart()["disturbed"]
    assert check.by_quantity()["error"].abs().max() < 1e-6
    for aim in aims(check.judged(), pd.DataFrame([check.told_apart()]), check.by_quantity()):
        assert aim.met, aim


def test_passes_that_take_longer_are_an_error_of_costs_and_not_of_decisions(tmp_path):
    machine = steady()
    checks = Checks(machine, tmp_path)
    assert checks.constants
    machine.pace = np.log(1.1)
    check = checks.check("slower", REQUESTS)
    assert check.costs().bias == pytest.approx(0.1, abs=1e-6)
    assert check.told_apart()["change_of_pace"] == pytest.approx(0.1, abs=1e-6)
    assert check.decisions().agree
    assert check.decisions().batches == len(check.passes)


def test_another_rule_on_the_machine_is_an_error_of_decisions_and_is_placed(a_check):
    machine = steady()
    told, machine.rules = machine.warmed(), Rules(decode_between=3)
    machine.warmed = lambda: told
    decided = a_check(machine).decisions()
    assert not decided.agree
    assert f"pass {decided.first_other} of {decided.batches} " in str(decided)


def test_near_saturation_a_per_cent_of_pass_time_is_more_than_a_per_cent_of_latency(a_check):
    light, heavy = (
        a_check(steady(), requests(np.random.default_rng(3), rps, 48)).amplification()
        for rps in (0.1, 2.5)
    )
    assert light.per_cent_per_per_cent == pytest.approx(1, abs=0.15)
    assert heavy.per_cent_per_per_cent > 1.5


def test_load_1_is_what_the_engine_serves_with_everybody_queued():
    run = OF_WARMUP.simulate(REQUESTS.with_arrivals("all"))
    assert OF_WARMUP.capacity_rps(REQUESTS) == pytest.approx(5 / summary.duration_s(run))


def test_the_prediction_names_shapes_and_rules_and_is_there_before_the_first_request(tmp_path):
    machine = steady()
    serve, seen = machine.serve, []

    def watched(workload, name):
        seen.append((name, sorted(path.name for path in tmp_path.glob("*prediction*"))))
        return serve(workload, name)

    machine.serve = watched
    check = Checks(machine, tmp_path).check("a run", REQUESTS)
    assert ("a run", [check.prediction.name]) in seen
    said = json.loads(check.prediction.path.read_text())["constants"]
    assert [row["shape"] for row in said["shapes"]] == [cost.shape.name for cost in WARMED.each]
    assert (said["rules"], said["blocks"]) == (asdict(RULES), 20)


def test_nine_of_ten_intervals_hold_on_a_machine_that_drifts(tmp_path):
    rng = np.random.default_rng(0)
    checks = Checks(PagedMachine(WARMED, LONGER, seed=1), tmp_path)
    loads_rps = (0.8, 1.2, 1.6, 2.0)
    done = [
        checks.check(f"check {at}", requests(rng, loads_rps[at % 4], 16), seed=at)
        for at in range(20)
    ]
    found = coverage(pd.concat(check.judged() for check in done))
    assert found.judged + found.disturbed == 20 * 3
    assert found.holds, str(found)
    assert all(check.decisions().agree for check in done)


def test_a_live_host_has_shapes_and_rules_from_its_log_and_gives_the_passes_of_each_run(
    tmp_path, monkeypatch
):
    server = Server("", Path(), tmp_path / "passes.jsonl", 0, BenchClient(tmp_path / "log"))
    log, machine = PassLog(server.pass_log), steady()
    log.write(StepRules(WARMED.blocks, True, asdict(RULES)))
    for cost in WARMED.each:
        log.write(ShapeWarmup(cost.shape, 5.0, cost.full_s, cost.base_s, False, 1))

    def replay(to, asked, directory, name):
        served = machine.serve(asked, name)
        for step in served.passes:
            log.write(step)
        return served.result

    monkeypatch.setattr(hosts.serving, "replay", replay)
    host = ContinuousHost(server, tmp_path)
    for cost, warmed in zip(host.warmed().costs.each, WARMED.each, strict=True):
        assert cost.full_s == pytest.approx(warmed.full_s)
    first, second = (host.serve(REQUESTS, name).passes for name in ("first", "second"))
    assert [step.shape for step in first] == [step.shape for step in second]
    assert second[0].start_s - first[0].start_s == pytest.approx(1000.0)
    assert host.warmed().decisions(host.passes()).agree, "the whole log, too"


def test_how_many_rows_ran_is_held_against_the_simulated_run():
    run = OF_WARMUP.simulate(REQUESTS)
    steps = list(steps_of(run, 0.0))
    assert OF_WARMUP.rows_distance(steps, run) == 0
    alone = [step for step in steps if step.kind == "chunk" or len(step.requests) == 1]
    decode = run.passes.kind == DECODE
    single = run.passes.count[decode & (run.passes.rows == 1)].sum()
    shared = 1 - single / run.passes.count[decode].sum()
    assert OF_WARMUP.rows_distance(alone, run) == pytest.approx(shared)
    assert 0 < shared < 1
