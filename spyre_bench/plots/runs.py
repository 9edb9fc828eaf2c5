"""Runs beside each other: a grid of settings, or an earlier run and a later one."""

from __future__ import annotations

import itertools
import textwrap
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from pandas.api.types import is_numeric_dtype

from spyre_bench.plots.style import BLUE, GREEN, ORANGE, PURPLE, RED, SKY

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes

# colour, line, hatch of a bar
SERIES = (
    (BLUE, "-", ""),
    (RED, "--", "///"),
    (GREEN, "-.", "..."),
    (PURPLE, ":", "\\\\\\"),
    (ORANGE, "-", "xxx"),
    (SKY, "--", "---"),
)
COLUMNS = 3
BAR_INCHES = 0.16
LABEL = 18  # characters of a line of a name


def small_multiples(frame: pd.DataFrame, title: str, x_label: str) -> np.ndarray:
    """One panel per quantity, in a figure of its own; returns the panels' Axes. Over numbers a line
    per series; over names, between which there is nothing, a bar per series and name.

    `frame`: panel (its title), series, x (numbers or names), value.
    """
    panels = frame.groupby("panel", sort=False)
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    names = None if is_numeric_dtype(frame["x"]) else list(dict.fromkeys(frame["x"]))
    series = list(dict.fromkeys(frame["series"]))
    height = 2.4 if names is None else 0.8 + BAR_INCHES * len(names) * (len(series) + 1)
    figure, grid = plt.subplots(
        rows,
        columns,
        squeeze=False,
        figsize=(1 + 3 * columns, 0.8 + height * rows),
        sharey=names is not None,
    )
    axes = grid.ravel()
    for ax, (name, group) in zip(axes, panels, strict=False):
        lines = dict(list(group.groupby("series")))
        for place, (one, style) in enumerate(zip(series, itertools.cycle(SERIES))):
            if one not in lines:
                continue
            if names is None:
                _line(ax, lines[one], str(one), style)
            else:
                share = 0.8 / len(series)  # of the place of a name
                below = share * (place + 0.5) - 0.4
                places = [names.index(name) + below for name in lines[one]["x"]]
                _bars(ax, places, share, lines[one]["value"], str(one), style)
        ax.set_title(name, fontsize=9)
        if names is None:
            ax.set_xlabel(x_label)
    if names is not None:
        shown = [textwrap.fill(str(name), LABEL, break_on_hyphens=False) for name in names]
        axes[0].set_yticks(range(len(names)), shown)
        axes[0].set_ylim(len(names) - 0.5, -0.5)  # the first on top
        for ax in axes[: len(panels)]:
            ax.locator_params(axis="x", nbins=4)
        for row in grid:
            row[0].set_ylabel(x_label)
    for ax in axes[len(panels) :]:
        ax.remove()
    figure.suptitle(title, x=0.01, ha="left")
    labelled = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    if any(map(str, series)):
        figure.legend(labelled.values(), labelled.keys(), loc="outside lower left", ncols=COLUMNS)
    return axes[: len(panels)]


def _line(ax: Axes, points: pd.DataFrame, label: str, style: tuple[str, str, str]) -> None:
    colour, line, _ = style
    points = points.sort_values("x", kind="stable")
    ax.plot(points["x"], points["value"], line, color=colour, marker="o", markersize=3, label=label)


def _bars(
    ax: Axes,
    places: list[float],
    height: float,
    values: pd.Series,
    label: str,
    style: tuple[str, str, str],
) -> None:
    colour, _, hatch = style
    ax.barh(places, values, height, color=colour, hatch=hatch, edgecolor="white", label=label)
