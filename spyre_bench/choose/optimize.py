"""Which buckets to compile: facility location over candidate buckets, with a certificate.

A request is served by the chosen bucket where its share of a full batch is least
(`metrics/bounds.py`), so the objective is the shape bound of the chosen set in device seconds, and
the optimum bounds what any scheduler can do with any such set. Full batches are an assumption:
`advise.py` replays the best few.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from spyre_bench.choose import facility
from spyre_bench.choose.facility import Problem, solve
from spyre_bench.choose.schemes import optimal
from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.metrics.bounds import shape_bound_s
from spyre_bench.shapes import STICK_TOKENS, Bucket
from spyre_bench.workload.workload import Workload

POINTS = 9  # outputs at which the requests of a cell are counted


@dataclass(frozen=True)
class Limits:
    """What a deployment allows; None: no limit."""

    buckets: int  # k, at most
    warmup_budget_s: float | None = None  # sum of the chosen buckets' cold compile seconds
    memory_bytes: int | None = None  # of each candidate: buckets share one KV storage

    def __post_init__(self) -> None:
        if self.buckets < 1:
            raise ValueError(f"k {self.buckets} is below 1: allow one bucket or more")
        if self.buckets % 1:
            raise ValueError(f"k {self.buckets} is not a whole number")
        if self.warmup_budget_s is not None and not self.warmup_budget_s >= 0:
            raise ValueError(
                f"warmup budget {self.warmup_budget_s} s is not 0 or more: leave it out for none"
            )


@dataclass(frozen=True)
class Choice:
    """Chosen buckets in ascending order, and how good they are proved to be."""

    costs: tuple[BucketCost, ...]
    objective_s: float  # their shape bound for the workload, device seconds
    bound_s: float  # no choice within the limits has a lower one
    seconds: float  # it took to find

    @property
    def gap(self) -> float:
        """By how much a better choice could be better, at most, relative to this one."""
        return max(0.0, 1 - self.bound_s / self.objective_s)

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        return tuple(cost.bucket for cost in self.costs)

    @property
    def compile_s(self) -> float:
        return sum(cost.compile_s for cost in self.costs)


def candidates(
    workload: Workload,
    batch_sizes: Iterable[int],
    *,
    prompt_lengths: int = 10,
    new_tokens: int = 5,
    smallest: tuple[int, int] = (STICK_TOKENS, 2),
    extra: Iterable[Bucket] = (),
) -> tuple[Bucket, ...]:
    """Buckets worth considering: every combination of a batch size, one of the best
    `prompt_lengths` boundaries of prompts and one of the best `new_tokens` boundaries of the tokens
    asked for (each the exact optimum of its own dimension), and the `extra` ones. No boundary is
    below `smallest` (P, N), where a cost table begins."""
    long = np.maximum(workload.prompt_tokens, smallest[0])
    prompts = optimal(long, prompt_lengths)[prompt_lengths]
    # steps of 1/128 of the longest keep the programme small
    asked = np.maximum(workload.max_tokens, smallest[1])
    step = max(2, math.ceil(int(asked.max()) / 128))
    outputs = optimal(asked, new_tokens, step=step)[new_tokens]
    product = itertools.product(sorted(set(batch_sizes)), prompts, outputs)
    return tuple(sorted({Bucket(*sizes) for sizes in product} | set(extra)))


def choose_buckets(
    workload: Workload,
    costs: Sequence[BucketCost],
    limits: Limits,
    *,
    gap: float = 1e-3,
) -> Choice:
    """The best choice within the limits, by mixed-integer programming (HiGHS through scipy), proved
    to within `gap` unless `facility.TIME_LIMIT_S` ends the search first; the result says how far.

    Raises ValueError where no choice serves every request, with the reason: Infeasible where more
    of these candidates would.
    """
    started = time.perf_counter()
    instance = _Instance.of(workload, costs, limits)
    chosen, bound_s = solve(instance.problem, "buckets", "every request", gap=gap)
    return instance.choice(chosen, bound_s, started)


@dataclass(frozen=True)
class _Instance:
    """The problem with its requests gathered in points, of few lengths each.

    For any choice, the sum over the points of the least seconds is a lower bound of the shape
    bound, and close to it (see `_points`).
    """

    workload: Workload
    costs: tuple[BucketCost, ...]
    problem: Problem

    @classmethod
    def of(cls, workload: Workload, costs: Sequence[BucketCost], limits: Limits) -> _Instance:
        _require_known(costs, limits)
        cap = limits.memory_bytes
        fitting = tuple(c for c in costs if cap is None or c.memory_bytes <= cap)
        if not fitting:
            raise ValueError(
                f"memory_bytes {cap} is below what the smallest candidate needs, "
                f"{min((c.memory_bytes for c in costs), default=0)}: allow more, or add candidates"
            )
        seconds = _points(workload, fitting)
        compile_s = np.array([cost.compile_s for cost in fitting])
        needed = ~facility.dominated(seconds, compile_s)
        kept = tuple(cost for cost, keep in zip(fitting, needed, strict=True) if keep)
        problem = Problem(
            seconds[:, needed], compile_s[needed], limits.buckets, limits.warmup_budget_s
        )
        return cls(workload, kept, problem)

    def choice(self, chosen: Iterable[int], bound_s: float, started: float) -> Choice:
        costs = sorted((self.costs[index] for index in chosen), key=lambda cost: cost.bucket)
        objective_s = shape_bound_s(self.workload, costs)
        return Choice(
            costs=tuple(costs),
            objective_s=objective_s,
            bound_s=min(float(bound_s), objective_s),
            seconds=time.perf_counter() - started,
        )


def _require_known(costs: Sequence[BucketCost], limits: Limits) -> None:
    """Raises ValueError for a limit on what the costs say nothing of: it would always be kept."""
    for limit, name, what in (
        (limits.warmup_budget_s, "compile_s", "a warmup budget"),
        (limits.memory_bytes, "memory_bytes", "a memory limit"),
    ):
        unknown = [cost.bucket for cost in costs if not getattr(cost, name) > 0]
        if limit is not None and unknown:
            raise ValueError(
                f"{what} needs {name} of every candidate, and the costs say nothing of bucket "
                f"{unknown[0]}: measure it, or leave {what} out"
            )


def _points(workload: Workload, costs: Sequence[BucketCost]) -> np.ndarray:
    """Seconds of each point in each candidate.

    Requests that the same candidates fit form a cell: those between two prompt lengths and between
    two lengths of output of the candidates. In a cell, the seconds of a request grow linearly with
    its output in each candidate, so what they are at best is concave in it, and never below the
    chord between two outputs: each request counts in part at the nearest of a few outputs above and
    below its own (hat functions). That keeps every choice's value a lower bound, exact where one
    candidate is best between two neighbouring points.
    """
    prompts = np.unique([cost.bucket.prompt_length for cost in costs])
    room = np.unique([cost.bucket.new_tokens for cost in costs])
    row = np.searchsorted(prompts, workload.prompt_tokens)
    column = np.searchsorted(room, workload.max_tokens)
    outside = (row == len(prompts)) | (column == len(room))
    if outside.any():
        raise ValueError(_uncovered(workload, outside))
    cell, number = np.unique(row * len(room) + column, return_inverse=True)
    order = np.argsort(number, kind="stable")
    outputs = np.split(workload.output_tokens[order], np.cumsum(np.bincount(number))[:-1])
    hats = [_hats(some) for some in outputs]
    of_cell = np.repeat(cell, [len(passes) for passes, _ in hats])
    passes, requests = (np.concatenate(columns) for columns in zip(*hats, strict=True))
    prompt, asked = prompts[of_cell // len(room)], room[of_cell % len(room)]
    seconds = np.full((len(of_cell), len(costs)), np.inf)
    for index, cost in enumerate(costs):
        fits = (prompt <= cost.bucket.prompt_length) & (asked <= cost.bucket.new_tokens)
        in_all = requests * (cost.prefill_s + (passes - 1) * cost.decode_s) / cost.bucket.batch_size
        seconds[fits, index] = in_all[fits]
    lost = ~np.isfinite(seconds).any(axis=1)
    if lost.any():
        raise ValueError(_uncovered(workload, np.isin(cell, of_cell[lost])[number]))
    return seconds


def _hats(outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A few outputs from the least to the largest, and the requests that count at each: those
    between two count at both, more at the nearer; numbers and mean are kept."""
    distinct = np.unique(outputs)
    if len(distinct) > POINTS:
        distinct = np.unique(np.quantile(distinct, np.linspace(0, 1, POINTS)))
    if len(distinct) == 1:
        return distinct, np.array([len(outputs)])
    below = np.clip(np.searchsorted(distinct, outputs, side="right") - 1, 0, len(distinct) - 2)
    part = (outputs - distinct[below]) / (distinct[below + 1] - distinct[below])
    requests = np.bincount(below, weights=1 - part, minlength=len(distinct))
    requests += np.bincount(below + 1, weights=part, minlength=len(distinct))
    return distinct, requests


def _uncovered(workload: Workload, lost: np.ndarray) -> str:
    prompt, asked = workload.prompt_tokens[lost].max(), workload.max_tokens[lost].max()
    return (
        f"{int(lost.sum())} of {len(workload)} requests fit no candidate: add one of prompt_length "
        f"{-(-int(prompt) // STICK_TOKENS) * STICK_TOKENS} and new_tokens {int(asked)}, allow it "
        f"the memory, or leave the longest requests out"
    )
