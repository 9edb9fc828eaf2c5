"""What clients ask for: rules that give each request its max_tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from spyre_bench.workload.arrivals import parse_choice
from spyre_bench.workload.trace_files import MAX_TOKENS


class MaxTokens(Protocol):
    def of(self, output_tokens: np.ndarray, recorded: np.ndarray) -> np.ndarray:
        """The max_tokens of each request, from its true output tokens and what the trace recorded;
        all int32 [requests]."""
        ...


@dataclass(frozen=True, slots=True)
class Exact:
    """Clients know the length of their output."""

    def of(self, output_tokens: np.ndarray, recorded: np.ndarray) -> np.ndarray:
        return output_tokens


@dataclass(frozen=True, slots=True)
class Recorded:
    """Clients ask for what they asked for in the trace; where it does not say, as `Exact`."""

    def of(self, output_tokens: np.ndarray, recorded: np.ndarray) -> np.ndarray:
        return recorded


@dataclass(frozen=True, slots=True)
class Fixed:
    """Every client asks for the same."""

    tokens: int

    def __post_init__(self) -> None:
        if not (1 <= self.tokens <= MAX_TOKENS and self.tokens == int(self.tokens)):
            raise ValueError(f"Fixed tokens {self.tokens} is not a whole number, 1 or more")

    def of(self, output_tokens: np.ndarray, recorded: np.ndarray) -> np.ndarray:
        return np.full(len(output_tokens), int(self.tokens), np.int32)


@dataclass(frozen=True, slots=True)
class Multiple:
    """Clients overestimate their output by the same factor; rounded up."""

    factor: float

    def __post_init__(self) -> None:
        if not 1 <= self.factor < math.inf:
            raise ValueError(f"Multiple factor {self.factor} is below 1, or not a number")

    def of(self, output_tokens: np.ndarray, recorded: np.ndarray) -> np.ndarray:
        return scaled_tokens(output_tokens, self.factor)


@dataclass(frozen=True, slots=True)
class Quantile:
    """Every client asks for this quantile of the workload's output tokens; the longer ones are
    cut."""

    q: float

    def __post_init__(self) -> None:
        if not 0 <= self.q <= 1:
            raise ValueError(f"Quantile q {self.q} is not within 0 and 1")

    def of(self, output_tokens: np.ndarray, recorded: np.ndarray) -> np.ndarray:
        tokens = np.quantile(output_tokens, self.q, method="higher")
        return np.full(len(output_tokens), tokens, np.int32)


MAX_TOKENS_RULES: dict[str, tuple[Callable[..., MaxTokens], str]] = {
    "exact": (Exact, "exact"),
    "recorded": (Recorded, "recorded"),
    "fixed": (Fixed, "fixed:256"),
    "multiple": (Multiple, "multiple:2"),
    "quantile": (Quantile, "quantile:0.99"),
}


def parse_max_tokens(value: str | MaxTokens) -> MaxTokens:
    """A rule from text: `exact`, `recorded`, `fixed:TOKENS`, `multiple:FACTOR` or
    `quantile:Q`."""
    return parse_choice("max_tokens", value, MAX_TOKENS_RULES) if isinstance(value, str) else value


def scaled_tokens(tokens: np.ndarray, factor: float) -> np.ndarray:
    """Tokens times a factor, rounded up; 30 × 0.1 is 3, not 4 for a rounding error."""
    return np.ceil(np.round(tokens * factor, 6)).clip(1)
