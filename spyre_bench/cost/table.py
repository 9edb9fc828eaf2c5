"""The cost table as a CSV file: the wall between torch and everything that only calculates."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from spyre_bench.frames import open_text, read_csv
from spyre_bench.shapes import Bucket


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
        return (
            self.model,
            self.bucket,
            self.tp,
            self.compile_backend,
            self.compile_scope,
            self.dtype,
            self.threads,
        )


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
