"""Figures beside each other: what is the same quantity has the same range in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.category import StrCategoryFormatter
from matplotlib.ticker import FixedFormatter, FuncFormatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

Range = tuple[float, float]
NAMED = (FuncFormatter, FixedFormatter, StrCategoryFormatter)  # their ticks are places, not numbers


def ranges(axes: Axes) -> list[Range]:
    """Of every axis in the figure of an Axes, in the order of `same_ranges`."""
    return [getattr(axis.axes, f"get_{axis.axis_name}lim")() for axis in _every_axis(axes)]


def same_ranges(figures: Sequence[tuple[Axes, Sequence[Range]]]) -> None:
    """Gives each axis the range that covers those of its fellows in the other figures, and where it
    has none the range given with it, as `ranges` found it before."""
    fellows = [_every_axis(axes) for axes, _ in figures]
    comparable = len({len(some) for some in fellows}) == 1
    for some, (_, own) in zip(fellows, figures, strict=True):
        for number, axis in enumerate(some):
            covered = own[number]
            if comparable and _same_quantity([other[number] for other in fellows]):
                covered = _cover([given[number] for _, given in figures])
            getattr(axis.axes, f"set_{axis.axis_name}lim")(covered)


def _every_axis(axes: Axes) -> list[Axis]:
    return [axis for ax in axes.figure.axes for axis in (ax.xaxis, ax.yaxis)]


def _same_quantity(some: Sequence[Axis]) -> bool:
    """Whether they are of the same words and scale, and their ticks are numbers, not places."""
    said = {(axis.get_label_text(), axis.get_scale()) for axis in some}
    return len(said) == 1 and not any(isinstance(it.get_major_formatter(), NAMED) for it in some)


def _cover(some: Sequence[Range]) -> Range:
    """The range of them all, in the direction of the first."""
    low, high = min(map(min, some)), max(map(max, some))
    return (low, high) if some[0][0] <= some[0][1] else (high, low)
