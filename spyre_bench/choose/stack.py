"""A stack that takes a list of sizes to compile: what is known of it, and the lint of its rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

Sizes = Mapping[str, Sequence[int]]
"""Name of a list -> its sizes, in the order in which the stack is given them."""

WIDTHS, PROMPTS, CONTEXTS, CHUNKS = "widths", "prompts", "contexts", "chunks"
"""What sizes are of: requests in a decode step; tokens of a prompt, of the longest request in a
decode step, of a prompt up to the end of each of its chunks."""


@dataclass(frozen=True)
class Deployment:
    """What a server is started with, in vLLM's words where it has any."""

    rows: int  # max_num_seqs; of one stage where the stack has pipeline stages
    context_tokens: int = 8192  # max_model_len
    step_tokens: int = 8192  # max_num_batched_tokens
    width_step: int = 1  # widths are multiples of it: ranks that share a step's requests
    block_tokens: int = 128

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} {value} is below 1: use 1 or more")
        if self.rows < self.width_step:
            raise ValueError(f"rows {self.rows} are below width_step {self.width_step}: use more")


By = Callable[[Deployment], int]


def _nothing(_: Deployment) -> tuple[int, ...]:
    return ()


def _one(_: Deployment) -> int:
    return 1


@dataclass(frozen=True)
class SizeList:
    """One list that a stack takes."""

    name: str  # WIDTHS, PROMPTS, CONTEXTS or CHUNKS
    setting: str  # what the stack calls it
    limit: By  # the largest size that can be needed
    default: Callable[[Deployment], Iterable[int]] | None  # compiled without a list, if known
    step: By = _one  # sizes are multiples of it
    always: Callable[[Deployment], Iterable[int]] = _nothing  # compiled whatever the list says
    larger_by: int = 0  # a size below the limit needs a shape larger by this


@dataclass(frozen=True)
class Rule:
    says: str
    source: str
    broken: Callable[[Sizes, Deployment], Iterable[str]]  # sentences, each with its remedy


@dataclass(frozen=True)
class Finding:
    sentence: str
    source: str

    def __str__(self) -> str:
        return f"{self.sentence} ({self.source})"


@dataclass(frozen=True)
class Stack:
    title: str
    lists: tuple[SizeList, ...]
    rules: tuple[Rule, ...]
    write: Callable[[Sizes, Deployment], str]
    paste: str  # where the text goes
    note: str = ""  # what a reader must know of it
    grid: bool = False  # widths and contexts multiply

    def graphs(self, sizes: Mapping[str, int]) -> int:
        """Of so many sizes in each list."""
        if not self.grid:
            return sum(sizes.values())
        others = sum(count for name, count in sizes.items() if name not in (WIDTHS, CONTEXTS))
        return others + sizes[WIDTHS] * sizes[CONTEXTS]

    def lint(self, sizes: Sizes, deployment: Deployment) -> list[Finding]:
        """What the stack would refuse, drop, change or run without a graph; empty: nothing.

        Raises ValueError for a list that the stack does not take or that is missing or empty, and
        for a size that is no whole number of 1 or more.
        """
        known = [it.name for it in self.lists]
        if set(sizes) != set(known):
            raise ValueError(f"{self.title} takes {', '.join(known)}, not {', '.join(sizes)}")
        for name, given in sizes.items():
            if not given or any(type(it) is not int or it < 1 for it in given):
                raise ValueError(f"{name} {list(given)}: give whole numbers of 1 or more")
        return [
            Finding(sentence, rule.source)
            for rule in self.rules
            for sentence in rule.broken(sizes, deployment)
        ]
