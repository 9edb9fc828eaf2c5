"""A cost model put right by what an engine's own passes took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from spyre_bench.cost.bucket_cost import BucketCost, CostModel, Lengths
from spyre_bench.cost.spread import Spread
from spyre_bench.shapes import Bucket


@dataclass(frozen=True, repr=False)
class Rescaled(CostModel):
    """Another model's costs, every prefill and every decode pass so many times as long; the
    buckets that were measured cost what they took."""

    base: CostModel
    measured: tuple[BucketCost, ...]
    factors: tuple[float, float]  # prefill, decode
    deviation: float  # standard deviation of the factors' logarithm
    why: str  # what the factors were taken from, in words

    def of(self, bucket: Bucket) -> BucketCost:
        own = next((cost for cost in self.measured if cost.bucket == bucket), None)
        try:
            cost = self.base.of(bucket)
        except ValueError:
            if own is None:
                raise
            return own
        if own is None:
            return cost.scaled(self.factors)
        compile_s = own.compile_s or cost.compile_s
        return replace(own, compile_s=compile_s, memory_bytes=cost.memory_bytes)

    def spread(self, costs: Sequence[BucketCost]) -> Spread | None:
        """That of the other model, and how far the factors may be off; of a measured bucket the
        latter alone, which is how the machine changed meanwhile."""
        if (found := self.base.spread(costs)) is None:
            return None
        ran = {cost.bucket for cost in self.measured}
        own = np.array([[cost.bucket in ran] for cost in costs])
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

    def require_known(self, name: str, what: str) -> None:
        self.base.require_known(name, what)
