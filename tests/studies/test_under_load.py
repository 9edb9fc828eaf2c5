"""Policies under load and sets of buckets, by hand where that is short, by their laws elsewhere."""

import math

import numpy as np
import pandas as pd
import pytest

from spyre_bench.cost.bucket_cost import BucketCost, CostModel, price
from spyre_bench.cost.closed_form import FittedCost
from spyre_bench.cost.spread import Spread
from spyre_bench.metrics import latency, waste
from spyre_bench.policy.static import POLICIES, Policy
from spyre_bench.shapes import Bucket, BucketSet
from spyre_bench.simulate.static import simulate
from spyre_bench.studies import under_load
from spyre_bench.workload.source import named_workload
from spyre_bench.workload.workload import Workload
from tests.simulate.test_static import COSTS, LARGE, SMALL, workload

# prefill 0.02 + 1e-4·B·P, decode 0.02 + 5e-4·B: a small batch wastes the pass over the weights
TOY = FittedCost((0.02, 1e-4), (0.02, 5e-4, 0.0), (10.0, 0.0), (0.0, 1.0, 0.0))
TWO = BucketSet.parse("8,256,32 2,1024,64")


@pytest.fixture(scope="module")
def requests() -> Workload:
    """300 requests, of which the longest fit the larger of the two buckets."""
    drawn = named_workload("azure_conv", 300, np.random.default_rng(0), "poisson:1")
    return under_load.fitting(drawn.scaled(lengths=0.15), price(TWO, TOY))


@pytest.fixture(scope="module")
def frame(requests) -> pd.DataFrame:
    costs = price(TWO, TOY)
    capacity = under_load.capacity_rps(requests, costs)
    return under_load.under_load(
        requests, costs, [Policy(name) for name in POLICIES], (0.2, 3), capacity
    )


def test_what_fits_no_bucket_is_left_out_and_the_others_stay_as_they_are():
    kept = under_load.fitting(workload((0.0, 10, 3), (1.0, 300, 3), (2.0, 20, 9)), COSTS)
    assert kept.frame().to_dict("records") == workload((0.0, 10, 3)).frame().to_dict("records")


def test_buckets_that_take_nothing_are_refused_with_one_that_would():
    with pytest.raises(ValueError, match=r"add a bucket such as \[1, 320, 9\]"):
        under_load.fitting(workload((0.0, 300, 3), (0.0, 10, 9)), COSTS)


def test_the_capacity_is_that_of_an_engine_which_is_never_short_of_company():
    # two in one batch of 1 + 4·0.5 s, although the second comes much later
    assert under_load.capacity_rps(workload((0.0, 10, 5), (99.0, 10, 5)), COSTS) == 2 / 3
    with pytest.raises(ValueError, match="no bucket fits prompt_tokens=9999"):
        under_load.capacity_rps(workload((0.0, 9_999, 5)), COSTS)


def test_another_rate_keeps_the_pattern_of_the_arrivals():
    requests = workload((1.0, 10, 3), (2.0, 20, 3), (6.0, 30, 3))
    faster = under_load.at_rate(requests, 2.0)
    assert faster.requests_per_s == pytest.approx(2.0)
    assert faster.arrival_s.tolist() == pytest.approx([0.3, 0.6, 1.8])  # three in 1.5 s
    assert faster.prompt_tokens.tolist() == [10, 20, 30]


def test_loads_are_named_and_each_has_arrivals_of_its_own():
    requests = workload(*((0.0, 10 + place, 3) for place in range(50)))
    sent = under_load.at_loads(requests, (0.5, 1.0), 4.0, np.random.default_rng(0))
    assert list(sent) == ["load 0.5", "load 1"]
    half, full = sent.values()
    assert (half.requests_per_s, full.requests_per_s) == (pytest.approx(2), pytest.approx(4))
    assert half.prompt_tokens.tolist() == full.prompt_tokens.tolist()
    assert (half.arrival_s / 2 != full.arrival_s).any()


def test_a_crowd_that_comes_at_once_has_no_pattern_to_stretch():
    with pytest.raises(ValueError, match=r"all at once.*poisson:1"):
        under_load.at_rate(workload((0.0, 10, 3)), 2.0)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.inf, math.nan])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match="is not a positive number"):
        under_load.at_rate(workload((1.0, 10, 3)), rate)


def test_every_policy_runs_at_every_load_on_the_same_requests(requests, frame):
    assert list(zip(frame["policy"], frame["load"], strict=True)) == [
        (name, load) for name in POLICIES for load in (0.2, 3)
    ]
    assert (frame["served"] == len(requests)).all()
    assert frame["rate_rps"].tolist() == [frame["rate_rps"][0], 15 * frame["rate_rps"][0]] * 4
    tokens = requests.prompt_tokens.sum() + requests.output_tokens.sum()
    assert (frame["useful_tokens"] == tokens).all()


def test_a_row_says_what_a_run_of_its_own_says(requests, frame):
    costs = price(TWO, TOY)
    row = frame[(frame["policy"] == "skip") & (frame["load"] == 0.2)].iloc[0]
    run = simulate(under_load.at_rate(requests, row["rate_rps"]), costs, Policy("skip"))
    statistics = latency.latencies(run, (95,))
    assert row["fill"] == waste.ledger(run).fill
    assert row["median_ttft_s"] == statistics["ttft"].median_ms / 1e3
    assert row["p95_e2el_s"] == statistics["e2el"].percentiles_ms[95] / 1e3
    assert row["rows"] == len(requests) / row["batches"]


@pytest.mark.parametrize("load", [0.0, -0.5, math.inf, math.nan])
def test_a_load_that_is_none_is_refused_before_anything_runs(requests, load):
    with pytest.raises(ValueError, match="is not a positive share of the capacity"):
        under_load.under_load(requests, price(TWO, TOY), [Policy()], [0.5, load], 1.0)


def test_all_that_was_computed_is_in_the_ledger(frame):
    tokens = frame[[f"{part}_tokens" for part in waste.LEDGER]].sum(axis=1)
    assert (tokens == frame["slots"]).all()
    shares = frame[[f"{part}_share" for part in waste.LEDGER]].sum(axis=1)
    np.testing.assert_allclose(shares, 1)
    np.testing.assert_allclose(frame["useful_share"], frame["fill"])


def test_the_slots_are_counted_by_hand():
    # both in one batch of five passes, 2 rows; then a lone one in the large bucket, one pass
    requests = workload((0.0, 10, 3), (0.0, 20, 5), (9.0, 100, 1))
    frame = under_load.under_load(requests, COSTS, [Policy()], [0.5], 0.6)
    assert frame["slots"][0] == 2 * (64 + 5) + 2 * (256 + 1)


def test_three_times_the_capacity_is_saturated_and_a_fifth_of_it_is_not(frame):
    assert frame.set_index(["policy", "load"])["saturated"].to_dict() == {
        (name, load): load == 3 for name in POLICIES for load in (0.2, 3)
    }
    assert under_load.steady_load(frame) == 0.2


@pytest.mark.parametrize(
    ("saturated", "steady"),
    [
        ([False, False, False], 0.9),
        ([False, True, True], 0.1),
        ([False, True, False], 0.1),  # what is steady beyond a saturated load does not count
        ([True, True, True], 0.1),  # nothing is: the lowest there is
    ],
)
def test_the_steady_load_is_the_highest_below_any_saturation(saturated, steady):
    frame = pd.DataFrame({"load": [0.9, 0.5, 0.1], "saturated": saturated[::-1]})
    assert under_load.steady_load(frame) == steady


def test_a_hold_timer_saves_batches_at_a_light_load(requests):
    costs = price(TWO, TOY)
    capacity = under_load.capacity_rps(requests, costs)
    timers = [Policy(max_wait_s=wait_s) for wait_s in (0.0, 30.0)]
    now, held = under_load.under_load(requests, costs, timers, [0.1], capacity).to_dict("records")
    assert (now["max_wait_s"], held["max_wait_s"]) == (0.0, 30.0)
    assert held["batches"] < 0.5 * now["batches"]
    assert held["utilisation"] < now["utilisation"]
    assert held["median_ttft_s"] > now["median_ttft_s"]


def test_the_largest_waste_is_named_for_each_load():
    parts = [part for part in waste.LEDGER if part != "useful"]
    frame = pd.DataFrame([{f"{part}_share": 0.1 for part in parts}] * 3)
    frame = frame.assign(load=[0.1, 0.1, 0.9], useful_share=0.5)
    frame["batch_pad_share"] = [0.2, 0.3, 0.0]
    frame["prompt_pad_share"] = [0.4, 0.0, 0.0]  # the largest of one policy, not of both
    frame["decode_tail_share"] = [0.1, 0.1, 0.2]
    assert under_load.largest_waste(frame).to_dict() == {0.1: "batch pad", 0.9: "decode tail"}


def test_bars_are_grouped_by_load_with_the_policies_in_their_order(frame):
    shown = under_load.bars(frame, [3, 0.2])
    assert shown["group"].tolist() == ["load 0.2"] * 4 + ["load 3"] * 4
    assert shown["label"].tolist() == [*POLICIES] * 2
    assert under_load.bars(frame, [3])["load"].unique() == [3]


def test_the_shares_of_the_buckets_make_up_the_run():
    run = simulate(workload((0.0, 10, 3), (0.0, 20, 5), (9.0, 100, 1)), COSTS)
    found = under_load.waste_by_bucket(run).set_index("bucket")
    slots = 2 * (64 + 5) + 2 * (256 + 1)
    assert found.loc[str(SMALL), "useful_share"] == 38 / slots
    assert found.loc[str(LARGE), "batch_pad_share"] == 257 / slots
    assert found[[f"{part}_share" for part in waste.LEDGER]].to_numpy().sum() == pytest.approx(1)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_every_set_of_another_stack_takes_all_requests_with_few_enough_buckets(requests, k):
    longest = (int(requests.prompt_tokens.max()), int(requests.max_tokens.max()))
    for name, buckets in under_load.bucket_sets(requests, (1, 2, 4, 8), k).items():
        assert len(buckets) <= k, name
        assert BucketSet(buckets).fitting(*longest), name


def test_on_the_diagonal_a_longer_prompt_means_a_smaller_batch(requests):
    diagonal = under_load.bucket_sets(requests, (8, 1, 2, 4), 5)["powers of two, diagonal"]
    lengths = [bucket.prompt_length for bucket in diagonal]
    sizes = [bucket.batch_size for bucket in diagonal]
    assert lengths == sorted(set(lengths))
    assert sizes == [8, 4, 2, 1, 1][: len(sizes)]


def test_no_bucket_of_a_set_is_below_where_the_table_begins(requests):
    short = workload((0.0, 10, 3), (0.0, 400, 3))
    for name, buckets in under_load.bucket_sets(short, (1, 4), 5, smallest=(128, 32)).items():
        assert min(bucket.prompt_length for bucket in buckets) >= 128, name
        assert {bucket.new_tokens for bucket in buckets} == {32}, name


def test_equal_sets_appear_once(requests):
    assert list(under_load.bucket_sets(requests, [4], 3)) == [
        "powers of two, B 4",
        "percentiles, B 4",
        "one shape, B 4",
    ]
    assert len(under_load.bucket_sets(requests, [4], 1)) == 1


@pytest.fixture(scope="module")
def contest(requests):
    return under_load.over_bucket_sets(requests, TOY, TWO, (1, 2, 4, 8))


def test_the_proved_choice_is_no_worse_than_any_set(contest):
    sets, choice = contest
    assert sets["kind"].tolist()[:2] == ["given", "optimum"]
    assert (sets["graphs"] <= len(TWO)).all()
    assert choice.objective_s <= sets["shape_bound_s"].min() * (1 + 1e-3)
    assert (sets["busy_s"] >= choice.bound_s).all()
    assert (sets["busy_s"] >= sets["shape_bound_s"] * (1 - 1e-9)).all()


def test_all_at_once_the_engine_never_idles(requests, contest):
    sets, _ = contest
    np.testing.assert_allclose(sets["busy_s"], sets["duration_s"])
    assert (sets["served"] == len(requests)).all()


def test_batches_of_one_row_are_fuller_and_slower(contest):
    """Where a pass costs much and a row little, as on a card; the notebook's point."""
    sets = contest[0].set_index("set")
    one, eight = sets.loc["powers of two, B 1"], sets.loc["powers of two, B 8"]
    assert one["fill"] > eight["fill"]
    assert one["busy_s"] > eight["busy_s"]


class Narrow(CostModel):
    """Has no figure for long prompts in batches of four."""

    def of(self, bucket: Bucket) -> BucketCost:
        if bucket.batch_size == 4 and bucket.prompt_length > 256:
            raise ValueError("bucket is outside of the cost table")
        return TOY.of(bucket)


def test_a_set_beyond_the_cost_model_is_left_out(requests):
    sets, _ = under_load.over_bucket_sets(requests, Narrow(), TWO, (1, 2, 4))
    names = set(sets["set"])
    assert {"these buckets", "powers of two, B 1", "one shape, B 1"} <= names
    assert not names & {"powers of two, B 4", "one shape, B 4"}


def test_given_buckets_beyond_the_cost_model_are_refused(requests):
    with pytest.raises(ValueError, match="outside of the cost table"):
        under_load.over_bucket_sets(requests, Narrow(), BucketSet.parse("4,1024,64"), (1, 2, 4))


def test_disagreements_are_counted_over_pairs_without_ties():
    # fuller and slower: the first against the second; the third ties with the first in fill
    assert under_load.disagreements([0.5, 0.4, 0.5], [9.0, 3.0, 2.0]) == (1, 2)
    assert under_load.disagreements([0.1, 0.2, 0.3], [3.0, 2.0, 1.0]) == (0, 3)


# --- intervals ------------------------------------------------------------------------------------


class Uncertain(CostModel):
    def spread(self, costs):
        own = np.full((len(costs), 2), 0.05)
        return Spread("made up", own, own)


def test_bands_are_around_the_run_and_wider_near_saturation(requests):
    costs = price(TWO, TOY)
    loads = [0.2, 0.9]
    capacity = under_load.capacity_rps(requests, costs, Policy())
    shade = under_load.bands(requests, Uncertain(), costs, Policy(), loads, capacity)
    points = under_load.under_load(requests, costs, [Policy()], loads, capacity)
    for name in under_load.LATENCIES:
        assert (shade[f"low_{name}"] < points[name]).all(), name
        assert (points[name] < shade[f"high_{name}"]).all(), name
    width = shade["high_median_e2el_s"] / shade["low_median_e2el_s"]
    assert width[1] > width[0]


def test_costs_without_a_spread_have_no_band(requests):
    assert under_load.bands(requests, TOY, COSTS, Policy(), [0.5], 1.0).empty
