"""Gains by number of ranks, and what ranks sent beside the closed form."""

import pandas as pd
import pytest

from spyre_bench.model_sizes import ModelSizes
from spyre_bench.shapes import Bucket
from spyre_bench.validate.tensor_parallel import against_model, gains, timed_bucket


def test_gains_are_over_the_first_row_and_shared_by_the_ranks():
    rows = pd.DataFrame(
        {"tp": [1, 2, 3], "prefill_s": [6.0, 4.0, 2.0], "decode_s": [1.0, 1.0, 2.0]}
    )
    found = gains(rows)
    assert list(found["prefill_gain"]) == [1, 1.5, 3]
    assert list(found["prefill_gain_a_rank"]) == [1, 0.75, 1]
    assert list(found["decode_gain"]) == [1, 1, 0.5]
    assert list(found["decode_gain_a_rank"]) == pytest.approx([1, 0.5, 0.5 / 3])


def test_what_ranks_send_stands_beside_two_sums_a_layer():
    model = ModelSizes(
        name="m",
        hidden_size=24,
        intermediate_size=48,
        layers=5,
        heads=6,
        kv_heads=6,
        head_dim=4,
        vocab_size=100,
        context_length=512,
        tied_head=True,
    )
    starts = pd.DataFrame(
        {
            "tp": [1, 2],
            "bucket": ["3,64,4"] * 2,
            "weights": [10, 6],
            "decode_reduces": [0, 10],
            "decode_reduced_elements": [0, 720],
            "prefill_reduced_elements": [0, 46080],
        }
    )
    found = against_model(starts, model).set_index(["tp", "quantity"])
    assert len(found) == 2 * 4
    sent = found.drop("weights of a rank", level="quantity")
    assert (sent["measured"] == sent["model"]).all()
    assert found.loc[(2, "elements reduced in a prefill"), "model"] == 10 * 3 * 64 * 24
    layers = 5 * (4 * 24 * 24 + 3 * 24 * 48)  # attention and MLP, split over the ranks
    whole = 100 * 24 + 5 * 2 * 24 + 24  # embedding, which is the head, and norms
    assert found.loc[(2, "weights of a rank"), "model"] == layers // 2 + whole


def test_a_bucket_without_a_decode_pass_between_two_others_is_refused():
    assert timed_bucket("1,64,3") == Bucket(1, 64, 3)
    with pytest.raises(ValueError, match=r"1,64,2 has new_tokens 2: .* give 3 or more"):
        timed_bucket("1,64,2")
