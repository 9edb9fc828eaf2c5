"""What a figure shows, as a table: to copy from, to read without eyes, and to test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.container import BarContainer
    from matplotlib.lines import Line2D

Row = tuple[str, Any, Any, float]


def drawn(axes: Axes) -> pd.DataFrame:
    """Every point and bar in the figure of an Axes, panel by panel.

    panel (its vertical axis), series (as in the legend), x, y, and of a bar also where it begins,
    as `start`. Where an axis names its places, a place has that name.
    """
    rows = []
    for ax in axes.figure.axes:
        lines = (row for line in ax.lines for row in _points(line))
        bars = (row for some in ax.containers for row in _bars(some))
        for series, x, y, start in (*lines, *bars):
            place = {"x": _place(ax.xaxis, x), "y": _place(ax.yaxis, y)}
            rows.append({"panel": ax.get_ylabel(), "series": series, **place, "start": start})
    return pd.DataFrame(rows, columns=["panel", "series", "x", "y", "start"])


def _points(line: Line2D) -> Iterator[Row]:
    for x, y in np.asarray(line.get_xydata(), dtype=float):
        yield _series(line), x, y, np.nan


def _bars(bars: BarContainer) -> Iterator[Row]:
    for bar in bars:
        x, y, width, height = bar.get_x(), bar.get_y(), bar.get_width(), bar.get_height()
        if bars.orientation == "horizontal":
            yield _series(bars), x + width, y + height / 2, x
        else:
            yield _series(bars), x + width / 2, y + height, y


def _series(artist: Line2D | BarContainer) -> str:
    """Empty for what the legend does not name."""
    label = str(artist.get_label())
    return "" if label.startswith("_") else label


def _place(axis: Axis, value: float) -> float | str:
    """The value, or on an axis whose ticks have texts that of the nearest one."""
    texts = axis.get_major_formatter()
    if not isinstance(texts, FuncFormatter) or not np.isfinite(value):
        return value
    ticks = np.asarray(axis.get_ticklocs(), dtype=float)
    return " ".join(texts(ticks[np.abs(ticks - value).argmin()]).split())
