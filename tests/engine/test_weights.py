"""The weights served are the ones meant, all of them, and only they."""

import json
import shutil
from pathlib import Path

import pytest

from tests.engine.matrix import BUCKETS, Case, expected, prompts, served, write

pytestmark = pytest.mark.engine

LAYER = "model.layers.1.mlp.down_proj.weight"
MODEL_FILE = "model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return write(Case("Llama", "as it is"), tmp_path_factory.mktemp("original"))


@pytest.fixture
def model(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def tensors(directory: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(directory / MODEL_FILE)


def save(directory: Path, values: dict, name: str = MODEL_FILE) -> None:
    from safetensors.torch import save_file

    save_file(values, directory / name, metadata={"format": "pt"})


def shard(directory: Path) -> None:
    """The model in two files and an index."""
    values = tensors(directory)
    parts = [{}, {}]
    for number, name in enumerate(sorted(values)):
        parts[number % 2][name] = values[name]
    (directory / MODEL_FILE).unlink()
    weight_map = {}
    for number, part in enumerate(parts):
        file = f"model-{number + 1:05}-of-00002.safetensors"
        save(directory, part, file)
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def edit_config(directory: Path, **values) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def serve(directory: Path):
    from spyre_bench.engine.causal_lm import SpyreCausalLM
    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.engine.warmup import warm_up
    from spyre_bench.shapes import BucketSet

    config = EngineConfig(
        model_directory=directory,
        buckets=BucketSet.parse(BUCKETS),
        compile_backend="eager",
    )
    engine = SpyreCausalLM(config)
    warm_up(engine, progress=False)
    return served(engine, prompts())


# --- which files ------------------------------------------------------------------------------
def test_only_the_files_that_the_index_names_are_read(original, model, caplog):
    shard(model)
    stale = {name: value.zero_() for name, value in tensors(original).items()}
    save(model, stale, "a-stale-shard.safetensors")
    assert serve(model) == expected(original)
    assert "not read: ['a-stale-shard.safetensors']" in caplog.text


def test_an_adapter_beside_the_model_is_not_read(original, model, caplog):
    save(model, {LAYER: tensors(original)[LAYER].zero_()}, "adapter_model.safetensors")
    assert serve(model) == expected(original)
    assert "adapter_model.safetensors" in caplog.text


def test_a_single_file_of_another_name_is_the_model(original, model):
    (model / MODEL_FILE).rename(model / "weights.safetensors")
    assert serve(model) == expected(original)


def test_of_two_files_that_could_be_the_model_none_is_guessed(model):
    save(model, tensors(model), "one.safetensors")
    (model / MODEL_FILE).rename(model / "two.safetensors")
    with pytest.raises(
        ValueError, match=r"2 files could be it \(one.* two.*\): name the right one"
    ):
        serve(model)


def test_a_whole_model_beside_an_index_that_does_not_name_it_is_refused(original, model):
    shard(model)
    save(model, tensors(original))
    with pytest.raises(ValueError, match="an index that does not name it: readers differ"):
        serve(model)


def test_a_path_with_signs_of_a_pattern_is_a_path(original, model):
    odd = model.rename(model.parent / "a*[1]?")
    assert serve(odd) == expected(original)


def test_an_index_reads_nothing_outside_its_directory(model):
    index = {"weight_map": {LAYER: "../other.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"names files elsewhere: \.\./other\.safetensors"):
        serve(model)


def test_a_tensor_in_two_files_is_refused(original, model):
    shard(model)
    first = model / "model-00001-of-00002.safetensors"
    from safetensors.torch import load_file

    save(model, load_file(first) | {"lm_head.weight": tensors(original)["lm_head.weight"]}, first)
    second = model / "model-00002-of-00002.safetensors"
    save(model, load_file(second) | {"lm_head.weight": tensors(original)["lm_head.weight"]}, second)
    with pytest.raises(ValueError, match=r"lm_head\.weight stands in two files"):
        serve(model)


# --- which tensors ----------------------------------------------------------------------------
@pytest.mark.parametrize("name", [LAYER, "lm_head.weight", "model.norm.weight"])
def test_a_missing_tensor_is_named(model, name):
    values = tensors(model)
    del values[name]
    save(model, values)
    with pytest.raises(ValueError, match=f"1 missing: {name}; 0 unused"):
        serve(model)


def test_a_layer_more_in_the_config_than_in_the_file_is_missing(model):
    edit_config(model, num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"9 missing: model\.layers\.2\..* and 4 more; 0 unused"):
        serve(model)


def test_a_layer_more_in_the_file_than_in_the_config_is_unused(model):
    edit_config(model, num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"0 missing; 9 unused: model\.layers\.1\."):
        serve(model)


@pytest.mark.parametrize("prefix", ["base_model.model.", "_orig_mod.", "module."])
def test_names_of_a_wrapped_model_are_refused_with_the_wrapper(model, prefix):
    save(model, {prefix + name: value for name, value in tensors(model).items()})
    with pytest.raises(ValueError, match=f"names begin with '{prefix}', as of a wrapped model"):
        serve(model)


def test_a_model_saved_without_its_head_is_refused(model):
    values = {name.removeprefix("model."): value for name, value in tensors(model).items()}
    del values["lm_head.weight"]
    save(model, values)
    with pytest.raises(ValueError, match=r"names lack 'model\.': save the model with its head"):
        serve(model)


def test_another_shape_is_refused_with_the_tensor(model):
    values = tensors(model)
    values["model.embed_tokens.weight"] = values["model.embed_tokens.weight"][:-1]
    save(model, values)
    with pytest.raises(
        ValueError, match=r"embed_tokens\.weight has shape \[263, 96\].* \[264, 96\]"
    ):
        serve(model)


def test_frequencies_of_old_checkpoints_are_not_needed(original, model):
    import torch

    save(model, tensors(model) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert serve(model) == expected(original)


# --- which values -----------------------------------------------------------------------------
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_refused_with_its_tensor(model, value):
    values = tensors(model)
    values[LAYER][3, 5] = value
    save(model, values)
    with pytest.raises(ValueError, match=f"{LAYER} has 1 values that are not finite in float32"):
        serve(model)


def test_a_tied_head_in_the_file_is_the_embedding(tmp_path):
    model = write(Case("Llama", "tied", {"tie_word_embeddings": True}), tmp_path)
    tokens = expected(model)
    values = tensors(model)
    save(model, values | {"lm_head.weight": values["model.embed_tokens.weight"].clone()})
    assert serve(model) == tokens
    save(model, values | {"lm_head.weight": values["model.embed_tokens.weight"] + 1})
    with pytest.raises(ValueError, match=r"tie_word_embeddings is true, but lm_head\.weight is"):
        serve(model)


def test_whole_numbers_are_no_weights(model):
    values = tensors(model)
    save(model, values | {LAYER: values[LAYER].char()})
    with pytest.raises(ValueError, match=f"{LAYER} holds int8, of a quantised checkpoint"):
        serve(model)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_in_half_the_bits_are_served_in_float32(model, dtype):
    import torch

    save(model, {name: value.to(getattr(torch, dtype)) for name, value in tensors(model).items()})
    assert serve(model) == expected(model)
