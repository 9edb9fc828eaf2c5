"""Facility location: the best few of some candidates to serve points, each where it is cheapest,
within a number of them and a budget; exact, and by exchange."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, csr_array, vstack

SCALED = 1024.0  # the solver's numbers: its tolerances are absolute, a millionth and less
TIME_LIMIT_S = 60.0  # of the search; usual are tenths of a second
INFEASIBLE = 2  # the solver's status
FALSE_BOUND = 1e-6  # relative; a choice better than a bound by more shows that it is none


class Infeasible(ValueError):
    """No choice within the limits serves every point."""


@dataclass(frozen=True)
class Problem:
    """Points, candidates, and at most `most` of these, whose compile seconds are within a budget
    (None: no limit)."""

    seconds: np.ndarray  # [points, candidates] of a point in a candidate; infinite: it does not fit
    compile_s: np.ndarray  # [candidates]
    most: int
    budget_s: float | None = None

    def refusal(self, what: str, whom: str) -> str:
        """Why no choice serves every point, in a sentence."""
        if self.budget_s is None:
            return (
                f"no choice of {self.most} {what} serves {whom}: raise k, or leave the longest "
                f"requests out"
            )
        return (
            f"no choice of {self.most} {what} within a warmup budget of {self.budget_s:g} s serves "
            f"{whom}; the fastest candidate compiles in {self.compile_s.min():.1f} s: raise the "
            f"budget or k, or leave the longest requests out"
        )

    @property
    def scale_s(self) -> float:
        """Seconds of one unit of the programme's objective: a power of two, so that no digit is
        lost, that makes the optimum at least `SCALED`, however short a pass is."""
        least_s = float(self.seconds.min(axis=1).sum())
        return 2.0 ** math.floor(math.log2(least_s / SCALED))

    def value_s(self, chosen: Sequence[int]) -> float:
        """Seconds of the points in a choice, each where it is cheapest."""
        return float(self.seconds[:, list(chosen)].min(axis=1, initial=np.inf).sum())

    def keeps_limits(self, chosen: Sequence[int]) -> bool:
        """Whether a choice is within the limits and serves every point."""
        affordable = self.budget_s is None or self.compile_s[
            list(chosen)
        ].sum() <= self.budget_s * (1 + 1e-9)
        return bool(len(chosen) <= self.most and affordable and math.isfinite(self.value_s(chosen)))

    def affordable(self, chosen: Sequence[int]) -> np.ndarray:
        """bool [candidates], which may join those chosen."""
        allowed = np.ones(len(self.compile_s), dtype=bool)
        if self.budget_s is not None:
            allowed = self.compile_s <= self.budget_s - self.compile_s[list(chosen)].sum()
        allowed[list(chosen)] = False
        return allowed

    def programme(self) -> dict[str, Any]:
        """min Σ c·x  with  Σ_s x_rs = 1,  x_rs <= y_s,  Σ y <= k,  Σ compile·y <= budget,  y whole.

        Variables: y of each candidate, then x of each point and candidate that fits it."""
        point, candidate = np.nonzero(np.isfinite(self.seconds))
        y, x = len(self.compile_s), len(point)
        rows = np.arange(x)
        ones = np.ones(x)
        served = coo_array((ones, (point, y + rows)), shape=(len(self.seconds), y + x))
        opened = coo_array(
            (
                np.concatenate([ones, -ones]),
                (np.concatenate([rows, rows]), np.concatenate([y + rows, candidate])),
            ),
            shape=(x, y + x),
        )
        number = csr_array(np.concatenate([np.ones(y), np.zeros(x)])[None, :])
        constraints = [
            LinearConstraint(served.tocsr(), 1, 1),
            LinearConstraint(
                vstack([opened, number], format="csr"),
                -np.inf,
                np.concatenate([np.zeros(x), [self.most]]),
            ),
        ]
        allowed = np.ones(y)
        if self.budget_s is not None and math.isfinite(self.budget_s):
            allowed[self.compile_s > self.budget_s] = 0
            shares = allowed * self.compile_s / (self.budget_s or 1.0) * SCALED
            budget = csr_array(np.concatenate([shares, np.zeros(x)])[None, :])
            constraints.append(LinearConstraint(budget, -np.inf, SCALED))
        return {
            "c": np.concatenate([np.zeros(y), self.seconds[point, candidate] / self.scale_s]),
            "constraints": constraints,
            "integrality": np.concatenate([np.ones(y), np.zeros(x)]),
            "bounds": Bounds(0, np.concatenate([allowed, np.ones(x)])),
        }


def solve(problem: Problem, what: str, whom: str, *, gap: float) -> tuple[list[int], float]:
    """The best choice by mixed-integer programming (HiGHS through scipy), and seconds that none is
    below, within `gap` of it unless the time ends first. Raises Infeasible, which says that no
    choice of `what` serves `whom`, and ValueError where the time ends before any was found."""
    solved = milp(**problem.programme(), options={"mip_rel_gap": gap, "time_limit": TIME_LIMIT_S})
    if solved.x is None and solved.status != INFEASIBLE:
        raise ValueError(f"no choice found within {TIME_LIMIT_S:g} s: give fewer candidates")
    try:
        if solved.x is None:
            raise Infeasible
        chosen = np.flatnonzero(solved.x[: len(problem.compile_s)] > 0.5).tolist()
        return _checked(problem, chosen, float(solved.mip_dual_bound) * problem.scale_s)
    except Infeasible as error:
        raise Infeasible(problem.refusal(what, whom)) from error


def _checked(problem: Problem, chosen: list[int], bound_s: float) -> tuple[list[int], float]:
    """The solver's choice and its bound, unless they contradict each other: a choice that serves
    everybody within the limits and is below the bound takes their place, with a bound that needs no
    solver, every point where it is cheapest."""
    kept = problem.keeps_limits(chosen)
    other = swap(problem, chosen if kept else greedy(problem))
    if kept and problem.value_s(other) >= bound_s * (1 - FALSE_BOUND):
        return chosen, bound_s
    return other, float(problem.seconds.min(axis=1).sum())


def greedy(problem: Problem) -> list[int]:
    """One candidate after the other, each the one that lowers the seconds most; those that leave
    fewest points unserved come first. Raises Infeasible."""
    chosen: list[int] = []
    best = np.full(len(problem.seconds), np.inf)
    while len(chosen) < problem.most:
        allowed = problem.affordable(chosen)
        after = np.minimum(best[:, None], problem.seconds)
        unserved = np.isinf(after).sum(axis=0)
        seconds = np.where(np.isinf(after), 0.0, after).sum(axis=0)
        order = np.lexsort((seconds, unserved))
        index = next((int(i) for i in order if allowed[i]), None)
        if index is None or (np.isfinite(best).all() and seconds[index] >= best.sum()):
            break
        chosen.append(index)
        best = after[:, index]
    if np.isinf(best).any():
        raise Infeasible
    return chosen


def swap(problem: Problem, chosen: list[int]) -> list[int]:
    """One candidate exchanged for another as long as that helps."""
    best_s = problem.value_s(chosen)
    improved = True
    while improved:
        improved = False
        for place in range(len(chosen)):
            rest = chosen[:place] + chosen[place + 1 :]
            without = problem.seconds[:, rest].min(axis=1, initial=np.inf)
            seconds = np.minimum(without[:, None], problem.seconds).sum(axis=0)
            seconds[~problem.affordable(rest)] = np.inf
            index = int(seconds.argmin())
            if seconds[index] < best_s * (1 - 1e-12):
                chosen, best_s, improved = [*rest, index], float(seconds[index]), True
    return chosen


def dominated(seconds: np.ndarray, compile_s: np.ndarray) -> np.ndarray:
    """bool [candidates], where another one serves every point for no more and compiles no slower;
    of equals the first stays."""
    dominated = np.zeros(seconds.shape[1], dtype=bool)
    for index in range(seconds.shape[1]):
        no_worse = (seconds <= seconds[:, [index]]).all(axis=0) & (compile_s <= compile_s[index])
        better = (seconds < seconds[:, [index]]).any(axis=0) | (compile_s < compile_s[index])
        better |= np.arange(len(better)) < index
        no_worse[index] = False
        dominated[index] = (no_worse & better & ~dominated).any()
    return dominated
