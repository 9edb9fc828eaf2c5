"""What an engine reads the time from, and how a simulated device lets it pass: the system's clock,
on which a pass sleeps, or a virtual one, which jumps.

Scheduler and runner share one. They meet in vLLM's configuration, see `config.note_warmup`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class Clock(Protocol):
    def wall(self) -> float:
        """Seconds as requests' arrivals have them."""
        ...

    def monotonic(self) -> float:
        """Seconds that are never set back."""
        ...

    def wait_until(self, at_s: float) -> None:
        """Until `monotonic` says so."""
        ...


class SystemClock:
    wall = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)

    def wait_until(self, at_s: float) -> None:
        time.sleep(max(0.0, at_s - time.monotonic()))


class VirtualClock:
    """Seconds since the engine was ready. Nothing but work and waiting for it makes them pass."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def wall(self) -> float:
        return self.now_s

    monotonic = wall

    def wait_until(self, at_s: float) -> None:
        self.now_s = max(self.now_s, at_s)


SYSTEM = SystemClock()
NOTED = "spyre_engine_clock"


def note_clock(vllm_config: VllmConfig, clock: Clock) -> None:
    """Keeps the engine's clock with its configuration, for the scheduler."""
    vllm_config.additional_config[NOTED] = clock


def noted_clock(vllm_config: VllmConfig) -> Clock:
    return vllm_config.additional_config.get(NOTED, SYSTEM)
