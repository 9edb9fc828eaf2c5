"""The k-curve: every point is the proved choice, and the knee is where one more stops paying."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyre_bench.choose.optimize import Limits, choose_buckets
from spyre_bench.cost.bucket_cost import price
from spyre_bench.cost.closed_form import FittedCost
from spyre_bench.metrics.bounds import shape_bound_s
from spyre_bench.shapes import BucketSet
from spyre_bench.studies.k_curve import k_curve, knee, prompts_only
from spyre_bench.workload.workload import Workload

# prefill 0.02 + 1e-4·B·P, decode 0.02 + 5e-4·B, compile 10 s
TOY = FittedCost((0.02, 1e-4), (0.02, 5e-4, 0.0), (10.0, 0.0))
COSTS = price(BucketSet.parse("4,64,8 4,128,8 4,256,8 4,512,8 4,512,64 1,512,64"), TOY)


def workload(*requests: tuple[int, int]) -> Workload:
    """Requests of (prompt_tokens, output_tokens), all at once."""
    prompt_tokens, output_tokens = (np.array(column) for column in zip(*requests, strict=True))
    return Workload("by hand", np.zeros(len(requests)), prompt_tokens, output_tokens, output_tokens)


MIXED = workload(*[(60, 8)] * 40, *[(120, 5)] * 30, *[(250, 8)] * 20, *[(500, 60)] * 10)


def test_a_point_is_the_proved_choice_of_that_many_buckets_a_request():
    curve = k_curve(MIXED, COSTS, 4, reuse=100)
    assert curve["k"].tolist() == [1, 2, 3, 4]
    for row in curve.itertuples():
        choice = choose_buckets(MIXED, COSTS, Limits(row.k))
        assert row.buckets == " ".join(map(str, choice.buckets))
        assert row.graphs == len(choice.buckets)
        assert row.compile_s == 10.0 * row.graphs
        assert row.device_s == pytest.approx(shape_bound_s(MIXED, choice.costs) / len(MIXED))
        assert row.total_s == pytest.approx(row.device_s + row.compile_s / 100)
        assert row.bound_s <= row.device_s
    assert (curve["device_s"].diff().dropna() < 0).all()


def test_held_out_seconds_are_of_the_requests_that_fit_and_the_others_are_counted():
    later = workload((60, 8), (60, 8), (60, 64), (600, 8))
    (row,) = k_curve(MIXED, COSTS, 1, reuse=1, held_out=later).itertuples()
    (cost,) = price(BucketSet.parse(row.buckets), TOY)
    assert row.held_out_lost == 1
    size = cost.bucket.batch_size
    by_hand_s = sum(cost.batch_s(tokens) / size for tokens in (8, 8, 64)) / 3
    assert row.held_out_s == pytest.approx(by_hand_s)
    assert "held_out_s" not in k_curve(MIXED, COSTS, 1, reuse=1)


def test_a_warmup_budget_ends_the_gain():
    curve = k_curve(MIXED, COSTS, 4, reuse=1e6, warmup_budget_s=25)
    assert curve["graphs"].tolist() == [1, 2, 2, 2]
    assert knee(curve) == 2


def test_a_number_of_buckets_that_cannot_serve_everybody_is_left_out_of_the_curve():
    corner = price(BucketSet.parse("4,64,256 4,512,32 4,64,32"), TOY)  # 4,512,256: not measured
    requests = workload((60, 256), (500, 20))
    curve = k_curve(requests, corner, 3, reuse=100)
    assert curve["k"].tolist() == [2, 3]
    assert knee(curve) == 2
    with pytest.raises(ValueError, match="no choice of 1 buckets serves every request"):
        k_curve(requests, corner, 1, reuse=100)


def test_one_dimension_has_no_seconds_where_the_model_has_no_figure_for_its_longest():
    class NoCorner(FittedCost):
        def of(self, bucket):
            if bucket.prompt_length > 64 and bucket.new_tokens > 32:
                raise ValueError("beyond what was measured")
            return super().of(bucket)

    model = NoCorner(TOY.prefill_s, TOY.decode_s, TOY.compile_s)
    requests = workload((60, 256), (500, 20))
    assert np.isnan(prompts_only(requests, model, 3, batch_size=4)).tolist() == [True] * 3


@pytest.mark.parametrize(("k", "reuse", "words"), [(0, 1, "k 0 is below 1"), (1, 0, "reuse 0 is")])
def test_what_is_below_one_is_refused(k, reuse, words):
    with pytest.raises(ValueError, match=words):
        k_curve(MIXED, COSTS, k, reuse=reuse)


def test_the_more_requests_a_start_serves_the_more_buckets_pay():
    knees = [knee(k_curve(MIXED, COSTS, 5, reuse=reuse)) for reuse in (1, 300, 10**7)]
    assert knees[0] == 1
    assert knees == sorted(knees)
    assert knees[2] > 2


@given(st.integers(1, 4000))
def test_on_a_convex_curve_the_knee_is_where_one_more_saves_less_than_its_compile(requests):
    share_s = prompts_only(MIXED, TOY, 6, batch_size=4)
    k = np.arange(1, 7)
    curve = pd.DataFrame({"k": k, "total_s": np.array(share_s) + k * 10.0 / requests})
    pays = [(now - then) * requests >= 10.0 for now, then in itertools.pairwise(share_s)]
    assert knee(curve) == (pays.index(False) + 1 if False in pays else len(share_s))


def test_prompt_lengths_alone_by_hand():
    requests = workload((60, 8), (60, 8), (120, 20))
    one, two, three = prompts_only(requests, TOY, 3, batch_size=4)
    decode_s = (12 - 1) * (0.02 + 5e-4 * 4) / 4  # 12 tokens on average, buckets for 20
    prefill_s = {top: (0.02 + 4e-4 * top) / 4 for top in (64, 128)}
    assert one == pytest.approx(decode_s + prefill_s[128])
    assert two == pytest.approx(decode_s + (2 * prefill_s[64] + prefill_s[128]) / 3)
    assert three == two


def test_where_a_cost_table_begins_higher_prompts_are_priced_with_its_shortest():
    class From128:
        smallest = (1, 128, 2)

        def of(self, bucket):
            assert bucket.prompt_length >= 128
            return TOY.of(bucket)

    requests = workload((60, 8), (200, 8))
    found = prompts_only(requests, From128(), 2, batch_size=4)
    prefill_s = [(0.02 + 4e-4 * top) / 4 for top in (128, 256)]
    assert found[1] == pytest.approx(sum(prefill_s) / 2 + 7 * 0.022 / 4)
