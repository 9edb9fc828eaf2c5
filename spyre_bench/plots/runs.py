"""Runs beside each other: a grid of settings, or an earlier run and a later one."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt

from spyre_bench.plots.style import BLUE, GREEN, ORANGE, PURPLE, RED, SKY

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

LINES = ((BLUE, "-"), (RED, "--"), (GREEN, "-."), (PURPLE, ":"), (ORANGE, "-"), (SKY, "--"))
COLUMNS = 3


def small_multiples(frame: pd.DataFrame, title: str, x_label: str) -> np.ndarray:
    """One panel per quantity, one line per series, in a figure of its own; returns the
    panels' Axes.

    `frame`: panel (its title), series, x (numbers or names), value.
    """
    panels = frame.groupby("panel", sort=False)
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(
        rows, columns, squeeze=False, figsize=(1 + 3 * columns, 0.8 + 2.4 * rows)
    )
    axes = grid.ravel()
    for ax, (name, group) in zip(axes, panels, strict=False):
        lines = group.groupby("series", sort=False)
        for (series, points), (colour, line) in zip(lines, itertools.cycle(LINES)):
            ax.plot(
                points["x"],
                points["value"],
                line,
                color=colour,
                marker="o",
                markersize=3,
                label=str(series),
            )
        ax.set_title(name, fontsize=9)
        ax.set_xlabel(x_label)
    for ax in axes[len(panels) :]:
        ax.remove()
    figure.suptitle(title, x=0.01, ha="left")
    labelled = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    figure.legend(labelled.values(), labelled.keys(), loc="outside lower left", ncols=COLUMNS)
    return axes[: len(panels)]
