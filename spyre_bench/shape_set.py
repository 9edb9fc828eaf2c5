"""The compiled shapes of continuous batching: chunks of prefill, widths of decode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from spyre_bench.shapes import LARGEST, REJECTIONS, STICK_TOKENS, listed

BLOCK_TOKENS = STICK_TOKENS
"""Slots of one block of the KV cache. Block 0 is the dummy: padding points there."""


def blocks_of(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // BLOCK_TOKENS)


def _require_size(what: str, size: int, step: int, unit: int) -> None:
    """A dimension of a shape: at most `size`, in multiples of `step`, a whole number of `unit`."""
    for name, value in ((what, size), (f"{what}_step", step)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{name} {value!r} is not a whole number: write, for example, {unit}")
        if value < 1 or value % unit:
            above = max(1, -(-value // unit)) * unit
            raise ValueError(f"{name} {value} is not a positive multiple of {unit}: use {above}")
        if value > LARGEST:
            raise ValueError(f"{name} {value!s:.20} is above {LARGEST:,}: use less")
    if size % step:
        raise ValueError(
            f"{what} {size} is not a multiple of its step {step}: use a step of {size}"
        )


def _padded(value: int, step: int) -> int:
    return -(-value // step) * step


@dataclass(frozen=True, slots=True, order=True)
class DecodeShape:
    """One compiled decode pass: one token for each of up to `rows` requests, each with a context
    of up to `context_length` tokens (its new one included).

    What runs is a multiple of the steps: (granularity, maximum) is what a compiler with bounded
    dynamic dimensions is told. A step of 0 is the size itself, one static shape.
    """

    rows: int
    context_length: int
    rows_step: int = 0
    context_step: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows_step", self.rows_step or self.rows)
        object.__setattr__(self, "context_step", self.context_step or self.context_length)
        _require_size("rows", self.rows, self.rows_step, 1)
        _require_size("context_length", self.context_length, self.context_step, BLOCK_TOKENS)

    @classmethod
    def parse(cls, value: DecodeShape | str | Sequence[Any]) -> DecodeShape:
        """From `"8,2048"` or `[8, 2048]`; with steps `"8/2,2048/64"` or `[8, 2048, 2, 64]`."""
        return value if isinstance(value, DecodeShape) else cls(*_numbers("decode shape", value))

    def covers(self, rows: int, context_length: int) -> bool:
        return rows <= self.rows and context_length <= self.context_length

    def padded(self, rows: int, context_length: int) -> tuple[int, int]:
        """Rows and context that a pass of so many rows, the longest with such a context, runs."""
        return _padded(rows, self.rows_step), _padded(context_length, self.context_step)

    @property
    def without_steps(self) -> DecodeShape:
        """As an engine compiles it that knows no bounded dimensions, of which ours is one."""
        return DecodeShape(self.rows, self.context_length)

    @property
    def blocks(self) -> int:
        """Entries of a row's block table."""
        return self.context_length // BLOCK_TOKENS

    @property
    def name(self) -> str:
        """`decode 8,2048`: shapes of the two kinds may have the same sizes."""
        return f"decode {self}"

    def __str__(self) -> str:
        return _text((self.rows, self.rows_step), (self.context_length, self.context_step))


@dataclass(frozen=True, slots=True, order=True)
class PrefillShape:
    """One compiled prefill pass of one request: up to `chunk_length` tokens of its prompt over a
    context of up to `context_length` tokens (the chunk's included)."""

    chunk_length: int
    context_length: int
    chunk_step: int = 0
    context_step: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "chunk_step", self.chunk_step or self.chunk_length)
        object.__setattr__(self, "context_step", self.context_step or self.context_length)
        _require_size("chunk_length", self.chunk_length, self.chunk_step, BLOCK_TOKENS)
        _require_size("context_length", self.context_length, self.context_step, BLOCK_TOKENS)
        if self.chunk_length > self.context_length:
            raise ValueError(
                f"chunk_length {self.chunk_length} is above context_length {self.context_length}, "
                f"which it is part of: use a chunk of {self.context_length} or less"
            )

    @classmethod
    def parse(cls, value: PrefillShape | str | Sequence[Any]) -> PrefillShape:
        """From `"256,2048"` or `[256, 2048]`; with steps `"256/64,2048/64"`."""
        return value if isinstance(value, PrefillShape) else cls(*_numbers("prefill shape", value))

    def covers(self, chunk_length: int, context_length: int) -> bool:
        return chunk_length <= self.chunk_length and context_length <= self.context_length

    def padded(self, chunk_length: int, context_length: int) -> tuple[int, int]:
        """Chunk and context that a pass of so many tokens over such a context runs."""
        return _padded(chunk_length, self.chunk_step), _padded(context_length, self.context_step)

    @property
    def without_steps(self) -> PrefillShape:
        """As an engine compiles it that knows no bounded dimensions, of which ours is one."""
        return PrefillShape(self.chunk_length, self.context_length)

    @property
    def blocks(self) -> int:
        """Entries of the request's block table."""
        return self.context_length // BLOCK_TOKENS

    @property
    def name(self) -> str:
        """`prefill 256,2048`."""
        return f"prefill {self}"

    def __str__(self) -> str:
        return _text((self.chunk_length, self.chunk_step), (self.context_length, self.context_step))


def _text(*sizes: tuple[int, int]) -> str:
    return ",".join(str(size) if size == step else f"{size}/{step}" for size, step in sizes)


def _numbers(what: str, value: object) -> list[int]:
    """Two sizes, then their two steps (0: the size itself)."""
    wrong = ValueError(
        f"{what} {value!r} is not two whole numbers: write, for example, 8,2048 or [8, 2048], with "
        f"steps 8/2,2048/64"
    )
    if isinstance(value, str):
        sizes = [part.partition("/") for part in value.lower().replace("x", ",").split(",")]
        try:
            numbers = [int(size) for size, *_ in sizes]
            numbers += [int(step) if slash else 0 for _, slash, step in sizes]
        except ValueError:
            raise wrong from None
        if len(sizes) != 2:
            raise wrong
        return numbers
    if not isinstance(value, Sequence) or len(value) not in (2, 4):
        raise wrong
    return list(value)


Shape = TypeVar("Shape", DecodeShape, PrefillShape)


@dataclass(frozen=True)
class ShapeSet:
    """Everything that an engine of continuous batching compiles, and the blocks of its KV cache,
    the dummy included. Immutable, without duplicates, in ascending order."""

    prefill: tuple[PrefillShape, ...]
    decode: tuple[DecodeShape, ...]
    blocks: int

    def __post_init__(self) -> None:
        for name, example in (("prefill", "256,2048"), ("decode", "8,2048")):
            shapes = getattr(self, name)
            if not shapes:
                raise ValueError(
                    f"no {name} shape given: name at least one, such as {example}; `spyre-bench "
                    f"shapes` chooses them for a workload"
                )
            object.__setattr__(self, name, tuple(sorted(set(shapes))))
        if type(self.blocks) is not int:
            raise ValueError(
                f"blocks {self.blocks!r} is not a whole number: write, for example, 257"
            )
        if self.blocks < self.least_blocks:
            raise ValueError(
                f"{self.blocks} blocks do not hold one request of {self.max_model_len} tokens and "
                f"the dummy block: use {self.least_blocks} or more, or shorter contexts"
            )

    @classmethod
    def parse(
        cls,
        prefill: str | Iterable[PrefillShape | str | Sequence[int]],
        decode: str | Iterable[DecodeShape | str | Sequence[int]],
        blocks: int | None = None,
    ) -> ShapeSet:
        """Shapes from `"64,512 256,2048"`, from a file of them, `"@shapes.json"`, or from a list of
        what `parse` of each kind reads. Without `blocks`: as many as fill the largest decode shape,
        and the dummy."""
        prefills = tuple(map(PrefillShape.parse, words(prefill, "prefill_shapes")))
        decodes = tuple(map(DecodeShape.parse, words(decode, "decode_shapes")))
        most = max((shape.rows * shape.blocks for shape in decodes), default=0)
        longest = max((shape.blocks for shape in prefills), default=0)
        return cls(prefills, decodes, max(most, longest) + 1 if blocks is None else blocks)

    @property
    def setting(self) -> dict[str, Any]:
        """What a server that compiles these is given, in the names of its settings."""
        prefill, decode = (" ".join(map(str, of)) for of in (self.prefill, self.decode))
        sizes = {"prefill_shapes": prefill, "decode_shapes": decode, "blocks": self.blocks}
        return {"batching": "continuous", **sizes}

    @property
    def without_steps(self) -> ShapeSet:
        """As an engine compiles them that knows no bounded dimensions."""
        prefill = tuple(shape.without_steps for shape in self.prefill)
        decode = tuple(shape.without_steps for shape in self.decode)
        return ShapeSet(prefill, decode, self.blocks)

    def __iter__(self) -> Iterator[PrefillShape | DecodeShape]:
        yield from self.prefill
        yield from self.decode

    def __len__(self) -> int:
        return len(self.prefill) + len(self.decode)

    def __str__(self) -> str:
        prefill, decode = (" ".join(map(str, shapes)) for shapes in (self.prefill, self.decode))
        return f"prefill {prefill} decode {decode} blocks {self.blocks}"

    @property
    def max_rows(self) -> int:
        """Requests that can decode together."""
        return max(shape.rows for shape in self.decode)

    @property
    def max_chunk(self) -> int:
        """Tokens of the longest chunk."""
        return max(shape.chunk_length for shape in self.prefill)

    @property
    def max_model_len(self) -> int:
        """Tokens, prompt and output, of the longest request that can be served."""
        return min(
            max(shape.context_length for shape in self.prefill),
            max(shape.context_length for shape in self.decode),
        )

    @property
    def max_context_length(self) -> int:
        """Tokens of the longest context of any shape."""
        return max(shape.context_length for shape in self)

    @property
    def least_blocks(self) -> int:
        """Blocks that hold the longest request, and the dummy."""
        return blocks_of(self.max_model_len) + 1

    @property
    def max_prompt_length(self) -> int:
        """Tokens of the longest prompt that leaves room for one output."""
        return self.max_model_len - 1

    def max_new_tokens(self, prompt_tokens: int) -> int:
        """The most output tokens for such a prompt; 0 where the prompt is too long."""
        return max(0, self.max_model_len - prompt_tokens)

    def rejection(self, prompt_tokens: int, max_tokens: int) -> str | None:
        """Why such a request is never served, one of `REJECTIONS`; None where it is."""
        if prompt_tokens > self.max_prompt_length:
            return REJECTIONS[0]
        if max_tokens >= self.max_model_len:
            return REJECTIONS[1]
        return REJECTIONS[2] if prompt_tokens + max_tokens > self.max_model_len else None

    def require_fit(self, prompt_tokens: int, max_tokens: int) -> None:
        """Raises ValueError, with the context that would do, for a request that is too long."""
        tokens = prompt_tokens + max_tokens
        if tokens > self.max_model_len:
            raise ValueError(
                f"prompt_tokens={prompt_tokens} with max_tokens={max_tokens} needs a context of "
                f"{tokens} tokens and the longest that is compiled has {self.max_model_len}: lower "
                f"max_tokens, shorten the prompt, or compile a context of "
                f"{blocks_of(tokens) * BLOCK_TOKENS} (prefill_shapes and decode_shapes, or "
                f"--max-model-len) and start again"
            )

    def decode_shapes(self, rows: int, context_length: int) -> tuple[DecodeShape, ...]:
        """Those that cover such a pass, in ascending order."""
        return tuple(shape for shape in self.decode if shape.covers(rows, context_length))

    def prefill_shapes(self, chunk_length: int, context_length: int) -> tuple[PrefillShape, ...]:
        """Those that cover such a chunk, in ascending order."""
        return tuple(shape for shape in self.prefill if shape.covers(chunk_length, context_length))


DEFAULT_ROWS, DEFAULT_CHUNK = 8, 256
SHORT = 4  # contexts that most requests stay below are this much shorter than the longest


def shapes_for(
    max_model_len: int,
    rows: int = DEFAULT_ROWS,
    chunk_tokens: int = DEFAULT_CHUNK,
    blocks: int | None = None,
) -> ShapeSet:
    """The shapes of an engine that was given none: decode of all rows, of half and of a quarter,
    chunks of a whole one and of one block, each over the longest context and over a quarter of it;
    the longest is rounded down to whole blocks. Raises ValueError for a length below a block."""
    longest = max_model_len // BLOCK_TOKENS * BLOCK_TOKENS
    if longest < BLOCK_TOKENS:
        raise ValueError(
            f"max_model_len {max_model_len} is below {BLOCK_TOKENS}, one block of the KV cache: "
            f"use {BLOCK_TOKENS} or more"
        )
    contexts = {longest, blocks_of(longest // SHORT) * BLOCK_TOKENS}
    chunk = min(blocks_of(chunk_tokens) * BLOCK_TOKENS, longest)
    return ShapeSet.parse(
        [(c, t) for c in (BLOCK_TOKENS, chunk) for t in contexts if c <= t],
        [(-(-rows // part), t) for part in (1, 2, 4) for t in contexts],
        blocks,
    )


EXAMPLES = {"prefill_shapes": "[256, 2048]", "decode_shapes": "[8, 2048]"}


def words(values: str | Iterable[Any], name: str) -> Iterable[Any]:
    """The single shapes of a text, of a file that it names, or of a list; `name` is their key in
    the file, of EXAMPLES."""
    if isinstance(values, str) and values.strip().startswith("@"):
        return listed(values, name, EXAMPLES[name])
    return values.replace(";", " ").split() if isinstance(values, str) else values
