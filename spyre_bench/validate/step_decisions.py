"""Decisions of continuous batching: does the simulator take the steps that a server took?

As in `decisions`, the simulator gets what the server had: which requests each decision saw for the
first time, who had gone by then and in which order, and when passes ended. Prompts and outputs are
not in a pass log, but a name for each of their blocks is, so that the simulator's prefix cache has
what the server's had. It then has to take the same steps in the same order at the same times. What
is off here is a fault of the simulator; no cost can explain it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spyre_bench.cost.shape_cost import ShapeCosts, warmed_costs
from spyre_bench.metrics.served_steps import pass_ends, prefix_names, require_came
from spyre_bench.pass_log import (
    Came,
    Gone,
    Step,
    read_shape_warmup,
    read_step_rows,
    read_step_rules,
)
from spyre_bench.policy.continuous import Rules
from spyre_bench.simulate.continuous import simulate
from spyre_bench.simulate.result import PREFILL, ContinuousRun
from spyre_bench.validate.decisions import Decisions
from spyre_bench.workload.workload import Workload


class Taken(NamedTuple):
    """A step as it is compared."""

    shape: str
    requests: list[str]  # in the order of the rows
    computed: int  # tokens, those computed again too
    context_tokens: int  # of all rows after it

    def __str__(self) -> str:
        who = ", ".join(self.requests)
        return f"{self.shape} of {who}: {self.computed} tokens, {self.context_tokens} in context"


@dataclass(frozen=True)
class StepDecisions(Decisions):
    """Passes of a server, as `batches`, beside those of the simulator; and where one differs, the
    first (None: it has no further one)."""

    measured: Taken | None
    simulated: Taken | None

    def __str__(self) -> str:
        if self.first_other is None:
            times = f"starts at most {1e3 * self.latest_s:.1f} ms apart"
            return f"the simulator takes the server's steps in all {self.batches:,} passes, {times}"
        return (
            f"pass {self.first_other:,} of {self.batches:,} (counted from 0) differs: "
            f"the server's {self.measured or 'none'}; the simulator's {self.simulated or 'none'}"
        )


def logged_decisions(path: Path) -> StepDecisions:
    """Of the pass log of a server of continuous batching, from its first pass on. Raises ValueError
    for another log, or one of an older server."""
    said = read_step_rules(path)
    costs = warmed_costs(read_shape_warmup(path), said.blocks)
    return step_decisions(
        read_step_rows(path), Rules(**said.rules), costs, prefix_cache=said.prefix_cache
    )


def step_decisions(
    steps: Sequence[Step], rules: Rules, costs: ShapeCosts, *, prefix_cache: bool = True
) -> StepDecisions:
    """From all passes of a server since it was started, its rules and the costs that it decided by;
    or since it was idle, where no request's prompt begins as one of those before.

    The queue has to be in order of arrival (vLLM's `fcfs`), and a request that waits for its
    grammar counts as one that could run. Raises ValueError for a log that does not say who came, or
    whose clock was set back.
    """
    server = _Server.of(steps)
    run = _replay(server, rules, costs, prefix_cache)
    passes = list(itertools.islice(_passes(run, server), len(steps)))
    both = itertools.zip_longest(map(_of_step, steps), [taken for taken, _ in passes])
    differ = ((at, *pair) for at, pair in enumerate(both) if pair[0] != pair[1])
    other, measured, simulated = next(differ, (None, None, None))
    alike = len(steps) if other is None else other
    starts_s = np.array([start_s for _, start_s in passes[:alike]])
    off_s = starts_s - [step.start_s - server.zero_s for step in steps[:alike]]
    latest_s = float(np.abs(off_s).max(initial=0.0))
    return StepDecisions(len(steps), other, latest_s, measured, simulated)


@dataclass(frozen=True)
class _Server:
    """What a pass log says of requests and passes; seconds are from the first arrival."""

    zero_s: float  # of the system's clock
    came: list[Came]  # in the order of the queue
    ended: dict[str, Gone]
    prefixes: list[list[str]]  # of each request, as far as its blocks were ever complete
    seen_s: np.ndarray  # float64 [requests]
    leaves_s: np.ndarray  # float64 [requests]
    ends_s: np.ndarray  # float64 [passes]

    @classmethod
    def of(cls, steps: Sequence[Step]) -> _Server:
        came = require_came("the pass log", steps)
        names = [one.request for one in came]
        if any(later.start_s < step.start_s for step, later in itertools.pairwise(steps)):
            raise ValueError(
                "the passes of the log are not in order of time: the system's clock was set back "
                "while it was written; serve and log again"
            )
        ends_s = pass_ends(steps)
        seen_s, leaves_s = {}, dict.fromkeys(names, np.inf)
        for before, step, end_s in zip([None, *steps], steps, [-np.inf, *ends_s], strict=False):
            for new in step.came:  # a pass begins with the decision, a moment later by its clock
                seen_s[new.request] = end_s if end_s >= step.start_s else new.seen_s
            if before is not None:
                leaves_s |= _leaves(step.gone, before.start_s, end_s)
        zero_s = min(one.arrival_s for one in came)
        return cls(
            zero_s,
            came,
            {one.request: one for step in steps for one in step.gone if one.ended},
            list(prefix_names(came, steps).values()),
            np.array([seen_s[one.request] for one in came]) - zero_s,
            np.array([leaves_s[one.request] for one in came]) - zero_s,
            np.array(ends_s) - zero_s,
        )


def _leaves(gone: Sequence[Gone], start_s: float, end_s: float) -> dict[str, float]:
    """When those hung up who went during a pass and after it: before those who ended with it in the
    middle of it, in their order, others with its end."""
    ended = [place for place, one in enumerate(gone) if one.ended]
    last = ended[-1] if ended else len(gone)
    part_s = (end_s - start_s) / (last + 1)
    return {
        one.request: start_s + part_s * (place + 1) if place < last else end_s
        for place, one in enumerate(gone)
        if not one.ended
    }


def _replay(server: _Server, rules: Rules, costs: ShapeCosts, prefix_cache: bool) -> ContinuousRun:
    """The simulator's run on the requests of a pass log, with every pass ending when it did."""
    ended = [server.ended.get(one.request) for one in server.came]
    both = list(zip(server.came, ended, strict=True))
    arrival_s = np.array([one.arrival_s for one in server.came]) - server.zero_s
    workload = Workload(
        "pass log",
        np.maximum.accumulate(arrival_s),
        np.array([one.prompt_tokens for one in server.came]),
        np.array([gone.output_tokens if gone else one.max_tokens for one, gone in both]),
        np.array([one.max_tokens for one in server.came]),
    )
    return simulate(
        workload,
        costs,
        rules,
        prefixes=server.prefixes if prefix_cache else None,
        seen_s=server.seen_s,
        leaves_s=server.leaves_s,
        ends_s=server.ends_s,
    )


def _passes(run: ContinuousRun, server: _Server) -> Iterator[tuple[Taken, float]]:
    """Each pass of a simulated run, and when it began."""
    passes, began = run.passes, 0
    for row in range(len(passes)):
        names = [server.came[member].request for member in passes.of_row(row)[0]]
        context, start_s = int(passes.before[row]), float(passes.start_s[row])
        for place in range(int(passes.count[row])):
            computed = len(names)
            if passes.kind[row] == PREFILL:
                computed = int(passes.useful[row] + passes.again[row])
            context += computed
            if place:
                start_s = float(server.ends_s[min(began, len(server.ends_s)) - 1])
            began += 1
            yield Taken(run.shapes[passes.shape[row]], names, computed, context), start_s


def _of_step(step: Step) -> Taken:
    computed = sum(step.tokens) + step.again_tokens
    return Taken(step.shape.name, step.requests, computed, sum(step.context_tokens))
