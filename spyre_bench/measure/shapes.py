"""Measure what shapes of continuous batching cost: cold and warm, as cost-table rows.

All that are asked for together are shapes of one engine, whose passes are run in turns: the pace of
a machine changes by more, from one minute to another, than shapes differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from spyre_bench.checkpoints.find import model_directory
from spyre_bench.cost.table import ShapeRow
from spyre_bench.measure.buckets import DEFAULT_PASSES, common, keep_table
from spyre_bench.measure.starts import STARTS, starts_of
from spyre_bench.shape_set import BLOCK_TOKENS, DecodeShape, PrefillShape

Shape = PrefillShape | DecodeShape
SMALLEST = PrefillShape(BLOCK_TOKENS, BLOCK_TOKENS), DecodeShape(1, BLOCK_TOKENS)
"""An engine has shapes of both kinds: the other one, where only one is measured."""


def measure_shapes(
    model: str | Path,
    shapes: Sequence[Shape],
    *,
    tp: int = 1,
    model_code: str = "fms",
    compile_backend: str = "inductor",
    compile_scope: str = "layer",
    dtype: str = "float32",
    threads: int | None = None,
    passes: int = DEFAULT_PASSES,
) -> list[ShapeRow]:
    """Rows of the cost table, of shapes in one engine, measured as `measure_bucket` measures a
    bucket. Raises ValueError in the engine's own words."""
    if passes < 1:
        raise ValueError(f"passes {passes} is below 1: use 1 or more")
    setting = {
        "model_code": model_code,
        "compile_backend": compile_backend,
        "compile_scope": compile_scope,
        "dtype": dtype,
    }
    prefill = [shape for shape in shapes if isinstance(shape, PrefillShape)] or [SMALLEST[0]]
    decode = [shape for shape in shapes if isinstance(shape, DecodeShape)] or [SMALLEST[1]]
    starts = starts_of(
        model_directory(str(model), tokenizer=False),
        {"shapes": [" ".join(map(str, some)) for some in (prefill, decode)]},
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
        for shape in shapes
    ]


def measure_shape_table(
    out: Path, shapes: Iterable[Shape], on_row: Callable[[ShapeRow], None] | None = None, **setting
) -> list[ShapeRow]:
    """Measures the shapes that `out` does not hold yet, all of them in one engine and without
    their steps; see `measure_table`."""
    return keep_table(
        out,
        list(dict.fromkeys(shape.without_steps for shape in shapes)),
        lambda missing: measure_shapes(shapes=missing, **setting) if missing else [],
        on_row,
        setting,
    )


TIMES = ("full_s", "full_iqr_s", "short_s", "empty_s", "off", "fixed_bytes", "block_bytes")
