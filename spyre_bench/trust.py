"""How far the simulator is from a real server: constants taken in one run, held against others.

The constants are what a pass of each bucket takes in the server and what a client waits beyond the
engine. They are fixed by `calibrate` and do not change afterwards; `check` replays other requests,
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

from spyre_bench import serving, validate
from spyre_bench.batching import Policy
from spyre_bench.bench_json import bench_result
from spyre_bench.cost import BucketCost
from spyre_bench.server_log import read_passes, read_warmup, waste
from spyre_bench.shapes import Bucket, BucketSet
from spyre_bench.simulate import Trace, simulate
from spyre_bench.workload import Workload

LONE = 3  # requests of each bucket that the client's overhead is taken from
PAUSE_S = 0.3  # between the end of one and the next, and after the first of a queued run
APART_S = 0.01  # of requests that queue up, so that they keep their order on the way


@dataclass(frozen=True)
class Constants:
    """What the simulation of a server rests on."""

    costs: tuple[BucketCost, ...]  # seconds of a pass in the server, vLLM's own time included
    believed: tuple[BucketCost, ...]  # what the server's scheduler decides by, from its warmup
    client_overhead_s: float
    policy: Policy
    fixed_at: str  # ISO 8601, UTC

    def frame(self) -> pd.DataFrame:
        """One row a bucket."""
        return pd.DataFrame(
            {
                "bucket": [str(cost.bucket) for cost in self.costs],
                "prefill_s": [cost.prefill_s for cost in self.costs],
                "decode_s": [cost.decode_s for cost in self.costs],
                "believed_prefill_s": [cost.prefill_s for cost in self.believed],
                "believed_decode_s": [cost.decode_s for cost in self.believed],
                "client_overhead_s": self.client_overhead_s,
                "measured_at": self.fixed_at,
            }
        )

    def simulate(self, workload: Workload) -> Trace:
        return simulate(
            workload, self.costs, self.policy,
            client_overhead_s=self.client_overhead_s, believed=self.believed,
        )  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One run of the real server and its simulation."""

    name: str
    workload: Workload  # as it was sent, at the times at which the client really sent
    measured: dict[str, Any]
    simulated: dict[str, Any]
    trace: Trace
    passes: pd.DataFrame

    def compare(self) -> pd.DataFrame:
        """See `validate.compare`, with the name of the run."""
        return validate.compare(self.measured, self.simulated).assign(run=self.name)

    def by_request(self) -> pd.DataFrame:
        """See `validate.by_request`, with the name of the run."""
        return validate.by_request(self.measured, self.simulated).assign(run=self.name)

    @property
    def batches_agree(self) -> bool:
        """Whether the server formed exactly the simulated batches, in this order."""
        real = [(bucket, sorted(prompts)) for bucket, prompts in batches_of(self.passes)]
        return real == [(bucket, sorted(prompts)) for bucket, prompts in simulated_batches(self)]


def calibrate(
    server: serving.Server, workload: Workload, buckets: BucketSet, policy: Policy, directory: Path
) -> Constants:
    """Two runs: the workload all at once, for the seconds of full batches, then lone requests on
    an idle server, for what a client waits beyond the engine."""
    crowd = queued(workload, buckets)
    serving.replay(server, crowd, directory, "calibration-crowd")
    crowd_passes = read_passes(server.pass_log)
    costs = pass_costs(crowd_passes)
    if missing := [str(b) for b in buckets if b not in [cost.bucket for cost in costs]]:
        raise ValueError(f"the calibration ran no batch in {missing[0]}: give it more requests")
    alone = lone(costs)
    result = serving.replay(server, alone, directory, "calibration-lone")
    trace = simulate(alone, costs, policy)
    waited_s = np.array(result["ttfts"]) - (trace.first_token_s - alone.arrival_s)
    warmed = read_warmup(server.pass_log).set_index("bucket")
    return Constants(
        costs=costs,
        believed=tuple(
            BucketCost(c.bucket, *warmed.loc[str(c.bucket), ["prefill_s", "decode_s"]])
            for c in costs
        ),
        client_overhead_s=max(0.0, float(np.median(waited_s))),
        policy=policy,
        fixed_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


def check(
    server: serving.Server, constants: Constants, workload: Workload, directory: Path, name: str
) -> Check:
    """Sends the workload, and simulates it at the times at which the client really sent."""
    before = len(read_passes(server.pass_log))
    measured = serving.replay(server, workload, directory, name)
    passes = read_passes(server.pass_log).iloc[before:].reset_index(drop=True)
    sent = as_sent(workload, measured["start_times"])
    trace = constants.simulate(sent)
    ledger = waste(passes)
    measured |= {
        "spyre_batches": len(ledger),
        "spyre_fill": float(ledger["useful"].sum() / ledger["computed"].sum()),
    }
    simulated = bench_result(trace, detailed=True)
    return Check(name, sent, measured, simulated, trace, passes)


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
                f"longer answers in it"
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


def lone(costs: Sequence[BucketCost]) -> Workload:
    """A few full-length requests of each bucket, each sent when the one before is done."""
    buckets = [cost.bucket for cost in costs for _ in range(LONE)]
    seconds = [
        cost.batch_s(cost.bucket.new_tokens) + PAUSE_S for cost in costs for _ in range(LONE)
    ]
    output_tokens = np.array([bucket.new_tokens for bucket in buckets])
    return Workload(
        "lone",
        np.concatenate([[0.0], np.cumsum(seconds)[:-1]]),
        np.array([bucket.prompt_length for bucket in buckets]),
        output_tokens,
        output_tokens,
    )


def as_sent(workload: Workload, start_times: Sequence[float]) -> Workload:
    """The workload at the times of the client's own clock; those that were sent out of order by
    a hair count as sent together."""
    arrival_s = np.maximum.accumulate(np.asarray(start_times) - np.min(start_times))
    return Workload(
        workload.name, arrival_s, workload.prompt_tokens, workload.output_tokens,
        workload.max_tokens,
    )  # fmt: skip


def batches_of(passes: pd.DataFrame) -> list[tuple[str, list[int]]]:
    """Each batch of a pass log in order: its bucket and the prompt lengths of its rows."""
    starts = passes[passes["kind"] == "prefill"]
    return list(zip(starts["bucket"], starts["prompt_tokens"], strict=True))


def simulated_batches(check: Check) -> list[tuple[str, list[int]]]:
    """The same of the simulated run."""
    trace = check.trace
    return [
        (str(trace.costs[bucket].bucket), check.workload.prompt_tokens[trace.batch == n].tolist())
        for n, bucket in enumerate(trace.batch_bucket)
    ]


def pass_errors(check: Check, constants: Constants) -> pd.DataFrame:
    """One row a pass that another one of its batch follows: run, bucket, kind, slot_s (from its
    start to the start of the next one) and error, slot_s over the constant less 1."""
    slots = _slots(check.passes)
    constant_s = {
        (str(cost.bucket), kind): seconds
        for cost in constants.costs
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
