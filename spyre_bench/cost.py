"""The cost table: measured seconds of a bucket as rows of a CSV file.

The wall between torch and the core: the engine writes rows, everything else reads them.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd

from spyre_bench.shapes import Bucket


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """What one bucket costs, and where that was measured. Spreads are interquartile ranges."""

    model: str
    batch_size: int
    prompt_length: int
    new_tokens: int
    tp: int
    compile_backend: str
    compile_scope: str
    dtype: str
    compile_s: float  # cold: nothing cached
    compile_warm_s: float  # from the artefact of an earlier run
    load_s: float  # weights from disk into the engine
    prefill_s: float  # median of one prefill pass
    prefill_iqr_s: float
    decode_s: float  # median of one decode pass
    decode_iqr_s: float
    passes: int  # repetitions behind each median
    memory_bytes: int  # weights + KV cache + logits of this bucket
    threads: int
    host: str
    cpu: str
    torch_version: str
    fms_version: str
    measured_at: str  # ISO 8601, UTC

    @property
    def bucket(self) -> Bucket:
        return Bucket(self.batch_size, self.prompt_length, self.new_tokens)

    @property
    def identity(self) -> tuple:
        """What makes two rows measurements of the same thing."""
        return (self.model, self.bucket, self.tp, self.compile_backend, self.compile_scope,
                self.dtype, self.threads)  # fmt: skip


COLUMNS = tuple(field.name for field in fields(CostRow))


def read_cost_table(path: Path) -> list[CostRow]:
    """The rows of a cost table; raises ValueError naming the file and what is wrong in it."""
    try:
        frame = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a CSV file: {error}") from error
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise ValueError(f"{path}: not a cost table, columns {missing} are missing")
    try:
        return [
            CostRow(**{f.name: _typed(row[f.name], f.type) for f in fields(CostRow)})
            for row in frame.to_dict("records")
        ]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: a row does not read as a cost row: {error}") from error


def _typed(value, type_name: str):
    return {"int": int, "float": float, "str": str}[type_name](value)


def write_cost_table(path: Path, rows: list[CostRow]) -> None:
    """Replaces the file in one step, so that an interruption leaves the old table or the new."""
    partial = path.with_name(f".{path.name}.partial")
    pd.DataFrame([asdict(row) for row in rows], columns=COLUMNS).to_csv(partial, index=False)
    os.replace(partial, path)
