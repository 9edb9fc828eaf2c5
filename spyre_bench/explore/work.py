"""Work that takes longer than a moment: a button starts it, a bar shows how far it is, another
button cancels it, and the kernel answers meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any, NamedTuple


class Step(NamedTuple):
    """What comes next, and the share of all the work that is done before it."""

    share: float
    what: str


Steps = Generator[Step, None, Any]
"""Work in steps; what it returns is its result."""


class Work:
    """Runs the steps of `start()` in a thread, one after the other, and hands the result to `show`,
    or an error to `fail`; both are called where the kernel handles widgets, as pyplot wants it.

    A cancelled step runs to its end unseen: Python cannot stop a thread.
    """

    def __init__(
        self,
        label: str,
        start: Callable[[], Steps],
        show: Callable[[Any], None],
        fail: Callable[[Exception], None],
    ):
        import ipywidgets as widgets

        self._start, self._show, self._fail = start, show, fail
        self._task: asyncio.Task | None = None
        self.begin = widgets.Button(description=label, layout={"width": "auto"})
        self.stop = widgets.Button(description="Cancel", layout={"width": "auto"})
        self.bar = widgets.FloatProgress(max=1.0)
        self.what = widgets.Label()
        self.box = widgets.HBox([self.begin, self.bar, self.stop, self.what])
        self.begin.on_click(lambda _: self._begin())
        self.stop.on_click(lambda _: self.cancel())
        self._running(False)

    def cancel(self) -> None:
        """Ends the work, if there is any; its result will not be shown."""
        if self._task:
            self._task.cancel()

    def _begin(self) -> None:
        self._running(True)
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            steps, step = self._start(), Step(0.0, "")
            while step:
                self.bar.value, self.what.value = step
                step, result = await asyncio.to_thread(_advance, steps)
            self._show(result)
            self.what.value = ""
        except asyncio.CancelledError:
            self.what.value = "cancelled"
        except Exception as error:
            self.what.value = ""
            self._fail(error)
        finally:
            self._task = None
            self._running(False)

    def _running(self, running: bool) -> None:
        self.begin.disabled = running
        for widget in (self.bar, self.stop):
            widget.layout.display = None if running else "none"


def _advance(steps: Steps) -> tuple[Step | None, Any]:
    """The next step, or None and the result."""
    try:
        return next(steps), None
    except StopIteration as end:
        return None, end.value
