"""The published comparison of batching policies, on the real trace: 2,000 requests of Azure's
conversations, five shapes, a toy machine of T = 0.02 + 1e-4·B·P + S·(0.02 + 5e-4·B) seconds.

The publication's own figures are in the comments; docs/LOG.md says where ours differ and why.
"""

from dataclasses import replace

import numpy as np
import pytest

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import BucketSet
from spyre_bench.simulate.static import simulate
from spyre_bench.workload.workload import Workload

SHAPES = "2,14080,192 2,14080,1024 8,2752,128 8,2752,1024 16,1344,512"
REQUESTS = 2000
HEAD_FIRST = ("fcfs", "skip", "best_fit")


@pytest.fixture(scope="module")
def costs():
    # The toy machine has a decode step for every token, ours has none for the first.
    return [
        BucketCost(
            b, 0.04 + (1e-4 * b.prompt_length + 5e-4) * b.batch_size, 0.02 + 5e-4 * b.batch_size
        )
        for b in BucketSet.parse(SHAPES)
    ]


@pytest.fixture(scope="module")
def conversations(shared):
    return Workload.read(shared / "traces/azure_conv_2023.csv.gz").head(REQUESTS)


@pytest.fixture(scope="module")
def makespan_s(conversations, costs):
    """Seconds of each policy for all requests at once."""
    at_once = replace(conversations, arrival_s=np.zeros(REQUESTS))
    return {
        name: simulate(at_once, costs, Policy(name, max_age_s=1e9)).passes.batch_seconds.sum()
        for name in (*HEAD_FIRST, "length_aware")
    }


def shape_bound_s(workload: Workload, costs) -> float:
    best = np.full(len(workload), np.inf)
    for cost in costs:
        fits = workload.prompt_tokens <= cost.bucket.prompt_length
        fits &= workload.max_tokens <= cost.bucket.new_tokens
        seconds = cost.prefill_s + (workload.output_tokens - 1) * cost.decode_s
        best = np.where(fits, np.minimum(best, seconds / cost.bucket.batch_size), best)
    return float(best.sum())


def test_the_order_of_the_policies_and_their_distance_to_the_bound(
    makespan_s, conversations, costs
):
    bound_s = shape_bound_s(conversations, costs)
    ratio = {name: seconds / bound_s for name, seconds in makespan_s.items()}
    assert bound_s == pytest.approx(1602, rel=0.02)
    assert ratio["fcfs"] == pytest.approx(2.93, rel=0.06)
    assert ratio["skip"] == pytest.approx(2.20, rel=0.06)
    assert ratio["best_fit"] == pytest.approx(1.64, rel=0.03)
    # ours sorts by what the client asked for, which here is the true length: between the
    # publication's length-aware (1.20, sorted by prompt) and its oracle (1.01)
    assert 1.01 <= ratio["length_aware"] <= 1.20


def test_best_fit_saves_a_quarter_of_upstreams_rule(makespan_s):
    assert makespan_s["best_fit"] / makespan_s["skip"] == pytest.approx(2621 / 3523, rel=0.05)


@pytest.fixture(scope="module")
def under_load(conversations, costs, makespan_s):
    """End-to-end seconds of each request at a share of the strict capacity, Poisson arrivals."""

    def run(share: float, policy: Policy):
        gaps = np.random.default_rng(1).exponential(1.0, REQUESTS)
        rate = share * REQUESTS / makespan_s["fcfs"]
        requests = replace(conversations, arrival_s=np.cumsum(gaps) / rate)
        simulated = simulate(requests, costs, policy)
        return simulated.requests.finish_s - requests.arrival_s, len(
            simulated.passes.first_of_batch
        )

    return run


def test_above_the_strict_capacity_best_fit_halves_the_tail_of_upstreams_rule(under_load):
    p50, p95 = {}, {}
    for name in (*HEAD_FIRST, "length_aware"):
        latency_s, _ = under_load(1.2, Policy(name))
        p50[name], p95[name] = np.percentile(latency_s, [50, 95])
    assert p50["fcfs"] > 5 * p50["skip"]  # 317 against 37 s
    assert p50["best_fit"] < 0.75 * p50["skip"]  # 23 against 37 s
    assert p95["best_fit"] < 0.6 * p95["skip"]  # 42 against 79 s
    assert p50["best_fit"] == pytest.approx(23, rel=0.2)
    # the publication's length-aware has 99 s; with companions for an aged head it has no such tail
    assert p95["length_aware"] < 1.1 * p95["best_fit"]


@pytest.mark.parametrize(("max_wait_s", "published"), [(0, 1354), (2, 1275), (10, 1048)])
def test_a_hold_at_light_load_makes_fewer_batches(under_load, max_wait_s, published):
    _, batches = under_load(0.3, Policy(max_wait_s=max_wait_s))
    assert batches == pytest.approx(published, rel=0.02)
