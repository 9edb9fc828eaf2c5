"""Static and continuous batching measured: a server of each kind in turn, the same requests, and
for each run a check, from constants that a few other requests on that server gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spyre_bench.policy.static import Policy
from spyre_bench.shape_set import ShapeSet
from spyre_bench.shapes import BucketSet
from spyre_bench.validate import server as serving
from spyre_bench.validate.check import Check, calibrate, compared, measured_figures
from spyre_bench.validate.constants import APART_S, Constants
from spyre_bench.validate.continuous import ContinuousHost
from spyre_bench.validate.hosts import LiveHost
from spyre_bench.validate.registered import register
from spyre_bench.validate.static import StaticHost
from spyre_bench.workload.workload import Workload

GATHER_S = 0.02  # by which the simultaneous requests of a calibration share their batch
QUEUED = "queued"
PERCENTILES = {"median": 50, "p95": 95}
SOURCES = ("measured", "simulated")


@dataclass(frozen=True)
class OnServers:
    """Of each kind ("static", "continuous") its checks: everybody queued, then under load."""

    checks: Mapping[str, tuple[Check, ...]]

    @property
    def runs(self) -> pd.DataFrame:
        """A row for each kind, run and source ("measured", "simulated"): tokens_per_s, and median
        and P95 of TTFT, TPOT and E2EL in seconds."""
        return pd.DataFrame(
            {"kind": kind, "run": check.name, "source": of} | figures(getattr(check, of))
            for kind, some in self.checks.items()
            for check in some
            for of in SOURCES
        )

    def aims(self) -> Iterator[tuple[str, bool, str]]:
        """Of each kind, whether the simulator decides as the server did, fed with its passes: name,
        whether it does, and the evidence."""
        for kind, some in self.checks.items():
            decided = [check.decisions() for check in some]
            name = f"{kind}: the simulator decides as the server"
            yield name, all(it.agree for it in decided), "; ".join(map(str, decided))

    @property
    def gains(self) -> pd.Series:
        """Tokens/s of continuous over static batching with everybody queued, by source."""
        rows = self.runs[self.runs["run"] == QUEUED]
        by_kind = rows.pivot(index="source", columns="kind", values="tokens_per_s")
        return by_kind["continuous"] / by_kind["static"]

    @property
    def e2el_error(self) -> float:
        """Of a request, without its sign, in the median of all: 0.05 is 5 %."""
        every = pd.concat(check.by_request() for some in self.checks.values() for check in some)
        return float(every["error_e2el"].abs().median())

    def __str__(self) -> str:
        """What was measured beside what was simulated."""
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
    load: float = 0.8,
    seed: int = 0,
    **setting: Any,
) -> OnServers:
    """Serves the workload with everybody queued, then at `load`, a share of what the static server
    served of it; `setting` is of both servers. Files go into a folder of each kind."""
    static = Policy(policy, gather_s=GATHER_S)
    hosts: dict[str, Callable[[serving.Server, Path], LiveHost]] = {
        "static": lambda server, folder: StaticHost(server, folder, buckets, static),
        "continuous": ContinuousHost,
    }
    own = {
        "static": {"policy": static.name, "gather_s": static.gather_s},
        "continuous": shapes.setting,
    }
    sent = {QUEUED: replace(workload, arrival_s=APART_S * np.arange(len(workload)))}
    done = {}
    for kind, host in hosts.items():
        folder = directory / kind
        compiled = buckets if kind == "static" else None
        with serving.serve(
            model_directory, compiled, folder, replays=True, **(own[kind] | setting)
        ) as server:
            engine = host(server, folder)
            constants = calibrate(engine, folder, "first")
            found = [_check(engine, constants, QUEUED, sent[QUEUED], folder, seed)]
            if len(sent) == 1:
                rate_rps = measured_figures(found[0].measured)["request_throughput"]
                rng = np.random.default_rng(seed)
                sent[f"load {load:g}"] = workload.with_arrivals(f"poisson:{load * rate_rps}", rng)
            found += [
                _check(engine, constants, name, sent[name], folder, seed) for name in list(sent)[1:]
            ]
        done[kind] = tuple(found)
    return OnServers(done)


def _check(
    host: LiveHost, constants: Constants, name: str, workload: Workload, folder: Path, seed: int
) -> Check:
    """Registered as `Checks` has it; no second calibration follows, which would take as long as the
    run: nobody asks here whether the machine changed."""
    workload = workload.from_zero()
    prediction = register(name, constants, workload, folder, seed=seed)
    return compared(name, constants, workload, host.serve(workload, name), prediction, constants)


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
