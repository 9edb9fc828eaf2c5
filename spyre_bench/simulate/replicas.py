"""Engines side by side: which of them serves a request. The same for both kinds of batching."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np

MOST = 10_000  # replicas; more is a slip
ROUTERS = ("round_robin", "least_loaded")
REQUESTS_AT_A_TIME = 8192  # requests that exist as Python objects at a time


class Arriving(Protocol):
    @property
    def arrival_s(self) -> float: ...


A = TypeVar("A", bound=Arriving)
C = TypeVar("C", bound=Arriving, contravariant=True)


class Engine(Protocol[C]):
    """One replica: its queue and its clock."""

    def serve(self, requests: Iterator[C], /) -> None:
        """Runs everything, with few of the requests in memory at a time."""
        ...

    def push(self, request: C, /) -> None:
        """Takes a request at its arrival; the clock must have been advanced to there."""
        ...

    def advance(self, until_s: float, /) -> None:
        """Starts everything that starts before `until_s`."""
        ...

    def unfinished(self, now: float, /) -> int:
        """Requests here that have not got their last token by `now`."""
        ...


def require_replicas(replicas: int, router: str, ready_s: float, client_overhead_s: float) -> None:
    """Raises ValueError for a replica count below 1, an unknown router, a negative time."""
    require(replicas >= 1, f"replicas {replicas} is below 1: use 1 or more")
    require(replicas <= MOST, f"replicas {replicas} is above {MOST:,}: use fewer")
    require(router in ROUTERS, f"router {router!r} is not known: use one of {', '.join(ROUTERS)}")
    require(ready_s >= 0, f"ready_s {ready_s} is negative: use 0 for a ready engine")
    require(
        0 <= client_overhead_s < math.inf,
        f"client_overhead_s {client_overhead_s} is negative or endless: use 0",
    )


def serve(
    engines: Sequence[Engine[A]],
    router: str,
    rows: np.ndarray,
    requests: Callable[[np.ndarray], Iterator[A]],
) -> None:
    """Deals the requests of these rows out, and runs the engines until all are served."""
    if router == "least_loaded" and len(engines) > 1:
        _route_to_the_least_loaded(engines, requests(rows))
    else:
        for index, engine in enumerate(engines):
            engine.serve(requests(rows[index :: len(engines)]))


def _route_to_the_least_loaded(engines: Sequence[Engine[A]], requests: Iterator[A]) -> None:
    for request in requests:
        for engine in engines:
            engine.advance(request.arrival_s)
        min(engines, key=lambda engine: engine.unfinished(request.arrival_s)).push(request)
    for engine in engines:
        engine.advance(math.inf)


def ranges(first: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int32, `first[0]`, `first[0] + 1`, ... as many as `lengths[0]`, then those of the next."""
    last = np.cumsum(lengths)
    offset = np.repeat((first - last + lengths).astype(np.int32), lengths)
    return np.arange(len(offset), dtype=np.int32) + offset


def require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
