"""What of a model's config.json the engine carries into FMS, by architecture, field and value.

FMS's reader takes some fields of a config and drops the others without a word. What is not in this
table and could change what the model computes is refused. `docs/MODELS.md` is written from it:
`python -m spyre_bench.engine.carried`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

log = logging.getLogger(__name__)

ACTIVATIONS = ("silu", "swish", "gelu", "gelu_pytorch_tanh", "relu", "tanh", "sigmoid", "mish")
"""Names that stand for the same function in transformers and in FMS."""

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")
"""Rotary embeddings whose frequencies stay as they are up to `max_position_embeddings`."""


class NotCarried(ValueError):
    """FMS would compute something else; other model code may do better."""


@dataclass(frozen=True)
class Question:
    """A field's value, and what decides whether it is carried."""

    value: Any
    config: PretrainedConfig
    context_length: int  # of the longest bucket or shape, in tokens


@dataclass(frozen=True)
class Field:
    """Which values of a field are carried, in words and as a test; what runs for the others."""

    allowed: str
    accepts: Callable[[Question], bool] = lambda question: True
    instead: str = ""


def _is_whole_head(question: Question) -> bool:
    config = question.config
    return question.value in (None, config.hidden_size // config.num_attention_heads)


def _is_known_rope(question: Question) -> bool:
    rope = question.value
    if rope is None:  # granitemoehybrid without positions
        return getattr(question.config, "position_embedding_type", "rope") != "rope"
    if not isinstance(rope, dict) or rope.get("partial_rotary_factor", 1) not in (None, 1):
        return False
    if rope.get("rope_type") == "longrope":
        return question.context_length <= _trained_length(question.config, rope)
    return rope.get("rope_type") in ROPE_TYPES


def _trained_length(config: PretrainedConfig, rope: dict) -> int:
    return rope.get("original_max_position_embeddings") or config.max_position_embeddings


def _is_wide(question: Question) -> bool:
    return question.value is None or question.value >= question.context_length


def _all_attend(question: Question) -> bool:
    window = getattr(question.config, "sliding_window", None)
    wide = window is not None and window >= question.context_length
    full = {"full_attention", "attention", *(["sliding_attention"] if wide else [])}
    return set(question.value or ()) <= full


ANY = Field("any")
EVEN = Field(
    "an even number", lambda question: question.value is None or question.value % 2 == 0, "pairs"
)
FLAG = Field("true or false")
WINDOW = Field(
    "null, or at least as long as the longest bucket or shape",
    _is_wide,
    "attention over the whole context",
)
LAYER_TYPES = Field(
    "attention over the whole context, or a window as long as the longest bucket or shape",
    _all_attend,
    "attention over the whole context in every layer",
)
WHOLE_HEAD = Field(
    "hidden_size / num_attention_heads", _is_whole_head, "hidden_size / num_attention_heads"
)

COMMON = {
    "vocab_size": ANY,
    "hidden_size": ANY,
    "intermediate_size": ANY,
    "num_hidden_layers": ANY,
    "num_attention_heads": ANY,
    "num_key_value_heads": ANY,
    "max_position_embeddings": ANY,
    "rms_norm_eps": ANY,
    "tie_word_embeddings": FLAG,
    "hidden_act": Field(
        ", ".join(ACTIVATIONS), lambda question: question.value in ACTIVATIONS, "silu"
    ),
    "rope_parameters": Field(
        f"rope_type {', '.join(ROPE_TYPES)}, or longrope up to its original length; the whole head",
        _is_known_rope,
        "unscaled rotary embeddings over the whole head",
    ),
    "sliding_window": WINDOW,
    "is_causal": Field("true", lambda question: question.value in (None, True), "causal attention"),
}
GRANITE = {
    "attention_bias": FLAG,
    "mlp_bias": FLAG,
    "embedding_multiplier": ANY,
    "attention_multiplier": ANY,
    "residual_multiplier": ANY,
    "logits_scaling": ANY,
    "head_dim": WHOLE_HEAD,
}
NO_EXPERTS = Field("0, a dense model", lambda question: not question.value, "the shared MLP alone")
CARRIED: dict[str, dict[str, Field]] = {
    "LlamaForCausalLM": COMMON | {"attention_bias": FLAG, "mlp_bias": FLAG, "head_dim": WHOLE_HEAD},
    "GraniteForCausalLM": COMMON | GRANITE,
    "GraniteMoeHybridForCausalLM": COMMON
    | {name: field for name, field in GRANITE.items() if name != "mlp_bias"}
    | {
        "shared_intermediate_size": ANY,
        "num_local_experts": NO_EXPERTS,
        "position_embedding_type": Field(
            "rope, or null or nope for none",
            lambda question: question.value in (None, "rope", "nope"),
            "rope",
        ),
        "normalization_function": Field(
            "rmsnorm", lambda question: question.value in (None, "rmsnorm"), "rmsnorm"
        ),
        "layer_types": LAYER_TYPES,
        "layers_block_type": LAYER_TYPES,
    },
    "MistralForCausalLM": COMMON | {"head_dim": EVEN},
    "Qwen3ForCausalLM": COMMON
    | {
        "attention_bias": Field("false", lambda question: not question.value, "no biases"),
        "head_dim": EVEN,
        "layer_types": LAYER_TYPES,
    },
}
"""Architecture, field, value: what runs as in transformers. `make test-models` holds it."""

UNUSED = {
    "GraniteMoeHybridForCausalLM": frozenset(
        ("intermediate_size", "num_experts_per_tok", "router_aux_loss_coef", "time_step_limit")
    )
}
"""Fields that an architecture's own layers do not read, as far as the table lets them run."""

INERT = frozenset(
    (
        *("architectures", "model_type", "transformers_version", "dtype", "torch_dtype"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id"),
        *("decoder_start_token_id", "id2label", "label2id", "problem_type", "return_dict"),
        *("use_cache", "initializer_range", "output_attentions", "output_hidden_states"),
        *("output_router_logits", "pretraining_tp", "chunk_size_feed_forward", "pruned_heads"),
        *(
            "torchscript",
            "tokenizer_class",
            "prefix",
            "task_specific_params",
            "cache_implementation",
        ),
        *("use_sliding_window", "max_window_layers", "attn_implementation", "tie_encoder_decoder"),
        *("auto_map", "finetuning_task", "gradient_checkpointing", "is_llama_config"),
    )
)
"""Fields of any config that change no logits. `use_sliding_window` and `max_window_layers` only
make `layer_types`; `auto_map` names code that is not run."""

COULD_CHANGE = (
    *("act", "alibi", "attention", "attn", "bias", "causal", "clip", "conv", "cross", "embed"),
    *("expert", "factor", "head", "layer", "logit", "mamba", "moe", "mult", "mup", "norm", "quant"),
    *("position", "residual", "rope", "rotary", "router", "scale", "scaling", "sink", "softcap"),
    *("ssm", "tie", "window"),
)
"""Parts of names of fields that change what some model computes."""


def read_config(directory: Path) -> PretrainedConfig:
    """transformers' reading of config.json, in which every spelling of a field is one.

    Raises ValueError in one sentence where there is none that it understands.
    """
    from transformers import AutoConfig

    try:
        written = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{directory}/config.json cannot be read ({error})") from None
    if not isinstance(written, dict) or not written.get("architectures"):
        raise ValueError(
            f"{directory}/config.json has no 'architectures': name the model's class there, one "
            f"of {', '.join(CARRIED)}"
        )
    _require_own_class(written)
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # whatever a config's own validation raises
        _require_architecture(written["architectures"][0])  # the better sentence, if it is that
        raise ValueError(
            f"{directory}/config.json is refused by transformers: {_first_line(error)}"
        ) from error


def require_carried(config: PretrainedConfig, context_length: int) -> None:
    """Raises ValueError for a model of which FMS would compute something else, naming the field,
    its value, what would run instead, and what is allowed.

    `context_length` is the longest bucket's or shape's, in tokens: a window that is longer changes
    nothing.
    """
    architecture = (getattr(config, "architectures", None) or ["none"])[0]
    _require_architecture(architecture)
    _require_same_class(config, architecture)
    unread = []
    for name, value in sorted(_fields(config)):
        field = CARRIED[architecture].get(name)
        if field is not None:
            if not field.accepts(Question(value, config, context_length)):
                raise NotCarried(_refusal(architecture, name, value, field))
        elif not _is_harmless(architecture, name, value, config):
            if not any(part in name.lower() for part in COULD_CHANGE):
                unread.append(name)
                continue
            raise NotCarried(
                f"{architecture}: {name} {_short(value)} in config.json is not carried into FMS, "
                f"which would run without it: take the field out if the model does not need it, "
                f"else it cannot be served (docs/MODELS.md lists what can)"
            )
    if unread:
        log.info("config.json has fields that %s does not read: %s", architecture, unread)


def _require_architecture(architecture: str) -> None:
    if architecture not in CARRIED:
        raise NotCarried(
            f"architecture {architecture!r} cannot be served: what runs is {', '.join(CARRIED)} "
            f"(docs/MODELS.md)"
        )


def _require_own_class(written: dict[str, Any]) -> None:
    """`auto_map` beside a class that transformers has is only another way to load it."""
    from transformers import CONFIG_MAPPING

    if written.get("auto_map") and written.get("model_type") not in CONFIG_MAPPING:
        raise ValueError(
            f"config.json asks for code of the model's own (auto_map, model_type "
            f"{written.get('model_type')!r}), which is not run here, trusted or not: what runs is "
            f"{', '.join(CARRIED)} of transformers itself (docs/MODELS.md)"
        )


def _require_same_class(config: PretrainedConfig, architecture: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as classes

    meant = classes.get(config.model_type)
    if meant != architecture:
        raise ValueError(
            f"config.json names the architecture {architecture!r} but has model_type "
            f"{config.model_type!r}, which is {meant or 'none that generates text'}: make the two "
            f"agree"
        )


def _fields(config: PretrainedConfig) -> Iterator[tuple[str, Any]]:
    """All values of a config that are its own, also those that its class computes."""
    values = config.to_dict()
    if "layer_types" in values or hasattr(config, "layer_types"):
        values["layer_types"] = getattr(config, "layer_types", None)
    if getattr(config, "quantization_config", None):
        values["quantization_config"] = config.quantization_config
    yield from values.items()


def _is_harmless(architecture: str, name: str, value: Any, config: PretrainedConfig) -> bool:
    """Whether a field outside the table changes nothing: by its name, or by its value."""
    if name.startswith("_") or name in INERT or name in UNUSED.get(architecture, ()):
        return True
    if "dropout" in name or (name.startswith("mamba_") and _no_mamba(config)):
        return True
    return value is None or value is False or value in ("", [], {}, ()) or _is_neutral(name, value)


def _is_neutral(name: str, value: Any) -> bool:
    """A factor of one."""
    return any(part in name for part in ("mult", "scal", "factor")) and value == 1


def _no_mamba(config: PretrainedConfig) -> bool:
    return "mamba" not in (getattr(config, "layer_types", None) or ())


def _refusal(architecture: str, name: str, value: Any, field: Field) -> str:
    ran = f"; FMS would compute {field.instead}" if field.instead else ""
    return (
        f"{architecture}: {name} {_short(value)} in config.json is not carried into FMS{ran}. "
        f"Carried: {field.allowed} (docs/MODELS.md)"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# --- the page ---------------------------------------------------------------------------------
PAGE_HEAD = """# Models that run

Written from the engine's table by `python -m spyre_bench.engine.carried`; a test holds this page to
it, and `make test-models` holds the table to transformers: for every architecture and value here a
checkpoint of random weights answers prompts of 3, 40, 64 and 120 tokens with the same 24 greedy
tokens, in static and in continuous batching.

A model whose config.json says anything else that could change what it computes is refused at start,
in a sentence with the field, its value and what is carried. Weights are float32 (`sendnn`:
float16), from safetensors files: those that `model.safetensors.index.json` names, or the one model
file. Every parameter must be in them exactly once, finite, in the shape that config.json says.
"""


def page() -> str:
    """The text of docs/MODELS.md."""
    parts = [PAGE_HEAD]
    for architecture, fields in CARRIED.items():
        parts.append(f"\n## {architecture}\n\n| field | carried |\n|---|---|\n")
        parts += [f"| `{name}` | {field.allowed} |\n" for name, field in fields.items()]
    parts.append(
        "\n## What else a config may hold\n\nFields that change no logits: "
        + ", ".join(f"`{name}`" for name in sorted(INERT))
        + ", names that begin with an underscore, and every dropout. Fields that no layer reads "
        "are named in the log.\n"
    )
    return "".join(parts)


if __name__ == "__main__":
    (Path(__file__).parents[2] / "docs" / "MODELS.md").write_text(page())
