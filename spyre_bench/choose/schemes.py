"""Prompt lengths to compile, in one dimension: the exact optimum and the schemes of other stacks.

A scheme is a list of bucket boundaries, ascending; a prompt is padded to the first boundary that is
not below it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from spyre_bench.choose.one_dimension import Demand, Optimum, solve
from spyre_bench.shapes import STICK_TOKENS


def optimal(
    lengths: np.ndarray,
    k: int,
    *,
    step: int = STICK_TOKENS,
    cost_of: Callable[[np.ndarray], np.ndarray] | None = None,
    largest: int | None = None,
) -> Optimum:
    """The boundaries, multiples of `step`, that cost least for 1 to `k` of them: exact.

    What a length costs is its boundary (padded tokens), or `cost_of(boundaries)`, which must not
    decrease; `one_dimension.solve` has the programme.
    `largest` makes the last boundary cover more than the longest length.
    """
    if k < 1:
        raise ValueError(f"k {k} is below 1: ask for one bucket or more")
    lengths = _lengths(lengths)
    longest = max(int(lengths.max()), largest or 0)
    boundaries = np.arange(step, round_up(longest, step) + 1, step)
    places = round_up(lengths, step) // step - 1
    weight = np.bincount(places, minlength=len(boundaries)).astype(float)
    f = (
        boundaries.astype(float)
        if cost_of is None
        else np.asarray(cost_of(boundaries), dtype=float)
    )
    if (np.diff(f) < 0).any():
        raise ValueError("cost_of gives a longer bucket a lower cost: it must not decrease")
    return solve(boundaries, weight, f, k)


def padding_share(lengths: np.ndarray, boundaries: Sequence[int]) -> float:
    """Padding over computed prompt tokens. Raises ValueError for a length above the last
    boundary."""
    return Demand.of(_lengths(lengths)).padding_share(boundaries)


def to_match(lengths: np.ndarray, boundaries: Sequence[int], *, largest: int | None = None) -> int:
    """The fewest optimal boundaries that pad no more than `boundaries` do; `largest` as in
    `optimal`."""
    allowed = _lengths(lengths).sum() / (1 - padding_share(lengths, boundaries))
    solved = optimal(lengths, len(boundaries), largest=largest)
    matching = (k for k, cost in enumerate(solved.cost, 1) if cost <= allowed * (1 + 1e-12))
    return next(matching, len(boundaries))


def doublings(first: int, last: int) -> tuple[int, ...]:
    """first, 2·first, ... below `last`, and `last`."""
    sizes = []
    while first < last:
        sizes.append(first)
        first *= 2
    return (*sizes, last)


# --- the schemes of other stacks, for the same lengths --------------------------------------------


def powers_of_two(lengths: np.ndarray, first: int = 64) -> tuple[int, ...]:
    """first, 2·first, ... and the maximum: vLLM on TPU (first 16), Neuron (first 128)."""
    return doublings(first, int(round_up(_lengths(lengths).max(), STICK_TOKENS)))


def exponential(lengths: np.ndarray, step: int = 128) -> tuple[int, ...]:
    """vLLM-Gaudi's default: `step · (max/step)^(i/(limit-1))` rounded up to multiples of `step`,
    with `limit = ceil(log2(max))` values before duplicates go."""
    last = round_up(_lengths(lengths).max(), step)
    limit = max(2, math.ceil(math.log2(last)))
    values = [step * (last / step) ** (i / (limit - 1)) for i in range(limit - 1)]
    return _ascending([round_up(math.ceil(value), step) for value in values] + [last])


def padding_aware(lengths: np.ndarray, step: int = 128, share: float = 0.25) -> tuple[int, ...]:
    """vLLM-Gaudi's `pad`: of the multiples of `step`, one is kept where skipping it would pad the
    next by more than `share` or by more than a quarter of the maximum, and every multiple of
    that quarter."""
    last = round_up(_lengths(lengths).max(), step)
    most = last // 4
    grid = range(step, last + 1, step)
    kept = [step]
    for value, above in itertools.pairwise(grid[1:]):
        padding = above - kept[-1]
        if padding / above > share or padding > most or value % most == 0:
            kept.append(value)
    return _ascending([*kept, last])


def gap(lengths: np.ndarray, largest_gap: int = 512) -> tuple[int, ...]:
    """vLLM on TPU with a padding gap: powers of two from 16 up to the gap, then steps of it."""
    longest = _lengths(lengths).max()
    doubled = [2**i for i in range(4, int(math.log2(largest_gap)) + 1)]
    steps = range(2 * largest_gap, round_up(longest, largest_gap) + 1, largest_gap)
    return _ascending([*doubled, *steps])


def percentiles(lengths: np.ndarray, k: int = 8) -> tuple[int, ...]:
    """Buckets with equal numbers of requests; equal boundaries fall together."""
    levels = np.arange(1, k + 1) / k
    quantiles = np.ceil(np.quantile(_lengths(lengths), levels)).astype(int)
    return _ascending(round_up(quantiles, STICK_TOKENS))


def one(lengths: np.ndarray) -> tuple[int, ...]:
    """A single shape for everything."""
    return (int(round_up(_lengths(lengths).max(), STICK_TOKENS)),)


SCHEMES: dict[str, Callable[[np.ndarray], tuple[int, ...]]] = {
    "powers of two from 64": powers_of_two,
    "powers of two from 128": lambda lengths: powers_of_two(lengths, 128),
    "exponential, step 128": exponential,
    "padding-aware, 25 %": padding_aware,
    "gap 512": gap,
    "percentiles, 8 asked": percentiles,
    "one shape": one,
}
"""Name on a figure -> boundaries for these lengths."""


def against_optimum(lengths: np.ndarray, held_out: np.ndarray | None = None) -> pd.DataFrame:
    """Every scheme against the optimum with as many boundaries, one row per scheme: scheme, k,
    tops, optimal_tops, padding and optimal_padding (shares of the computed prompt tokens), and
    to_match, the fewest optimal boundaries that pad no more.

    With `held_out` also held_out_padding and held_out_optimal_padding, of the same boundaries on
    lengths that were not looked at; all boundaries then reach up to the longest of these too, as a
    server's limit on prompts would demand. Boundaries are rounded up to sticks, since no others can
    be compiled; `k` is what then remains of a scheme.
    """
    lengths = _lengths(lengths)
    largest = int(max(lengths.max(), 0 if held_out is None else _lengths(held_out).max()))
    reaching = _reaching(lengths, largest)
    sets = {
        name: _ascending(round_up(np.array(of(reaching)), STICK_TOKENS))
        for name, of in SCHEMES.items()
    }
    solved = optimal(lengths, max(map(len, sets.values())), largest=largest)
    rows = []
    for name, boundaries in sets.items():
        best = solved[len(boundaries)]
        row: dict[str, Any] = {"scheme": name, "k": len(boundaries)}
        row |= {"tops": boundaries, "optimal_tops": best}
        for prefix, those in {"": lengths, "held_out_": held_out}.items():
            if those is not None:
                row[f"{prefix}padding"] = padding_share(those, boundaries)
                row[f"{prefix}optimal_padding"] = padding_share(those, best)
        rows.append(row | {"to_match": to_match(lengths, boundaries, largest=largest)})
    return pd.DataFrame(rows)


def _reaching(lengths: np.ndarray, largest: int) -> np.ndarray:
    """The lengths, and one of `largest` where none of them is that long."""
    return lengths if lengths.max() >= largest else np.append(lengths, largest)


N = TypeVar("N", int, np.ndarray)


def round_up(value: N, step: int) -> N:
    """The next multiple of `step`, of a number or an array."""
    return -(-value // step) * step


def _ascending(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted({int(value) for value in values}))


def _lengths(lengths: np.ndarray) -> np.ndarray:
    lengths = np.asarray(lengths)
    if not lengths.size or lengths.min() < 1:
        raise ValueError("lengths are empty or below 1 token: give the lengths of some requests")
    return lengths
