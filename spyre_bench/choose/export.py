"""The sizes that pad a workload least, for a stack that takes a list of them: chosen exactly, held
against the stack's own rules, and written as the file or the flags that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from spyre_bench.choose.one_dimension import Budget, Demand, optimal_grid, optimal_sizes
from spyre_bench.choose.stack import (
    CHUNKS,
    CONTEXTS,
    PROMPTS,
    WIDTHS,
    Deployment,
    Finding,
    SizeList,
    Sizes,
    Stack,
)
from spyre_bench.choose.stacks import CHUNK_TOKENS, QEFF_APART
from spyre_bench.simulate.decode_steps import DecodeSteps
from spyre_bench.workload.workload import Workload

DEFAULT_GRAPHS = 25  # of each list; of a grid, its square root


@dataclass(frozen=True, eq=False)
class Needs:
    """What a deployment runs: its prompts and its decode steps."""

    prompt_tokens: np.ndarray | None  # int [requests]; None where only steps are known
    running: np.ndarray  # int64 [steps], requests in each
    context: np.ndarray | None  # int64 [steps], tokens of the longest of them
    weights: np.ndarray  # float64 [steps]

    @classmethod
    def of(cls, workload: Workload, steps: DecodeSteps) -> Needs:
        """Each step counts once."""
        running, context = steps.each()
        return cls(workload.prompt_tokens, running, context, np.ones(len(running)))

    def halves(self) -> tuple[Needs, Needs]:
        """The first half of the requests and of the steps, and the second."""

        def half(column: np.ndarray | None, which: int) -> np.ndarray | None:
            return None if column is None else np.array_split(column, 2)[which]

        first, second = (
            Needs(
                half(self.prompt_tokens, which),
                np.array_split(self.running, 2)[which],
                half(self.context, which),
                np.array_split(self.weights, 2)[which],
            )
            for which in (0, 1)
        )
        return first, second

    def demand(self, of: SizeList, deployment: Deployment) -> Demand:
        """Of one list. Prompts above its limit come in pieces. Raises ValueError where that is not
        known, or a step is above the limit."""
        limit = of.limit(deployment)
        if of.name == WIDTHS:
            return Demand.of(self.running, self.weights)
        if of.name == CONTEXTS and self.context is not None:
            return Demand.of(self.context, self.weights).longer(of.larger_by, limit)
        if of.name in (PROMPTS, CHUNKS) and self.prompt_tokens is not None:
            if of.name == CHUNKS:
                return Demand.of(np.minimum(_chunk_ends(self.prompt_tokens), limit))
            return Demand.of(_pieces(self.prompt_tokens, limit)).longer(of.larger_by, limit)
        raise ValueError(
            f"{of.setting} needs {of.name}, which a series of running requests does not tell: give "
            f"a workload"
        )


def within_context(workload: Workload, context_tokens: int) -> Workload:
    """The requests whose prompt and output fit; raises ValueError where none does."""
    fits = workload.prompt_tokens + workload.output_tokens <= context_tokens
    return workload.only(fits, f"no request fits {context_tokens} tokens of context: allow more")


def _pieces(prompts: np.ndarray, largest: int) -> np.ndarray:
    """Prompts cut into pieces of `largest` tokens and what remains."""
    whole, rest = np.divmod(prompts, largest)
    return np.concatenate([np.full(int(whole.sum()), largest), rest[rest > 0]])


def _chunk_ends(prompts: np.ndarray) -> np.ndarray:
    """Tokens up to the end of every chunk of every prompt."""
    chunks = -(-prompts // CHUNK_TOKENS)
    first = np.repeat(np.cumsum(chunks) - chunks, chunks)
    return (np.arange(int(chunks.sum())) - first + 1) * CHUNK_TOKENS


@dataclass(frozen=True)
class Padded:
    """One list, and what it pads."""

    of: SizeList
    sizes: tuple[int, ...]
    padding: float  # share of what is computed
    default: tuple[int, ...]  # what the stack compiles by itself; () if not known
    default_padding: float | None
    beyond: float  # share of the need that is above the largest size
    idle: tuple[int, ...]  # sizes that nothing runs on


@dataclass(frozen=True)
class HeldOut:
    """Chosen for the first half, and what that pads in the second."""

    padding: float
    default_padding: float | None


@dataclass(frozen=True)
class Export:
    """What to paste, what it pads, and what the stack's rules say of it."""

    stack: Stack
    lists: tuple[Padded, ...]
    text: str
    findings: tuple[Finding, ...]

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        return {it.of.name: it.sizes for it in self.lists}

    @property
    def graphs(self) -> int:
        return self.stack.graphs({name: len(sizes) for name, sizes in self.sizes.items()})


def export(
    stack: Stack,
    needs: Needs,
    deployment: Deployment,
    graphs: Mapping[str, int] | None = None,
    budget: Budget | None = None,
    unseen: float = 0.0,
) -> Export:
    """Chooses the sizes of every list of the stack, and writes them.

    `graphs` allows so many sizes in a list (default 25, or 5 where two lists multiply); of `budget`
    all lists together are cut down to what it affords, each time the size whose loss pads least.
    `unseen` is the share of steps that widths are chosen for as if every width came alike: at 0 the
    sizes pad what was seen least, and a width that never came falls to the next that did. Raises
    ValueError where a budget does not pay for one size of each list.
    """
    _require_use(stack, deployment)
    allowed = {it.name: _default_graphs(stack, it) for it in stack.lists} | dict(graphs or {})
    if unknown := set(allowed) - {it.name for it in stack.lists}:
        known = ", ".join(it.name for it in stack.lists)
        raise ValueError(f"{stack.title} has no list of {', '.join(unknown)}: it takes {known}")
    demands = {it.name: needs.demand(it, deployment) for it in stack.lists}
    if WIDTHS in demands:
        demands[WIDTHS] = demands[WIDTHS].evenly(unseen, deployment.rows)
    sizes = _within(stack, demands, deployment, allowed, budget or Budget())
    if stack.grid:
        sizes |= _grid(stack, needs, deployment, sizes, unseen)
    if CHUNKS in sizes:
        sizes[CHUNKS] = _apart(sizes[CHUNKS], sizes[CONTEXTS])
    return judge(stack, needs, deployment, sizes)


def held_out(
    stack: Stack,
    needs: Needs,
    deployment: Deployment,
    graphs: Mapping[str, int] | None = None,
    budget: Budget | None = None,
    unseen: float = 0.0,
) -> dict[str, HeldOut]:
    """By list: whether a choice for what has been serves what comes after as well. Raises
    ValueError where there are too few steps or requests for two halves."""
    prompts = needs.prompt_tokens
    if len(needs.running) < 2 or (prompts is not None and len(prompts) < 2):
        raise ValueError("one step or one request has no second half")
    first, second = needs.halves()
    chosen = export(stack, first, deployment, graphs, budget, unseen)
    later = judge(stack, second, deployment, chosen.sizes)
    return {it.of.name: HeldOut(it.padding, it.default_padding) for it in later.lists}


def judge(stack: Stack, needs: Needs, deployment: Deployment, sizes: Sizes) -> Export:
    """Holds sizes of any origin against the stack's rules and against what is needed."""
    _require_use(stack, deployment)
    findings = tuple(stack.lint(sizes, deployment))
    lists = tuple(
        _padded(it, tuple(sizes[it.name]), needs.demand(it, deployment), deployment)
        for it in stack.lists
    )
    return Export(stack, lists, stack.write(sizes, deployment), findings)


def _require_use(stack: Stack, deployment: Deployment) -> None:
    if deployment.width_step > 1 and all(it.step(deployment) == 1 for it in stack.lists):
        raise ValueError(
            f"{stack.title} has no rule of multiples for its widths: leave width_step out"
        )


def _default_graphs(stack: Stack, of: SizeList) -> int:
    return 5 if stack.grid and of.name in (WIDTHS, CONTEXTS) else DEFAULT_GRAPHS


def _within(
    stack: Stack,
    demands: Mapping[str, Demand],
    deployment: Deployment,
    allowed: Mapping[str, int],
    budget: Budget,
) -> dict[str, tuple[int, ...]]:
    """The best sizes of each list, as many as all limits allow together."""
    by_list: dict[str, list[tuple[int, ...]]] = {}
    for it in stack.lists:
        solved = optimal_sizes(
            demands[it.name],
            allowed[it.name],
            step=it.step(deployment),
            largest=it.limit(deployment),
            always=tuple(it.always(deployment)),
        )
        distinct = dict.fromkeys(sizes for sizes in solved.boundaries if sizes)
        by_list[it.name] = list(distinct)  # by number, the fewest first
    affordable = budget.affordable
    while affordable is not None and _graphs(stack, by_list) > affordable:
        losses = {
            name: demands[name].padding_share(sets[-2]) - demands[name].padding_share(sets[-1])
            for name, sets in by_list.items()
            if len(sets) > 1
        }
        if not losses:
            raise ValueError(
                f"the budget pays for {affordable} graphs, and {stack.title} compiles "
                f"{_graphs(stack, by_list)} in any case: allow more"
            )
        by_list[min(losses, key=losses.__getitem__)].pop()
    return {name: sets[-1] for name, sets in by_list.items()}


def _graphs(stack: Stack, by_list: Mapping[str, list[tuple[int, ...]]]) -> int:
    return stack.graphs({name: len(sets[-1]) for name, sets in by_list.items()})


def _grid(
    stack: Stack, needs: Needs, deployment: Deployment, sizes: Sizes, unseen: float
) -> dict[str, tuple[int, ...]]:
    """As many widths and contexts, chosen for what their pairs pad."""
    by_name = {it.name: it for it in stack.lists}
    of_widths, of_contexts = by_name[WIDTHS], by_name[CONTEXTS]
    assert needs.context is not None  # or the demand of contexts would have been refused
    widths, contexts = optimal_grid(
        needs.running,
        needs.context,
        (len(sizes[WIDTHS]), len(sizes[CONTEXTS])),
        steps=(of_widths.step(deployment), of_contexts.step(deployment)),
        largest=(of_widths.limit(deployment), of_contexts.limit(deployment)),
        weights=needs.weights,
        unseen=unseen,
    )
    return {WIDTHS: widths, CONTEXTS: contexts}


def _apart(chunks: tuple[int, ...], contexts: tuple[int, ...]) -> tuple[int, ...]:
    """Chunks without a length that contexts have: moved up, the last one stays."""
    taken, moved = set(contexts), []
    for length in chunks[:-1]:
        while length in taken:
            length += QEFF_APART
        moved.append(length)
        taken.add(length)
    return (*(it for it in moved if it < chunks[-1]), chunks[-1])


def _padded(of: SizeList, sizes: tuple[int, ...], demand: Demand, deployment: Deployment) -> Padded:
    default = tuple(of.default(deployment)) if of.default else ()
    covered = demand.sizes <= max(sizes)
    within = Demand(demand.sizes[covered], demand.weights[covered])
    used = np.unique(np.searchsorted(np.sort(sizes), within.sizes))
    return Padded(
        of=of,
        sizes=sizes,
        padding=within.padding_share(sizes) if covered.any() else 0.0,
        default=default,
        default_padding=_share(demand, default),
        beyond=demand.beyond(max(sizes)),
        idle=tuple(int(it) for it in np.delete(np.sort(sizes), used)),
    )


def _share(demand: Demand, sizes: tuple[int, ...]) -> float | None:
    """None where something is above all of them, and runs without padding or not at all."""
    return demand.padding_share(sizes) if sizes and demand.largest <= max(sizes) else None
