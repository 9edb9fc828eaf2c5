"""A model that cannot be served ends in one sentence of ours, before an engine starts."""

import json
import shutil
from pathlib import Path

import pytest

from tests.engine.matrix import Case, write
from tests.plugin.conftest import platform_as_before
from tests.plugin.servers import SPYRE
from tests.tiny_models import save_byte_tokenizer

SIZES = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 12}


@pytest.fixture(autouse=True)
def _the_engine_of_other_tests_stays_the_last_one():
    with platform_as_before():
        yield


def other(family: str, model_class: str, **values):
    """Writes a model of an architecture that FMS, or only transformers and vLLM, would know."""

    def make(directory: Path) -> None:
        import transformers

        vocab_size = save_byte_tokenizer(directory)
        config = getattr(transformers, f"{family}Config")(vocab_size=vocab_size, **values)
        getattr(transformers, model_class)(config).save_pretrained(directory)

    return make


def llama(**changes):
    def make(directory: Path) -> None:
        write(Case("Llama", "as it is"), directory)
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return make


def with_own_code(directory: Path) -> None:
    """A class of its own, which trust_remote_code lets run."""
    llama(model_type="own", auto_map={"AutoConfig": "own.OwnConfig"})(directory)
    (directory / "own.py").write_text(
        "from transformers import LlamaConfig\n\n\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    )


REFUSED = {
    "GPT-2": (
        other("GPT2", "GPT2LMHeadModel", n_embd=96, n_layer=2, n_head=12, n_positions=512),
        "architecture 'GPT2LMHeadModel' cannot be served: what runs is LlamaForCausalLM",
    ),
    "GPT-BigCode": (
        other("GPTBigCode", "GPTBigCodeForCausalLM", n_embd=96, n_layer=2, n_head=12),
        "architecture 'GPTBigCodeForCausalLM' cannot be served",
    ),
    "OPT": (
        other("OPT", "OPTForCausalLM", ffn_dim=192, word_embed_proj_dim=96, **SIZES),
        "architecture 'OPTForCausalLM' cannot be served",
    ),
    "Mixtral": (
        other("Mixtral", "MixtralForCausalLM", intermediate_size=96, **SIZES),
        "architecture 'MixtralForCausalLM' cannot be served",
    ),
    "no architectures": (llama(architectures=None), "config.json has no 'architectures'"),
    "layers missing": (llama(num_hidden_layers=3), "9 missing: model.layers.2"),
    "layers unused": (llama(num_hidden_layers=1), "9 unused: model.layers.1"),
    "window": (llama(sliding_window=16), "sliding_window 16 in config.json is not carried"),
    "rope": (
        llama(rope_parameters={"rope_type": "proportional", "rope_theta": 1e4, "factor": 2.0}),
        "'proportional'.* in config.json is not carried",
    ),
    "own code": (with_own_code, "asks for code of the model's own"),
}


def start(directory: Path, **arguments):
    from vllm import LLM

    return LLM(str(directory), additional_config={"spyre": SPYRE}, **arguments)


@pytest.mark.parametrize(("make", "sentence"), REFUSED.values(), ids=list(REFUSED))
def test_it_is_refused_in_a_sentence(make, sentence, tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        start(tmp_path, trust_remote_code=True)


def test_a_tokenizer_may_lie_elsewhere(tmp_path, tiny_llama):
    model, tokenizer = tmp_path / "model", tmp_path / "tokenizer"
    shutil.copytree(tiny_llama, model)
    tokenizer.mkdir()
    for path in model.glob("*token*"):
        path.rename(tokenizer / path.name)
    answer = start(model, tokenizer=str(tokenizer)).generate("Some prompt", use_tqdm=False)
    assert answer[0].outputs[0].token_ids


def test_a_path_may_hold_signs_of_a_pattern(tmp_path, tiny_llama):
    model = Path(shutil.copytree(tiny_llama, tmp_path / "a*[1]?"))
    assert start(model).generate("Some prompt", use_tqdm=False)[0].outputs[0].token_ids
