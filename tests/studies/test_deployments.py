"""Many cards as few large or many small engines: which divisions there are, what they serve, and
which parameter of the card decides between them."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.cost.card import SpyreCost
from spyre_bench.cost.card_parameters import ENDS, SpyreCard
from spyre_bench.metrics import latency, summary
from spyre_bench.model_sizes import preset
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import Bucket
from spyre_bench.simulate.static import simulate
from spyre_bench.studies.capacity import STEP, Service
from spyre_bench.studies.deployment_intervals import intervals
from spyre_bench.studies.deployments import (
    TIE,
    Deployment,
    all_reduce_shares,
    best,
    capacities,
    divisions,
    laws,
    listed,
    possible,
    propose,
    replays,
    typical_bucket,
)
from spyre_bench.studies.sensitivity import UNTIMED, deciding, said, sensitivity, tornado, unless
from spyre_bench.studies.under_load import at_rate
from spyre_bench.workload.source import load_workload
from spyre_bench.workload.workload import Workload

GRANITE = preset("granite-3.3-8b")
LIMITS = {"ttft": 30_000.0, "tpot": 250.0}
BUCKETS = (Bucket(2, 512, 256), Bucket(2, 2048, 512))


def drawn(requests: int, seed: int = 0) -> Workload:
    rng = np.random.default_rng(seed)
    asked = load_workload("azure_conv", requests=requests, rng=rng, arrivals="poisson:1")
    return asked.scaled(lengths=0.125)


@pytest.fixture(scope="module")
def service() -> Service:
    return Service(drawn(160), LIMITS, requests_a_card=40)


@pytest.fixture(scope="module")
def given_buckets(service) -> list[Deployment]:
    return propose(GRANITE, (1, 2, 4), service, buckets=BUCKETS)


# --- which there are ------------------------------------------------------------------------------


@given(st.integers(1, 64))
def test_every_division_uses_every_card_once_and_no_engine_is_larger_than_a_cluster(cards):
    found = divisions(cards)
    assert all(tp * replicas == cards for tp, replicas in found)
    assert [tp for tp, _ in found] == [tp for tp in range(1, 9) if cards % tp == 0]


def test_eight_cards_divide_from_replicas_alone_to_one_engine():
    assert divisions(8) == ((1, 8), (2, 4), (4, 2), (8, 1))
    with pytest.raises(ValueError, match="0 cards are too few: use 1 or more"):
        divisions(0)


def test_what_does_not_split_is_listed_with_the_reason_and_has_no_figures(service):
    found = propose(preset("smollm2-135m"), (1, 2, 3), service, buckets=BUCKETS)
    assert [it.label for it in found] == [
        "1 × TP 1",
        "2 × TP 1",
        "1 × TP 2",
        "3 × TP 1",
        "1 × TP 3",
    ]
    frame = listed(found).set_index("deployment")
    assert "smollm2-135m does not split over tp=2" in frame.at["1 × TP 2", "refused"]
    assert (frame["refused"] != "").sum() == 1
    assert frame["memory_gb"].isna().sum() == 1
    one = replace(service, requests_a_card=5)
    capacity, runs = capacities(found, one), replays(found, one, 0.1)
    for figures in (capacity["capacity_rps"], runs["throughput_rps"]):
        assert (figures.isna() == (capacity["refused"] != "")).all()
    assert set(best(capacity)["deployment"]) <= {"1 × TP 1", "2 × TP 1", "3 × TP 1", "1 × TP 3"}


def test_a_model_too_large_for_one_card_is_refused_there_and_served_by_two(service):
    card = SpyreCard().fixed(usable_bytes=40e9)  # 24B in 16 bits are 47 GB
    for buckets in ((), BUCKETS):
        found = propose(
            preset("mistral-small-24b"), [2], service, card=card, buckets=buckets, batch_sizes=(1,)
        )
        alone, two = found
        assert "KV cache" in alone.refused or "fit no candidate" in alone.refused
        assert not two.refused
        assert two.sets


def test_one_bucket_that_a_card_does_not_take_refuses_the_deployment(service):
    long = Bucket(16, 16384, 512)  # 270,336 slots: beyond 131,072 on four cards and a card's cache
    one, four = (it for it in propose(GRANITE, [4], service, buckets=[long]) if it.tp != 2)
    assert "bucket 16,16384,512" in one.refused
    assert "4 cards take 131,072" in four.refused


def test_engines_of_one_size_have_the_same_buckets_however_many_there_are(service):
    found = propose(GRANITE, (4, 2, 1), service, k=2, batch_sizes=(1, 4))
    assert [it.cards for it in found] == [1, 2, 2, 4, 4, 4]
    of_size = {tp: {it.sets for it in found if it.tp == tp} for tp in (1, 2, 4)}
    assert all(len(sets) == 1 for sets in of_size.values())
    for it in found:
        assert [max(b.batch_size for b in requests) for requests in it.sets] == [1, 4]
        for requests in it.sets:
            assert 1 <= len(requests) <= 2
            fits = np.any([service.workload.fits(bucket) for bucket in requests], axis=0)
            assert fits.all(), "every request has a bucket"


def test_a_deployment_has_the_capacity_of_its_best_set(service):
    (_, two) = propose(GRANITE, [2], service, k=2, batch_sizes=(1, 2, 8))
    for end in ENDS:
        alone = [replace(two, sets=(requests,)).capacity(service, end)[0] for requests in two.sets]
        rps, best_set = two.capacity(service, end)
        assert max(alone) / STEP <= rps <= max(alone)
        assert rps == alone[two.sets.index(best_set)]


def test_costs_are_those_of_the_card_model_at_each_end(given_buckets):
    it = given_buckets[-1]
    assert it.label == "1 × TP 4"
    for end in ENDS:
        assert it.costs(end) == [tuple(SpyreCost(GRANITE, 4).at(end, b) for b in BUCKETS)]


# --- what is asked of them ------------------------------------------------------------------------


def test_a_service_that_cannot_be_is_refused():
    asked = drawn(4)
    for limits, requests, share, text in (
        ({}, 1, 0.9, "a capacity needs an SLO"),
        ({"queue": 1}, 1, 0.9, "no limit on 'queue'"),
        (LIMITS, 0, 0.9, "requests_a_card 0 is below 1"),
        (LIMITS, 1, 0.0, "share 0.0 of the requests"),
        (LIMITS, 1, 1.1, "share 1.1 of the requests"),
    ):
        with pytest.raises(ValueError, match=text):
            Service(asked, limits, requests, share=share)
    with pytest.raises(ValueError, match="has 4 requests: 8 cannot be taken"):
        Service(asked, LIMITS, 2).requests(4)


def test_more_cards_get_more_requests_that_begin_with_those_of_fewer(service):
    few, many = service.requests(1), service.requests(4)
    assert (len(few), len(many)) == (40, 160)
    np.testing.assert_array_equal(few.prompt_tokens, many.prompt_tokens[:40])


# --- capacity, where it can be known --------------------------------------------------------------

SECOND = BucketCost(Bucket(1, 64, 2), prefill_s=0.5, decode_s=0.5)  # a request a second


def every_second(limits_ms: dict, share: float = 0.9, requests: int = 10) -> Service:
    """Equal requests at equal distances, in turn to each engine."""
    ones = np.full(requests, 2, np.int32)
    asked = Workload("equal", np.arange(1.0, requests + 1), ones, ones, ones)
    return Service(asked, limits_ms, requests, router="round_robin", share=share)


def test_an_engine_of_a_request_a_second_has_that_capacity_and_two_have_twice_that():
    patient = every_second({"ttft": 600.0})
    assert patient.capacity_rps(1, [SECOND], 1) == pytest.approx(1.0)
    assert patient.capacity_rps(1, [SECOND], 2) == pytest.approx(2.0)


def test_a_limit_below_what_an_idle_engine_takes_leaves_no_capacity():
    assert every_second({"ttft": 499.0}).capacity_rps(1, [SECOND], 1) == 0
    assert every_second({"tpot": 499.0}).capacity_rps(1, [SECOND], 1) == 0


def test_requests_that_no_bucket_takes_are_never_within_the_limits():
    lengths = np.array([2] * 9 + [200], np.int32)
    requests = Workload("mixed", np.arange(1.0, 11.0), lengths, np.full(10, 2), np.full(10, 200))
    requests = replace(requests, max_tokens=np.full(10, 2, np.int32))
    tolerant = Service(requests, {"ttft": 600.0}, 10, share=0.9, router="round_robin")
    assert tolerant.capacity_rps(1, [SECOND], 1) > 0
    assert replace(tolerant, share=0.91).capacity_rps(1, [SECOND], 1) == 0
    nobody = replace(tolerant, workload=replace(requests, prompt_tokens=np.full(10, 200, np.int32)))
    assert nobody.capacity_rps(1, [SECOND], 1) == 0


def test_at_the_capacity_the_share_is_kept_and_at_the_next_rate_it_is_not(service, given_buckets):
    for it in given_buckets:
        (costs,) = it.costs()
        rps = service.capacity_rps(it.cards, costs, it.replicas)
        rates = service.rates(it.cards, costs, it.replicas).tolist()
        further = rates[rates.index(rps) + 1]
        assert rps < further <= rps * STEP * (1 + 1e-9)
        for rate, kept in ((rps, True), (further, False)):
            requests = at_rate(service.requests(it.cards), rate)
            run = simulate(requests, costs, replicas=it.replicas, router="least_loaded")
            good = latency.good_requests(run, LIMITS) / len(requests)
            assert (good >= 0.9) == kept, it.label
            assert good == service.good_share(it.cards, costs, it.replicas, rate)


def test_capacities_are_those_of_each_deployment_at_each_end(service, given_buckets):
    frame = capacities(given_buckets, service)
    assert len(frame) == 3 * len(given_buckets)
    assert (frame["tp"] * frame["replicas"] == frame["cards"]).all()
    assert (frame["capacity_rps_a_card"] * frame["cards"] == frame["capacity_rps"]).all()
    row = frame[(frame["deployment"] == "2 × TP 2") & (frame["end"] == "slow")].iloc[0]
    it = next(it for it in given_buckets if it.label == "2 × TP 2")
    assert row["capacity_rps"] == service.capacity_rps(4, it.costs("slow")[0], 2)
    assert row["buckets"] == "2,512,256 2,2048,512"
    again = capacities(given_buckets, service)
    pd.testing.assert_frame_equal(frame, again)


@given(st.floats(1e-6, 5e-3), st.floats(1.0, 20.0), st.sampled_from([2, 4]))
@settings(max_examples=15, deadline=None)
def test_a_slower_all_reduce_never_raises_the_capacity(all_reduce_s, factor, tp):
    """Exactly so where the batches do not depend on it: engines of one row, served in turn."""
    alone = Service(drawn(60), LIMITS, 15, Policy("fcfs"), "round_robin")
    bucket = Bucket(1, 2048, 512)
    cards = [SpyreCard().fixed(all_reduce_s=s) for s in (all_reduce_s, factor * all_reduce_s)]
    costs = [SpyreCost(GRANITE, tp, card=card).of(bucket) for card in cards]
    fast, slow = (alone.capacity_rps(4, [cost], 4 // tp) for cost in costs)
    assert slow <= fast * STEP


@given(st.floats(1.0, 5.0))
@settings(max_examples=10, deadline=None)
def test_a_wider_limit_never_lowers_the_capacity(factor):
    requests, costs = drawn(40), [SpyreCost(GRANITE).of(Bucket(1, 2048, 512))]
    strict = Service(requests, LIMITS, 40, Policy("fcfs"))
    wide = replace(strict, limits_ms={name: factor * ms for name, ms in LIMITS.items()})
    assert wide.capacity_rps(1, costs, 1) >= strict.capacity_rps(1, costs, 1)


def test_the_best_is_named_for_each_end_with_those_near_it():
    frame = pd.DataFrame(
        {
            "cards": 2,
            "tp": [1, 2] * 3,
            "deployment": ["2 × TP 1", "1 × TP 2"] * 3,
            "end": np.repeat(["fast", "value", "slow"], 2),
            "capacity_rps_a_card": [1.0, 1 - TIE / 2, 1.0, 2.0, 0.0, 0.0],
        }
    )
    found = best(frame)
    assert found["end"].tolist() == ["fast", "value", "slow"]
    assert found["deployment"].tolist() == ["2 × TP 1", "1 × TP 2", "none"]
    assert found["tp"].tolist() == [1, 2, 0]
    assert found["near"].tolist() == ["1 × TP 2", "", ""]


# --- at one rate ----------------------------------------------------------------------------------


def test_a_replay_is_the_simulation_done_by_hand(service, given_buckets):
    frame = replays(given_buckets, service, 0.05)
    row = frame[(frame["deployment"] == "2 × TP 2") & (frame["end"] == "fast")].iloc[0]
    costs = [SpyreCost(GRANITE, 2).at("fast", bucket) for bucket in BUCKETS]
    run = simulate(at_rate(drawn(160), 0.2), costs, replicas=2, router="least_loaded")
    found = summary.summary(run)
    assert row["rate_rps"] == pytest.approx(0.2)
    assert row["throughput_rps"] == found["throughput_rps"]
    assert row["utilisation"] == found["utilisation"]
    for name in ("ttft", "tpot"):
        for of in ("median", "p99"):
            assert row[f"{of}_{name}_s"] == pytest.approx(found[f"{of}_{name}_ms"] / 1e3)
    tokens = drawn(160).output_tokens.sum()
    assert row["output_tokens_s"] == pytest.approx(tokens / found["duration_s"])
    good = latency.good_requests(run, LIMITS) / found["duration_s"]
    assert (row["goodput_rps"], row["goodput_rps_a_card"]) == (good, good / 4)


def test_goodput_is_never_above_throughput_and_busy_never_above_all_of_the_time(
    service, given_buckets
):
    frame = replays(given_buckets, service, 1.0)
    assert (frame["goodput_rps"] <= frame["throughput_rps"]).all()
    assert frame["utilisation"].between(0, 1 + 1e-9).all()
    assert frame["saturated"].any()


# --- where the gain goes --------------------------------------------------------------------------


def test_a_typical_bucket_takes_the_median_request():
    answers = np.array([1, 7, 9])
    requests = Workload("x", np.zeros(3), np.array([10, 65, 4000]), answers, answers)
    assert typical_bucket(requests, 4) == Bucket(4, 128, 7)


def test_all_reduces_take_a_share_of_a_pass_that_grows_with_the_cards():
    bucket = Bucket(4, 1024, 128)
    frame = all_reduce_shares([SpyreCost(GRANITE, tp) for tp in (1, 2, 4, 8)], bucket)
    assert len(frame) == 8
    for _, requests in frame.groupby("pass"):
        for column in ("low_share", "value_share", "high_share"):
            shares = requests[column].tolist()
            assert shares[0] == 0, "one card has nothing to reduce"
            assert shares == sorted(shares)
        assert (requests["low_share"] <= requests["value_share"]).all()
        assert (requests["value_share"] <= requests["high_share"]).all()
    passes = SpyreCost(GRANITE, 4).passes()
    decode = frame[(frame["tp"] == 4) & (frame["pass"] == "decode")].iloc[0]
    assert decode["value_s"] == passes.decode_s(bucket)
    assert decode["value_share"] == pytest.approx(40 * 2 * 100e-6 / passes.decode_s(bucket))
    slow, fast = SpyreCost(GRANITE, 4).passes("slow"), SpyreCost(GRANITE, 4).passes("fast")
    reduced, rest = 40 * slow.reduces_s(4), fast.decode_s(bucket) - 40 * fast.reduces_s(4)
    assert decode["high_share"] == pytest.approx(reduced / (reduced + rest))


# --- what would have to be measured ---------------------------------------------------------------


def test_each_parameter_moves_alone(service, given_buckets):
    four = [it for it in given_buckets if it.cards == 4]
    moved = sensitivity(four, service)
    assert set(moved["parameter"]).isdisjoint(UNTIMED)
    assert (moved.groupby(["parameter", "end"])["deployment"].nunique() == 3).all()
    row = moved.query("parameter == 'rest_decode_s' and end == 'slow' and tp == 2").iloc[0]
    card = SpyreCard().fixed(rest_decode_s=3.6e-3)
    costs = [SpyreCost(GRANITE, 2, card=card).of(bucket) for bucket in BUCKETS]
    assert row["number"] == 3.6e-3
    assert (row["name"], row["range"]) == ("overhead per layer in decode", "0 to 3.6 ms")
    assert row["capacity_rps_a_card"] == service.capacity_rps(4, costs, 2) / 4
    base = service.capacity_rps(4, four[1].costs()[0], 2) / 4
    assert (moved.loc[moved["tp"] == 2, "base_rps_a_card"] == base).all()
    alone = moved[(moved["tp"] == 1) & moved["parameter"].isin(["all_reduce_s", "hop_s_per_byte"])]
    assert (alone["capacity_rps_a_card"] == alone["base_rps_a_card"]).all()


def test_a_parameter_that_is_known_is_not_moved(service):
    card = SpyreCard().fixed(all_reduce_s=70e-6)
    found = propose(GRANITE, [2], service, card=card, buckets=BUCKETS)
    assert "all_reduce_s" not in set(sensitivity(found, service)["parameter"])


MOVED = pd.DataFrame(
    {
        "parameter": np.repeat(["wide", "narrow", "idle"], 4),
        "name": "in words",
        "range": "1 to 3 µs",
        "unit": "s",
        "confidence": "L",
        "end": ["fast", "fast", "slow", "slow"] * 3,
        "number": np.repeat([1, 2, 3, 4, 5, 6], 2),
        "cards": 2,
        "deployment": ["2 × TP 1", "1 × TP 2"] * 6,
        "capacity_rps_a_card": [9.0, 4, 5, 8, 8, 7.9, 8, 8.1, 8, 6, 8, 6],
        "base_rps_a_card": [8.0, 6.0] * 6,
    }
)


def test_a_tornado_has_the_lead_of_the_winner_at_both_ends_the_widest_first():
    found = tornado(MOVED)
    assert set(found["winner"]) == {"2 × TP 1"}
    assert found["parameter"].tolist() == ["wide", "narrow"], "what moves nothing is left out"
    wide, narrow = found.itertuples()
    assert (wide.base_lead, wide.fast_lead, wide.slow_lead) == (2, 5, -3)
    assert (wide.fast, wide.slow) == (1, 2)
    assert (wide.fast_winner, wide.slow_winner) == ("2 × TP 1", "1 × TP 2")
    assert wide.changes
    assert not narrow.changes, "8 and 8.1 are the same to within the draws"


def test_of_one_deployment_nothing_leads_and_nothing_decides():
    found = tornado(MOVED[MOVED["deployment"] == "2 × TP 1"])
    assert found.empty
    assert set(found) == set(tornado(MOVED))
    assert deciding(found) == []


def test_what_has_to_be_measured_is_said_unless_there_is_nothing_to_decide():
    alone = MOVED[MOVED["deployment"] == "2 × TP 1"]
    assert said(alone, tornado(alone)) == "No other division can be: there is nothing to decide."
    assert unless(alone, tornado(alone)).startswith("other cards or another number of them")
    both = said(MOVED, tornado(MOVED)), unless(MOVED, tornado(MOVED))
    assert both == (
        "Moved by itself, in words (1 to 3 µs) would change the choice: that has to be measured.",
        "a measured value of in words (1 to 3 µs).",
    )
    tied = MOVED.assign(capacity_rps_a_card=8.0)
    assert said(tied, tornado(tied)) == "Moved by itself, no parameter would change the choice."


def test_a_tornado_of_two_numbers_of_cards_is_refused():
    with pytest.raises(ValueError, match="deployments of one number of cards"):
        tornado(MOVED.assign(cards=[2, 4] * 6))


def test_where_every_division_is_refused_the_reasons_are_said():
    divided = [Deployment(3, 1, refused="too long"), Deployment(3, 3, refused="32 heads")]
    ours = Deployment(1, 1)
    assert possible([*divided, ours], 1) == [ours]
    with pytest.raises(ValueError, match=r"3 cards .*: 3 × TP 1: too long; 1 × TP 3: 32 heads"):
        possible(divided, 3)


def test_a_lead_is_a_number_even_where_nothing_serves():
    dead = MOVED.assign(capacity_rps_a_card=0.0)
    assert not tornado(dead)["changes"].any()
    assert not tornado(dead).map(lambda v: isinstance(v, float) and math.isnan(v)).any().any()


# --- intervals ------------------------------------------------------------------------------------


def test_a_deployment_is_shown_from_p5_to_p95_of_what_its_card_could_be(service, given_buckets):
    frame = intervals(given_buckets, service, 0.05, replications=20)
    shown = {it.label for it in given_buckets if not it.refused}
    assert set(frame["deployment"]) == shown
    waits = frame[frame["figure"] == "median_ttft_s"]
    assert (waits["low"] < waits["point"]).all()
    assert (waits["point"] < waits["high"]).all()
    nominal = replays(given_buckets, service, 0.05).query("end == 'value'")
    both = waits.set_index("deployment")["point"], nominal.set_index("deployment")["median_ttft_s"]
    assert both[0].to_dict() == pytest.approx(both[1].to_dict())


def test_what_has_to_hold_is_said_to_fail_where_it_does():
    service = Service(drawn(40), LIMITS, requests_a_card=20)
    able = [it for it in propose(GRANITE, [1, 2], service, buckets=BUCKETS) if not it.refused]
    capacity = capacities(able, service)
    shares = all_reduce_shares([it.cost for it in able[:2]], BUCKETS[0])
    run = service.replay(1, able[0].costs()[0], 1, 0.05)

    def failing(capacity=capacity, shares=shares):
        return [name for name, holds, _ in laws(capacity, shares, run) if not holds]

    assert failing() == []
    assert failing(capacity.assign(replicas=5)) == ["engines x cards of each = cards"]
    swapped = capacity.assign(end=capacity["end"].replace({"slow": "fast", "fast": "slow"}))
    assert failing(swapped) == ["slow <= value <= fast"]
    assert failing(shares=shares.assign(high_share=0.5)) == ["one card reduces nothing"]
