"""Scenario: the settings of a run, said once, and what is made of them."""

import math
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest

from spyre_bench.cost.bucket_cost import price
from spyre_bench.cost.source import load_cost
from spyre_bench.metrics.summary import summary
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import BucketSet
from spyre_bench.simulate.scenario import KINDS, PARTS, Scenario
from spyre_bench.simulate.static import simulate
from spyre_bench.workload.source import load_workload

TWO = "8,64,32 2,1024,512"
SMALL = Scenario("azure_conv", TWO, requests=200, length_scale=0.25)


def test_a_run_is_the_one_that_its_parts_give_by_hand():
    scenario = replace(
        SMALL,
        seed=3,
        arrivals="poisson:2",
        max_tokens="multiple:2",
        rate_scale=0.5,
        policy="length_aware",
        max_wait_s=1.0,
        gather_s=0.5,
        max_age_s=9.0,
        replicas=2,
        router="least_loaded",
        warmup=True,
        client_overhead_ms=5.0,
        from_s=10.0,
        to_s=80.0,
    )
    requests = load_workload(
        "azure_conv",
        requests=200,
        rng=np.random.default_rng(3),
        arrivals="poisson:2",
        max_tokens="multiple:2",
        from_s=10.0,
        to_s=80.0,
    ).scaled(lengths=0.25, rate=0.5)
    costs = price(BucketSet.parse(TWO), load_cost())
    by_hand = simulate(
        requests,
        costs,
        Policy("length_aware", 1.0, 0.5, 9.0),
        replicas=2,
        router="least_loaded",
        ready_s=sum(cost.warmup_s for cost in costs),
        client_overhead_s=0.005,
    )
    assert summary(scenario.run()) == summary(by_hand)


def test_what_is_at_hand_is_not_loaded_again_and_others_can_be_tried():
    requests, costs = SMALL.load_workload(), SMALL.costs()
    again = replace(SMALL, workload="nowhere.csv", cost="nowhere.csv").run(requests, costs)
    assert summary(again) == summary(SMALL.run())
    assert summary(SMALL.run(requests, costs[1:])) != summary(again)


def test_the_same_buckets_in_any_form_are_the_same_scenario():
    forms = (TWO, TWO.split(), BucketSet.parse(TWO), [[2, 1024, 512], [8, 64, 32]])
    assert len({replace(SMALL, buckets=form) for form in forms}) == 1


def test_of_a_notebook_s_parameters_those_of_the_same_name_are_taken():
    parameters = SimpleNamespace(workload="azure_conv", requests=7, seed=2, load=0.8, k=3)
    assert Scenario.of(parameters, requests=9) == Scenario("azure_conv", requests=9, seed=2)


def test_without_buckets_there_is_a_workload_to_choose_them_for():
    scenario = replace(SMALL, buckets="")
    assert len(scenario.load_workload()) == 200
    with pytest.raises(ValueError, match="no bucket given"):
        scenario.run()


def test_every_setting_has_a_default_a_part_and_a_help_text_of_its_own():
    for it in fields(Scenario):
        assert it.metadata["part"] in PARTS
        assert it.metadata["help"]
        assert it.name == "workload" or type(it.default) in (KINDS[it.name], type(None))
    helps = [it.metadata["help"] for it in fields(Scenario)]
    assert len(set(helps)) == len(helps)


def test_limits_are_read_from_the_words_of_the_command_line():
    assert SMALL.limits_ms() == {}
    assert replace(SMALL, goodput="ttft:2000 e2el:inf").limits_ms() == {
        "ttft": 2000.0,
        "e2el": math.inf,
    }
    with pytest.raises(ValueError, match="goodput has two limits on ttft: give one"):
        replace(SMALL, goodput="ttft:2000 ttft:100").limits_ms()


def test_printed_it_says_what_is_not_as_usual():
    shown = repr(SMALL)
    assert shown == (
        "Scenario(workload='azure_conv', buckets='2,1024,512 8,64,32', requests=200, "
        "length_scale=0.25)"
    )
    assert eval(shown) == SMALL
    assert "<td>0.25</td><td>multiplies all lengths</td>" in SMALL._repr_html_()
    assert "&lt;b&gt;" in Scenario("<b>")._repr_html_()


def test_what_it_is_made_of_prints_as_something_to_read():
    workload, cost = SMALL.load_workload(), SMALL.load_cost()
    assert repr(workload).startswith("<Workload azure_conv; 200 requests in ")
    assert "P95" in workload._repr_html_()
    assert repr(BucketSet.parse(TWO)) == "BucketSet.parse('2,1024,512 8,64,32')"
    assert "<tr><td>8</td><td>64</td><td>32</td></tr>" in BucketSet.parse(TWO)._repr_html_()
    assert "buckets measured, B 1 to 8" in repr(cost)
    assert "<td>8,2048,1024</td>" in cost._repr_html_()
    assert repr(load_cost("card:granite-3.3-8b,tp=4")) == (
        "<granite-3.3-8b in fp16 on 4 cards, at the nominal values of the parameters>"
    )


def test_without_costs_each_kind_of_batching_has_the_table_that_ships_of_it():
    static, continuous = Scenario("azure_conv"), Scenario("azure_conv", batching="continuous")
    assert static.load_cost() == load_cost("buckets")
    assert continuous.load_cost() == load_cost("shapes")
    assert Scenario("azure_conv", batching="continuous", cost="buckets").load_cost().rows


def test_a_scenario_of_continuous_batching_runs_on_shapes_at_its_rules():
    scenario = Scenario(
        "azure_conv",
        requests=50,
        batching="continuous",
        prefill_shapes="256,2048",
        decode_shapes="4,2048",
        decode_between=2,
        prefix_cache="share:0.5",
    )
    run = scenario.run_continuous()
    assert run.policy.decode_between == 2
    assert scenario.run().shapes == run.shapes
    assert run.costs.blocks == 4 * 32 + 1
    assert run.hit_tokens.sum() > 0
    assert run.shapes == ("prefill 256,2048", "decode 4,2048")
    with pytest.raises(ValueError, match="batching 'both' is not known"):
        _ = Scenario("azure_conv", batching="both").is_continuous


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batching": "continuous", "buckets": TWO}, "buckets is a setting of static batching"),
        ({"batching": "continuous", "gather_s": 1.0}, "gather_s is a setting of static batching"),
        ({"buckets": TWO, "decode_between": 2}, "decode_between is a setting of continuous"),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Scenario("azure_conv", **settings).require_used()


def test_the_cards_limit_is_the_rules_where_none_is_set():
    scenario = Scenario("azure_conv", cost="card:granite-3.3-8b,tp=4")
    source = scenario.load_cost()
    assert scenario.step_rules(source).max_batch_context_tokens == source.batch_tokens
    assert scenario.step_rules().max_batch_context_tokens is None
