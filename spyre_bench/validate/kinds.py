"""Static and continuous batching measured: a server of each kind in turn, the same requests, and
the simulation of each from constants that a few other requests on it gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.metrics.vllm_json import bench_result
from spyre_bench.pass_log import read_passes
from spyre_bench.policy.static import Policy
from spyre_bench.shape_set import ShapeSet
from spyre_bench.shapes import BucketSet
from spyre_bench.simulate.result import KINDS
from spyre_bench.simulate.static import simulate
from spyre_bench.validate import check, compare
from spyre_bench.validate import server as serving
from spyre_bench.validate.constants import Constants, expected_s, slots
from spyre_bench.validate.continuous import calibrate_steps, check_steps, setting_of
from spyre_bench.validate.decisions import Decisions, decisions
from spyre_bench.validate.step_decisions import logged_decisions
from spyre_bench.workload.workload import Workload

GATHER_S = 0.02  # by which the simultaneous requests of a calibration share their batch
QUEUED = "queued"
PERCENTILES = {"median": 50, "p95": 95}


class Answer(NamedTuple):
    """A run in vLLM's form, with all arrays."""

    measured: dict[str, Any]
    simulated: dict[str, Any]


@dataclass(frozen=True)
class OnServers:
    """`runs` has a row for each kind ("static", "continuous"), run ("queued", or its load) and
    source ("measured", "simulated"): tokens_per_s, and median and P95 of TTFT, TPOT and E2EL in
    seconds. `requests` are those of `compare.by_request`, with kind and run. `decisions` say, by
    kind, whether the simulator takes a server's steps when it is fed with its passes."""

    runs: pd.DataFrame
    requests: pd.DataFrame
    decisions: Mapping[str, Decisions]

    @property
    def gains(self) -> pd.Series:
        """Tokens/s of continuous over static batching with everybody queued, by source."""
        rows = self.runs[self.runs["run"] == QUEUED]
        by_kind = rows.pivot(index="source", columns="kind", values="tokens_per_s")
        return by_kind["continuous"] / by_kind["static"]

    @property
    def e2el_error(self) -> float:
        """Of a request, without its sign, in the median of all: 0.05 is 5 %."""
        return float(self.requests["error_e2el"].abs().median())

    @property
    def said(self) -> str:
        """What was measured beside what was simulated, in words."""
        gains = self.gains
        return (
            f"measured, continuous batching serves {gains['measured']:.2f} times the tokens/s of "
            f"static batching, simulated {gains['simulated']:.2f} times"
        )


def on_servers(
    model_directory: Path,
    buckets: BucketSet,
    shapes: ShapeSet,
    workload: Workload,
    directory: Path,
    *,
    policy: str = "best_fit",
    load: float = 0.5,
    seed: int = 0,
    **setting: Any,
) -> OnServers:
    """Serves the workload with everybody queued, then at `load`, a share of what the static server
    served of it; `setting` is of both servers. Files go into a folder of each kind."""
    hosts = {
        "static": _Static(buckets, Policy(policy, gather_s=GATHER_S)),
        "continuous": _Continuous(shapes),
    }
    sent = {QUEUED: replace(workload, arrival_s=check.APART_S * np.arange(len(workload)))}
    runs, requests, decided = [], [], {}
    for kind, host in hosts.items():
        folder = directory / kind
        own = host.setting | setting
        with serving.serve(model_directory, host.buckets, folder, **own) as server:
            host.begin(server, folder)
            results = {QUEUED: host.answer(sent[QUEUED], QUEUED)}
            if len(sent) == 1:
                rate_rps = check.measured_figures(results[QUEUED].measured)["request_throughput"]
                sent[f"load {load:g}"] = workload.with_arrivals(
                    f"poisson:{load * rate_rps}", np.random.default_rng(seed)
                )
            for name in list(sent)[1:]:
                results[name] = host.answer(sent[name], name)
            decided[kind] = host.decisions()
        for name, result in results.items():
            told = {"kind": kind, "run": name}
            runs += [told | {"source": of} | figures(it) for of, it in result._asdict().items()]
            requests.append(compare.by_request(*result).assign(**told))
    return OnServers(pd.DataFrame(runs), pd.concat(requests, ignore_index=True), decided)


def figures(result: Mapping[str, Any]) -> dict[str, float]:
    """tokens_per_s, from the first request to the last token, and median and P95 of TTFT, TPOT and
    E2EL in seconds, of a result with all arrays."""
    outputs, ttft_s, e2el_s, sent_s = (
        np.array(result[name], dtype=float)
        for name in ("output_lens", "ttfts", "latencies", "start_times")
    )
    further = outputs > 1
    tpot_s = (e2el_s - ttft_s)[further] / (outputs[further] - 1)
    seconds = {"ttft": ttft_s, "tpot": tpot_s, "e2el": e2el_s}
    return {
        "tokens_per_s": float(outputs.sum() / ((sent_s + e2el_s).max() - sent_s.min())),
        **{
            f"{of}_{metric}_s": float(np.percentile(values, share)) if values.size else np.nan
            for metric, values in seconds.items()
            for of, share in PERCENTILES.items()
        },
    }


def as_taken(passes: pd.DataFrame, estimated: Sequence[BucketCost]) -> tuple[BucketCost, ...]:
    """The costs times how much longer the passes took, from start to start: of each bucket in the
    median, and of all of a kind where none of its own ran, since another bucket was cheaper."""
    some = slots(passes)
    longer = some.assign(ratio=some["slot_s"] / expected_s(some, estimated))
    by_kind = longer.groupby("kind")["ratio"].median()
    by_pass = longer.groupby(["bucket", "kind"])["ratio"].median()
    return tuple(
        cost.scaled(
            [float(by_pass.get((str(cost.bucket), kind), by_kind.get(kind, 1.0))) for kind in KINDS]
        )
        for cost in estimated
    )


class _Host(Protocol):
    """A kind of batching: how its server is set, and what comes of it."""

    buckets: BucketSet | None

    @property
    def setting(self) -> dict[str, Any]: ...

    def begin(self, server: serving.Server, folder: Path) -> None:
        """Takes the constants."""
        ...

    def answer(self, workload: Workload, name: str) -> Answer: ...

    def decisions(self) -> Decisions: ...


class _Static(_Host):
    buckets: BucketSet

    def __init__(self, buckets: BucketSet, policy: Policy):
        self.buckets, self.policy = buckets, policy

    @property
    def setting(self) -> dict[str, Any]:
        return {"policy": self.policy.name, "gather_s": self.policy.gather_s}

    def begin(self, server: serving.Server, folder: Path) -> None:
        self.host = check.LiveHost(server, folder)
        estimated = self.host.estimated(self.buckets)
        workload = check.full_batches(estimated)
        served = self.host.serve(workload, "calibration")
        costs = as_taken(served.passes, estimated)
        waited_s = np.array(served.result["ttfts"]) - simulate(workload, costs, self.policy).ttft_s
        fixed_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.constants = Constants(
            costs, estimated, max(0.0, float(np.median(waited_s))), self.policy, fixed_at
        )

    def answer(self, workload: Workload, name: str) -> Answer:
        measured = self.host.serve(workload.from_zero(), name).result
        sent = check.as_sent(workload, measured["start_times"])
        return Answer(measured, bench_result(self.constants.simulate(sent), detailed=True))

    def decisions(self) -> Decisions:
        passes = read_passes(self.host.server.pass_log, waits=True)
        return decisions(passes, self.policy, self.constants.estimated)


class _Continuous(_Host):
    buckets = None

    def __init__(self, shapes: ShapeSet):
        self.shapes = shapes

    @property
    def setting(self) -> dict[str, Any]:
        return setting_of(self.shapes)

    def begin(self, server: serving.Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.constants = calibrate_steps(server, folder)

    def answer(self, workload: Workload, name: str) -> Answer:
        done = check_steps(self.server, self.constants, workload, self.folder, name)
        return Answer(done.measured, done.simulated)

    def decisions(self) -> Decisions:
        return logged_decisions(self.server.pass_log)
