"""What an engine of continuous batching does next, pure, for two hosts: vLLM's scheduler and the
simulator both call `next_step` before every pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from spyre_bench.cost.shape_cost import ShapeCosts
from spyre_bench.shape_set import BLOCK_TOKENS, DecodeShape, PrefillShape, ShapeSet, blocks_of

LOOK_AHEAD = 64
"""How many waiting requests `shortest_prefill` looks at."""

NEVER = 2**31
"""Decode passes since the last chunk, where there was none."""


class Request(Protocol):
    """What the decision may know of any request: never how long its output will really be."""

    @property
    def prompt_tokens(self) -> int: ...  # to prefill: of a preempted one with its outputs so far
    @property
    def max_tokens(self) -> int: ...  # still to come then


class Waiting(Request, Protocol):
    """A request that holds no block yet."""

    @property
    def arrival_s(self) -> float: ...
    @property
    def hit_blocks(self) -> int: ...  # blocks of its prompt that the prefix cache has
    @property
    def shared_blocks(self) -> int: ...  # of those, held by a running request now


class Running(Request, Protocol):
    """A request that holds blocks."""

    @property
    def computed_tokens(self) -> int: ...  # prompt and outputs whose keys and values are stored
    @property
    def held_blocks(self) -> int: ...
    @property
    def reserved_blocks(self) -> int: ...  # still to be taken, at most
    @property
    def paused_for(self) -> int: ...  # decode passes since it last took part


Q = TypeVar("Q", bound=Request)
W = TypeVar("W", bound=Waiting)
R = TypeVar("R", bound=Running)


class Prefill(NamedTuple, Generic[Q]):
    """One chunk of one request: its next `tokens` prompt tokens. Before them `again_tokens` are
    computed a second time, where a prefix hit ends inside of a rectangular chunk."""

    request: Q
    tokens: int
    shape: PrefillShape
    is_first: bool  # the request is admitted by it
    is_last: bool  # it yields the request's first token
    again_tokens: int = 0
    goes_on: bool = False  # whoever arrives, its next chunk comes at once, and so on to its last


class Decode(NamedTuple, Generic[R]):
    """One token for each of the rows, in the order of admission; other running requests pause."""

    rows: tuple[R, ...]
    shape: DecodeShape
    context_tokens: int  # of the pass, its padding to a rectangle included
    stable_for: int  # passes for which this stays the answer unless somebody arrives or ends, or
    # an output completes a block that the prefix cache would give to somebody who waits
    alternates_for: int = 0  # passes for which, whoever arrives, these and the chunks of who is in
    # prefill take turns as `decode_between` says, to the last chunk, unless somebody ends


class Preempt(NamedTuple, Generic[R]):
    """Give the blocks of this request back; it waits again, first in the queue."""

    request: R


Step: TypeAlias = Prefill[W] | Prefill[R] | Decode[R] | Preempt[R]


@dataclass(frozen=True, slots=True)
class Rules:
    """How requests join, leave and wait.

    - `chunk_tokens`: the most tokens of a chunk; None: what the shapes hold.
    - `decode_between`: decode passes between two chunks while anybody decodes.
    - `order`: who is admitted first, by `arrival`, or the `shortest_prefill` among the first
      `LOOK_AHEAD`, until the first has waited `max_age_s`.
    - `admission`: `reserve` admits who can take every block up to its `max_tokens`; `preempt`
      admits who can store its prompt and then decode once with all others, and takes blocks back
      where they run out.
    - `layout`: `ragged` rows have contexts of their own; `rectangular` pads every row to the
      longest by whole blocks, and chunks by whole blocks before the first.
    - `max_batch_context_tokens`: the card's limit on rows times the context of a decode pass. Where
      it, or the shapes, do not cover all rows, `over_limit` says what happens: `pause` lets rows
      sit out passes in turn and admits nobody meanwhile, `hold` does not admit who could exceed it
      later.
    - `max_raise_tokens`: a newcomer that would raise the common context of a rectangle by more
      waits while anybody decodes.
    - `min_free_blocks`: blocks that admission leaves free while anybody runs.
    - `longest_first`: among rows that paused equally long, the one with the most outputs goes
      first, not the one with the fewest.

    Nobody starves. Under `arrival` a request is admitted after all before it and before all behind
    it; nor is the first overtaken once it has waited `max_age_s`. It then waits at most until all
    that run have ended. A row is paused for fewer passes than there are rows when it begins to
    pause: of those that paused longest the first always runs. Preempted is the newest, never before
    the first decode pass behind its admission, so the oldest always goes on.
    """

    chunk_tokens: int | None = None
    decode_between: int = 1
    order: str = "arrival"
    max_age_s: float = 60.0
    admission: str = "reserve"
    layout: str = "ragged"
    over_limit: str = "pause"
    max_batch_context_tokens: int | None = None
    max_raise_tokens: int | None = None
    min_free_blocks: int = 0
    longest_first: bool = False

    def __post_init__(self) -> None:
        for name, values in CHOICES.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"{name} {getattr(self, name)!r} is not known: use one of {', '.join(values)}"
                )
        for name in ("chunk_tokens", *LEAST):
            value = getattr(self, name)
            if name != "max_age_s" and value is not None and type(value) is not int:
                raise ValueError(f"{name} {value!r} is not a whole number")
        if not isinstance(self.longest_first, bool):
            raise ValueError(f"longest_first {self.longest_first!r} is not true or false")
        chunk = self.chunk_tokens
        if chunk is not None and (chunk < BLOCK_TOKENS or chunk % BLOCK_TOKENS):
            above = max(1, blocks_of(chunk)) * BLOCK_TOKENS
            raise ValueError(
                f"chunk_tokens {chunk} is not a positive multiple of {BLOCK_TOKENS}: use {above}"
            )
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"{name} {value} is below {least}: use {least} or more")


CHOICES = {
    "order": ("arrival", "shortest_prefill"),
    "admission": ("reserve", "preempt"),
    "layout": ("ragged", "rectangular"),
    "over_limit": ("pause", "hold"),
}
LEAST = {
    "decode_between": 0,
    "max_age_s": 0,
    "max_batch_context_tokens": 1,
    "max_raise_tokens": 0,
    "min_free_blocks": 0,
}
RULES = Rules()
UPSTREAM = Rules(layout="rectangular")
"""IBM's own scheduler, its options at their defaults: tests/policy/test_upstream.py."""


def require_every_request(shapes: ShapeSet, rules: Rules) -> None:
    """Raises ValueError where a request that fits the shapes would meet a pass that the rules or
    the shapes do not allow: in a server that pass would end everybody's."""
    limit, longest = rules.max_batch_context_tokens, shapes.max_model_len
    if limit is not None and limit < longest - 1:  # the last output is not stored
        raise ValueError(
            f"max_batch_context_tokens {limit} (VLLM_DT_MAX_BATCH_TKV_LIMIT) is below the longest "
            f"context, {longest} tokens, which one row alone may reach: raise it, or compile "
            f"contexts of at most {limit} (--max-model-len, prefill_shapes and decode_shapes)"
        )
    if rules.layout != "rectangular":
        return
    chunk = min(rules.chunk_tokens or shapes.max_chunk, longest)
    if not shapes.prefill_shapes(chunk, longest):
        raise ValueError(
            f"no prefill shape takes {chunk} tokens at the end of a context of {longest}, which "
            f"rectangular chunks need: compile {chunk},{longest}, or lower chunk_tokens to one "
            f"that is compiled over {longest}"
        )


def next_step(
    waiting: Iterable[W],
    running: Sequence[R],
    free_blocks: int,
    costs: ShapeCosts,
    rules: Rules = RULES,
    decodes_since_chunk: int = NEVER,
    now: float = math.inf,
) -> Step[W, R] | None:
    """What the engine runs next; None where nobody waits or runs.

    `waiting` is in the order of service and read lazily; `running` in the order of admission, so
    only the last may be in prefill. `free_blocks` counts those that nobody holds, cached ones too.

    A chunk goes before a decode pass, unless rows are paused or fewer than `decode_between` passes
    ran since the last chunk; an ongoing prefill goes before a new one. What cannot be prefilled now
    leaves the pass to the rows that decode.

    Raises ValueError for a request that no shape or pool takes: it must be refused before.
    """
    prefilling: R | None = None
    decoding = running
    if running and running[-1].computed_tokens < running[-1].prompt_tokens:
        prefilling, decoding = running[-1], running[:-1]
    for row in decoding:
        if row.paused_for:
            return _decode(running, decoding, free_blocks, costs, rules, 1)
    stable_for, alternates = NEVER, False
    if prefilling is not None:
        if decoding and decodes_since_chunk < rules.decode_between:
            stable_for = rules.decode_between - decodes_since_chunk
            alternates = _never_waits(rules)
        else:
            step = _go_on(prefilling, running, decoding, free_blocks, costs, rules)
            if step is not None:
                return step
            stable_for = 1 if _can_clear(rules) else NEVER
    elif len(running) < costs.max_rows:
        request = _first(waiting, rules, now)
        if request is None:
            if not running:
                return None
        elif decoding and decodes_since_chunk < rules.decode_between:
            stable_for = rules.decode_between - decodes_since_chunk
        else:
            available = free_blocks
            if rules.admission == "reserve":
                for row in running:
                    available -= row.reserved_blocks
            else:
                available -= _starting(decoding)
            chunk = _admit(request, decoding, available, costs, rules)
            if chunk is not None:
                return chunk
            stable_for = 1 if _can_clear(rules) else NEVER
    return _decode(running, decoding, free_blocks, costs, rules, stable_for, alternates)


def _can_clear(rules: Rules) -> bool:
    """Whether what keeps a chunk from running now may be gone after a pass, though nobody ended."""
    return (
        rules.over_limit == "hold" or rules.max_raise_tokens is not None or rules.order != "arrival"
    )


def _first(waiting: Iterable[W], rules: Rules, now: float) -> W | None:
    """Who is admitted next."""
    queue = iter(waiting)
    head = next(queue, None)
    if head is None or rules.order == "arrival" or now - head.arrival_s >= rules.max_age_s:
        return head

    def to_compute(request: W) -> int:
        return request.prompt_tokens - request.hit_blocks * BLOCK_TOKENS

    return min([head, *islice(queue, LOOK_AHEAD - 1)], key=to_compute)


def _admit(
    request: W, decoding: Sequence[R], available: int, costs: ShapeCosts, rules: Rules
) -> Prefill[W] | None:
    """The first chunk of a newcomer; None where it has to wait."""
    tokens = request.prompt_tokens + request.max_tokens
    if tokens > costs.max_model_len:
        raise ValueError(
            f"a request of {request.prompt_tokens} prompt tokens and max_tokens "
            f"{request.max_tokens} is longer than the {costs.max_model_len} tokens that the shapes "
            f"take: shorten it, or compile longer contexts"
        )
    kept = tokens if rules.admission == "reserve" else request.prompt_tokens + 1
    needed = blocks_of(kept) - request.shared_blocks
    if needed > available - (rules.min_free_blocks if decoding else 0):
        if decoding:
            return None
        raise ValueError(
            f"a request of {tokens} tokens needs {needed} blocks of {BLOCK_TOKENS} and an idle "
            f"engine has {available}: give the cache more blocks, or the request fewer tokens"
        )
    if rules.max_raise_tokens is not None and rules.layout == "rectangular" and decoding:
        width = max([blocks_of(row.computed_tokens + 1) for row in decoding])
        raised = (blocks_of(request.prompt_tokens + 1) - width) * BLOCK_TOKENS
        if raised > rules.max_raise_tokens:
            return None
    in_a_row = not rules.decode_between  # then the last chunk must not have to wait
    goes_on = _never_waits(rules) and (in_a_row or not decoding)
    computed = request.hit_blocks * BLOCK_TOKENS
    chunk = next_chunk(request, computed, costs, rules, is_first=True, goes_on=goes_on)
    if (chunk.is_last or in_a_row) and not _may_join(request, decoding, costs, rules):
        return None
    return chunk


def _never_waits(rules: Rules) -> bool:
    """Whether a request in prefill gets its chunks whatever comes: its blocks are reserved, and no
    row keeps it from joining."""
    return rules.admission == "reserve" and rules.over_limit == "pause"


def _go_on(
    request: R,
    running: Sequence[R],
    decoding: Sequence[R],
    free_blocks: int,
    costs: ShapeCosts,
    rules: Rules,
) -> Prefill[R] | Preempt[R] | None:
    """The next chunk of the request in prefill; None where its last has to wait."""
    goes_on = _never_waits(rules) and not (decoding and rules.decode_between)
    chunk = next_chunk(request, request.computed_tokens, costs, rules, goes_on=goes_on)
    if chunk.is_last and not _may_join(request, decoding, costs, rules):
        return None
    stored = request.computed_tokens + chunk.tokens
    if blocks_of(stored) - request.held_blocks > free_blocks:
        return _newest(running)
    return chunk


def next_chunk(
    request: Q,
    computed: int,
    costs: ShapeCosts,
    rules: Rules,
    *,
    is_first: bool = False,
    goes_on: bool = False,
) -> Prefill[Q]:
    """The chunk behind the computed tokens: as long as a shape takes, in the cheapest that does. Of
    the request only its `prompt_tokens` matter."""
    prompt = request.prompt_tokens
    most = rules.chunk_tokens or costs.max_chunk
    start, tokens = computed, 0
    if rules.layout == "rectangular":  # a grid of chunks that ends with the prompt's last block
        before = -(-prompt // most) * most - blocks_of(prompt) * BLOCK_TOKENS
        begin = (before + computed) // most * most - before
        start, tokens = max(0, begin), min(begin + most, prompt) - computed
    else:
        left = min(most, prompt - computed)
        for cost in costs.prefill:
            shape = cost.shape
            room = shape.context_length - computed
            if room > shape.chunk_length:
                room = shape.chunk_length
            if room >= left:
                tokens = left
                break
            if room > tokens:
                tokens = room
    again, end = computed - start, computed + tokens
    cheapest: PrefillShape | None = None
    least_s = math.inf
    for cost in costs.prefill:
        shape = cost.shape
        if end - start <= shape.chunk_length and end <= shape.context_length:
            seconds = cost.pass_s(start)
            if seconds < least_s:
                cheapest, least_s = shape, seconds
    if cheapest is None:
        raise ValueError(
            f"no prefill shape takes {end - start} tokens behind {start}: compile a chunk of "
            f"{end - start} tokens or more over a context of {end} or more"
        )
    is_last = end == prompt
    return Prefill(request, tokens, cheapest, is_first, is_last, again, goes_on and not is_last)


def _may_join(request: Request, decoding: Sequence[R], costs: ShapeCosts, rules: Rules) -> bool:
    """Whether every pass to come is covered with a request whose prompt ends now. Of a rectangle
    too the longest row says which shapes do: they are whole blocks."""
    if rules.over_limit == "pause" or not decoding:
        return True
    if rules.layout == "rectangular" and not _stays_within(request, decoding, rules):
        return False
    limit = rules.max_batch_context_tokens
    newcomer = (request.max_tokens - 1, request.prompt_tokens)
    rows = [(_still(row), row.computed_tokens) for row in decoding] + [newcomer]
    for still, _ in rows:  # just before somebody ends, the context is the longest of so many rows
        left = [stored + still for remaining, stored in rows if remaining >= still]
        if still > 0 and _covered(len(left), max(left), costs, limit) is None:
            return False
    return True


def _still(row: Running) -> int:
    """Decode passes that a row may need."""
    return row.prompt_tokens + row.max_tokens - 1 - row.computed_tokens


def _stays_within(request: Request, decoding: Sequence[R], rules: Rules) -> bool:
    """Upstream's look-ahead: each row's longest context, rounded up to a block and with one of
    slack, as the batch shrinks. Rows behind the newcomer's end were looked at when they came."""
    if rules.max_batch_context_tokens is None:
        return True
    stored = [row.computed_tokens for row in decoding]
    common = max(max(_aligned(stored)), request.prompt_tokens)
    own = common // BLOCK_TOKENS * BLOCK_TOKENS + request.prompt_tokens % BLOCK_TOKENS
    longest = _with_slack(own + request.max_tokens - 1)
    rows = len(decoding) + 1
    largest = 0
    for end in sorted([_with_slack(common + _still(row)) for row in decoding]):
        largest = max(largest, rows * min(longest, end))
        if longest <= end:
            break
        rows -= 1
    return largest <= rules.max_batch_context_tokens


def _with_slack(tokens: int) -> int:
    return (blocks_of(tokens) + 1) * BLOCK_TOKENS


def _aligned(stored: Sequence[int]) -> list[int]:
    """The rows' contexts, each padded by whole blocks to the most blocks of any."""
    width = max([blocks_of(tokens) for tokens in stored])
    return [(width - blocks_of(tokens)) * BLOCK_TOKENS + tokens for tokens in stored]


def _context(rows: Sequence[R], rules: Rules) -> int:
    """Tokens of the longest row of a pass, its new one included."""
    if rules.layout == "rectangular":
        return max(_aligned([row.computed_tokens + 1 for row in rows]))
    longest = 0
    for row in rows:  # before every pass; `max` takes twice as long
        if row.computed_tokens > longest:
            longest = row.computed_tokens
    return longest + 1


def _covered(rows: int, context: int, costs: ShapeCosts, limit: int | None) -> DecodeShape | None:
    """The cheapest shape of such a pass; None where there is none, or the limit is below."""
    if limit is not None and rows * context > limit:
        return None
    for shape in costs.cheapest_decode:
        if rows <= shape.rows and context <= shape.context_length:
            return shape
    return None


def _decode(
    running: Sequence[R],
    decoding: Sequence[R],
    free_blocks: int,
    costs: ShapeCosts,
    rules: Rules,
    stable_for: int,
    alternates: bool = False,
) -> Decode[R] | Preempt[R]:
    """A pass of all rows, or of those whose turn it is, in the cheapest shape that covers them."""
    rows, context = len(decoding), _context(decoding, rules)
    limit = rules.max_batch_context_tokens
    shape = _covered(rows, context, costs, limit)
    if shape is None:
        decoding, shape = _in_turn(decoding, costs, rules)
        rows, context, stable_for, alternates = len(decoding), _context(decoding, rules), 1, False
    covered_for = shape.context_length - context + 1
    if limit is not None:
        covered_for = min(covered_for, limit // rows - context + 1)
    if rules.layout == "rectangular":  # until a row begins a block, and all are aligned anew
        starts = min([BLOCK_TOKENS - row.computed_tokens % BLOCK_TOKENS for row in decoding])
        covered_for = min(covered_for, starts)
    if rules.admission == "preempt":
        if _starting(decoding) > free_blocks:
            return _newest(running)
        spare = free_blocks // rows
        covered_for = min(covered_for, spare * BLOCK_TOKENS if spare else 1)
    if stable_for > covered_for:
        stable_for = covered_for
    return Decode(tuple(decoding), shape, context, stable_for, covered_for if alternates else 0)


def _starting(decoding: Sequence[R]) -> int:
    """Rows whose next token begins a block."""
    return sum([row.computed_tokens >= row.held_blocks * BLOCK_TOKENS for row in decoding])


def _in_turn(decoding: Sequence[R], costs: ShapeCosts, rules: Rules) -> tuple[list[R], DecodeShape]:
    """The rows of this pass where not all are covered: who paused longest first, then who has the
    fewest outputs, of equals the newest, as long as what is taken stays covered; and their
    shape."""
    limit = rules.max_batch_context_tokens
    sign = -1 if rules.longest_first else 1
    queue = list(reversed(decoding))
    queue.sort(key=lambda row: (-row.paused_for, sign * (row.computed_tokens - row.prompt_tokens)))
    taken: list[R] = []
    of_taken: DecodeShape | None = None
    for row in queue:
        rows = [*taken, row]
        shape = _covered(len(rows), _context(rows, rules), costs, limit)
        if shape is not None:
            taken, of_taken = rows, shape
    if of_taken is None:
        raise ValueError(
            f"a row with a context of {_context(queue[:1], rules)} tokens is above what one row "
            f"may have (max_batch_context_tokens {limit}): raise it, or serve shorter contexts"
        )
    chosen = {id(row) for row in taken}
    return [row for row in decoding if id(row) in chosen], of_taken


def _newest(running: Sequence[R]) -> Preempt[R]:
    """Where the blocks run out, the newest request gives its own back."""
    if len(running) == 1:
        raise ValueError(
            "the only running request needs more blocks than there are: give the cache more "
            "blocks, or the request fewer tokens"
        )
    return Preempt(running[-1])
