"""Time the passes of shapes of continuous batching by what is in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from spyre_bench.cost.measured_shapes import decode_cost, prefill_cost
from spyre_bench.shape_set import DecodeShape, PrefillShape

if TYPE_CHECKING:
    from spyre_bench.engine.paged_causal_lm import PagedCausalLM

Shape = PrefillShape | DecodeShape
At = tuple[int, ...]
Key = TypeVar("Key")
DISTURBED = 1.1


def time_shapes(model: PagedCausalLM, passes: int) -> dict[Shape, dict[str, Any]]:
    """Of each shape that was warmed, medians of passes that differ in what is in it, as `ShapeRow`
    names them, and how far those between are off a straight line. All are run in turns, so that a
    machine that changes its pace meanwhile is fast or slow for every one, and rounds that others
    disturbed are left out. No passes, no figures."""
    plans = {shape: _passes_of(model, shape) for shape in model.shapes}
    times: dict[tuple[Shape, At], list[float]] = {
        (shape, at): [] for shape, (_, ends, between) in plans.items() for at in _all(ends, between)
    }
    for _ in range(passes):
        for (shape, at), seconds in times.items():
            started = time.perf_counter()
            plans[shape][0](*at)
            seconds.append(time.perf_counter() - started)
    if not passes:
        return {shape: {} for shape in plans}
    times = undisturbed(times)
    return {
        shape: _figures(shape, ends, between, {at: times[shape, at] for at in _all(ends, between)})
        for shape, (_, ends, between) in plans.items()
    }


def undisturbed(times: Mapping[Key, Sequence[float]]) -> dict[Key, list[float]]:
    """Without the rounds in which all passes together took more than `DISTURBED` times as long as
    they usually do: others were at work, which no median of few rounds is safe from."""
    rounds = np.array(list(times.values()))  # [passes of each kind, rounds]
    pace = np.median(rounds / np.median(rounds, axis=1, keepdims=True), axis=0)
    calm = np.flatnonzero(pace <= DISTURBED * np.median(pace))
    return dict(zip(times, rounds[:, calm].tolist(), strict=True))


def _all(ends: dict[str, At], between: list[At]) -> list[At]:
    return list(dict.fromkeys([*ends.values(), *between]))


def _figures(
    shape: Shape, ends: dict[str, At], between: list[At], times: dict[At, list[float]]
) -> dict[str, Any]:
    medians = {at: float(np.median(seconds)) for at, seconds in times.items()}
    named = {name: medians[at] for name, at in ends.items()}
    predicted = [_straight(shape, at, named) for at in between]
    errors = [abs(s / medians[at] - 1) for s, at in zip(predicted, between, strict=True)]
    spread_s = np.subtract(*np.percentile(times[ends["full_s"]], [75, 25]))
    return {**named, "full_iqr_s": float(spread_s), "off": max(errors, default=0.0)}


def _passes_of(
    model: PagedCausalLM, shape: Shape
) -> tuple[Callable[..., object], dict[str, At], list[At]]:
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


def _straight(shape: Shape, at: At, measured: dict[str, float]) -> float:
    """Seconds of a pass by the straight line through those that were measured."""
    if isinstance(shape, PrefillShape):
        return prefill_cost(shape, **measured).pass_s(*at)
    rows, context = at
    return decode_cost(shape, **measured).pass_s(rows, rows * context)
