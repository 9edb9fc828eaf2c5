"""Memory is reckoned before anything is loaded, and a refusal says what would fit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from spyre_bench.model_sizes import ModelSizes
from spyre_bench.shapes import Bucket, BucketSet

pytestmark = pytest.mark.engine


# 2 layers of 6 heads over 3 KV heads of 4
SIZES = ModelSizes(
    name="tiny",
    hidden_size=24,
    intermediate_size=48,
    layers=2,
    heads=6,
    kv_heads=3,
    head_dim=4,
    vocab_size=100,
    context_length=512,
)


def bucket_bytes(bucket: Bucket, tp: int = 1) -> int:
    from spyre_bench.engine.memory import pass_bytes

    return SIZES.weight_bytes("float32", tp) + pass_bytes(SIZES, bucket, "float32", tp)


def test_a_buckets_bytes_are_the_sum_of_its_tensors():
    kv = 2 * 2 * 5 * 3 * (64 + 6) * 4 * 4  # k and v, layers, rows, heads, slots, head dim, fp32
    logits = 5 * 100 * 4
    mask = 5 * 64 * 64 * 4
    activations = 5 * 64 * (4 * 24 + 3 * 48) * 4
    wanted = SIZES.parameters * 4 + kv + logits + mask + activations
    assert bucket_bytes(Bucket(5, 64, 6)) == wanted


def test_logits_are_float32_whatever_the_engines_type():
    from spyre_bench.engine.memory import pass_bytes

    bucket, logits = Bucket(5, 64, 6), 5 * 100 * 4
    whole, half = (pass_bytes(SIZES, bucket, dtype) for dtype in ("float32", "float16"))
    assert half - logits == (whole - logits) / 2
    assert SIZES.weight_bytes("float16") == SIZES.weight_bytes("float32") / 2


def test_a_rank_holds_its_share_of_the_layers_and_the_rest_whole():
    from spyre_bench.engine.memory import pass_bytes

    whole = 2 * 100 * 24 + 2 * 2 * 24 + 24  # embedding, head and norms
    split = 2 * (2 * 24 * 24 + 3 * 24 * 48)  # query, output and the MLP
    kv_weights = 2 * 2 * 24 * 12
    for tp, heads in ((3, 3), (6, 3)):  # of six ranks two have the same KV head
        held = whole + split // tp + kv_weights // heads
        assert SIZES.weight_bytes("float32", tp) == held * 4
    kv = 2 * 2 * 5 * 1 * (64 + 6) * 4 * 4
    activations = 5 * 64 * (4 * 24 + 3 * 16) * 4
    rest = 5 * 100 * 4 + 5 * 64 * 64 * 4
    assert pass_bytes(SIZES, Bucket(5, 64, 6), "float32", tp=3) == kv + activations + rest


def test_a_tied_head_is_held_twice_where_it_is_packed():
    from spyre_bench.engine.memory import check_memory

    def needed(tied: bool, packs: bool) -> int:
        sizes = replace(SIZES, tied_head=tied)
        return check_memory(sizes, BucketSet.parse("5,64,6"), "float32", 2**40, packs=packs)

    assert needed(tied=True, packs=True) == needed(tied=True, packs=False) + 100 * 24 * 4
    assert needed(tied=False, packs=True) == needed(tied=False, packs=False)


def test_ranks_on_one_machine_share_what_it_has_free(monkeypatch):
    import psutil

    from spyre_bench.engine.memory import check_memory

    buckets = BucketSet.parse("5,64,6")
    needed = bucket_bytes(Bucket(5, 64, 6), tp=3)
    free = SimpleNamespace(available=3 * needed)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert check_memory(SIZES, buckets, "float32", None, tp=3) == needed
    free.available -= 3
    with pytest.raises(ValueError, match="float32 on each of 3 ranks"):
        check_memory(SIZES, buckets, "float32", None, tp=3)


def control_group(directory: Path, version: int, limit: str, used: int) -> None:
    """The files of one, a tenth of whose memory is of files that were read."""
    names, prefix = {
        1: (("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_"),
        2: (("memory.max", "memory.current"), ""),
    }[version]
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, used), strict=True):
        (directory / name).write_text(f"{value}\n")
    counts = f"anon 5\n{prefix}active_file {used // 20}\n{prefix}inactive_file {used // 20}\n"
    (directory / "memory.stat").write_text(counts)


@pytest.mark.parametrize(
    ("version", "line", "top"), [(2, "0::/a/b", "."), (1, "4:cpu,memory:/a/b", "memory")]
)
def test_a_container_may_have_less_than_the_machine(tmp_path, monkeypatch, version, line, top):
    from spyre_bench.engine import memory
    from spyre_bench.engine.container import room_bytes

    mine, mounted = tmp_path / "mine", tmp_path / "mounted"
    mine.write_text(f"9:pids:/x\n{line}\n")
    assert room_bytes(mine, mounted) > 2**60  # no limit is in sight
    control_group(mounted / top / "a" / "b", version, "max", 100)
    control_group(mounted / top / "a", version, "5000", 1000)
    assert room_bytes(mine, mounted) == 5000 - 900  # one around ours has the limit
    control_group(mounted / top / "a" / "b", version, "2000", 1000)
    assert room_bytes(mine, mounted) == 2000 - 900
    mine.write_text(line.replace("/a/b", "/name/outside"))
    control_group(mounted / top, version, "3000", 1000)
    assert room_bytes(mine, mounted) == 3000 - 900
    monkeypatch.setattr(memory, "room_bytes", lambda: room_bytes(mine, mounted))
    assert memory.memory_there(None, 3) == 700
    assert memory.memory_there(10**9, 3) == 10**9


def test_the_largest_bucket_decides_and_the_limit_itself_fits():
    from spyre_bench.engine.memory import check_memory

    buckets = BucketSet.parse("5,64,6 1,64,2")
    needed = bucket_bytes(Bucket(5, 64, 6))
    assert check_memory(SIZES, buckets, "float32", needed) == needed


def test_the_largest_cache_stays_while_another_bucket_computes():
    from spyre_bench.engine.memory import cache_bytes, check_memory, work_bytes

    buckets = BucketSet.parse("8,64,448 4,448,2")  # most cache, most work
    holds, computes = Bucket(8, 64, 448), Bucket(4, 448, 2)
    needed = SIZES.weight_bytes("float32")
    needed += cache_bytes(SIZES, holds, "float32") + work_bytes(SIZES, computes, "float32")
    assert needed > max(bucket_bytes(holds), bucket_bytes(computes))
    assert check_memory(SIZES, buckets, "float32", needed) == needed
    with pytest.raises(
        ValueError, match=f"cache of bucket 8,64,448 stays while bucket 4,448,2 .* {needed:,} bytes"
    ):
        check_memory(SIZES, buckets, "float32", needed - 1)


def test_a_bucket_too_large_is_told_the_largest_batch_that_fits():
    from spyre_bench.engine.memory import check_memory

    limit = bucket_bytes(Bucket(3, 64, 6)) + 1
    with pytest.raises(ValueError, match=r"batch_size that fits .* is 3$") as error:
        check_memory(SIZES, BucketSet.parse("5,64,6"), "float32", limit)
    assert f"needs {bucket_bytes(Bucket(5, 64, 6)):,} bytes" in str(error.value)
    assert f"there are {limit:,}" in str(error.value)
    assert check_memory(SIZES, BucketSet.parse("3,64,6"), "float32", limit) <= limit


def test_where_no_batch_fits_the_remedy_is_another():
    from spyre_bench.engine.memory import check_memory

    with pytest.raises(ValueError, match="not even batch_size 1 fits"):
        check_memory(SIZES, BucketSet.parse("5,64,6"), "float32", 4000)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_granite", "smollm2"])
def test_the_sizes_count_the_parameters_of_the_model_and_of_its_files(name, request):
    from transformers import AutoModelForCausalLM

    directory = request.getfixturevalue(name)
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert sizes_in(directory).parameters == sum(p.numel() for p in model.parameters())


def sizes_in(directory) -> ModelSizes:
    from spyre_bench.checkpoints.weight_files import WeightFiles
    from spyre_bench.engine.carried import read_config
    from spyre_bench.engine.memory import sizes_of

    return sizes_of(read_config(directory), WeightFiles(directory))


def test_a_tied_head_that_is_stored_too_counts_once(smollm2, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(smollm2, tmp_path / "both")
    (file,) = (tmp_path / "both").glob("*.safetensors")
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file)
    assert sizes_in(tmp_path / "both") == replace(sizes_in(smollm2), name="both")


def test_files_that_hold_other_parameters_than_the_config_makes_are_refused(tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "other")
    config = json.loads((tiny_llama / "config.json").read_text())
    (tmp_path / "other/config.json").write_text(json.dumps(config | {"vocab_size": 7}))
    with pytest.raises(ValueError, match=r"weight files hold .* and config\.json makes"):
        sizes_in(tmp_path / "other")


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
