"""What a bucket costs: the cost table as a CSV file, and the models that read it.

The table is the wall between torch and the core: the engine writes rows, everything else reads
them. A cost model answers `of(bucket)`; the measured table and a closed form are two.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from scipy.interpolate import LinearNDInterpolator
from scipy.optimize import nnls
from scipy.spatial import QhullError

from spyre_bench.shapes import STICK_TOKENS, Bucket
from spyre_bench.trace_files import open_text, read_csv

SHIPPED = Path(__file__).parent / "data" / "cost.csv"


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """What one bucket costs, and where that was measured. Spreads are interquartile ranges. What
    has a default may be missing in a table that something else measured; 0 then means unknown."""

    model: str
    batch_size: int
    prompt_length: int
    new_tokens: int
    tp: int = 1
    compile_backend: str = ""
    compile_scope: str = ""
    dtype: str = ""
    compile_s: float = 0.0  # cold: nothing cached
    compile_warm_s: float = math.nan  # from the artefact of an earlier run
    load_s: float = math.nan  # weights from disk into the engine
    prefill_s: float  # median of one prefill pass
    prefill_iqr_s: float = math.nan
    decode_s: float  # median of one decode pass
    decode_iqr_s: float = math.nan
    passes: int = 0  # repetitions behind each median
    memory_bytes: int = 0  # weights + KV cache + logits of this bucket
    threads: int = 1
    host: str = ""
    cpu: str = ""
    torch_version: str = ""
    fms_version: str = ""
    measured_at: str = ""  # ISO 8601, UTC

    @property
    def bucket(self) -> Bucket:
        return Bucket(self.batch_size, self.prompt_length, self.new_tokens)

    @property
    def identity(self) -> tuple[object, ...]:
        """What makes two rows measurements of the same thing."""
        return (self.model, self.bucket, self.tp, self.compile_backend, self.compile_scope,
                self.dtype, self.threads)  # fmt: skip


COLUMNS = tuple(field.name for field in fields(CostRow))
NEEDED = tuple(field.name for field in fields(CostRow) if field.default is MISSING)


KINDS = {field.name: str(field.type) for field in fields(CostRow)}
# What a cell may hold, both ends included: the least, the most, and what to do about another one.
# The most of a pass is what no engine worth serving on takes; milliseconds are above it.
RANGES: dict[str, tuple[float, float, str]] = {
    "batch_size": (1, 2**20, "count rows from 1"),
    "prompt_length": (1, 2**31 - 1, "count tokens from 1"),
    "new_tokens": (2, 2**31 - 1, "count tokens from 2"),
    "tp": (1, 2**20, "count cards from 1"),
    "threads": (0, 2**20, "count threads"),
    "passes": (0, 2**53, "count the repetitions"),
    "memory_bytes": (0, 2**60, "give bytes, or leave it empty where nobody knows"),
    "prefill_s": (1e-12, 3600.0, "give the seconds of one pass (are these milliseconds?)"),
    "decode_s": (1e-12, 10.0, "give the seconds of one pass (are these milliseconds?)"),
}
SECONDS = (0.0, 1e6, "give seconds from 0, or leave it empty where nobody knows")


def read_cost_table(path: Path) -> list[CostRow]:
    """The rows of a cost table, columns in any order; a column that is missing or a cell that is
    empty is the default. This is where its values are looked at: raises ValueError naming the
    file, line and column of what is no whole number, not finite, negative or absurd."""
    path = Path(path)
    try:
        with open_text(path) as file:
            frame = read_csv(path, file, as_text=None)
    except ValueError as error:
        raise ValueError(
            f"{path}: not a CSV file: {str(error).removeprefix(f'{path} ')}"
        ) from error
    if missing := [name for name in NEEDED if name not in frame]:
        raise ValueError(f"{path}: not a cost table, columns {missing} are missing")
    names = [name for name in COLUMNS if name in frame]
    return [
        _row(
            f"{path} line {line} does not read as a cost row", dict(zip(names, cells, strict=True))
        )
        for line, *cells in frame[names].itertuples()
    ]


def _row(where: str, cells: Mapping[str, Any]) -> CostRow:
    values = {
        name: _value(where, name, text.strip())
        for name, text in cells.items()
        if isinstance(text, str) and text.strip()
    }
    if empty := [name for name in NEEDED if name not in values]:
        raise ValueError(f"{where}: {empty[0]} is empty: every row of a cost table needs it")
    try:
        Bucket(values["batch_size"], values["prompt_length"], values["new_tokens"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return CostRow(**values)


def _value(where: str, name: str, text: str) -> Any:
    kind = KINDS[name]
    if kind == "str":
        return text
    least, most, remedy = RANGES.get(name, SECONDS)
    shown = f"{where}: {name} {text if len(text) <= 60 else text[:57] + '...'}"
    try:
        value = float(text)
    except ValueError as error:
        raise ValueError(f"{shown} is not a number: {remedy}") from error
    if math.isnan(value) and kind == "float" and name not in NEEDED:
        return value
    if kind == "int" and not value.is_integer():
        raise ValueError(f"{shown} is not a whole number: {remedy}")
    if not least <= value <= most:
        raise ValueError(f"{shown} is not within {least:g} and {most:g}: {remedy}")
    return int(value) if kind == "int" else value


def write_cost_table(path: Path, rows: list[CostRow]) -> None:
    """Replaces the file in one step, so that an interruption leaves the old table or the new."""
    partial = path.with_name(f".{path.name}.partial")
    pd.DataFrame([asdict(row) for row in rows], columns=COLUMNS).to_csv(partial, index=False)
    os.replace(partial, path)


# --- what a bucket costs: one interface, several sources ------------------------------------------


@dataclass(frozen=True, slots=True)
class BucketCost:
    """What one bucket costs on one engine, in seconds and bytes."""

    bucket: Bucket
    prefill_s: float  # one prefill pass: B x P tokens, yields every row's first token
    decode_s: float  # one decode pass: a token for each of B rows
    compile_s: float = 0.0  # cold, once a start
    memory_bytes: int = 0  # an engine with this bucket alone
    extrapolated: bool = False  # outside of what was measured

    def batch_s(self, passes: int) -> float:
        """Engine seconds of a batch whose longest answer has `passes` tokens."""
        return self.prefill_s + (passes - 1) * self.decode_s

    @property
    def warmup_s(self) -> float:
        """Cold compile and one run of each pass, before the server is ready."""
        return self.compile_s + self.prefill_s + self.decode_s


class CostModel(Protocol):
    """A source of costs. `of` raises ValueError for a bucket that it has no figure for; `smallest`
    is the B, P and N below which it has none."""

    @property
    def smallest(self) -> tuple[int, int, int]: ...
    def of(self, bucket: Bucket) -> BucketCost: ...


def price(buckets: Iterable[Bucket], model: CostModel) -> tuple[BucketCost, ...]:
    """The costs of the buckets, in ascending order of bucket."""
    return tuple(model.of(bucket) for bucket in sorted(set(buckets)))


SMALLEST = (1, STICK_TOKENS, 2)  # B, P and N of the smallest bucket there can be
FEWEST = 3  # buckets behind a fit
# Each quantity as a sum of parts that are never negative; K = P + N are the slots of the KV cache.
FORMS: dict[str, tuple[str, Callable[[int, int, int], tuple[float, ...]]]] = {
    "prefill_s": ("a0 + a1·B·P", lambda b, p, n: (1, b * p)),
    "decode_s": ("d0 + d1·B + d2·B·K", lambda b, p, n: (1, b, b * (p + n))),
    "compile_s": ("c0 + c1·B·P", lambda b, p, n: (1, b * p)),
    "memory_bytes": (
        "m0 + m1·B·K + m2·B·P·K",
        lambda b, p, n: (1, b * (p + n), b * p * (p + n)),
    ),
}


@dataclass(frozen=True)
class FittedCost:
    """A closed form: `prefill = a0 + a1·B·P`, `decode = d0 + d1·B + d2·B·K`, so a batch of S passes
    takes `a0 + a1·B·P + (S-1)·(d0 + d1·B + d2·B·K)` seconds."""

    prefill_s: tuple[float, float]
    decode_s: tuple[float, float, float]
    compile_s: tuple[float, float] = (0.0, 0.0)
    memory_bytes: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def smallest(self) -> tuple[int, int, int]:
        return SMALLEST

    @classmethod
    def fit(cls, rows: Sequence[CostRow]) -> FittedCost:
        """Non-negative least squares of the relative error, so that small buckets count as much
        as large ones. Raises ValueError for fewer than three buckets."""
        if len({row.bucket for row in rows}) < FEWEST:
            raise ValueError(
                f"{len(rows)} rows of a cost table are too few for a fit: measure three buckets or "
                f"more with `spyre-bench measure`"
            )
        parts: dict[str, Any] = {name: _relative_fit(rows, name) for name in FORMS}
        return cls(**parts)

    def of(self, bucket: Bucket) -> BucketCost:
        values: dict[str, Any] = {name: self._value(name, bucket) for name in FORMS}
        return BucketCost(bucket, **values | {"memory_bytes": round(values["memory_bytes"])})

    def below(self, rows: Iterable[CostRow]) -> FittedCost:
        """The same form, its prefill and its decode scaled until no row was measured faster: a
        lower bound of what was measured, and of `MeasuredCost` over the same rows between it."""
        rows = tuple(rows)
        scaled = {}
        for name in ("prefill_s", "decode_s"):
            ratios = [_over(getattr(row, name), self._value(name, row.bucket)) for row in rows]
            scaled[name] = tuple(part * min(ratios) for part in getattr(self, name))
        return replace(self, **scaled)

    def residuals(self, rows: Iterable[CostRow]) -> pd.DataFrame:
        """bucket, quantity, measured, predicted and the relative error of each row."""
        return _errors((row, row.bucket, self.of(row.bucket)) for row in rows)

    def _value(self, name: str, bucket: Bucket) -> float:
        return float(np.dot(getattr(self, name), _parts(name, bucket)))


@dataclass(frozen=True)
class MeasuredCost:
    """The cost table of one engine: exact for a measured bucket, interpolated between them.

    Interpolation is of the ratio of measured to fitted, linear in the logarithms of B, P and N
    between the nearest measured buckets (Delaunay), so that the closed form carries the growth
    and the measurements its error. A bucket outside of the measured range is a ValueError, or,
    with `extrapolate`, takes the ratio of the nearest measured bucket and is marked.
    """

    rows: tuple[CostRow, ...]
    extrapolate: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        if not self.rows:
            raise ValueError("the cost table has no row: add some with `spyre-bench measure`")
        for name in ("model", "tp", "compile_backend", "compile_scope", "dtype", "threads", "cpu"):
            values = sorted({str(getattr(row, name)) for row in self.rows})
            if len(values) > 1:
                raise ValueError(
                    f"the cost table mixes engines, its {name} is {' and '.join(values)}: keep the "
                    f"rows of one in a file of their own"
                )
        if len(self._measured) < len(self.rows):
            raise ValueError("the cost table holds a bucket twice: keep one of its rows")

    def of(self, bucket: Bucket) -> BucketCost:
        if bucket in self._measured:
            return _exact(self._measured[bucket])
        fits = self.extrapolate or len(self._measured) >= FEWEST
        ratios, outside = self._ratios(bucket) if fits else ({}, True)
        if outside and not self.extrapolate:
            raise ValueError(
                f"bucket {bucket} is outside of the cost table, which spans {self.span}: measure "
                f"it with `spyre-bench measure --bucket {bucket}`, or extrapolate (--extrapolate)"
            )
        fitted = self._fitted.of(bucket)
        values = {name: getattr(fitted, name) * ratio for name, ratio in ratios.items()}
        values["memory_bytes"] = round(values["memory_bytes"])
        return BucketCost(bucket, **values, extrapolated=outside)

    @property
    def model(self) -> str:
        """The name of the model that was measured."""
        return self.rows[0].model

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Those measured, ascending."""
        return tuple(sorted({row.batch_size for row in self.rows}))

    @property
    def smallest(self) -> tuple[int, int, int]:
        """The smallest B, P and N that it prices: those measured, unless it extrapolates."""
        return SMALLEST if self.extrapolate else self._least

    @property
    def largest(self) -> tuple[int, int, int]:
        """The largest B, P and N that were measured, not necessarily together."""
        return tuple(np.max([_sizes(row.bucket) for row in self.rows], axis=0).tolist())

    @property
    def _least(self) -> tuple[int, int, int]:
        return tuple(np.min([_sizes(row.bucket) for row in self.rows], axis=0).tolist())

    @property
    def span(self) -> str:
        ranges = zip("BPN", self._least, self.largest, strict=True)
        return ", ".join(f"{name} {low} to {high}" for name, low, high in ranges)

    def require(self, name: str, what: str) -> None:
        """Raises ValueError where a row has no `name` ("compile_s", "memory_bytes"), which `what`
        is about: a limit on what nobody measured would always be kept."""
        if unknown := [row for row in self.rows if not getattr(row, name) > 0]:
            raise ValueError(
                f"{what} needs {name} of every bucket in the cost table, which says nothing of "
                f"bucket {unknown[0].bucket}: fill it in, measure it with `spyre-bench measure`, "
                f"or leave {what} out"
            )

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
        return _errors(found)

    @cached_property
    def _measured(self) -> dict[Bucket, CostRow]:
        return {row.bucket: row for row in self.rows}

    @cached_property
    def _fitted(self) -> FittedCost:
        return FittedCost.fit(self.rows)

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray, LinearNDInterpolator | None]:
        """log2 of (B, P, N) of each row [rows, 3], measured over fitted [rows, quantities], and the
        interpolator between them over the dimensions that vary; None where they span no volume."""
        points = np.log2([_sizes(row.bucket) for row in self.rows])
        fitted = [self._fitted.of(row.bucket) for row in self.rows]
        ratios = np.array(
            [
                [_over(getattr(row, name), getattr(cost, name)) for name in FORMS]
                for row, cost in zip(self.rows, fitted, strict=True)
            ]
        )
        varied = points[:, np.ptp(points, axis=0) > 0]
        try:
            return points, ratios, LinearNDInterpolator(varied, ratios) if varied.size else None
        except (QhullError, ValueError):  # all on a line or a plane
            return points, ratios, None

    def _ratios(self, bucket: Bucket) -> tuple[dict[str, float], bool]:
        """Measured over fitted of each quantity there, and whether that is outside the range."""
        points, ratios, between = self._table
        point = np.log2(_sizes(bucket))
        varies = np.ptp(points, axis=0) > 0
        found = np.full(len(FORMS), np.nan)
        if between is not None and np.array_equal(point[~varies], points[0, ~varies]):
            found = between(point[varies])[0]
        outside = bool(np.isnan(found).any())
        if outside:
            found = ratios[np.argmin(((points - point) ** 2).sum(axis=1))]
        return dict(zip(FORMS, map(float, found), strict=True)), outside


def load_cost(path: Path | None = None, *, extrapolate: bool = False) -> MeasuredCost:
    """The cost table of a file, or the one that ships with the package: SmolLM2-135M on one CPU
    thread, B 1 to 8, P 64 to 2048, N 2 to 1024."""
    return MeasuredCost(tuple(read_cost_table(path or SHIPPED)), extrapolate=extrapolate)


def _sizes(bucket: Bucket) -> tuple[int, int, int]:
    return bucket.batch_size, bucket.prompt_length, bucket.new_tokens


def _parts(name: str, bucket: Bucket) -> tuple[float, ...]:
    return FORMS[name][1](*_sizes(bucket))


def _relative_fit(rows: Sequence[CostRow], name: str) -> tuple[float, ...]:
    values = np.array([getattr(row, name) for row in rows], dtype=float)
    parts = np.array([_parts(name, row.bucket) for row in rows], dtype=float)
    scale = np.maximum(parts.max(axis=0), 1)  # keeps the problem well conditioned
    known = values > 0
    if not known.any():
        return (0.0,) * parts.shape[1]
    solution, _ = nnls(parts[known] / scale / values[known, None], np.ones(known.sum()))
    return tuple(map(float, solution / scale))


def _exact(row: CostRow) -> BucketCost:
    return BucketCost(row.bucket, **{name: getattr(row, name) for name in FORMS})


def _over(measured: float, fitted: float) -> float:
    return measured / fitted if fitted else 1.0


def _errors(found: Iterable[tuple[CostRow, Bucket, BucketCost]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "bucket": str(bucket),
                "quantity": name,
                "measured": getattr(row, name),
                "predicted": getattr(cost, name),
                "error": _over(getattr(cost, name), getattr(row, name)) - 1,
            }
            for row, bucket, cost in found
            for name in FORMS
        ],
        columns=["bucket", "quantity", "measured", "predicted", "error"],
    )
