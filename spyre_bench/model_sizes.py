"""A model's sizes, its parameters, its bytes and its operations, for the engine that runs it and
for the model of a card that does not.

Decoder-only transformers with gated MLPs (Llama, Granite, Mistral, Qwen3), from the fields of a
Hugging Face `config.json` or by name. `tests/engine/test_memory.py` holds the bytes against what
an engine's ranks hold. An operation is a multiplication or an addition, so a product of [m, k] and
[k, n] counts 2·m·k·n; `tests/engine/test_operation_counts.py` holds the products against torch's
own counts. Of a model that also sees images only the language part is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spyre_bench.shapes import Bucket

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number in each of the engine's types; everything is of one type."""
DTYPES = {"fp16": 2, "fp8": 1}
"""The card model's types: bytes of a weight in a layer's products. All else (embedding, head,
norms, biases, activations and the KV cache) is fp16 under both: the card keeps no bfloat16."""
FP16_BYTES = 2
LARGEST_TP = 8
"""Cards of one cluster, at most (docs/SPYRE_CARD.md#card)."""

SLIDING = "sliding_attention"
LLAMA, GRANITE, MISTRAL, QWEN3 = "llama", "granite", "mistral", "qwen3"
ARCHITECTURES = {
    "LlamaForCausalLM": LLAMA,
    "GraniteForCausalLM": GRANITE,
    "GraniteMoeHybridForCausalLM": GRANITE,  # dense ones only
    "MistralForCausalLM": MISTRAL,
    "Qwen3ForCausalLM": QWEN3,
    "LlavaNextForConditionalGeneration": GRANITE,  # granite-vision
    "Mistral3ForConditionalGeneration": MISTRAL,
}


@dataclass(frozen=True)
class Linear:
    """A product with a weight [inner, columns] that one card holds."""

    name: str
    inner: int
    columns: int

    @property
    def weights(self) -> int:
        return self.inner * self.columns


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """The sizes of a model. Sizes with a `tp` are of one of `tp` cards, or ranks of an engine,
    split as FMS splits: heads and the MLP's width over the cards, KV heads too, but never below one
    per card. FMS distributes the decoder layers alone (`distribute_layer` in its models):
    embedding, head and norms are whole on every card, and so is the bias of a product whose inputs
    are split."""

    name: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    tied_head: bool = False  # the output head shares the embedding's weights
    attention_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False  # a norm over each head's query and key, as in Qwen3

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "head_dim")
        for name in (*sizes, "vocab_size", "context_length"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{self.name}: {name} is {value!r}: give a whole number above 0")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"{self.name}: {self.heads} heads do not divide over {self.kv_heads} KV heads: "
                f"give a divisor of {self.heads}"
            )

    @classmethod
    def of(cls, config: Mapping[str, Any], name: str = "") -> ModelSizes:
        """From the fields of a Hugging Face `config.json`.

        Raises ValueError for an architecture that is not known, naming those that are, for one with
        experts or layers without attention, and for a field that is missing.
        """
        architecture = (config.get("architectures") or ["none"])[0]
        family = ARCHITECTURES.get(architecture)
        if family is None:
            raise ValueError(
                f"architecture {architecture!r} is unknown: known are "
                f"{', '.join(sorted(ARCHITECTURES))}"
            )
        text = config.get("text_config") or config
        _require_dense(architecture, text)
        hidden_size, heads = _field(text, "hidden_size"), _field(text, "num_attention_heads")
        return cls(
            name=name or config.get("_name_or_path") or architecture,
            hidden_size=hidden_size,
            # a dense Granite 4 keeps its MLP's width under the name of shared experts
            intermediate_size=text.get("shared_intermediate_size")
            or _field(text, "intermediate_size"),
            layers=_field(text, "num_hidden_layers"),
            heads=heads,
            kv_heads=text.get("num_key_value_heads") or heads,
            head_dim=text.get("head_dim") or hidden_size // heads,
            vocab_size=_field(text, "vocab_size"),
            context_length=_context_length(text),
            tied_head=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings"))),
            attention_bias=bool(text.get("attention_bias", False)),
            mlp_bias=bool(text.get("mlp_bias", False)),
            head_norms=family == QWEN3,
        )

    def as_config(self) -> dict[str, Any]:
        """The fields of a `config.json` that `of` reads as these sizes, for who needs no weights: a
        Llama, which has a field for everything but norms of heads."""
        qwen3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
        llama = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        return (qwen3 if self.head_norms else llama) | {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.context_length,
            "tie_word_embeddings": self.tied_head,
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
        }

    # --- tensor parallel ----------------------------------------------------------------------

    def require_tp(self, tp: int) -> None:
        """Raises ValueError, with the numbers of cards that do, for one that does not split it."""
        if isinstance(tp, bool) or not isinstance(tp, int) or tp < 1 or not self._splits(tp):
            possible = [n for n in range(1, LARGEST_TP + 1) if self._splits(n)]
            raise ValueError(
                f"{self.name} does not split over tp={tp!r} ({self.heads} heads, {self.kv_heads} "
                f"KV heads, MLP width {self.intermediate_size}): use one of "
                f"{', '.join(map(str, possible))}"
            )

    def _splits(self, tp: int) -> bool:
        kv = self.kv_heads % tp == 0 or tp % self.kv_heads == 0
        return kv and not any(n % tp for n in (self.heads, self.intermediate_size))

    def card_heads(self, tp: int) -> int:
        return self.heads // tp

    def card_kv_heads(self, tp: int) -> int:
        return max(1, self.kv_heads // tp)

    # --- parameters and bytes -------------------------------------------------------------------

    def attention_linears(self, tp: int = 1) -> tuple[Linear, ...]:
        """Query, key, value and output of one layer on one card."""
        query = self.card_heads(tp) * self.head_dim
        kv = self.card_kv_heads(tp) * self.head_dim
        return (
            Linear("query", self.hidden_size, query),
            Linear("key", self.hidden_size, kv),
            Linear("value", self.hidden_size, kv),
            Linear("output", query, self.hidden_size),
        )

    def mlp_linears(self, tp: int = 1) -> tuple[Linear, ...]:
        """Gate, up and down of one layer on one card."""
        inner = self.intermediate_size // tp
        return (
            Linear("gate", self.hidden_size, inner),
            Linear("up", self.hidden_size, inner),
            Linear("down", inner, self.hidden_size),
        )

    def head_linear(self) -> Linear:
        """The output head, whole on every card."""
        return Linear("head", self.hidden_size, self.vocab_size)

    @property
    def parameters(self) -> int:
        """All of them, tied ones once."""
        return self._split_weights(1) + self._other_weights(1)

    def weight_bytes(self, dtype: str = "fp16", tp: int = 1) -> int:
        """Bytes of the weights on one card, in one of the engine's types or of the card model's."""
        if dtype in ITEM_BYTES:
            item = rest = ITEM_BYTES[dtype]
        else:
            require_dtype(dtype)
            item, rest = DTYPES[dtype], FP16_BYTES
        return self._split_weights(tp) * item + self._other_weights(tp) * rest

    def _split_weights(self, tp: int) -> int:
        linears = (*self.attention_linears(tp), *self.mlp_linears(tp))
        return self.layers * sum(linear.weights for linear in linears)

    def _other_weights(self, tp: int) -> int:
        """Embedding, head, norms and biases of one card: never in 8 bits."""
        head = self.head_linear().weights
        tables = head if self.tied_head else 2 * head
        norms = 2 * self.hidden_size + (2 * self.head_dim if self.head_norms else 0)
        biases = sum(
            linear.columns
            for has, linears in (
                (self.attention_bias, self.attention_linears(tp)),
                (self.mlp_bias, self.mlp_linears(tp)),
            )
            for linear in linears
            if has
        )
        return tables + self.layers * (norms + biases) + self.hidden_size

    def kv_bytes_per_token(self, tp: int = 1, item_bytes: int = FP16_BYTES) -> int:
        """Keys and values of one token in all layers, on one card."""
        return 2 * self.layers * self.card_kv_heads(tp) * self.head_dim * item_bytes

    def prefill_bytes(
        self, bucket: Bucket, tp: int = 1, item_bytes: int = FP16_BYTES, logit_bytes: int = 2
    ) -> int:
        """What a prefill needs beside weights and KV cache, on one card: one layer's activations,
        the mask and the logits."""
        rows, prompt = bucket.batch_size, bucket.prompt_length
        per_token = 4 * self.hidden_size + 3 * (self.intermediate_size // tp) + prompt  # of mask
        return rows * (prompt * per_token * item_bytes + self.vocab_size * logit_bytes)

    def score_bytes(
        self, rows: int, queries: int, slots: int, tp: int = 1, item_bytes: int = FP16_BYTES
    ) -> int:
        """What attention of so many queries a row over so many slots needs beside that, on one
        card: nothing, where one kernel takes the whole of it."""
        return 0

    # --- operations -----------------------------------------------------------------------------

    def attention_operations(self, rows: int, queries: int, slots: int, tp: int = 1) -> int:
        """Of one of attention's two products (scores; weighted values) in one layer on one card,
        nothing skipped for the causal mask."""
        return 2 * rows * self.card_heads(tp) * queries * slots * self.head_dim


def require_dtype(dtype: str) -> None:
    """Raises ValueError for a dtype that the card has no figures for."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown to the card model: use {' or '.join(DTYPES)}")


def _field(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if value is None:
        raise ValueError(
            f"the model's configuration has no {key!r}: give the fields of its config.json"
        )
    if type(value) is not int or value < 1:
        raise ValueError(f"the model's configuration has {key!r} {value!r}: give a number above 0")
    return value


def _require_dense(architecture: str, config: Mapping[str, Any]) -> None:
    experts = config.get("num_local_experts") or 0
    if experts:
        raise ValueError(
            f"{architecture} with {experts} experts is not modelled: only dense models are"
        )
    other = set(config.get("layer_types") or ()) - {"attention", "full_attention", SLIDING}
    if other:
        raise ValueError(
            f"{architecture} with layers of type {', '.join(sorted(other))} is not modelled: every "
            f"layer must attend over the whole context"
        )


def _context_length(config: Mapping[str, Any]) -> int:
    """Tokens that every layer attends to all of: no more than the window where one slides."""
    length = _field(config, "max_position_embeddings")
    slides = SLIDING in (config.get("layer_types") or ())
    return min(length, _field(config, "sliding_window")) if slides else length


def _preset(name: str, sizes: str, context_length: int, **kinds: bool) -> ModelSizes:
    """`sizes` are hidden, intermediate, layers, heads, KV heads, head dim and vocabulary."""
    hidden, intermediate, layers, heads, kv_heads, head_dim, vocab = map(int, sizes.split())
    return ModelSizes(
        name=name,
        hidden_size=hidden,
        intermediate_size=intermediate,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        context_length=context_length,
        **kinds,
    )


# From the models' config.json files: docs/SPYRE_CARD.md#sizes-NAME has the address of each.
PRESETS = {
    configuration.name: configuration
    for configuration in (
        _preset("granite-3.3-8b", "4096 12800 40 32 8 128 49159", 131072, tied_head=True),
        _preset("granite-4-8b-dense", "4096 12800 40 32 8 128 100352", 131072, tied_head=True),
        _preset("granite-4.1-8b", "4096 12800 40 32 8 128 100352", 131072, tied_head=True),
        _preset("granite-4.1-30b", "4096 32768 64 32 8 128 100352", 131072, tied_head=True),
        _preset("granite-swa-20b", "4096 32768 44 32 8 128 100352", 131072, tied_head=True),
        _preset("granite-7b-starter", "4096 11008 32 32 32 128 32008", 4096),
        _preset("granite-vision-3.3-2b", "2048 8192 40 32 8 64 49156", 131072, tied_head=True),
        _preset("llama-3.1-8b", "4096 14336 32 32 8 128 128256", 131072),
        _preset("mistral-small-24b", "5120 32768 40 32 8 128 131072", 131072),
        _preset("ministral-3-8b", "4096 14336 34 32 8 128 131072", 262144),
        _preset("ministral-3-14b", "5120 16384 40 32 8 128 131072", 262144),
        _preset("qwen3-8b", "4096 12288 36 32 8 128 151936", 40960, head_norms=True),
        _preset("smollm2-135m", "576 1536 30 9 3 64 49152", 8192, tied_head=True),
    )
}


def preset(name: str) -> ModelSizes:
    """A model by name; raises ValueError, naming those there are, for another."""
    if name not in PRESETS:
        raise ValueError(f"model {name!r} is no preset: use one of {', '.join(sorted(PRESETS))}")
    return PRESETS[name]
