"""What an engine of continuous batching served, from its pass log: the requests, the seconds that
its passes took, and what each of its shapes cost."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from spyre_bench.cost.shape_cost import PrefillCost, ShapeCosts, warmed_costs
from spyre_bench.metrics.served import drift_of
from spyre_bench.pass_log import (
    Came,
    Step,
    read_shape_warmup,
    read_step_rows,
    read_step_rules,
)
from spyre_bench.policy.continuous import Rules
from spyre_bench.shape_set import BLOCK_TOKENS
from spyre_bench.workload.workload import Workload

PREFIXES = "prefixes"  # of the workload's extras: names of the blocks that each prompt begins with
PREFILL, DECODE = "prefill", "decode"


@dataclass(frozen=True, eq=False)
class ServedSteps:
    """A deployment's pass log."""

    workload: Workload  # those that put anything out, in order of arrival
    prefix_cache: bool
    costs: ShapeCosts  # of the shapes that it was warmed with, as its passes took
    rules: Rules
    busy_s: float
    steps: Sequence[Step] = field(repr=False)
    drift: float  # standard deviation of the logarithm of the machine's pace, part by part
    gave_up: int  # requests of which nothing came: clients that hung up, or the log's last

    def longer_than(self, costs: ShapeCosts) -> dict[str, float]:
        """By name of each shape that ran, how many times their seconds by these costs of the same
        shapes its passes took."""
        return _longer(_passes(self.steps, costs), "shape")


def read_served_steps(path: Path) -> ServedSteps:
    """Raises ValueError for a log without a pass, or one that does not say when requests came."""
    said, steps, warmup = read_step_rules(path), read_step_rows(path), read_shape_warmup(path)
    warmed = warmed_costs(
        [replace(row, compile_s=0.0) if row.was_warm else row for row in warmup], said.blocks
    )
    passes = _passes(steps, warmed)
    came = require_came(path, steps)
    outputs = _outputs(steps)
    rows = sorted((one for one in came if outputs[one.request]), key=lambda one: one.arrival_s)
    if not rows:
        raise ValueError(f"{path}: no request put anything out: serve some and log again")
    names = prefix_names(came, steps)
    return ServedSteps(
        workload=Workload(
            path.stem,
            np.array([one.arrival_s for one in rows]) - rows[0].arrival_s,
            np.array([one.prompt_tokens for one in rows]),
            np.array([min(outputs[one.request], one.max_tokens) for one in rows]),
            np.array([one.max_tokens for one in rows]),
            read_as=f"{path.name}: a pass log of continuous batching",
            extras={PREFIXES: _column([names[one.request] for one in rows])},
        ),
        prefix_cache=said.prefix_cache,
        costs=_costs(warmed, passes),
        rules=Rules(**said.rules),
        busy_s=float(passes["seconds"].sum()),
        steps=steps,
        drift=drift_of(passes["seconds"] / passes["expected_s"], passes["shape"]),
        gave_up=len(came) - len(rows),
    )


def require_came(path: Path | str, steps: Sequence[Step]) -> list[Came]:
    """All requests, in the order of the queue. Raises ValueError for a log that does not say when
    one came."""
    came = [one for step in steps for one in step.came]
    names = {one.request for one in came}
    if unknown := [name for step in steps for name in step.requests if name not in names]:
        raise ValueError(
            f"{path} does not say when request {unknown[0]} came: an older server wrote it, or its "
            f"beginning is missing; serve and log again"
        )
    return came


def prefix_names(came: Sequence[Came], steps: Sequence[Step]) -> dict[str, list[str]]:
    """By request, a name for each of its blocks as far as they were ever complete."""
    names = {one.request: list(one.prefixes) for one in came}
    for step in steps:
        rows = zip(step.requests, step.context_tokens, step.named, strict=True)
        for request, context_tokens, completed in rows:
            end = context_tokens // BLOCK_TOKENS  # of a preempted one it may have been known
            names[request][end - len(completed) : end] = completed
    return names


def pass_ends(steps: Sequence[Step]) -> list[float]:
    """When each pass leaves the engine free: with the start of the next where somebody was there,
    so that whoever was seen by that decision is so whatever clocks say; else by its own seconds."""
    here: set[str] = set()
    ends_s = []
    for step, following in itertools.pairwise([*steps, None]):
        assert step is not None, "the last is only what follows"
        here |= {new.request for new in step.came}
        end_s = step.start_s + step.seconds
        if following is not None:
            here -= {one.request for one in following.gone}
            next_s = min([following.start_s, *(new.seen_s for new in following.came)])
            end_s = following.start_s if here else min(end_s, next_s)
        ends_s.append(end_s)
    return ends_s


def expected_s(step: Step, costs: ShapeCosts) -> float:
    """What the pass costs by these costs."""
    cost = next(cost for cost in costs.each if cost.shape == step.shape)
    computed = sum(step.tokens) + step.again_tokens
    if isinstance(cost, PrefillCost):
        return cost.pass_s(sum(step.context_tokens) - computed)
    return cost.pass_s(len(step.requests), sum(step.context_tokens))


def _outputs(steps: Sequence[Step]) -> Counter[str]:
    """Tokens of each request: as it ended, or those that it had got when the log did."""
    tokens: Counter[str] = Counter()
    for step in steps:
        if step.kind == "rows":
            tokens.update(step.requests)
    tokens.update(dict.fromkeys(tokens, 1))  # the one of its prefill
    ended = {one.request: one.output_tokens for step in steps for one in step.gone if one.ended}
    return Counter(tokens | ended)


def _passes(steps: Sequence[Step], costs: ShapeCosts) -> pd.DataFrame:
    """A row each: shape, kind, seconds (vLLM's own time included) and expected_s by these costs."""
    of_prefill = {cost.shape for cost in costs.prefill}
    rows = [
        (
            step.shape.name,
            PREFILL if step.shape in of_prefill else DECODE,
            end_s - step.start_s,
            expected_s(step, costs),
        )
        for step, end_s in zip(steps, pass_ends(steps), strict=True)
    ]
    return pd.DataFrame(rows, columns=["shape", "kind", "seconds", "expected_s"])


def _costs(warmed: ShapeCosts, passes: pd.DataFrame) -> ShapeCosts:
    """Those of warmup in the proportion of the passes of each shape, whose sum they give back; of a
    shape without any in that of its kind."""
    by_shape, by_kind = _longer(passes, "shape"), _longer(passes, "kind")
    kinds = [PREFILL] * len(warmed.prefill) + [DECODE] * len(warmed.decode)
    return warmed.scaled(
        [
            by_shape.get(cost.shape.name, by_kind.get(kind, 1.0))
            for cost, kind in zip(warmed.each, kinds, strict=True)
        ]
    )


def _longer(passes: pd.DataFrame, alike: str) -> dict[str, float]:
    """Seconds over those expected, of the passes that are alike in this column."""
    sums = passes.groupby(alike)[["seconds", "expected_s"]].sum()
    return {str(name): float(row.seconds / row.expected_s) for name, row in sums.iterrows()}


def _column(values: Sequence[list[str]]) -> np.ndarray:
    """object [requests], whatever the lengths of the lists."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column
