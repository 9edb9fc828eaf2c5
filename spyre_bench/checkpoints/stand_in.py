"""A model with random weights in the place of another one whose heads do not divide over ranks."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from spyre_bench.checkpoints.find import cache_directory, made_once

KEPT = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"),
    *("max_position_embeddings", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)
"""What the stand-in has of the original's configuration."""


def stand_in(source: Path, heads: int, kv_heads: int, target: Path | None = None) -> Path:
    """Writes a Llama of `source`'s sizes with other numbers of heads, seeded random weights and
    `source`'s tokenizer as the Hugging Face directory `target` (None: in the cache directory,
    once); returns it.

    Raises ValueError where the hidden size does not divide into an even head dimension, or the
    heads into groups of KV heads.
    """
    config = json.loads((source / "config.json").read_text())
    hidden_size = config["hidden_size"]
    if hidden_size % (2 * heads) or heads % kv_heads:
        raise ValueError(
            f"{heads} heads over {kv_heads} KV heads do not divide a hidden size of {hidden_size}: "
            f"use a divisor of {hidden_size // 2} and one of that"
        )
    values = {name: config[name] for name in KEPT if name in config}
    values |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "dtype": "float32"}
    if target is not None:
        return _write(values, source, target)
    # names recur, and another model may have come to the same place
    made_of = str(source.resolve()) + json.dumps(values, sort_keys=True)
    of = hashlib.sha256(made_of.encode()).hexdigest()[:8]
    cached = cache_directory() / f"{source.name}-{of}-{heads}-{kv_heads}-heads"
    return made_once(cached, lambda directory: _write(values, source, directory))


def _write(values: dict, source: Path, target: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    target.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*"):
        if path.is_file() and path.suffix in (".json", ".jinja", ".txt"):
            shutil.copyfile(path, target / path.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**values)).save_pretrained(target)
    return target
