"""The capacity of a deployment: the largest rate at which most of its requests meet the SLO."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.cost.spread import Draw, steady
from spyre_bench.metrics import latency
from spyre_bench.metrics.bounds import shape_bound_s
from spyre_bench.policy.static import Policy
from spyre_bench.simulate.result import SimulatedRun
from spyre_bench.simulate.static import simulate
from spyre_bench.studies.under_load import at_rate
from spyre_bench.workload.workload import Workload

STEP = 1.02  # from one rate that is tried to the next
LEAST = 1 / 256  # of the rate with full batches: a capacity below counts as 0


@dataclass(frozen=True)
class Service:
    """What every deployment has to do: these requests, within these limits.

    `limits_ms` are on ttft, tpot and e2el; `share` of the requests must be within all of them. The
    workload needs a pattern of arrivals, and `requests_a_card` requests for each card.

    Raises ValueError for no limit, or for a share or a number of requests that cannot be.
    """

    workload: Workload
    limits_ms: Mapping[str, float]
    requests_a_card: int
    policy: Policy = field(default_factory=Policy)
    router: str = "least_loaded"
    share: float = 0.9

    def __post_init__(self) -> None:
        latency.require_limits(self.limits_ms)
        if not self.limits_ms:
            raise ValueError(
                "a capacity needs an SLO: give limits on latency, such as ttft 30000 ms"
            )
        if not 0 < self.share <= 1:
            raise ValueError(f"share {self.share} of the requests is not above 0 and at most 1")
        if self.requests_a_card < 1:
            raise ValueError(f"requests_a_card {self.requests_a_card} is below 1: use 1 or more")

    def requests(self, cards: int) -> Workload:
        """The first requests of the workload, as many per card, so that more cards do not mean
        shorter runs. Raises ValueError where there are fewer."""
        return self.workload.head(self.requests_a_card * cards)

    def replay(
        self,
        cards: int,
        costs: Sequence[BucketCost],
        replicas: int,
        rate_rps: float,
        draw: Draw | None = None,
    ) -> SimulatedRun:
        """The run at a rate in requests/s; with a `draw` passes take what it says."""
        return simulate(
            at_rate(self.requests(cards), rate_rps),
            draw.scaled(costs) if draw else costs,
            self.policy,
            replicas=replicas,
            router=self.router,
            estimated=costs,
            pace=draw.pace if draw else steady,
        )

    def good_share(
        self, cards: int, costs: Sequence[BucketCost], replicas: int, rate_rps: float
    ) -> float:
        """Of all requests, those within every limit; one that no bucket takes is not."""
        run = self.replay(cards, costs, replicas, rate_rps)
        return latency.good_requests(run, self.limits_ms) / len(run.workload)

    def rates(self, cards: int, costs: Sequence[BucketCost], replicas: int) -> np.ndarray:
        """The rates to try, in steps of 2 %: from 1/256 of what full batches would sustain for ever
        to all of it. Empty where no bucket takes a request."""
        requests = self.requests(cards)
        served_s = shape_bound_s(requests, costs) / replicas
        return rates_to(len(requests) / served_s) if served_s else np.zeros(0)

    def capacity_rps(self, cards: int, costs: Sequence[BucketCost], replicas: int) -> float:
        """The largest of the `rates` at which `share` of the requests are within the limits; 0
        where not even the smallest is.

        Found by bisection. The share need not fall with every step of the rate, so this is where it
        crosses: the next rate fails, a few above it might not.
        """
        rates = self.rates(cards, costs, replicas)
        return self.largest(rates, lambda rps: self.good_share(cards, costs, replicas, rps))

    def largest(self, rates: np.ndarray, good_share: Callable[[float], float]) -> float:
        """Of ascending rates, as `capacity_rps` has it."""
        failing = bisect_left(rates, True, key=lambda rps: good_share(rps) < self.share)
        return float(rates[failing - 1]) if failing else 0.0


def rates_to(most_rps: float) -> np.ndarray:
    """In steps of 2 %: from 1/256 of a rate to all of it."""
    tried = 1 + math.ceil(math.log(1 / LEAST, STEP))
    return np.geomspace(LEAST, 1, tried) * most_rps
