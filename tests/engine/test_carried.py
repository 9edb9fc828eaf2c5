"""The table of what is carried is whole: it answers for every field that transformers has."""

import ast
import dataclasses
import inspect
from pathlib import Path

import pytest

from tests.engine.matrix import Case, write

pytestmark = pytest.mark.engine

ARCHITECTURES = (
    "LlamaForCausalLM",
    "GraniteForCausalLM",
    "GraniteMoeHybridForCausalLM",
    "MistralForCausalLM",
    "Qwen3ForCausalLM",
)


def answered(architecture: str) -> set[str]:
    from spyre_bench.engine.carried import CARRIED, INERT, UNUSED

    return set(CARRIED[architecture]) | INERT | UNUSED.get(architecture, set())


def exempt(name: str) -> bool:
    return "dropout" in name or name.startswith(("mamba_", "_"))


def test_the_table_has_the_architectures_that_the_matrix_tries():
    from spyre_bench.engine.carried import CARRIED

    assert set(CARRIED) == set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_field_that_a_config_class_declares_is_answered_for(architecture):
    import transformers

    config_class = getattr(transformers, architecture.replace("ForCausalLM", "Config"))
    declared = {field.name for field in dataclasses.fields(config_class)}
    assert not {name for name in declared - answered(architecture) if not exempt(name)} - {
        "is_encoder_decoder"
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_field_that_the_models_own_code_reads_is_answered_for(architecture):
    import transformers

    source = inspect.getsource(inspect.getmodule(getattr(transformers, architecture)))
    read = {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value) in ("config", "self.config")
        and not node.attr.startswith("_")
    }
    read |= {
        node.args[1].value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "getattr"
        and ast.unparse(node.args[0]) in ("config", "self.config")
        and isinstance(node.args[1], ast.Constant)
    }
    assert {"hidden_size", "rms_norm_eps"} <= read
    assert not {name for name in read - answered(architecture) if not exempt(name)}


def test_the_page_of_models_is_written_from_the_table():
    from spyre_bench.engine.carried import page

    written = Path(__file__).parents[2] / "docs" / "MODELS.md"
    assert written.read_text() == page(), "run python -m spyre_bench.engine.carried"


def test_a_field_that_nobody_reads_is_named_in_the_log(tmp_path, caplog):
    from spyre_bench.engine.carried import read_config, require_carried

    write(Case("Llama", "colour", {}, {"colour": "blue"}), tmp_path)
    with caplog.at_level("INFO"):
        require_carried(read_config(tmp_path), 64)
    assert "LlamaForCausalLM does not read: ['colour']" in caplog.text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "config.json cannot be read"),
        ("[]", "has no 'architectures'"),
        (
            '{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}',
            "'GPT2LMHeadModel' cannot",
        ),
        (
            '{"architectures": ["Own"], "model_type": "own", "auto_map": {}}',
            "'Own' cannot be served",
        ),
        ('{"architectures": ["LlamaForCausalLM"]}', "is refused by transformers"),
        (
            '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": "big"}',
            "is refused by transformers",
        ),
    ],
)
def test_a_config_that_cannot_be_read_is_one_sentence(text, sentence, tmp_path):
    from spyre_bench.engine.carried import read_config, require_carried

    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=sentence) as refusal:
        require_carried(read_config(tmp_path), 64)
    assert "\n" not in str(refusal.value)
