"""Measure what shapes of continuous batching cost: cold and warm, as cost-table rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spyre_bench.checkpoints.find import model_directory
from spyre_bench.cost.measured_shapes import decode_cost, prefill_cost
from spyre_bench.cost.table import ShapeRow
from spyre_bench.measure.buckets import DEFAULT_PASSES, common, keep_table
from spyre_bench.measure.starts import STARTS, starts_of
from spyre_bench.shape_set import BLOCK_TOKENS, DecodeShape, PrefillShape

if TYPE_CHECKING:
    from spyre_bench.engine.paged_causal_lm import PagedCausalLM

Shape = PrefillShape | DecodeShape
Pair = tuple[PrefillShape, DecodeShape]
SMALLEST: Pair = (PrefillShape(BLOCK_TOKENS, BLOCK_TOKENS), DecodeShape(1, BLOCK_TOKENS))
"""An engine has shapes of both kinds: the other one, where only one is measured."""


def measure_shapes(
    model: str | Path,
    pair: Pair,
    *,
    tp: int = 1,
    compile_backend: str = "inductor",
    compile_scope: str = "layer",
    dtype: str = "float32",
    threads: int | None = None,
    passes: int = DEFAULT_PASSES,
) -> list[ShapeRow]:
    """Two rows of the cost table, of a prefill and of a decode shape in one engine, measured as
    `measure_bucket` measures a bucket. Raises ValueError in the engine's own words."""
    if passes < 1:
        raise ValueError(f"passes {passes} is below 1: use 1 or more")
    setting = {
        "compile_backend": compile_backend,
        "compile_scope": compile_scope,
        "dtype": dtype,
    }
    prefill, decode = map(str, pair)
    starts = starts_of(
        model_directory(str(model), tokenizer=False),
        {"shapes": [prefill, decode]},
        tp=tp,
        threads=threads,
        passes=dict(zip(STARTS, (0, passes), strict=True)),
        **setting,
    )
    by_start = {(row["start"], row["shape"]): row for row in starts}
    return [
        ShapeRow(
            kind="prefill" if isinstance(shape, PrefillShape) else "decode",
            rows=1 if isinstance(shape, PrefillShape) else shape.rows,
            chunk_length=shape.chunk_length if isinstance(shape, PrefillShape) else 1,
            context_length=shape.context_length,
            model=str(model),
            tp=tp,
            passes=passes,
            **setting,
            **common(by_start["cold", shape.name], by_start["warm", shape.name]),
            **{name: by_start["warm", shape.name][name] for name in TIMES},
        )
        for shape in pair
    ]


def measure_shape_table(
    out: Path, shapes: Iterable[Shape], on_row: Callable[[ShapeRow], None] | None = None, **setting
) -> list[ShapeRow]:
    """Measures the shapes that `out` does not hold yet, two at a time; see `measure_table`."""
    wanted = list(shapes)

    def measured(missing: list[Shape]) -> Iterator[ShapeRow]:
        for pair in _pairs(missing):
            rows = measure_shapes(pair=pair, **setting)
            yield from (row for row in rows if row.shape in missing)

    return keep_table(out, wanted, measured, on_row, setting)


def _pairs(shapes: list[Shape]) -> Iterator[Pair]:
    prefill = [shape for shape in shapes if isinstance(shape, PrefillShape)]
    decode = [shape for shape in shapes if isinstance(shape, DecodeShape)]
    for chunk, rows in zip_longest(prefill, decode):
        yield chunk or SMALLEST[0], rows or SMALLEST[1]


TIMES = ("full_s", "full_iqr_s", "short_s", "empty_s", "off", "fixed_bytes", "block_bytes")


def time_shape(model: PagedCausalLM, shape: Shape, passes: int) -> dict[str, Any]:
    """In the child: medians of passes that differ in what is in the shape, taken in turns, as
    `ShapeRow` names them, and how far those between are off a straight line. No passes, no
    figures."""
    if not passes:
        return {}
    run, ends, between = _passes_of(model, shape)
    times: dict[tuple[int, ...], list[float]] = {at: [] for at in (*ends.values(), *between)}
    for _ in range(passes):
        for at, seconds in times.items():
            started = time.perf_counter()
            run(*at)
            seconds.append(time.perf_counter() - started)
    medians = {at: float(np.median(seconds)) for at, seconds in times.items()}
    named = {name: medians[at] for name, at in ends.items()}
    predicted = [_straight(shape, at, named) for at in between]
    errors = [abs(s / medians[at] - 1) for s, at in zip(predicted, between, strict=True)]
    spread_s = np.subtract(*np.percentile(times[ends["full_s"]], [75, 25]))
    return {**named, "full_iqr_s": float(spread_s), "off": max(errors, default=0.0)}


def _passes_of(
    model: PagedCausalLM, shape: Shape
) -> tuple[Callable[..., object], dict[str, tuple[int, ...]], list[tuple[int, ...]]]:
    """A pass by what is in it (tokens before a chunk; rows and the context of each), what is in
    those that a cost goes through, and in some between."""
    from spyre_bench.engine.paged_causal_lm import Chunk, DecodeRow

    blocks = range(1, shape.blocks + 1)
    if isinstance(shape, PrefillShape):
        most = shape.context_length - shape.chunk_length

        def chunk(before: int) -> object:
            return model.prefill(shape, Chunk([1] * shape.chunk_length, before, list(blocks)))

        return chunk, {"full_s": (most,), "short_s": (0,), "empty_s": (0,)}, [(most // 2,)]

    rows, most = shape.rows, shape.context_length
    tables = [[row * shape.blocks + block for block in blocks] for row in range(rows)]

    def step(live: int, context: int) -> object:
        return model.decode(shape, [DecodeRow(1, context - 1, it) for it in tables[:live]])

    ends = {"full_s": (rows, most), "short_s": (rows, 1), "empty_s": (1, 1)}
    half = -(-rows // 2)
    return step, ends, [(rows, most // 2), (half, most), (half, most // 2)]


def _straight(shape: Shape, at: tuple[int, ...], measured: dict[str, float]) -> float:
    """Seconds of a pass by the straight line through those that were measured."""
    if isinstance(shape, PrefillShape):
        return prefill_cost(shape, **measured).pass_s(*at)
    rows, context = at
    return decode_cost(shape, **measured).pass_s(rows, rows * context)
