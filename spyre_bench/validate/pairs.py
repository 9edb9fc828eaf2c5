"""One set of shapes against another by the clock: the same requests on a server of each in turn,
and the saving of device seconds as it was predicted before the first pair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spyre_bench.cost.spread import BAND
from spyre_bench.metrics.intervals import replicate
from spyre_bench.metrics.summary import busy_s
from spyre_bench.shape_set import ShapeSet
from spyre_bench.validate import server as serving
from spyre_bench.validate.check import OTHERS, calibrate
from spyre_bench.validate.continuous import ContinuousHost, StepConstants
from spyre_bench.validate.continuous import busy_s as served_s
from spyre_bench.validate.hosts import Host
from spyre_bench.validate.registered import (
    Prediction,
    said_of_constants,
    said_of_requests,
    write_down,
)
from spyre_bench.workload.workload import Workload

SAVING = "saving"  # of the busy seconds of the first, by the second
BETTER = 0.9  # of the pairs


@dataclass(frozen=True)
class Trial:
    """Servers of two sets of shapes, both up, the requests that they get in turn, and what was
    predicted of these."""

    hosts: Mapping[str, Host]
    workload: Workload
    predicted: Prediction

    def pairs(self, count: int) -> Iterator[dict]:
        return pairs(self.hosts, self.workload, count)


@contextmanager
def on_servers(
    model_directory: Path,
    sets: Mapping[str, ShapeSet],
    requests: Workload,
    directory: Path,
    *,
    load: float = 0.7,
    seed: int = 0,
    **setting: Any,
) -> Iterator[Trial]:
    """A server of each set until the block ends, with the saving registered from constants that a
    few other requests gave. The requests come at `load`, a share of what the first set serves;
    `setting` is of both servers."""
    with ExitStack() as stack:
        hosts = {}
        for name, shapes in sets.items():
            folder = directory / name.replace(" ", "-")
            server = serving.serve(
                model_directory, None, folder, replays=True, **(shapes.setting | setting)
            )
            hosts[name] = ContinuousHost(stack.enter_context(server), folder)
        constants = {name: calibrate(host, host.directory, "first") for name, host in hosts.items()}
        capacity_rps = next(iter(constants.values())).capacity_rps(requests)
        faster = load * capacity_rps / requests.requests_per_s
        workload = requests.scaled(rate=faster).from_zero()
        predicted = register_saving(constants, workload, directory, seed=seed)
        yield Trial(hosts, workload, predicted)


def prove(
    model_directory: Path,
    sets: Mapping[str, ShapeSet],
    requests: Workload,
    directory: Path,
    count: int,
    **setting: Any,
) -> Verdict:
    """So many pairs on servers of these sets, as `on_servers` has them."""
    with on_servers(model_directory, sets, requests, directory, **setting) as trial:
        return Verdict(pd.DataFrame(trial.pairs(count)), trial.predicted)


def register_saving(
    constants: Mapping[str, StepConstants], workload: Workload, directory: Path, *, seed: int = 0
) -> Prediction:
    """Predicts, from the constants of the two by name, what the second saves of the busy seconds of
    the first, and writes it down. Passes of the two are drawn independently of each other; the
    machine's drift is in it once, from one calibration to the other: runs that take turns share
    it."""
    base, new = constants.values()
    assert new.spread is not None, "they were calibrated"
    alike = replace(new, spread=replace(new.spread, pace=0.0))
    point = _saving(*(busy_s(it.simulate(workload)) for it in (base, new)))
    drawn = _saving(_busy_s(base, workload, seed), _busy_s(alike, workload, seed + 1))
    low, high = np.percentile(drawn, BAND, method="weibull").tolist()
    said = {
        "requests": said_of_requests(workload),
        "constants": {name: said_of_constants(it) for name, it in constants.items()},
    }
    return write_down("pairs", said, {SAVING: (point, (low, high))}, directory)


def pairs(hosts: Mapping[str, Host], workload: Workload, count: int) -> Iterator[dict]:
    """So many pairs of runs, each beginning with the other host than the one before: pair, busy
    seconds and mean E2EL of each by its name, the saving of both by the second, and `disturbed`
    where others kept the machine busy meanwhile."""
    for number in range(count):
        order = list(hosts) if number % 2 else list(hosts)[::-1]
        served = {name: hosts[name].serve(workload, f"pair {number}") for name in order}
        taken_s = {name: served_s(served[name].passes) for name in hosts}
        e2el_s = {name: float(np.mean(served[name].result["latencies"])) for name in hosts}
        yield {
            "pair": number,
            **{f"{name} busy_s": seconds for name, seconds in taken_s.items()},
            **{f"{name} e2el_s": seconds for name, seconds in e2el_s.items()},
            SAVING: _saving(*taken_s.values()),
            f"e2el_{SAVING}": _saving(*e2el_s.values()),
            "disturbed": max(it.others for it in served.values()) > OTHERS,
        }


@dataclass(frozen=True)
class Verdict:
    """What the pairs come to that nothing disturbed; `frame` has a row for each of `pairs`."""

    frame: pd.DataFrame
    predicted: Prediction

    @property
    def savings(self) -> pd.Series:
        return self.frame.loc[~self.frame["disturbed"], SAVING]

    @property
    def pairs(self) -> int:
        return len(self.savings)

    @property
    def better(self) -> int:
        return int((self.savings > 0).sum())

    @property
    def saving(self) -> float:
        """In the mean; nan of none."""
        return float(self.savings.mean())

    @property
    def is_better(self) -> bool | None:
        """In nine of ten pairs; None where all were disturbed."""
        return self.better >= BETTER * self.pairs if self.pairs else None

    @property
    def is_as_predicted(self) -> bool | None:
        low, _, high = self.registered
        return low <= self.saving <= high if self.pairs else None

    @property
    def registered(self) -> tuple[float, float, float]:
        """Low, point, high."""
        low, high = self.predicted.intervals[SAVING]
        return low, self.predicted.points[SAVING], high

    def __str__(self) -> str:
        low, point, high = self.registered
        said = f"{point:.1%} predicted ({low:.1%} to {high:.1%})"
        if not self.pairs:
            return f"every pair was disturbed; {said}"
        better = f"{self.better} of {self.pairs} pairs better"
        return f"{better}, {self.saving:.1%} of the device seconds saved; {said}"

    def aims(self) -> Iterator[tuple[str, bool, str]]:
        """Name, whether it is met, and the evidence; none where every pair was disturbed."""
        if self.pairs:
            yield "advised shapes are better in nine of ten pairs", bool(self.is_better), str(self)
            yield "they save what was registered", bool(self.is_as_predicted), str(self)


def _busy_s(constants: StepConstants, workload: Workload, seed: int) -> np.ndarray:
    """float64 [replications]"""
    assert constants.spread is not None, "they were calibrated"
    drawn = replicate(
        lambda draw: constants.simulate(workload, draw),
        constants.spread,
        seed=seed,
        figures=lambda run: {"busy_s": busy_s(run)},
    )
    return drawn.replications["busy_s"].to_numpy()


def _saving(base, new):
    return 1 - new / base
