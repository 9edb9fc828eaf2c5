"""What the simulation of a server rests on, of either kind of batching: seconds of its passes, what
a client waits beyond the engine, and how far both may be off in a run that follows. What differs
between the kinds is in `static` and `continuous`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

import numpy as np
import pandas as pd
from scipy.stats import t as student

from spyre_bench.cost.spread import IQR, Draw, Spread, learned
from spyre_bench.metrics.intervals import REPLICATIONS, Intervals, replicate
from spyre_bench.simulate.result import SimulatedRun
from spyre_bench.validate.decisions import Decisions
from spyre_bench.workload.workload import Workload

DRIFT, WEIGHT = 0.03, 4.0
"""How far a machine's passes drift in minutes (3 to 5 %, docs/LOG.md, "why constants are taken
anew"), before anything is known of this one; it counts as so many checks."""
MOST_CHANGE = math.log(1.15)  # three times what machines drift: whatever the calibration's spread
OF_A_MEDIAN = math.sqrt(math.pi / 2)  # its deviation over that of a mean
JUDGED = ("median_e2el_ms", "p95_e2el_ms", "request_throughput")
PAUSE_S = 0.3  # between requests of a calibration that shall not meet
APART_S = 0.01  # of requests that queue up, so that they keep their order on the way


@dataclass(frozen=True, kw_only=True)
class Constants(ABC):
    """What the simulation of a server rests on. `passes` are those of a pass log, as the server's
    kind of batching has them."""

    client_overhead_s: float = 0.0
    fixed_at: str = ""  # ISO 8601, UTC
    spread: Spread | None = None
    overhead_deviation_s: float = 0.0  # of the client's overhead, from one request to another

    # --- what a kind of batching has to say

    @abstractmethod
    def simulate(self, workload: Workload, draw: Draw | None = None) -> SimulatedRun:
        """The run; `draw` says what its passes take instead."""

    @abstractmethod
    def scaled(self, factor: float) -> Self:
        """With passes that take so many times as long; the server decides as before."""

    @abstractmethod
    def calibration(self) -> Workload:
        """Requests that show what passes take on an idle server, and what a client waits."""

    @abstractmethod
    def taken(self, passes: Any) -> Self:
        """With the costs of these passes, vLLM's own time included, and their spread. Raises
        ValueError where they do not tell it."""

    @abstractmethod
    def timed(self, passes: Any) -> pd.DataFrame:
        """One row per pass that another one follows at once: bucket (or shape), kind, slot_s (from
        its start to the start of the next one) and expected_s, its constant."""

    @abstractmethod
    def busy_s(self, run: SimulatedRun) -> float:
        """What the passes of a run take by these costs."""

    @abstractmethod
    def decisions(self, passes: Any) -> Decisions:
        """Whether the simulator decides as the server did, fed with what it saw and took."""

    @abstractmethod
    def counted(self, passes: Any) -> dict[str, float]:
        """What a pass log says beside a client's result, in the names of a simulated one."""

    @abstractmethod
    def began_at(self, passes: Any) -> str:
        """When the first pass did: ISO 8601, UTC."""

    @abstractmethod
    def frame(self) -> pd.DataFrame:
        """One row per bucket or shape."""

    @abstractmethod
    def said(self) -> dict[str, Any]:
        """Costs and rules, for a file."""

    # --- what follows for both

    def with_overhead(self, workload: Workload, ttfts_s: Sequence[float]) -> Self:
        """With what a client waited for its first tokens beyond the simulation, fixed now."""
        waited_s = np.array(ttfts_s) - self.simulate(workload).ttft_s
        low_s, high_s = np.percentile(waited_s, [25, 75])
        return replace(
            self,
            client_overhead_s=max(0.0, float(np.median(waited_s))),
            overhead_deviation_s=float(high_s - low_s) / IQR,
            fixed_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )

    def rows_distance(self, passes: Any, run: SimulatedRun) -> float:
        """Total variation distance, 0 to 1, of how many rows decode passes had from those of the
        simulated run; nan where batches say it already."""
        return math.nan

    def capacity_rps(self, workload: Workload) -> float:
        """Requests/s with everybody queued: what load 1 means."""
        run = self.simulate(workload.with_arrivals("all"))
        return float(run.served.sum()) / self.busy_s(run)

    def intervals(
        self, workload: Workload, seed: int = 0, replications: int = REPLICATIONS
    ) -> Intervals:
        """P5 to P95 of the run's figures. Raises ValueError without a spread."""
        if self.spread is None:
            raise ValueError("constants without a spread give no interval: calibrate on a server")
        overheads_s = self._overheads(seed, replications)
        return replicate(
            lambda draw: replace(self, client_overhead_s=next(overheads_s)).simulate(
                workload, draw
            ),
            self.spread,
            replications=replications,
            seed=seed,
        )

    def _overheads(self, seed: int, replications: int):
        drawn = np.random.default_rng([seed, 1]).standard_normal(replications)
        overheads_s = self.client_overhead_s + self.overhead_deviation_s * drawn
        return iter(np.maximum(0.0, overheads_s).tolist())

    def with_history(self, biases: Sequence[float]) -> Self:
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
    return math.log(after.busy_s(run) / before.busy_s(run))
