"""Continuous batching: chunks of prefill and passes of decode over a KV cache in blocks.

Shapes: B rows of a decode shape, C tokens of a chunk, n = T / 64 entries of a block table, T slots
of context, H KV heads on this rank, D head dim, V vocabulary.
The engine knows no requests: tables and places come with every call, and whoever calls owns the
blocks. Block 0 is the dummy, where the keys and values of all padding go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spyre_bench.engine.card_attention import card_arguments
from spyre_bench.engine.compiled_model import CompiledModel, EngineConfig
from spyre_bench.engine.memory import check_pool
from spyre_bench.engine.paged_attention import SPYRE_PAGED
from spyre_bench.shape_set import BLOCK_TOKENS, DecodeShape, PrefillShape, blocks_of


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens of one request's prompt."""

    tokens: Sequence[int]
    start: int  # tokens of the request before them
    table: Sequence[int]  # its blocks, for start + len(tokens) tokens or more
    write_from: int = 0  # tokens before this place are computed again, and not stored again


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """The last token of one request, to be stored and to be followed."""

    token: int
    position: int  # tokens of the request before it
    table: Sequence[int]  # its blocks, for position + 1 tokens or more


class PagedCausalLM(CompiledModel):
    """A causal language model whose requests come and go between compiled passes."""

    def __init__(self, config: EngineConfig):
        assert config.shapes is not None, "an engine of buckets is a SpyreCausalLM"
        self.shapes = config.shapes
        self.returns_caches = config.compile_backend == "sendnn"  # as the card's own ops do
        super().__init__(config)
        self._pools = self._allocate()

    def _check_memory(self) -> int:
        config = self.config
        for shape in self.shapes:
            if shape.context_length > self.context_length:
                raise ValueError(
                    f"shape {shape} spans a context of {shape.context_length} tokens, beyond the "
                    f"model's of {self.context_length}: use a shorter one"
                )
        return check_pool(
            self.sizes,
            self.shapes,
            config.dtype,
            config.memory_bytes,
            config.rank.tp,
            self.packs,
        )

    @torch.no_grad()
    def prefill(self, shape: PrefillShape, chunk: Chunk) -> Tensor:
        """One chunk: logits [1, V] in float32 after its last token.

        Raises RuntimeError for a shape that was not warmed, ValueError for a chunk that does not
        fit it or has too few blocks.
        """
        self._require_warmed("shape", shape, shape)
        length, end = len(chunk.tokens), chunk.start + len(chunk.tokens)
        if not 1 <= length <= shape.chunk_length or end > shape.context_length:
            raise ValueError(
                f"a chunk of {length} tokens behind {chunk.start} does not fit prefill shape "
                f"{shape}: 1 to {shape.chunk_length} tokens, {shape.context_length} in all"
            )
        pad = shape.chunk_length - length  # on the left: the last column is the last token
        tokens = torch.full((1, shape.chunk_length), self.pad_token)
        tokens[0, pad:] = torch.tensor(chunk.tokens)
        places = (torch.arange(shape.chunk_length) - pad + chunk.start).clamp(min=0)
        table = self._table([chunk.table], [end], shape.blocks)
        stored = torch.arange(shape.chunk_length) >= pad + max(0, chunk.write_from - chunk.start)
        slots = self._slots(table.expand(shape.chunk_length, -1), places, stored)
        return self._pass(shape, tokens, places[None], table, slots)

    @torch.no_grad()
    def decode(self, shape: DecodeShape, rows: Sequence[DecodeRow]) -> Tensor:
        """One token for each row: logits [len(rows), V] in float32.

        Raises RuntimeError for a shape that was not warmed, ValueError for rows that do not fit it
        or have too few blocks.
        """
        self._require_warmed("shape", shape, shape)
        longest = max((row.position + 1 for row in rows), default=0)
        if not rows or not shape.covers(len(rows), longest):
            raise ValueError(
                f"{len(rows)} rows with up to {longest} tokens do not fit decode shape {shape}: "
                f"1 to {shape.rows} rows, up to {shape.context_length} tokens each"
            )
        dummies = shape.rows - len(rows)
        tokens = torch.tensor([row.token for row in rows] + [self.pad_token] * dummies)
        places = torch.tensor([row.position for row in rows] + [0] * dummies)
        tables = [row.table for row in rows] + [()] * dummies
        lengths = [row.position + 1 for row in rows] + [0] * dummies
        table = self._table(tables, lengths, shape.blocks)
        slots = self._slots(table, places, torch.ones(shape.rows, dtype=torch.bool))
        return self._pass(shape, tokens[:, None], places[:, None], table, slots)[: len(rows)]

    def compile(self, shape: PrefillShape | DecodeShape, directory: Path | None = None) -> None:
        """Readies the pass of a shape; it compiles when it first runs (see `warmup`)."""
        self._warmed.discard(shape)
        kind = "prefill" if isinstance(shape, PrefillShape) else "decode"
        name = str(shape).replace(",", "_").replace("/", "_by_")
        self._compile(shape, f"{kind}_shape_{name}", directory)

    def _pass(
        self,
        shape: PrefillShape | DecodeShape,
        tokens: Tensor,
        places: Tensor,
        table: Tensor,
        slots: Tensor,
    ) -> Tensor:
        """Tokens [B, Q] at their places in their requests -> logits [B, V] in float32."""
        if self.returns_caches:
            attention = card_arguments(table, slots, places[:, -1] + 1)
        else:
            seen = torch.arange(shape.context_length) <= places[..., None]  # padding: one slot
            attention = {
                "attn_name": SPYRE_PAGED,
                "prefills": isinstance(shape, PrefillShape),
                "mask": self._additive(seen[:, None]),
                "table": table,
                "slots": slots,
            }
        out = self._run(shape, shape in self._warmed, tokens, places, self._pools, attention)
        if self.returns_caches:
            out, self._pools = out
        return out.float()

    def _allocate(self) -> list[tuple[Tensor, Tensor]]:
        """Key and value pools [blocks, H, 64, D] a layer; the card's are [blocks, 64, H, D]."""
        heads = self.sizes.card_kv_heads(self.config.rank.tp)
        block = (BLOCK_TOKENS, heads) if self.returns_caches else (heads, BLOCK_TOKENS)
        size = (self.shapes.blocks, *block, self.sizes.head_dim)
        return [
            (torch.zeros(size, dtype=self.dtype), torch.zeros(size, dtype=self.dtype))
            for _ in range(self.sizes.layers)
        ]

    def _table(
        self, tables: Sequence[Sequence[int]], lengths: Sequence[int], entries: int
    ) -> Tensor:
        """[len(tables), entries]: the blocks that hold so many tokens, and dummies behind them."""
        padded = torch.zeros(len(tables), entries, dtype=torch.long)
        for row, (table, length) in enumerate(zip(tables, lengths, strict=True)):
            used = blocks_of(length)
            if len(table) < used:
                raise ValueError(
                    f"row {row} has {len(table)} blocks for {length} tokens: it needs {used}"
                )
            padded[row, :used] = torch.tensor(table[:used])
        if padded.max() >= self.shapes.blocks or padded.min() < 0:
            raise ValueError(
                f"a table names block {int(padded.max())}, and the cache has blocks 0 to "
                f"{self.shapes.blocks - 1}"
            )
        return padded

    def _slots(self, table: Tensor, places: Tensor, stored: Tensor) -> Tensor:
        """Block and place in it [2, tokens] of each token; what is not stored goes to block 0."""
        entries = (places // BLOCK_TOKENS)[:, None]
        block = table.gather(1, entries)[:, 0] * stored
        return torch.stack([block, places % BLOCK_TOKENS])
