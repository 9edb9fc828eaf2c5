"""A cost model put right by what an engine's own passes took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from spyre_bench.cost.bucket_cost import BucketCost, CostModel, Lengths
from spyre_bench.cost.shape_cost import DecodeCost, PrefillCost, ShapeCosts
from spyre_bench.cost.spread import Spread
from spyre_bench.shape_set import ShapeSet
from spyre_bench.shapes import Bucket

C = TypeVar("C", PrefillCost, DecodeCost)


@dataclass(frozen=True, repr=False)
class _OfAnother(CostModel):
    """Another model's costs, every prefill and every decode pass so many times as long."""

    base: CostModel
    factors: tuple[float, float]  # prefill, decode
    deviation: float  # standard deviation of the factors' logarithm
    why: str  # what the factors were taken from, in words

    def _spread(self, found: Spread | None, own: np.ndarray) -> Spread | None:
        """That of the other model, and how far the factors may be off; of `own`, bool [costs, 1],
        which were measured, the latter alone, which is how the machine changed meanwhile."""
        if found is None:
            return None
        return replace(
            found,
            source=f"{found.source}; {self.why}",
            below=np.where(own, 0.0, found.below),
            above=np.where(own, 0.0, found.above),
            pace=float(np.hypot(found.pace, self.deviation)),
        )

    @property
    def label(self) -> str:
        return f"{self.base.label}, passes {' and '.join(f'x{f:.2f}' for f in self.factors)}"

    @property
    def model_name(self) -> str:
        return self.base.model_name

    @property
    def smallest(self) -> tuple[int, int, int]:
        return self.base.smallest

    @property
    def span(self) -> str:
        return self.base.span

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return self.base.batch_sizes

    def covers(self, workload: Lengths) -> np.ndarray:
        return self.base.covers(workload)

    def covers_contexts(self, workload: Lengths) -> np.ndarray:
        return self.base.covers_contexts(workload)

    def require_known(self, name: str, what: str) -> None:
        self.base.require_known(name, what)


@dataclass(frozen=True, repr=False)
class Rescaled(_OfAnother):
    """The buckets that were measured cost what they took."""

    measured: tuple[BucketCost, ...]
    compile_factor: float = 1.0  # of the others' compile seconds

    def of(self, bucket: Bucket) -> BucketCost:
        own = next((cost for cost in self.measured if cost.bucket == bucket), None)
        try:
            cost = self.base.of(bucket)
        except ValueError:
            if own is None:
                raise
            return own
        cost = replace(cost, compile_s=cost.compile_s * self.compile_factor)
        if own is None:
            return cost.scaled(self.factors)
        compile_s = own.compile_s or cost.compile_s
        return replace(own, compile_s=compile_s, memory_bytes=cost.memory_bytes)

    def spread(self, costs: Sequence[BucketCost]) -> Spread | None:
        ran = {cost.bucket for cost in self.measured}
        own = np.array([[cost.bucket in ran] for cost in costs])
        return self._spread(self.base.spread(costs), own)


@dataclass(frozen=True, repr=False)
class RescaledShapes(_OfAnother):
    """The shapes of continuous batching that were measured cost what they took."""

    measured: ShapeCosts
    compile_factor: float = 1.0  # of the others' compile seconds

    def of(self, bucket: Bucket) -> BucketCost:
        return self.base.of(bucket).scaled(self.factors)

    def of_shapes(self, shapes: ShapeSet) -> ShapeCosts:
        prefill = {
            cost.shape: cost for cost in self.measured.prefill if cost.shape in shapes.prefill
        }
        decode = {cost.shape: cost for cost in self.measured.decode if cost.shape in shapes.decode}
        try:
            priced = self.base.of_shapes(shapes)
        except ValueError:
            if len(prefill) + len(decode) < len(shapes):
                raise
            return ShapeCosts(tuple(prefill.values()), tuple(decode.values()), shapes.blocks)
        of_prefill, of_decode = ((passes, self.compile_factor) for passes in self.factors)
        return replace(
            priced,
            prefill=tuple(_either(prefill.get(it.shape), it, *of_prefill) for it in priced.prefill),
            decode=tuple(_either(decode.get(it.shape), it, *of_decode) for it in priced.decode),
        )

    def spread_of_shapes(self, costs: ShapeCosts) -> Spread | None:
        ran = {cost.shape for cost in self.measured.each}
        own = np.array([[cost.shape in ran] for cost in costs.each])
        return self._spread(self.base.spread_of_shapes(costs), own)


def _either(own: C | None, cost: C, of_passes: float, of_compile: float) -> C:
    """What was measured, with the other's compile seconds where its own start was warm; or the
    other's passes and compile seconds, so many times as long."""
    cost = replace(cost, compile_s=cost.compile_s * of_compile)
    if own is None:
        return cost.scaled(of_passes)
    return replace(own, compile_s=own.compile_s or cost.compile_s)
