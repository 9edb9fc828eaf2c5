"""Measured shapes of continuous batching: exact for their rows, interpolated between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from spyre_bench.cost.between import Ratios
from spyre_bench.cost.shape_cost import DecodeCost, PrefillCost, ShapeCosts
from spyre_bench.cost.spread import IQR, Spread
from spyre_bench.cost.table import ShapeRow
from spyre_bench.shape_set import DecodeShape, PrefillShape, ShapeSet

FEWEST = 3  # shapes of a kind behind its fit
QUANTITIES = ("full_s", "short_s", "empty_s", "compile_s")


@dataclass(frozen=True)
class MeasuredShapes:
    """The shapes of one engine that were measured.

    Three passes of a shape were: with as much in it as it takes, with every row but one token
    each, and with one row of one token. Between those, seconds are straight in the live rows and
    in their summed contexts. Between measured shapes a closed form `a0 + a1·w + a2·w·T` of each
    (w: rows, or tokens of a chunk), put right by the ratio of measured to fitted around it.
    """

    rows: tuple[ShapeRow, ...]

    def of(self, shapes: ShapeSet, *, extrapolate: bool = False) -> ShapeCosts:
        """Raises ValueError for a shape outside of what was measured; with `extrapolate` it takes
        the ratio of the nearest that was, and is marked."""
        memory_bytes = self._memory_bytes(shapes.blocks)
        return ShapeCosts(
            tuple(prefill_cost(it, **self._priced(it, extrapolate)) for it in shapes.prefill),
            tuple(decode_cost(it, **self._priced(it, extrapolate)) for it in shapes.decode),
            shapes.blocks,
            memory_bytes,
        )

    @property
    def span(self) -> str:
        """What was measured, in words."""
        said = []
        for name, table in (("chunks", self._prefill), ("rows", self._decode)):
            if table is not None:
                (low, shortest), (high, longest) = table.sizes.min(axis=0), table.sizes.max(axis=0)
                said.append(f"{name} {low} to {high} over contexts {shortest} to {longest}")
        return ", ".join(said)

    @property
    def longest_context(self) -> int:
        """Tokens of the longest context that was measured, of either kind that was."""
        known = (table for table in (self._prefill, self._decode) if table is not None)
        return min(int(table.sizes[:, 1].max()) for table in known)

    def frame(self) -> pd.DataFrame:
        """One row a measured shape: its name, and its seconds."""
        return pd.DataFrame(
            {"shape": row.shape.name} | {name: getattr(row, name) for name in QUANTITIES}
            for row in self.rows
        )

    def leave_one_out(self) -> pd.DataFrame:
        """What the table without a row says of that row's passes: shape, quantity, measured,
        predicted and relative error. Rows at a corner of the range are left out: nothing surrounds
        them."""
        found = []
        for row in self.rows:
            rest = MeasuredShapes(tuple(other for other in self.rows if other is not row))
            try:
                values = rest._priced(row.shape, extrapolate=False)
            except ValueError:
                continue
            for name in QUANTITIES[:3]:
                measured, predicted = getattr(row, name), values[name]
                if measured > 0:
                    error = predicted / measured - 1
                    found.append((row.shape.name, name, measured, predicted, error))
        return pd.DataFrame(found, columns=["shape", "quantity", "measured", "predicted", "error"])

    def spread(self, costs: ShapeCosts) -> Spread | None:
        """The interquartile ranges of the table's full passes; for a shape between those measured
        the median of all, and how far the table without a row is from that row. None where the
        table has none, and for a shape outside of its range."""
        priced = costs.each
        if any(cost.extrapolated for cost in priced):
            return None
        own = {row.shape: row.full_iqr_s / row.full_s / IQR for row in self.rows}
        guessed = [cost.shape.name for cost in priced if cost.shape not in own]
        errors = np.log1p(self.leave_one_out()["error"]) if guessed else np.zeros(0)
        between = np.sqrt(np.mean(np.square(errors))) if len(errors) else np.nan
        typical = float(np.hypot(np.median(list(own.values())), between))
        deviations = np.array([[own.get(cost.shape, typical)] for cost in priced])
        if np.isnan(deviations).any():
            return None
        source = "interquartile ranges of the cost table's passes"
        if guessed:
            source += f", and the table's error between its shapes ({', '.join(guessed)})"
        return Spread(source, deviations, deviations)

    def _priced(self, shape: PrefillShape | DecodeShape, extrapolate: bool) -> dict[str, Any]:
        """The quantities of a shape, and whether they are outside of what was measured. A shape
        with steps is priced at its largest, as this engine compiles it."""
        kind = "prefill" if isinstance(shape, PrefillShape) else "decode"
        table = self._prefill if kind == "prefill" else self._decode
        if table is None:
            raise ValueError(
                f"the cost table has no {kind} shape: measure some with "
                f"`spyre-bench measure --{kind}-shape {shape.without_steps}`"
            )
        values, outside = table.at(_sizes(shape))
        if outside and not extrapolate:
            raise ValueError(
                f"{shape.name} is outside of the cost table, which spans {self.span}: measure it "
                f"with `spyre-bench measure --{kind}-shape {shape.without_steps}`, or "
                f"extrapolate (--extrapolate)"
            )
        return values | {"extrapolated": outside}

    def _memory_bytes(self, blocks: int) -> int:
        """0 where a row says nothing."""
        fixed, block = max((row.fixed_bytes, row.block_bytes) for row in self.rows)
        return fixed + blocks * block if fixed and block else 0

    @cached_property
    def _prefill(self) -> _Kind | None:
        return _kind([row for row in self.rows if isinstance(row.shape, PrefillShape)])

    @cached_property
    def _decode(self) -> _Kind | None:
        return _kind([row for row in self.rows if isinstance(row.shape, DecodeShape)])


class _Kind:
    """The measured shapes of one kind."""

    def __init__(self, rows: Sequence[ShapeRow]):
        self.sizes = np.array([_sizes(row.shape) for row in rows])
        self._values = np.array([_values(row) for row in rows])
        self._forms = np.array([_fit(self.sizes, values) for values in self._values.T])
        self._few = len(rows) < FEWEST

    def at(self, sizes: tuple[int, int]) -> tuple[dict[str, float], bool]:
        exact = np.flatnonzero((self.sizes == sizes).all(axis=1))
        if exact.size:
            return dict(zip(QUANTITIES, self._values[exact[0]].tolist(), strict=True)), False
        ratios, outside = self._between.at(np.array(sizes))
        if not outside:
            ratios = self._of_width(*sizes, ratios)
        values = ratios * (_parts(np.array([sizes])) @ self._forms.T)[0]
        return dict(zip(QUANTITIES, values.tolist(), strict=True)), outside or self._few

    def _of_width(self, width: int, context: int, between: np.ndarray) -> np.ndarray:
        """The ratios of a width that was measured over several contexts: its own, linear in the
        context's logarithm between them and those of the nearest beyond. A kernel for two rows may
        be slower than one for three, and neighbours then say little of it."""
        own = np.flatnonzero(self.sizes[:, 0] == width)
        if len(own) < 2:
            return between
        own = own[np.argsort(self.sizes[own, 1])]
        contexts, ratios = np.log2(self.sizes[own, 1]), self._ratios[own]
        return np.array([np.interp(np.log2(context), contexts, column) for column in ratios.T])

    @cached_property
    def _ratios(self) -> np.ndarray:
        fitted = _parts(self.sizes) @ self._forms.T
        return np.divide(self._values, fitted, out=np.ones_like(fitted), where=fitted > 0)

    @cached_property
    def _between(self) -> Ratios:
        return Ratios(self.sizes, self._ratios)


def _kind(rows: Sequence[ShapeRow]) -> _Kind | None:
    return _Kind(rows) if rows else None


def _sizes(shape: PrefillShape | DecodeShape) -> tuple[int, int]:
    width = shape.chunk_length if isinstance(shape, PrefillShape) else shape.rows
    return width, shape.context_length


def _values(row: ShapeRow) -> list[float]:
    short_s = row.empty_s if np.isnan(row.short_s) else row.short_s
    return [row.full_s, short_s, row.empty_s, row.compile_s]


def _parts(sizes: np.ndarray) -> np.ndarray:
    """[shapes, 3] of sizes [shapes, 2]."""
    width, context = sizes.T
    return np.stack([np.ones(len(sizes)), width, width * context], axis=1)


def _fit(sizes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Parts that are never negative, by least squares of the relative error."""
    known = values > 0
    if not known.any():
        return np.zeros(3)
    parts = _parts(sizes)
    scale = parts.max(axis=0)
    solution, _ = nnls(parts[known] / scale / values[known, None], np.ones(known.sum()))
    return np.asarray(solution / scale)


def prefill_cost(
    shape: PrefillShape,
    full_s: float,
    short_s: float,  # the same as empty
    empty_s: float,
    compile_s: float = 0.0,
    extrapolated: bool = False,
) -> PrefillCost:
    """Straight through the passes of a `ShapeRow`, exact for the full one."""
    before = shape.context_length - shape.chunk_length
    slot_s = max(0.0, (full_s - empty_s) / before) if before else 0.0
    return PrefillCost(shape, full_s - before * slot_s, slot_s, compile_s, extrapolated)


def decode_cost(
    shape: DecodeShape,
    full_s: float,
    short_s: float,
    empty_s: float,
    compile_s: float = 0.0,
    extrapolated: bool = False,
) -> DecodeCost:
    """Straight through the passes of a `ShapeRow`, exact for the full one; what noise would make
    negative is 0."""
    rows, context = shape.rows, shape.context_length
    slot_s = max(0.0, (full_s - short_s) / (rows * (context - 1)))
    row_s = max(0.0, (short_s - empty_s) / (rows - 1) - slot_s) if rows > 1 else 0.0
    base_s = full_s - rows * (row_s + context * slot_s)
    return DecodeCost(shape, base_s, row_s, slot_s, compile_s, extrapolated)
