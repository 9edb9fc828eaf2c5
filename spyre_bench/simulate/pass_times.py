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
        self,
        now: float,
        cost: DecodeCost,
        rows: int,
        context_tokens: int,
        most: int,
        until_s: float,
    ) -> tuple[int, float, float]:
        """Of at most so many passes, the first of which begins now over so much context in all; the
        last is the one in which it is that time. How many they are comes first; at least 1."""
        ...


class ByCost:
    """Every pass takes its cost."""

    def chunk(self, now: float, cost: PrefillCost, before_tokens: int) -> tuple[float, float]:
        seconds = cost.base_s + cost.slot_s * before_tokens
        return seconds, now + seconds

    def decode(
        self,
        now: float,
        cost: DecodeCost,
        rows: int,
        context_tokens: int,
        most: int,
        until_s: float,
    ) -> tuple[int, float, float]:
        seconds = cost.passes_s(rows, context_tokens, most)
        if most == 1 or seconds <= until_s - now:
            return most, seconds, now + seconds
        return self._until(until_s, now, cost, rows, context_tokens, most)

    def _until(
        self, at_s: float, now: float, cost: DecodeCost, rows: int, context_tokens: int, most: int
    ) -> tuple[int, float, float]:
        """As `decode`, where the last of the passes ends later than that."""
        left_s = at_s - now
        first_s, growth_s = cost.pass_s(rows, context_tokens), cost.slot_s * rows
        # count · first + growth · count · (count - 1) / 2 = left, without cancellation
        linear_s = first_s - growth_s / 2
        root = math.sqrt(max(0.0, linear_s * linear_s + 2 * growth_s * left_s)) + linear_s
        count = min(max(1, math.ceil(2 * left_s / root)), most) if root > 0 else 1
        seconds = cost.passes_s(rows, context_tokens, count)
        while count < most and seconds < left_s:
            count += 1
            seconds = cost.passes_s(rows, context_tokens, count)
        while count > 1 and (less_s := cost.passes_s(rows, context_tokens, count - 1)) >= left_s:
            count, seconds = count - 1, less_s
        return count, seconds, now + seconds


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
        self,
        now: float,
        cost: DecodeCost,
        rows: int,
        context_tokens: int,
        most: int,
        until_s: float,
    ) -> tuple[int, float, float]:
        known = self._known(most)
        place = bisect_left(self._ends_s, until_s, self._ran, self._ran + known) - self._ran
        if place < known or known == most:
            count = min(place + 1, most)
            return count, *self._end(now, count)
        seconds, end_s = self._end(now, known) if known else (0.0, now)
        further, context = most - known, context_tokens + known * rows
        count, rest_s, end_s = self._beyond.decode(end_s, cost, rows, context, further, until_s)
        return known + count, seconds + rest_s, end_s

    def _known(self, count: int) -> int:
        """Of the next so many passes, those whose end is given."""
        return max(0, min(count, len(self._ends_s) - self._ran))

    def _end(self, now: float, count: int) -> tuple[float, float]:
        self._ran += count
        end_s = max(now, self._ends_s[self._ran - 1])
        return end_s - now, end_s
