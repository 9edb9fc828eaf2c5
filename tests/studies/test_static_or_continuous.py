"""The same requests under both kinds of batching."""

import numpy as np
import pandas as pd
import pytest

from spyre_bench.choose.advise_shapes import Engine
from spyre_bench.cost.bucket_cost import price
from spyre_bench.cost.source import load_cost
from spyre_bench.metrics import summary
from spyre_bench.policy.continuous import Rules
from spyre_bench.policy.static import Policy
from spyre_bench.shape_set import ShapeSet
from spyre_bench.shapes import Bucket
from spyre_bench.simulate import continuous
from spyre_bench.studies import static_or_continuous as study
from spyre_bench.studies.under_load import at_rate
from spyre_bench.workload.source import load_workload


@pytest.fixture(scope="module")
def requests():
    drawn = load_workload("azure_conv", requests=200, rng=np.random.default_rng(0))
    return drawn.scaled(lengths=0.2).with_arrivals("poisson:1", np.random.default_rng(1))


@pytest.fixture(scope="module")
def chosen(requests):
    engine = Engine(4, 256)
    return study.choose(requests, load_cost(), 4, engine, Policy("best_fit"), Rules())


@pytest.fixture(scope="module")
def served(requests, chosen):
    return study.fitting(requests, chosen)


def test_both_kinds_compile_at_most_as_many_graphs(chosen):
    assert all(2 <= kind.graphs <= 4 for kind in chosen.kinds)
    assert all(kind.compile_s > 0 for kind in chosen.kinds)


def test_seconds_paid_are_all_busy_seconds_and_none_is_below_the_bound(served, chosen):
    frame = study.queued(served, chosen.kinds)
    assert frame[list(study.PAID)].sum(axis=1).to_numpy() == pytest.approx(frame["busy_s"])
    assert (frame["busy_s"] >= frame["bound_s"] * (1 - 1e-9)).all()
    for kind, row in zip(chosen.kinds, frame.itertuples(), strict=True):
        run = kind.run(served.with_arrivals("all"))
        assert row.busy_s == pytest.approx(summary.busy_s(run) / len(served))


def test_every_kind_gets_the_same_arrivals_at_every_load(served, chosen):
    frame = study.under_load(served, chosen.kinds, [0.2, 3.0], capacity_rps=1.0)
    assert list(zip(frame["kind"], frame["load"], strict=True)) == [
        ("static", 0.2),
        ("static", 3.0),
        ("continuous", 0.2),
        ("continuous", 3.0),
    ]
    assert frame.loc[frame["load"] == 3.0, "saturated"].all()
    assert not frame.loc[frame["load"] == 0.2, "saturated"].any()


def frame_of(static: list[float], continuous: list[float]) -> pd.DataFrame:
    rows = []
    for kind, values in (("static", static), ("continuous", continuous)):
        for load, value in enumerate(values, 1):
            figures = dict.fromkeys(study.FIGURES, value)
            rows.append({"kind": kind, "load": float(load), "saturated": load > 3, **figures})
    return pd.DataFrame(rows)


def test_the_answer_changes_from_the_load_on_from_which_the_other_stays_better():
    frame = frame_of([1, 5, 5, 0], [2, 4, 2, 9])
    found = study.turning(frame).set_index("figure")
    assert found.at["p95_ttft_s", "below"] == "static"
    assert found.at["p95_ttft_s", "from_load"] == 2
    assert found.at["p95_ttft_s", "ratio_at_lowest"] == 2
    assert found.at["p95_ttft_s", "ratio_at_highest"] == 0.4  # load 4 is saturated
    assert "TTFT: static below load 2" in study.verdict(frame)


def test_an_answer_that_never_changes_is_said_so():
    frame = frame_of([2, 2, 2], [1, 1, 1])
    found = study.turning(frame)
    assert found["from_load"].isna().all()
    assert "E2EL: continuous at every load" in study.verdict(frame)


def test_an_answer_that_changes_and_changes_back_is_given_by_its_loads():
    frame = frame_of([2, 1, 2], [1, 2, 1])
    assert "TTFT: continuous at load 1 and from load 3 on" in study.verdict(frame)
    assert study.turning(frame)["from_load"].isna().all(), "from none on is the other one better"
    twice = frame_of([1, 1, 2, 1, 2], [2, 2, 1, 2, 1]).assign(saturated=False)
    assert "E2EL: static from load 1 to 2 and at load 4" in study.verdict(twice)


def test_where_one_is_always_saturated_there_is_no_answer():
    frame = frame_of([2, 1], [1, 2]).assign(saturated=True)
    assert study.verdict(frame) == "At no load is neither saturated"
    assert study.turning(frame).empty


def test_a_longer_chunk_is_a_graph_more(served, chosen):
    frame = study.over_chunks(served, load_cost(), chosen, 0.3)
    assert frame["chunk_tokens"].is_monotonic_increasing
    assert frame["graphs"].diff().dropna().eq(1).all()


def test_a_card_is_asked_at_both_ends_and_by_each_of_two_facts_that_contradict(requests):
    card = load_cost("card:granite-3.3-8b,tp=4")
    chosen = study.choose(requests, card, 4, Engine(4, 256), Policy("best_fit"), Rules())
    frame = study.at_ends(study.fitting(requests, chosen), card, chosen, 0.8)
    assert list(frame["end"]) == ["nominal", "pessimistic", "optimistic", *card.contested]
    assert len(card.contested) == 3  # crossings at both ends; rows per query: the value is one
    assert load_cost().contested == {}
    assert (frame[["tokens_gain", "ttft_ratio", "tpot_ratio"]] > 0).all().all()


def test_the_ends_are_said_one_by_one_and_contested_facts_as_a_range():
    ends = pd.DataFrame(
        {
            "end": ["nominal", "pessimistic", "optimistic", "a fact", "another"],
            "tokens_gain": [1.7, 1.9, 1.8, 1.6, 2.0],
            "ttft_ratio": [0.05, 0.04, 0.06, 0.05, 0.05],
            "saturated": False,
        }
    )
    three = "1.70 (nominal), 1.90 (pessimistic), 1.80 (optimistic) times the tokens/s, TTFT ×0.0"
    assert study.said_at_ends(ends[:3]) == f"{three}4 to ×0.06"
    assert study.said_at_ends(ends).endswith(
        "; where public facts contradict each other 1.60 to 2.00 times the tokens/s"
    )


@pytest.mark.parametrize(("load", "marked"), [(0.1, False), (3.0, True)])
def test_latencies_of_saturated_runs_are_said_with_a_mark(requests, served, chosen, load, marked):
    mark = "(saturated: depends on the length of the run)"
    chunks = study.over_chunks(served, load_cost(), chosen, load)
    assert (mark in study.said_of_chunks(chunks)) == marked
    card = load_cost("card:granite-3.3-8b,tp=4")
    there = study.choose(requests, card, 4, Engine(4, 256), Policy("best_fit"), Rules())
    ends = study.at_ends(study.fitting(requests, there), card, there, load)
    assert ends["saturated"].all() == marked
    assert (mark in study.said_at_ends(ends)) == marked


def test_requests_that_fit_neither_are_refused_with_a_remedy(requests, chosen):
    with pytest.raises(ValueError, match="fits both the buckets and the shapes: scale the lengths"):
        study.fitting(requests.scaled(lengths=100), chosen)


def test_how_full_passes_are_beside_buckets_is_that_of_a_run_on_shapes_of_their_sizes(requests):
    model = load_cost()
    costs = price([Bucket(4, 128, 64), Bucket(2, 256, 64)], model)
    some = requests.take(requests.prompt_tokens + requests.max_tokens <= 320)
    found = study.fill_beside(some, model, costs, Rules(), [0.5, 4.0], 1.0)
    assert found["policy"].eq("continuous").all()
    assert found["fill"].between(0, 1).all()
    assert (found["busy_over_shape_bound"] >= 1 - 1e-9).all()
    prefill, decode = (
        [(64, 320), (128, 320), (256, 320), (320, 320)],
        [(1, 320), (2, 320), (4, 320)],
    )
    shapes = model.of_shapes(ShapeSet.parse(prefill, decode, 21))
    run = continuous.simulate(at_rate(some, 4.0), shapes, Rules())
    assert found["fill"].iloc[1] == pytest.approx(summary.summary(run)["fill"])
