"""Widgets over tested functions: controls, and below them the figure that these give.

Nothing is computed here that a plain cell could not call, and a notebook draws its figures in
plain cells: a figure that only a widget drew would be missing from the executed notebook.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipywidgets import Box, Widget
    from matplotlib.axes import Axes


def panel(draw: Callable[..., Axes], controls: Mapping[str, Widget], note: str = "") -> Box:
    """The controls over the figure of `draw(**values)`, drawn anew whenever a value changes.

    A ValueError of `draw` is for people and appears as a sentence in the panel, the last figure
    staying; any other error appears with its type, since Jupyter would hide it. `note` says what
    the panel does differently from the notebook, such as fewer requests.
    """
    import ipywidgets as widgets

    figure, message = widgets.Image(format="png"), widgets.HTML()

    def redraw(_change: Any = None) -> None:
        try:
            axes = draw(**{name: control.value for name, control in controls.items()})
            figure.value = _png(axes)
            message.value = ""
        except Exception as error:
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
            message.value = f"<b>{escape(kind + str(error))}</b>"

    for name, control in controls.items():
        control.description = control.description or name
        control.style.description_width = "initial"
        control.observe(redraw, names="value")
    redraw()
    return widgets.VBox(
        [widgets.HBox(list(controls.values())), message, figure, widgets.HTML(escape(note))]
    )


def _png(axes: Axes) -> bytes:
    import matplotlib.pyplot as plt

    picture = io.BytesIO()
    axes.figure.savefig(picture, format="png", dpi=100, bbox_inches="tight")
    plt.close(axes.figure)
    return picture.getvalue()
