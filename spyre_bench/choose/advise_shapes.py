"""Which shapes of continuous batching to take for a workload: chosen by the passes that they make,
for every largest width and chunk, beside other stacks' schemes, all replayed; fitted on the first
half, reported on the second.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from spyre_bench.choose.advise import TIE, TODAY, alike_served, doubts, keeping, kinds, of_tied
from spyre_bench.choose.schemes import doublings, optimal
from spyre_bench.choose.visits import ShapeChoice, ShapeLimits, choose_shapes
from spyre_bench.cost.bucket_cost import CostModel
from spyre_bench.cost.shape_cost import ShapeCosts
from spyre_bench.metrics import latency, summary
from spyre_bench.metrics.bounds import bound_s
from spyre_bench.policy.continuous import Rules
from spyre_bench.shape_set import BLOCK_TOKENS, DecodeShape, PrefillShape, ShapeSet, blocks_of
from spyre_bench.simulate.continuous import Prefixes, simulate
from spyre_bench.simulate.result import ContinuousRun
from spyre_bench.workload.workload import Workload

Sizes = list[tuple[int, ...]]
DECODE_CONTEXTS, PREFILL_CONTEXTS = 4, 3  # boundaries worth considering, with 4 widths some 30


@dataclass(frozen=True)
class Engine:
    """What is the same for all shapes: at most so many rows, tokens of a chunk, and blocks of the
    KV cache (None: what the widest shape fills)."""

    rows: int
    chunk_tokens: int
    blocks: int | None = None

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"rows {self.rows} is below 1: use 1 or more")
        if self.chunk_tokens < 1 or self.chunk_tokens % BLOCK_TOKENS:
            above = max(1, blocks_of(self.chunk_tokens)) * BLOCK_TOKENS
            raise ValueError(
                f"chunk {self.chunk_tokens} is not a positive multiple of {BLOCK_TOKENS}: use "
                f"{above}"
            )


@dataclass(frozen=True)
class ShapeAdvice:
    """The advised shapes, and what they were held against.

    `contenders` has one row per set of shapes: name, kind ("ours", "baseline" or "today"), advised,
    prefill and decode (shapes as text), graphs, compile_s, extrapolated, and for each half
    (`fitted_`, `held_out_`) bound_s, busy_s, p95_ttft_s, p95_e2el_s, tokens_per_s, rejected and
    saturated.
    """

    costs: ShapeCosts
    rules: Rules  # that they were replayed under
    certificate: ShapeChoice
    certified: str  # whose certificate: the advised one's, or, of a baseline, our fastest's
    contenders: pd.DataFrame
    fitted: Workload
    held_out: Workload

    @property
    def shapes(self) -> ShapeSet:
        return self.costs.shapes

    @property
    def verdict(self) -> str:
        """What the table comes to, in words: ties, losses and too few requests among it."""
        frame = self.contenders.set_index("name")
        advised = str(frame.index[frame["advised"]][0])
        alike, refusing = alike_served(frame, advised, self.fitted)
        against = doubts(frame, advised, self.fitted, self.held_out)
        return "; ".join([_against(alike, advised), *against, *refusing])


def advise_shapes(
    workload: Workload,
    model: CostModel,
    limits: ShapeLimits,
    engine: Engine,
    rules: Rules,
    today: ShapeSet | None = None,
    prefixes: Callable[[Workload], Prefixes | None] = lambda _: None,
) -> ShapeAdvice:
    """Chooses at most `limits.graphs` shapes for the workload, priced by `model`.

    A narrow engine makes other passes than a wide one, and short chunks other than long ones, so
    the choice is made for every largest width and chunk, and each is replayed on the first half of
    the workload. Advised is the one with the fewest busy device seconds there; of those within
    `TIE` of it those that compile in least time, and of these the lowest P95 of E2EL. The second
    half shows what that is worth on requests that were not looked at. The shapes of `today` are a
    contender too, and stay where they are within `TIE`. Where `prefixes` names those of the
    requests, engines have a prefix cache.

    Raises ValueError for a budget on what the model says nothing of, where it has no figure for the
    longest context, and what `choose_shapes` refuses.
    """
    if limits.warmup_budget_s is not None:
        model.require_known("compile_s", "a warmup budget (--warmup-budget)")
    fitted, held_out = workload.halves()
    grid = _Grid.of(workload, fitted, engine, model, rules.max_batch_context_tokens)

    def replay(half: Workload, costs: ShapeCosts) -> ContinuousRun:
        return simulate(half, costs, rules, prefixes=prefixes(half))

    def run(costs: ShapeCosts) -> ContinuousRun:
        return replay(fitted, costs)

    chosen: dict[str, ShapeChoice] = {}
    refusals: list[ValueError] = []
    for name, candidates in grid.parts():
        try:
            chosen[name] = choose_shapes(candidates, run, limits, longest_tokens=grid.longest)
        except ValueError as refusal:  # fewer rows or shorter chunks may still do
            refusals.append(refusal)
    if not chosen:
        raise refusals[0]
    sets = {name: choice.costs for name, choice in chosen.items()} | grid.baselines(model)
    if today is not None:
        sets[TODAY] = model.of_shapes(today)
    halves = {"fitted": fitted, "held_out": held_out}
    distinct = _distinct(sets)
    if today is not None:
        distinct[TODAY] = sets[TODAY]
    contenders = pd.DataFrame(_row(name, it, halves, replay) for name, it in distinct.items())
    contenders["kind"] = kinds(contenders["name"], chosen)
    contenders = _best_of_each_width(contenders)
    best = _best(contenders, limits)
    contenders["advised"] = contenders.index == best
    name = str(contenders.at[best, "name"])
    ours = contenders[contenders["kind"] == "ours"].set_index("name")
    certified = name if name in chosen else str(ours["fitted_busy_s"].idxmin())
    return ShapeAdvice(
        sets[name], rules, chosen[certified], certified, contenders, fitted, held_out
    )


def within_contexts(workload: Workload, model: CostModel) -> Workload:
    """The requests that the model covers. Raises ValueError where there is none."""
    return workload.only(
        model.covers_contexts(workload),
        "every request is longer than the contexts of the cost table: measure longer shapes, "
        "scale the lengths down (--length-scale), or extrapolate (--extrapolate)",
    )


def _best_of_each_width(contenders: pd.DataFrame) -> pd.DataFrame:
    """Of our choices the one of each largest width whose chunks are best, and the baselines."""
    ours = contenders[contenders["kind"] == "ours"]
    best = ours.groupby(ours["name"].str.extract(r"(B ≤ \d+)")[0].fillna(""))["fitted_busy_s"]
    kept = contenders.index.isin(best.idxmin()) | (contenders["kind"] != "ours")
    return contenders[kept].reset_index(drop=True)


@dataclass(frozen=True)
class _Grid:
    """The candidates, each priced by itself, and what all engines have alike."""

    costs: ShapeCosts
    engine: Engine
    longest: int  # context of the longest request of the workload
    limit: float  # on rows times context of a shape

    @classmethod
    def of(
        cls,
        workload: Workload,
        fitted: Workload,
        engine: Engine,
        model: CostModel,
        batch_context_tokens: int | None = None,
    ) -> _Grid:
        """Widths and chunks go by `half_steps` up to the engine's; contexts are the best boundaries
        of those that requests end with, and the longest that any may have. A shape beyond the limit
        on rows times context would never run full."""
        longest = blocks_of(int((workload.prompt_tokens + workload.max_tokens).max()))
        longest *= BLOCK_TOKENS
        ends = fitted.prompt_tokens + fitted.output_tokens
        chunk = min(engine.chunk_tokens, longest)
        limit = math.inf if batch_context_tokens is None else batch_context_tokens
        widest_rows = rows_within(limit, engine.rows, longest)
        blocks = engine.blocks or widest_rows * longest // BLOCK_TOKENS + 1
        widest = PrefillShape(chunk, longest), DecodeShape(widest_rows, longest)
        prefill = {
            PrefillShape(c, t)
            for c in half_steps(BLOCK_TOKENS, chunk)
            for t in (*optimal(fitted.prompt_tokens, PREFILL_CONTEXTS)[PREFILL_CONTEXTS], longest)
            if c <= t <= longest
        }
        decode = {
            DecodeShape(b, min(t, longest))
            for b in half_steps(1, engine.rows)
            for t in (*optimal(ends, DECODE_CONTEXTS)[DECODE_CONTEXTS], longest)
            if b * min(t, longest) <= limit
        } | {widest[1]}
        all_like = model.of_shapes(ShapeSet((widest[0],), (widest[1],), blocks))

        def price(prefill: PrefillShape, decode: DecodeShape) -> ShapeCosts | None:
            """None where the model has no figure for one of them."""
            try:
                return model.of_shapes(ShapeSet((prefill,), (decode,), blocks))
            except ValueError:
                return None

        chunks = [price(shape, widest[1]) for shape in sorted(prefill)]
        widths = [price(widest[0], shape) for shape in sorted(decode)]
        costs = replace(
            all_like,
            prefill=tuple(it.prefill[0] for it in chunks if it),
            decode=tuple(it.decode[0] for it in widths if it),
        )
        return cls(costs, engine, longest, limit)

    def parts(self) -> Iterator[tuple[str, ShapeCosts]]:
        """All candidates, then those up to each smaller width and chunk that doubles."""
        widths = _doubling({cost.shape.rows for cost in self.costs.decode}, 1)
        chunks = _doubling({cost.shape.chunk_length for cost in self.costs.prefill}, BLOCK_TOKENS)
        for rows, chunk in itertools.product(widths, chunks):
            said = [f"B ≤ {rows}"] * (rows < widths[0]) + [f"C ≤ {chunk}"] * (chunk < chunks[0])
            prefill = (it for it in self.costs.prefill if it.shape.chunk_length <= chunk)
            decode = (it for it in self.costs.decode if it.shape.rows <= rows)
            part = replace(self.costs, prefill=tuple(prefill), decode=tuple(decode))
            yield ", ".join(said) or "all widths", part

    def baselines(self, model: CostModel) -> dict[str, ShapeCosts]:
        """Other stacks' schemes; one that the model has no figure for is left out."""
        rows, longest = self.engine.rows, self.longest
        chunk = min(self.engine.chunk_tokens, longest)
        first = min(256, longest)
        contexts = doublings(first, longest)
        block = BLOCK_TOKENS
        schemes: dict[str, tuple[Sizes, Sizes]] = {
            "one shape of each": (
                [(chunk, longest)],
                [(rows_within(self.limit, rows, longest), longest)],
            ),
            "powers of two": (
                [(c, longest) for c in doublings(block, chunk)],
                [(b, t) for b in doublings(1, rows) for t in contexts if b * t <= self.limit],
            ),
            "one symbolic shape": (
                [(chunk, longest, block, block)],
                [(rows, longest, 1, block)],
            ),
        }
        found = {}
        for name, scheme in schemes.items():
            with suppress(ValueError):
                found[name] = model.of_shapes(ShapeSet.parse(*scheme, self.costs.blocks))
        return found


def half_steps(first: int, last: int) -> list[int]:
    """As `doublings`, and half-way between two of them where that is a multiple of the first: a
    pass of three rows need not run as one of four."""
    sizes = doublings(first, last)
    between = ((low + high) // 2 for low, high in itertools.pairwise(sizes))
    return sorted({*sizes, *(size for size in between if size % first == 0)})


def _doubling(sizes: set[int], first: int) -> list[int]:
    """Of these sizes the largest, and those that double from the first on; descending."""
    return sorted(sizes & set(doublings(first, max(sizes))), reverse=True)


def rows_within(limit: float, rows: int, context_tokens: int) -> int:
    """The most rows of such a context within a limit on rows times context; at least one."""
    return int(max(1, min(rows, limit // context_tokens)))


def _distinct(sets: Mapping[str, ShapeCosts]) -> dict[str, ShapeCosts]:
    """Without those that take the same seconds as one before: a table prices a shape with steps at
    its largest, as this engine compiles it."""

    return {
        name: costs
        for name, costs in sets.items()
        if next(other for other, it in sets.items() if _seconds(it) == _seconds(costs)) == name
    }


def _seconds(costs: ShapeCosts) -> list[tuple[float, ...]]:
    """The sizes of the shapes, without their steps, and the seconds of their passes."""
    found: list[tuple[float, ...]] = []
    for chunk in costs.prefill:
        shape = chunk.shape
        found.append((0, shape.chunk_length, shape.context_length, chunk.full_s, chunk.base_s))
    for wide in costs.decode:
        found.append((1, wide.shape.rows, wide.shape.context_length, wide.full_s, wide.base_s))
    return found


def _best(contenders: pd.DataFrame, limits: ShapeLimits) -> Any:
    """The index of the advised row."""
    fits = contenders["graphs"] <= limits.graphs
    if limits.warmup_budget_s is not None:
        fits &= contenders["compile_s"] <= limits.warmup_budget_s
    rows = contenders[fits | (contenders["name"] == TODAY)]
    rows = rows[rows["fitted_rejected"] == rows["fitted_rejected"].min()]
    tied = rows["fitted_busy_s"] <= rows["fitted_busy_s"].min() * (1 + TIE)
    rows = rows[tied]
    if (runs := rows["name"] == TODAY).any():
        return rows.index[runs][0]
    return of_tied(rows)


def _against(frame: pd.DataFrame, advised: str) -> str:
    """The advised set beside the other stacks' schemes."""
    if advised == TODAY:
        return keeping(frame, "shapes")
    busy_s, compile_s = frame["fitted_busy_s"].to_dict(), frame["compile_s"].to_dict()
    said = []
    for name in frame.index[frame["kind"] != "ours"]:
        if name != advised:
            less = 1 - busy_s[advised] / busy_s[name]
            seconds = f"{less:.1%} fewer" if less >= 0 else f"{-less:.1%} more"
            compiles = compile_s[advised] - compile_s[name]
            said.append(
                f"{seconds} device seconds than {name}, which compiles {abs(compiles):,.0f} s "
                f"{'less' if compiles > 0 else 'more'}"
            )
    return f"{advised} takes {'; '.join(said)}" if said else f"{advised} is the only choice"


def _row(
    name: str,
    costs: ShapeCosts,
    halves: Mapping[str, Workload],
    replay: Callable[[Workload, ShapeCosts], ContinuousRun],
) -> dict[str, Any]:
    row = {
        "name": name,
        "prefill": _text(cost.shape for cost in costs.prefill),
        "decode": _text(cost.shape for cost in costs.decode),
        "graphs": len(costs.prefill) + len(costs.decode),
        "compile_s": costs.compile_s,
        "extrapolated": sum(it.extrapolated for it in costs.prefill)
        + sum(it.extrapolated for it in costs.decode),
    }
    for half, workload in halves.items():
        run = replay(workload, costs)
        times = latency.latencies(run, (95,))
        seconds = summary.duration_s(run)
        served = int(workload.output_tokens[run.served].sum())
        row |= {
            f"{half}_bound_s": bound_s(run),
            f"{half}_busy_s": summary.busy_s(run),
            f"{half}_p95_ttft_s": times["ttft"].percentiles_ms[95] / 1e3,
            f"{half}_p95_e2el_s": times["e2el"].percentiles_ms[95] / 1e3,
            f"{half}_tokens_per_s": served / seconds if seconds else 0.0,
            f"{half}_rejected": int((~run.served).sum()),
            f"{half}_saturated": bool(summary.saturation(run)),
        }
    return row


def _text(shapes: Iterable[object]) -> str:
    return " ".join(map(str, shapes))
