"""The panel: controls over a figure that follows them, and the numbers of that figure."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from spyre_bench.explore.work import Steps, Work

if TYPE_CHECKING:
    from ipywidgets import Box, Widget
    from matplotlib.axes import Axes


def panel(
    draw: Callable[..., Axes],
    controls: Mapping[str, Widget],
    note: str = "",
    long_work: tuple[str, Callable[..., Steps]] | None = None,
) -> Box:
    """The controls over the figure of `draw(**values)`, drawn anew whenever a value changes, and
    below it the numbers that it shows as CSV, to copy from.

    A ValueError of `draw` is for people and appears as a sentence in the panel; any other error
    appears with its type, since Jupyter would hide it. Either takes the figure away, which would
    be of settings that are no longer shown. `note` says what
    the panel does differently from the notebook, such as fewer requests. `long_work` is the label
    of a button and what it starts, with the same values, in steps that lead to a function which
    draws; it can be cancelled, and ends when a control is moved.
    """
    import ipywidgets as widgets

    figure, message = widgets.Image(format="png"), widgets.HTML()
    caption, numbers = widgets.HTML(), widgets.HTML()
    folded = widgets.Accordion([numbers], titles=["The numbers of this figure"])
    figure.layout.max_width = "100%"

    def show(drawing: Callable[[], Axes]) -> None:
        try:
            figure.value, caption.value, numbers.value = _shown(drawing)
            message.value, figure.layout.display = "", None
        except Exception as error:
            fail(error)

    def fail(error: Exception) -> None:
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        figure.value, caption.value, numbers.value = b"", "", ""
        figure.layout.display = "none"  # a browser would draw a broken picture
        message.value = f"<b>{escape(kind + str(error))}</b>"

    def values() -> dict[str, Any]:
        return {name: control.value for name, control in controls.items()}

    below = []
    if long_work:
        label, steps = long_work
        work = Work(label, lambda: steps(**values()), show, fail)
        below.append(work.box)

    def redraw(_change: Any = None) -> None:
        if long_work:
            work.cancel()
        show(lambda: draw(**values()))

    for name, control in controls.items():
        control.description = control.description or name
        control.style.description_width = "initial"
        control.layout.width = f"{len(control.description) + 34}ch"  # the words leave room
        control.observe(redraw, names="value")
    redraw()
    line = widgets.HBox(list(controls.values()))
    line.layout.flex_flow = "row wrap"  # a narrow window shows them all
    explained = widgets.HTML(escape(note))
    box = widgets.VBox([line, *below, message, figure, caption, explained, folded])
    return box.add_class("spyre-panel")


def _shown(drawing: Callable[[], Axes]) -> tuple[bytes, str, str]:
    """The figure as PNG, its caption, and its numbers as CSV."""
    import matplotlib.pyplot as plt

    from spyre_bench import plots  # before the first figure: it brings the style

    axes, picture = drawing(), io.BytesIO()
    try:
        # Not bbox_inches="tight", which draws all of it twice: the style leaves no margin anyway.
        axes.figure.savefig(picture, format="png", dpi=100)
        table = plots.drawn(axes).to_csv(index=False, float_format="%.6g")
    finally:
        plt.close(axes.figure)
    caption = f"<i>{escape(axes.figure.get_label())}</i>"
    return picture.getvalue(), caption, f"<pre>{escape(table)}</pre>"
