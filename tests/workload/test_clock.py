"""The law of the clock: when it was set changes nothing but the times themselves."""

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spyre_bench.choose.advise import advise
from spyre_bench.choose.optimize import Limits
from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.cost.source import load_cost
from spyre_bench.metrics import summary
from spyre_bench.metrics.vllm_json import bench_result
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import Bucket
from spyre_bench.simulate.static import simulate
from spyre_bench.studies import under_load
from spyre_bench.workload.source import load_workload
from spyre_bench.workload.workload import Workload

# Seconds that a float holds exactly at any of the offsets, so that equal means equal.
COSTS = (BucketCost(Bucket(2, 128, 16), 0.5, 0.25), BucketCost(Bucket(4, 64, 8), 0.25, 0.125))
OFFSETS = st.integers(0, 2**32).map(float)
YEARS = 1_700_000_000.0


@st.composite
def recordings(draw):
    """Requests at multiples of an eighth of a second, the first at any time."""
    gaps = draw(st.lists(st.integers(0, 80), min_size=2, max_size=30))
    arrival_s = np.cumsum(gaps) / 8
    lengths = st.tuples(st.integers(1, 140), st.integers(1, 16))
    prompt, output = np.array([draw(lengths) for _ in gaps]).T
    return Workload("recorded", arrival_s, prompt, output, output)


def later(requests: Workload, offset_s: float) -> Workload:
    return replace(requests, arrival_s=requests.arrival_s + offset_s)


@given(recordings(), OFFSETS)
def test_rates_spans_and_parts_do_not_look_at_the_clock(requests, offset_s):
    moved = later(requests, offset_s)
    assert moved.requests_per_s == requests.requests_per_s
    assert moved.span_s == requests.span_s
    for half, same in zip(requests.halves(), moved.halves(), strict=True):
        assert half.requests_per_s == same.requests_per_s
        assert (half.arrival_s - half.start_s == same.arrival_s - same.start_s).all()
    window, same = requests.window(0, requests.span_s + 1), moved.window(0, requests.span_s + 1)
    assert (window.arrival_s == same.arrival_s).all()
    assert moved.from_zero().arrival_s.tolist() == requests.from_zero().arrival_s.tolist()


@settings(deadline=None)
@given(
    recordings(),
    OFFSETS,
    st.sampled_from(["best_fit", "skip", "fcfs", "length_aware"]),
    st.sampled_from([{}, {"replicas": 2}, {"replicas": 2, "router": "least_loaded"}]),
    st.sampled_from([0.0, 4.5]),
)
def test_a_simulation_does_not_look_at_the_clock(requests, offset_s, policy, replicas, ready_s):
    rules = Policy(policy, max_wait_s=0.5, gather_s=0.25, max_age_s=2.0)
    traces = [
        simulate(workload, COSTS, rules, ready_s=ready_s, **replicas)
        for workload in (requests, later(requests, offset_s))
    ]
    first, second = (bench_result(run, goodput_ms={"ttft": 700}) for run in traces)
    assert {**first, "date": ""} == {**second, "date": ""}
    assert summary.summary(traces[0]) == pytest.approx(summary.summary(traces[1]), nan_ok=True)
    assert summary.saturation(traces[0]) == summary.saturation(traces[1])


@given(recordings(), OFFSETS, st.sampled_from([0.25, 0.5, 2.0]))
def test_another_rate_does_not_look_at_the_clock(requests, offset_s, rate):
    if requests.span_s == 0:
        return
    for workload in (requests, later(requests, offset_s)):
        found = under_load.at_rate(workload, rate)
        assert found.requests_per_s == pytest.approx(rate)
        since_s = (found.arrival_s - found.start_s) * rate
        expected_s = (requests.arrival_s - requests.start_s) * requests.requests_per_s
        assert since_s == pytest.approx(expected_s, abs=1e-4)


@pytest.mark.parametrize("drawn", ["poisson:2", "constant:2", "gamma:2,0.5"])
def test_a_draw_counts_its_first_gap_wherever_the_clock_stands(drawn):
    requests = load_workload(
        "azure_conv", requests=50, rng=np.random.default_rng(0), arrivals=drawn
    )
    assert requests.requests_per_s == 50 / requests.arrival_s[-1]
    assert later(requests, YEARS).requests_per_s == pytest.approx(requests.requests_per_s, rel=1e-6)
    assert requests.take(slice(10, None)).start_s == 0.0


def test_advice_does_not_look_at_the_clock():
    rng = np.random.default_rng(0)
    drawn = load_workload("azure_conv", requests=60, rng=rng).scaled(lengths=0.1)
    eighths = replace(drawn, arrival_s=np.round(drawn.arrival_s * 8) / 8, lead_in_s=0.0)
    first, second = (
        advise(requests, load_cost(extrapolate=True), Limits(2), batch_sizes=(1, 4)).contenders
        for requests in (eighths, later(eighths, YEARS))
    )
    assert first["buckets"].tolist() == second["buckets"].tolist()
    for name in ("fitted_busy_s", "held_out_busy_s", "fitted_p95_e2el_s", "held_out_p95_e2el_s"):
        assert first[name].tolist() == pytest.approx(second[name].tolist(), abs=1e-5)


def test_memory_does_not_grow_with_the_clock():
    columns = np.array([10, 10]), np.array([3, 3]), np.array([3, 3])
    run = simulate(Workload("a gap of ages", np.array([0.0, 1e15]), *columns), COSTS)
    longest = []
    count = np.bincount

    def watched(*arguments, **options):
        found = count(*arguments, **options)
        longest.append(len(found))
        return found

    with patch("numpy.bincount", watched):
        assert summary.busiest_second(run) == (3.0, 1)
    assert max(longest) < 100


def test_a_file_with_another_clock_is_the_same_workload(tmp_path):
    rows = [(0.0, 10, 3), (0.5, 20, 3), (2.25, 60, 5)]
    for unit, scale in (("s", 1), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)):
        path = tmp_path / f"{unit}.csv"
        lines = [
            f"{round((YEARS + t) * scale) if scale > 1 else YEARS + t},{p},{o}" for t, p, o in rows
        ]
        path.write_text("created,prompt_tokens,output_tokens\n" + "\n".join(lines))
        requests = Workload.read(path)
        assert requests.arrival_s == pytest.approx([0, 0.5, 2.25], abs=1e-6)
        assert f"in {unit} since 1970, counted from 2023-11-14 22:13:20 UTC" in str(requests)
