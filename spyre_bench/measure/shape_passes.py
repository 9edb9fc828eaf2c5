"""Time the passes of a shape of continuous batching by what is in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from spyre_bench.cost.measured_shapes import decode_cost, prefill_cost
from spyre_bench.shape_set import DecodeShape, PrefillShape

if TYPE_CHECKING:
    from spyre_bench.engine.paged_causal_lm import PagedCausalLM

Shape = PrefillShape | DecodeShape


def time_shape(model: PagedCausalLM, shape: Shape, passes: int) -> dict[str, Any]:
    """Medians of passes that differ in what is in the shape, taken in turns, as
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
