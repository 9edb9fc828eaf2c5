"""The checkpoints that hold what `engine/carried.py` claims: for each architecture and each value
that is carried a tiny model of seeded random weights, and for values that are not, the refusal."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spyre_bench.shape_set import ShapeSet
from tests.tiny_models import save_byte_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

CONTEXT_LENGTH = 512
PROMPT_LENGTHS = (3, 40, 64, 120)
NEW_TOKENS = 24
BUCKETS = "4,64,24 2,128,64"
LONGEST = 192  # context of the longest bucket, and of every shape
SHAPES = ShapeSet.parse(f"64,{LONGEST}", f"4,{LONGEST}")
HIDDEN = 96

SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": 200,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": CONTEXT_LENGTH,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "dtype": "float32",
}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.25,
    "residual_multiplier": 0.7,
    "logits_scaling": 2.0,
}
DENSE = {
    "shared_intermediate_size": 200,
    "intermediate_size": 64,  # no layer reads it
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "mamba_n_heads": 12,  # no layer has them, their sizes are checked all the same
    "layer_types": ["attention", "attention"],
    "position_embedding_type": "rope",
}
OWN: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Granite": MULTIPLIERS,
    "GraniteMoeHybrid": MULTIPLIERS | DENSE,
    "Mistral": {"head_dim": 8},
    "Qwen3": {"head_dim": 8},
}
"""What each architecture has beside the sizes."""

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ROPES: dict[str, dict[str, Any]] = {
    "theta": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": LLAMA3,
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
    "yarn with every parameter": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "attention_factor": 1.3,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
    },
    "longrope up to its length": {
        "rope_type": "longrope",
        "factor": 2.0,
        "original_max_position_embeddings": 256,
        "short_factor": [1.5, 1.0, 2.0, 1.0],
        "long_factor": [3.0, 3.0, 3.0, 3.0],
    },
}
ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "relu", "tanh", "sigmoid", "mish")


@dataclass(frozen=True)
class Case:
    """One checkpoint: `values` go through transformers' config class, `written` into config.json
    as they are, in place of `removed`."""

    family: str
    name: str
    values: dict[str, Any] = field(default_factory=dict)
    written: dict[str, Any] = field(default_factory=dict)
    removed: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.family}: {self.name}"


def _carried() -> list[Case]:
    cases = [Case(family, "as it is") for family in OWN]
    cases += [
        Case(family, f"rope {name}", {"rope_parameters": {"rope_theta": 10000.0} | rope})
        for family in OWN
        for name, rope in ROPES.items()
    ]
    cases += [
        Case(
            family,
            "rope in the older spelling",
            {},
            {"rope_scaling": LLAMA3, "rope_theta": 10000.0},
            ("rope_parameters",),
        )
        for family in OWN
    ]
    cases += [
        Case(family, f"activation {name}", {"hidden_act": name})
        for family in OWN
        for name in (ACTIVATIONS if family == "Llama" else ACTIVATIONS[:2])
    ]
    cases += [Case(family, "tied head", {"tie_word_embeddings": True}) for family in OWN]
    cases += [Case(family, "one KV head", {"num_key_value_heads": 1}) for family in OWN]
    cases += [
        Case(family, "attention bias", {"attention_bias": True})
        for family in OWN
        if family not in ("Mistral", "Qwen3")
    ]
    cases += [
        Case(family, "MLP bias", {"mlp_bias": True, "attention_bias": True})
        for family in ("Llama", "Granite")
    ]
    cases += [
        Case(family, "another head size", {"head_dim": size})
        for family, size in (("Mistral", 24), ("Qwen3", 4))
    ]
    cases += [Case(family, "another width", {"intermediate_size": 254}) for family in OWN]
    cases += [Case(family, "norm eps", {"rms_norm_eps": 0.05}) for family in OWN]
    cases += [
        Case("GraniteMoeHybrid", "no positions", {"position_embedding_type": None}),
        Case(
            "GraniteMoeHybrid",
            "no positions as Granite 4 writes it",
            {},
            {
                "position_embedding_type": "nope",
                "rope_parameters": None,
                "normalization_function": "rmsnorm",
                "init_method": "mup",
            },
        ),
        Case("Llama", "a window that it does not read", {}, {"sliding_window": 512}),
        Case("Mistral", "a window as long as the longest bucket", {"sliding_window": LONGEST}),
        Case("Mistral", "no window", {"sliding_window": None}),
        Case(
            "Qwen3",
            "windows as long as the longest bucket",
            {"use_sliding_window": True, "sliding_window": LONGEST, "max_window_layers": 1},
        ),
        Case("Llama", "a field that nobody reads", {}, {"colour": "blue"}),
        Case("Granite", "a head size that is the usual one", {}, {"head_dim": 8}),
    ]
    return cases


CARRIED = _carried()

REFUSED: list[tuple[Case, str]] = [
    (Case("Llama", "window", {}, {"sliding_window": 16}), "sliding_window 16"),
    (Case("Llama", "head size", {"head_dim": 16}), "head_dim 16 .*hidden_size / num_attention"),
    (Case("Granite", "head size", {}, {"head_dim": 16}), "head_dim 16"),
    (Case("Llama", "activation", {"hidden_act": "gelu_new"}), "hidden_act 'gelu_new'.*silu"),
    (
        Case(
            "Llama",
            "partial rotary",
            {},
            {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "partial_rotary_factor": 0.5,
                }
            },
        ),
        "rope_parameters.*whole head",
    ),
    (
        Case(
            "Llama",
            "longrope beyond",
            {
                "rope_parameters": ROPES["longrope up to its length"]
                | {"rope_theta": 10000.0, "original_max_position_embeddings": 64}
            },
        ),
        "longrope",
    ),
    (Case("Mistral", "window", {"sliding_window": LONGEST - 1}), f"sliding_window {LONGEST - 1}"),
    (
        Case(
            "Qwen3",
            "windows",
            {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
        ),
        "sliding_window|layer_types",
    ),
    (
        Case("GraniteMoeHybrid", "experts", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        "num_local_experts 4",
    ),
    (
        Case("GraniteMoeHybrid", "mamba", {"layer_types": ["mamba", "attention"]}),
        "layer_types .*linear_attention",
    ),
    (
        Case("GraniteMoeHybrid", "another norm", {}, {"normalization_function": "layernorm"}),
        "normalization_function 'layernorm'",
    ),
    (Case("Llama", "sinks", {}, {"attention_sinks": True}), "attention_sinks True"),
    (Case("Llama", "norms", {}, {"use_qk_norm": True}), "use_qk_norm True"),
    (Case("Llama", "soft cap", {}, {"final_logit_softcapping": 30.0}), "final_logit_softcapping"),
    (Case("Qwen3", "bias", {"attention_bias": True}), "attention_bias True.*no biases"),
    (Case("Mistral", "bias", {}, {"attention_bias": True}), "attention_bias True"),
    (Case("Llama", "multiplier", {}, {"residual_multiplier": 0.5}), "residual_multiplier 0.5"),
    (Case("Llama", "not causal", {}, {"is_causal": False}), "is_causal False"),
    (
        Case("Llama", "quantised", {}, {"quantization_config": {"quant_method": "fp8"}}),
        "quantization_config",
    ),
    (Case("Llama", "no architectures", {}, {"architectures": None}), "no 'architectures'"),
    (
        Case("Llama", "another class", {}, {"architectures": ["MistralForCausalLM"]}),
        "MistralForCausalLM.* model_type 'llama'",
    ),
    (Case("Llama", "unknown", {}, {"architectures": ["NoSuchModel"]}), "'NoSuchModel' cannot be"),
]


def write(case: Case, directory: Path, seed: int = 0) -> Path:
    """The case's checkpoint, every weight of it random, norms and biases too."""
    import torch
    import transformers

    config_class = getattr(transformers, f"{case.family}Config")
    model_class = getattr(transformers, f"{case.family}ForCausalLM")
    values = SIZES | {"vocab_size": save_byte_tokenizer(directory)} | OWN[case.family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config_class(**(values | case.values)))
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms are made as ones and biases as zeros
                parameter.data = 1 + 0.5 * torch.randn_like(parameter)
        model.save_pretrained(directory)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    for name in case.removed:
        config.pop(name, None)
    path.write_text(json.dumps(config | case.written))
    return directory


def prompts() -> list[list[int]]:
    """One of each length, seeded, of ordinary tokens."""
    import torch

    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(8, 264, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS
    ]


def expected(directory: Path) -> list[list[int]]:
    """transformers' greedy tokens after each prompt, from the same directory."""
    return [tokens.tolist() for tokens, _ in greedy(directory)]


def greedy(directory: Path, **loading: Any) -> list[tuple[Tensor, Tensor]]:
    """transformers' greedy tokens [N] after each prompt and the logits [N, V] that they are of."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **loading).eval()
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
        answers.append((out.sequences[0, len(prompt) :], torch.cat(out.logits)))
    return answers


def batches() -> list[tuple[str, list[int]]]:
    """(bucket, which prompts): those up to 64 tokens in the first, the rest in the second."""
    return [("4,64,24", [0, 1, 2]), ("2,128,64", [3])]


def served(engine, asked: list[list[int]]) -> list[list[int]]:
    """The engine's greedy tokens after each prompt."""
    from spyre_bench.shapes import Bucket

    answers = {}
    for text, members in batches():
        bucket = Bucket(*map(int, text.split(",")))
        logits = engine.prefill(bucket, [asked[member] for member in members])
        rows = [logits.argmax(-1).tolist()]
        for _ in range(NEW_TOKENS - 1):
            rows.append(engine.decode(rows[-1]).argmax(-1).tolist())
        answers |= dict(zip(members, map(list, zip(*rows, strict=True)), strict=True))
    return [answers[member] for member in range(len(asked))]


def served_in_blocks(engine, asked: list[list[int]]) -> list[list[int]]:
    """The tokens of an engine of continuous batching, to which the prompts come one by one."""
    from tests.engine.paged_host import greedy

    return greedy(engine, [(place, prompt, NEW_TOKENS) for place, prompt in enumerate(asked)])
