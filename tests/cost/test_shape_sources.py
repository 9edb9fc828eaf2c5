"""What sources of costs say of paged shapes."""

import pytest

from spyre_bench.cost.bucket_cost import CostModel
from spyre_bench.cost.closed_form import FittedCost
from spyre_bench.cost.source import load_cost
from spyre_bench.shape_set import ShapeSet
from spyre_bench.shapes import Bucket

SHAPES = ShapeSet.parse("256,2048", "4,1024 8,2048")


def test_the_closed_form_prices_a_paged_pass_as_a_static_one_of_its_size():
    form = FittedCost((0.1, 0.001), (0.01, 0.002, 1e-6), (4.0, 0.0))
    costs = form.of_shapes(SHAPES)
    assert costs.prefill[0].pass_s(500) == form.of(Bucket(1, 256, 2)).prefill_s
    assert costs.decode[1].pass_s(3, 700) == pytest.approx(0.01 + 8 * 0.002 + 8 * 2048 * 1e-6)
    assert costs.compile_s == 3 * 2.0
    assert all(cost.extrapolated for cost in (*costs.prefill, *costs.decode))


def test_the_shipped_table_and_the_card_price_shapes_and_another_source_says_that_it_cannot():
    table, card = load_cost(), load_cost("card:granite-3.3-8b,tp=4")
    for source in (table, card):
        small, large = source.of_shapes(SHAPES).decode
        assert 0 < small.full_s < large.full_s
    with pytest.raises(ValueError, match="CostModel has no figure for paged shapes"):
        _Bare().of_shapes(SHAPES)


class _Bare(CostModel):
    def of(self, bucket):
        raise ValueError

    label = "CostModel"


def test_the_cards_decode_pass_is_the_static_one_where_the_shape_has_no_steps():
    card = load_cost("card:granite-3.3-8b,tp=4")
    decode = card.of_shapes(SHAPES).decode[1]
    assert decode.pass_s(1, 10) == pytest.approx(card.of(Bucket(8, 1024, 1024)).decode_s)


def test_the_cards_shape_with_steps_is_exact_at_its_ends_and_grows_between():
    card = load_cost("card:granite-3.3-8b,tp=4")
    costs = card.of_shapes(ShapeSet.parse("512/64,4096/64", "16/1,4096/64"))
    (decode,), (prefill,) = costs.decode, costs.prefill
    passes = card.passes()
    assert decode.full_s == pytest.approx(passes.step_s(16, 4096))
    assert decode.pass_s(1, 64) == pytest.approx(passes.step_s(1, 64))
    assert prefill.pass_s(0) == pytest.approx(passes.chunk_s(512, 512))
    assert prefill.full_s == pytest.approx(passes.chunk_s(512, 4096))
    slow, fast = (end.of_shapes(SHAPES).decode[0].full_s for end in card.ends)
    assert fast < card.of_shapes(SHAPES).decode[0].full_s < slow


def test_the_card_refuses_a_context_or_a_pool_beyond_its_limits():
    card = load_cost("card:granite-3.3-8b,tp=1")
    with pytest.raises(ValueError, match=r"is beyond the .* tokens of granite"):
        card.of_shapes(ShapeSet.parse("256,262144", "2,262144"))
    with pytest.raises(ValueError, match="a pool of 100000 blocks needs"):
        card.of_shapes(ShapeSet.parse("256,2048", "8,2048", 100_000))
