"""Colours, and the parts that figures share. Importing it loads the style sheet beside it: fonts of
9 points or more on a figure 10 inches wide, colours for colour-blind eyes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

plt.style.use(Path(__file__).with_name("spyre.mplstyle"))

# Okabe and Ito's colours, apart for colour-blind eyes; hatches keep them apart in black and white.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, YELLOW, GREY = "#56B4E9", "#D55E00", "#F0E442", "#BBBBBB"
PASSES = {"prefill": (ORANGE, "///"), "decode": (BLUE, "")}


def captioned(draw: Callable[..., Axes]) -> Callable[..., Axes]:
    """Makes the first paragraph of a figure's docstring its caption: the label of the figure."""
    caption = " ".join(inspect.getdoc(draw).split("\n\n")[0].split())

    @functools.wraps(draw)
    def drawn(*arguments: Any, **settings: Any) -> Axes:
        axes = draw(*arguments, **settings)
        axes.figure.set_label(caption)
        return axes

    return drawn


def new_axes(ax: Axes | None, title: str, *, height: float = 4) -> Axes:
    """The axes given, or those of a new figure of so many inches, under a title on the left."""
    if ax is None:
        _, ax = plt.subplots(figsize=(plt.rcParams["figure.figsize"][0], height))
    ax.set_title(title)
    return ax


def legend(ax: Axes, columns: int = 3) -> Axes:
    """Below the axes, where it covers no data."""
    handles, labels = ax.get_legend_handles_labels()
    ax.figure.legend(handles, labels, loc="outside lower left", ncols=columns)
    return ax


def note(
    ax: Axes, text: str, at: tuple[float, float], right: float = 0, up: float = 0, **style: Any
) -> None:
    """Text beside a point, so many points (1/72 inch) to the right of it and above it."""
    style = {"va": "center", **style}
    ax.annotate(text, at, xytext=(right, up), textcoords="offset points", **style)


def stacked_bars(
    ax: Axes, places: Sequence, parts: Mapping[str, tuple[str, str, str]], values: Mapping, height
) -> np.ndarray:
    """Horizontal bars of the `values` that `parts` name (label, colour, hatch), end to end; a part
    that is 0 everywhere has none. Returns where each row ends."""
    left = np.zeros(len(places))
    for name, (label, colour, hatch) in parts.items():
        widths = np.asarray(values[name])
        if widths.any():
            ax.barh(
                places,
                widths,
                left=left,
                height=height,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.6,
                label=label,
            )
        left = left + widths
    return left


def token_axis(ax: Axes, axis: str, tokens) -> None:
    """Makes the "x" or "y" axis logarithmic, from a little below the least to above the largest."""
    getattr(ax, f"set_{axis}scale")("log", base=2)
    getattr(ax, f"set_{axis}lim")(0.8 * np.min(tokens), 1.25 * np.max(tokens))
    plain_numbers(getattr(ax, f"{axis}axis"))


class PlainLocator(LogLocator):
    """Ticks at powers of ten, and between them where few powers are in sight."""

    def tick_values(self, vmin: float, vmax: float) -> np.ndarray:
        spread = vmax / vmin if vmin > 0 else np.inf
        self.set_params(
            subs=(1, 1.5, 2, 3, 5, 7) if spread < 10 else (1, 2, 5) if spread < 500 else (1,)
        )
        return super().tick_values(vmin, vmax)


def plain_numbers(axis: Axis) -> None:
    """Numbers instead of powers on a logarithmic axis, never so few that it cannot be read."""
    if axis.get_transform().base == 10:
        axis.set_major_locator(PlainLocator())
    axis.set_major_formatter("{x:,.10g}")
    axis.set_minor_formatter("")
