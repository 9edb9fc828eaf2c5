"""Memory is reckoned before anything is loaded, and a refusal says what would fit."""

from types import SimpleNamespace

import pytest

from spyre_bench.shapes import Bucket, BucketSet

pytestmark = pytest.mark.engine


@pytest.fixture
def shape():
    from spyre_bench.engine.memory import ModelShape

    return ModelShape(
        weights=1000,
        split_weights=600,
        kv_weights=300,
        layers=2,
        heads=6,
        kv_heads=3,
        head_dim=4,
        hidden_size=24,
        intermediate_size=48,
        vocab_size=100,
        context_length=512,
    )


def test_a_buckets_bytes_are_the_sum_of_its_tensors(shape):
    kv = 2 * 2 * 5 * 3 * (64 + 6) * 4 * 4  # k and v, layers, rows, heads, slots, head dim, fp32
    logits = 5 * 100 * 4
    mask = 5 * 64 * 64 * 4
    activations = 5 * 64 * (4 * 24 + 3 * 48) * 4
    wanted = 1000 * 4 + kv + logits + mask + activations
    assert shape.bucket_bytes(Bucket(5, 64, 6), "float32") == wanted


def test_a_rank_holds_its_share_of_the_layers_and_the_rest_whole(shape):
    assert shape.weight_bytes("float32", tp=3) == (100 + 600 // 3 + 300 // 3) * 4
    assert shape.weight_bytes("float32", tp=6) == (100 + 600 // 6 + 300 // 3) * 4  # heads shared
    kv = 2 * 2 * 5 * 1 * (64 + 6) * 4 * 4
    activations = 5 * 64 * (4 * 24 + 3 * 16) * 4
    rest = 5 * 100 * 4 + 5 * 64 * 64 * 4
    assert shape.pass_bytes(Bucket(5, 64, 6), "float32", tp=3) == kv + activations + rest


def test_ranks_on_one_machine_share_what_it_has_free(shape, monkeypatch):
    import psutil

    from spyre_bench.engine.memory import check_memory

    buckets = BucketSet.parse("5,64,6")
    needed = shape.bucket_bytes(Bucket(5, 64, 6), "float32", tp=3)
    free = SimpleNamespace(available=3 * needed)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert check_memory(shape, buckets, "float32", None, tp=3) == needed
    free.available -= 3
    with pytest.raises(ValueError, match="float32 on each of 3 ranks"):
        check_memory(shape, buckets, "float32", None, tp=3)


def test_the_largest_bucket_decides_and_the_limit_itself_fits(shape):
    from spyre_bench.engine.memory import check_memory

    buckets = BucketSet.parse("5,64,6 1,64,2")
    needed = shape.bucket_bytes(Bucket(5, 64, 6), "float32")
    assert check_memory(shape, buckets, "float32", needed) == needed


def test_a_bucket_too_large_is_told_the_largest_batch_that_fits(shape):
    from spyre_bench.engine.memory import check_memory

    limit = shape.bucket_bytes(Bucket(3, 64, 6), "float32") + 1
    with pytest.raises(ValueError, match=r"batch_size that fits .* is 3$") as error:
        check_memory(shape, BucketSet.parse("5,64,6"), "float32", limit)
    assert f"needs {shape.bucket_bytes(Bucket(5, 64, 6), 'float32'):,} bytes" in str(error.value)
    assert f"there are {limit:,}" in str(error.value)
    assert check_memory(shape, BucketSet.parse("3,64,6"), "float32", limit) <= limit


def test_where_no_batch_fits_the_remedy_is_another(shape):
    from spyre_bench.engine.memory import check_memory

    with pytest.raises(ValueError, match="not even batch_size 1 fits"):
        check_memory(shape, BucketSet.parse("5,64,6"), "float32", 4000)


def test_the_shape_read_from_files_counts_the_parameters_of_the_model(tiny_granite):
    from transformers import AutoModelForCausalLM

    from spyre_bench.engine.memory import ModelShape

    model = AutoModelForCausalLM.from_pretrained(tiny_granite)
    assert ModelShape.read(tiny_granite).weights == sum(p.numel() for p in model.parameters())


def test_the_engine_refuses_before_it_loads_anything(tiny_llama, monkeypatch):
    from spyre_bench.engine import causal_lm as module
    from spyre_bench.engine import fms

    monkeypatch.setattr(fms, "get_model", lambda *a, **k: pytest.fail("it loaded"))
    config = module.EngineConfig(
        model_directory=tiny_llama,
        buckets=BucketSet.parse("1,64,2"),
        compile_backend="eager",
        memory_bytes=1000,
    )
    with pytest.raises(ValueError, match="bucket 1,64,2 needs"):
        module.SpyreCausalLM(config)
