"""The cost table: measured seconds of a bucket as rows of a CSV file.

The wall between torch and the core: the engine writes rows, everything else reads them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import nnls

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


@dataclass(frozen=True)
class StartupFit:
    """Start-up seconds of a bucket: a fixed part, and parts that grow with the tokens its prefill
    computes and with the KV slots its cache holds."""

    fixed_s: float
    prompt_token_s: float
    kv_slot_s: float

    @classmethod
    def of(cls, buckets: Sequence[Bucket], seconds: Sequence[float]) -> StartupFit:
        """Least squares over measured buckets, no part below zero: more work never costs less.
        Raises ValueError for fewer than two buckets."""
        if len(set(buckets)) < 2:
            raise ValueError(f"{len(set(buckets))} bucket: growth needs two different ones or more")
        solution, _ = nnls(np.array([_work(bucket) for bucket in buckets]), np.array(seconds))
        return cls(*map(float, solution))

    def predict(self, bucket: Bucket) -> float:
        return float(np.dot((self.fixed_s, self.prompt_token_s, self.kv_slot_s), _work(bucket)))


def _work(bucket: Bucket) -> tuple[float, float, float]:
    rows = bucket.batch_size
    return 1.0, rows * bucket.prompt_length, rows * bucket.context_length


def request_s(bucket: Bucket, prefill_s: float, decode_s: float, output_tokens: int) -> float:
    """Engine seconds for each request of a full batch whose answers have `output_tokens`; the
    prefill yields the first of them."""
    assert 1 <= output_tokens <= bucket.new_tokens
    return (prefill_s + (output_tokens - 1) * decode_s) / bucket.batch_size


def break_even_requests(startup_s: float, own_s: float, fallback_s: float) -> float:
    """After how many requests the start-up of a bucket is earned back, where a request costs
    `own_s` in it and `fallback_s` in the bucket that would serve it otherwise; infinite where
    it saves nothing."""
    saving_s = fallback_s - own_s
    return startup_s / saving_s if saving_s > 0 else math.inf
