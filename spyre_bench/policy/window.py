"""The waiting requests that `length_aware` chooses from, kept in the order of their size: each is
sorted in once, not before every batch."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any, Generic, Protocol, TypeVar

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.shapes import BucketSet

LOOK_AHEAD = 64
"""How many full batches of waiting requests `length_aware` looks at."""


class Waiting(Protocol):
    """What the decision may know of a request: never how many output tokens it will really have."""

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def arrival_s(self) -> float: ...


R = TypeVar("R", bound=Waiting)
Row = tuple[float, int, int, int, Any]
"""Minus the bound in seconds, minus the prompt tokens, how many came before, `max_tokens`, and the
request: ascending, the largest come first, and of equals the earliest."""


_before = itemgetter(2)


class Window(Generic[R]):
    """The first waiting requests, at most `LOOK_AHEAD` full batches, and for each bucket those that
    it takes, the largest first.

    A request's size is its bound: its share of a full batch of its own kind, in its cheapest
    bucket. A batch of expected seconds T whose members' bounds sum to T wastes nothing. Longer
    prompts first among equals, since outputs of prompts of like length end more nearly together.

    It chooses the same whether it was filled at once, or kept while others came and went.
    """

    def __init__(self, costs: Sequence[BucketCost], waiting: Iterable[R] = ()):
        self._costs = costs
        self.room = LOOK_AHEAD * max([cost.bucket.batch_size for cost in costs])
        # buckets of the same lengths take the same requests
        taken: dict[tuple[int, int], tuple[list[Row], list[tuple[float, float]]]] = {}
        self._fitting: list[tuple[BucketCost, list[Row]]] = []
        for cost in costs:
            bucket = cost.bucket
            rows, shares = taken.setdefault((bucket.prompt_length, bucket.new_tokens), ([], []))
            self._fitting.append((cost, rows))
            size = bucket.batch_size
            shares.append((cost.prefill_s / size, cost.decode_s / size))
        self._lengths = [(*lengths, *rest) for lengths, rest in taken.items()]
        self._members: dict[int, tuple[Row, list[list[Row]]]] = {}  # by identity, in their order
        self._came = 0
        for request in islice(waiting, self.room):
            row, taking = self._enter(request)
            for rows in taking:
                rows.append(row)
        for _, _, rows, _ in self._lengths:
            rows.sort()

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[R]:
        """In the order of the queue."""
        return (row[-1] for row, _ in self._members.values())

    def add(self, request: R) -> None:
        """One more waits, behind all others. Raises ValueError where no bucket takes it."""
        row, taking = self._enter(request)
        for rows in taking:
            insort(rows, row)

    def remove(self, gone: Iterable[R]) -> None:
        """These wait no more."""
        for request in gone:
            row, taking = self._members.pop(id(request))
            for rows in taking:
                del rows[bisect_left(rows, row)]

    def choose(self, with_head: bool) -> tuple[BucketCost, list[R]]:
        """The batch that comes nearest to the shape bound, in the order of the queue: of each
        bucket the largest that fit it, or `with_head` every run of them, by size, that has the head
        of the queue."""
        head, _ = next(iter(self._members.values()))
        best: tuple[BucketCost, list[Row]] | None = None
        most = -1.0
        for cost, rows in self._fitting:
            size = cost.bucket.batch_size
            first = last = 0
            if with_head:
                at = bisect_left(rows, head)
                if at == len(rows) or rows[at] is not head:
                    continue
                first, last = max(0, at - size + 1), max(0, min(at, len(rows) - size))
            near = rows[first : last + size]
            bounds_s = [-row[0] for row in near]
            passes = [row[3] for row in near]
            for start in range(last + 1 - first if near else 0):
                expected_s = cost.batch_s(max(passes[start : start + size]))
                efficiency = sum(bounds_s[start : start + size]) / expected_s  # at most 1
                if efficiency > most:
                    best, most = (cost, near[start : start + size]), efficiency
        assert best is not None, "every request fits a bucket"
        return best[0], [row[-1] for row in sorted(best[1], key=_before)]

    def _enter(self, request: R) -> tuple[Row, list[list[Row]]]:
        """Its row, and of each bucket that takes it the rows."""
        prompt_tokens, max_tokens = request.prompt_tokens, request.max_tokens
        further, bound_s = max_tokens - 1, float("inf")
        taking = []
        for prompt_length, new_tokens, rows, shares in self._lengths:
            if prompt_tokens <= prompt_length and max_tokens <= new_tokens:
                taking.append(rows)
                for prefill_s, decode_s in shares:
                    share_s = prefill_s + further * decode_s
                    if share_s < bound_s:
                        bound_s = share_s
        if not taking:  # it says why
            buckets = tuple(cost.bucket for cost in self._costs)
            BucketSet(buckets).require_fit(prompt_tokens, max_tokens)
        row = (-bound_s, -prompt_tokens, self._came, max_tokens, request)
        self._members[id(request)] = row, taking
        self._came += 1
        return row, taking
