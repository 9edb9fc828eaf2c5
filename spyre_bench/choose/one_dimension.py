"""Sizes to compile in one dimension, exactly: widths of decode steps, or lengths of prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Optimum:
    """The best sizes for each number of them, k = 1 first."""

    boundaries: tuple[tuple[int, ...], ...]  # () where that few cannot hold what must be in it
    cost: tuple[float, ...]  # sum over what is padded of the cost of its boundary

    def __getitem__(self, k: int) -> tuple[int, ...]:
        """The best k boundaries."""
        if not 1 <= k <= len(self.boundaries):
            raise ValueError(
                f"k {k} is not from 1 to {len(self.boundaries)}, for which this was solved"
            )
        return self.boundaries[k - 1]


@dataclass(frozen=True, eq=False)
class Demand:
    """Which sizes are needed and how often: distinct, ascending, 1 or more. `Demand.of` makes it of
    sizes in any order."""

    sizes: np.ndarray  # int64 [n]
    weights: np.ndarray  # float64 [n], above 0: steps, requests or seconds

    @classmethod
    def of(cls, sizes: Any, weights: Any = None) -> Demand:
        """Raises ValueError where nothing is needed, or a size below 1, or by a weight below 0."""
        needed = np.asarray(sizes, dtype=np.int64)
        if not needed.size or needed.min() < 1:
            raise ValueError("sizes are empty or below 1: give what some steps or requests need")
        counts = np.ones(len(needed)) if weights is None else np.asarray(weights, dtype=float)
        if not (np.isfinite(counts).all() and (counts >= 0).all() and counts.any()):
            raise ValueError("weights are below 0, not finite, or all 0: say how often a size runs")
        distinct, place = np.unique(needed, return_inverse=True)
        total = np.bincount(place.ravel(), weights=counts)
        return cls(distinct[total > 0], total[total > 0])

    @property
    def largest(self) -> int:
        return int(self.sizes[-1])

    def longer(self, by: int, limit: int) -> Demand:
        """What a stack needs that takes a size only if its shape is larger by `by`, but for
        `limit`, its largest shape."""
        return Demand.of(np.minimum(self.sizes + by, np.maximum(self.sizes, limit)), self.weights)

    def evenly(self, share: float, largest: int) -> Demand:
        """With `share` of the weight, 0 to below 1, in place of as much: every size up to `largest`
        alike, for what comes and was not seen."""
        if not 0 <= share < 1:
            raise ValueError(f"a share {share} of what was not seen is not from 0 to below 1")
        if not share:
            return self
        every = np.arange(1, largest + 1)
        even = np.full(largest, share * self.weights.sum() / largest)
        return Demand.of(
            np.concatenate([self.sizes, every]), np.concatenate([self.weights * (1 - share), even])
        )

    def padding_share(self, compiled: Sequence[int]) -> float:
        """Padding over computed, where each size runs on the first compiled one that takes it.
        Raises ValueError for a size above the last."""
        ascending = np.sort(np.asarray(compiled))
        if self.largest > ascending[-1]:
            raise ValueError(
                f"size {self.largest} is above the last compiled one, {ascending[-1]}: add a larger"
            )
        computed = _computed(ascending, self.sizes)
        return 1 - float(self.weights @ self.sizes) / float(self.weights @ computed)

    def beyond(self, largest: int) -> float:
        """The share of the weight whose size is above `largest`."""
        return float(self.weights[self.sizes > largest].sum() / self.weights.sum())


def _computed(ascending: ArrayLike, needed: np.ndarray) -> np.ndarray:
    """The first of the compiled sizes that takes each."""
    return np.asarray(ascending)[np.searchsorted(ascending, needed)]


@dataclass(frozen=True)
class Budget:
    """What may be compiled: graphs, seconds of warmup and bytes, each graph costing the same; None:
    no limit."""

    graphs: int | None = None
    warmup_s: float | None = None
    memory_bytes: float | None = None
    graph_s: float | None = None
    graph_bytes: float | None = None

    @property
    def affordable(self) -> int | None:
        """Graphs, at most. Raises ValueError where a limit allows none, or lacks the price."""
        allowed = [] if self.graphs is None else [("graphs", self.graphs)]
        for name, limit, price in (
            ("warmup budget in seconds", self.warmup_s, self.graph_s),
            ("memory budget in bytes", self.memory_bytes, self.graph_bytes),
        ):
            if limit is None:
                if price is not None:
                    raise ValueError(
                        f"what one graph takes of a {name} is of no use without one: give both"
                    )
                continue
            if price is None or not price > 0:
                raise ValueError(f"a {name} needs what one graph takes of it: give that too")
            allowed.append((name, math.floor(limit / price * (1 + 1e-12))))
        for name, graphs in allowed:
            if graphs < 1:
                raise ValueError(f"the limit of {name} allows no graph: allow more")
        return min((graphs for _, graphs in allowed), default=None)


def solve(
    boundaries: np.ndarray,
    weight: np.ndarray,
    cost: np.ndarray,
    k: int,
    always: np.ndarray | None = None,
) -> Optimum:
    """The boundaries that cost least for 1 to `k` of them, the last of the candidates among them.

    Dynamic programme over the candidates j in ascending order, `D_k(j) = min over i < j of
    D_{k-1}(i) + f_j · (W_j - W_i)`, W the weight of what is padded to a candidate or to one before
    it and f its cost, which must not decrease. `always` marks candidates that are compiled whatever
    is chosen: no i lies before one of them. O(k·n²) for n candidates. More boundaries than
    candidates with weight change nothing, and the list then repeats the last solution.
    """
    total = np.concatenate([[0.0], np.cumsum(weight)])  # W, of "no candidate" first
    nearest = np.zeros(len(boundaries) + 1, dtype=int)  # for each candidate, the last such before
    if always is not None:
        places = np.where(always, np.arange(1, len(boundaries) + 1), 0)
        nearest[2:] = np.maximum.accumulate(places)[:-1]
    best = np.full(len(boundaries) + 1, np.inf)
    best[0] = 0.0
    chosen, solutions, costs = [], [], []
    for _ in range(k):
        best, before = _one_more(best, cost, total, nearest)
        chosen.append(before)
        feasible = np.isfinite(best[-1])
        solutions.append(_walk_back(chosen, boundaries) if feasible else ())
        costs.append(float(best[-1]))
    return Optimum(tuple(solutions), tuple(costs))


def _one_more(
    best: np.ndarray, f: np.ndarray, total: np.ndarray, nearest: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """D of one boundary more, and for each candidate the one before it (0: none)."""
    cost, before = np.empty(len(f) + 1), np.zeros(len(f) + 1, dtype=int)
    cost[0] = 0.0  # nothing to cover costs nothing, whatever the number of boundaries
    for j in range(1, len(f) + 1):
        first = nearest[j]
        every = best[first:j] + f[j - 1] * (total[j] - total[first:j])
        before[j] = first + int(every.argmin())
        cost[j] = every[before[j] - first]
    return cost, before


def _walk_back(chosen: Sequence[np.ndarray], boundaries: np.ndarray) -> tuple[int, ...]:
    at, best = len(boundaries), []
    for before in reversed(chosen):
        if at == 0:
            break
        best.append(int(boundaries[at - 1]))
        at = int(before[at])
    return tuple(reversed(best))


def optimal_sizes(
    demand: Demand, k: int, *, step: int = 1, largest: int, always: Sequence[int] = ()
) -> Optimum:
    """The sizes that pad `demand` least for 1 to `k` of them: exact.

    Multiples of `step`, `largest` itself, and all of `always`, which a stack compiles by itself and
    which count. Other sizes than those that are needed, rounded up, are never better and are not
    looked at. Raises ValueError where something is needed above `largest`, or where `always` and
    `largest` are more than k.
    """
    if k < 1:
        raise ValueError(f"k {k} is below 1: ask for one graph or more")
    if demand.largest > largest:
        raise ValueError(
            f"size {demand.largest} is needed, above the largest of {largest}: allow as much (of "
            f"requests at once: --rows)"
        )
    rounded = np.minimum(-(-demand.sizes // step) * step, largest)
    held = sorted({*always, largest})
    boundaries = np.union1d(rounded, held)
    if k < len(held):
        raise ValueError(
            f"{len(held)} sizes are compiled in any case, and {k} are allowed: allow more"
        )
    weight = np.bincount(
        np.searchsorted(boundaries, demand.sizes), demand.weights, minlength=len(boundaries)
    )
    return solve(boundaries, weight, boundaries.astype(float), k, np.isin(boundaries, held))


def optimal_grid(
    first: np.ndarray,
    second: np.ndarray,
    counts: tuple[int, int],
    *,
    steps: tuple[int, int] = (1, 1),
    largest: tuple[int, int],
    weights: np.ndarray | None = None,
    unseen: float = 0.0,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes of two dimensions whose every pair is compiled, so many of each, for what needs
    `first[i]` of the one and `second[i]` of the other and computes their product. With `unseen` of
    the weight, in place of as much, every size of the first alike beside each of the second.

    Each is the exact optimum given the other, in turns until both stay: not in general that of both
    at once.
    """
    needs, weight = (first, second), np.ones(len(first)) if weights is None else weights
    chosen: list[tuple[int, ...]] = [(largest[0],), (largest[1],)]
    before = None
    while chosen != before:
        before = list(chosen)
        for this, other in ((1, 0), (0, 1)):
            computed = _computed(chosen[other], needs[other])
            if other == 0:
                every = _computed(chosen[0], np.arange(1, largest[0] + 1))
                computed = (1 - unseen) * computed + unseen * every.mean()
            demand = Demand.of(needs[this], weight * computed)
            if this == 0:
                demand = demand.evenly(unseen, largest[0])
            solved = optimal_sizes(demand, counts[this], step=steps[this], largest=largest[this])
            chosen[this] = solved[counts[this]]
    return chosen[0], chosen[1]
