"""The cost table as a CSV file: the wall between torch and everything that only calculates."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from spyre_bench.files import replacing
from spyre_bench.frames import open_text, read_csv
from spyre_bench.shape_set import DecodeShape, PrefillShape
from spyre_bench.shapes import Bucket

STATIC, SHAPE_KINDS = "static", ("prefill", "decode")  # what a row is of: a bucket, or a shape


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a row says of the engine, of its start, and of where and when that was measured. What
    has a default may be missing in a table that something else measured; 0 then means unknown."""

    model: str
    tp: int = 1
    compile_backend: str = ""
    compile_scope: str = ""
    dtype: str = ""
    compile_s: float = 0.0  # cold: nothing cached
    compile_warm_s: float = math.nan  # from the artefact of an earlier run
    load_s: float = math.nan  # weights from disk into the engine
    passes: int = 0  # repetitions behind each median
    threads: int = 1
    host: str = ""
    cpu: str = ""
    torch_version: str = ""
    fms_version: str = ""
    model_code: str = "fms"
    measured_at: str = ""  # ISO 8601, UTC

    @property
    def sizes(self) -> Hashable:
        """The bucket or the shape."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """Of the bucket or the shape."""
        raise NotImplementedError

    @property
    def most_s(self) -> dict[str, float]:
        """What each kind of pass may take, by its column."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class CostRow(Measurement):
    """What one bucket costs. Spreads are interquartile ranges."""

    batch_size: int
    prompt_length: int
    new_tokens: int
    prefill_s: float  # median of one prefill pass
    prefill_iqr_s: float = math.nan
    decode_s: float  # median of one decode pass
    decode_iqr_s: float = math.nan
    memory_bytes: int = 0  # weights + KV cache + logits of this bucket

    @property
    def bucket(self) -> Bucket:
        return Bucket(self.batch_size, self.prompt_length, self.new_tokens)

    @property
    def sizes(self) -> Bucket:
        return self.bucket

    @property
    def name(self) -> str:
        return str(self.bucket)

    @property
    def most_s(self) -> dict[str, float]:
        tokens = self.batch_size * self.prompt_length
        return {"prefill_s": tokens * PREFILL_S, "decode_s": DECODE_S}

    @property
    def passes_text(self) -> str:
        return f"prefill {self.prefill_s * 1e3:.1f} ms, decode {self.decode_s * 1e3:.1f} ms"


@dataclass(frozen=True, kw_only=True)
class ShapeRow(Measurement):
    """What one shape of continuous batching costs: medians of a pass with as much in it as the
    shape takes, and with as little as it can have."""

    kind: str  # of SHAPE_KINDS
    rows: int = 1
    chunk_length: int = 1
    context_length: int
    full_s: float  # every row at the end of its context; the chunk that ends the context
    full_iqr_s: float = math.nan
    short_s: float = math.nan  # every row with one token; of a prefill the same as empty
    empty_s: float  # one row of one token; a chunk with nothing before it
    off: float = math.nan  # the largest relative error of a straight line between those
    fixed_bytes: int = 0  # what the engine holds beside the KV cache
    block_bytes: int = 0  # of one block of the KV cache, in all layers

    @property
    def shape(self) -> PrefillShape | DecodeShape:
        if self.kind == "prefill":
            return PrefillShape(self.chunk_length, self.context_length)
        return DecodeShape(self.rows, self.context_length)

    @property
    def sizes(self) -> PrefillShape | DecodeShape:
        return self.shape

    @property
    def name(self) -> str:
        return self.shape.name

    @property
    def memory_bytes(self) -> int:
        """Of an engine without a KV cache."""
        return self.fixed_bytes

    @property
    def most_s(self) -> dict[str, float]:
        most_s = self.chunk_length * PREFILL_S if self.kind == "prefill" else DECODE_S
        return dict.fromkeys(("full_s", "short_s", "empty_s"), most_s)

    @property
    def passes_text(self) -> str:
        return f"{self.empty_s * 1e3:.1f} ms empty to {self.full_s * 1e3:.1f} ms full"


Row = TypeVar("Row", CostRow, ShapeRow)
ENGINE = (
    *("model", "model_code", "tp", "compile_backend", "compile_scope"),
    *("dtype", "threads", "cpu"),
)
"""What makes a table one engine's."""


def _names(of: type[Measurement]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(of))


def _needed(of: type[Measurement]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(of) if field.default is MISSING)


COLUMNS = tuple(dict.fromkeys(("kind", *_names(CostRow), *_names(ShapeRow))))
KINDS = {it.name: str(it.type) for of in (CostRow, ShapeRow) for it in fields(of)}
PASS_S = (1e-12, 3600.0, "give the seconds of one pass (are these milliseconds?)")
"""Of any pass. What no engine worth serving on takes is less, and milliseconds of most are above
it: `DECODE_S` of a decode, `PREFILL_S` for each computed token of a prefill. The core of the table
that ships takes 0.004 to 0.007 s a token for 135M parameters, so some 0.4 s for 8B: a core half as
quick has to pass. Milliseconds of an engine quicker than that many tokens pass too; only who reads
the results can tell."""
DECODE_S, PREFILL_S = 10.0, 1.0
# What a cell may hold, both ends included: the least, the most, and what to do about another one.
RANGES: dict[str, tuple[float, float, str]] = {
    "batch_size": (1, 2**20, "count rows from 1"),
    "prompt_length": (1, 2**31 - 1, "count tokens from 1"),
    "new_tokens": (2, 2**31 - 1, "count tokens from 2"),
    "rows": (1, 2**20, "count rows from 1"),
    "chunk_length": (1, 2**31 - 1, "count tokens from 1"),
    "context_length": (1, 2**31 - 1, "count tokens from 1"),
    "tp": (1, 2**20, "count cards from 1"),
    "threads": (0, 2**20, "count threads"),
    "passes": (0, 2**53, "count the repetitions"),
    "memory_bytes": (0, 2**60, "give bytes, or leave it empty where nobody knows"),
    "prefill_s": PASS_S,
    "decode_s": PASS_S,
    "full_s": PASS_S,
    "short_s": PASS_S,
    "empty_s": PASS_S,
    "fixed_bytes": (0, 2**60, "give bytes, or leave it empty where nobody knows"),
    "block_bytes": (0, 2**60, "give bytes, or leave it empty where nobody knows"),
    "off": (0.0, 1e3, "give the relative error, or leave it empty where nobody knows"),
}
SECONDS = (0.0, 1e6, "give seconds from 0, or leave it empty where nobody knows")


def read_cost_table(path: Path) -> list[CostRow]:
    """The buckets of a cost table, columns in any order; a column that is missing or a cell that is
    empty is the default. This is where its values are looked at: raises ValueError naming the
    file, line and column of what is no whole number, not finite, negative or absurd."""
    return _read(path, CostRow)


def read_shape_rows(path: Path) -> list[ShapeRow]:
    """The shapes of continuous batching in a cost table, read as its buckets are."""
    return _read(path, ShapeRow)


def _read(path: Path, of: type[Row]) -> list[Row]:
    frame = _frame(Path(path))
    kinds = frame["kind"].fillna("").str.strip().replace("", STATIC)
    for line, kind in kinds.items():
        if kind not in (STATIC, *SHAPE_KINDS):
            raise ValueError(
                f"{path} line {line} does not read as a cost row: kind {kind!r} is not one of "
                f"{STATIC}, {', '.join(SHAPE_KINDS)}"
            )
    frame = frame[kinds.eq(STATIC) if of is CostRow else kinds.ne(STATIC)]
    if frame.empty:
        return []
    if missing := [name for name in _needed(of) if name not in frame]:
        raise ValueError(f"{path}: not a cost table, columns {missing} are missing")
    names = [name for name in _names(of) if name in frame]
    return [
        _row(
            f"{path} line {line} does not read as a cost row",
            dict(zip(names, cells, strict=True)),
            of,
        )
        for line, *cells in frame[names].itertuples()
    ]


def _frame(path: Path) -> pd.DataFrame:
    """All cells as text, and their kind; raises ValueError where there is no table of costs."""
    try:
        with open_text(path) as file:
            frame = read_csv(path, file, as_text=None)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a cost table: no UTF-8 text ({error})") from error
    if "kind" not in frame and (missing := [it for it in _needed(CostRow) if it not in frame]):
        raise ValueError(
            f"{path}: not a cost table, columns {', '.join(missing)} are missing: `spyre-bench "
            f"measure` writes one, docs/YOUR_CARD.md says how to write your own"
        )
    return frame if "kind" in frame else frame.assign(kind="")


def _row(where: str, cells: Mapping[str, Any], of: type[Row]) -> Row:
    values = {
        name: _value(where, name, text.strip(), of)
        for name, text in cells.items()
        if isinstance(text, str) and text.strip()
    }
    if empty := [name for name in _needed(of) if name not in values]:
        raise ValueError(f"{where}: {empty[0]} is empty: every row of a cost table needs it")
    try:
        row = of(**values)
        _ = row.sizes  # raises ValueError for sizes that are none
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    for name, most_s in row.most_s.items():
        if getattr(row, name) > most_s:
            raise ValueError(
                f"{where}: {name} {getattr(row, name):g} is not within 1e-12 and {most_s:g} for "
                f"{row.name}: {PASS_S[-1]}"
            )
    return row


def _value(where: str, name: str, text: str, of: type[Measurement]) -> Any:
    kind = KINDS[name]
    if kind == "str":
        return text
    least, most, remedy = RANGES.get(name, SECONDS)
    shown = f"{where}: {name} {text if len(text) <= 60 else text[:57] + '...'}"
    try:
        value = float(text)
    except ValueError as error:
        raise ValueError(f"{shown} is not a number: {remedy}") from error
    if math.isnan(value) and kind == "float" and name not in _needed(of):
        return value
    if kind == "int" and not value.is_integer():
        raise ValueError(f"{shown} is not a whole number: {remedy}")
    if not least <= value <= most:
        raise ValueError(f"{shown} is not within {least:g} and {most:g}: {remedy}")
    return int(value) if kind == "int" else value


def write_cost_table(path: Path, rows: Sequence[Measurement]) -> None:
    """Replaces the file in one step, so that an interruption leaves the old table or the new.
    Where there is no shape there is no column of shapes."""
    shapes = any(isinstance(row, ShapeRow) for row in rows)
    cells = [{"kind": STATIC} | asdict(row) for row in rows] if shapes else list(map(asdict, rows))
    columns = COLUMNS if shapes else _names(CostRow)
    with replacing(path) as partial:
        pd.DataFrame(cells, columns=columns).to_csv(partial, index=False)
