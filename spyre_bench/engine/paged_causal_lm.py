"""Continuous batching: chunks of prefill and passes of decode over a KV cache in blocks.

Shapes: B rows of a decode shape, C tokens of a chunk, n = T / 64 entries of a block table, T slots
of context, H KV heads on this rank, D head dim, V vocabulary.
The engine knows no requests: tables and places come with every call, and whoever calls owns the
blocks. Block 0 is the dummy, where the keys and values of all padding go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from fms.utils.spyre import paged  # noqa: F401  registers the card's own paged ops
from torch import Tensor

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
        seen = torch.arange(shape.context_length) <= places[:, None]  # of padding: something
        return self._pass(shape, tokens, places[None], seen[None, None], table, slots)

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
        seen = torch.arange(shape.context_length) <= places[:, None]
        logits = self._pass(
            shape, tokens[:, None], places[:, None], seen[:, None, None], table, slots
        )
        return logits[: len(rows)]

    def compile(self, shape: PrefillShape | DecodeShape) -> None:
        """Readies the pass of a shape; it compiles when it first runs (see `warmup`)."""
        self._warmed.discard(shape)
        kind = "prefill" if isinstance(shape, PrefillShape) else "decode"
        name = str(shape).replace(",", "_").replace("/", "_by_")
        self._compile(shape, f"{kind}_shape_{name}")

    def _pass(
        self,
        shape: PrefillShape | DecodeShape,
        tokens: Tensor,
        positions: Tensor,
        seen: Tensor,
        table: Tensor,
        slots: Tensor,
    ) -> Tensor:
        closed = shape in self._warmed
        if self.keeps_caches:
            attention = _of_the_card(seen, table, slots)
            logits, self._pools = self._run(
                shape, closed, tokens, positions, self._pools, attention
            )
            return logits.float()
        attention = {
            "attn_name": SPYRE_PAGED,
            "prefills": isinstance(shape, PrefillShape),
            "mask": self._additive(seen),
            "table": table,
            "slots": slots,
        }
        return self._run(shape, closed, tokens, positions, self._pools, attention).float()

    def _allocate(self) -> list[tuple[Tensor, Tensor]]:
        """Key and value pools [blocks, H, 64, D] a layer; [blocks, 64, H, D] for the card's ops."""
        heads = self.sizes.card_kv_heads(self.config.rank.tp)
        slots = (BLOCK_TOKENS, heads) if self.keeps_caches else (heads, BLOCK_TOKENS)
        size = (self.shapes.blocks, *slots, self.sizes.head_dim)
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


def _of_the_card(seen: Tensor, table: Tensor, slots: Tensor) -> dict[str, object]:
    """What FMS's own paged ops take: a slot for each token [B, Q], and of each row its blocks, its
    length and where it begins, which is at its first block."""
    rows = table.shape[0]
    block, place = slots
    return {
        "attn_name": "spyre_paged_attn",
        "slot_mapping": (block * BLOCK_TOKENS + place).view(rows, -1),
        "block_table": table,
        "current_tkv_mask": seen.flatten(1).view(rows, -1, seen.shape[-1])[:, -1].sum(-1),
        "left_padded_prompt_mask": torch.zeros(rows, dtype=torch.long),
        "mask": None,
    }
