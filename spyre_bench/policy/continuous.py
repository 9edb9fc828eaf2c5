"""What an engine of continuous batching does next, pure, for two hosts: vLLM's scheduler and the
simulator both call `next_step` before every pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from spyre_bench.cost.shape_cost import ShapeCosts
from spyre_bench.policy.static import Hold
from spyre_bench.shape_set import DecodeShape, PrefillShape


class Waiting(Protocol):
    """What the decision may know of a request that has no block yet: never how long its output
    will really be."""

    @property
    def prompt_tokens(self) -> int: ...  # of a preempted request with its outputs so far
    @property
    def max_tokens(self) -> int: ...  # still to come
    @property
    def arrival_s(self) -> float: ...
    @property
    def hit_blocks(self) -> int: ...  # blocks of its prompt that the prefix cache has
    @property
    def shared_blocks(self) -> int: ...  # of those, held by a running request now


class Running(Protocol):
    """What the decision may know of a request that holds blocks."""

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def computed_tokens(self) -> int: ...  # prompt and outputs whose keys and values are stored
    @property
    def held_blocks(self) -> int: ...
    @property
    def reserved_blocks(self) -> int: ...  # still to be taken, at most
    @property
    def paused_for(self) -> int: ...  # decode passes since it last took part


W = TypeVar("W", bound=Waiting)
R = TypeVar("R", bound=Running)


class Prefill(NamedTuple, Generic[W]):
    """One chunk of one request: its next `tokens` prompt tokens."""

    request: W
    tokens: int
    shape: PrefillShape
    is_first: bool  # the request is admitted by it
    is_last: bool  # it yields the request's first token


class Decode(NamedTuple, Generic[R]):
    """One token for each of the rows; the other running requests are paused."""

    rows: tuple[R, ...]
    shape: DecodeShape
    stable_for: int  # passes for which the same decision holds unless somebody arrives or ends


class Preempt(NamedTuple, Generic[R]):
    """Give the blocks of this request back; it waits again, first in the queue."""

    request: R


Step: TypeAlias = Prefill[W] | Decode[R] | Preempt[R] | Hold


@dataclass(frozen=True, slots=True)
class Last:
    """What the decision remembers of the passes before."""

    was_prefill: bool = False
    decodes_since_prefill: int = 0


@dataclass(frozen=True, slots=True)
class Rules:
    """How requests join, leave and wait. The defaults are this backend's; `upstream()` gives those
    of IBM's scheduler.

    - `decode_between`: decode passes between two chunks while anybody decodes.
    - `order`: who is admitted first, `arrival` or `shortest_prefill`.
    - `admission`: `reserve` admits who can take every block up to its `max_tokens`; `preempt`
      admits who can store its prompt, and takes blocks back where they run out.
    - `layout`: `ragged` rows have contexts of their own; `rectangular` pads all to the longest.
    - `over_limit`: with a batch × context limit of the card, `pause` lets rows sit out decode
      passes in turn, `hold` does not admit who could exceed it later.
    - `max_batch_context_tokens`: that limit, rows times padded context.
    - `max_raise_tokens`: a newcomer that would raise the common context by more waits while
      anybody decodes (rectangular only).
    - `min_free_blocks`: blocks that admission leaves free.
    - `longest_first`: among rows paused equally long, the one with the most outputs goes first.
    """

    decode_between: int = 1
    order: str = "arrival"
    admission: str = "reserve"
    layout: str = "ragged"
    over_limit: str = "pause"
    max_batch_context_tokens: int | None = None
    max_raise_tokens: int | None = None
    min_free_blocks: int = 0
    longest_first: bool = False


def next_step(
    waiting: Iterable[W],
    running: Sequence[R],
    free_blocks: int,
    costs: ShapeCosts,
    rules: Rules | None = None,
    last: Last | None = None,
    now: float = math.inf,
) -> Step[W, R] | None:
    """What the engine runs next; None where nobody waits or runs.

    `waiting` is in the order of service and read lazily; `running` in the order of admission, a
    request in prefill among them (at most one). Raises ValueError for a request that no shape or
    pool takes: it must be refused before.
    """
    raise NotImplementedError
