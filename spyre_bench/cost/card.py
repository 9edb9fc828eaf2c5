"""IBM's Spyre card as a cost model: seconds and bytes of a bucket, each with a low and a high.

Nothing here was measured by us. Every number is a `Parameter` with its unit, its source and the
confidence one may have in it. `validate/card_anchors.py` sets the model beside what others measured
and writes `docs/SPYRE_CARD.md`, which has the address of every source; `#name` here is a row of
that page. No tokens per second, no scaling over cards and no compile time of the card are
published: show the range, never the nominal value alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from spyre_bench.cost.bucket_cost import BucketCost, CostModel
from spyre_bench.cost.card_parameters import CONTESTED, ENDS, WORDS, CardAt, SpyreCard
from spyre_bench.cost.card_words import name_of
from spyre_bench.cost.shape_cost import DecodeCost, PrefillCost, ShapeCosts
from spyre_bench.cost.spread import Spread, Z
from spyre_bench.cost.table import CostRow
from spyre_bench.model_sizes import (
    DTYPES,
    FP16_BYTES,
    LARGEST_TP,
    Linear,
    ModelSizes,
    require_dtype,
)
from spyre_bench.shape_set import BLOCK_TOKENS, DecodeShape, PrefillShape, ShapeSet
from spyre_bench.shapes import Bucket

OF_CARD = "the card's parameters, their optimistic and pessimistic ends as P5 and P95"
PRICED = ("layers", "hidden_size", "intermediate_size", "heads", "kv_heads", "head_dim")
"""Sizes that make two models two."""
REFERENCE_ELEMENTS = 512 * 4096
"""Tokens × hidden size at which `rest_prefill_s` was found: 512 tokens of Granite-3.3-8B."""


@dataclass(frozen=True)
class CostRange:
    """A bucket's cost if everything goes well, at the nominal values, and if nothing does."""

    low: BucketCost
    value: BucketCost
    high: BucketCost


@dataclass(frozen=True, repr=False)
class SpyreCost(CostModel):
    """A language model on `tp` cards, at one end of the card's parameters: modelled, not measured.

    Seconds are of all cards together, bytes of one card. Every cost is marked `extrapolated`:
    none is a measurement of the bucket. Raises ValueError for a dtype, a number of cards or an end
    that cannot be, and from `of` and `range_of` for a bucket beyond the card's limits.
    """

    model: ModelSizes
    tp: int = 1
    dtype: str = "fp16"
    card: SpyreCard = SpyreCard()
    end: str = "value"

    def __post_init__(self) -> None:
        require_dtype(self.dtype)
        self.model.require_tp(self.tp)
        if self.tp > LARGEST_TP:
            raise ValueError(f"tp={self.tp} is beyond a cluster's {LARGEST_TP} cards: use fewer")
        self.card.at(self.end)

    @property
    def label(self) -> str:
        cards = f"{self.tp} card{'s' if self.tp > 1 else ''}"
        end = "nominal values" if self.end == "value" else f"{WORDS[self.end]} end"
        return f"{self.model_name} in {self.dtype} on {cards}, at the {end} of the parameters"

    @property
    def model_name(self) -> str:
        return self.model.name

    @property
    def span(self) -> str:
        return "whatever the card's limits allow"

    @property
    def ends(self) -> tuple[SpyreCost, SpyreCost]:
        return replace(self, end="slow"), replace(self, end="fast")

    @property
    def contested(self) -> dict[str, SpyreCost]:
        """With one parameter of CONTESTED at an end of its range, all others at their values; by
        what that is, in words."""
        return {
            f"{name_of(name)}: {number:g}": replace(self, card=self.card.fixed(**{name: number}))
            for name in CONTESTED
            for number in (getattr(self.card, name).slow, getattr(self.card, name).fast)
            if number != getattr(self.card, name).value
        }

    def spread(self, costs: Sequence[BucketCost]) -> Spread | None:
        """The optimistic and the pessimistic end of the parameters as P5 and P95: what cards could
        be, all passes together. None at one of the ends."""
        if self.end != "value":
            return None
        fast, value, slow = (
            np.log([(at.prefill_s, at.decode_s) for at in (self.at(end, c.bucket) for c in costs)])
            for end in ("fast", "value", "slow")
        )
        return Spread(OF_CARD, (value - fast) / Z, (slow - value) / Z, together=True)

    def spread_of_shapes(self, costs: ShapeCosts) -> Spread | None:
        """As `spread`, of full passes."""
        if self.end != "value":
            return None
        at = {end: replace(self, end=end).of_shapes(costs.shapes) for end in ENDS}
        fast, value, slow = (
            np.log([[cost.full_s] for cost in at[end].each]) for end in ("fast", "value", "slow")
        )
        return Spread(OF_CARD, (value - fast) / Z, (slow - value) / Z, together=True)

    @property
    def rows(self) -> tuple[CostRow, ...]:
        """Raises ValueError, in the place of a cost table's rows."""
        raise ValueError(f"{self.label}: nothing was measured; give the file of a cost table")

    def of(self, bucket: Bucket) -> BucketCost:
        """At its end of the parameters. Show `range_of` beside it."""
        return self.at(self.end, bucket)

    def of_shapes(self, shapes: ShapeSet) -> ShapeCosts:
        """Paged passes at its end of the parameters. A shape with steps is priced at its smallest
        and its largest program, and between them by a line over live rows and context."""
        passes = self.passes(self.end)
        for shape in shapes:
            if shape.context_length > self.model.context_length:
                raise ValueError(
                    f"shape {shape} is beyond the {self.model.context_length} tokens of "
                    f"{self.model.name}: lower its context"
                )
        self.require_slots(shapes.blocks * BLOCK_TOKENS, f"a pool of {shapes.blocks} blocks")
        bytes_ = self.model.weight_bytes(self.dtype, self.tp)
        bytes_ += self.kv_bytes(shapes.blocks * BLOCK_TOKENS)
        if self.end != "fast":
            chunks = [Bucket(1, shape.chunk_length, 2) for shape in shapes.prefill]
            bytes_ += max(self.model.prefill_bytes(chunk, self.tp) for chunk in chunks)
        prefill = tuple(passes.prefill_cost(shape) for shape in shapes.prefill)
        decode = tuple(passes.decode_cost(shape) for shape in shapes.decode)
        return ShapeCosts(prefill, decode, shapes.blocks, bytes_)

    def range_of(self, bucket: Bucket) -> CostRange:
        return CostRange(*(self.at(end, bucket) for end in ENDS))

    def at(self, end: str, bucket: Bucket) -> BucketCost:
        """With every parameter at its optimistic, nominal or pessimistic end (`ENDS`)."""
        passes = self.passes(end)
        self.require(bucket)
        return BucketCost(
            bucket,
            prefill_s=passes.prefill_s(bucket),
            decode_s=passes.decode_s(bucket),
            compile_s=passes.card.compile_s,
            memory_bytes=self.memory_bytes(bucket, end),
            extrapolated=True,
        )

    def passes(self, end: str = "value") -> Passes:
        """The seconds of single parts at one end of the parameters; knows no limits."""
        return Passes(self.model, self.tp, self.dtype, self.card.at(end))

    def require_deployment(self, sizes: ModelSizes, tp: int) -> None:
        if tp != self.tp:
            raise ValueError(
                f"the cost is of tp={self.tp} and the engine has --tensor-parallel-size {tp}: make "
                f"them equal"
            )
        ours, theirs = ({name: getattr(of, name) for name in PRICED} for of in (self.model, sizes))
        other = [
            f"{name} {theirs[name]}, not {ours[name]}"
            for name in PRICED
            if ours[name] != theirs[name]
        ]
        if other:
            raise ValueError(
                f"the cost is of {self.model_name} and the served model has {', '.join(other)}: "
                f"serve $(spyre-bench model {self.model_name}), or name a cost of that model"
            )

    # --- bytes and limits ------------------------------------------------------------------------

    def kv_bytes(self, tokens: int) -> int:
        """KV cache of so many slots, all rows together, on one card."""
        return tokens * self.model.kv_bytes_per_token(self.tp)

    def memory_bytes(self, bucket: Bucket, end: str = "value") -> int:
        """On one card. Fast: weights and KV cache; value: and logits, prefill's mask and one
        layer's activations; slow: and the attention scores in full."""
        rows, prompt = bucket.batch_size, bucket.prompt_length
        needed = self.model.weight_bytes(self.dtype, self.tp)
        needed += self.kv_bytes(rows * bucket.context_length)
        if end == "fast":
            return needed
        needed += self.model.prefill_bytes(bucket, self.tp)
        if end == "slow":
            needed += rows * self.model.card_heads(self.tp) * prompt**2 * FP16_BYTES
        return needed

    def require(self, bucket: Bucket) -> None:
        """Raises ValueError, with the limit and a remedy, for a bucket that the card would not
        take. Alignment to sticks of 64 tokens is the bucket's own rule."""
        rows, context = bucket.batch_size, bucket.context_length
        if context > self.model.context_length:
            raise ValueError(
                f"bucket {bucket} spans {context} tokens (prompt_length + new_tokens), beyond the "
                f"{self.model.context_length} of {self.model.name}: lower one of them"
            )
        limit = self.batch_tokens
        if limit is not None and rows * context > limit:
            raise ValueError(
                f"bucket {bucket} has {rows * context:,} slots (batch × context) and {self.tp} "
                f"cards take {limit:,}: {_batch_remedy(limit // context)}"
            )
        self.require_slots(rows * context, f"bucket {bucket}", context)
        self._require_memory(bucket)

    @property
    def batch_tokens(self) -> int | None:
        """The largest batch × context, in tokens; None where no limit is known."""
        limits = self.card.at("value")
        return int(limits.batch_tokens) if self.tp >= limits.limited_from_tp else None

    @property
    def slots(self) -> int:
        return int(self._kv_cap_bytes // self.model.kv_bytes_per_token(self.tp))

    @property
    def _kv_cap_bytes(self) -> float:
        there = self.card.usable_bytes.value - self.model.weight_bytes(self.dtype, self.tp)
        return max(0.0, min(self.card.kv_bytes.value, there))

    def require_slots(self, tokens: int, what: str = "a KV cache", context: int = 0) -> None:
        """Raises ValueError for a KV cache of more slots than fit a card's cap and memory."""
        cap = self._kv_cap_bytes
        if self.kv_bytes(tokens) > cap:
            most = self.slots
            raise ValueError(
                f"{what} needs {self.kv_bytes(tokens):,} bytes of KV cache on each of {self.tp} "
                f"cards for {tokens:,} slots, and {int(cap):,} are there ({most:,} slots): "
                f"{_batch_remedy(most // context) if context else 'use fewer'}, or use more cards"
            )

    def _require_memory(self, bucket: Bucket) -> None:
        needed, there = self.memory_bytes(bucket), self.card.usable_bytes.value
        if needed > there:
            raise ValueError(
                f"bucket {bucket} needs {needed:,} bytes on each of {self.tp} cards and "
                f"{int(there):,} are usable: lower batch_size or prompt_length, or use more cards"
            )


def _batch_remedy(rows: int) -> str:
    return f"use batch_size {rows} or less" if rows else "use shorter lengths"


@dataclass(frozen=True)
class Passes:
    """Seconds of a pass and of its parts, with every parameter a number."""

    model: ModelSizes
    tp: int
    dtype: str
    card: CardAt

    def prefill_cost(self, shape: PrefillShape) -> PrefillCost:
        chunk, longest = shape.chunk_length, shape.context_length
        _, shortest = shape.padded(chunk, chunk)
        base_s = self.chunk_s(chunk, shortest)
        grows_s = self.chunk_s(chunk, longest) - base_s
        slot_s = grows_s / (longest - shortest) if longest > shortest else 0.0
        return PrefillCost(shape, base_s, slot_s, self.card.compile_s / 2, extrapolated=True)

    def decode_cost(self, shape: DecodeShape) -> DecodeCost:
        rows, context = shape.rows, shape.context_length
        few, short = shape.rows_step, shape.context_step
        row_s = slot_s = 0.0
        if short < context:
            grows_s = self.step_s(rows, context) - self.step_s(rows, short)
            slot_s = grows_s / (rows * (context - short))
        if few < rows:
            more_s = self.step_s(rows, short) - self.step_s(few, short)
            row_s = max(0.0, more_s / (rows - few) - slot_s * short)
        base_s = self.step_s(few, short) - few * (row_s + slot_s * short)
        return DecodeCost(
            shape, max(0.0, base_s), row_s, slot_s, self.card.compile_s / 2, extrapolated=True
        )

    def chunk_s(self, chunk: int, context: int) -> float:
        """A chunk of one request over so many slots, its own among them."""
        rest = max(1.0, chunk * self.model.hidden_size / REFERENCE_ELEMENTS)
        layer = self.linears_s(chunk) + self.attention_s(1, chunk, context)
        layer += self.card.rest_prefill_s * rest + self.reduces_s(chunk)
        return self.model.layers * layer + self.head_s(1)

    def step_s(self, rows: int, context: int) -> float:
        """A decode pass of rows that all have so many slots."""
        layer = self.linears_s(rows) + self.decode_attention_s(rows, context)
        layer += self.card.rest_decode_s + self.reduces_s(rows)
        return self.model.layers * layer + self.head_s(rows)

    def prefill_s(self, bucket: Bucket) -> float:
        rows = bucket.batch_size * bucket.prompt_length
        rest = self.card.rest_prefill_s * max(
            1.0, rows * self.model.hidden_size / REFERENCE_ELEMENTS
        )
        layer = self.linears_s(rows) + self.prefill_attention_s(bucket) + rest
        return self.model.layers * (layer + self.reduces_s(rows)) + self.head_s(bucket.batch_size)

    def decode_s(self, bucket: Bucket) -> float:
        return self.step_s(bucket.batch_size, bucket.context_length)

    def linears_s(self, rows: int) -> float:
        """A layer's products with weights."""
        attention = sum(self.linear_s(w, rows) for w in self.model.attention_linears(self.tp))
        return attention + self.mlp_s(rows)

    def mlp_s(self, rows: int) -> float:
        """The fused MLP: it streams its weights once for every `mlp_rows` rows (#mlp)."""
        times = max(1, math.ceil(rows / self.card.mlp_rows))
        return times * sum(self.linear_s(w, rows / times) for w in self.model.mlp_linears(self.tp))

    def linear_s(self, linear: Linear, rows: float, dtype: str | None = None) -> float:
        """[rows, inner] times a weight: sqrt((bytes/bandwidth)² + (operations/peak)²),
        #the-25-products.

        Under fp8 the weights and the products' inputs have one byte, after a pass that quantises
        the inputs (#sweep shows that overhead; its form here is our assumption).
        """
        dtype = dtype or self.dtype
        inputs, outputs = rows * linear.inner, rows * linear.columns
        item = DTYPES[dtype]
        moved = item * (inputs + linear.weights) + FP16_BYTES * outputs
        peak = self.card.fp16_flops if dtype == "fp16" else self.card.fp8_flops
        product = math.hypot(moved / self.card.read_bytes_per_s, 2 * rows * linear.weights / peak)
        if dtype == "fp16":
            return product
        return product + (FP16_BYTES + item) * inputs / self.card.quantise_bytes_per_s

    def head_s(self, rows: int) -> float:
        """The output head, in fp16 under both dtypes, for the last token of each row; every card
        computes all of it."""
        return self.linear_s(self.model.head_linear(), rows, "fp16")

    def prefill_attention_s(self, bucket: Bucket) -> float:
        """Scores and weighted values of a layer, nothing skipped for the causal mask."""
        return self.attention_s(bucket.batch_size, bucket.prompt_length, bucket.prompt_length)

    def decode_attention_s(self, rows: int, context: int) -> float:
        """One query a row, padded to `decode_query_rows`."""
        return self.attention_s(rows, self.card.decode_query_rows, context)

    def attention_s(self, rows: int, queries: int, slots: int) -> float:
        """A layer's two products of attention, scores and weighted values, on one card: moving and
        multiplying as in `linear_s`, with the bandwidth and the peak found there
        (#attention-products).

        Queries and outputs are moved once, keys and values once for each KV head, and the scores
        `score_crossings` times: over long contexts and many queries they are nearly all of it.
        """
        model, heads = self.model, self.model.card_heads(self.tp)
        cache = slots * model.kv_bytes_per_token(self.tp) / model.layers
        ends = 2 * heads * queries * model.head_dim * FP16_BYTES
        scores = self.card.score_crossings * heads * queries * slots * FP16_BYTES
        moved = rows * (cache + ends + scores)
        operations = 2 * model.attention_operations(rows, queries, slots, self.tp)
        return math.hypot(moved / self.card.read_bytes_per_s, operations / self.card.fp16_flops)

    def products_s(self, batch: int, rows: int, columns: int, inner: int) -> float:
        """`batch` products of [rows, inner] and [inner, columns], none of which shares anything
        with another: what attention's products are to whoever measures them by themselves."""
        moved = FP16_BYTES * batch * (rows * inner + inner * columns + rows * columns)
        operations = 2 * batch * rows * inner * columns
        return math.hypot(moved / self.card.read_bytes_per_s, operations / self.card.fp16_flops)

    def reduces_s(self, rows: int) -> float:
        """A layer's two all-reduces of [rows, hidden] over the cards."""
        return 2 * self.all_reduce_s(rows * self.model.hidden_size * FP16_BYTES)

    def all_reduce_s(self, size_bytes: int) -> float:
        """A chain over the cards (#all-reduce), and never less than the assumed least."""
        if self.tp == 1:
            return 0.0
        chain = (self.tp - 1) * size_bytes * self.card.hop_s_per_byte
        return max(self.card.all_reduce_s, chain)
