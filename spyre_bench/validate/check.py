"""How far the simulator is from a real server: predicted, registered, measured, told apart.

`calibrate` fixes constants from a few full batches. A check writes its prediction down, replays
other requests, measured by a real client, and calibrates again. What is off is told apart: the
simulator's decisions, the passes' costs, and what the load makes of them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.cost.spread import IQR
from spyre_bench.metrics.vllm_json import bench_result
from spyre_bench.metrics.waste import waste
from spyre_bench.pass_log import count_passes, read_passes, read_warmup
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import BucketSet
from spyre_bench.simulate.result import PREFILL, SimulatedRun
from spyre_bench.simulate.static import simulate
from spyre_bench.validate import compare as validate
from spyre_bench.validate import server as serving
from spyre_bench.validate.constants import (
    JUDGED,
    Constants,
    change_of_pace,
    expected_s,
    pass_costs,
    pass_spread,
    slots,
)
from spyre_bench.validate.decisions import Decisions, decisions
from spyre_bench.validate.errors import Amplification, CostErrors, amplification, cost_errors
from spyre_bench.validate.others import CpuTimes
from spyre_bench.validate.registered import Prediction, register
from spyre_bench.workload.workload import Workload

SHORT = 3  # calibration batches of each bucket with one decode pass only, beside one full one
PAUSE_S = 0.3  # between the end of one and the next, and after the first of a queued run
OTHERS = 0.25  # cores; a quiet machine has less than a twentieth
TRIES = 3  # at a calibration
APART_S = 0.01  # of requests that queue up, so that they keep their order on the way


class Served(NamedTuple):
    """A workload as it went."""

    result: dict[str, Any]  # of the client, in vLLM's form with all arrays
    passes: pd.DataFrame  # of the engine, with what the scheduler knew
    others: float = 0.0  # cores that other processes kept busy meanwhile


class Host(Protocol):
    """What is checked: an engine and a client, real or made up."""

    def serve(self, workload: Workload, name: str) -> Served:
        """Sends the requests at their times, each answered in full."""
        ...

    def estimated(self, buckets: BucketSet) -> tuple[BucketCost, ...]:
        """What the scheduler decides by."""
        ...


@dataclass(frozen=True)
class LiveHost:
    """A real server and a real client, whose results stay in the directory."""

    server: serving.Server
    directory: Path

    def serve(self, workload: Workload, name: str) -> Served:
        before, times = count_passes(self.server.pass_log), CpuTimes.now(self.server.session)
        result = serving.replay(self.server, workload, self.directory, name)
        others = CpuTimes.now(self.server.session).others_since(times)
        passes = read_passes(self.server.pass_log, waits=True).iloc[before:]
        return Served(result, passes.reset_index(drop=True), others)

    def estimated(self, buckets: BucketSet) -> tuple[BucketCost, ...]:
        """The seconds of its warmup."""
        warmed = read_warmup(self.server.pass_log).set_index("bucket")
        return tuple(
            BucketCost(bucket, *map(float, warmed.loc[str(bucket), ["prefill_s", "decode_s"]]))
            for bucket in buckets
        )


@dataclass(frozen=True)
class Check:
    """One run of the real server and its simulation."""

    name: str
    constants: Constants
    workload: Workload  # as it was sent, at the times at which the client really sent
    measured: dict[str, Any]
    simulated: dict[str, Any]
    run: SimulatedRun
    passes: pd.DataFrame  # with what the scheduler knew
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
    def batches_agree(self) -> bool:
        """Whether the server formed exactly the simulated batches, in this order."""
        real = [(bucket, sorted(prompts)) for bucket, prompts in batches_of(self.passes)]
        return real == [(bucket, sorted(prompts)) for bucket, prompts in simulated_batches(self)]

    def decisions(self) -> Decisions:
        """The first error: see `decisions`."""
        return decisions(self.passes, self.constants.policy, self.constants.estimated)

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
    buckets: BucketSet
    policy: Policy
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
                return calibrate(self.host, self.buckets, self.policy, self.directory, name)
        return calibrate(self.host, self.buckets, self.policy, self.directory, name)


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
    ledger = waste(served.passes)
    measured = served.result | {
        "spyre_batches": len(ledger),
        "spyre_fill": float(ledger["useful"].sum() / ledger["computed"].sum()),
        "spyre_prediction": {"file": prediction.name, "sha256": prediction.digest},
    }
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


def calibrate(
    host: Host, buckets: BucketSet, policy: Policy, directory: Path, name: str
) -> Constants:
    """A few full batches of each bucket on an idle engine: the seconds of its passes, and what a
    client waits beyond the engine.

    The constants are in the directory, as `<name>-constants.csv`, before this returns. Raises
    ValueError where a bucket's requests did not share a batch of it, as without `gather_s`.
    """
    estimated = host.estimated(buckets)
    workload = full_batches(estimated)
    result, passes, _ = host.serve(workload, f"{name}-calibration")
    costs = pass_costs(passes)
    if missing := sorted(set(buckets) - {cost.bucket for cost in costs}):
        raise ValueError(
            f"no calibration batch ran in bucket {missing[0]}: let simultaneous requests share a "
            f"batch (gather_s above 0), or leave out a bucket that another one makes needless"
        )
    waited_s = np.array(result["ttfts"]) - simulate(workload, costs, policy).ttft_s
    low_s, high_s = np.percentile(waited_s, [25, 75])
    constants = Constants(
        costs=costs,
        estimated=estimated,
        client_overhead_s=max(0.0, float(np.median(waited_s))),
        policy=policy,
        fixed_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        spread=pass_spread(passes, costs),
        overhead_deviation_s=float(high_s - low_s) / IQR,
    )
    constants.frame().to_csv(directory / f"{name}-constants.csv", index=False)
    return constants


def fitting(workload: Workload, buckets: BucketSet) -> Workload:
    """The requests that a bucket takes. Raises ValueError where there is none."""
    fits = np.any([workload.fits(bucket) for bucket in buckets], axis=0)
    if not fits.any():
        raise ValueError(f"no request of {workload.name} fits the buckets {buckets}: scale it down")
    return workload.take(fits)


def queued(workload: Workload, buckets: BucketSet) -> Workload:
    """The requests in a queue behind one that fills the longest bucket: when it ends, all others
    have been waiting in their order."""
    longest = max(buckets, key=lambda bucket: (bucket.context_length, bucket))
    prompt_tokens = np.insert(workload.prompt_tokens, 0, longest.prompt_length)
    output_tokens = np.insert(workload.output_tokens, 0, longest.new_tokens)
    arrival_s = PAUSE_S + APART_S * np.arange(len(workload))
    return Workload(
        workload.name, np.insert(arrival_s, 0, 0.0), prompt_tokens, output_tokens, output_tokens
    )


def full_batches(costs: Sequence[BucketCost]) -> Workload:
    """For each bucket a full batch of the longest requests and a few of one decode pass, each sent
    when the one before is done."""
    sizes = [
        (cost.bucket.batch_size, cost.bucket.prompt_length, passes, cost.batch_s(passes))
        for cost in costs
        for passes in (cost.bucket.new_tokens, *[2] * SHORT)
    ]
    rows, prompt_tokens, output_tokens, seconds = map(np.array, zip(*sizes, strict=True))
    arrival_s = np.concatenate([[0.0], np.cumsum(seconds[:-1] + PAUSE_S)])
    columns = (np.repeat(column, rows) for column in (arrival_s, prompt_tokens, output_tokens))
    arrival_s, prompt_tokens, output_tokens = columns
    return Workload("full batches", arrival_s, prompt_tokens, output_tokens, output_tokens)


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


def batches_of(passes: pd.DataFrame) -> list[tuple[str, list[int]]]:
    """Each batch of a pass log in order: its bucket and the prompt lengths of its rows."""
    starts = passes[passes["kind"] == "prefill"]
    return list(zip(starts["bucket"], starts["prompt_tokens"], strict=True))


def simulated_batches(check: Check) -> list[tuple[str, list[int]]]:
    """The same of the simulated run."""
    costs, passes = check.run.costs, check.run.passes
    return [
        (
            str(costs[passes.shape[row]].bucket),
            check.workload.prompt_tokens[passes.of_row(row)[0]].tolist(),
        )
        for row in np.flatnonzero(passes.kind == PREFILL)
    ]


def pass_errors(check: Check) -> pd.DataFrame:
    """One row per pass that another one of its batch follows: run, bucket, kind, slot_s (from its
    start to the start of the next one) and error, slot_s over the constant less 1."""
    some = slots(check.passes)
    error = some["slot_s"] / expected_s(some, check.constants.costs) - 1
    return some[["bucket", "kind", "slot_s"]].assign(run=check.name, error=error)
