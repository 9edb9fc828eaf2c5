"""Two commands measured in turns (base, new, new, base, ...), so that a machine that changes its
pace is slow for both.

A command answers each line that it reads with its figures, a line of JSON, `{"decode_s": 0.05}`.
One that ends after its answer is started anew for the next.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

ONE_SIDE = Path(__file__).with_name("one_side.py")
COLUMNS = ["pair", "figure", "base", "new"]


def engine_command(checkout: Path, **setting: Any) -> str:
    """What measures the engine of a checkout, in this environment; the settings of `one_side.py`.
    Raises ValueError for a folder without an engine."""
    if not (checkout / "spyre_bench" / "engine").is_dir():
        raise ValueError(
            f"{checkout} has no spyre_bench/engine: name a checkout, such as a git worktree"
        )
    words = [sys.executable, "-P", str(ONE_SIDE), json.dumps(setting)]
    return f"PYTHONPATH={shlex.quote(str(checkout.resolve()))} exec {shlex.join(words)}"


def measure_starts_in_turns(base: str, new: str, starts: int, count: int) -> Iterator[pd.DataFrame]:
    """So many pairs of each of several starts of both commands, `start` in a column: two processes
    of the same code differ for as long as they live, by where their memory came to lie."""
    for start in range(starts):
        with Command(base) as first, Command(new) as second:
            yield from (it.assign(start=start) for it in measure_pairs(first, second, count))


def measure_pairs(base: Command, new: Command, count: int) -> Iterator[pd.DataFrame]:
    """Pair after pair: a row for each figure that both have, of COLUMNS. What the first answer of a
    command takes, its start, comes before the first pair.

    Raises ValueError where a command fails, gives no figure, or the two have none in common.
    """
    for side in (base, new):
        side.start()  # both at once
    for side in (base, new):
        side.figures()
    for pair in range(count):
        order = (base, new) if pair % 2 == 0 else (new, base)
        found = {side: side.figures() for side in order}
        was, now = found[base], found[new]
        names = [name for name in was if name in now]
        if not names:
            raise ValueError(
                f"no figure in common: the base has {', '.join(was)}, the new one {', '.join(now)}"
            )
        rows = [(pair, name, was[name], now[name]) for name in names]
        yield pd.DataFrame(rows, columns=COLUMNS)


class Command:
    """A command that measures, in a shell, from its first measurement until it is left."""

    def __init__(self, line: str):
        self.line = line
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def start(self) -> None:
        """Anew, where it runs."""
        self._end()
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self.line, shell=True, stdin=pipe, stdout=pipe, bufsize=0)

    def figures(self) -> dict[str, float]:
        """One more measurement. Raises ValueError where the command does not give any."""
        if self._process and (answer := self._ask()):
            return answer
        self.start()  # it has ended after its last answer, or never ran
        if answer := self._ask():
            return answer
        raise ValueError(
            f"{self.line!r} gave no figures (exit code {self._end()}): it is to print a line of "
            f'JSON such as {{"decode_s": 0.05}} for each line that it reads'
        )

    def _ask(self) -> dict[str, float]:
        """The next line with figures; empty where the command ends without one."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"\n")
        return next(filter(None, map(_figures, self._process.stdout)), {})

    def _end(self) -> int | None:
        """Ends with its input; its exit code."""
        if not self._process:
            return None
        self._process.communicate()
        return self._process.returncode


def _figures(line: bytes) -> dict[str, float]:
    """The numbers of a line of JSON; none of any other line, which is for people."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    if not isinstance(said, dict):
        return {}
    return {name: float(it) for name, it in said.items() if type(it) in (int, float)}
