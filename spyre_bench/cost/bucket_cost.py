"""What a bucket costs, and what a cost model is: whatever answers `of(bucket)`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from spyre_bench.shapes import STICK_TOKENS, Bucket


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
