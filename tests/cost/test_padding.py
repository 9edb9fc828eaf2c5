"""What is paid of padding, against sums done by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.cost.padding import paid_share, paid_shares
from spyre_bench.shapes import Bucket


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
