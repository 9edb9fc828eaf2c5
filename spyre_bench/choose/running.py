"""A series of running requests, read from a file: one row per step, or per `count` steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from spyre_bench.choose.export import Needs
from spyre_bench.frames import read_frame

RUNNING, COUNT = "running", "count"  # columns; without the second every row counts once


def read_running(path: Path) -> tuple[Needs, str] | None:
    """What its steps need, and a sentence that says what was read; None for a file without a column
    `running`. Rows where nothing ran are left out. Raises ValueError naming the line of a value
    that is no number of 0 or more."""
    wanted = (RUNNING, COUNT)
    frame = read_frame(path, lambda names: [it for it in names if it in wanted])
    if RUNNING not in frame:
        return None
    running = _numbers(path, frame[RUNNING], "a whole number of 0 or more", whole=True)
    ones = pd.Series(1.0, frame.index, name=COUNT)
    count = _numbers(path, frame.get(COUNT, ones), "a number of 0 or more")
    busy = (running >= 1) & (count > 0)
    if not busy.any():
        raise ValueError(f"{path}: no row has a request running and a count above 0")
    said = (
        f"{path}: {int(busy.sum()):,} rows with up to {int(running[busy].max())} requests running; "
        f"{int((~busy).sum()):,} idle ones left out"
    )
    return Needs(None, running[busy].astype(np.int64), None, count[busy]), said


def _numbers(path: Path, column: pd.Series, what: str, whole: bool = False) -> np.ndarray:
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)
    bad = ~(np.isfinite(numbers) & (numbers >= 0))
    if whole:
        bad |= numbers % 1 != 0
    if bad.any():
        at = int(np.argmax(bad))
        raise ValueError(
            f"{path} line {column.index[at]}: {column.name} {str(column.iloc[at])!r} is not {what}"
        )
    return numbers
