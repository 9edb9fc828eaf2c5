"""P5 to P95 of a run's figures: the run replicated with what its passes could take instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from spyre_bench.cost.spread import BAND, Draw, Spread
from spyre_bench.metrics.vllm_json import bench_result
from spyre_bench.simulate.result import SimulatedRun

REPLICATIONS = 100
LOW, HIGH = (f"p{share}" for share in BAND)


@dataclass(frozen=True, eq=False)
class Intervals:
    """The figures of every replication of a run, and the spread that they were drawn from."""

    spread: Spread
    seed: int
    replications: pd.DataFrame  # a row each, a column per figure

    def __getitem__(self, figure: str) -> tuple[float, float]:
        """P5 and P95. Raises KeyError for an unknown figure."""
        low, high = _quantiles(self.replications[figure].to_numpy())
        return float(low), float(high)

    def frame(self) -> pd.DataFrame:
        """One row per figure: p5, p50 and p95."""
        middle = self.replications.median()
        low, high = _quantiles(self.replications.to_numpy())
        return pd.DataFrame({LOW: low, "p50": middle, HIGH: high}, index=self.replications.columns)

    def said(self) -> dict[str, Any]:
        """For a result file: where it is from, and P5 and P95 of every figure."""
        low, high = (values.tolist() for values in _quantiles(self.replications.to_numpy()))
        ends = zip(self.replications.columns, low, high, strict=True)
        return {
            "of": self.spread.source,
            "replications": len(self.replications),
            "seed": self.seed,
            f"{LOW}_to_{HIGH}": {name: [below, above] for name, below, above in ends},
        }


def replicate(
    serve: Callable[[Draw], SimulatedRun],
    spread: Spread,
    *,
    replications: int = REPLICATIONS,
    seed: int = 0,
    figures: Callable[[SimulatedRun], Mapping[str, float]] | None = None,
) -> Intervals:
    """Serves the same requests once for each draw. `figures` says what of a run; by default every
    number of its result (`vllm_json.bench_result`). Raises ValueError for too few replications."""
    figures = figures or numbers
    rows = [figures(serve(draw)) for draw in spread.draws(replications, seed)]
    return Intervals(spread, seed, pd.DataFrame(rows).astype(float))


def numbers(run: SimulatedRun) -> dict[str, float]:
    """Every number of a run's result that a replication may change."""
    return {
        name: float(value)
        for name, value in bench_result(run, percentiles=(50, 90, 95, 99)).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _quantiles(values: np.ndarray) -> np.ndarray:
    """P5 and P95 of each column: those that a further value is beyond in one of ten, whatever the
    distribution (Weibull's plotting position). Figures that are the same throughout stay so."""
    return np.asarray(np.percentile(values, BAND, axis=0, method="weibull"))
