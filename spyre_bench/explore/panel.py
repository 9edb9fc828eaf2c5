"""The panel: controls over a figure that follows them, and beside it a result that is pinned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

from spyre_bench.explore import settings as travelling
from spyre_bench.explore.result import Drawn, Result, Shown, copied, line, link
from spyre_bench.explore.work import Steps, Work

if TYPE_CHECKING:
    from ipywidgets import Box, Widget


def panel(
    draw: Callable[..., Drawn],
    controls: Mapping[str, Widget],
    note: str = "",
    long_work: tuple[str, Callable[..., Steps]] | None = None,
    *,
    name: str = "panel",
    settings: Mapping[str, Any] | None = None,
) -> Box:
    """The controls over the figure of `draw(**values)`, drawn anew whenever a value changes, and
    below it the numbers that it shows, and what one takes along: files, a line of code, a link.

    A ValueError of `draw` is for people and appears as a sentence in the panel; any other error
    appears with its type, since Jupyter would hide it. Either takes the figure away, which would
    be of settings that are no longer shown. `note` says what
    the panel does differently from the notebook, such as fewer requests. `long_work` is the label
    of a button and what it starts, with the same values, in steps that lead to a function which
    draws; it can be cancelled, and ends when a control is moved.

    A pinned result stays beside those that follow, with its settings, and on axes of the same
    range. `name` is that of the function that made the panel, and `settings` are the values to
    begin with: ValueError where no control has them. Those in the link of a page go before.
    """
    import ipywidgets as widgets

    message = widgets.HTML()
    for word, control in controls.items():
        control.description = control.description or word
        control.style.description_width = "initial"
        control.layout.width = f"{len(control.description) + 34}ch"  # the words leave room
    named = {word: control.description for word, control in controls.items()}
    travels = _travels(name)
    pinned = Result(name, named, travels, label="Pinned: ")
    result = Result(name, named, travels)
    pin = widgets.Button(description="Pin this result", layout={"width": "auto"})
    unpin = widgets.Button(description="Unpin", layout={"width": "auto", "display": "none"})

    def values() -> dict[str, Any]:
        return {word: control.value for word, control in controls.items()}

    def arrange(left: Shown | None, right: Shown | None) -> None:
        from spyre_bench.plots.together import same_ranges

        same_ranges([(it.drawn.axes, it.own_ranges) for it in (left, right) if it])
        # after an error too: a figure without its settings would pass for that of the controls
        pinned.show(left, beside=values() if left else None)
        result.show(right, beside=left.values if left else None)
        pin.disabled = right is None
        unpin.layout.display = None if left else "none"

    def show(drawing: Callable[[], Drawn]) -> None:
        try:
            with _no_figure_left():
                arrange(pinned.shown, Shown(drawing(), values()))
            message.value = ""
        except Exception as error:
            fail(error)

    def fail(error: Exception) -> None:
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        arrange(pinned.shown, None)
        message.value = f"<b>{escape(kind + str(error))}</b>"

    pin.on_click(lambda _: arrange(result.shown, result.shown))
    unpin.on_click(lambda _: arrange(None, result.shown))

    rows = []
    if long_work:
        label, steps = long_work
        work = Work(label, lambda: steps(**values()), show, fail)
        rows.append(work.box)

    def redraw(_change: Any = None) -> None:
        if long_work:
            work.cancel()
        show(lambda: draw(**values()))

    travelling.apply(controls, settings or {})
    try:
        travelling.apply(controls, travelling.of_link())
        redraw()
    except ValueError as error:
        fail(ValueError(f"in the link: {error}"))
    for control in controls.values():
        control.observe(redraw, names="value")
    wrapped = {"flex_flow": "row wrap", "grid_gap": "0 2em"}  # a narrow window shows them all
    moved = widgets.HBox(list(controls.values()), layout=wrapped)
    results = widgets.HBox([pinned.box, result.box], layout=wrapped)
    rows = [moved, *rows, widgets.HBox([pin, unpin]), message, results]
    box = widgets.VBox([*rows, widgets.HTML(escape(note))])
    return box.add_class("spyre-panel")


@contextmanager
def _no_figure_left() -> Iterator[None]:
    """Pyplot keeps what is drawn, and Jupyter would show it once more, after an error too."""
    from spyre_bench.plots.style import plt  # it brings the style, before the first figure

    before = set(plt.get_fignums())
    try:
        yield
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)


def _travels(name: str) -> Callable[[Mapping[str, Any]], str]:
    """How to get to some settings again, in lines of HTML, from the cell that runs now."""
    cell = travelling.running_cell()

    def html(values: Mapping[str, Any]) -> str:
        here = ""
        if travelling.in_a_page():
            here = line(link("Link to these settings", escape(travelling.as_link(values))))
        return here + line("In a notebook:") + copied(travelling.as_code(name, values, cell))

    return html
