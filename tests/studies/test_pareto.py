"""Tokens/s per card against tokens/s per user."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyre_bench.choose.advise_shapes import Engine
from spyre_bench.cost.bucket_cost import price
from spyre_bench.cost.source import cards_of, load_cost, on_cards
from spyre_bench.policy.continuous import Rules
from spyre_bench.policy.static import Policy
from spyre_bench.shape_set import ShapeSet
from spyre_bench.shapes import BucketSet
from spyre_bench.simulate import continuous, static
from spyre_bench.simulate.scenario import Scenario
from spyre_bench.studies import pareto
from spyre_bench.studies.under_load import at_rate

CARD = "card:granite-3.3-8b,tp=2"
TODAY = "prefill=512/64,8192/64 decode=2,8192"
BASE = Scenario("azure_conv", requests=60, arrivals="poisson:1", max_tokens="multiple:2", cost=CARD)


@pytest.fixture(scope="module")
def found():
    return pareto.front(BASE, TODAY, 2, 3, Engine(4, 256), 0.4, [0.2, 0.4])


def offers(rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[pareto.USER, pareto.CARD, "saturated"])


numbers = st.integers(0, 6)  # few, so that many are equal


@given(st.lists(st.tuples(numbers, numbers, st.booleans()), min_size=1, max_size=30))
def test_the_front_is_what_no_other_row_beats_tried_one_by_one(rows):
    front = pareto.on_front(offers(rows)).tolist()
    for place, (user, card, saturated) in enumerate(rows):
        beaten = any(
            not full and u >= user and c >= card and (u > user or c > card or other < place)
            for other, (u, c, full) in enumerate(rows)
        )
        assert front[place] == (not saturated and not beaten)


@given(st.lists(st.tuples(numbers, numbers, st.booleans()), min_size=1, max_size=30))
def test_whatever_is_offered_the_front_has_something_as_good(rows):
    frame = offers(rows)
    front = frame[pareto.on_front(frame)]
    for row in frame[~frame["saturated"]].itertuples(index=False):
        assert ((front[pareto.USER] >= row[0]) & (front[pareto.CARD] >= row[1])).any()
    assert front[pareto.USER].is_unique
    assert front[pareto.CARD].is_unique


def test_every_division_both_kinds_of_batching_and_every_rule_are_on_offer(found):
    frame = found.points
    kinds = set(frame[["batching", "tp", "replicas"]].itertuples(index=False, name=None))
    assert kinds == {(kind, tp, 2 // tp) for kind in ("static", "continuous") for tp in (1, 2)}
    assert set(frame.loc[frame["batching"] == "static", "rule"]) == {*pareto.POLICIES}
    assert {"decode_between 1", "decode_between 4"} < set(frame["rule"])
    assert not found.refused


def test_each_point_is_what_a_plain_simulation_gives(found):
    """Not by the study's own code: from the cost's name, the shapes and the rate alone."""
    checked = set()
    for row in found.points.to_dict("records"):
        kind = row["batching"], row["tp"], row["rule"]
        if kind in checked:
            continue
        checked.add(kind)
        said = found.setups[row["setup"]].scenario
        source = load_cost(f"card:granite-3.3-8b,tp={row['tp']}")
        arriving = at_rate(found.workload, row["rate_rps"])
        engines = {"replicas": 2 // row["tp"], "router": "least_loaded"}
        if row["batching"] == "static":
            costs = price(BucketSet.parse(said.buckets), source)
            run = static.simulate(arriving, costs, Policy(row["rule"]), **engines)
        else:
            shapes = ShapeSet.parse(said.prefill_shapes, said.decode_shapes, said.blocks)
            rules = Rules(
                decode_between=int(row["rule"][-1]),
                layout="rectangular" if "rectangular" in row["rule"] else "ragged",
                max_batch_context_tokens=source.batch_tokens,
            )
            run = continuous.simulate(arriving, source.of_shapes(shapes), rules, **engines)
        assert run.served.all()
        tokens = arriving.output_tokens
        took_s = run.requests.finish_s.max() - arriving.arrival_s[0]
        assert row[pareto.CARD] == pytest.approx(tokens.sum() / took_s / 2)
        waited_s = run.requests.finish_s - arriving.arrival_s
        assert row[pareto.USER] == pytest.approx(np.median(tokens / waited_s))
    assert len(checked) == 9


def test_the_advised_setup_is_as_fast_for_users_and_puts_out_most_per_card(found):
    now, best = (found.bands[found.bands["mark"].str.contains(m)] for m in ("today", "advised"))
    assert len(now) == len(best) == 1
    now, best = now.iloc[0], best.iloc[0]
    assert now["setup"] == len(found.setups) - 1
    assert now["load"] == 0.4
    steady = found.points[~found.points["saturated"]]
    as_fast = steady[steady[pareto.USER] >= now[pareto.USER]]
    assert best[pareto.CARD] == as_fast[pareto.CARD].max()
    assert best["front"]
    assert found.gain == best[pareto.CARD] / now[pareto.CARD] >= 1
    assert f"{found.gain:.2f} times" in found.verdict
    assert found.repeated() < 1e-12


def test_where_nothing_is_better_today_is_advised(found):
    frame = found.points[found.points["setup"] == len(found.setups) - 1]
    rows = pareto.marked(frame, 0.4)
    assert set(rows["mark"]) == {"", "today, advised"}
    shown = pareto.bands(rows, found.setups, found.workload)
    alone = pareto.Front(found.setups, {}, found.workload, 0, frame, shown)
    assert alone.gain == 1
    assert "nothing serves more" in alone.verdict


def test_bands_hold_the_point_and_are_those_of_slow_and_of_fast_cards(found):
    rows = found.bands
    for axis in pareto.AXES:
        assert (rows[f"low_{axis}"] < rows[axis]).all()
        assert (rows[axis] < rows[f"high_{axis}"]).all()


def test_the_ends_of_the_front_fall_from_slow_users_to_fast_ones(found):
    for end in ("low", "high"):
        rows = found.bands[found.bands[f"{end}_front"]].sort_values(f"{end}_{pareto.USER}")
        assert rows["front"].all()
        assert rows[f"{end}_{pareto.CARD}"].is_monotonic_decreasing
        best = found.bands[f"{end}_{pareto.CARD}"].max()
        assert rows[f"{end}_{pareto.CARD}"].max() == best


def test_a_saturated_today_is_said(found):
    frame = found.points.assign(saturated=True)
    rows = pareto.marked(frame, 0.4)
    assert not rows["mark"].any()
    assert not rows["front"].any()


def test_costs_without_a_spread_have_no_band():
    """At one end of a card's parameters."""
    base = Scenario(**{**BASE._chosen(), "cost": f"{CARD},end=fast"})
    setup = pareto.today(base, "buckets=2,4096,1024", 2)
    workload = pareto.shared(base.load_workload(), [setup])
    rows = pareto.bands(
        pareto.marked(pareto.points(workload, [setup], [0.4]), 0.4), [setup], workload
    )
    assert rows[f"low_{pareto.USER}"].isna().all()
    assert not rows["low_front"].any()
    assert rows["mark"].tolist() == ["today, advised"]


def test_a_division_that_cannot_be_is_named_with_the_reason():
    asked = BASE.load_workload()
    found, refused = pareto.setups(BASE, asked, 3, 2, Engine(1, 256))
    assert {setup.tp for setup in found} == {1}
    assert "3" in refused["1 × TP 3"]
    assert list(refused) == ["1 × TP 3"]


@pytest.mark.parametrize(
    "text", ["", "decode=8,4096", "shapes=1", "4,1024,256", "prefill=512,4096 decoding=8,4096"]
)
def test_a_deployment_that_is_none_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="is no deployment: write prefill=512,4096 decode=8,4096"):
        pareto.today(BASE, text, 2)


def test_cards_that_are_no_whole_number_of_engines_are_refused():
    with pytest.raises(ValueError, match="3 cards are no whole number of engines of 2: use 6"):
        pareto.today(BASE, TODAY, 3)


def test_several_buckets_of_today_are_one_set():
    setup = pareto.today(BASE, "buckets=2,1024,256 4,2048,512", 4)
    assert [str(cost.bucket) for cost in setup.costs] == ["2,1024,256", "4,2048,512"]
    assert (setup.cards, setup.scenario.replicas, setup.rule) == (4, 2, "skip")


def test_shapes_that_take_no_request_are_refused():
    setup = pareto.today(BASE, "buckets=2,64,2", 2)
    with pytest.raises(ValueError, match="no request of azure_conv is taken by every setup"):
        pareto.shared(BASE.load_workload(), [setup])


def test_a_cost_is_put_on_other_cards_and_a_table_is_not():
    assert on_cards("card:granite-3.3-8b,tp=4,dtype=fp8", 2) == "card:granite-3.3-8b,dtype=fp8,tp=2"
    assert load_cost(on_cards("card:granite-3.3-8b", 4)).tp == 4
    assert on_cards(None, 1) is None
    assert [cards_of(name) for name in (None, "cost.csv", CARD)] == [1, 1, 2]
    with pytest.raises(ValueError, match="tp 2: a cost table is of the engine that was measured"):
        on_cards("cost.csv", 2)


def result(tmp_path, **changes) -> str:
    said = {
        "output_lens": [10, 20, 0],
        "ttfts": [1.0, 2.0, 0.0],
        "itls": [[0.5] * 9, [0.1] * 19, []],
        "duration": 6.0,
    }
    path = tmp_path / "served.json"
    path.write_text(json.dumps(said | changes))
    return f"2:{path}"


def test_a_measured_point_is_of_the_requests_that_were_served(tmp_path):
    (row,) = pareto.measured(result(tmp_path)).to_dict("records")
    assert row["label"] == "served.json"
    assert row[pareto.CARD] == pytest.approx(30 / 6.0 / 2)
    assert row[pareto.USER] == pytest.approx((10 / 5.5 + 20 / 3.9) / 2)


def test_what_was_not_measured_is_no_point(tmp_path):
    assert pareto.measured("").empty
    with pytest.raises(ValueError, match="is not CARDS:FILE: write, for example, 4:"):
        pareto.measured("result.json")
    with pytest.raises(ValueError, match="--save-detailed"):
        pareto.measured(result(tmp_path, itls=None))
    with pytest.raises(ValueError, match="--save-detailed"):
        pareto.measured(result(tmp_path, ttfts=[1.0]))
    with pytest.raises(ValueError, match="no request of it was served"):
        pareto.measured(result(tmp_path, output_lens=[0, 0, 0]))
