"""How far the simulator is from a real server: predicted, registered, measured, told apart.

`calibrate` fixes constants from a few requests. A check writes its prediction down, replays other
requests, measured by a real client, and calibrates again. What is off is told apart: the
simulator's decisions, the passes' costs, and what the load makes of them. Both kinds of batching go
this way; what differs is what their `Constants` say.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spyre_bench.metrics.vllm_json import bench_result
from spyre_bench.simulate.result import SimulatedRun
from spyre_bench.validate import compare as validate
from spyre_bench.validate.constants import JUDGED, Constants, change_of_pace
from spyre_bench.validate.decisions import Decisions
from spyre_bench.validate.errors import Amplification, CostErrors, amplification, cost_errors
from spyre_bench.validate.hosts import Host, Served
from spyre_bench.validate.registered import Prediction, register
from spyre_bench.workload.workload import Workload

OTHERS = 0.25  # cores; a quiet machine has less than a twentieth
TRIES = 3  # at a calibration


@dataclass(frozen=True)
class Check:
    """One run of the real server and its simulation."""

    name: str
    constants: Constants
    workload: Workload  # as it was sent, at the times at which the client really sent
    measured: dict[str, Any]
    simulated: dict[str, Any]
    run: SimulatedRun
    passes: Any  # with what the scheduler knew
    prediction: Prediction
    after: Constants
    others: float = 0.0  # cores that other processes kept busy during it

    def by_quantity(self) -> pd.DataFrame:
        """See `compare.by_quantity`, with the name of the run."""
        return validate.by_quantity(self.measured, self.simulated).assign(run=self.name)

    def by_request(self) -> pd.DataFrame:
        """See `compare.by_request`, with the name of the run."""
        return validate.by_request(self.measured, self.simulated).assign(run=self.name)

    @property
    def began_at(self) -> str:
        """When its first pass did: ISO 8601, UTC."""
        return self.constants.began_at(self.passes)

    def decisions(self) -> Decisions:
        """The first error: see `Constants.decisions`."""
        return self.constants.decisions(self.passes)

    def costs(self) -> CostErrors:
        """The second error: see `errors.cost_errors`."""
        return cost_errors(self.passes, self.constants)

    def amplification(self) -> Amplification:
        """The third error: see `errors.amplification`."""
        return amplification(self.constants, self.workload)

    @property
    def change(self) -> float:
        """The log of how much longer its passes take by the calibration after it than by the one
        before."""
        return change_of_pace(self.constants, self.after, self.run)

    @property
    def disturbed(self) -> bool:
        """Whether the machine changed, from the calibration before to the one after, by more than
        the spread allows, or others kept more of it busy than OTHERS. What the check itself
        measured has no say in it."""
        return self.others > OTHERS or abs(self.change) > self.constants.allowed_change()

    def judged(self) -> pd.DataFrame:
        """One row per figure that was predicted: run, figure, low, point, high, measured, state
        ("inside", "outside" or "disturbed"), and the file that it was registered in."""
        measured = measured_figures(self.measured)
        rows = []
        for figure in JUDGED:
            low, high = self.prediction.intervals[figure]
            inside = low <= measured[figure] <= high
            state = "disturbed" if self.disturbed else "inside" if inside else "outside"
            point = self.prediction.points[figure]
            rows.append((self.name, figure, low, point, high, measured[figure], state))
        names = ["run", "figure", "low", "point", "high", "measured", "state"]
        return pd.DataFrame(rows, columns=names).assign(registered=self.prediction.name)

    def told_apart(self) -> dict[str, Any]:
        """A row: the three errors, and how the machine changed."""
        decided, costs, load = self.decisions(), self.costs(), self.amplification()
        return {
            "run": self.name,
            "batches": decided.batches,
            "same_batches": decided.same,
            "latest_ms": 1e3 * decided.latest_s,
            "rows_distance": self.constants.rows_distance(self.passes, self.run),
            "decisions_agree": decided.agree,
            "cost_bias": costs.bias,
            "cost_spread": costs.spread,
            "cost_drift": costs.drift,
            "e2el_s_per_per_cent": load.seconds_per_per_cent,
            "amplification": load.per_cent_per_per_cent,
            "change_of_pace": math.expm1(self.change),
            "allowed_change": math.expm1(self.constants.allowed_change()),
            "others_cores": self.others,
            "disturbed": self.disturbed,
        }


@dataclass
class Checks:
    """Checks of one host, one after the other: the calibration after one is the one before the
    next, and what one found of the machine's drift widens or narrows the next one's intervals."""

    host: Host
    directory: Path  # takes constants and predictions
    biases: list[float] = field(default_factory=list)  # log, of every check but disturbed ones
    _constants: Constants | None = None

    @property
    def constants(self) -> Constants:
        """The newest; taken now where there are none."""
        if self._constants is None:
            self._constants = self._calibrate("first")
        return self._constants

    def check(self, name: str, workload: Workload, *, seed: int = 0) -> Check:
        """Registers a prediction, sends the workload, calibrates again."""
        constants = self.constants.with_history(self.biases)
        # The client counts its duration from the start of the trace, we from the first request.
        workload = workload.from_zero()
        prediction = register(name, constants, workload, self.directory, seed=seed)
        served = self.host.serve(workload, name)
        self._constants = self._calibrate(f"after {name}")
        done = compared(name, constants, workload, served, prediction, self._constants)
        if not done.disturbed:
            self.biases.append(math.log1p(done.costs().bias))
        return done

    def _calibrate(self, name: str) -> Constants:
        """Again where simultaneous requests came so far apart that they shared no batch."""
        for _ in range(TRIES - 1):
            with contextlib.suppress(ValueError):
                return calibrate(self.host, self.directory, name)
        return calibrate(self.host, self.directory, name)


def compared(
    name: str,
    constants: Constants,
    workload: Workload,
    served: Served,
    prediction: Prediction,
    after: Constants,
) -> Check:
    """A measured run beside the simulation of its requests at the times at which the client really
    sent them."""
    sent = as_sent(workload, served.result["start_times"])
    run = constants.simulate(sent)
    measured = served.result | constants.counted(served.passes)
    measured["spyre_prediction"] = {"file": prediction.name, "sha256": prediction.digest}
    simulated = bench_result(run, detailed=True)
    return Check(
        *(name, constants, sent, measured, simulated, run, served.passes, prediction, after),
        others=served.others,
    )


def measured_figures(measured: dict[str, Any]) -> dict[str, float]:
    """The judged figures of a client's result. Throughput counts from the first request, as the
    simulator does: the client's own duration has its start in it."""
    latencies_s = np.array(measured["latencies"])
    starts_s = np.array(measured["start_times"])
    seconds = float((starts_s + latencies_s).max() - starts_s.min())
    median_s, p95_s = np.percentile(latencies_s, [50, 95])
    return {
        "median_e2el_ms": 1e3 * float(median_s),
        "p95_e2el_ms": 1e3 * float(p95_s),
        "request_throughput": len(latencies_s) / seconds,
    }


def calibrate(host: Host, directory: Path, name: str) -> Constants:
    """A few requests on an idle engine: the seconds of its passes, and what a client waits beyond
    the engine.

    The constants are in the directory, as `<name>-constants.csv`, before this returns. Raises
    ValueError where the requests did not show them, see `Constants.taken`.
    """
    warmed = host.warmed()
    workload = warmed.calibration()
    result, passes, _ = host.serve(workload, f"{name}-calibration")
    constants = warmed.taken(passes).with_overhead(workload, result["ttfts"])
    constants.frame().to_csv(directory / f"{name}-constants.csv", index=False)
    return constants


def as_sent(workload: Workload, start_times: Sequence[float]) -> Workload:
    """The workload at the times of the client's own clock; those that were sent out of order by
    a hair count as sent together."""
    arrival_s = np.maximum.accumulate(np.asarray(start_times) - np.min(start_times))
    return Workload(
        workload.name,
        arrival_s,
        workload.prompt_tokens,
        workload.output_tokens,
        workload.max_tokens,
    )


def pass_errors(check: Check) -> pd.DataFrame:
    """One row per pass that another one follows at once: bucket (or shape), kind, slot_s (from its
    start to the start of the next one), run and error, slot_s over the constant less 1."""
    some = check.constants.timed(check.passes)
    error = some["slot_s"] / some.pop("expected_s") - 1
    return some.assign(run=check.name, error=error)
