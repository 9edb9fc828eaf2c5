"""The ledger in seconds: by hand on machines whose passes are known, and its laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spyre_bench.cost.bucket_cost import price
from spyre_bench.cost.closed_form import FittedCost
from spyre_bench.cost.source import load_cost
from spyre_bench.metrics.paid import paid_beside_slots, paid_of_padding, said
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import BucketSet
from spyre_bench.simulate.static import simulate
from spyre_bench.workload.source import load_workload
from spyre_bench.workload.workload import Workload

BY_SLOT = FittedCost((0.0, 1e-3), (0.0, 1e-2, 0.0))  # every slot costs alike
BY_PASS = FittedCost((1.0, 0.0), (0.1, 0.0, 0.0))  # a pass costs the same, whatever is in it


def of(machine: FittedCost, prompts: list[int], outputs: list[int]):
    prompt, output = np.array(prompts, np.int32), np.array(outputs, np.int32)
    some = Workload("by hand", np.zeros(len(prompt)), prompt, output, output)
    run = simulate(some, price(BucketSet.parse("4,256,16"), machine), Policy("best_fit"))
    return paid_beside_slots(run, machine).set_index("part")


def test_where_every_slot_costs_alike_padding_is_paid_in_full():
    beside = of(BY_SLOT, [64, 192], [2, 9])
    for part in ("batch_pad", "bucket_pad", "prompt_pad", "decode_tail"):
        assert beside["paid_share"][part] == pytest.approx(1, abs=0.01), part
    # within a hundredth, since a prefill's first tokens count as slots of it and cost nothing;
    # of 4·256 slots of prefill 2·256 are nobody's, at 1 ms each; of 8 passes of 4 rows 2 rows each
    busy_s = 4 * 256e-3 + 8 * 4e-2
    assert beside["paid"]["batch_pad"] == pytest.approx((2 * 256e-3 + 8 * 2e-2) / busy_s)
    assert beside["paid"]["prompt_pad"] == pytest.approx(128e-3 / busy_s)
    assert beside["paid"]["decode_tail"] == pytest.approx(7e-2 / busy_s)


def test_where_a_pass_costs_the_same_whatever_is_in_it_padding_costs_nothing():
    beside = of(BY_PASS, [64, 192], [2, 9])
    assert beside["paid"]["useful"] == pytest.approx(1)
    assert paid_of_padding(beside.reset_index()) == pytest.approx(0)
    assert beside["slots"]["batch_pad"] > 0.4


def test_a_stick_is_needed_whole():
    beside = of(BY_SLOT, [1, 1, 1, 1], [2, 2, 2, 2])
    assert beside["alike"]["bucket_pad"] > beside["paid"]["bucket_pad"]
    assert beside["paid"]["bucket_pad"] == pytest.approx(4 * 192e-3 / (4 * 256e-3 + 4e-2))


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 256), st.integers(1, 16)), min_size=1, max_size=12),
    st.floats(0, 1),
)
def test_parts_of_seconds_add_up_and_no_padding_is_paid_more_than_in_full(requests, fixed):
    machine = FittedCost((fixed, (1 - fixed) * 1e-3), (fixed / 10, (1 - fixed) * 1e-2, 0.0))
    beside = of(machine, [p for p, _ in requests], [o for _, o in requests])
    for column in ("slots", "alike", "paid"):
        assert beside[column].sum() == pytest.approx(1)
    assert beside["paid"].ge(-1e-9).all()
    # sticks are needed whole, so that a part of one may count as the prompts' or the bucket's
    for parts in (["prompt_pad", "bucket_pad"], ["batch_pad"], ["decode_tail"]):
        wasted = beside[beside.index.isin(parts)].sum()
        assert wasted["paid"] <= wasted["alike"] * 1.02 + 1e-9  # first tokens are slots too


def test_the_shipped_table_pays_for_prompts_in_full_and_hardly_for_rows_of_decode():
    model, some = (
        load_cost(),
        load_workload("azure_conv", requests=300, rng=np.random.default_rng(0)).scaled(lengths=0.1),
    )
    costs = price(BucketSet.parse("8,512,512"), model)
    some = some.take(some.fits(costs[0].bucket)).with_arrivals("all")
    beside = paid_beside_slots(simulate(some, costs), model).set_index("part")
    assert beside["paid_share"]["bucket_pad"] > 0.9
    assert beside["paid_share"]["decode_tail"] < 0.7
    assert beside["paid"].sum() == pytest.approx(1)


def test_it_is_said_with_the_parts_that_cost_most_and_least():
    text = said(of(BY_PASS, [64, 192], [2, 9]).reset_index())
    assert "costs 0% of the seconds: 0% of what it would" in text
    full = said(of(BY_SLOT, [256, 256], [16, 16]).reset_index())
    assert full.startswith("Padding is 50% of the slots and costs 50% of the seconds: 100% of what")
    assert "(batch pad 100%)" in full
    assert said(of(BY_SLOT, [256] * 4, [16] * 4).reset_index()) == "Nothing is padding."


def test_what_padding_costs_is_unknown_where_no_smaller_pass_has_a_figure():
    """A table of one batch size."""

    class OfFour(FittedCost):
        def of(self, bucket):
            if bucket.batch_size != 4:
                raise ValueError(f"bucket {bucket} is outside of the cost table")
            return super().of(bucket)

    beside = of(OfFour((1.0, 0.0), (0.1, 0.0, 0.0)), [64, 192], [2, 9]).reset_index()
    assert beside["paid"].isna().all()
    assert beside["alike"].sum() == pytest.approx(1)
    assert np.isnan(paid_of_padding(beside))
    assert "what it costs in seconds is not known" in said(beside)
