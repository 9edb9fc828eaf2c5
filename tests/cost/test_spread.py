"""What a replication draws: distributions, seeds, and what each source of costs says of itself."""

from dataclasses import replace

import numpy as np
import pytest

from spyre_bench.cost.bucket_cost import BucketCost, price
from spyre_bench.cost.measured import MeasuredCost, load_cost_table
from spyre_bench.cost.source import load_cost
from spyre_bench.cost.spread import IQR, Spread, learned, log_deviation, steady
from spyre_bench.shape_set import ShapeSet
from spyre_bench.shapes import Bucket

COSTS = (BucketCost(Bucket(2, 64, 8), 1.0, 0.5), BucketCost(Bucket(2, 256, 8), 4.0, 1.0))
NONE = np.zeros((2, 2))


def factors(spread: Spread, n: int = 4000) -> np.ndarray:
    """log [n, shapes, kinds]"""
    return np.log([draw.factors for draw in spread.draws(n, 0)])


def test_the_same_seed_draws_the_same_and_another_seed_another():
    spread = Spread("made up", NONE + 0.1, NONE + 0.1, batch=(0.1, 0.1))

    def drawn(seed):
        return [
            (d.factors.tolist(), [d.pace(0.0) for _ in range(3)]) for d in spread.draws(20, seed)
        ]

    assert drawn(3) == drawn(3) != drawn(4)


def test_each_cost_has_its_own_deviation_and_moves_by_itself():
    own = np.array([[0.01, 0.02], [0.1, 0.2]])
    off = factors(Spread("made up", own, own))
    assert off.std(axis=0) == pytest.approx(own, rel=0.05)
    assert abs(np.corrcoef(off[:, 0, 0], off[:, 1, 1])[0, 1]) < 0.05


def test_ends_are_p5_and_p95_and_all_costs_go_towards_the_same_one():
    off = factors(Spread("a card", NONE + 0.1, NONE + 0.3, together=True))
    assert np.percentile(off[:, 0, 0], 5) == pytest.approx(-0.1645, rel=0.05)
    assert np.percentile(off[:, 0, 0], 95) == pytest.approx(0.4935, rel=0.05)
    assert np.corrcoef(off[:, 0, 0], off[:, 1, 1])[0, 1] == pytest.approx(1)


def test_the_machines_pace_is_the_same_for_every_cost_and_wider_for_what_little_was_seen():
    sure, unsure = (
        factors(Spread("made up", NONE, NONE, pace=0.1, freedom=freedom)) for freedom in (np.inf, 3)
    )
    assert (np.ptp(sure.reshape(len(sure), -1), axis=1) == 0).all()
    assert sure[:, 0, 0].std() == pytest.approx(0.1, rel=0.05)
    # Student's t with 3 degrees of freedom has its P95 at 2.35
    assert np.percentile(unsure[:, 0, 0], 95) == pytest.approx(0.235, rel=0.1)


def test_batches_differ_by_kind_and_without_a_deviation_there_is_nothing_to_draw():
    draw = next(Spread("made up", NONE, NONE, batch=(0.1, 0.02)).draws(20, 0))
    pace = np.log([draw.pace(0.0) for _ in range(4000)])
    assert pace.std(axis=0) == pytest.approx([0.1, 0.02], rel=0.05)
    assert next(Spread("made up", NONE, NONE).draws(20, 0)).pace is steady


def test_a_draw_scales_prefill_and_decode_of_each_cost():
    draw = next(Spread("made up", NONE, NONE).draws(20, 0))
    doubled = replace(draw, factors=np.array([[2.0, 3.0], [0.5, 1.0]])).scaled(COSTS)
    assert [(cost.prefill_s, cost.decode_s) for cost in doubled] == [(2.0, 1.5), (2.0, 1.0)]
    assert [cost.bucket for cost in doubled] == [cost.bucket for cost in COSTS]


def test_too_few_replications_for_a_p5_are_refused():
    with pytest.raises(ValueError, match="replications 19 is below 20"):
        next(Spread("made up", NONE, NONE).draws(19, 0))


def test_a_deviation_is_robust_and_none_of_a_single_value():
    values = np.exp(np.random.default_rng(0).normal(0, 0.05, 4000))
    values[:100] = 50.0  # somebody else's minute
    assert log_deviation(values) == pytest.approx(0.05, rel=0.1)
    assert log_deviation(np.array([3.0])) == 0


def test_a_prior_gives_way_to_what_was_seen():
    assert learned(0.04, 4, []) == (pytest.approx(0.04), 4)
    deviation, freedom = learned(0.04, 4, [0.01, -0.01] * 200)
    assert deviation == pytest.approx(0.01, rel=0.1)
    assert freedom == 404


# --- what a source says of itself -----------------------------------------------------------------


def test_a_measured_bucket_has_the_interquartile_range_of_its_passes():
    table = load_cost_table()
    row = table.rows[0]
    spread = table.spread(price([row.bucket], table))
    expected = [row.prefill_iqr_s / row.prefill_s, row.decode_iqr_s / row.decode_s]
    assert spread.below[0] == pytest.approx(np.array(expected) / IQR)
    assert "between" not in spread.source


def test_a_bucket_between_those_measured_has_the_tables_error_too_and_is_named():
    table = load_cost_table()
    spread = table.spread(price([Bucket(4, 768, 512)], table))
    errors = table.leave_one_out()
    off = np.log1p(errors.loc[errors["quantity"] == "decode_s", "error"])
    assert spread.below[0, 1] >= np.sqrt((off**2).mean())
    assert "4,768,512" in spread.source


def test_there_is_no_spread_beyond_what_was_measured_nor_of_a_table_without_ranges():
    table = load_cost_table(extrapolate=True)
    assert table.spread(price([Bucket(64, 64, 64)], table)) is None
    bare = MeasuredCost(tuple(replace(row, decode_iqr_s=float("nan")) for row in table.rows))
    assert bare.spread(price([table.rows[0].bucket], bare)) is None


def test_a_cards_spread_reaches_from_its_optimistic_to_its_pessimistic_end():
    card = load_cost("card:granite-3.3-8b")
    costs = price([Bucket(4, 512, 64)], card)
    off = factors(card.spread(costs))[:, 0, :]
    for end, share in (("fast", 5), ("slow", 95)):
        at = card.at(end, costs[0].bucket)
        ratio = np.log([at.prefill_s / costs[0].prefill_s, at.decode_s / costs[0].decode_s])
        assert np.percentile(off, share, axis=0) == pytest.approx(ratio, rel=0.06)
    assert load_cost("card:granite-3.3-8b,end=slow").spread(costs) is None


def test_a_cards_spread_of_shapes_reaches_from_end_to_end_and_scales_every_pass():
    card = load_cost("card:granite-3.3-8b")
    costs = card.of_shapes(ShapeSet.parse("256/64,2048/64", "8/2,2048/64"))
    spread = card.spread_of_shapes(costs)
    off = factors(spread)[:, :, 0]
    for end, share in (("fast", 5), ("slow", 95)):
        at = replace(card, end=end).of_shapes(costs.shapes)
        ends = at.prefill[0].full_s / costs.prefill[0].full_s, at.decode[0].full_s
        ratio = np.log([ends[0], ends[1] / costs.decode[0].full_s])
        assert np.percentile(off, share, axis=0) == pytest.approx(ratio, rel=0.06)
    chunk, step = np.exp(off[0]).tolist()
    drawn = costs.scaled([chunk, step])
    assert drawn.prefill[0].pass_s(64) == pytest.approx(chunk * costs.prefill[0].pass_s(64))
    assert drawn.decode[0].pass_s(3, 99) == pytest.approx(step * costs.decode[0].pass_s(3, 99))
    assert load_cost("card:granite-3.3-8b,end=slow").spread_of_shapes(costs) is None
