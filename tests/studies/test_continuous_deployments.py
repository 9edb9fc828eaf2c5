"""Divisions of some cards under continuous batching."""

from dataclasses import replace

import numpy as np
import pytest

from spyre_bench.cost.card import SpyreCost
from spyre_bench.metrics import latency
from spyre_bench.model_sizes import preset
from spyre_bench.policy.continuous import RULES
from spyre_bench.shapes import Bucket
from spyre_bench.simulate.continuous import simulate
from spyre_bench.studies.capacity import STEP, Service
from spyre_bench.studies.continuous_deployments import capacities, capacity_rps, symbolic
from spyre_bench.studies.deployments import Deployment, propose
from spyre_bench.studies.sensitivity import sensitivity
from spyre_bench.studies.under_load import at_rate
from tests.studies.test_deployments import BUCKETS, LIMITS, drawn

GRANITE = preset("granite-3.3-8b")


@pytest.fixture(scope="module")
def service():
    return Service(drawn(80), LIMITS, requests_a_card=20)


@pytest.fixture(scope="module")
def divided(service):
    return propose(GRANITE, [1, 3, 4], service, buckets=BUCKETS)


@pytest.fixture(scope="module")
def capacity(service, divided):
    return capacities(divided, service)


def test_every_division_and_end_has_a_capacity_or_the_reason_why_not(capacity, divided):
    assert len(capacity) == 3 * len(divided)
    refused = capacity["refused"] != ""
    assert set(capacity.loc[refused, "tp"]) == {3}  # heads do not divide
    assert capacity.loc[refused, "capacity_rps"].isna().all()
    per_card = capacity["capacity_rps"] / capacity["cards"]
    assert capacity["capacity_rps_a_card"].equals(per_card)
    ends = capacity[~refused].pivot(index=["cards", "tp"], columns="end", values="capacity_rps")
    assert (ends["slow"] <= ends["value"]).all()
    assert (ends["value"] <= ends["fast"]).all()


def test_at_its_capacity_enough_requests_are_within_the_limits_and_a_step_above_not(
    service, divided
):
    one = next(it for it in divided if it.label == "2 × TP 2")
    costs = symbolic(one.cost, service)
    rps, requests = capacity_rps(one, costs, service), service.requests(one.cards)
    rules = replace(RULES, max_batch_context_tokens=one.cost.batch_tokens)

    def share(rate_rps: float) -> float:
        arriving = at_rate(requests, rate_rps)
        run = simulate(arriving, costs, rules, replicas=one.replicas, router=service.router)
        return latency.good_requests(run, LIMITS) / len(requests)

    assert share(rps) >= service.share > share(rps * STEP)


def test_an_engine_has_blocks_for_all_rows_or_up_to_the_cards_limit_and_its_models_context(service):
    long, too_long = (
        replace(service, workload=service.workload.scaled(lengths=factor)) for factor in (100, 300)
    )
    card = SpyreCost(GRANITE, 4)
    costs = symbolic(card, service)
    assert costs.blocks == 16 * costs.max_model_len // 64 + 1
    assert symbolic(card, long).blocks * 64 == card.batch_tokens < 16 * 30_000
    alone = SpyreCost(GRANITE, 1)
    assert symbolic(alone, long).blocks * 64 <= alone.slots < 16 * 30_000
    with pytest.raises(ValueError, match="blocks do not hold one request of 131072 tokens"):
        symbolic(card, too_long)  # and the dummy


def test_a_division_without_an_engine_says_why():
    refused = Deployment(3, 3, refused="heads do not divide")
    found = capacities([refused], Service(drawn(60), LIMITS, requests_a_card=20))
    assert found["refused"].unique().tolist() == ["heads do not divide"]
    assert np.isnan(found["capacity_rps"]).all()


def test_a_bucket_that_a_card_does_not_take_is_no_reason_against_an_engine_without_buckets(
    service,
):
    long = Bucket(8, 16384, 512)  # 135,168 slots: beyond 131,072 on four cards, and one card's
    divided = propose(GRANITE, [4], service, buckets=[long])
    assert [bool(it.refused) for it in divided] == [True, False, True]
    found = capacities(divided, service)
    assert not found["refused"].any()
    assert found["capacity_rps"].notna().all()
    assert set(sensitivity(divided, service)["tp"]) == {2}, "of buckets that nobody compiles"
