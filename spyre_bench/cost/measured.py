"""The measured cost table as a cost model: exact for its rows, interpolated between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from spyre_bench.cost.between import Ratios
from spyre_bench.cost.bucket_cost import SMALLEST, BucketCost, CostModel, Lengths
from spyre_bench.cost.closed_form import FEWEST, FORMS, FittedCost, error_table, ratio_of, sizes_of
from spyre_bench.cost.measured_shapes import MeasuredShapes
from spyre_bench.cost.shape_cost import ShapeCosts
from spyre_bench.cost.spread import IQR, Spread
from spyre_bench.cost.table import (
    ENGINE,
    CostRow,
    Measurement,
    ShapeRow,
    read_cost_table,
    read_shape_rows,
)
from spyre_bench.model_sizes import ModelSizes
from spyre_bench.shape_set import ShapeSet
from spyre_bench.shapes import Bucket

DATA = Path(__file__).parents[1] / "data"
SHIPPED, SHIPPED_SHAPES = DATA / "cost.csv", DATA / "shapes.csv"
"""Of two machines: no figure of one may stand beside one of the other."""


@dataclass(frozen=True, repr=False)
class MeasuredCost(CostModel):
    """The cost table of one engine: exact for a measured bucket, interpolated between them.

    Interpolation is of the ratio of measured to fitted, linear in the logarithms of B, P and N
    between the nearest measured buckets (Delaunay), so that the closed form carries the growth
    and the measurements its error. A bucket outside of the measured range is a ValueError, or,
    with `extrapolate`, takes the ratio of the nearest measured bucket and is marked.
    """

    rows: tuple[CostRow, ...]
    extrapolate: bool = False
    shape_rows: tuple[ShapeRow, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        object.__setattr__(self, "shape_rows", tuple(self.shape_rows))
        if not self._all:
            raise ValueError("the cost table has no row: add some with `spyre-bench measure`")
        for name in ENGINE:
            values = sorted({str(getattr(row, name)) for row in self._all})
            if len(values) > 1:
                raise ValueError(
                    f"the cost table mixes engines, its {name} is {' and '.join(values)}: keep the "
                    f"rows of one in a file of their own"
                )
        for what, rows in (("bucket", self.rows), ("shape", self.shape_rows)):
            if len({row.sizes for row in rows}) < len(rows):
                raise ValueError(f"the cost table holds a {what} twice: keep one of its rows")

    def of(self, bucket: Bucket) -> BucketCost:
        self._require_buckets()
        if bucket in self._measured:
            return _exact(self._measured[bucket])
        found, outside = np.ones(len(FORMS)), True
        if self.extrapolate or len(self._measured) >= FEWEST:
            found, outside = self._between.at(np.array(sizes_of(bucket)))
        if outside and not self.extrapolate:
            raise ValueError(
                f"bucket {bucket} is outside of the cost table, which spans {self.span}: measure "
                f"it with `spyre-bench measure --bucket {bucket}`, or extrapolate (--extrapolate)"
            )
        fitted = self._fitted.of(bucket)
        ratios = zip(FORMS, found.tolist(), strict=True)
        values = {name: getattr(fitted, name) * ratio for name, ratio in ratios}
        values["memory_bytes"] = round(values["memory_bytes"])
        return BucketCost(bucket, **values, extrapolated=outside)

    def of_shapes(self, shapes: ShapeSet) -> ShapeCosts:
        """By the table's shapes; where it has none by the closed form of its static passes, marked,
        since no paged pass was measured."""
        if self.shape_rows:
            return self.measured_shapes.of(shapes, extrapolate=self.extrapolate)
        return self._fitted.of_shapes(shapes)

    @property
    def measured_shapes(self) -> MeasuredShapes:
        return MeasuredShapes(self.shape_rows)

    @property
    def label(self) -> str:
        row = self._all[0]
        code = "" if row.model_code == "fms" else f"{row.model_code}'s code"
        engine = (
            *(row.model, row.dtype, f"tp {row.tp}", code),
            *(row.compile_backend, row.compile_scope),
        )
        measured = []
        if self.rows:
            measured.append(f"{_counted(self.rows, 'bucket')} measured, {self.span}")
        if self.shape_rows:
            shapes = self.measured_shapes
            measured.append(f"{_counted(self.shape_rows, 'shape')} measured, {shapes.span}")
        return f"{', '.join(filter(None, engine))}: {'; '.join(measured)}"

    @property
    def model_name(self) -> str:
        return self._all[0].model

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return tuple(sorted({row.batch_size for row in self.rows}))

    @property
    def smallest(self) -> tuple[int, int, int]:
        """The smallest B, P and N that it prices: those measured, unless it extrapolates."""
        return SMALLEST if self.extrapolate or not self.rows else self._least

    @property
    def largest(self) -> tuple[int, int, int]:
        """The largest B, P and N that were measured, not necessarily together."""
        self._require_buckets()
        return tuple(np.max([sizes_of(row.bucket) for row in self.rows], axis=0).tolist())

    @property
    def _least(self) -> tuple[int, int, int]:
        self._require_buckets()
        return tuple(np.min([sizes_of(row.bucket) for row in self.rows], axis=0).tolist())

    @property
    def span(self) -> str:
        ranges = zip("BPN", self._least, self.largest, strict=True)
        return ", ".join(f"{name} {low} to {high}" for name, low, high in ranges)

    def spread(self, costs: Sequence[BucketCost]) -> Spread | None:
        """The interquartile ranges of the table's passes; for a bucket between those measured that
        of the nearest, and how far the table without a row is from that row. None where the table
        has none, and for a bucket outside of its range. How the machine changes from one day to
        another is not in it."""
        if any(cost.extrapolated for cost in costs):
            return None
        own = np.array([self._deviations(cost.bucket) for cost in costs])
        if np.isnan(own).any():
            return None
        guessed = [str(cost.bucket) for cost in costs if cost.bucket not in self._measured]
        source = "interquartile ranges of the cost table's passes"
        if guessed:
            source += f", and the table's error between its buckets ({', '.join(guessed)})"
        return Spread(source, own, own)

    def spread_of_shapes(self, costs: ShapeCosts) -> Spread | None:
        """As `spread`, of the table's shapes; None where it has none."""
        return self.measured_shapes.spread(costs) if self.shape_rows else None

    def _deviations(self, bucket: Bucket) -> list[float]:
        """Of the logarithm of prefill and decode."""
        row = self._measured.get(bucket)
        row = row or self.rows[self._between.nearest(np.array(sizes_of(bucket)))]
        own = [
            row.prefill_iqr_s / row.prefill_s / IQR,
            row.decode_iqr_s / row.decode_s / IQR,
        ]
        if bucket in self._measured:
            return own
        return np.hypot(own, self._errors_between).tolist()

    @cached_property
    def _errors_between(self) -> tuple[float, float]:
        """Deviation of prefill and decode between buckets, as the table without a row has it."""
        errors = self.leave_one_out()
        off = np.log1p(errors["error"]).groupby(errors["quantity"])
        rms = off.apply(lambda some: float(np.sqrt(np.mean(np.square(some)))))
        return rms.get("prefill_s", np.nan), rms.get("decode_s", np.nan)

    def covers(self, workload: Lengths) -> np.ndarray:
        _, prompt_length, new_tokens = self.largest
        short = workload.prompt_tokens <= prompt_length
        return self.extrapolate | (short & (workload.max_tokens <= new_tokens))

    def require_deployment(self, sizes: ModelSizes, tp: int) -> None:
        """By the number of ranks alone: a table has no more than a name of its model."""
        measured = self._all[0].tp
        if measured != tp:
            raise ValueError(
                f"the cost table was measured with tp={measured} and the engine has "
                f"--tensor-parallel-size {tp}: use {measured}, or another table"
            )

    def covers_contexts(self, workload: Lengths) -> np.ndarray:
        tokens = workload.prompt_tokens + workload.max_tokens
        if self.extrapolate or not self.shape_rows:
            return np.ones(len(tokens), bool)
        return np.asarray(tokens <= self.measured_shapes.longest_context)

    def require_known(self, name: str, what: str) -> None:
        if unknown := [row for row in self._all if not getattr(row, name) > 0]:
            row = unknown[0]
            which = f"bucket {row.name}" if isinstance(row, CostRow) else row.name
            raise ValueError(
                f"{what} needs {name} of everything in the cost table, which says nothing of "
                f"{which}: fill it in, measure it with `spyre-bench measure`, or leave {what} out"
            )

    def frame(self) -> pd.DataFrame:
        """One row a measured bucket: bucket, and its seconds and bytes."""
        return pd.DataFrame(
            {"bucket": str(row.bucket)} | {name: getattr(row, name) for name in FORMS}
            for row in self.rows
        )

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.label)}</p>{self.frame().to_html(index=False)}"

    def leave_one_out(self) -> pd.DataFrame:
        """What the table without a row says of that row: bucket, quantity, measured, predicted and
        relative error. Rows at a corner of the range are left out: nothing surrounds them."""
        found = []
        for row in self.rows:
            rest = tuple(other for other in self.rows if other is not row)
            try:
                found.append((row, row.bucket, MeasuredCost(rest).of(row.bucket)))
            except ValueError:
                continue
        return error_table(found)

    @property
    def _all(self) -> tuple[Measurement, ...]:
        return *self.rows, *self.shape_rows

    def _require_buckets(self) -> None:
        if not self.rows:
            raise ValueError(
                "the cost table has shapes of continuous batching only, and no bucket: measure "
                "some with `spyre-bench measure --bucket 4,256,64`, or simulate "
                "`--batching continuous`"
            )

    @cached_property
    def _measured(self) -> dict[Bucket, CostRow]:
        return {row.bucket: row for row in self.rows}

    @cached_property
    def _fitted(self) -> FittedCost:
        return FittedCost.fit(self.rows)

    @cached_property
    def _between(self) -> Ratios:
        """Measured over fitted of each quantity, at B, P and N."""
        fitted = [self._fitted.of(row.bucket) for row in self.rows]
        return Ratios(
            np.array([sizes_of(row.bucket) for row in self.rows]),
            np.array(
                [
                    [ratio_of(getattr(row, name), getattr(cost, name)) for name in FORMS]
                    for row, cost in zip(self.rows, fitted, strict=True)
                ]
            ),
        )


def load_cost_table(path: Path | None = None, *, extrapolate: bool = False) -> MeasuredCost:
    """The cost table of a file, or that of buckets which ships with the package: SmolLM2-135M on
    one CPU thread, B 1 to 8, P 64 to 2048, N 2 to 1024. `SHIPPED_SHAPES` has shapes of continuous
    batching: 1 to 8 rows and chunks of 64 to 512 tokens, contexts of 64 to 3,072."""
    path = path or SHIPPED
    return MeasuredCost(
        tuple(read_cost_table(path)),
        extrapolate=extrapolate,
        shape_rows=tuple(read_shape_rows(path)),
    )


def _counted(rows: Sequence[object], what: str) -> str:
    return f"{len(rows)} {what}{'s' if len(rows) > 1 else ''}"


def _exact(row: CostRow) -> BucketCost:
    return BucketCost(row.bucket, **{name: getattr(row, name) for name in FORMS})
