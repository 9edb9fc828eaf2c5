"""Which shapes of continuous batching to compile, by the passes that a simulation runs.

What a decode pass needs (live rows, the longest context) and what a chunk needs (its tokens, and
the context they end) are states; a run visits each so many times. Shapes are chosen that serve the
visits in the fewest seconds, by facility location: proved for these visits. Other shapes make other
visits, so the workload is simulated again on the chosen ones, until the choice stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from spyre_bench.choose.facility import Problem, dominated, solve
from spyre_bench.cost.shape_cost import DecodeCost, PrefillCost, ShapeCosts
from spyre_bench.shape_set import BLOCK_TOKENS, blocks_of
from spyre_bench.simulate.result import DECODE, ContinuousRun

ROUNDS = 8  # of simulation and choice; two or three are usual


@dataclass(frozen=True)
class ShapeLimits:
    """What a deployment compiles at most; None: no limit."""

    graphs: int
    warmup_budget_s: float | None = None  # cold compile seconds of all shapes

    def __post_init__(self) -> None:
        if self.graphs < 2:
            raise ValueError(
                f"k {self.graphs} is below 2: an engine needs a prefill and a decode shape"
            )
        if self.warmup_budget_s is not None and not self.warmup_budget_s >= 0:
            raise ValueError(
                f"warmup budget {self.warmup_budget_s} s is not 0 or more: leave it out for none"
            )


@dataclass(frozen=True)
class Visits:
    """Passes of a run by what they need, one row per state."""

    width: np.ndarray  # int64 [states], live rows; of a chunk its blocks
    blocks: np.ndarray  # int64 [states], of the longest context
    passes: np.ndarray  # int64 [states]
    tokens: np.ndarray  # int64 [states], live context of all passes; of chunks what is before them
    is_chunk: np.ndarray  # bool [states]

    @classmethod
    def of(cls, run: ContinuousRun, longest_blocks: int = 1) -> Visits:
        """A stretch of decode passes, which are a token longer each, is split at block borders. A
        pass of each kind over the longest context that there may be is among them, so that it is
        always served."""
        passes = run.passes
        chunk = passes.kind != DECODE
        computed = (passes.useful + passes.again)[chunk]
        ends = passes.before[chunk] + computed
        one = np.ones(1, np.int64)
        parts = [(_blocks(computed), _blocks(ends), np.ones(len(ends), int), passes.before[chunk])]
        rows, left = passes.rows[~chunk].astype(np.int64), passes.count[~chunk].astype(np.int64)
        width, tokens = passes.width[~chunk].astype(np.int64), passes.before[~chunk] + rows
        while len(left):
            here = np.minimum(left, BLOCK_TOKENS - (width - 1) % BLOCK_TOKENS)
            in_all = here * tokens + rows * (here * (here - 1) // 2)
            parts.append((rows, _blocks(width), here, in_all))
            left, width, tokens = left - here, width + here, tokens + rows * here
            goes_on = left > 0
            rows, left, width, tokens = (a[goes_on] for a in (rows, left, width, tokens))
        longest = np.array([longest_blocks])
        parts = [(one, longest, one, longest * 0), *parts, (one, longest, one, longest * 0)]
        chunks = 1 + len(ends)
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        is_chunk = np.arange(len(columns[0])) < chunks
        states, number = np.unique(np.stack([is_chunk, *columns[:2]]), axis=1, return_inverse=True)
        passes_, tokens_ = np.zeros((2, states.shape[1]), np.int64)
        np.add.at(passes_, number, columns[2])
        np.add.at(tokens_, number, columns[3])
        return cls(states[1], states[2], passes_, tokens_, states[0].astype(bool))

    def seconds(self, costs: Sequence[PrefillCost | DecodeCost]) -> np.ndarray:
        """[states, costs], infinite where a pass does not fit."""
        found = np.full((len(self.passes), len(costs)), np.inf)
        context = self.blocks * BLOCK_TOKENS
        for index, cost in enumerate(costs):
            if isinstance(cost, PrefillCost):
                fits = self.is_chunk & (self.width * BLOCK_TOKENS <= cost.shape.chunk_length)
                seconds = self.passes * cost.base_s + self.tokens * cost.slot_s
            else:
                fits = ~self.is_chunk & (self.width <= cost.shape.rows)
                seconds = self.passes * (cost.base_s + cost.row_s * self.width)
                seconds = seconds + self.tokens * cost.slot_s
            fits &= context <= cost.shape.context_length
            found[fits, index] = seconds[fits]
        return found


@dataclass(frozen=True)
class ShapeChoice:
    """Chosen shapes, and how good they are proved to be for the visits that they make."""

    costs: ShapeCosts
    objective_s: float  # of the visits, each in its cheapest chosen shape
    bound_s: float  # no choice within the limits serves those visits in less
    rounds: int  # of simulation and choice
    settled: bool  # whether nothing better was found for these visits
    seconds: float  # it took to find

    @property
    def gap(self) -> float:
        """By how much a better choice could be better, at most, relative to this one."""
        return max(0.0, 1 - self.bound_s / self.objective_s)


def choose_shapes(
    candidates: ShapeCosts,
    run: Callable[[ShapeCosts], ContinuousRun],
    limits: ShapeLimits,
    *,
    longest_tokens: int = 1,
    gap: float = 1e-3,
) -> ShapeChoice:
    """The best of the candidates within the limits for what `run` makes of them: simulated on all,
    chosen by the visits, simulated on those, until the choice stays. Where it does not, it is the
    choice whose own run took the fewest device seconds. The shapes have room for a request of
    `longest_tokens`, prompt and output, whether one came or not.

    Raises ValueError where no choice within the limits serves every pass.
    """
    started = time.perf_counter()
    tried: list[tuple[float, ShapeChoice]] = []
    costs = candidates
    for rounds in range(1, ROUNDS + 1):
        ran = run(costs)
        visits = Visits.of(ran, blocks_of(longest_tokens))
        better, bound_s = _best(candidates, visits, limits, gap)
        if costs is not candidates:
            own_s = float(visits.seconds(costs.each).min(axis=1).sum())
            settled = better == costs
            choice = ShapeChoice(costs, own_s, min(bound_s, own_s), rounds, settled, 0.0)
            tried.append((float(ran.passes.batch_seconds.sum()), choice))
        if any(better == choice.costs for _, choice in tried):
            break  # it stays, or goes in a circle
        costs = better
    _, found = min(tried, key=lambda it: (not it[1].settled, it[0]))
    return replace(found, rounds=rounds, seconds=time.perf_counter() - started)


def _best(
    candidates: ShapeCosts, visits: Visits, limits: ShapeLimits, gap: float
) -> tuple[ShapeCosts, float]:
    """Of the candidates for these visits, and the seconds that no choice is below."""
    every = candidates.each
    seconds = visits.seconds(every)
    compile_s = np.array([cost.compile_s for cost in every])
    needed = np.flatnonzero(~dominated(seconds, compile_s))
    problem = Problem(seconds[:, needed], compile_s[needed], limits.graphs, limits.warmup_budget_s)
    chosen, bound_s = solve(problem, "shapes", "every pass", gap=gap)
    return _only(candidates, [every[needed[index]] for index in chosen]), bound_s


def _only(candidates: ShapeCosts, chosen: Iterable[PrefillCost | DecodeCost]) -> ShapeCosts:
    kept = {cost.shape for cost in chosen}
    return replace(
        candidates,
        prefill=tuple(cost for cost in candidates.prefill if cost.shape in kept),
        decode=tuple(cost for cost in candidates.decode if cost.shape in kept),
    )


def _blocks(tokens: np.ndarray) -> np.ndarray:
    return -(-tokens.astype(np.int64) // BLOCK_TOKENS)
