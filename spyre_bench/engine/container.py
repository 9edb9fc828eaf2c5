"""What the container that a process is in leaves it of the machine's memory."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

# of each version of control groups: the limit, what is used, and how it counts files' pages, which
# the system takes back when somebody wants their place
FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    2: ("memory.max", "memory.current", ""),
}


def room_bytes(
    mine: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")
) -> int:
    """The least that this process's control group and those around it leave; a very large number
    where none has a limit."""
    left = [
        bytes_
        for group, version in _groups(mine, mounted)
        if (bytes_ := _left(group, *FILES[version])) is not None
    ]
    return max(0, min(left, default=sys.maxsize))


def _groups(mine: Path, mounted: Path) -> Iterator[tuple[Path, int]]:
    """From the innermost outwards. A container may see its own as the outermost, under the name
    that it has outside: what is not there is passed over."""
    for line in mine.read_text().splitlines() if mine.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version, top = (1, mounted / "memory") if controllers else (2, mounted)
        group = top / path.lstrip("/")
        yield from ((one, version) for one in (group, *group.parents) if one.is_relative_to(top))


def _left(group: Path, limit: str, used: str, prefix: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):  # "max" is no limit
        left = int((group / limit).read_text()) - int((group / used).read_text())
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        of_files = (f"{prefix}active_file", f"{prefix}inactive_file")
        return left + sum(int(counts.get(name, 0)) for name in of_files)
    return None
