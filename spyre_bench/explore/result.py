"""A result in a panel: its figure, its numbers, and what one takes along of it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from spyre_bench.plots.together import Range

SCREEN_DPI, PRINT_DPI = 100, 200
SHARP = {"max_width": "100%", "align_self": "flex-start"}  # never wider than it was drawn
NUMBERS, ALONG = range(2)  # what is folded below a figure
TITLES = ("The numbers of this figure", "Take along: figure, table, settings")
KINDS = {
    "png": "image/png",
    "svg": "image/svg+xml",
    "csv": "text/csv",
    "json": "application/json",
}


class Drawn(NamedTuple):
    """What a panel draws: the figure, and where a server could be started from it, what
    `--additional-config` takes and the further options of `vllm serve`."""

    axes: Axes
    configuration: Mapping[str, Any] | None = None
    options: str = ""


@dataclass
class Shown:
    """A drawing, the settings it is of, and the ranges of its axes when it stands alone."""

    drawn: Drawn
    values: Mapping[str, Any]
    own_ranges: list[Range] = field(init=False)

    def __post_init__(self):
        from spyre_bench.plots.together import ranges

        self.own_ranges = ranges(self.drawn.axes)

    @property
    def caption(self) -> str:
        return self.drawn.axes.figure.get_label()

    def picture(self, kind: str, dpi: int) -> bytes:
        """As "png" or "svg"."""
        picture = io.BytesIO()
        # Not bbox_inches="tight", which draws all of it twice: the style leaves no margin anyway.
        self.drawn.axes.figure.savefig(picture, format=kind, dpi=dpi)
        return picture.getvalue()

    def table(self, digits: str | None = None) -> str:
        """The numbers as CSV."""
        from spyre_bench import plots

        return plots.drawn(self.drawn.axes).to_csv(index=False, float_format=digits)

    def files(self) -> dict[str, bytes]:
        """By the endings of their names."""
        files = {kind: self.picture(kind, PRINT_DPI) for kind in ("png", "svg")}
        files["csv"] = self.table().encode()
        if self.drawn.configuration:
            files["json"] = f"{json.dumps(self.drawn.configuration)}\n".encode()
        return files


class Result:
    """The widgets of a result. `named` are the words for its settings, `travels` how to get to them
    again, in lines of HTML; `label` stands before its settings."""

    def __init__(
        self,
        name: str,
        named: Mapping[str, str],
        travels: Callable[[Mapping[str, Any]], str],
        label: str = "",
    ):
        import ipywidgets as widgets

        self.shown: Shown | None = None
        self._name, self._named, self._travels, self._label = name, named, travels, label
        self.settings, self.caption = widgets.HTML(), widgets.HTML()
        self.figure = widgets.Image(format="png", layout=SHARP)
        self.numbers, self.along = widgets.HTML(), widgets.HTML()
        self.folded = widgets.Accordion([self.numbers, self.along], titles=TITLES)
        self.folded.observe(self._take_along, names="selected_index")
        self.box = widgets.VBox([self.settings, self.figure, self.caption, self.folded])
        self.box.layout.flex = "1 1 800px"  # beside another one where the letters stay readable
        self.box.layout.max_width = "100%"
        self.box.add_class("spyre-result")

    def show(self, shown: Shown | None, beside: Mapping[str, Any] | None = None) -> None:
        """Nothing, or this; with its settings, where it stands beside what is of others."""
        self.shown = shown
        self.box.layout.display = None if shown else "none"
        self.figure.value = shown.picture("png", SCREEN_DPI) if shown else b""
        self.caption.value = f"<i>{escape(shown.caption)}</i>" if shown else ""
        self.numbers.value = f"<pre>{escape(shown.table('%.6g'))}</pre>" if shown else ""
        self.settings.value = self._words(shown.values, beside) if shown and beside else ""
        self._take_along()

    def _words(self, values: Mapping[str, Any], others: Mapping[str, Any]) -> str:
        """The settings; those that the other one has not are bold."""
        parts = []
        for name, value in values.items():
            text = escape(f"{self._named[name]}: {_short(value)}")
            parts.append(text if value == others[name] else f"<b>{text}</b>")
        return self._label + " · ".join(parts)

    def _take_along(self, _change: Any = None) -> None:
        """The files are made only where they are looked at."""
        self.along.value = ""
        if not self.shown or self.folded.selected_index != ALONG:
            return
        files = self.shown.files()
        html = line(" · ".join(_download(self._name, kind, data) for kind, data in files.items()))
        if "json" in files:
            options = f" {self.shown.drawn.options}" if self.shown.drawn.options else ""
            command = f'vllm serve MODEL{options} --additional-config "$(cat {self._name}.json)"'
            html += line("Serve it:") + copied(command)
        self.along.value = html + self._travels(self.shown.values)


def copied(text: str) -> str:
    """A line that one click selects."""
    style = "user-select: all; white-space: pre-wrap; margin: 0 0 .5em 1em"
    return f'<pre style="{style}">{escape(text)}</pre>'


def line(html: str) -> str:
    return f'<div style="line-height: 1.7">{html}</div>'


def link(words: str, address: str, attributes: str = "") -> str:
    """Jupyter shows it as plain text where nothing says otherwise."""
    style = "color: #0072b2; text-decoration: underline"
    return f'<a style="{style}" href="{address}" {attributes}>{escape(words)}</a>'


def _download(name: str, kind: str, data: bytes) -> str:
    address = f"data:{KINDS[kind]};base64,{base64.b64encode(data).decode()}"
    return link(f"{name}.{kind}", address, f'download="{escape(name)}.{kind}"')


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
