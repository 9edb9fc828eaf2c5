"""What the simulation of a server rests on, taken from full batches: seconds of its passes, what a
client waits beyond the engine, and how far both may be off in a run that follows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.cost.spread import Spread, learned, log_deviation
from spyre_bench.metrics.intervals import REPLICATIONS, Intervals, replicate
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import Bucket
from spyre_bench.simulate.result import KINDS, SimulatedRun
from spyre_bench.simulate.static import simulate
from spyre_bench.workload.workload import Workload

DRIFT, WEIGHT = 0.03, 4.0
"""How far a machine's passes drift in minutes (3 to 5 %, docs/LOG.md, "why constants are taken
anew"), before anything is known of this one; it counts as so many checks."""
MOST_CHANGE = math.log(1.15)  # three times what machines drift: whatever the calibration's spread
OF_A_MEDIAN = math.sqrt(math.pi / 2)  # its deviation over that of a mean
JUDGED = ("median_e2el_ms", "p95_e2el_ms", "request_throughput")


@dataclass(frozen=True)
class Constants:
    """What the simulation of a server rests on."""

    costs: tuple[BucketCost, ...]  # seconds of a pass in the server, vLLM's own time included
    estimated: tuple[BucketCost, ...]  # what the server's scheduler decides by, from its warmup
    client_overhead_s: float
    policy: Policy
    fixed_at: str  # ISO 8601, UTC
    spread: Spread | None = None
    overhead_deviation_s: float = 0.0  # of the client's overhead, from one request to another

    def frame(self) -> pd.DataFrame:
        """One row per bucket."""
        return pd.DataFrame(
            {
                "bucket": [str(cost.bucket) for cost in self.costs],
                "prefill_s": [cost.prefill_s for cost in self.costs],
                "decode_s": [cost.decode_s for cost in self.costs],
                "believed_prefill_s": [cost.prefill_s for cost in self.estimated],
                "believed_decode_s": [cost.decode_s for cost in self.estimated],
                "client_overhead_s": self.client_overhead_s,
                "measured_at": self.fixed_at,
            }
        )

    def simulate(self, workload: Workload) -> SimulatedRun:
        return simulate(
            workload,
            self.costs,
            self.policy,
            client_overhead_s=self.client_overhead_s,
            estimated=self.estimated,
        )

    def intervals(
        self, workload: Workload, seed: int = 0, replications: int = REPLICATIONS
    ) -> Intervals:
        """P5 to P95 of the run's figures. Raises ValueError without a spread."""
        if self.spread is None:
            raise ValueError("constants without a spread give no interval: calibrate on a server")
        overheads_s = self._overheads(seed, replications)
        return replicate(
            lambda draw: simulate(
                workload,
                draw.scaled(self.costs),
                self.policy,
                client_overhead_s=next(overheads_s),
                estimated=self.estimated,
                pace=draw.pace,
            ),
            self.spread,
            replications=replications,
            seed=seed,
        )

    def _overheads(self, seed: int, replications: int):
        drawn = np.random.default_rng([seed, 1]).standard_normal(replications)
        overheads_s = self.client_overhead_s + self.overhead_deviation_s * drawn
        return iter(np.maximum(0.0, overheads_s).tolist())

    def with_history(self, biases: Sequence[float]) -> Constants:
        """With the drift that earlier checks on this machine had: the log of how much longer their
        passes took than their constants."""
        assert self.spread is not None
        pace, freedom = learned(DRIFT, WEIGHT, biases)
        source = f"{self.spread.source}; drift of {pace:.1%} from {len(biases)} earlier checks"
        spread = replace(self.spread, source=source, pace=pace, freedom=freedom)
        return replace(self, spread=spread)

    def allowed_change(self) -> float:
        """The log of the change in pace that a machine keeps within in 99 of 100 checks, as the
        spread has it, and MOST_CHANGE at most; beyond it a check is disturbed."""
        assert self.spread is not None
        own = float(np.sqrt(np.mean(np.square(self.spread.above))))
        deviation = math.hypot(self.spread.pace, math.sqrt(2) * own)
        return min(MOST_CHANGE, float(student.ppf(0.995, self.spread.freedom)) * deviation)


def change_of_pace(before: Constants, after: Constants, run: SimulatedRun) -> float:
    """The log of how much longer the passes of a run take by the constants after it than by those
    before."""
    return math.log(_busy_s(run, after.costs) / _busy_s(run, before.costs))


def _busy_s(run: SimulatedRun, costs: Sequence[BucketCost]) -> float:
    seconds = np.array([(cost.prefill_s, cost.decode_s) for cost in costs])
    return float(seconds[run.passes.shape, run.passes.kind] @ run.passes.count)


def pass_costs(passes: pd.DataFrame) -> tuple[BucketCost, ...]:
    """What a pass of each bucket takes in a server: the median time from its start to the start of
    the next pass of its batch, so that vLLM's own time is in it. The last pass of a batch, after
    which the engine may be idle, is left out. In ascending order of bucket.

    Raises ValueError for a bucket with no prefill or decode pass to take the time of.
    """
    medians = slots(passes).groupby(["bucket", "kind"])["slot_s"].median()
    costs = []
    for name in sorted(passes["bucket"].unique(), key=Bucket.parse):
        if any((name, kind) not in medians for kind in KINDS):
            raise ValueError(
                f"bucket {name} ran no batch of three passes or more: calibrate on a workload with "
                f"longer outputs in it"
            )
        costs.append(
            BucketCost(Bucket.parse(name), medians[name, "prefill"], medians[name, "decode"])
        )
    return tuple(costs)


def pass_spread(passes: pd.DataFrame, costs: Sequence[BucketCost]) -> Spread:
    """How far a run's passes may be from the medians of these: each median by how few passes it is
    of, each batch as single passes differ, and the machine by what such machines drift."""
    some = slots(passes)
    off = some["slot_s"] / expected_s(some, costs)
    deviations = {kind: log_deviation(off[some["kind"] == kind].to_numpy()) for kind in KINDS}
    counts = some.groupby(["bucket", "kind"]).size()
    own = np.array(
        [
            [
                OF_A_MEDIAN * deviations[kind] / math.sqrt(counts[str(cost.bucket), kind])
                for kind in KINDS
            ]
            for cost in costs
        ]
    )
    source = f"{len(some)} passes of full batches"
    return Spread(source, own, own, pace=DRIFT, freedom=WEIGHT, batch=tuple(deviations.values()))


def expected_s(some: pd.DataFrame, costs: Sequence[BucketCost]) -> np.ndarray:
    """The constant of each pass."""
    constant_s: Mapping[Any, float] = {
        (str(cost.bucket), kind): seconds
        for cost in costs
        for kind, seconds in zip(KINDS, (cost.prefill_s, cost.decode_s), strict=True)
    }
    return np.array([constant_s[key] for key in zip(some["bucket"], some["kind"], strict=True)])


def slots(passes: pd.DataFrame) -> pd.DataFrame:
    """The passes that another one of the same batch follows, with the seconds from start to
    start."""
    following = passes.shift(-1)
    with_slots = passes.assign(slot_s=following["start_s"] - passes["start_s"])
    return with_slots[passes["batch"] == following["batch"]]
