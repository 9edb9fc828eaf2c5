"""What the passes of continuous batching cost: one compiled shape, whatever is inside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from spyre_bench.shape_set import DecodeShape, PrefillShape, ShapeSet


@dataclass(frozen=True, slots=True)
class PrefillCost:
    """What one prefill shape costs on one engine. A chunk is padded, so only what stands before it
    in the context changes a pass of it."""

    shape: PrefillShape
    base_s: float  # a pass with nothing before the chunk
    slot_s: float = 0.0  # more for each token before the chunk
    compile_s: float = 0.0  # cold, once a start
    extrapolated: bool = False  # outside of what was measured

    def pass_s(self, before_tokens: int) -> float:
        """Seconds of a chunk with so many tokens before it."""
        return self.base_s + self.slot_s * before_tokens

    def scaled(self, factor: float) -> PrefillCost:
        """With passes that take so many times as long."""
        return replace(self, base_s=self.base_s * factor, slot_s=self.slot_s * factor)

    @property
    def full_s(self) -> float:
        """Seconds of the chunk that fills the context."""
        return self.pass_s(self.shape.context_length - self.shape.chunk_length)


@dataclass(frozen=True, slots=True)
class DecodeCost:
    """What one decode shape costs on one engine. Its seconds differ with what is live in it: a row
    or a block of padding points at the dummy block, which comes from cache."""

    shape: DecodeShape
    base_s: float  # a pass of nothing but padding
    row_s: float = 0.0  # more for each live row
    slot_s: float = 0.0  # more for each token of live context, summed over the rows
    compile_s: float = 0.0  # cold, once a start
    extrapolated: bool = False

    def pass_s(self, rows: int, context_tokens: float) -> float:
        """Seconds of a pass of so many live rows, their contexts summing to `context_tokens`."""
        return self.base_s + self.row_s * rows + self.slot_s * context_tokens

    def passes_s(self, rows: int, context_tokens: int, count: int) -> float:
        """Seconds of `count` passes of the same rows, each a token longer with every pass, the
        first of them with `context_tokens` in all."""
        mean_tokens = context_tokens + rows * (count - 1) / 2
        return count * (self.base_s + self.row_s * rows + self.slot_s * mean_tokens)

    def scaled(self, factor: float) -> DecodeCost:
        """With passes that take so many times as long."""
        base_s, row_s, slot_s = (s * factor for s in (self.base_s, self.row_s, self.slot_s))
        return replace(self, base_s=base_s, row_s=row_s, slot_s=slot_s)

    @property
    def full_s(self) -> float:
        """Seconds of a pass whose every row fills its context."""
        return self.pass_s(self.shape.rows, self.shape.rows * self.shape.context_length)


@dataclass(frozen=True, slots=True)
class ShapeCosts:
    """The costs of an engine's whole shape set, in its order; ties between shapes go to the
    first."""

    prefill: tuple[PrefillCost, ...]
    decode: tuple[DecodeCost, ...]
    blocks: int  # of the KV cache, the dummy included
    memory_bytes: int = 0  # of the engine; 0 where nobody knows
    # of the shapes, see ShapeSet; the policy asks for them before every pass
    max_rows: int = field(init=False)
    max_chunk: int = field(init=False)
    max_model_len: int = field(init=False)
    cheapest_decode: tuple[DecodeShape, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        shapes = self.shapes
        for name in ("max_rows", "max_chunk", "max_model_len"):
            object.__setattr__(self, name, getattr(shapes, name))
        ascending = sorted(self.decode, key=lambda cost: cost.full_s)
        object.__setattr__(self, "cheapest_decode", tuple(cost.shape for cost in ascending))

    @property
    def each(self) -> tuple[PrefillCost | DecodeCost, ...]:
        """Prefill shapes first."""
        return (*self.prefill, *self.decode)

    @property
    def shapes(self) -> ShapeSet:
        return ShapeSet(
            tuple(cost.shape for cost in self.prefill),
            tuple(cost.shape for cost in self.decode),
            self.blocks,
        )

    def scaled(self, factors: Sequence[float]) -> ShapeCosts:
        """With passes that take so many times as long: a factor for each shape, prefill first."""
        of_prefill, of_decode = factors[: len(self.prefill)], factors[len(self.prefill) :]
        return replace(
            self,
            prefill=tuple(cost.scaled(f) for cost, f in zip(self.prefill, of_prefill, strict=True)),
            decode=tuple(cost.scaled(f) for cost, f in zip(self.decode, of_decode, strict=True)),
        )

    @property
    def compile_s(self) -> float:
        """Cold, of all passes."""
        prefill_s = sum(cost.compile_s for cost in self.prefill)
        return prefill_s + sum(cost.compile_s for cost in self.decode)

    @property
    def warmup_s(self) -> float:
        """Cold compile and one run of each pass, before the server is ready."""
        prefill_s = sum(cost.full_s for cost in self.prefill)
        return self.compile_s + prefill_s + sum(cost.full_s for cost in self.decode)


class Warmed(Protocol):
    """What warmup measured of a shape, in seconds."""

    @property
    def shape(self) -> PrefillShape | DecodeShape: ...
    @property
    def compile_s(self) -> float: ...
    @property
    def full_s(self) -> float: ...  # a pass whose context is full
    @property
    def empty_s(self) -> float: ...  # ... and one with nothing in it but one token


def warmed_costs(warmup: Iterable[Warmed], blocks: int) -> ShapeCosts:
    """What warmup measured, as the costs that an engine of so many blocks decides by: in a straight
    line from an empty context to a full one."""
    prefill, decode = [], []
    for row in warmup:
        shape, more_s = row.shape, max(0.0, row.full_s - row.empty_s)
        if isinstance(shape, PrefillShape):
            before = shape.context_length - shape.chunk_length
            slot_s = more_s / before if before else 0.0
            prefill.append(PrefillCost(shape, row.empty_s, slot_s, row.compile_s))
        else:
            slot_s = more_s / (shape.rows * shape.context_length)
            decode.append(DecodeCost(shape, row.empty_s, 0.0, slot_s, row.compile_s))
    prefill.sort(key=lambda cost: cost.shape)
    decode.sort(key=lambda cost: cost.shape)
    return ShapeCosts(tuple(prefill), tuple(decode), blocks)
