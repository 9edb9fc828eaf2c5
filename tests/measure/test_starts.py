"""Start-ups of a set of buckets in fresh processes, on a tiny model."""

import json

import pytest
from safetensors import safe_open

from spyre_bench.checkpoints.first_layers import shallow_copy
from spyre_bench.measure.starts import measure_starts
from spyre_bench.shapes import Bucket, BucketSet

BUCKETS = BucketSet.parse("1,64,4 2,64,4")


@pytest.mark.slow
def test_each_bucket_has_a_row_of_a_cold_and_of_a_warm_start_in_the_order_of_warmup(tiny_llama):
    frame = measure_starts(tiny_llama, BUCKETS, layers=1, threads=1, passes=2)
    assert list(zip(frame["start"], frame["bucket"], frame["was_warm"], strict=True)) == [
        ("cold", "2,64,4", False),
        ("cold", "1,64,4", False),
        ("warm", "2,64,4", True),
        ("warm", "1,64,4", True),
    ]
    for column in ("load_s", "compile_s", "first_run_s", "prefill_s", "decode_s"):
        assert (frame[column] > 0).all(), column
    assert (frame["startup_s"] == frame["compile_s"] + frame["first_run_s"]).all()
    by_start = frame.groupby("start")["compile_s"].sum()
    assert by_start["warm"] < by_start["cold"]
    assert set(frame["threads"]) == set(frame["layers"]) == {1}


@pytest.mark.slow
def test_ranks_start_together_and_each_needs_less_memory(tiny_llama):
    one, two = (
        measure_starts(tiny_llama, BUCKETS, tp=tp, compile_backend="eager", passes=2, warm=False)
        for tp in (1, 2)
    )
    assert set(two["tp"]) == {2}
    assert set(two["start"]) == {"cold"}
    assert list(two["bucket"]) == list(one["bucket"])
    assert (two["memory_bytes"] < one["memory_bytes"]).all()
    assert (two["decode_s"] > 0).all()
    # Two all-reduces a layer of [rows, tokens, hidden]: what the card's cost model counts.
    assert set(one["decode_reduces"]) == {0}
    assert set(two["decode_reduces"]) == set(two["prefill_reduces"]) == {2 * 2}
    rows = two["bucket"].map(lambda text: Bucket.parse(text).batch_size)
    hidden = 12 * 8
    assert (two["decode_reduced_elements"] == 4 * rows * hidden).all()
    assert (two["prefill_reduced_elements"] == 4 * rows * 64 * hidden).all()
    assert two["decode_reduce_share"].between(0, 1).all()


def test_a_setting_that_the_engine_refuses_is_told_in_its_words(tiny_llama):
    with pytest.raises(ValueError, match=r"1,64,4.*failed:.*beyond the model's context of 512"):
        measure_starts(tiny_llama, BucketSet.parse("1,64,4 1,512,64"), compile_backend="eager")


def test_a_shallow_model_has_the_first_layers_and_all_that_is_around_them(tiny_llama, tmp_path):
    target = shallow_copy(tiny_llama, 1, tmp_path / "shallow")
    with (
        safe_open(target / "model.safetensors", "pt") as shallow,
        safe_open(tiny_llama / "model.safetensors", "pt") as whole,
    ):
        dropped = set(whole.keys()) - set(shallow.keys())
        assert dropped == set(filter(lambda name: ".layers.1." in name, whole.keys()))
        assert dropped
        name = "model.layers.0.mlp.up_proj.weight"
        assert (shallow.get_tensor(name) == whole.get_tensor(name)).all()
    assert json.loads((target / "config.json").read_text())["num_hidden_layers"] == 1
    assert (target / "tokenizer.json").exists()


def test_a_model_cannot_be_made_deeper(tiny_llama, tmp_path):
    with pytest.raises(ValueError, match=r"3 layers of .*: it has 2, use 1 to 2"):
        shallow_copy(tiny_llama, 3, tmp_path / "deep")
