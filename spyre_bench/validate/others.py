"""How busy other processes keep this machine: the one disturbance that can be seen directly."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
IDLE = (3, 4)  # columns of /proc/stat: idle, and idle until a disk answers


@dataclass(frozen=True)
class CpuTimes:
    """Seconds of CPU up to now."""

    at_s: float  # of the monotonic clock
    machine_s: float  # of all processes
    ours_s: float  # of this process, of children that have ended, and of some sessions' processes

    @classmethod
    def now(cls, *sessions: int) -> CpuTimes:
        """With the processes of these sessions (of a server, of its client) among ours."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        ours_s = time.process_time() + ended.ru_utime + ended.ru_stime + _sessions_s(sessions)
        return cls(time.monotonic(), _machine_s(), ours_s)

    def others_since(self, before: CpuTimes) -> float:
        """Cores that others kept busy since then, on average."""
        used_s = (self.machine_s - before.machine_s) - (self.ours_s - before.ours_s)
        return max(0.0, used_s / max(self.at_s - before.at_s, TICK_S))


def _machine_s() -> float:
    columns = (PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]
    return TICK_S * sum(int(ticks) for place, ticks in enumerate(columns) if place not in IDLE)


def _sessions_s(sessions: tuple[int, ...]) -> float:
    return TICK_S * sum(_ticks(path, sessions) for path in PROC.glob("[0-9]*/stat"))


def _ticks(path: Path, sessions: tuple[int, ...]) -> int:
    """User and system time of a process of one of the sessions, 0 of any other."""
    try:
        columns = path.read_text().rpartition(")")[2].split()
    except OSError:  # it has just ended
        return 0
    return sum(map(int, columns[11:13])) if int(columns[3]) in sessions else 0
