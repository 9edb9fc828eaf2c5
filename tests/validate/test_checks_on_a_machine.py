"""Whole checks, from the first calibration to the last judgement, on a machine that is made up."""

import json
from datetime import datetime

import numpy as np
import pandas as pd
import pytest

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import Bucket
from spyre_bench.validate import registered
from spyre_bench.validate.check import Checks
from spyre_bench.validate.constants import DRIFT
from spyre_bench.validate.coverage import coverage
from spyre_bench.workload.workload import Workload
from tests.validate.machine import Machine

COSTS = (
    BucketCost(Bucket(2, 128, 32), 0.7, 0.03),
    BucketCost(Bucket(4, 64, 16), 0.5, 0.04),
)
POLICY = Policy(gather_s=0.02)
LOADS_RPS = (0.8, 1.3, 1.8, 2.2, 2.6)  # up to saturation


def requests(rng: np.random.Generator, rps: float, count: int = 32) -> Workload:
    long = rng.random(count) < 0.3
    outputs = np.where(long, rng.integers(8, 32, count), rng.integers(1, 16, count))
    prompts = np.where(long, rng.integers(65, 128, count), rng.integers(5, 64, count))
    return Workload("some", np.cumsum(rng.exponential(1 / rps, count)), prompts, outputs, outputs)


def checks_of(machine: Machine, directory) -> Checks:
    return Checks(machine, directory)


@pytest.fixture
def a_check(tmp_path):
    """One, on a machine of a given drift, with the file of its prediction."""

    def run(**machine):
        host = Machine(COSTS, POLICY, **machine)
        return checks_of(host, tmp_path).check("a run", requests(np.random.default_rng(1), 2.0))

    return run


def test_nine_of_ten_intervals_hold_on_machines_that_drift(tmp_path):
    judged = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        checks = checks_of(Machine(COSTS, POLICY, seed=seed), tmp_path)
        for place in range(20):
            workload = requests(rng, LOADS_RPS[place % len(LOADS_RPS)])
            judged.append(checks.check(f"check {place}", workload, seed=place).judged())
    found = coverage(pd.concat(judged))
    assert found.judged + found.disturbed == 2 * 20 * 3
    assert found.holds, str(found)


def test_the_simulator_decides_as_the_machine_does_whatever_it_drifts(a_check):
    for seed in range(5):
        decided = a_check(seed=seed, drift=0.1, batch=0.1).decisions()
        assert decided.agree, decided


def test_another_rule_on_the_machine_is_an_error_of_decisions_and_is_placed(tmp_path):
    machine = Machine(COSTS, POLICY, drift=0, batch=0, step=0)
    told, machine.policy = machine.warmed(), Policy("fcfs", gather_s=0.02)
    machine.warmed = lambda: told
    workload = requests(np.random.default_rng(0), 3.0)
    decided = checks_of(machine, tmp_path).check("a run", workload).decisions()
    assert not decided.agree
    assert 0 <= decided.first_other < decided.batches


def test_passes_that_take_longer_are_an_error_of_costs_and_not_of_decisions(a_check):
    quiet = a_check(drift=0, batch=0, step=0)
    assert quiet.costs().bias == pytest.approx(0, abs=1e-6)
    assert quiet.costs().spread == pytest.approx(0, abs=1e-6)
    slower = a_check(drift=0, batch=0, step=0.05)
    assert slower.costs().spread == pytest.approx(0.05, rel=0.2)


def test_a_machine_that_slows_down_within_a_run_has_a_drift(a_check):
    check = a_check(drift=0, batch=0, step=0)
    late = check.passes.copy()
    half_s = late["start_s"].median()
    late["start_s"] = np.where(
        late["start_s"] > half_s, half_s + 1.2 * (late["start_s"] - half_s), late["start_s"]
    )
    slowed = type(check)(**{**vars(check), "passes": late})
    assert slowed.costs().drift == pytest.approx(0.2, rel=0.1)
    assert slowed.costs().bias > 0.05


def test_near_saturation_a_per_cent_of_pass_time_is_more_than_a_per_cent_of_latency(tmp_path):
    checks = checks_of(Machine(COSTS, POLICY, drift=0), tmp_path)
    light, heavy = (
        checks.check(f"{rps} rps", requests(np.random.default_rng(3), rps, 64)).amplification()
        for rps in (0.1, 3.0)
    )
    assert light.per_cent_per_per_cent == pytest.approx(1, abs=0.15)
    assert heavy.per_cent_per_per_cent > 1.5
    assert heavy.seconds_per_per_cent > light.seconds_per_per_cent


def test_a_machine_that_changes_more_than_the_spread_allows_disturbs_its_check(tmp_path):
    machine = Machine(COSTS, POLICY, drift=0, batch=0)
    checks = checks_of(machine, tmp_path)
    checks.check("before", requests(np.random.default_rng(0), 1.0))
    serve = machine.serve

    def with_a_neighbour(workload, name):
        served = serve(workload, name)
        machine.pace += 0.3
        return served

    machine.serve = with_a_neighbour
    disturbed = checks.check("disturbed", requests(np.random.default_rng(0), 1.0))
    assert disturbed.disturbed
    assert set(disturbed.judged()["state"]) == {"disturbed"}
    assert len(checks.biases) == 1, "it says nothing of the machine's usual drift"
    assert coverage(disturbed.judged()).judged == 0


def test_neighbours_that_keep_a_core_busy_disturb_a_check_whatever_it_measured(tmp_path):
    machine = Machine(COSTS, POLICY, drift=0, batch=0)
    serve = machine.serve
    machine.serve = lambda workload, name: serve(workload, name)._replace(others=0.3)
    check = checks_of(machine, tmp_path).check("a run", requests(np.random.default_rng(0), 1.0))
    assert check.disturbed
    assert check.told_apart()["others_cores"] == 0.3


def test_a_quiet_machine_narrows_the_next_intervals_and_a_restless_one_widens_them(tmp_path):
    paces = []
    for drift in (0.0, 0.08):
        checks = checks_of(Machine(COSTS, POLICY, drift=drift, seed=4), tmp_path)
        for place in range(6):
            last = checks.check(f"check {place}", requests(np.random.default_rng(place), 1.0))
        paces.append(last.constants.spread.pace)
    assert paces[0] < DRIFT < paces[1]


def test_a_calibration_whose_requests_shared_no_batch_is_taken_again_and_then_given_up(tmp_path):
    machine = Machine(COSTS, POLICY)
    serve, failing = machine.serve, [1]

    def split(workload, name):
        served = serve(workload, name)
        if failing[0] <= 0:
            return served
        failing[0] -= 1
        prefills = served.passes[served.passes["kind"] == "prefill"]
        return served._replace(passes=prefills.reset_index(drop=True))

    machine.serve = split
    assert checks_of(machine, tmp_path).constants.costs
    failing[0] = 9
    with pytest.raises(ValueError, match="ran no batch of three passes"):
        _ = checks_of(machine, tmp_path).constants


def test_a_prediction_is_on_disk_before_the_first_request_and_the_result_names_it(tmp_path):
    machine = Machine(COSTS, POLICY)
    serve, seen = machine.serve, []

    def watched(workload, name):
        seen.append((name, sorted(path.name for path in tmp_path.glob("*prediction*"))))
        return serve(workload, name)

    machine.serve = watched
    check = checks_of(machine, tmp_path).check("a run", requests(np.random.default_rng(0), 1.0))
    assert ("a run", [check.prediction.name]) in seen
    assert check.measured["spyre_prediction"]["file"] == check.prediction.name
    content = json.loads(check.prediction.path.read_text())
    assert content["requests"]["count"] == 32
    assert len(content["constants"]["buckets"]) == 2
    assert datetime.fromisoformat(content["registered_at"]).tzinfo
    assert {"commit", "dirty"} <= set(content)
    low, high = content["predicted"]["median_e2el_ms"]["p5_to_p95"]
    assert (low, high) == check.prediction.intervals["median_e2el_ms"]


def test_a_prediction_that_was_changed_afterwards_is_refused(a_check):
    path = a_check().prediction.path
    path.write_text(path.read_text().replace('"count": 32', '"count": 33'))
    with pytest.raises(ValueError, match="it was changed after it was registered"):
        registered.read_prediction(path)


def test_what_is_outside_counts_against_and_what_is_disturbed_for_nothing():
    states = ["inside"] * 17 + ["outside"] * 3 + ["disturbed"] * 3
    found = coverage(pd.DataFrame({"state": states}))
    assert (found.share, found.holds) == (0.85, True)
    assert str(found) == (
        "17 of 20 figures inside P5 to P95 (85%; the aim is 80% to 97%), 3 disturbed"
    )
    assert coverage(pd.DataFrame({"state": ["inside"] * 12})).holds, "of so few all may be inside"
    assert not coverage(pd.DataFrame({"state": ["inside"] * 60})).holds, "they say too little"
    assert not coverage(pd.DataFrame({"state": ["disturbed"]})).holds


def test_a_bucket_that_another_one_makes_needless_is_taken_for_as_slow_as_that_one(tmp_path):
    needless = BucketCost(Bucket(4, 64, 8), 0.9, 0.08)
    machine = Machine((*COSTS, needless), POLICY, drift=0, batch=0, step=0)
    machine.pace = np.log(1.5)
    check = checks_of(machine, tmp_path).check("a run", requests(np.random.default_rng(1), 2.0))
    costs = {cost.bucket: cost for cost in check.constants.costs}
    found = costs[needless.bucket]
    assert (found.prefill_s, found.decode_s) == pytest.approx((1.5 * 0.9, 1.5 * 0.08), rel=0.02)
    assert check.decisions().agree
