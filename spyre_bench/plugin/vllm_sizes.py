"""What vLLM's own code may run: sizes of any architecture, and which give other tokens than
transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from spyre_bench.checkpoints.weight_files import WeightFiles
from spyre_bench.model_sizes import FP16_BYTES, ModelSizes

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

logger = init_logger("vllm.spyre_bench.vllm_sizes")

HELD = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Ministral3ForCausalLM",
    "MixtralForCausalLM",
    "GraniteForCausalLM",
    "GraniteMoeForCausalLM",
    "GraniteMoeSharedForCausalLM",
    "GraniteMoeHybridForCausalLM",
    "HyperCLOVAXForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3MoeForCausalLM",
    "PhiForCausalLM",
    "Phi3ForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "VaultGemmaForCausalLM",
    "GPTNeoXForCausalLM",
    "GPT2LMHeadModel",
    "GPTJForCausalLM",
    "GPTBigCodeForCausalLM",
    "Starcoder2ForCausalLM",
    "OPTForCausalLM",
    "FalconForCausalLM",
    "StableLmForCausalLM",
    "OlmoForCausalLM",
    "Olmo2ForCausalLM",
    "Olmo3ForCausalLM",
    "OlmoeForCausalLM",
    "FlexOlmoForCausalLM",
    "CohereForCausalLM",
    "NemotronForCausalLM",
    "Ernie4_5ForCausalLM",
    "Ernie4_5_MoeForCausalLM",
    "GlmForCausalLM",
    "Glm4ForCausalLM",
    "Glm4MoeForCausalLM",
    "Exaone4ForCausalLM",
    "ExaoneMoeForCausalLM",
    "SmolLM3ForCausalLM",
    "SeedOssForCausalLM",
    "ArceeForCausalLM",
    "CwmForCausalLM",
    "HunYuanDenseV1ForCausalLM",
    "Jais2ForCausalLM",
)
"""Held against transformers token by token, see tests/plugin/test_vllm_models.py."""

UNEQUAL: dict[str, str] = {
    "Cohere2ForCausalLM": "its windows are one token longer in vLLM",
    "PhiMoEForCausalLM": "its experts are chosen otherwise in vLLM, the cause was not found",
}
"""Architectures whose tokens differ from transformers', and why."""


IGNORED: dict[str, dict[str, Any]] = {
    "OlmoeForCausalLM": {"clip_qkv": None, "norm_topk_prob": False},
    "GPT2LMHeadModel": {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
}
"""Fields that vLLM's class does not read, with the value by which it computes as transformers."""

VOCABULARY_MULTIPLE = 64
"""vLLM's DEFAULT_VOCAB_PADDING_SIZE."""


@dataclass(frozen=True, kw_only=True)
class StoredSizes(ModelSizes):
    """Sizes whose parameters are counted from the files: of an architecture of any form. vLLM
    splits the vocabulary over the ranks too, and fills it up to a multiple of 64."""

    stored_parameters: int
    soft_cap: bool = False  # of attention's scores
    window: bool = False  # some layers see no further back

    @property
    def _tables(self) -> int:
        """Parameters of embedding and head."""
        return self.vocab_size * self.hidden_size * (1 if self.tied_head else 2)

    def _split_weights(self, tp: int) -> int:
        return max(0, self.stored_parameters - self._tables) // tp

    def _other_weights(self, tp: int) -> int:
        filled = -self.vocab_size % VOCABULARY_MULTIPLE * (1 if self.tied_head else 2)
        return (min(self._tables, self.stored_parameters) + filled * self.hidden_size) // tp

    def score_bytes(
        self, rows: int, queries: int, slots: int, tp: int = 1, item_bytes: int = FP16_BYTES
    ) -> int:
        """Under a soft cap scores stand in memory, three of a kind at a time where nothing is
        fused (`engine.static_attention.capped`); a window has a mask of its own."""
        scores = 3 * self.card_heads(tp) if self.soft_cap else 0
        return rows * queries * slots * (scores + self.window) * item_bytes


def may_run(model: ModelConfig) -> bool:
    """Whether vLLM has code for it that gives transformers' tokens, as far as is known."""
    known = model.registry.get_supported_archs()
    return model.architecture in known and model.architecture not in UNEQUAL


def warn_of_untried(model: ModelConfig) -> None:
    """Says so where nobody has held the architecture against transformers."""
    if model.architecture not in HELD:
        logger.warning(
            "%s has not been held against transformers on this backend: compare some answers "
            "before you rely on it.",
            model.architecture,
        )


def sizes_of(vllm_config: VllmConfig, directory: Path, context_length: int) -> StoredSizes:
    """Of the model of an engine with contexts of `context_length` tokens; loads no weight.

    Raises ValueError, in one sentence, for a model that our passes do not compute or whose tokens
    would not be transformers'.
    """
    model = vllm_config.model_config
    _require_decoder(model)
    architecture = model.architecture
    if reason := UNEQUAL.get(architecture):
        raise ValueError(f"{architecture} is not served by vLLM's code: {reason}")
    _refuse_ignored(architecture, model.hf_text_config)
    _refuse_rope(model.hf_text_config, context_length)
    return _sizes(vllm_config, WeightFiles(directory))


def _sizes(vllm_config: VllmConfig, files: WeightFiles) -> StoredSizes:
    model, config = vllm_config.model_config, vllm_config.model_config.hf_text_config
    hidden_size = model.get_hidden_size()
    return StoredSizes(
        name=model.architecture,
        hidden_size=hidden_size,
        intermediate_size=_width(config) or 4 * hidden_size,
        layers=model.get_total_num_hidden_layers(),
        heads=model.model_arch_config.total_num_attention_heads,
        kv_heads=model.get_total_num_kv_heads(),
        head_dim=model.get_head_size(),
        vocab_size=model.get_vocab_size(),
        context_length=model.max_model_len,
        tied_head=bool(getattr(config, "tie_word_embeddings", False)),
        stored_parameters=sum(files.elements.values()),
        soft_cap=bool(getattr(config, "attn_logit_softcapping", None)),
        window=bool(getattr(config, "sliding_window", None)),
    )


def _width(config: Any) -> int | None:
    """Of the MLP, under whichever name the model's family has for it; of all experts together,
    since a pass may compute them all."""
    if experts := _first(config, *EXPERTS):
        return experts * (_first(config, "moe_intermediate_size", *WIDTHS) or 1)
    return _first(config, *WIDTHS)


EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")


def _first(config: Any, *names: str) -> int | None:
    """The first of these fields that is a number above 0."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def _require_decoder(model: ModelConfig) -> None:
    """Raises ValueError for a model whose layers keep something else than keys and values."""
    kinds = {
        "multi-head latent attention": model.use_mla,
        "layers without attention (Mamba and its like)": model.is_hybrid or model.is_attention_free,
    }
    for kind, has in kinds.items():
        if has:
            raise ValueError(
                f"{model.architecture} has {kind}, which the engine's KV cache does not hold: "
                f"serve another model"
            )


def _refuse_ignored(architecture: str, config: Any) -> None:
    """Raises ValueError for a field that vLLM would pass over, naming its value."""
    for name, read_as in IGNORED.get(architecture, {}).items():
        if (value := getattr(config, name, read_as)) != read_as:
            raise ValueError(
                f"{architecture}: {name} {value!r} in config.json is not read by vLLM, which "
                f"computes with {read_as!r}: its tokens would not be transformers'"
            )


def _refuse_rope(config: Any, context_length: int) -> None:
    """Raises ValueError for rotary embeddings that change at a length and contexts beyond it: vLLM
    rotates by one rule at every length, transformers by another where a sequence is longer."""
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type") if isinstance(rope, dict) else None
    if kind not in ("longrope", "dynamic"):
        return
    original = rope.get("original_max_position_embeddings") or getattr(
        config, "original_max_position_embeddings", config.max_position_embeddings
    )
    if context_length > original:
        raise ValueError(
            f"rope_parameters of type {kind} change at {original} tokens, and the longest bucket "
            f"or shape has {context_length}: vLLM's code would give other tokens than "
            f"transformers, use contexts of {original} at most"
        )


# --- the page ---------------------------------------------------------------------------------
PAGE_HEAD = """# Models that vLLM's own code runs

Written by `python -m spyre_bench.plugin.vllm_sizes`; a test holds this page to the code. With
`"model_code": "vllm"` ([OPERATIONS](OPERATIONS.md#model-code)).

## Held against transformers

For each of these `make test-models` writes a checkpoint of random weights and compares 24 greedy
tokens after prompts of 3, 40, 64 and 120 tokens: in blocks, eager and compiled, and in buckets. Of
most it also writes some with other values that their config.json can have (rope types, windows,
biases, head sizes, soft caps, experts, tied heads), and compares those in blocks, eager.

"""


REFUSED = """
Any other decoder that vLLM loads is served with a warning: compare some answers first.

## Refused, since the tokens would not be transformers'

{unequal}- longrope and dynamic beyond their original length: vLLM rotates by one rule everywhere
- a tensor that vLLM's model passes over and transformers computes with: some biases, an untied head
- a parameter that no tensor fills, a value that is not finite

## Refused, since our passes do not compute it

ALiBi, attention sinks, attention in chunks, multi-head latent attention, Mamba and other layers
without a KV cache, layers that share one or whose caches differ in size, encoders, experts with
biases and routers of a model's own, quantised checkpoints, LoRA, `sendnn`.
"""


def page() -> str:
    """The text of docs/VLLM_MODELS.md."""
    held = "".join(f"- {name}\n" for name in HELD)
    unequal = "".join(f"- {name}: {reason}\n" for name, reason in UNEQUAL.items())
    return PAGE_HEAD + held + REFUSED.format(unequal=unequal)


if __name__ == "__main__":
    (Path(__file__).parents[2] / "docs" / "VLLM_MODELS.md").write_text(page())
