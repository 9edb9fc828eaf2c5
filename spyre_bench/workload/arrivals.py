"""Arrival processes: when requests come. Every draw is from the generator that is passed in."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Protocol, TypeVar

import numpy as np


class Process(Protocol):
    def times(self, requests: int, rng: np.random.Generator | None) -> np.ndarray:
        """Seconds from the start, float64[requests], ascending, none negative."""
        ...


@dataclass(frozen=True, slots=True)
class AllAtOnce:
    """Everybody at 0: the offline case, or a closed batch job."""

    def times(self, requests: int, rng: np.random.Generator | None) -> np.ndarray:
        return np.zeros(requests)


@dataclass(frozen=True, slots=True)
class Constant:
    """One request every 1/rate seconds, the first after one such gap, as vLLM with infinite
    burstiness."""

    rate: float  # requests/s

    def __post_init__(self) -> None:
        _require_positive(self)

    def times(self, requests: int, rng: np.random.Generator | None) -> np.ndarray:
        return np.arange(1, requests + 1) / self.rate


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent users: exponential gaps of mean 1/rate.

    A true Poisson process, so that queueing formulas hold: its span varies with the seed.
    `Gamma(rate, 1.0)` is vLLM's variant, stretched to end at N/rate.
    """

    rate: float  # requests/s

    def __post_init__(self) -> None:
        _require_positive(self)

    def times(self, requests: int, rng: np.random.Generator | None) -> np.ndarray:
        return np.cumsum(_needed(rng).exponential(1 / self.rate, requests))


@dataclass(frozen=True, slots=True)
class Gamma:
    """What `vllm bench serve --request-rate --burstiness` sends.

    Gaps are drawn from Gamma(shape = burstiness, scale = 1/(rate·burstiness)), whose mean is
    1/rate; their sums are then stretched so that the last of N requests comes at N/rate. The
    coefficient of variation of a gap is 1/sqrt(burstiness): 1 is Poisson, less is burstier,
    `inf` is constant.
    """

    rate: float  # requests/s
    burstiness: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(self, infinite=("burstiness",))

    def times(self, requests: int, rng: np.random.Generator | None) -> np.ndarray:
        if math.isinf(self.burstiness):
            return Constant(self.rate).times(requests, rng)
        scale_s = 1 / (self.rate * self.burstiness)
        times_s = np.cumsum(_needed(rng).gamma(self.burstiness, scale_s, requests))
        if requests and times_s[-1] > 0:
            # Quotients of at most 1, so that the last request comes at exactly N/rate.
            times_s = times_s / times_s[-1] * (requests / self.rate)
        return times_s


@dataclass(frozen=True, slots=True)
class OnOff:
    """Poisson at `rate` for `on_s` seconds, then silence for `off_s`, and again: the mean rate
    is rate·on_s/(on_s + off_s)."""

    rate: float  # requests/s while on
    on_s: float
    off_s: float

    def __post_init__(self) -> None:
        _require_positive(self)

    def times(self, requests: int, rng: np.random.Generator | None) -> np.ndarray:
        on_clock_s = Poisson(self.rate).times(requests, rng)  # runs during the on phases only
        return on_clock_s + np.floor(on_clock_s / self.on_s) * self.off_s


@dataclass(frozen=True, slots=True)
class Replay:
    """The recorded times as they are. Only a trace file has any."""

    def times(self, requests: int, rng: np.random.Generator | None) -> np.ndarray:
        raise ValueError(
            "replay needs recorded arrival times, and a table of lengths has none: give the "
            "trace file itself, or draw the arrivals, for example with poisson:2.5"
        )


def _require_positive(
    process: Constant | Poisson | Gamma | OnOff, infinite: tuple[str, ...] = ()
) -> None:
    for field in fields(process):
        value = getattr(process, field.name)
        if not value > 0 or (math.isinf(value) and field.name not in infinite):
            raise ValueError(
                f"{type(process).__name__} {field.name} {value} is not a positive number"
            )


def _needed(rng: np.random.Generator | None) -> np.random.Generator:
    if rng is None:
        raise ValueError(
            "these arrivals are drawn at random: pass rng=numpy.random.default_rng(seed)"
        )
    return rng


# --- as text, for the command line and notebooks --------------------------------------------------

T = TypeVar("T")

PROCESSES: dict[str, tuple[Callable[..., Process], str]] = {
    "all": (AllAtOnce, "all"),
    "constant": (Constant, "constant:4"),
    "poisson": (Poisson, "poisson:2.5"),
    "gamma": (Gamma, "gamma:2.5,0.5"),
    "onoff": (OnOff, "onoff:10,5,20"),
    "replay": (Replay, "replay"),
}


def parse_arrivals(value: str | Process) -> Process:
    """A process from text: `all`, `constant:RATE`, `poisson:RATE`, `gamma:RATE,BURSTINESS`,
    `onoff:RATE,ON_S,OFF_S` or `replay`, rates in requests/s."""
    return parse_choice("arrivals", value, PROCESSES) if isinstance(value, str) else value


def parse_choice(what: str, text: str, choices: Mapping[str, tuple[Callable[..., T], str]]) -> T:
    """One of the choices, given as `name` or `name:number,number`; ValueError with the nearest
    name or an example."""
    name, _, numbers = text.strip().lower().partition(":")
    if name not in choices:
        near = difflib.get_close_matches(name, choices, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        examples = ", ".join(example for _, example in choices.values())
        raise ValueError(f"{what} {text!r} is unknown: {hint}Write one of {examples}")
    make, example = choices[name]
    try:
        return make(*(map(float, numbers.split(",")) if numbers else ()))
    except TypeError as error:
        raise ValueError(
            f"{what} {text!r} has too many numbers or too few: write, for example, {example}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{what} {text!r}: {error}; write, for example, {example}") from error
