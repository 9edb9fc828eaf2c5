"""What a check rests on under static batching: seconds of the passes of each bucket, from a few
full batches of it, and the batches that a pass log has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.cost.spread import Draw, Spread, log_deviation, steady
from spyre_bench.metrics.waste import waste
from spyre_bench.pass_log import count_passes, read_passes, read_warmup
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import Bucket, BucketSet
from spyre_bench.simulate.result import DECODE, KINDS, PREFILL, StaticRun
from spyre_bench.simulate.static import simulate
from spyre_bench.validate.check import Check
from spyre_bench.validate.constants import (
    APART_S,
    DRIFT,
    OF_A_MEDIAN,
    PAUSE_S,
    WEIGHT,
    Constants,
)
from spyre_bench.validate.decisions import Decisions, decisions
from spyre_bench.validate.hosts import LiveHost
from spyre_bench.workload.workload import Workload

SHORT = 3  # calibration batches of each bucket with one decode pass only, beside one full one


@dataclass(frozen=True)
class BatchConstants(Constants):
    """See `Constants`; passes are a frame of `read_passes(..., waits=True)`."""

    costs: tuple[BucketCost, ...]  # seconds of a pass in the server, vLLM's own time included
    estimated: tuple[BucketCost, ...]  # what the server's scheduler decides by, from its warmup
    policy: Policy

    def simulate(self, workload: Workload, draw: Draw | None = None) -> StaticRun:
        return simulate(
            workload,
            draw.scaled(self.costs) if draw else self.costs,
            self.policy,
            client_overhead_s=self.client_overhead_s,
            estimated=self.estimated,
            pace=draw.pace if draw else steady,
        )

    def scaled(self, factor: float) -> Self:
        return replace(self, costs=tuple(cost.scaled((factor, factor)) for cost in self.costs))

    def calibration(self) -> Workload:
        return full_batches(self.costs)

    def taken(self, passes: pd.DataFrame) -> Self:
        """A bucket whose full batch the scheduler would rather run in another one shows no pass of
        a kind: these take as many times as long as the others do. Raises ValueError where requests
        did not share a batch that they should have, as without `gather_s`."""
        timed = self.timed(passes)
        kinds = timed.groupby("bucket")["kind"].nunique()
        whole = kinds.index[kinds == len(KINDS)]
        ran = {it.bucket: it for it in pass_costs(passes[passes["bucket"].isin(whole)])}
        if missing := [cost for cost in self.costs if cost.bucket not in ran]:
            planned = self._timed_shapes(self.calibration())
            if late := [cost for cost in missing if self.costs.index(cost) in planned]:
                raise ValueError(
                    f"bucket {late[0].bucket} ran no batch of three passes or more: let "
                    f"simultaneous requests share a batch (gather_s above 0)"
                )
            longer = (timed["slot_s"] / timed["expected_s"]).groupby(timed["kind"]).median()
            ran |= {cost.bucket: cost.scaled(longer[list(KINDS)].tolist()) for cost in missing}
        costs = tuple(ran[cost.bucket] for cost in self.costs)
        return replace(self, costs=costs, spread=pass_spread(passes, costs))

    def _timed_shapes(self, workload: Workload) -> set[int]:
        """Places of the buckets that a run of it has two decode passes or more in one batch of."""
        passes = self.simulate(workload).passes
        decode = passes.kind == DECODE
        return set(passes.shape[decode & (passes.count >= 2)].tolist())

    def timed(self, passes: pd.DataFrame) -> pd.DataFrame:
        some = slots(passes)
        return some[["bucket", "kind", "slot_s"]].assign(expected_s=expected_s(some, self.costs))

    def busy_s(self, run: StaticRun) -> float:
        seconds = np.array([(cost.prefill_s, cost.decode_s) for cost in self.costs])
        return float(seconds[run.passes.shape, run.passes.kind] @ run.passes.count)

    def decisions(self, passes: pd.DataFrame) -> Decisions:
        return decisions(passes, self.policy, self.estimated)

    def counted(self, passes: pd.DataFrame) -> dict[str, float]:
        ledger = waste(passes)
        fill = float(ledger["useful"].sum() / ledger["computed"].sum())
        return {"spyre_batches": len(ledger), "spyre_fill": fill}

    def began_at(self, passes: pd.DataFrame) -> str:
        return str(passes["measured_at"].min())

    def frame(self) -> pd.DataFrame:
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

    def said(self) -> dict[str, Any]:
        return {"buckets": self.frame().to_dict("records"), "policy": str(self.policy)}


@dataclass(frozen=True)
class StaticHost(LiveHost):
    """A server with these buckets and this policy."""

    buckets: BucketSet
    policy: Policy

    def warmed(self) -> BatchConstants:
        warmed = read_warmup(self.server.pass_log).set_index("bucket")
        costs = tuple(
            BucketCost(bucket, *map(float, warmed.loc[str(bucket), ["prefill_s", "decode_s"]]))
            for bucket in self.buckets
        )
        return BatchConstants(costs, costs, self.policy)

    def count(self) -> int:
        return count_passes(self.server.pass_log)

    def passes(self, since: int = 0) -> pd.DataFrame:
        passes = read_passes(self.server.pass_log, waits=True).iloc[since:]
        return passes.reset_index(drop=True)


def fitting(workload: Workload, buckets: BucketSet) -> Workload:
    """The requests that a bucket takes. Raises ValueError where there is none."""
    fits = np.any([workload.fits(bucket) for bucket in buckets], axis=0)
    return workload.only(
        fits, f"no request of {workload.name} fits the buckets {buckets}: scale it down"
    )


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


def batches_agree(check: Check) -> bool:
    """Whether the server formed exactly the simulated batches, in this order."""
    real = [(bucket, sorted(prompts)) for bucket, prompts in batches_of(check.passes)]
    return real == [(bucket, sorted(prompts)) for bucket, prompts in simulated_batches(check)]


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
                OF_A_MEDIAN * deviations[kind] / math.sqrt(counts.get((str(cost.bucket), kind), 1))
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
