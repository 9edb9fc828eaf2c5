import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spyre_bench.choose import facility
from spyre_bench.choose.optimize import Limits, candidates, choose_buckets
from spyre_bench.cost.bucket_cost import BucketCost, price
from spyre_bench.cost.closed_form import FittedCost
from spyre_bench.metrics.bounds import bound_by_bucket, shape_bound_s, shares_s, work_bound_s
from spyre_bench.shapes import Bucket, BucketSet
from spyre_bench.simulate.static import simulate
from spyre_bench.workload.workload import Workload

# prefill 0.02 + 1e-4·B·P, decode 0.02 + 5e-4·B, compile 10 s, a byte for each slot of the cache
TOY = FittedCost((0.02, 1e-4), (0.02, 5e-4, 0.0), (10.0, 0.0), (0.0, 1.0, 0.0))


def workload(*requests: tuple[int, int]) -> Workload:
    """Requests of (prompt_tokens, output_tokens), all at once."""
    prompt_tokens, output_tokens = (np.array(column) for column in zip(*requests, strict=True))
    return Workload("by hand", np.zeros(len(requests)), prompt_tokens, output_tokens, output_tokens)


def toy(text: str):
    return price(BucketSet.parse(text), TOY)


@st.composite
def problems(draw):
    """A few candidates with any costs, the largest of them fitting all requests."""
    grid = itertools.product((1, 4), (64, 128, 192), (4, 16))
    every = [Bucket(*sizes) for sizes in grid]
    requests = draw(st.lists(st.sampled_from(every), max_size=6, unique=True))
    buckets = sorted({*requests, Bucket(4, 192, 16)})
    seconds = st.integers(1, 100).map(lambda n: n / 8)
    costs = tuple(
        BucketCost(bucket, draw(seconds), draw(seconds), draw(seconds), draw(st.integers(1, 9)))
        for bucket in buckets
    )
    rows = st.tuples(st.integers(1, 192), st.integers(1, 16))
    return workload(*draw(st.lists(rows, min_size=1, max_size=9))), costs, draw(st.integers(1, 3))


def by_trying_everything(requests, costs, limits: Limits) -> float:
    best = np.inf
    cap = limits.memory_bytes or np.inf
    fitting = [cost for cost in costs if cost.memory_bytes <= cap]
    for size in range(1, limits.buckets + 1):
        for chosen in itertools.combinations(fitting, size):
            spent_s = sum(cost.compile_s for cost in chosen)
            if limits.warmup_budget_s is None or spent_s <= limits.warmup_budget_s:
                best = min(best, shares_s(requests, chosen).sum())
    return best


@settings(deadline=None)
@given(problems(), st.none() | st.integers(1, 30), st.none() | st.integers(1, 9))
def test_the_choice_is_that_of_trying_everything_and_its_bound_holds(problem, budget_s, memory):
    requests, costs, k = problem
    limits = Limits(k, budget_s, memory)
    best_s = by_trying_everything(requests, costs, limits)
    if best_s == np.inf:
        with pytest.raises(ValueError, match=r"serves every request|fit no candidate|memory_bytes"):
            choose_buckets(requests, costs, limits)
        return
    choice = choose_buckets(requests, costs, limits, gap=0)
    assert choice.objective_s == pytest.approx(best_s)
    assert choice.bound_s <= best_s * (1 + 1e-9)
    assert choice.gap < 1e-6
    assert choice.objective_s == pytest.approx(shape_bound_s(requests, choice.costs))


@settings(deadline=None)
@given(problems(), st.sampled_from([2.0**-40, 2.0**-24, 2.0**-10, 2.0**20]))
def test_the_choice_does_not_hang_on_how_long_a_second_is(problem, second):
    requests, costs, k = problem
    scaled = tuple(
        replace(
            cost,
            prefill_s=cost.prefill_s * second,
            decode_s=cost.decode_s * second,
            compile_s=cost.compile_s * second,
        )
        for cost in costs
    )
    limits = Limits(k, 20 * second)
    best_s = by_trying_everything(requests, scaled, limits)
    if best_s == np.inf:
        with pytest.raises(ValueError, match="serves every request"):
            choose_buckets(requests, scaled, limits, gap=0)
        return
    choice = choose_buckets(requests, scaled, limits, gap=0)
    assert choice.objective_s == pytest.approx(best_s, abs=0)
    assert choice.bound_s == pytest.approx(best_s, abs=0)
    assert choice.compile_s <= 20 * second


def test_an_answer_worse_than_its_own_bound_is_not_believed(monkeypatch):
    requests = workload((60, 4), (60, 4))
    costs = BucketCost(Bucket(1, 64, 4), 1.0, 0.1, 1.0), BucketCost(Bucket(2, 64, 4), 1.0, 0.1, 2.0)
    worse = np.array([1.0, 0.0])
    solved = facility.milp

    def wrong(**problem):
        answer = solved(**problem)
        answer.x[:2], answer.mip_dual_bound = worse, 1e9
        return answer

    monkeypatch.setattr(facility, "milp", wrong)
    choice = choose_buckets(requests, costs, Limits(1))
    assert choice.buckets == (Bucket(2, 64, 4),)
    assert choice.objective_s == pytest.approx(1.3)
    assert choice.bound_s <= choice.objective_s


@pytest.mark.parametrize("budget_s", [-1.0, float("nan")])
def test_a_warmup_budget_that_is_no_time_is_refused(budget_s):
    with pytest.raises(ValueError, match=r"warmup budget .* is not 0 or more"):
        Limits(1, budget_s)


def test_with_many_different_answers_the_bound_stays_below_and_close():
    """Beyond a few answers of one cell, their best buckets are bounded, not tried."""
    rng = np.random.default_rng(0)
    requests = workload(*zip(rng.integers(1, 192, 3000), rng.integers(1, 1000, 3000), strict=True))
    costs = (
        BucketCost(Bucket(1, 192, 1000), 0.1, 0.10),
        BucketCost(Bucket(4, 192, 1000), 4.0, 0.30),
        BucketCost(Bucket(8, 192, 1000), 60.0, 0.45),
    )
    limits = Limits(2)
    choice = choose_buckets(requests, costs, limits, gap=0)
    best_s = by_trying_everything(requests, costs, limits)
    assert choice.objective_s == pytest.approx(best_s)
    assert 0.99 * best_s < choice.bound_s <= best_s


@settings(deadline=None)
@given(problems())
def test_no_schedule_is_faster_than_the_bound_of_its_buckets(problem):
    requests, costs, _ = problem
    run = simulate(requests, costs)
    assert run.passes.batch_seconds.sum() >= shape_bound_s(requests, costs) * (1 - 1e-9)


def test_limits_are_kept():
    requests = workload((60, 8), (120, 8), (200, 30), (400, 60))
    costs = toy("4,64,8 4,128,8 2,256,32 2,448,64 1,448,64")
    assert len(choose_buckets(requests, costs, Limits(2)).buckets) <= 2
    cheap = choose_buckets(requests, costs, Limits(5, warmup_budget_s=29.0))
    assert cheap.compile_s == 20.0
    small = choose_buckets(requests, costs, Limits(5, memory_bytes=600))
    assert max(cost.memory_bytes for cost in small.costs) <= 600
    assert Bucket(1, 448, 64) in small.buckets


def test_by_hand_short_requests_get_a_bucket_of_their_own():
    requests = workload(*[(60, 8)] * 90, *[(400, 8)] * 10)
    costs = toy("4,64,8 4,448,8")
    alone = choose_buckets(requests, costs, Limits(1))
    assert alone.buckets == (Bucket(4, 448, 8),)
    share_s = lambda p: (0.02 + 4e-4 * p + 7 * 0.022) / 4  # noqa: E731
    assert alone.objective_s == pytest.approx(100 * share_s(448))
    both = choose_buckets(requests, costs, Limits(2))
    assert both.objective_s == pytest.approx(90 * share_s(64) + 10 * share_s(448))
    assert both.gap == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (
            Limits(2, warmup_budget_s=5 - 1e-15),
            "no choice of 2 buckets within a warmup budget of 5 s",
        ),
        (Limits(2, memory_bytes=100), "memory_bytes 100 is below what the smallest .* needs, 288"),
        (
            Limits(2, memory_bytes=300),
            "1 of 2 requests fit no candidate: add one of prompt_length 256 and new_tokens 8",
        ),
    ],
)
def test_where_nothing_serves_everyone_the_reason_is_named(limits, words):
    with pytest.raises(ValueError, match=words):
        choose_buckets(workload((60, 8), (200, 8)), toy("4,64,8 4,256,8"), limits)


def test_too_few_buckets_are_named_where_nobody_set_a_budget():
    corner = toy("4,64,256 4,512,32")  # the largest combination was not measured
    with pytest.raises(ValueError, match="no choice of 1 buckets serves every request: raise k"):
        choose_buckets(workload((60, 256), (500, 20)), corner, Limits(1))


def test_no_bucket_is_no_choice():
    with pytest.raises(ValueError, match="k 0 is below 1"):
        Limits(0)
    with pytest.raises(ValueError, match=r"k 1\.5 is not a whole number"):
        Limits(1.5)


def test_candidates_cover_everything_and_hold_the_extra_ones():
    requests = workload((60, 8), (130, 100), (700, 30))
    found = candidates(
        requests, (1, 4), prompt_lengths=3, new_tokens=2, extra=[Bucket(8, 1024, 128)]
    )
    assert Bucket(8, 1024, 128) in found
    assert {bucket.batch_size for bucket in found} == {1, 4, 8}
    prompts = {bucket.prompt_length for bucket in found}
    assert prompts == {64, 192, 704, 1024}
    assert any(bucket.fits(700, 100) for bucket in found)
    assert choose_buckets(requests, price(found, TOY), Limits(3)).gap < 1e-3


def test_the_same_problem_twice_has_the_same_answer():
    rng = np.random.default_rng(0)
    requests = workload(*zip(rng.integers(1, 1000, 500), rng.integers(1, 200, 500), strict=True))
    costs = price(candidates(requests, (1, 4)), TOY)
    once, again = (choose_buckets(requests, costs, Limits(4)) for _ in range(2))
    assert once.buckets == again.buckets


# --- bounds ---------------------------------------------------------------------------------------


def test_the_share_of_a_request_by_hand():
    costs = (BucketCost(Bucket(4, 64, 8), 2.0, 0.5), BucketCost(Bucket(1, 128, 8), 1.0, 0.5))
    requests = workload((60, 3), (60, 1), (100, 3), (300, 3))
    assert shares_s(requests, costs).tolist() == [3.0 / 4, 2.0 / 4, 2.0, np.inf]
    assert shape_bound_s(requests, costs) == 3.25, "of those that fit"


def test_the_work_bound_by_hand():
    machine = FittedCost((0.8, 0.01), (0.4, 0.02, 0.001))
    # a0/4 + 10·a1, then two passes of d0/4 + d1 + 13·d2
    expected = 0.2 + 0.1 + 2 * (0.1 + 0.02 + 0.013)
    assert work_bound_s(workload((10, 3)), machine, 4) == pytest.approx(expected)


@given(problems())
def test_on_a_machine_of_the_form_work_bounds_shapes(problem):
    requests, costs, _ = problem
    machine = FittedCost((0.02, 1e-4), (0.02, 5e-4, 1e-6))
    exact = price([cost.bucket for cost in costs], machine)
    assert work_bound_s(requests, machine, 4) <= shape_bound_s(requests, exact) * (1 + 1e-9)


def test_the_shape_bound_puts_each_request_into_its_cheapest_bucket():
    requests = workload((60, 8), (60, 8), (120, 8), (300, 8), (600, 8))
    costs = toy("4,64,8 4,128,8 1,448,8")
    frame = bound_by_bucket(requests, costs).set_index("bucket")
    assert frame["share"].to_dict() == {"1,448,8": 0.25, "4,64,8": 0.5, "4,128,8": 0.25}
    assert frame["seconds"].sum() == pytest.approx(shape_bound_s(requests, costs))
    assert frame.loc["1,448,8", "seconds"] == pytest.approx(costs[0].batch_s(8))
    assert (frame["compile_s"] == 10.0).all()
    assert frame.loc["4,128,8", ["batch_size", "prompt_length", "new_tokens"]].tolist() == [
        4,
        128,
        8,
    ]


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(1, 60.0), "a warmup budget needs compile_s"),
        (Limits(1, None, 100), "a memory limit needs memory_bytes"),
    ],
)
def test_a_limit_on_what_no_cost_says_is_not_kept_but_refused(limits, words):
    costs = (BucketCost(Bucket(1, 64, 4), 1.0, 0.1),)
    with pytest.raises(ValueError, match=rf"{words} of every candidate.* bucket 1,64,4"):
        choose_buckets(workload((60, 4)), costs, limits)
