"""Intervals by replication: they hold for what they are drawn from, and nothing widens a point."""

import numpy as np
import pytest

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.cost.spread import Spread
from spyre_bench.metrics.intervals import numbers, replicate
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import Bucket
from spyre_bench.simulate.static import simulate
from spyre_bench.workload.workload import Workload

COSTS = (BucketCost(Bucket(2, 64, 8), 1.0, 0.5),)
ZERO = np.zeros((1, 2))


def some(n: int = 40) -> Workload:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 8, n)
    return Workload("some", np.sort(rng.uniform(0, 4 * n, n)), tokens + 8, tokens, tokens)


def serve(draw):
    return simulate(some(), draw.scaled(COSTS), Policy(), estimated=COSTS, pace=draw.pace)


def test_without_a_spread_every_interval_is_the_point():
    found = replicate(serve, Spread("none", ZERO, ZERO), replications=20)
    point = numbers(simulate(some(), COSTS))
    for name, (low, high) in found.said()["p5_to_p95"].items():
        assert low == pytest.approx(high) == pytest.approx(point[name]), name


def test_a_wider_spread_gives_wider_intervals_around_the_point():
    point = numbers(simulate(some(), COSTS))["median_e2el_ms"]
    widths = []
    for deviation in (0.01, 0.05, 0.2):
        found = replicate(serve, Spread("some", ZERO + deviation, ZERO + deviation))
        low, high = found["median_e2el_ms"]
        assert low < point < high
        widths.append(high - low)
    assert widths == sorted(widths)


def test_nine_of_ten_further_runs_are_within():
    spread = Spread("some", ZERO + 0.05, ZERO + 0.05, pace=0.05, batch=(0.1, 0.1))
    found = replicate(serve, spread, replications=200, seed=1)
    further = replicate(serve, spread, replications=400, seed=2).replications
    for name in ("median_e2el_ms", "p95_e2el_ms", "p99_ttft_ms"):
        low, high = found[name]
        assert 0.84 < further[name].between(low, high).mean() < 0.96, name


def test_it_says_what_it_was_drawn_from_and_the_seed_repeats_it():
    spread = Spread("somebody's log", ZERO + 0.1, ZERO)
    said = replicate(serve, spread, replications=20, seed=7).said()
    assert (said["of"], said["replications"], said["seed"]) == ("somebody's log", 20, 7)
    assert said == replicate(serve, spread, replications=20, seed=7).said()
