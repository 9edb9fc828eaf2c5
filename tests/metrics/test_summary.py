"""Figures of runs small enough to work out by hand, and laws of all others."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spyre_bench.cost.bucket_cost import BucketCost, price
from spyre_bench.cost.closed_form import FittedCost
from spyre_bench.metrics import latency, summary, waste
from spyre_bench.metrics.vllm_json import bench_result
from spyre_bench.policy.ledger import WasteLedger
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import Bucket, BucketSet
from spyre_bench.simulate.result import DECODE, PREFILL, Passes, Requests, StaticRun
from spyre_bench.simulate.static import simulate
from spyre_bench.workload.workload import Workload
from tests.simulate.test_static import COSTS, LARGE, SMALL, runs, workload

# Small bucket (2 rows, 64 tokens, prefill 1 s, decode 0.5 s), large one (256, 4 s, 1 s). First a
# batch of two, then a lone long prompt, and one request that fits nothing.
HAND = workload((0.0, 10, 3), (0.0, 20, 5), (0.5, 100, 1), (1.0, 300, 1))


@pytest.fixture
def hand():
    return simulate(HAND, COSTS)


def test_latency_by_hand(hand):
    frame = summary.requests(hand)
    assert frame["queue_s"].tolist()[:3] == [0.0, 0.0, 2.5]
    assert frame["ttft_s"].tolist()[:3] == [1.0, 1.0, 6.5]
    assert frame["e2el_s"].tolist()[:3] == [2.0, 3.0, 6.5]
    assert frame["tpot_s"].tolist()[:2] == [0.5, 0.5]
    assert np.isnan(frame["tpot_s"][2]), "one token has no time between tokens"
    assert frame["rejected"].tolist() == ["", "", "", "prompt_too_long"]
    assert frame.iloc[3][["queue_s", "ttft_s", "e2el_s"]].isna().all()


def test_what_a_client_waits_beyond_the_engine_is_in_its_latencies_and_in_nothing_else(hand):
    seen = simulate(HAND, COSTS, client_overhead_s=0.25)
    before, after = latency.latencies(hand), latency.latencies(seen)
    for name in ("ttft", "e2el"):
        assert after[name].mean_ms == pytest.approx(before[name].mean_ms + 250)
    for name in ("queue", "tpot", "itl"):
        assert after[name] == before[name]
    frame = summary.requests(seen)
    assert frame["ttft_s"].tolist()[:3] == [1.25, 1.25, 6.75]
    assert summary.duration_s(seen) == summary.duration_s(hand)
    assert latency.good_requests(seen, {"e2el": 2200}) == 0
    assert latency.good_requests(hand, {"e2el": 2200}) == 1


def test_batches_and_their_waste_by_hand(hand):
    frame = waste.batches(hand)
    assert frame["bucket"].tolist() == [str(SMALL), str(LARGE)]
    assert frame["seconds"].tolist() == [3.0, 4.0]
    assert frame["rows"].tolist() == [2, 1]
    first = WasteLedger(useful=38, prompt_pad=10, bucket_pad=88, decode_tail=2)
    second = WasteLedger(useful=101, batch_pad=257, bucket_pad=156)
    assert [dict(row[list(waste.LEDGER)]) for _, row in frame.iterrows()] == [
        asdict(first),
        asdict(second),
    ]
    assert frame["computed"].tolist() == [2 * 64 + 2 * 5, 2 * 256 + 2 * 1]
    assert waste.ledger(hand) == first + second


def test_by_bucket_sums_the_batches_of_each(hand):
    frame = waste.by_bucket(waste.batches(hand)).set_index("bucket")
    assert frame.loc[str(SMALL), ["batches", "rows", "useful"]].tolist() == [1, 2, 38]
    assert frame.loc[str(LARGE), "fill"] == 101 / 514


def test_the_run_as_a_whole_by_hand(hand):
    assert summary.duration_s(hand) == 7.0
    assert summary.busy_s(hand) == 7.0
    assert summary.utilisation(hand) == 1.0
    # shares: (1 + 2·0.5)/2, (1 + 4·0.5)/2, 4/2
    assert summary.distance_to_shape_bound(hand) == 7.0 / (1.0 + 1.5 + 2.0)


def test_the_json_of_a_run_by_hand(hand):
    found = bench_result(hand, goodput_ms={"ttft": 1000, "e2el": 2500}, percentiles=(99,))
    expected = {
        "num_prompts": 4,
        "request_rate": 4.0,
        "max_concurrency": None,
        "burstiness": None,
        "duration": 7.0,
        "completed": 3,
        "failed": 1,
        "total_input_tokens": 130,
        "total_output_tokens": 9,
        "request_throughput": 3 / 7,
        "request_goodput": 1 / 7,
        "output_throughput": 9 / 7,
        "total_token_throughput": 139 / 7,
        "mean_ttft_ms": 8500 / 3,
        "median_ttft_ms": 1000.0,
        "mean_tpot_ms": 500.0,
        "std_tpot_ms": 0.0,
        "p99_tpot_ms": 500.0,
        "mean_itl_ms": 500.0,
        "median_e2el_ms": 3000.0,
        "median_spyre_queue_ms": 0.0,
        # at 1.0 two first tokens and at 1.5 two more; three requests in second 0 to 2
        "max_output_tokens_per_s": 4.0,
        "max_concurrent_requests": 3,
        "spyre_batches": 2,
        "spyre_fill": 139 / (138 + 514),
        "spyre_rejected": {
            "prompt_too_long": 1,
            "max_tokens_too_large": 0,
            "no_bucket_takes_both": 0,
        },
        "spyre_shape_hits": {"2,64,8": 1, "2,256,8": 1},
        "spyre_utilisation": 1.0,
        "spyre_saturated": True,
        "spyre_extrapolated": [],
    }
    for name, value in expected.items():
        assert found[name] == (pytest.approx(value) if type(value) is float else value), name
    assert found["spyre_waste"] == {
        "useful": 139,
        "batch_pad": 257,
        "prompt_pad": 10,
        "bucket_pad": 244,
        "decode_tail": 2,
        "cap": 0,
        "computed": 652,
    }
    json.dumps(found, allow_nan=False)


def test_arrays_come_with_detailed_only_and_in_seconds(hand):
    arrays = {"input_lens", "output_lens", "ttfts", "itls", "start_times", "errors", "latencies"}
    assert not arrays & set(bench_result(hand))
    found = bench_result(hand, detailed=True)
    assert found["itls"] == [[0.5] * 2, [0.5] * 4, [], []]
    assert found["output_lens"] == [3, 5, 1, 0]
    assert found["ttfts"] == [1.0, 1.0, 6.5, 0.0]
    assert found["errors"] == ["", "", "", "prompt_too_long"]
    json.dumps(found, allow_nan=False)


def test_requests_at_once_have_an_infinite_rate_which_json_has_no_number_for():
    found = bench_result(simulate(workload((0.0, 10, 1), (0.0, 10, 1)), COSTS))
    assert found["request_rate"] == "inf"


def test_a_run_that_serves_nothing_still_has_figures():
    found = bench_result(simulate(workload((0.0, 999, 1)), COSTS), goodput_ms={"ttft": 1})
    assert (found["completed"], found["failed"], found["duration"]) == (0, 1, 0.0)
    assert found["request_goodput"] == 0.0
    json.dumps(found, allow_nan=False)


def test_a_limit_on_something_else_is_refused(hand):
    with pytest.raises(ValueError, match="goodput has no limit on 'itl': use ttft, tpot or e2el"):
        latency.good_requests(hand, {"itl": 5})


# --- saturation -----------------------------------------------------------------------------------


def test_a_run_in_which_nobody_waits_is_not_saturated_by_its_last_request():
    ones = np.ones(2, int)
    prompts = 64 * ones
    one_row = price(BucketSet.parse("1,64,8"), FittedCost((6.0, 0.0), (0.1, 0.0, 0.0), (1.0, 0.0)))
    load = Workload("two", np.array([0.0, 10.0]), prompts, ones, ones)
    assert summary.saturation(simulate(load, one_row)) == ""


def steady(gap_s: float, requests: int = 60):
    return workload(*((index * gap_s, 10, 1) for index in range(requests)))


def test_a_served_load_is_not_saturated():
    assert summary.saturation(simulate(steady(1.5), COSTS[:1])) == ""


def test_more_work_than_time_is_saturated_for_certain():
    # two of them share a second of prefill, and they come three a second
    reason = summary.saturation(simulate(steady(1 / 3), COSTS[:1]))
    assert reason.startswith(
        "the requests came in 20 s and are at least 30 s of work for 1 replica"
    )


def test_a_queue_that_grows_is_saturated_although_the_bound_would_allow_it():
    # answers of 2 and 40 tokens share batches, so a batch of two takes as long as the longer
    costs = (BucketCost(Bucket(2, 64, 64), 1.0, 0.1),)
    rows = [(index * 2.0, 10, 40 if index % 2 else 2) for index in range(200)]
    run = simulate(workload(*rows), costs)
    span_s = rows[-1][0]
    assert summary.busy_s(run) / summary.distance_to_shape_bound(run) < span_s
    assert summary.saturation(run).startswith("the queue grew: the second half of the requests")


def test_requests_at_once_measure_the_backlog():
    run = simulate(workload((0.0, 10, 1), (0.0, 10, 1)), COSTS)
    assert summary.saturation(run).startswith("all requests came at once")


# --- another scheduler ----------------------------------------------------------------------------


@pytest.fixture
def continuous() -> StaticRun:
    """Two requests in a continuous batch: the second is prefilled in two chunks while the first
    waits for its next token, then both decode, then the first alone."""
    drawn = workload((0.0, 10, 5), (1.25, 100, 2))
    rows_of = zip(
        # kind, batch, start_s, seconds, count, slots, useful, rows
        (PREFILL, 0, 0.0, 1.0, 1, 65, 11, 1),
        (DECODE, 0, 1.0, 0.5, 2, 2, 2, 1),
        (PREFILL, 1, 2.0, 1.0, 1, 65, 64, 1),
        (PREFILL, 1, 3.0, 1.0, 1, 65, 37, 1),
        (DECODE, 1, 4.0, 0.5, 1, 2, 2, 2),
        (DECODE, 1, 4.5, 0.5, 1, 2, 1, 1),
        strict=True,
    )
    kind, batch, start_s, seconds, count, slots, useful, rows = map(np.array, rows_of)
    passes = Passes(
        kind=kind,
        shape=np.zeros(6, int),
        batch=batch,
        replica=np.zeros(6, int),
        start_s=start_s,
        seconds=seconds,
        count=count,
        slots=slots,
        useful=useful,
        rows=rows,
        members=np.array([0, 0, 1, 1, 0, 1, 0]),
        tokens=np.array([1, 2, 0, 1, 1, 1, 1]),
        waited_s=np.array([0.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0]),
    )
    requests = Requests(
        batch=np.array([0, 1]),
        replica=np.zeros(2, int),
        start_s=np.array([0.0, 2.0]),
        first_token_s=np.array([1.0, 4.0]),
        finish_s=np.array([5.0, 4.5]),
        tpot_s=np.array([1.0, 0.5]),
        rejected=np.zeros(2, int),
    )
    return StaticRun(drawn, 1, 0.0, 0.0, requests, passes, Policy(), COSTS[:1])


def test_a_token_that_waits_for_the_prefill_of_others_comes_after_a_longer_gap(continuous):
    assert bench_result(continuous, detailed=True)["itls"] == [[0.5, 0.5, 2.5, 0.5], [0.5]]
    statistics = latency.latencies(continuous, (100,))
    assert statistics["itl"].mean_ms == pytest.approx(900)
    assert statistics["itl"].percentiles_ms == {100: 2500}
    assert statistics["tpot"].mean_ms == pytest.approx(750)
    assert statistics["queue"].mean_ms == pytest.approx(375)


def test_a_run_whose_requests_join_and_leave_has_all_figures(continuous):
    assert summary.busy_s(continuous) == summary.duration_s(continuous) == 5.0
    # at 4.0 the first token of the second request, at 4.5 one of each
    assert summary.busiest_second(continuous) == (3.0, 2)
    assert "span: 5 s" in repr(continuous)
    assert "fill: 58%" in repr(continuous)
    assert waste.batches(continuous)["passes"].tolist() == [3, 4]


# --- laws -----------------------------------------------------------------------------------------


@given(runs())
def test_useful_and_wastes_are_computed_to_the_token(run):
    requests, costs, policy, replicas = run
    simulated = simulate(requests, costs, policy, **replicas)
    frame = waste.batches(simulated)
    for index, row in frame.iterrows():
        members = np.flatnonzero(simulated.requests.batch == index)
        alone = WasteLedger.of_batch(
            Bucket.parse(row["bucket"]),
            requests.prompt_tokens[members].tolist(),
            requests.output_tokens[members].tolist(),
        )
        assert dict(row[list(waste.LEDGER)]) == asdict(alone)
        assert row["computed"] == alone.computed
        assert row["fill"] == alone.fill
    whole = waste.ledger(simulated)
    served = simulated.served
    assert whole.useful == int((requests.prompt_tokens + requests.output_tokens)[served].sum())
    assert whole.computed == frame["computed"].sum()


@settings(deadline=None)
@given(runs(), st.lists(st.floats(0, 100), max_size=3))
def test_gaps_between_tokens_have_the_statistics_of_all_of_them_spelled_out(run, percentiles):
    requests, costs, policy, replicas = run
    simulated = simulate(requests, costs, policy, **replicas)
    gaps = np.repeat(
        simulated.requests.tpot_s[simulated.served], requests.output_tokens[simulated.served] - 1
    )
    found = latency.latencies(simulated, percentiles)["itl"]
    if len(gaps):
        assert found.mean_ms == pytest.approx(1e3 * gaps.mean())
        assert found.std_ms == pytest.approx(1e3 * gaps.std(), abs=1e-6)
        assert found.median_ms == pytest.approx(1e3 * np.median(gaps))
        for percentile, value in found.percentiles_ms.items():
            assert value == pytest.approx(1e3 * np.percentile(gaps, percentile))
    else:
        assert found.mean_ms == 0.0


@settings(deadline=None)
@given(runs())
def test_the_busiest_second_is_that_of_counting_every_token(run):
    requests, costs, policy, replicas = run
    simulated = simulate(requests, costs, policy, **replicas)
    served = np.flatnonzero(simulated.served)
    if not len(served):
        assert summary.busiest_second(simulated) == (0.0, 0)
        return
    start_s = requests.arrival_s[served[0]]
    tokens, inside = np.zeros(10_000), np.zeros(10_000)
    gap_s = np.nan_to_num(simulated.requests.tpot_s)
    for row in served:
        steps = np.arange(requests.output_tokens[row])
        at_s = simulated.requests.first_token_s[row] - start_s + steps * gap_s[row]
        np.add.at(tokens, at_s.astype(int), 1)
        first = int(requests.arrival_s[row] - start_s)
        inside[first : int(simulated.requests.finish_s[row] - start_s) + 1] += 1
    found_tokens, found_requests = summary.busiest_second(simulated)
    assert found_requests == inside.max()
    # a token on the very edge of a second may be counted on either side
    assert abs(found_tokens - tokens.max()) <= 4 * simulated.replicas


def test_many_batches_are_counted_in_blocks_as_in_one_go(monkeypatch):
    requests = workload(*((index * 0.1, 10, 1 + index % 8) for index in range(300)))
    run = simulate(requests, COSTS)
    whole = summary.busiest_second(run)
    monkeypatch.setattr(summary, "PASSES_AT_ONCE", 7)
    assert summary.busiest_second(run) == whole


@given(runs())
def test_shares_lie_between_zero_and_one_and_nothing_beats_the_bound(run):
    requests, costs, policy, replicas = run
    simulated = simulate(requests, costs, policy, **replicas)
    if simulated.served.any():
        assert 0 < waste.ledger(simulated).fill <= 1
        assert 0 < summary.utilisation(simulated) <= 1 + 1e-9
        assert summary.distance_to_shape_bound(simulated) >= 1 - 1e-9


def test_the_summary_of_a_run_says_what_each_figure_says(hand):
    found = summary.summary(hand)
    assert (found["served"], found["rejected"], found["batches"]) == (3, 1, 2)
    # two batches of 3 and 4 s, the first at 0, the second right after it
    assert (found["duration_s"], found["busy_s"], found["utilisation"]) == (7.0, 7.0, 1.0)
    assert found["throughput_rps"] == 3 / 7
    assert found["fill"] == waste.ledger(hand).fill
    assert {name: found[f"{name}_tokens"] for name in waste.LEDGER} == asdict(waste.ledger(hand))
    assert found["median_e2el_ms"] == 3000.0
    assert found["mean_ttft_ms"] == pytest.approx((1.0 + 1.0 + 6.5) / 3 * 1e3)
    assert found["p99_queue_ms"] == latency.latencies(hand, (99,))["queue"].percentiles_ms[99]


def test_the_summary_of_a_run_that_served_nothing_has_no_throughput():
    found = summary.summary(simulate(workload((0.0, 300, 1)), COSTS))
    assert (found["served"], found["busy_s"], found["fill"]) == (0, 0.0, 0.0)
    assert np.isnan(found["throughput_rps"])
