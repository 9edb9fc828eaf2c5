"""Sizes in one dimension against enumeration, and the demand, budget and grid around them."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyre_bench.choose.one_dimension import Budget, Demand, optimal_grid, optimal_sizes

SIZES = st.lists(st.integers(1, 14), min_size=1, max_size=12)


def computed(demand, sizes):
    ascending = np.sort(sizes)
    return float(demand.weights @ ascending[np.searchsorted(ascending, demand.sizes)])


def by_enumeration(demand, k, step, largest, always):
    """The least that any k sizes compute, of all multiples of the step below the largest."""
    held = {*always, largest}
    others = [it for it in range(step, largest, step) if it not in held]
    sets = (
        held | set(more)
        for count in range(k - len(held) + 1)
        for more in itertools.combinations(others, count)
    )
    return min(computed(demand, list(sizes)) for sizes in sets)


@given(
    SIZES,
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 3),
    st.sets(st.integers(1, 17), max_size=2),
)
def test_no_set_of_as_many_sizes_computes_less(sizes, more, step, above, always):
    demand = Demand.of(sizes)
    largest = max(*always, demand.largest) + above if always else demand.largest + above
    k = len({*always, largest}) + more - 1
    solved = optimal_sizes(demand, k, step=step, largest=largest, always=tuple(always))
    chosen = solved[k]
    assert {*always, largest} <= set(chosen)
    assert len(chosen) <= k
    assert all(it % step == 0 for it in set(chosen) - {*always, largest})
    assert solved.cost[k - 1] == pytest.approx(computed(demand, chosen))
    assert solved.cost[k - 1] == pytest.approx(by_enumeration(demand, k, step, largest, always))


@given(SIZES, st.integers(1, 3), st.sets(st.integers(1, 14), max_size=3))
def test_each_further_size_saves_no_more_than_the_one_before(sizes, step, always):
    """Without which cutting lists down one by one would not be the best cut."""
    solved = optimal_sizes(Demand.of(sizes), 10, step=step, largest=15, always=tuple(always))
    costs = np.array([it for it in solved.cost if np.isfinite(it)])
    savings = -np.diff(costs)
    assert (savings >= -1e-9).all()
    assert (np.diff(savings) <= 1e-9).all()


def test_what_is_compiled_in_any_case_counts_and_may_be_too_much():
    demand = Demand.of([1, 3])
    solved = optimal_sizes(demand, 3, largest=4, always=(2,))
    assert solved.boundaries == ((), (2, 4), (1, 2, 4))
    with pytest.raises(ValueError, match="2 sizes are compiled in any case, and 1 are allowed"):
        optimal_sizes(demand, 1, largest=4, always=(2,))
    with pytest.raises(ValueError, match="size 3 is needed, above the largest of 2"):
        optimal_sizes(demand, 1, largest=2)


def test_a_demand_is_distinct_weighted_and_padded_to_the_next_size():
    demand = Demand.of([5, 2, 5, 1], [1, 2, 3, 0])
    assert demand.sizes.tolist() == [2, 5]
    assert demand.weights.tolist() == [2, 4]
    assert demand.padding_share([8, 4]) == pytest.approx(1 - 24 / 40)
    assert demand.beyond(4) == pytest.approx(4 / 6)
    with pytest.raises(ValueError, match="size 5 is above the last compiled one, 4"):
        demand.padding_share([4])
    for sizes, weights, says in (
        ([], None, "empty or below 1"),
        ([0], None, "empty or below 1"),
        ([1], [0], "all 0"),
        ([1, 2], [-1, 2], "below 0"),
    ):
        with pytest.raises(ValueError, match=says):
            Demand.of(sizes, weights)


def test_a_stack_that_wants_one_more_gets_it_but_at_its_limit():
    assert Demand.of([3, 7, 8, 9]).longer(1, limit=8).sizes.tolist() == [4, 8, 9]


def test_what_was_not_seen_gets_its_share_evenly():
    mixed = Demand.of([4], [10]).evenly(0.5, largest=5)
    assert mixed.sizes.tolist() == [1, 2, 3, 4, 5]
    assert mixed.weights.tolist() == pytest.approx([1, 1, 1, 6, 1])
    with pytest.raises(ValueError, match=r"1\.5 of what was not seen"):
        mixed.evenly(1.5, 5)


def test_a_budget_is_the_least_of_its_limits():
    assert Budget().affordable is None
    assert Budget(graphs=9).affordable == 9
    assert Budget(graphs=9, warmup_s=6, graph_s=2).affordable == 3
    assert Budget(warmup_s=0.3, graph_s=0.1).affordable == 3  # 0.3 / 0.1 is 2.9999999999999996
    assert (
        Budget(graphs=9, warmup_s=60, graph_s=2, memory_bytes=100, graph_bytes=26).affordable == 3
    )
    with pytest.raises(ValueError, match="seconds needs what one graph takes"):
        assert Budget(warmup_s=6).affordable
    with pytest.raises(
        ValueError, match="takes of a warmup budget in seconds is of no use without"
    ):
        assert Budget(graph_s=2).affordable
    with pytest.raises(ValueError, match="limit of memory budget in bytes allows no graph"):
        assert Budget(memory_bytes=1, graph_bytes=2).affordable


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=10),
    st.sampled_from([0.0, 0.1, 0.5]),
)
def test_neither_side_of_a_grid_can_be_bettered_alone(needs, unseen):
    first, second = np.array(needs).T
    # what was not seen: every width beside each context
    pairs = (*needs, *itertools.product(range(1, 7), second))
    weights = np.repeat([1 - unseen, unseen / 6], [len(needs), 6 * len(needs)])

    def area(widths, contexts):
        padded = (
            np.array(sizes)[np.searchsorted(sizes, needed)]
            for sizes, needed in zip((widths, contexts), np.array(pairs).T, strict=True)
        )
        return float(weights @ np.prod(list(padded), axis=0))

    widths, contexts = optimal_grid(first, second, (2, 3), largest=(6, 6), unseen=unseen)
    least = area(widths, contexts) - 1e-9
    for one in range(1, 7):
        assert area(sorted({one, 6}), contexts) >= least
        for other in range(1, 7):
            assert area(widths, sorted({one, other, 6})) >= least
