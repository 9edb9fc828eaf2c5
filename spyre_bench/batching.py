"""Which waiting requests run together next, and how much of such a batch is waste.

The one scheduling decision, pure: vLLM's scheduler and the simulator both call `next_batch`, and
both count waste with `WasteLedger`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Generic, Protocol, TypeVar

from spyre_bench.shapes import Bucket, BucketSet


class Waiting(Protocol):
    """What the decision may know of a request: never how long its answer will really be."""

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def arrival_s(self) -> float: ...


R = TypeVar("R", bound=Waiting)


@dataclass(frozen=True, slots=True)
class Batch(Generic[R]):
    """The members run together in the bucket, row by row in this order."""

    bucket: Bucket
    members: tuple[R, ...]


def next_batch(
    waiting: Iterable[R], buckets: BucketSet, *, now: float = math.inf, gather_s: float = 0.0
) -> Batch[R] | None:
    """The batch that an idle engine runs next; None while there is none to run yet.

    `waiting` is in the order of service. Its head is always a member, so nobody starves: each
    batch serves the request that waits longest. Every bucket that fits the head is filled from
    the queue, in order, with what fits it; most members win, then the fewest padded tokens, then
    the smaller bucket. The queue is read only until every such bucket is full.

    A batch that later arrivals could still join is held until `gather_s` seconds after the
    oldest arrival, so that simultaneous requests share it. `now` is of the clock of `arrival_s`;
    left out, everybody has arrived long ago.

    Raises ValueError for a head that fits no bucket: such a request must be refused before.
    """
    queue = iter(waiting)
    head = next(queue, None)
    if head is None:
        return None
    buckets.require_fit(head.prompt_tokens, head.max_tokens)
    filled = {bucket: [head] for bucket in buckets.fitting(head.prompt_tokens, head.max_tokens)}
    oldest_s = head.arrival_s
    for request in _until_full(queue, filled):
        oldest_s = min(oldest_s, request.arrival_s)
        for bucket, members in filled.items():
            if len(members) < bucket.batch_size and bucket.fits(
                request.prompt_tokens, request.max_tokens
            ):
                members.append(request)
    bucket = min(filled, key=lambda bucket: _preference(bucket, filled[bucket]))
    if not _all_full(filled) and now < oldest_s + gather_s:
        return None
    return Batch(bucket, tuple(filled[bucket]))


def _all_full(filled: dict[Bucket, list[R]]) -> bool:
    return all(len(members) == bucket.batch_size for bucket, members in filled.items())


def _until_full(queue: Iterator[R], filled: dict[Bucket, list[R]]) -> Iterator[R]:
    while not _all_full(filled) and (request := next(queue, None)) is not None:
        yield request


def _preference(bucket: Bucket, members: Sequence[R]) -> tuple[int, int, Bucket]:
    """Sorts the better batch first; padding is counted as if every answer ran to its maximum."""
    ledger = WasteLedger.of_batch(
        bucket, [r.prompt_tokens for r in members], [r.max_tokens for r in members]
    )
    return -len(members), ledger.wasted, bucket


@dataclass(frozen=True, slots=True)
class WasteLedger:
    """Token slots of one batch, or the sum over many: useful + wastes = computed, exactly.

    A batch computes B·P prompt slots and B·S output slots, S being the passes it ran (prefill
    included: it yields the first token).
    """

    useful: int = 0
    batch_pad: int = 0  # rows without a request, prompt and output
    prompt_pad: int = 0  # up to the longest prompt of the batch
    bucket_pad: int = 0  # from there to the bucket's prompt length
    decode_tail: int = 0  # rows finished before the longest answer
    cap: int = 0  # passes after the longest answer

    @classmethod
    def of_batch(
        cls,
        bucket: Bucket,
        prompt_tokens: Sequence[int],
        output_tokens: Sequence[int],
        passes: int | None = None,
    ) -> WasteLedger:
        """The ledger of a batch by its rows; `passes` where it did not end with its longest
        answer, at most `new_tokens`."""
        rows = len(prompt_tokens)
        longest_prompt, longest_output = max(prompt_tokens), max(output_tokens)
        passes = longest_output if passes is None else passes
        assert len(output_tokens) == rows <= bucket.batch_size
        assert longest_prompt <= bucket.prompt_length
        assert longest_output <= passes <= bucket.new_tokens
        return cls(
            useful=sum(prompt_tokens) + sum(output_tokens),
            batch_pad=(bucket.batch_size - rows) * (bucket.prompt_length + longest_output),
            prompt_pad=sum(longest_prompt - tokens for tokens in prompt_tokens),
            bucket_pad=rows * (bucket.prompt_length - longest_prompt),
            decode_tail=sum(longest_output - tokens for tokens in output_tokens),
            cap=bucket.batch_size * (passes - longest_output),
        )

    @property
    def computed(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def wasted(self) -> int:
        return self.computed - self.useful

    @property
    def fill(self) -> float:
        """Useful share of what was computed; 0 for an empty ledger."""
        return self.useful / self.computed if self.computed else 0.0

    def __add__(self, other: WasteLedger) -> WasteLedger:
        return WasteLedger(
            *(getattr(self, f.name) + getattr(other, f.name) for f in fields(WasteLedger))
        )
