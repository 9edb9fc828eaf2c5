"""What the ranks of an engine send each other in a pass: counted and timed by torch's profiler."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch.profiler import ProfilerActivity, profile

REDUCES = ("_c10d_functional::all_reduce", "_c10d_functional::all_reduce_")  # eager, compiled
WAIT = "_c10d_functional::wait_tensor"


@dataclass(frozen=True)
class Collectives:
    """Of one pass on one rank."""

    reduces: int
    reduced_elements: int
    seconds: float  # in the pass's own thread: handing over, and waiting for the slowest rank
    pass_s: float  # the whole pass, under the profiler

    @property
    def share(self) -> float:
        return self.seconds / self.pass_s


def profile_pass(run: Callable[[], object]) -> Collectives:
    """Runs one pass under the profiler; every rank must run the same one."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        run()
    events = profiler.events()
    reduces = [event for event in events if event.name in REDUCES]
    waits = [event for event in events if event.name == WAIT]
    start = min(event.time_range.start for event in events)
    end = max(event.time_range.end for event in events)
    return Collectives(
        reduces=len(reduces),
        reduced_elements=sum(math.prod(event.input_shapes[0]) for event in reduces),
        seconds=sum(event.cpu_time_total for event in (*reduces, *waits)) / 1e6,
        pass_s=(end - start) / 1e6,
    )
