import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyre_bench.choose.schemes import (
    SCHEMES,
    against_optimum,
    doublings,
    exponential,
    gap,
    one,
    optimal,
    padding_aware,
    padding_share,
    percentiles,
    powers_of_two,
    to_match,
)
from spyre_bench.workload.workload import Workload

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=25).map(np.array)


def cost(some: np.ndarray, tops, f=lambda top: top) -> float:
    return sum(f(min(top for top in tops if top >= length)) for length in some)


# --- the optimum ----------------------------------------------------------------------------------


@given(lengths, st.integers(1, 4), st.sampled_from([lambda top: top, lambda top: top * top]))
def test_the_optimum_is_that_of_trying_everything(some, k, f):
    candidates = range(4, -(-int(some.max()) // 4) * 4 + 1, 4)
    solved = optimal(some, k, step=4, cost_of=f)
    best = min(
        cost(some, tops, f)
        for size in range(1, k + 1)
        for tops in itertools.combinations(candidates, size)
        if tops[-1] >= some.max()
    )
    assert solved.cost[k - 1] == pytest.approx(best)
    assert cost(some, solved[k], f) == pytest.approx(best)
    assert len(solved[k]) <= k


@given(lengths)
def test_every_further_top_saves_no_more_than_the_one_before(some):
    """Convex in k, which is what makes the knee one place."""
    savings = -np.diff(optimal(some, 8, step=2).cost)
    assert (savings >= -1e-9).all()
    assert (np.diff(savings) <= 1e-9).all()


def test_boundaries_by_hand():
    some = np.array([3, 4, 4, 60, 100])
    solved = optimal(some, 4, step=1)
    assert [solved[k] for k in (1, 2, 3)] == [(100,), (4, 100), (4, 60, 100)]
    assert solved.cost[:3] == (500.0, 212.0, 172.0)
    assert solved[4] == (3, 4, 60, 100)


def test_a_larger_top_can_be_asked_for():
    assert optimal(np.array([10]), 2, step=64, largest=500)[2] == (64, 512)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"k": 0}, "k 0 is below 1"),
        ({"lengths": np.array([])}, "lengths are empty"),
        ({"lengths": np.array([0, 3])}, "below 1 token"),
        ({"cost_of": lambda tops: -tops}, "it must not decrease"),
    ],
)
def test_what_cannot_be_solved_is_refused(chosen, words):
    arguments = {"lengths": np.array([3, 200]), "k": 2} | chosen
    with pytest.raises(ValueError, match=words):
        optimal(arguments.pop("lengths"), arguments.pop("k"), **arguments)


# --- the other schemes ----------------------------------------------------------------------------


def test_doublings_end_with_the_last_itself():
    assert doublings(64, 320) == (64, 128, 256, 320)
    assert doublings(8, 8) == (8,)


def test_the_schemes_by_hand():
    some = np.array([10, 700, 1000])
    assert powers_of_two(some) == (64, 128, 256, 512, 1024)
    assert powers_of_two(np.array([300])) == (64, 128, 256, 320)
    # 128·8^(i/9) for i to 8: 128, 161, 203, 256, 323, 406, 512, 645, 813
    assert exponential(some) == (128, 256, 384, 512, 768, 896, 1024)
    # a quarter of 1024 is 256
    assert padding_aware(some) == (128, 256, 384, 512, 640, 768, 1024)
    assert gap(some) == (16, 32, 64, 128, 256, 512, 1024)
    # quartiles 64.75, 128.5, 192.25 and 256
    assert percentiles(np.arange(1, 257), 4) == (128, 192, 256)
    assert one(some) == (1024,)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=40).map(np.array))
def test_every_scheme_covers_every_length_and_the_optimum_is_no_worse(some):
    for name, scheme in SCHEMES.items():
        tops = scheme(some)
        assert list(tops) == sorted(set(tops))
        padding = padding_share(some, tops)
        assert 0 <= padding < 1
        if name != "gap 512":  # the only one with tops between multiples of 64
            best = optimal(some, len(tops))[len(tops)]
            assert padding_share(some, best) <= padding + 1e-12


def test_a_length_above_the_last_boundary_has_no_padding():
    with pytest.raises(ValueError, match="size 200 is above the last compiled one, 128"):
        padding_share(np.array([200]), (64, 128))


# --- the published table, on the real traces ------------------------------------------------------

PUBLISHED = {  # scheme -> k, padding, DP at the same k, DP's k to match; of each trace
    "powers of two from 64": [(9, 30.4, 11.0, 4), (8, 25.0, 15.3, 5)],
    "powers of two from 128": [(8, 30.4, 12.7, 4), (7, 25.1, 17.0, 5)],
    "exponential, step 128": [(13, 17.1, 7.9, 7), (12, 13.8, 10.2, 9)],
    "padding-aware, 25 %": [(18, 14.4, 6.1, 7), (15, 10.4, 8.3, 12)],
    "gap 512": [(33, 15.1, 3.7, 7), (20, 9.7, 6.3, 13)],
    "percentiles, 8 asked": [(7, 54.8, 14.4, 3), (8, 17.7, 15.3, 7)],
    "one shape": [(1, 91.8, 91.8, 1), (1, 72.7, 72.7, 1)],
}


@pytest.fixture(scope="module")
def prompts(shared):
    names = ("azure_conv_2023", "azure_code_2023")
    return [Workload.read(shared / f"traces/{name}.csv.gz").prompt_tokens for name in names]


@pytest.mark.parametrize("scheme", PUBLISHED)
@pytest.mark.parametrize("trace", [0, 1], ids=["conv", "code"])
def test_the_published_padding_shares_at_equal_k(prompts, scheme, trace):
    some = prompts[trace]
    tops = SCHEMES[scheme](some)
    best = optimal(some, len(tops))[len(tops)]
    found = (
        len(tops),
        round(100 * padding_share(some, tops), 1),
        round(100 * padding_share(some, best), 1),
        to_match(some, tops),
    )
    assert found == PUBLISHED[scheme][trace]


@pytest.mark.parametrize(
    ("trace", "k", "held_out", "oracle", "doubling"),
    [(0, 8, 15.3, 13.2, 31.6), (1, 8, 15.7, 15.0, 24.9), (0, 4, 32.9, None, 31.6)],
)
def test_the_published_padding_on_the_half_that_was_not_fitted(
    prompts, trace, k, held_out, oracle, doubling
):
    some = prompts[trace]
    first, second = some[: len(some) // 2], some[len(some) // 2 :]
    fitted = optimal(first, k, largest=int(some.max()))[k]
    assert round(100 * padding_share(second, fitted), 1) == held_out
    assert round(100 * padding_share(second, powers_of_two(some)), 1) == doubling
    if oracle is not None:
        assert round(100 * padding_share(second, optimal(second, k)[k]), 1) == oracle


def test_the_published_fill_of_buckets_fitted_on_the_longest_of_a_batch(prompts):
    """Prompt fill of batches of eight in order of arrival, six tops: fitted on the longest of each,
    on the lengths, and without any bucketing."""
    some = prompts[0]
    rows = some[: len(some) // 8 * 8].reshape(-1, 8)
    longest = rows.max(axis=1)

    def fill(tops) -> float:
        computed = np.sort(tops)[np.searchsorted(np.sort(tops), longest)]
        return rows.sum() / (8 * computed.sum())

    assert round(fill(optimal(longest, 6)[6]), 3) == 0.358
    assert round(fill(optimal(some, 6)[6]), 3) == 0.315
    assert round(fill(powers_of_two(some)), 3) == 0.289
    assert round(rows.sum() / (8 * longest.sum()), 3) == 0.397


# --- all of them at equal k -----------------------------------------------------------------------


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=40).map(np.array))
def test_at_equal_k_the_optimum_pads_least_and_fewer_of_its_boundaries_do_as_well(some):
    frame = against_optimum(some)
    assert frame["scheme"].tolist() == list(SCHEMES)
    assert (frame["optimal_padding"] <= frame["padding"] + 1e-12).all()
    assert (frame["to_match"] <= frame["k"]).all()
    for row in frame.itertuples():
        assert len(row.tops) == row.k
        assert all(top % 64 == 0 for top in row.tops)
        enough = padding_share(some, optimal(some, row.to_match)[row.to_match])
        assert enough <= row.padding + 1e-12


def test_held_out_lengths_do_not_move_the_boundaries_but_the_last():
    fitted, later = np.array([60, 60, 120, 500]), np.array([10, 130, 700])
    alone, both = (
        frame.set_index("scheme")
        for frame in (against_optimum(fitted), against_optimum(fitted, later))
    )
    scheme = "powers of two from 64"
    assert alone.loc[scheme, "tops"] == (64, 128, 256, 512)
    assert both.loc[scheme, "tops"] == (64, 128, 256, 512, 704)
    assert both.loc[scheme, "optimal_tops"][-1] == 704
    assert both.loc[scheme, "padding"] == alone.loc[scheme, "padding"]
    assert both.loc[scheme, "held_out_padding"] == 1 - (10 + 130 + 700) / (64 + 256 + 704)
    assert both.loc["one shape", "padding"] == 1 - 740 / (4 * 704)
    assert "held_out_padding" not in alone
