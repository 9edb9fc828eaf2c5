"""How long passes of continuous batching take: what they cost, or what a server's took."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Protocol

from spyre_bench.cost.shape_cost import DecodeCost, PrefillCost


class PassTimes(Protocol):
    """Asked once for each pass or stretch of passes of one engine, in their order. Answers are
    seconds that it takes, and when it ends."""

    def chunk(self, now: float, cost: PrefillCost, before_tokens: int) -> tuple[float, float]:
        """Of a chunk that begins now, with so many tokens before it."""
        ...

    def decode(
        self, now: float, cost: DecodeCost, rows: int, context_tokens: int, count: int
    ) -> tuple[float, float]:
        """Of so many passes, the first of which begins now over so much context in all."""
        ...

    def passes_until(
        self, at_s: float, now: float, cost: DecodeCost, rows: int, context_tokens: int, most: int
    ) -> int:
        """After how many of at most so many passes it is that time; at least 1."""
        ...


class ByCost:
    """Every pass takes its cost."""

    def chunk(self, now: float, cost: PrefillCost, before_tokens: int) -> tuple[float, float]:
        seconds = cost.pass_s(before_tokens)
        return seconds, now + seconds

    def decode(
        self, now: float, cost: DecodeCost, rows: int, context_tokens: int, count: int
    ) -> tuple[float, float]:
        seconds = cost.passes_s(rows, context_tokens, count)
        return seconds, now + seconds

    def passes_until(
        self, at_s: float, now: float, cost: DecodeCost, rows: int, context_tokens: int, most: int
    ) -> int:
        seconds = at_s - now
        first_s, growth_s = cost.pass_s(rows, context_tokens), cost.slot_s * rows
        # count · first + growth · count · (count - 1) / 2 = seconds, without cancellation
        linear_s = first_s - growth_s / 2
        root = math.sqrt(max(0.0, linear_s * linear_s + 2 * growth_s * seconds)) + linear_s
        if root <= 0 or 2 * seconds >= root * most:
            return most
        count = max(1, math.ceil(2 * seconds / root))
        while count > 1 and cost.passes_s(rows, context_tokens, count - 1) >= seconds:
            count -= 1
        while count < most and cost.passes_s(rows, context_tokens, count) < seconds:
            count += 1
        return count


class Measured:
    """The first pass ends at the first of these seconds, the next at the next; those behind the
    last take their cost."""

    def __init__(self, ends_s: Sequence[float]):
        self._ends_s, self._ran = ends_s, 0
        self._beyond = ByCost()

    def chunk(self, now: float, cost: PrefillCost, before_tokens: int) -> tuple[float, float]:
        if not self._known(1):
            return self._beyond.chunk(now, cost, before_tokens)
        return self._end(now, 1)

    def decode(
        self, now: float, cost: DecodeCost, rows: int, context_tokens: int, count: int
    ) -> tuple[float, float]:
        known = self._known(count)
        seconds, end_s = self._end(now, known) if known else (0.0, now)
        if known == count:
            return seconds, end_s
        further, context = count - known, context_tokens + known * rows
        rest_s, end_s = self._beyond.decode(end_s, cost, rows, context, further)
        return seconds + rest_s, end_s

    def passes_until(
        self, at_s: float, now: float, cost: DecodeCost, rows: int, context_tokens: int, most: int
    ) -> int:
        ends_s, ran, known = self._ends_s, self._ran, self._known(most)
        place = bisect_left(ends_s, at_s, ran, ran + known) - ran
        if place < known or known == most:
            return min(place + 1, most)
        from_s = max(now, ends_s[ran + known - 1]) if known else now
        context, further = context_tokens + known * rows, most - known
        return known + self._beyond.passes_until(at_s, from_s, cost, rows, context, further)

    def _known(self, count: int) -> int:
        """Of the next so many passes, those whose end is given."""
        return max(0, min(count, len(self._ends_s) - self._ran))

    def _end(self, now: float, count: int) -> tuple[float, float]:
        self._ran += count
        end_s = max(now, self._ends_s[self._ran - 1])
        return end_s - now, end_s
