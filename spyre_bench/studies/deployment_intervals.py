"""Deployments on cards that nobody measured: P5 to P95 of what they serve at one rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.cost.spread import Draw
from spyre_bench.metrics.intervals import replicate
from spyre_bench.simulate.result import SimulatedRun
from spyre_bench.studies.capacity import Service
from spyre_bench.studies.deployments import Deployment, run_figures

SHOWN = ("goodput_rps_a_card", "median_ttft_s", "p99_ttft_s")


def intervals(
    deployments: Iterable[Deployment],
    service: Service,
    rate_rps_a_card: float,
    *,
    seed: int = 0,
    replications: int = 40,
) -> pd.DataFrame:
    """One row per deployment and figure, all at the same rate per card, each with the set of
    buckets that has most goodput at the nominal values: deployment, figure, low, point and high, P5
    to P95 over cards between the ends of their parameters. Refused deployments, and those that
    serve nobody, are left out; at a rate of 0 all are."""
    rows = [
        row
        for deployment in deployments
        if rate_rps_a_card and not deployment.refused
        for row in _of(deployment, service, rate_rps_a_card * deployment.cards, seed, replications)
    ]
    return pd.DataFrame(rows, columns=["deployment", "figure", "low", "point", "high"])


def _of(
    deployment: Deployment, service: Service, rate_rps: float, seed: int, replications: int
) -> Iterator[tuple[Any, ...]]:
    def serve(costs: Sequence[BucketCost], draw: Draw | None = None) -> SimulatedRun:
        return service.replay(deployment.cards, costs, deployment.replicas, rate_rps, draw)

    def figures(run: SimulatedRun) -> dict[str, float]:
        return run_figures(run, deployment.cards, service.limits_ms)

    points, costs = max(
        ((figures(serve(costs)), costs) for costs in deployment.costs()),
        key=lambda pair: pair[0]["goodput_rps"],
    )
    spread = deployment.cost.spread(costs) if deployment.cost else None
    if spread is None or SHOWN[-1] not in points:
        return
    drawn = replicate(
        lambda draw: serve(costs, draw),
        spread,
        replications=replications,
        seed=seed,
        figures=figures,
    )
    for figure in SHOWN:
        low, high = drawn[figure]
        yield deployment.label, figure, low, points[figure], high
