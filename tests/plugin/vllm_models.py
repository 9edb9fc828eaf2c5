"""Tiny checkpoints of the architectures that vLLM and transformers both know, of seeded random
weights, and the greedy tokens of transformers that a backend of vLLM's own model classes must
give. `CASES` has every architecture as it is, `VALUES` what their configs can say, `UNEQUAL` what
vLLM computes otherwise than transformers, `REFUSED` what our attention cannot serve."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.engine.matrix import CONTEXT_LENGTH, NEW_TOKENS, prompts
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
    "PhiMoEForCausalLM": LOCAL_EXPERTS | {"attention_bias": True, "lm_head_bias": True},
    "GemmaForCausalLM": {"head_dim": HEAD},
    "Gemma2ForCausalLM": ALTERNATING | GEMMA,
    "Gemma3ForCausalLM": ALTERNATING | GEMMA,
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
    "HunYuanMoEV1ForCausalLM": {"head_dim": HEAD, "num_experts": 4, "moe_topk": 2},
    "Jais2ForCausalLM": {},
    "MiniMaxM2ForCausalLM": LOCAL_EXPERTS | {"head_dim": HEAD},
    "DbrxForCausalLM": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 3.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
}
"""What each architecture has beside the sizes."""

CONFIGS = {
    "GPT2LMHeadModel": "GPT2Config",
    "Gemma3ForCausalLM": "Gemma3TextConfig",
    "PhiMoEForCausalLM": "PhimoeConfig",  # its checkpoints' config.json says PhiMoEForCausalLM
}
"""Where the config class is not named as the architecture."""


@dataclass(frozen=True)
class Case:
    """One checkpoint: `values` go through transformers' config class, `written` into config.json
    as they are; `scale` is the deviation of the weights."""

    architecture: str
    name: str = "as it is"
    values: dict[str, Any] = field(default_factory=dict)
    written: dict[str, Any] = field(default_factory=dict)
    scale: float = 0.2
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.architecture}: {self.name}"


CASES = [Case(architecture) for architecture in OWN]
VALUES: list[Case] = []
UNEQUAL: list[tuple[Case, str]] = []
REFUSED: list[tuple[Case, str]] = []


def write(case: Case, directory: Path) -> Path:
    """The case's checkpoint, every weight of it random, norms, biases and routers too."""
    import torch
    import transformers

    name = CONFIGS.get(case.architecture, case.architecture.replace("ForCausalLM", "Config"))
    own = OWN.get(case.architecture, {})
    values = SIZES | {"vocab_size": save_byte_tokenizer(directory)} | own | case.values
    config = getattr(transformers, name)(**values)
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModelForCausalLM.from_config(config)
        torch.manual_seed(case.seed)
        weights = dict(model.named_parameters())
        weights |= {name: b for name, b in model.named_buffers() if "correction_bias" in name}
        for weight in weights.values():
            noise = torch.randn_like(weight)
            # norms are made as ones, or as zeros that one is added to, and biases as zeros
            weight.data = weight + 0.5 * noise if weight.ndim == 1 else case.scale * noise
    model.save_pretrained(directory)
    path = directory / "config.json"
    written = {"architectures": [case.architecture]} | case.written
    path.write_text(json.dumps(json.loads(path.read_text()) | written))
    return directory


def expected(directory: Path) -> list[list[int]]:
    """transformers' greedy tokens after each prompt, from the same directory, none a near tie."""
    return [tokens for tokens, _ in reference(directory)]


def reference(directory: Path) -> list[tuple[list[int], list[float]]]:
    """The greedy tokens after each prompt and their log probabilities, which show what no greedy
    token can: the final soft cap and multipliers of the logits."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        attn_implementation="eager",  # the fused attention leaves Gemma 2's soft cap out
    ).eval()
    answers = []
    for prompt in prompts():
        with torch.no_grad():
            out = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=None,
                output_logits=True,
                return_dict_in_generate=True,
            )
        tokens = out.sequences[0, len(prompt) :]
        logits = torch.cat(out.logits)
        assert len(tokens) == NEW_TOKENS, len(tokens)
        best = logits.topk(2).values
        margins = best[:, 0] - best[:, 1]
        assert margins.min() > MARGIN, f"{margins.min():.1e} between the best logits"
        assert torch.equal(logits.argmax(-1), tokens), "not greedy"
        chosen = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        answers.append((tokens.tolist(), chosen.tolist()))
    distinct = {token for tokens, _ in answers for token in tokens}
    assert len(distinct) > DISTINCT, f"{len(distinct)} distinct tokens"
    return answers
