"""Tiny Llama and Granite models with seeded random weights, as Hugging Face directories."""

from pathlib import Path

CONTEXT_LENGTH = 512
HEAD_DIM = 8
SPECIALS = ["<s>", "</s>", "<pad>", "<unk>", "<system>", "<user>", "<assistant>", "<end>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tiny_model(
    directory: Path,
    architecture: str,
    *,
    heads: int = 12,
    kv_heads: int = 12,
    layers: int = 2,
    seed: int = 0,
) -> Path:
    """Write a `llama` or `granite` model whose heads divide by 2, 3 and 4, and return its path.

    The vocabulary is one token a byte and eight specials. The weights are spread widely enough
    that greedy tokens differ from step to step and rarely hang on the last digits of a logit.
    """
    import torch
    from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

    assert heads % 12 == 0, heads
    assert heads % kv_heads == 0, kv_heads
    shape = {
        "vocab_size": save_byte_tokenizer(directory),
        "hidden_size": heads * HEAD_DIM,
        "intermediate_size": 2 * heads * HEAD_DIM,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": CONTEXT_LENGTH,
        "initializer_range": 0.2,  # ten times the usual: logits far apart
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "dtype": "float32",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if architecture == "llama":
            model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False))
        elif architecture == "granite":
            multipliers = {
                "embedding_multiplier": 3.0,
                "attention_multiplier": 0.25,
                "residual_multiplier": 0.7,
                "logits_scaling": 2.0,
            }
            model = GraniteForCausalLM(
                GraniteConfig(**shape, **multipliers, tie_word_embeddings=True)
            )
        else:
            raise ValueError(f"architecture is llama or granite, not {architecture!r}")
    model.save_pretrained(directory)
    return directory


def save_byte_tokenizer(directory: Path) -> int:
    """Write a tokenizer of specials and single bytes; the number of its tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = SPECIALS + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_LENGTH,
    ).save_pretrained(directory)
    return len(tokens)
