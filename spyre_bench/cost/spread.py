"""How far the passes of an engine may be from their costs, and draws of what they could take.

A cost is one number; a run on a machine is another one each time. What differs is drawn in three
parts: each cost by itself (it was taken from so many passes), the machine's pace (all passes of a
run together), and each batch by itself. All are of the logarithm: 0.05 is 5 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import numpy as np

BAND = (5, 95)
"""The percentiles that an interval has for its ends."""
Z = 1.6448536269514722
"""Standard deviations from the median of a normal distribution to its P95."""
IQR = 1.3489795003921634
"""Standard deviations in the interquartile range of a normal distribution."""
AHEAD = 256  # batches whose pace is drawn at a time


class Scalable(Protocol):
    """The cost of a shape."""

    def scaled(self: C, factors: Sequence[float]) -> C:
        """With passes that take so many times as long, a factor for each kind; prefill first."""
        ...


C = TypeVar("C", bound=Scalable)


Pace: TypeAlias = Callable[[float], tuple[float, float]]
"""How many times its cost a prefill and a decode pass of a batch take, by when it starts; asked
once for each batch, in the order in which they are formed."""


def steady(start_s: float) -> tuple[float, float]:
    """Every pass takes its cost."""
    return 1.0, 1.0


@dataclass(frozen=True)
class Draw:
    """One thing that an engine's passes could take."""

    factors: np.ndarray  # float64 [shapes, kinds], over each cost; prefill first
    pace: Pace

    def scaled(self, costs: Sequence[C]) -> tuple[C, ...]:
        """The costs of the same shapes, as drawn."""
        pairs = zip(costs, self.factors.tolist(), strict=True)
        return tuple(cost.scaled(factors) for cost, factors in pairs)


@dataclass(frozen=True, eq=False)
class Spread:
    """How far passes may be from the costs of some shapes. Deviations are standard deviations of
    the logarithm; those below and above a cost may differ."""

    source: str  # in words: what they were taken from
    # float64 [shapes, kinds], of each cost by itself; prefill first, a paged shape is of one kind
    below: np.ndarray
    above: np.ndarray  # float64 [shapes, kinds]
    together: bool = False  # whether all costs are off the same way, as at the ends of a card
    pace: float = 0.0  # of the machine, in all passes of a run alike
    freedom: float = np.inf  # degrees of freedom behind `pace`: of Student's t
    batch: tuple[float, float] = (0.0, 0.0)  # from batch to batch: prefill, decode

    def draws(self, replications: int, seed: int) -> Iterator[Draw]:
        """So many, the same for the same seed. Raises ValueError for fewer than 20, of which no
        P5 can be told."""
        least = 100 // BAND[0]
        if not replications >= least:
            raise ValueError(
                f"replications {replications} is below {least}: that tells no P{BAND[0]} from the "
                f"least of them; use {least} or more"
            )
        for stream in np.random.default_rng(seed).spawn(replications):
            yield Draw(self._factors(stream), self._pace(stream))

    def _factors(self, rng: np.random.Generator) -> np.ndarray:
        off = rng.standard_normal() if self.together else rng.standard_normal(self.below.shape)
        by_itself = off * np.where(np.less(off, 0), self.below, self.above)
        machine = rng.standard_normal()
        if np.isfinite(self.freedom):
            machine /= np.sqrt(rng.chisquare(self.freedom) / self.freedom)
        return np.asarray(np.exp(by_itself + self.pace * machine))

    def _pace(self, rng: np.random.Generator) -> Pace:
        batches = self._batches(rng)
        return (lambda start_s: next(batches)) if any(self.batch) else steady

    def _batches(self, rng: np.random.Generator) -> Iterator[tuple[float, float]]:
        while True:
            drawn = np.exp(rng.standard_normal((AHEAD, 2)) * self.batch)
            yield from map(tuple, drawn.tolist())


def log_deviation(values: np.ndarray) -> float:
    """The standard deviation of the logarithm as the interquartile range has it, which a few values
    far off do not change; 0 of fewer than two."""
    if len(values) < 2:
        return 0.0
    low, high = np.percentile(np.log(values), [25, 75])
    return float(high - low) / IQR


def learned(prior: float, weight: float, seen: Sequence[float]) -> tuple[float, float]:
    """The deviation of something around 0 and its degrees of freedom, from a `prior` that counts as
    `weight` observations and from what was `seen`: the posterior predictive of a normal
    distribution with a scaled inverse chi-squared prior."""
    freedom = weight + len(seen)
    return float(np.sqrt((weight * prior**2 + np.square(seen).sum()) / freedom)), freedom
