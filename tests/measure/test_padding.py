"""What padding takes on an engine: what is asked for, that it runs, and what is paid of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.shape_set import ShapeSet
from spyre_bench.shapes import Bucket, BucketSet
from tests.padding import (
    Content,
    contents,
    full,
    paid_share,
    paid_shares,
    time_contents,
    time_live,
)

pytestmark = pytest.mark.engine

BUCKETS = BucketSet.parse("1,64,4 2,64,4 1,128,4 2,128,4")


def test_every_bucket_is_asked_for_full_and_with_fewer_rows_and_at_each_side_of_a_boundary():
    asked = contents(BUCKETS, boundaries=(64,))
    narrow, wide, widest = Bucket(1, 64, 4), Bucket(2, 64, 4), Bucket(2, 128, 4)
    assert [content.rows for content in asked if content.bucket == wide] == [2, 1, 2]
    assert Content(narrow, 1, 63) in asked
    assert Content(widest, 2, 65) in asked
    assert len(asked) == len(set(asked)) == 4 + 2 + 4


def test_a_boundary_that_has_no_next_bucket_is_asked_for_from_below_alone():
    assert contents(BUCKETS, boundaries=(128,))[-2:] == [
        Content(Bucket(1, 128, 4), 1, 127),
        Content(Bucket(2, 128, 4), 2, 127),
    ]


def test_passes_of_an_engine_are_timed_and_their_padding_judged(tiny_llama):
    from spyre_bench.engine.causal_lm import SpyreCausalLM
    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.engine.warmup import warm_up

    config = EngineConfig(model_directory=tiny_llama, buckets=BUCKETS, compile_backend="eager")
    model = SpyreCausalLM(config)
    warm_up(model, progress=False)
    measured = time_contents(model, contents(BUCKETS, (64,)), rounds=1)
    assert len(measured) == 10
    assert measured[["prefill_s", "decode_s"]].gt(0).all(axis=None)
    shares = paid_shares(full(measured))
    assert shares["axis"].value_counts().to_dict() == {"rows": 2, "prompt": 2}


def test_live_rows_and_tokens_of_paged_shapes_are_timed(tiny_llama):
    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.engine.paged_causal_lm import PagedCausalLM
    from spyre_bench.engine.warmup import warm_up

    shapes = ShapeSet.parse("64,128 128,128", "1,128 2,128")
    config = EngineConfig(model_directory=tiny_llama, shapes=shapes, compile_backend="eager")
    model = PagedCausalLM(config)
    warm_up(model, progress=False)
    measured = time_live(model, rounds=1).set_index(["kind", "size", "live"])
    assert sorted(measured.index) == [
        ("chunk", 64, 64),
        ("chunk", 128, 64),
        ("chunk", 128, 128),
        ("decode", 1, 1),
        ("decode", 2, 1),
        ("decode", 2, 2),
    ]
    taken_s, needed_s = measured["seconds"]["decode", 2, 1], measured["seconds"]["decode", 1, 1]
    assert measured["paid"]["decode", 2, 1] == pytest.approx((1 - needed_s / taken_s) / 0.5)
    assert measured["paid"]["decode", 2, 2] != measured["paid"]["decode", 2, 2]  # nothing is padded


def test_padding_that_costs_what_useful_slots_do_is_paid_in_full_and_free_padding_not_at_all():
    assert paid_share(taken_s=4.0, needed_s=1.0, padded=0.75) == 1
    assert paid_share(taken_s=4.0, needed_s=4.0, padded=0.75) == 0
    assert paid_share(taken_s=4.0, needed_s=5.0, padded=0.5) == -0.5


@given(st.floats(0.01, 10), st.floats(0.01, 10), st.floats(0.01, 0.99))
def test_of_a_fixed_part_and_one_by_the_slot_the_second_is_paid(fixed_s, slot_s, padded):
    taken_s, needed_s = fixed_s + slot_s, fixed_s + slot_s * (1 - padded)
    assert paid_share(taken_s, needed_s, padded) == pytest.approx(slot_s / taken_s)


@pytest.mark.parametrize("padded", [0.0, 1.0, -0.1])
def test_a_pass_without_padding_is_nothing_to_judge(padded):
    with pytest.raises(ValueError, match=f"a padded share of {padded} is nothing to judge"):
        paid_share(1.0, 1.0, padded)


def test_pairs_differ_in_rows_or_in_the_prompt_alone():
    costs = [
        BucketCost(Bucket(1, 64, 64), 1.0, 1.0),
        BucketCost(Bucket(2, 64, 64), 2.0, 1.0),
        BucketCost(Bucket(2, 128, 64), 3.0, 1.2),
        BucketCost(Bucket(2, 128, 32), 9.0, 9.0),  # other new tokens: no pair
    ]
    rows, prompt = paid_shares(costs).to_dict("records")
    assert (rows["axis"], rows["bucket"], rows["needed"]) == ("rows", "2,64,64", "1,64,64")
    assert (rows["padded"], rows["prefill_paid"], rows["decode_paid"]) == (0.5, 1.0, 0.0)
    assert (prompt["axis"], prompt["bucket"], prompt["needed"]) == ("prompt", "2,128,64", "2,64,64")
    assert prompt["prefill_paid"] == pytest.approx((1 - 2 / 3) / 0.5)
    assert prompt["decode_paid"] == pytest.approx((1 - 1 / 1.2) / (1 - 128 / 192))
