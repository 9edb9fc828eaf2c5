"""What a bucket costs, and what a cost model is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from spyre_bench.cost.shape_cost import ShapeCosts
from spyre_bench.cost.spread import Spread
from spyre_bench.model_sizes import ModelSizes
from spyre_bench.shape_set import ShapeSet
from spyre_bench.shapes import STICK_TOKENS, Bucket

SMALLEST = (1, STICK_TOKENS, 2)  # B, P and N of the smallest bucket there can be
BATCH_SIZES = (1, 2, 4, 8, 16)  # worth considering where nothing says which were measured


@dataclass(frozen=True, slots=True)
class BucketCost:
    """What one bucket costs on one engine, in seconds and bytes."""

    bucket: Bucket
    prefill_s: float  # one prefill pass: B x P tokens, yields every row's first token
    decode_s: float  # one decode pass: a token for each of B rows
    compile_s: float = 0.0  # cold, once per start
    memory_bytes: int = 0  # an engine with this bucket alone
    extrapolated: bool = False  # outside of what was measured

    def batch_s(self, passes: int) -> float:
        """Engine seconds of a batch whose longest output has `passes` tokens."""
        return self.prefill_s + (passes - 1) * self.decode_s

    def scaled(self, factors: Sequence[float]) -> BucketCost:
        """With passes that take so many times as long: prefill, decode."""
        prefill, decode = factors
        return replace(self, prefill_s=self.prefill_s * prefill, decode_s=self.decode_s * decode)

    @property
    def warmup_s(self) -> float:
        """Cold compile and one run of each pass, before the server is ready."""
        return self.compile_s + self.prefill_s + self.decode_s


class Lengths(Protocol):
    """What a cost model looks at in a workload."""

    @property
    def prompt_tokens(self) -> np.ndarray: ...
    @property
    def max_tokens(self) -> np.ndarray: ...


class CostModel(Protocol):
    """A source of costs, measured or modelled. It inherits from here and overrides what differs, so
    that nobody outside of `cost` has to ask which one it is."""

    def of(self, bucket: Bucket) -> BucketCost:
        """Raises ValueError for a bucket that it has no figure for."""
        ...

    def of_shapes(self, shapes: ShapeSet) -> ShapeCosts:
        """What the paged passes of continuous batching cost. Raises ValueError where it has no
        figure for them."""
        raise ValueError(f"{self.label} has no figure for paged shapes: use another source")

    @property
    def batch_tokens(self) -> int | None:
        """The largest batch × context, in tokens; None where no limit is known."""
        return None

    @property
    def slots(self) -> int | None:
        """The most slots of KV cache that memory takes; None where no limit is known."""
        return None

    @property
    def label(self) -> str:
        """What it prices, in words."""
        return type(self).__name__

    @property
    def model_name(self) -> str:
        """The language model that it prices."""
        return "unknown"

    @property
    def smallest(self) -> tuple[int, int, int]:
        """The B, P and N below which it has no figure."""
        return SMALLEST

    @property
    def span(self) -> str:
        """Its range of buckets, in words."""
        return "whatever fits"

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Those worth considering, ascending."""
        return BATCH_SIZES

    @property
    def ends(self) -> tuple[CostModel, ...]:
        """The same where nothing goes well, and where everything does; none if it was measured."""
        return ()

    @property
    def contested(self) -> Mapping[str, CostModel]:
        """The same by each of two facts that contradict each other, by what they say; none if it
        was measured."""
        return {}

    def spread(self, costs: Sequence[BucketCost]) -> Spread | None:
        """How far passes may be from these costs of its own; None where nobody knows."""
        return None

    def spread_of_shapes(self, costs: ShapeCosts) -> Spread | None:
        """How far paged passes may be from these costs of its own, a row for each shape, prefill
        first; None where nobody knows."""
        return None

    def covers(self, workload: Lengths) -> np.ndarray:
        """bool [requests], those that a bucket of its range takes."""
        return np.ones(len(workload.prompt_tokens), bool)

    def require_deployment(self, sizes: ModelSizes, tp: int) -> None:
        """Raises ValueError where it prices another model, or another number of cards."""
        return None

    def covers_contexts(self, workload: Lengths) -> np.ndarray:
        """bool [requests], those whose prompt and outputs a paged shape of its range holds."""
        return np.ones(len(workload.prompt_tokens), bool)

    def require_known(self, name: str, what: str) -> None:
        """Raises ValueError where `name` ("compile_s", "memory_bytes") is not known of every
        bucket: `what`, a limit on it, would hold whatever is chosen."""
        return None

    def __repr__(self) -> str:
        return f"<{self.label}>"


def price(buckets: Iterable[Bucket], model: CostModel) -> tuple[BucketCost, ...]:
    """The costs of the buckets, in ascending order of bucket."""
    return tuple(model.of(bucket) for bucket in sorted(set(buckets)))
