"""What a simulated run leaves: event times of its requests and batches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.policy.static import Policy
from spyre_bench.workload.workload import Workload


@dataclass(frozen=True, eq=False)
class Trace:
    """What happened: for each of n requests its batch, for each of b batches what it ran.

    Batches are in the order of their start (ties: of their replica). Times are in seconds of the
    workload's clock.
    """

    workload: Workload
    costs: tuple[BucketCost, ...]
    policy: Policy
    replicas: int
    ready_s: float
    batch: np.ndarray  # int32 [n], index of the request's batch, -1 where rejected
    rejected: np.ndarray  # int8 [n], 0 where served, otherwise 1 + index into REJECTIONS
    batch_bucket: np.ndarray  # int16 [b], index into costs
    batch_start_s: np.ndarray  # float64 [b]
    batch_passes: np.ndarray  # int32 [b], S, prefill included
    batch_rows: np.ndarray  # int32 [b]
    batch_replica: np.ndarray  # int16 [b]
    client_overhead_s: float = 0.0  # what a client waits beyond the engine's times

    @property
    def served(self) -> np.ndarray:
        """bool [n]"""
        return self.batch >= 0

    @cached_property
    def members(self) -> np.ndarray:
        """int32 [served], the requests of the first batch, then those of the second, ..."""
        served = np.flatnonzero(self.served).astype(np.int32)
        return served[np.argsort(self.batch[served], kind="stable")]

    @cached_property
    def batch_seconds(self) -> np.ndarray:
        """float64 [b], from the start of the prefill to the end of the last decode pass."""
        return self._prefill_s + (self.batch_passes - 1) * self._decode_s

    @property
    def start_s(self) -> np.ndarray:
        """float64 [n], when the request's batch started; nan where rejected."""
        return self._of_batch(self.batch_start_s)

    @property
    def first_token_s(self) -> np.ndarray:
        """float64 [n], when the request's prefill ended; nan where rejected."""
        return self._of_batch(self.batch_start_s + self._prefill_s)

    @property
    def finish_s(self) -> np.ndarray:
        """float64 [n], when the request's own last token came; nan where rejected."""
        decode_s = self._of_batch(self._decode_s)
        return self.first_token_s + (self.workload.output_tokens - 1) * decode_s

    @property
    def decode_s(self) -> np.ndarray:
        """float64 [n], seconds of one decode pass of the request's batch; nan where rejected."""
        return self._of_batch(self._decode_s)

    @cached_property
    def _prefill_s(self) -> np.ndarray:
        return np.array([cost.prefill_s for cost in self.costs])[self.batch_bucket]

    @cached_property
    def _decode_s(self) -> np.ndarray:
        return np.array([cost.decode_s for cost in self.costs])[self.batch_bucket]

    def _of_batch(self, values: np.ndarray) -> np.ndarray:
        """A value of each batch [b] as one of each request [n]."""
        return np.append(values, np.nan)[self.batch]
