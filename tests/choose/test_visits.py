"""Shapes chosen by the passes that a simulation makes."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spyre_bench.choose import visits
from spyre_bench.choose.visits import ShapeLimits, Visits, choose_shapes
from spyre_bench.cost.shape_cost import DecodeCost, PrefillCost, ShapeCosts
from spyre_bench.policy.continuous import Rules
from spyre_bench.shape_set import DecodeShape, PrefillShape
from spyre_bench.simulate.continuous import simulate
from spyre_bench.simulate.result import DECODE
from spyre_bench.workload.workload import Workload

CANDIDATES = ShapeCosts(
    tuple(
        PrefillCost(PrefillShape(c, t), 0.01 + 1e-4 * c + 1e-6 * t, 1e-6, 1.0 + c / 64)
        for c in (64, 128, 256)
        for t in (256, 512)
    ),
    tuple(
        DecodeCost(DecodeShape(b, t), 0.01 + 2e-3 * b + 1e-5 * b * t, 1e-4, 1e-7, 2.0 + b)
        for b in (1, 2, 4)
        for t in (128, 256, 512)
    ),
    200,
)


def workload(*requests: tuple[float, int, int]) -> Workload:
    """Arrival, prompt tokens, output tokens."""
    at, prompts, outputs = (np.array(column) for column in zip(*requests, strict=True))
    return Workload("w", at.astype(float), prompts, outputs, outputs)


LOADS = st.lists(
    st.tuples(st.floats(0, 5), st.integers(1, 400), st.integers(1, 100)), min_size=1, max_size=12
).map(lambda some: workload(*sorted(some)))


def run(requests: Workload, costs: ShapeCosts = CANDIDATES, rules: Rules | None = None):
    return simulate(requests, costs, rules or Rules())


@given(LOADS, st.sampled_from(["ragged", "rectangular"]))
def test_the_visits_cost_on_the_shapes_that_ran_what_the_run_took(requests, layout):
    costs = replace(CANDIDATES, prefill=CANDIDATES.prefill[-1:], decode=CANDIDATES.decode[-1:])
    ran = run(requests, costs, Rules(layout=layout))
    visits = Visits.of(ran)
    seconds = visits.seconds([*costs.prefill, *costs.decode])
    least = costs.prefill[0].pass_s(0) + costs.decode[0].pass_s(1, 0)  # those over the longest
    assert seconds.min(axis=1).sum() - least == pytest.approx(
        (ran.passes.seconds * ran.passes.count).sum()
    )


@given(LOADS)
def test_every_pass_is_one_visit_of_what_it_needs(requests):
    ran = run(requests)
    visits, is_chunk = Visits.of(ran), ran.passes.kind != DECODE
    decodes = visits.passes[~visits.is_chunk].sum() - 1
    assert decodes == ran.passes.count[~is_chunk].sum()
    assert visits.passes[visits.is_chunk].sum() - 1 == is_chunk.sum()
    assert visits.width[~visits.is_chunk].max() == max(ran.passes.rows[~is_chunk], default=1)


def test_a_stretch_over_a_block_border_visits_both_contexts():
    ran = run(workload((0.0, 120, 20)))  # contexts 121 to 139
    visits = Visits.of(ran, longest_blocks=8)
    found = {
        (int(b), int(n), int(t))
        for b, n, t, chunk in zip(
            visits.blocks, visits.passes, visits.tokens, visits.is_chunk, strict=True
        )
        if not chunk
    }
    assert found == {(2, 8, sum(range(121, 129))), (3, 11, sum(range(129, 140))), (8, 1, 0)}


def brute_force(visits: Visits, limits: ShapeLimits) -> float:
    every = [*CANDIDATES.prefill, *CANDIDATES.decode]
    seconds = visits.seconds(every)
    best = np.inf
    for size in range(2, limits.graphs + 1):
        for chosen in itertools.combinations(range(len(every)), size):
            compile_s = sum(every[index].compile_s for index in chosen)
            if limits.warmup_budget_s is None or compile_s <= limits.warmup_budget_s:
                best = min(best, seconds[:, chosen].min(axis=1).sum())
    return best


@settings(deadline=None, max_examples=25)
@given(LOADS, st.sampled_from([None, 11.0, 15.0]), st.integers(2, 4))
def test_the_choice_is_certified_by_trying_everything_on_the_passes_that_it_makes_itself(
    requests, budget_s, k
):
    limits, ran = ShapeLimits(k, budget_s), []

    def kept(costs):
        ran.append(run(requests, costs))
        return ran[-1]

    choice = choose_shapes(CANDIDATES, kept, limits, gap=0)
    own = Visits.of(run(requests, choice.costs))
    best_s = brute_force(own, limits)
    every = [*choice.costs.prefill, *choice.costs.decode]
    assert choice.objective_s == pytest.approx(own.seconds(every).min(axis=1).sum())
    assert choice.bound_s == pytest.approx(best_s)
    assert not choice.settled or choice.objective_s == pytest.approx(best_s)
    assert len(choice.costs.prefill) + len(choice.costs.decode) <= k
    assert budget_s is None or choice.costs.compile_s <= budget_s
    assert choice.rounds == len(ran)


def test_a_choice_that_stays_is_simulated_on_itself():
    requests = workload(*((0.1 * i, 100, 30) for i in range(20)))
    ran = []
    choice = choose_shapes(
        CANDIDATES, lambda costs: ran.append(costs) or run(requests, costs), ShapeLimits(4)
    )
    assert choice.settled
    assert ran[0] is CANDIDATES
    assert ran[-1] == choice.costs


def test_of_choices_that_come_back_in_turn_the_one_whose_run_is_fastest_is_taken(monkeypatch):
    requests = workload(*((0.1 * i, 100, 30) for i in range(20)))
    chunk = CANDIDATES.prefill[-1:]
    few, many = (
        replace(CANDIDATES, prefill=chunk, decode=CANDIDATES.decode[at:][:1]) for at in (2, 8)
    )
    turns = itertools.cycle([few, many])
    monkeypatch.setattr(visits, "_best", lambda *_: (next(turns), 0.0))
    choice = choose_shapes(CANDIDATES, lambda costs: run(requests, costs), ShapeLimits(2))
    busy_s = {id(it): run(requests, it).passes.batch_seconds.sum() for it in (few, many)}
    assert not choice.settled
    assert choice.rounds == 3
    assert busy_s[id(many)] < busy_s[id(few)]
    assert choice.costs is many


def test_there_is_room_for_a_request_that_has_not_come():
    requests = workload((0.0, 20, 5))
    choice = choose_shapes(
        CANDIDATES, lambda costs: run(requests, costs), ShapeLimits(4), longest_tokens=500
    )
    assert choice.costs.max_model_len == 512


def test_what_cannot_be_chosen_says_why():
    requests = workload((0.0, 20, 5))
    with pytest.raises(ValueError, match=r"no choice of 2 shapes within a warmup budget of 3 s"):
        choose_shapes(CANDIDATES, lambda costs: run(requests, costs), ShapeLimits(2, 3.0))
    narrow = replace(
        CANDIDATES,
        decode=tuple(c for c in CANDIDATES.decode if c.shape.rows * c.shape.context_length <= 512),
    )
    crowd = workload(*((0.0, 20, 5) for _ in range(4)))
    with pytest.raises(ValueError, match=r"no choice of 2 shapes serves every pass: raise k"):
        choose_shapes(narrow, lambda costs: run(crowd, costs), ShapeLimits(2), longest_tokens=512)
    with pytest.raises(ValueError, match="k 1 is below 2: an engine needs"):
        ShapeLimits(1)
    with pytest.raises(ValueError, match="warmup budget -1 s is not 0 or more"):
        ShapeLimits(3, -1)
