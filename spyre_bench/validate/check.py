"""How far the simulator is from a real server: constants taken in one run, held against the next.

The constants are what a pass of each bucket takes in the server and what a client waits beyond the
engine. `calibrate` fixes them from a few full batches; `check` then replays other requests,
measured by a real client, and simulates the same requests from those constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.metrics.vllm_json import bench_result
from spyre_bench.metrics.waste import waste
from spyre_bench.pass_log import count_passes, read_passes, read_warmup
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import Bucket, BucketSet
from spyre_bench.simulate.result import PREFILL, SimulatedRun
from spyre_bench.simulate.static import simulate
from spyre_bench.validate import compare as validate
from spyre_bench.validate import server as serving
from spyre_bench.workload.workload import Workload

SHORT = 3  # calibration batches of each bucket with one decode pass only, beside one full one
PAUSE_S = 0.3  # between the end of one and the next, and after the first of a queued run
APART_S = 0.01  # of requests that queue up, so that they keep their order on the way


@dataclass(frozen=True)
class Constants:
    """What the simulation of a server rests on."""

    costs: tuple[BucketCost, ...]  # seconds of a pass in the server, vLLM's own time included
    estimated: tuple[BucketCost, ...]  # what the server's scheduler decides by, from its warmup
    client_overhead_s: float
    policy: Policy
    fixed_at: str  # ISO 8601, UTC

    def frame(self) -> pd.DataFrame:
        """One row per bucket."""
        return pd.DataFrame(
            {
                "bucket": [str(cost.bucket) for cost in self.costs],
                "prefill_s": [cost.prefill_s for cost in self.costs],
                "decode_s": [cost.decode_s for cost in self.costs],
                "estimated_prefill_s": [cost.prefill_s for cost in self.estimated],
                "estimated_decode_s": [cost.decode_s for cost in self.estimated],
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


@dataclass(frozen=True)
class Check:
    """One run of the real server and its simulation."""

    name: str
    constants: Constants
    workload: Workload  # as it was sent, at the times at which the client really sent
    measured: dict[str, Any]
    simulated: dict[str, Any]
    run: SimulatedRun
    passes: pd.DataFrame

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


def calibrate(
    server: serving.Server, buckets: BucketSet, policy: Policy, directory: Path, name: str
) -> Constants:
    """A few full batches of each bucket on an idle server: the seconds of its passes, and what a
    client waits beyond the engine.

    The constants are in the directory, as `<name>-constants.csv`, before this returns. Raises
    ValueError where a bucket's requests did not share a batch of it, as without `gather_s`.
    """
    requests, before = full_batches(estimated_costs(server, buckets)), count_passes(server.pass_log)
    result = serving.replay(server, requests, directory, f"{name}-calibration")
    costs = pass_costs(read_passes(server.pass_log).iloc[before:])
    if missing := sorted(set(buckets) - {cost.bucket for cost in costs}):
        raise ValueError(
            f"no calibration batch ran in bucket {missing[0]}: let simultaneous requests share a "
            f"batch (gather_s above 0), or leave out a bucket that another one makes needless"
        )
    run = simulate(requests, costs, policy)
    waited_s = np.array(result["ttfts"]) - run.ttft_s
    constants = Constants(
        costs=costs,
        estimated=estimated_costs(server, buckets),
        client_overhead_s=max(0.0, float(np.median(waited_s))),
        policy=policy,
        fixed_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    constants.frame().to_csv(directory / f"{name}-constants.csv", index=False)
    return constants


def estimated_costs(server: serving.Server, buckets: BucketSet) -> tuple[BucketCost, ...]:
    """What the server's scheduler decides by: the seconds of its warmup."""
    warmed = read_warmup(server.pass_log).set_index("bucket")
    return tuple(
        BucketCost(bucket, *map(float, warmed.loc[str(bucket), ["prefill_s", "decode_s"]]))
        for bucket in buckets
    )


def check(
    server: serving.Server,
    workload: Workload,
    buckets: BucketSet,
    policy: Policy,
    directory: Path,
    name: str,
) -> Check:
    """Fixes the constants, then sends the workload, and simulates it at the times at which the
    client really sent."""
    constants = calibrate(server, buckets, policy, directory, name)
    before = count_passes(server.pass_log)
    # The client counts its duration from the start of the file, we from the first request.
    workload = workload.from_zero()
    measured = serving.replay(server, workload, directory, name)
    passes = read_passes(server.pass_log).iloc[before:].reset_index(drop=True)
    sent = as_sent(workload, measured["start_times"])
    run = constants.simulate(sent)
    ledger = waste(passes)
    measured |= {
        "spyre_batches": len(ledger),
        "spyre_fill": float(ledger["useful"].sum() / ledger["computed"].sum()),
    }
    simulated = bench_result(run, detailed=True)
    return Check(name, constants, sent, measured, simulated, run, passes)


def pass_costs(passes: pd.DataFrame) -> tuple[BucketCost, ...]:
    """What a pass of each bucket takes in a server: the median time from its start to the start of
    the next pass of its batch, so that vLLM's own time is in it. The last pass of a batch, after
    which the engine may be idle, is left out. In ascending order of bucket.

    Raises ValueError for a bucket with no prefill or decode pass to take the time of.
    """
    medians = _slots(passes).groupby(["bucket", "kind"])["slot_s"].median()
    costs = []
    for name in sorted(passes["bucket"].unique(), key=Bucket.parse):
        if any((name, kind) not in medians for kind in ("prefill", "decode")):
            raise ValueError(
                f"bucket {name} ran no batch of three passes or more: calibrate on a workload with "
                f"longer outputs in it"
            )
        costs.append(
            BucketCost(Bucket.parse(name), medians[name, "prefill"], medians[name, "decode"])
        )
    return tuple(costs)


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
    slots = _slots(check.passes)
    constant_s = {
        (str(cost.bucket), kind): seconds
        for cost in check.constants.costs
        for kind, seconds in (("prefill", cost.prefill_s), ("decode", cost.decode_s))
    }
    expected_s = [constant_s[key] for key in zip(slots["bucket"], slots["kind"], strict=True)]
    columns = slots[["bucket", "kind", "slot_s"]]
    return columns.assign(run=check.name, error=slots["slot_s"] / expected_s - 1)


def _slots(passes: pd.DataFrame) -> pd.DataFrame:
    """The passes that another one of the same batch follows, with the seconds from start to
    start."""
    following = passes.shift(-1)
    slots = passes.assign(slot_s=following["start_s"] - passes["start_s"])
    return slots[passes["batch"] == following["batch"]]
