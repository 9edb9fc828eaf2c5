"""One set of shapes against another by the clock: the same requests on a server of each in turn,
and the saving of device seconds as it was predicted before the first pair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from spyre_bench.cost.spread import BAND
from spyre_bench.metrics.intervals import replicate
from spyre_bench.metrics.summary import busy_s
from spyre_bench.validate.check import OTHERS
from spyre_bench.validate.continuous import StepConstants
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
    """What the pairs that nothing disturbed come to."""

    pairs: int
    better: int
    saving: float  # in the mean; nan of none
    predicted: Prediction

    @property
    def is_better(self) -> bool | None:
        """In nine of ten pairs; None where all were disturbed."""
        return self.better >= BETTER * self.pairs if self.pairs else None

    @property
    def is_as_predicted(self) -> bool | None:
        low, high = self.predicted.intervals[SAVING]
        return low <= self.saving <= high if self.pairs else None

    def __str__(self) -> str:
        low, high = self.predicted.intervals[SAVING]
        said = f"{self.predicted.points[SAVING]:.1%} predicted ({low:.1%} to {high:.1%})"
        if not self.pairs:
            return f"every pair was disturbed; {said}"
        better = f"{self.better} of {self.pairs} pairs better"
        return f"{better}, {self.saving:.1%} of the device seconds saved; {said}"


def verdict(frame: pd.DataFrame, predicted: Prediction) -> Verdict:
    """Of the rows of `pairs`."""
    savings = frame.loc[~frame["disturbed"], SAVING]
    return Verdict(len(savings), int((savings > 0).sum()), float(savings.mean()), predicted)


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
