"""Measure what shapes of continuous batching cost: cold and warm, as cost-table rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from pathlib import Path

from spyre_bench.checkpoints.find import model_directory
from spyre_bench.cost.table import ShapeRow
from spyre_bench.measure.buckets import DEFAULT_PASSES, common, keep_table
from spyre_bench.measure.starts import STARTS, starts_of
from spyre_bench.shape_set import BLOCK_TOKENS, DecodeShape, PrefillShape

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
