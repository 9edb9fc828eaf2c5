import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyre_bench.workload.arrivals import (
    AllAtOnce,
    Constant,
    Gamma,
    OnOff,
    Poisson,
    Replay,
    parse_arrivals,
)

rates = st.floats(0.01, 1000)
seconds = st.floats(0.01, 100)
processes = st.one_of(
    st.just(AllAtOnce()),
    st.builds(Constant, rates),
    st.builds(Poisson, rates),
    st.builds(Gamma, rates, st.floats(0.05, 20) | st.just(math.inf)),
    st.builds(OnOff, rates, seconds, seconds),
)
seeds = st.integers(0, 2**32)


def rng(seed=0):
    return np.random.default_rng(seed)


@given(processes, st.integers(1, 300), seeds)
def test_arrivals_ascend_from_zero_or_later_and_there_is_one_for_each_request(process, n, seed):
    times_s = process.times(n, rng(seed))
    assert times_s.dtype == np.float64
    assert len(times_s) == n
    assert times_s[0] >= 0
    assert np.isfinite(times_s).all()
    assert (np.diff(times_s) >= 0).all()


@given(processes, st.integers(1, 300), seeds)
def test_the_same_seed_gives_the_same_arrivals(process, n, seed):
    assert (process.times(n, rng(seed)) == process.times(n, rng(seed))).all()


def test_another_seed_gives_other_arrivals():
    assert (Poisson(1.0).times(10, rng(0)) != Poisson(1.0).times(10, rng(1))).all()


def test_all_at_once_means_zero():
    assert AllAtOnce().times(3, None).tolist() == [0, 0, 0]


def test_constant_arrivals_are_one_gap_apart_and_begin_after_one_gap():
    assert Constant(4.0).times(3, None).tolist() == [0.25, 0.5, 0.75]


@given(rates, st.floats(0.05, 20) | st.just(math.inf), st.integers(1, 300), seeds)
def test_gamma_arrivals_have_exactly_the_rate_asked_for(rate, burstiness, n, seed):
    assert Gamma(rate, burstiness).times(n, rng(seed))[-1] == n / rate


@given(rates, st.floats(0.05, 20), st.integers(1, 50), seeds)
def test_gamma_arrivals_are_those_of_vllm_step_by_step(rate, burstiness, n, seed):
    # vllm/benchmarks/serve.py, get_request: gamma(shape=burstiness, scale=1/(rate*burstiness)),
    # summed, stretched to N/rate.
    draw, clock_s, delays_s = rng(seed), 0.0, []
    for _ in range(n):
        clock_s += draw.gamma(shape=burstiness, scale=1.0 / (rate * burstiness))
        delays_s.append(clock_s)
    expected_s = [delay_s * (n / rate) / clock_s for delay_s in delays_s]
    assert Gamma(rate, burstiness).times(n, rng(seed)) == pytest.approx(expected_s, rel=1e-12)


def test_infinite_burstiness_is_constant():
    assert (Gamma(3.0, math.inf).times(9, None) == Constant(3.0).times(9, None)).all()


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_vary_as_one_over_the_root_of_burstiness(burstiness):
    gaps_s = np.diff(Gamma(2.0, burstiness).times(200_000, rng()))
    assert gaps_s.mean() == pytest.approx(0.5, rel=0.01)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(burstiness**-0.5, rel=0.02)


def test_poisson_gaps_are_exponential_and_counts_vary_as_their_mean():
    times_s = Poisson(5.0).times(200_000, rng())
    assert np.diff(times_s).mean() == pytest.approx(0.2, rel=0.01)
    assert np.diff(times_s).std() == pytest.approx(0.2, rel=0.02)
    counts = np.bincount(times_s.astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1.0, rel=0.05)


@given(rates, seconds, seconds, st.integers(1, 200), seeds)
def test_on_off_arrivals_never_fall_into_the_silence(rate, on_s, off_s, n, seed):
    phase_s = np.mod(OnOff(rate, on_s, off_s).times(n, rng(seed)), on_s + off_s)
    rounding_s = 1e-9 * n / rate + 1e-9 * (on_s + off_s)
    assert ((phase_s <= on_s + rounding_s) | (phase_s >= on_s + off_s - rounding_s)).all()


def test_on_off_is_poisson_within_the_on_phases():
    times_s = OnOff(rate=10.0, on_s=5.0, off_s=15.0).times(100_000, rng())
    assert len(times_s) / times_s[-1] == pytest.approx(2.5, rel=0.02)  # 10 · 5 / 20
    assert np.count_nonzero(times_s < 5.0) == np.count_nonzero(times_s < 20.0)


@pytest.mark.parametrize(
    ("text", "process"),
    [
        ("all", AllAtOnce()),
        ("constant:4", Constant(4.0)),
        ("poisson:2.5", Poisson(2.5)),
        (" Poisson:2.5 ", Poisson(2.5)),
        ("gamma:2.5,0.5", Gamma(2.5, 0.5)),
        ("gamma:2.5", Gamma(2.5, 1.0)),
        ("gamma:2.5,inf", Gamma(2.5, math.inf)),
        ("onoff:10,5,20", OnOff(10.0, 5.0, 20.0)),
        ("replay", Replay()),
    ],
)
def test_arrivals_read_from_text(text, process):
    assert parse_arrivals(text) == process
    assert parse_arrivals(process) is process


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("poison:2", "'poison:2' is unknown: did you mean poisson.*poisson:2.5"),
        ("", "'' is unknown: Write one of all, constant:4"),
        ("poisson", "too many numbers or too few: write, for example, poisson:2.5"),
        ("poisson:1,2", "too many numbers or too few: write, for example, poisson:2.5"),
        ("all:3", "too many numbers or too few: write, for example, all"),
        ("poisson:fast", "'poisson:fast': .*'fast'; write, for example, poisson:2.5"),
        ("gamma:2,,3", "write, for example, gamma:2.5,0.5"),
        ("poisson:0", "Poisson rate 0.0 is not a positive number"),
        ("poisson:inf", "Poisson rate inf is not a positive number"),
        ("poisson:nan", "Poisson rate nan is not a positive number"),
        ("gamma:2,-1", "Gamma burstiness -1.0 is not a positive number"),
        ("onoff:1,0,2", "OnOff on_s 0.0 is not a positive number"),
    ],
)
def test_bad_arrivals_are_refused_with_an_example(text, words):
    with pytest.raises(ValueError, match=words):
        parse_arrivals(text)


def test_replay_without_recorded_times_says_to_use_the_trace_file():
    with pytest.raises(ValueError, match="give the trace file itself"):
        Replay().times(3, rng())


@pytest.mark.parametrize("process", [Poisson(1.0), Gamma(1.0), OnOff(1.0, 1.0, 1.0)])
def test_random_arrivals_need_a_generator(process):
    with pytest.raises(ValueError, match=r"pass rng=numpy.random.default_rng"):
        process.times(3, None)
