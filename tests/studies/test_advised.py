"""The advice at a load: the lighter the load, the smaller the batches that are worth compiling."""

import numpy as np
import pytest

from spyre_bench.choose.optimize import Limits
from spyre_bench.cost.measured import MeasuredCost
from spyre_bench.policy.static import Policy
from spyre_bench.studies.advised import advise_at
from spyre_bench.studies.under_load import capacity_rps
from spyre_bench.workload.workload import Workload
from tests.cost.test_cost import CORNERS, machine

TABLE = MeasuredCost(machine(*CORNERS))
SETTINGS = {"batch_sizes": TABLE.batch_sizes, "policy": Policy("best_fit")}


@pytest.fixture
def requests() -> Workload:
    rng = np.random.default_rng(0)
    prompts, outputs = rng.integers(1, 1025, 200), rng.integers(1, 129, 200)
    arrival_s = np.cumsum(rng.exponential(1.0, 200))
    return Workload("by hand", arrival_s, prompts, outputs, outputs)


def test_at_a_light_load_smaller_batches_are_advised_than_full_ones_would_have(requests):
    advice = advise_at(0.02, requests, TABLE, Limits(3), **SETTINGS)
    largest, full = (
        max(cost.bucket.batch_size for cost in costs)
        for costs in (advice.costs, advice.certificate.costs)
    )
    assert largest < full


def test_a_load_is_a_share_of_what_the_proved_choice_serves_of_the_first_half(requests):
    advice = advise_at(0.5, requests, TABLE, Limits(3), **SETTINGS)
    capacity = capacity_rps(advice.fitted, advice.certificate.costs, SETTINGS["policy"])
    both_halves_s = advice.fitted.requests_per_s, advice.held_out.requests_per_s
    assert np.mean(both_halves_s) == pytest.approx(0.5 * capacity, rel=0.1)


def test_fewer_candidates_never_make_a_better_choice(requests):
    few = advise_at(0.5, requests, TABLE, Limits(3), **SETTINGS, prompt_lengths=3, new_tokens=2)
    all_of_them = advise_at(0.5, requests, TABLE, Limits(3), **SETTINGS)
    assert all_of_them.certificate.bound_s <= few.certificate.objective_s * (1 + 1e-3)


def test_a_load_of_nothing_is_refused(requests):
    with pytest.raises(ValueError, match="not a positive number"):
        advise_at(0.0, requests, TABLE, Limits(3), **SETTINGS)
