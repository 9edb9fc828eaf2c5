"""The waterfall: bounds below, policies above, each step to the stage before it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spyre_bench.cost.bucket_cost import price
from spyre_bench.cost.closed_form import FittedCost
from spyre_bench.cost.measured import MeasuredCost
from spyre_bench.metrics.bounds import shape_bound_s, work_bound_s
from spyre_bench.metrics.summary import busy_s
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import Bucket, BucketSet
from spyre_bench.simulate.static import simulate
from spyre_bench.studies.waterfall import waterfall
from spyre_bench.workload.workload import Workload
from tests.cost.test_cost import CORNERS, machine

TOY = FittedCost((0.02, 1e-4), (0.02, 5e-4, 0.0))
COSTS = price(BucketSet.parse("4,64,8 4,256,32 1,256,32"), TOY)


def workload(*requests: tuple[int, int], every_s: float = 0.0) -> Workload:
    prompt_tokens, output_tokens = (np.array(column) for column in zip(*requests, strict=True))
    arrival_s = every_s * np.arange(len(requests))
    return Workload("by hand", arrival_s, prompt_tokens, output_tokens, output_tokens)


def mixed(requests: int, every_s: float = 0.0) -> Workload:
    rng = np.random.default_rng(0)
    rows = zip(rng.integers(1, 257, requests), rng.integers(1, 33, requests), strict=True)
    return workload(*rows, every_s=every_s)


def test_the_stages_are_the_bounds_and_what_each_policy_takes_with_everybody_queued():
    requests = mixed(80)
    frame = waterfall(requests, COSTS, TOY, batch_size=4).set_index("stage")
    seconds = frame["seconds"]
    assert list(frame.index) == [
        "work bound",
        "shape bound",
        "length_aware",
        "best_fit",
        "skip",
        "fcfs",
    ]
    assert seconds["work bound"] == work_bound_s(requests, TOY, 4)
    assert seconds["shape bound"] == shape_bound_s(requests, COSTS)
    for name in ("best_fit", "skip", "fcfs"):
        assert seconds[name] == busy_s(simulate(requests, COSTS, Policy(name)))
    unguarded = Policy("length_aware", max_age_s=float("inf"))
    assert seconds["length_aware"] == busy_s(simulate(requests, COSTS, unguarded))
    assert seconds.is_monotonic_increasing, "here every further rule costs something"


def test_the_steps_add_up_and_the_ratio_is_to_the_shape_bound():
    frame = waterfall(mixed(80), COSTS, TOY, batch_size=4)
    assert frame["step_s"].cumsum().tolist() == pytest.approx(frame["seconds"].tolist())
    assert frame["over_shape_bound"].tolist() == pytest.approx(
        (frame["seconds"] / frame["seconds"][1]).tolist()
    )


def test_when_they_came_does_not_matter():
    spread, at_once = mixed(40, every_s=100.0), mixed(40)
    assert waterfall(spread, COSTS, TOY, batch_size=4).equals(
        waterfall(at_once, COSTS, TOY, batch_size=4)
    )


def test_requests_that_fit_no_bucket_are_in_no_stage():
    requests = [(60, 8), (200, 30), (100, 2)]
    frame = waterfall(workload(*requests, (300, 8), (60, 40)), COSTS, TOY, batch_size=4)
    assert frame.equals(waterfall(workload(*requests), COSTS, TOY, batch_size=4))
    with pytest.raises(ValueError, match="no bucket fits prompt_tokens=300"):
        waterfall(workload((300, 8)), COSTS, TOY, batch_size=4)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0.5, 2.0), min_size=16, max_size=16), st.integers(0, 9))
def test_under_a_table_of_any_shape_the_work_bound_stays_the_lowest(factors, seed):
    """Half of the rows off the closed form by up to a factor of two, buckets between them."""
    rows = [
        replace(row, prefill_s=row.prefill_s * one, decode_s=row.decode_s * other)
        for row, one, other in zip(machine(*CORNERS), factors[:8], factors[8:], strict=True)
    ]
    rng = np.random.default_rng(seed)
    table, floor = MeasuredCost(rows), FittedCost.fit(rows).below(rows)
    costs = price([Bucket(3, 1024, 512), Bucket(8, 512, 100), Bucket(5, 192, 30)], table)
    requests = workload(*zip(rng.integers(1, 1025, 20), rng.integers(1, 513, 20), strict=True))
    seconds = waterfall(requests, costs, floor, batch_size=8)["seconds"]
    assert seconds[0] <= seconds[1] * (1 + 1e-9)
    assert (seconds[1] <= seconds[2:] * (1 + 1e-9)).all()
