"""Which waiting requests run together next: the one scheduling decision, pure. vLLM's scheduler
and the simulator both call `next_batch`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.policy.window import Waiting, Window
from spyre_bench.shapes import Bucket, BucketSet

R = TypeVar("R", bound=Waiting)


class Batch(NamedTuple, Generic[R]):
    """The members run together in the bucket, row by row in this order."""

    cost: BucketCost
    members: tuple[R, ...]

    @property
    def bucket(self) -> Bucket:
        return self.cost.bucket


class Hold(NamedTuple):
    """No batch yet: ask again at the next arrival, at the latest at `until_s`."""

    until_s: float


Step: TypeAlias = Batch[R] | Hold
"""What a policy answers; another scheduler adds its own kinds of steps."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How batches are formed.

    - `fcfs`: the head of the queue and those right behind it, as long as one bucket takes them all;
      the first misfit ends the batch.
    - `skip`: the same, but a misfit is passed over and keeps its place (vLLM-Spyre's rule).
    - `best_fit`: every bucket that the head fits is filled from the queue; the one that costs least
      per member runs.
    - `length_aware`: for every bucket, the largest of the waiting requests that fit it; the batch
      that comes nearest to the shape bound runs. Not head first, hence `max_age_s`.

    A batch that later arrivals could still join is held: until its oldest member has waited
    `gather_s`, so that simultaneous arrivals share it, and, while its bucket has a free row, until
    it has waited `max_wait_s`.

    Nobody starves. Except for `length_aware` the head is always a member, so a request waits for at
    most as many batches as requests were before it. With `length_aware` that holds from the moment
    when the head has waited `max_age_s`: it is then a member of the next batch.

    Long queues cost no more per request than short ones. A request that is passed over while a
    bucket is filled has one request of that bucket fewer before it at the next such look, since the
    head always leaves: without holding it is looked at, in its whole life, at most as often as the
    buckets have rows in all. `length_aware` chooses among `LOOK_AHEAD` full batches of requests,
    and where its host keeps the `Window` it sorts each of them in once.
    """

    name: str = "best_fit"
    max_wait_s: float = 0.0
    gather_s: float = 0.0
    max_age_s: float = 60.0

    def __post_init__(self) -> None:
        if self.name not in POLICIES:
            raise ValueError(f"policy {self.name!r} is not known: use one of {', '.join(POLICIES)}")
        for name in ("max_wait_s", "gather_s", "max_age_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} {getattr(self, name)} is not a number of seconds >= 0")
        for name in ("max_wait_s", "gather_s"):
            if math.isinf(getattr(self, name)):
                raise ValueError(
                    f"{name} is infinite: the last batch would wait for company for ever; give a "
                    f"number of seconds"
                )


class Formed(NamedTuple, Generic[R]):
    """A batch as a policy would form it now; `open` where a later arrival could change it."""

    cost: BucketCost
    members: list[R]
    open: bool


def next_batch(
    waiting: Iterable[R],
    costs: Sequence[BucketCost],
    policy: Policy | None = None,
    now: float = math.inf,
) -> Step[R] | None:
    """What an idle engine does next; None for an empty queue.

    `waiting` is in the order of service, `costs` has one entry per compiled bucket, in the order
    that breaks ties, and `now` is of the clock of `arrival_s` (left out, everybody has arrived long
    ago). Expected seconds count every output at its `max_tokens`. Members keep the order of the
    queue. A host that asks `length_aware` often may keep a `Window` and pass that.

    `waiting` is read lazily: by `fcfs`, `skip` and `best_fit` no further than until every bucket
    that could run is full, by `length_aware` no further than `LOOK_AHEAD` full batches.

    Raises ValueError for a request that fits no bucket where it would have to be served: such a
    request must be refused before.
    """
    policy = policy or Policy()
    queue = iter(waiting)
    head = next(queue, None)
    if head is None:
        return None
    if isinstance(waiting, Window) and policy.name == "length_aware":
        cost, members, growing = _nearest(waiting, head, policy, now)
    else:
        cost, members, growing = POLICIES[policy.name](head, queue, costs, policy, now)
    if growing:
        free = len(members) < cost.bucket.batch_size
        hold_s = max(policy.gather_s, policy.max_wait_s) if free else policy.gather_s
        if hold_s:
            until_s = min([member.arrival_s for member in members]) + hold_s
            if now < until_s:
                return Hold(until_s)
    return Batch(cost, tuple(members))


def _in_order(head: R, queue: Iterator[R], costs: Sequence[BucketCost], passing: bool) -> Formed[R]:
    """The head and what shares a bucket with all members so far; a misfit is passed over, or ends
    the batch."""
    feasible = _fitting(head, costs)
    members, room = [head], max([cost.bucket.batch_size for cost in feasible])
    while len(members) < room:
        request = next(queue, None)
        if request is None:
            break
        taking = [
            cost
            for cost in feasible
            if request.prompt_tokens <= cost.bucket.prompt_length
            and request.max_tokens <= cost.bucket.new_tokens
            and len(members) < cost.bucket.batch_size
        ]
        if taking:
            members.append(request)
            feasible = taking
            room = max([cost.bucket.batch_size for cost in feasible])
        elif not passing:
            return Formed(_cheapest(feasible, members), members, open=False)
    return Formed(_cheapest(feasible, members), members, open=len(members) < room)


def _fcfs(head: R, queue: Iterator[R], costs: Sequence[BucketCost], *__: object) -> Formed[R]:
    return _in_order(head, queue, costs, passing=False)


def _skip(head: R, queue: Iterator[R], costs: Sequence[BucketCost], *__: object) -> Formed[R]:
    return _in_order(head, queue, costs, passing=True)


def _best_fit(head: R, queue: Iterator[R], costs: Sequence[BucketCost], *__: object) -> Formed[R]:
    """Every bucket that the head fits, filled from the queue; least expected seconds per member."""
    fitting = _fitting(head, costs)
    free = max([cost.bucket.batch_size for cost in fitting]) > 1
    request = next(queue, None) if free else None
    if request is None:  # nearly every batch of a light load
        return Formed(_cheapest(fitting, [head]), [head], open=free)
    filling = [(cost, cost.bucket, [head]) for cost in fitting]
    unfilled = [
        (bucket.prompt_length, bucket.new_tokens, bucket.batch_size, members)
        for _, bucket, members in filling
        if bucket.batch_size > 1
    ]
    while unfilled and request is not None:
        prompt_tokens, max_tokens = request.prompt_tokens, request.max_tokens
        filled = False
        for prompt_length, new_tokens, batch_size, members in unfilled:
            if prompt_tokens <= prompt_length and max_tokens <= new_tokens:
                members.append(request)
                filled = filled or len(members) == batch_size
        if filled:
            unfilled = [entry for entry in unfilled if len(entry[3]) < entry[2]]
        request = next(queue, None) if unfilled else None
    cost, _, members = filling[0] if len(filling) == 1 else min(filling, key=_expected_s_per_member)
    return Formed(cost, members, open=bool(unfilled))


def _expected_s_per_member(filling: tuple[BucketCost, Bucket, list[R]]) -> float:
    cost, _, members = filling
    return cost.batch_s(max([r.max_tokens for r in members])) / len(members)


def _length_aware(
    head: R, queue: Iterator[R], costs: Sequence[BucketCost], policy: Policy, now: float
) -> Formed[R]:
    return _nearest(Window(costs, itertools.chain((head,), queue)), head, policy, now)


def _nearest(window: Window[R], head: R, policy: Policy, now: float) -> Formed[R]:
    """The batch nearest to the shape bound. A head older than `max_age_s` must be a member."""
    is_old = math.isfinite(now) and now - head.arrival_s >= policy.max_age_s
    cost, members = window.choose(with_head=is_old)
    return Formed(cost, members, open=len(members) < cost.bucket.batch_size)


POLICIES: dict[str, Callable[..., Formed[Any]]] = {
    "best_fit": _best_fit,
    "skip": _skip,
    "fcfs": _fcfs,
    "length_aware": _length_aware,
}


def _fitting(request: R, costs: Sequence[BucketCost]) -> list[BucketCost]:
    prompt_tokens, max_tokens = request.prompt_tokens, request.max_tokens
    fitting = [
        cost
        for cost in costs
        if prompt_tokens <= cost.bucket.prompt_length and max_tokens <= cost.bucket.new_tokens
    ]
    if not fitting:
        BucketSet(tuple(cost.bucket for cost in costs)).require_fit(prompt_tokens, max_tokens)
    return fitting


def _cheapest(costs: Sequence[BucketCost], members: Sequence[R]) -> BucketCost:
    if len(costs) == 1:
        return costs[0]
    further = max([member.max_tokens for member in members]) - 1
    seconds = [cost.prefill_s + further * cost.decode_s for cost in costs]
    return costs[seconds.index(min(seconds))]
