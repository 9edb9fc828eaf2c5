"""Tiny checkpoints of the architectures that vLLM and transformers both know, of seeded random
weights, and the greedy tokens of transformers that a backend of vLLM's own model classes must
give. `CASES` has every architecture as it is, `VALUES` what their configs can say, `UNEQUAL` what
vLLM computes otherwise than transformers, `REFUSED` what our attention cannot serve."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.engine.matrix import CONTEXT_LENGTH, LLAMA3, greedy
from tests.tiny_models import save_byte_tokenizer

MARGIN = 1e-3  # between the best logit and the second at every step
DISTINCT = 30  # tokens at least among the 96 of a checkpoint
WINDOW = 32  # shorter than three of the four prompts
HEAD = 16

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 144,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT_LENGTH,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "dtype": "float32",
}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.4,  # in place of 1 / sqrt(16)
    "residual_multiplier": 0.7,
    "logits_scaling": 2.0,
}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
DENSE = MULTIPLIERS | {
    "shared_intermediate_size": 144,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "mamba_n_heads": 8,  # no layer has them, their sizes are checked all the same
    "layer_types": ["attention", "attention"],
    "position_embedding_type": "rope",
}
ALTERNATING = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": WINDOW,
}
GEMMA = {"head_dim": HEAD, "query_pre_attn_scalar": 20}
MLA = {
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
}


def rope(**values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0} | values}


OWN: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {"sliding_window": None},
    "Ministral3ForCausalLM": {},
    "MixtralForCausalLM": LOCAL_EXPERTS,
    "GraniteForCausalLM": MULTIPLIERS,
    "GraniteMoeForCausalLM": MULTIPLIERS | LOCAL_EXPERTS,
    "GraniteMoeSharedForCausalLM": MULTIPLIERS | LOCAL_EXPERTS | {"shared_intermediate_size": 40},
    "GraniteMoeHybridForCausalLM": DENSE,
    "HyperCLOVAXForCausalLM": MULTIPLIERS,
    "Qwen2ForCausalLM": {},
    "Qwen3ForCausalLM": {"head_dim": HEAD},
    "Qwen2MoeForCausalLM": EXPERTS | {"shared_expert_intermediate_size": 40},
    "Qwen3MoeForCausalLM": EXPERTS | {"head_dim": HEAD},
    "PhiForCausalLM": {},
    "Phi3ForCausalLM": {},
    "GemmaForCausalLM": {"head_dim": HEAD},
    "Gemma2ForCausalLM": ALTERNATING | GEMMA,
    "Gemma3ForCausalLM": ALTERNATING | GEMMA | {"query_pre_attn_scalar": 6},
    "VaultGemmaForCausalLM": ALTERNATING | GEMMA,
    "GPTNeoXForCausalLM": {},
    "GPT2LMHeadModel": {},
    "GPTJForCausalLM": {"rotary_dim": 8},
    "GPTBigCodeForCausalLM": {},
    "Starcoder2ForCausalLM": {},
    "OPTForCausalLM": {"ffn_dim": 144, "word_embed_proj_dim": 64},
    "FalconForCausalLM": {},
    "StableLmForCausalLM": {},
    "OlmoForCausalLM": {},
    "Olmo2ForCausalLM": {},
    "Olmo3ForCausalLM": ALTERNATING,
    "OlmoeForCausalLM": {"num_experts": 4, "num_experts_per_tok": 2},
    "FlexOlmoForCausalLM": {"num_experts": 4, "num_experts_per_tok": 2},
    "CohereForCausalLM": {},
    "NemotronForCausalLM": {},
    "Ernie4_5ForCausalLM": {},
    "Ernie4_5_MoeForCausalLM": {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 48,
        "moe_num_shared_experts": 1,
    },
    "GlmForCausalLM": {"head_dim": HEAD},
    "Glm4ForCausalLM": {"head_dim": HEAD},
    "Glm4MoeForCausalLM": ROUTED | {"head_dim": HEAD, "use_qk_norm": True},
    "Exaone4ForCausalLM": ALTERNATING,
    "ExaoneMoeForCausalLM": ALTERNATING | EXPERTS | {"num_shared_experts": 1},
    "SmolLM3ForCausalLM": {"num_hidden_layers": 4},
    "SeedOssForCausalLM": {"head_dim": HEAD},
    "ArceeForCausalLM": {},
    "CwmForCausalLM": ALTERNATING,
    "HunYuanDenseV1ForCausalLM": {"head_dim": HEAD},
    "Jais2ForCausalLM": {},
}
"""What each architecture has beside the sizes."""

CONFIGS = {
    "GPT2LMHeadModel": "GPT2Config",
    "Gemma3ForCausalLM": "Gemma3TextConfig",
    "Llama4ForCausalLM": "Llama4TextConfig",
    "PhiMoEForCausalLM": "PhimoeConfig",  # its checkpoints' config.json says PhiMoEForCausalLM
}
"""Where the config class is not named as the architecture."""


WITHOUT_GROUPS = {
    *("GPTNeoXForCausalLM", "GPT2LMHeadModel", "GPTJForCausalLM", "GPTBigCodeForCausalLM"),
    "OPTForCausalLM",
}
"""Whose configs do not know groups of heads; vLLM would read the field all the same."""


@dataclass(frozen=True)
class Case:
    """One checkpoint: `values` go through transformers' config class, `written` into config.json
    as they are; `scale` is the deviation of the weights."""

    architecture: str
    name: str = "as it is"
    values: dict[str, Any] = field(default_factory=dict)
    written: dict[str, Any] = field(default_factory=dict)
    scale: float = 0.3

    def __str__(self) -> str:
        return f"{self.architecture}: {self.name}"


CASES = [Case(architecture) for architecture in OWN]

YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
SHORT = [1.5, 1.0, 2.0, 1.0, 1.2, 1.0, 3.0, 1.0]
ROPES: dict[str, dict[str, Any]] = {
    "theta": {"rope_theta": 500.0},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic up to its length": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn with every parameter": YARN
    | {"attention_factor": 1.3, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
    "longrope up to its length": {  # vLLM's max_model_len must be no longer
        "rope_type": "longrope",
        "factor": 2.0,
        "original_max_position_embeddings": 256,
        "short_factor": SHORT,
        "long_factor": [3.0] * 8,
    },
}
PARTIAL = rope(partial_rotary_factor=0.5)
SLIDING = {"sliding_window": WINDOW}
ALL_LAYERS = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0}
KV_HEADS = {"one KV head": 1, "as many KV heads as heads": 4}


def _several(name: str, values: dict[str, Any], *families: str) -> list[Case]:
    return [Case(f"{family}ForCausalLM", name, values) for family in families]


def _values() -> list[Case]:
    cases = [
        case
        for name, values in ROPES.items()
        for case in _several(f"rope {name}", rope(**values), "Llama", "Qwen3", "Olmo2")
    ]
    cases += _several("rope llama3", rope(**LLAMA3), "Mistral", "GraniteMoe", "SmolLM3", "Mixtral")
    cases += _several("rope yarn", rope(**YARN), "Qwen2", "Qwen3Moe", "Granite", "Mistral")
    cases += _several("rope linear", rope(**ROPES["linear"]), "Gemma", "GPTNeoX", "StableLm")
    cases += [
        Case(
            "LlamaForCausalLM",
            "rope in the older spelling",
            written={"rope_scaling": LLAMA3, "rope_theta": 10000.0, "rope_parameters": None},
        ),
        Case(
            "Gemma3ForCausalLM",
            "a rope for each kind of layer",
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
                }
            },
        ),
        Case(
            "Phi3ForCausalLM",
            "rope longrope up to its length",
            rope(
                rope_type="longrope",
                short_factor=SHORT,
                long_factor=[3.0] * 8,
                original_max_position_embeddings=256,
            )
            | {"original_max_position_embeddings": 256},
        ),
    ]
    cases += _several("half rotary", PARTIAL, "Phi3", "GPTNeoX", "StableLm")
    cases += _several("whole rotary", rope(partial_rotary_factor=1.0), "Phi", "Glm4", "StableLm")
    cases += _several("window", SLIDING, "Mistral", "Phi3", "Starcoder2", "Mixtral", "Ministral3")
    cases += _several("windows", ALL_LAYERS, "Qwen2", "Qwen3", "Qwen3Moe")
    cases += [
        Case("MistralForCausalLM", f"window of {window}", {"sliding_window": window})
        for window in (2, 3, 63, 64, 200)  # 1: transformers forgets to forget
    ]
    cases += [
        Case("SmolLM3ForCausalLM", "windows", ALL_LAYERS | {"no_rope_layer_interval": 2}),
        Case("Gemma3ForCausalLM", "one full layer", {"layer_types": ONE_FULL}),
        Case("Exaone4ForCausalLM", "no window", {"sliding_window": None, "layer_types": FULL}),
        Case("Olmo3ForCausalLM", "one full layer", {"layer_types": ONE_FULL}),
    ]
    cases += _several("attention bias", {"attention_bias": True}, "Llama", "Granite")
    cases += _several("attention bias", {"attention_bias": True}, "Olmo2")
    cases += _several("no attention bias", {"attention_bias": False}, "GPTNeoX", "SeedOss", "Glm4")
    both = {"attention_bias": True, "mlp_bias": True}
    cases += _several("all biases", both, "Llama", "Granite", "SmolLM3", "Arcee", "Nemotron")
    cases += _several("no biases", {"use_bias": False}, "Starcoder2")
    cases += _several("QKV bias", {"use_qkv_bias": True}, "StableLm")
    cases += _several("norms of queries and keys", {"qk_layernorm": True}, "Phi")
    cases += _several("norms of queries and keys", {"use_qk_norm": True}, "Cohere")
    cases += [
        case
        for size in (32, 80)
        for case in _several(
            f"head size {size}", {"head_dim": size}, "Llama", "Mistral", "Qwen3", "Gemma", "SeedOss"
        )
        + _several(f"head size {size}", {"head_dim": size}, "Gemma2", "Gemma3", "Glm4", "Mixtral")
    ]
    tied, untied = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
    cases += _several("tied head", tied, "Llama", "Granite", "GraniteMoeHybrid", "Qwen2", "Qwen3")
    cases += _several("tied head", tied, "Mistral", "Olmo2", "Phi3")
    cases += _several("untied head", untied, "Falcon", "SmolLM3", "Ernie4_5", "OPT")
    cases += [
        case
        for name, heads in KV_HEADS.items()
        for case in _several(name, {"num_key_value_heads": heads}, "Llama", "Qwen3", "Mixtral")
        + _several(name, {"num_key_value_heads": heads}, "Gemma2", "Starcoder2", "Phi3", "Olmoe")
    ]
    cases += [
        Case("GraniteMoeHybridForCausalLM", "no positions", {"position_embedding_type": "nope"}),
        Case(
            "GraniteMoeHybridForCausalLM",
            "experts",
            LOCAL_EXPERTS | {"shared_intermediate_size": 40},
        ),
        Case("GraniteForCausalLM", "other multipliers", dict.fromkeys(MULTIPLIERS, 1.5)),
        Case("GraniteForCausalLM", "scores multiplied by 2", {"attention_multiplier": 2.0}),
        Case("HyperCLOVAXForCausalLM", "no norms after", {"use_post_norm": False}),
        Case("Gemma2ForCausalLM", "a scale of its own", {"query_pre_attn_scalar": 3}),
        Case("Gemma2ForCausalLM", "soft caps", CAPS),
        Case("Gemma2ForCausalLM", "soft caps and large weights", scale=0.8),
        Case("Gemma2ForCausalLM", "no soft caps", dict.fromkeys(CAPS)),
        Case("VaultGemmaForCausalLM", "soft caps", CAPS),
        Case("FalconForCausalLM", "many KV heads", {"multi_query": False}),
        Case("FalconForCausalLM", "one after the other", {"parallel_attn": False}),
        Case("FalconForCausalLM", "biases", {"bias": True}),
        Case("FalconForCausalLM", "new", NEW_FALCON),
        Case("FalconForCausalLM", "new with one norm", NEW_FALCON | {"num_ln_in_parallel_attn": 1}),
        Case("GPTNeoXForCausalLM", "one after the other", {"use_parallel_residual": False}),
        Case("OPTForCausalLM", "norms after", {"do_layer_norm_before": False}, scale=0.6),
        Case("OPTForCausalLM", "embeddings of another size", {"word_embed_proj_dim": 32}),
        Case("OPTForCausalLM", "no biases", {"enable_bias": False}),
        Case("OlmoForCausalLM", "clipped", {"clip_qkv": 1.0}),
        Case("GPT2LMHeadModel", "wide", {"n_inner": 100}),
        Case("GPTJForCausalLM", "whole rotary", {"rotary_dim": HEAD}),
        Case("CohereForCausalLM", "logits scaled", {"logit_scale": 2.0}),
        Case("Qwen2MoeForCausalLM", "experts weighed anew", {"norm_topk_prob": True}),
        Case("Qwen3MoeForCausalLM", "experts weighed anew", {"norm_topk_prob": True}),
        Case("Qwen3MoeForCausalLM", "a dense layer", {"mlp_only_layers": [0]}),
        Case("Qwen2MoeForCausalLM", "every second layer dense", {"decoder_sparse_step": 2}),
        Case("MixtralForCausalLM", "one expert of five", ONE_OF_FIVE),
        Case("Glm4MoeForCausalLM", "groups of experts", GROUPS),
        Case("Glm4MoeForCausalLM", "every layer of experts", {"first_k_dense_replace": 0}),
    ]
    cases += _several("norm eps", {"rms_norm_eps": 0.05}, "Llama", "Qwen3", "Gemma2", "Olmo2")
    cases += _several("norm eps", {"layer_norm_eps": 0.05}, "GPTNeoX", "Phi")
    cases += [
        case
        for name in ("gelu", "gelu_pytorch_tanh")
        for case in _several(f"activation {name}", {"hidden_act": name}, "Arcee", "Nemotron")
    ]
    cases += _several("activation gelu", {"hidden_act": "gelu"}, "Phi", "Starcoder2")
    cases += _several("activation relu", {"hidden_act": "relu"}, "Phi", "GPTNeoX", "Olmo2")
    cases += _several("activation gelu", {"activation_function": "gelu"}, "OPT", "GPTJ")
    cases += [Case("GPT2LMHeadModel", "activation relu", {"activation_function": "relu"})]
    return cases


FULL = ["full_attention"] * 4
ONE_FULL = ["sliding_attention"] * 3 + ["full_attention"]
CAPS = {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 5.0}
NEW_FALCON = {"new_decoder_architecture": True, "num_kv_heads": 2, "multi_query": False}
ONE_OF_FIVE = {"num_local_experts": 5, "num_experts_per_tok": 1}
GROUPS = {
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.7,
    "norm_topk_prob": False,
}

VALUES = _values()

UNEQUAL: list[tuple[Case, str]] = [
    (Case("Cohere2ForCausalLM", values=ALTERNATING), "windows are one token longer"),
    (
        Case(
            "PhiMoEForCausalLM",
            values=LOCAL_EXPERTS | {"attention_bias": True, "lm_head_bias": True},
        ),
        "experts are chosen otherwise",
    ),
    (Case("OlmoeForCausalLM", "clipped", {"clip_qkv": 1.0}), "clip_qkv 1.0 .* not read by vLLM"),
    (
        Case("OlmoeForCausalLM", "experts weighed anew", {"norm_topk_prob": True}),
        "norm_topk_prob True .* not read by vLLM",
    ),
    (
        Case("GPT2LMHeadModel", "scores not scaled", {"scale_attn_weights": False}),
        "scale_attn_weights False .* not read",
    ),
    (
        Case(
            "LlamaForCausalLM",
            "rope longrope beyond its length",
            rope(**ROPES["longrope up to its length"] | {"original_max_position_embeddings": 128}),
        ),
        "longrope change at 128 tokens",
    ),
    (
        Case(
            "LlamaForCausalLM",
            "rope dynamic beyond its length",
            rope(rope_type="dynamic", factor=2.0, original_max_position_embeddings=128),
        ),
        "dynamic change at 128 tokens",
    ),
]
"""What the two compute differently, with words of the refusal."""

MAMBA = {"hidden_size": 64, "state_size": 8, "intermediate_size": 128}
HYBRID = {"mamba_n_heads": 8, "mamba_d_head": HEAD, "mamba_d_state": 8, "mamba_chunk_size": 16}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": HEAD,
    "linear_value_head_dim": HEAD,
    "layer_types": ["linear_attention", "full_attention"],
}
SOME_LAYERS = ALL_LAYERS | {"max_window_layers": 1}

_BIAS = {"attention_bias": True}
PASSED_OVER: list[tuple[Case, str]] = [
    (Case("Qwen3ForCausalLM", "attention bias", _BIAS), "no place for 2 tensors.*o_proj.bias"),
    (Case("GraniteMoeForCausalLM", "attention bias", _BIAS), "no place for 8 tensors"),
    (Case("Ernie4_5ForCausalLM", "biases", {"use_bias": True}), "no place for 14 tensors"),
    (Case("CohereForCausalLM", "untied head", {"tie_word_embeddings": False}), "lm_head.weight"),
    (Case("Qwen2MoeForCausalLM", "no QKV bias", {"qkv_bias": False}), "not in the checkpoint"),
    (Case("StableLmForCausalLM", "norms of queries and keys", {"qk_layernorm": True}), "k_layer"),
    (Case("StableLmForCausalLM", "parallel", {"use_parallel_residual": True}), "not initialized"),
]
"""Tensors that vLLM's models pass over, or lack, with words of the refusal."""

REFUSED: list[tuple[Case, str]] = [
    (Case("BloomForCausalLM"), "alibi"),
    (Case("FalconForCausalLM", "alibi", {"alibi": True}), "alibi"),
    (Case("GptOssForCausalLM", values=LOCAL_EXPERTS | {"head_dim": HEAD}), "sink"),
    (Case("GraniteSWAForCausalLM", values=MULTIPLIERS | ALTERNATING), "sink"),
    (Case("GraniteMoeSWAForCausalLM", values=MULTIPLIERS | ALTERNATING | LOCAL_EXPERTS), "sink"),
    (Case("Qwen2ForCausalLM", "windows on some layers", SOME_LAYERS), "max_window_layers"),
    (Case("Qwen3ForCausalLM", "windows on some layers", SOME_LAYERS), "max_window_layers"),
    (Case("DeepseekV2ForCausalLM", values=MLA | ROUTED), "latent attention"),
    (Case("DeepseekV3ForCausalLM", values=MLA | ROUTED), "latent attention"),
    (Case("MiniCPM3ForCausalLM", values=MLA), "different sizes"),
    (Case("Glm4MoeLiteForCausalLM", values=MLA | ROUTED), "latent attention"),
    (Case("MambaForCausalLM", values=MAMBA), "mamba"),
    (Case("FalconMambaForCausalLM", values=MAMBA), "mamba"),
    (Case("Mamba2ForCausalLM", values=MAMBA | {"num_heads": 8, "head_dim": HEAD}), "mamba"),
    (
        Case(
            "JambaForCausalLM",
            values={
                "attn_layer_period": 2,
                "attn_layer_offset": 1,
                "num_experts": 4,
                "use_mamba_kernels": False,
            },
        ),
        "mamba",
    ),
    (
        Case(
            "GraniteMoeHybridForCausalLM",
            "mamba layers",
            HYBRID | {"mamba_expand": 2, "layer_types": ["mamba", "attention"]},
        ),
        "mamba",
    ),
    (Case("FalconH1ForCausalLM", values=HYBRID | {"mamba_d_ssm": 128}), "mamba"),
    (
        Case(
            "NemotronHForCausalLM",
            values={
                "layers_block_type": ["mamba", "attention"],
                "mamba_num_heads": 8,
                "mamba_head_dim": HEAD,
                "ssm_state_size": 8,
                "head_dim": HEAD,
            },
        ),
        "mamba",
    ),
    (Case("Lfm2ForCausalLM", values={"layer_types": ["conv", "full_attention"]}), "mamba"),
    (
        Case("Lfm2MoeForCausalLM", values=EXPERTS | {"layer_types": ["conv", "full_attention"]}),
        "mamba",
    ),
    (Case("OlmoHybridForCausalLM", values=LINEAR), "mamba"),
    (
        Case(
            "Qwen3NextForCausalLM",
            values=LINEAR | EXPERTS | {"head_dim": HEAD, "shared_expert_intermediate_size": 40},
        ),
        "mamba",
    ),
    (
        Case(
            "Llama4ForCausalLM",
            values={"head_dim": HEAD, "intermediate_size_mlp": 144, "num_local_experts": 4}
            | {"num_hidden_layers": 4, "attention_chunk_size": 64},
        ),
        "chunk",
    ),
]
"""Each with a word of the reason."""

SEEDS: dict[str, int] = {
    "ArceeForCausalLM: activation gelu": 1,
    "Cohere2ForCausalLM: as it is": 1,
    "CohereForCausalLM: norms of queries and keys": 6,
    "Ernie4_5ForCausalLM: as it is": 1,
    "FalconForCausalLM: one after the other": 1,
    "GPTNeoXForCausalLM: half rotary": 1,
    "GPTNeoXForCausalLM: norm eps": 1,
    "GPTNeoXForCausalLM: one after the other": 1,
    "GPTNeoXForCausalLM: rope linear": 1,
    "Gemma2ForCausalLM: as it is": 1,
    "Gemma2ForCausalLM: head size 80": 2,
    "Gemma2ForCausalLM: no soft caps": 3,
    "Gemma2ForCausalLM: norm eps": 4,
    "Gemma2ForCausalLM: one KV head": 10,
    "Gemma2ForCausalLM: soft caps": 2,
    "Gemma3ForCausalLM: a rope for each kind of layer": 1,
    "Gemma3ForCausalLM: head size 80": 5,
    "Gemma3ForCausalLM: one full layer": 3,
    "GemmaForCausalLM: as it is": 2,
    "GemmaForCausalLM: head size 32": 4,
    "GemmaForCausalLM: rope linear": 5,
    "Glm4ForCausalLM: no attention bias": 1,
    "Glm4ForCausalLM: whole rotary": 1,
    "GraniteForCausalLM: all biases": 2,
    "LlamaForCausalLM: rope longrope up to its length": 1,
    "LlamaForCausalLM: rope yarn with every parameter": 1,
    "OPTForCausalLM: norms after": 3,
    "Olmo2ForCausalLM: attention bias": 3,
    "Olmo2ForCausalLM: tied head": 1,
    "Olmo3ForCausalLM: as it is": 1,
    "OlmoeForCausalLM: one KV head": 2,
    "PhiForCausalLM: activation relu": 1,
    "PhiForCausalLM: norms of queries and keys": 5,
    "Qwen2MoeForCausalLM: every second layer dense": 1,
    "StableLmForCausalLM: as it is": 2,
    "Starcoder2ForCausalLM: one KV head": 1,
    "VaultGemmaForCausalLM: soft caps": 1,
}
"""Where seed 0 has a near tie, or too few distinct tokens."""


def write(case: Case, directory: Path) -> Path:
    """The case's checkpoint, every weight of it random, norms, biases and routers too."""
    import torch
    import transformers

    name = CONFIGS.get(case.architecture, case.architecture.replace("ForCausalLM", "Config"))
    own = OWN.get(case.architecture, {})
    values = SIZES | {"vocab_size": save_byte_tokenizer(directory)} | own | case.values
    if case.architecture in WITHOUT_GROUPS:
        del values["num_key_value_heads"]
    config = getattr(transformers, name)(**values)
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModelForCausalLM.from_config(config)
        torch.manual_seed(SEEDS.get(str(case), 0))
        weights = dict(model.named_parameters())
        weights |= {name: b for name, b in model.named_buffers() if "correction_bias" in name}
        embeddings = model.get_input_embeddings().weight
        for weight in weights.values():
            noise = torch.randn_like(weight)
            if weight.ndim == 1:
                # norms are made as ones, or as zeros that one is added to, and biases as zeros
                weight.data = weight + (0.15 if weight.abs().max() == 0 else 0.5) * noise
            else:
                weight.data = case.scale * noise
        if "Gemma" in case.architecture:  # multiplied by 8, and the head is the same
            embeddings.data /= 10
    model.save_pretrained(directory)
    path = directory / "config.json"
    written = {"architectures": [case.architecture]} | case.written
    path.write_text(json.dumps(json.loads(path.read_text()) | written))
    return directory


def expected(directory: Path) -> list[tuple[list[int], list[float]]]:
    """transformers' greedy tokens after each prompt, none a near tie, and their log probabilities,
    which show what no greedy token can: a soft cap, a scale or a multiplier of the logits."""
    answers = []
    # its fused attention leaves Gemma 2's soft cap out
    for tokens, logits in greedy(directory, attn_implementation="eager"):
        best = logits.topk(2).values
        margins = best[:, 0] - best[:, 1]
        assert margins.min() > MARGIN, f"{margins.min():.1e} between the best logits"
        chosen = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        answers.append((tokens.tolist(), chosen.tolist()))
    distinct = {token for tokens, _ in answers for token in tokens}
    assert len(distinct) > DISTINCT, f"{len(distinct)} distinct tokens"
    return answers
