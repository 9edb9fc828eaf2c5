"""A closed form of seconds and bytes, fitted to a cost table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from spyre_bench.cost.bucket_cost import BucketCost, CostModel
from spyre_bench.cost.shape_cost import DecodeCost, PrefillCost, ShapeCosts
from spyre_bench.cost.table import CostRow
from spyre_bench.shape_set import BLOCK_TOKENS, ShapeSet
from spyre_bench.shapes import Bucket

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
class FittedCost(CostModel):
    """A closed form: `prefill = a0 + a1·B·P`, `decode = d0 + d1·B + d2·B·K`, so a batch of S passes
    takes `a0 + a1·B·P + (S-1)·(d0 + d1·B + d2·B·K)` seconds."""

    prefill_s: tuple[float, float]
    decode_s: tuple[float, float, float]
    compile_s: tuple[float, float] = (0.0, 0.0)
    memory_bytes: tuple[float, float, float] = (0.0, 0.0, 0.0)

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

    def of_shapes(self, shapes: ShapeSet) -> ShapeCosts:
        """Paged passes as if they were static ones of the same size, padding paid in full: a chunk
        is a prompt, a decode pass one of B rows and T slots. Marked `extrapolated`."""
        a0, a1 = self.prefill_s
        d0, d1, d2 = self.decode_s
        c0, c1 = self.compile_s
        m0, m1, _ = self.memory_bytes
        prefill = [
            PrefillCost(it, a0 + a1 * it.chunk_length, 0.0, (c0 + c1 * it.chunk_length) / 2, True)
            for it in shapes.prefill
        ]
        decode = [
            DecodeCost(
                it,
                d0 + it.rows * (d1 + d2 * it.context_length),
                0.0,
                0.0,
                c0 / 2,
                extrapolated=True,
            )
            for it in shapes.decode
        ]
        memory_bytes = round(m0 + m1 * shapes.blocks * BLOCK_TOKENS)
        return ShapeCosts(tuple(prefill), tuple(decode), shapes.blocks, memory_bytes)

    def below(self, rows: Iterable[CostRow]) -> FittedCost:
        """The same form, its prefill and its decode scaled until no row was measured faster: a
        lower bound of what was measured, and of `MeasuredCost` over the same rows between it."""
        rows = tuple(rows)
        scaled = {}
        for name in ("prefill_s", "decode_s"):
            ratios = [ratio_of(getattr(row, name), self._value(name, row.bucket)) for row in rows]
            scaled[name] = tuple(part * min(ratios) for part in getattr(self, name))
        return replace(self, **scaled)

    def _value(self, name: str, bucket: Bucket) -> float:
        return float(np.dot(getattr(self, name), _parts(name, bucket)))


def sizes_of(bucket: Bucket) -> tuple[int, int, int]:
    return bucket.batch_size, bucket.prompt_length, bucket.new_tokens


def _parts(name: str, bucket: Bucket) -> tuple[float, ...]:
    return FORMS[name][1](*sizes_of(bucket))


def _relative_fit(rows: Sequence[CostRow], name: str) -> tuple[float, ...]:
    values = np.array([getattr(row, name) for row in rows], dtype=float)
    parts = np.array([_parts(name, row.bucket) for row in rows], dtype=float)
    scale = np.maximum(parts.max(axis=0), 1)  # keeps the problem well conditioned
    known = values > 0
    if not known.any():
        return (0.0,) * parts.shape[1]
    solution, _ = nnls(parts[known] / scale / values[known, None], np.ones(known.sum()))
    return tuple(map(float, solution / scale))


def ratio_of(measured: float, fitted: float) -> float:
    return measured / fitted if fitted else 1.0


def error_table(found: Iterable[tuple[CostRow, Bucket, BucketCost]]) -> pd.DataFrame:
    """A row for each quantity that was measured of each row: bucket, quantity, measured, predicted,
    and error, predicted over measured less 1."""
    return pd.DataFrame(
        [
            {
                "bucket": str(bucket),
                "quantity": name,
                "measured": getattr(row, name),
                "predicted": getattr(cost, name),
                "error": getattr(cost, name) / getattr(row, name) - 1,
            }
            for row, bucket, cost in found
            for name in FORMS
            if getattr(row, name)  # a table may say nothing of compile seconds or memory
        ],
        columns=["bucket", "quantity", "measured", "predicted", "error"],
    )
