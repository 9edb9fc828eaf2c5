"""A notebook as a page of the app: its question, what the last run answered, and the panel.

Of the code only what the panel needs runs, so that nothing is measured and a page is there at once.
A panel of what was measured shows what the last run kept of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from spyre_bench.runs.panel_code import panel_call, panel_code
from spyre_bench.runs.records import Traits, read_results, run_folder

NOTHING_KEPT = (
    "The panel shows what was measured, and no run has measured it yet: `spyre-bench run {}`, then "
    "load this page again."
)
NO_PANEL = "This notebook has no panel: it calls nothing in `explore`."
FIRST_SENTENCE = re.compile(r"\*\*.+?\*\*|.+?[.?!](?=\s|$)", re.DOTALL)


@dataclass(frozen=True)
class Kept:
    """What the last finished run of a notebook left, and where."""

    folder: Path
    results: Mapping[str, Any]

    @property
    def answer(self) -> str:
        return self.results["answer"]

    @property
    def answered_on(self) -> str:
        """Its day and minute, of Greenwich."""
        return self.results["started_at"][:16].replace("T", " ")

    @property
    def in_short(self) -> str:
        """How the answer begins: what is bold there, or its first sentence."""
        found = FIRST_SENTENCE.match(self.answer)
        return (found.group() if found else self.answer).strip("*")


def last_kept(stem: str, runs: Path) -> Kept | None:
    """Of a notebook, the run that started last of those that have finished, but for records that
    cannot be read; None where there is none."""
    finished = []
    for folder in sorted({(it / stem).resolve() for it in (run_folder(runs), *runs.glob("*"))}):
        with suppress(ValueError):
            kept = Kept(folder, read_results(folder))
            finished += [kept] if kept.results.get("finished") else []
    return max(finished, key=lambda it: it.results["started_at"], default=None)


def question(notebook: NotebookNode) -> str:
    """The title of a notebook."""
    return notebook.cells[0].source.splitlines()[0].lstrip("# ")


def has_panel(notebook: NotebookNode) -> bool:
    return bool(panel_code(_code(notebook)))


def page(notebook: NotebookNode, path: Path, runs: Path, home: str) -> NotebookNode:
    """The notebook of `path` as its page; `home` is the address of the list of pages."""
    about, *assumptions = notebook.cells[0].source.split("\n- ")
    kept = last_kept(path.stem, runs)
    cells = [new_markdown_cell(f"[All questions]({home})\n\n{about}")]
    if kept:
        cells.append(new_markdown_cell(_answered(kept)))
    cells.append(_panel(notebook, path, kept))
    if assumptions:
        cells.append(new_markdown_cell("\n- ".join(["", *assumptions])))
    metadata = {**notebook.metadata, "title": question(notebook)}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def _answered(kept: Kept) -> str:
    unless = kept.results.get("unless")
    change = f"\n\n**What would change it:** {unless}" if unless else ""
    return f"{kept.answer}{change}\n\n*Answered by the run of {kept.answered_on} UTC.*"


def _panel(notebook: NotebookNode, path: Path, kept: Kept | None) -> NotebookNode:
    code = panel_code(_code(notebook))
    if not code:
        return new_markdown_cell(NO_PANEL)
    if not Traits.of(notebook.metadata.get("spyre_bench", {})).panel_of_run:
        return new_code_cell(code)
    if not kept:
        return new_markdown_cell(NOTHING_KEPT.format(path))
    call = f"explore.kept.{panel_call(code)}({str(kept.folder)!r})"
    return new_code_cell(f"from spyre_bench import explore\n{call}")


def _code(notebook: NotebookNode) -> Iterator[str]:
    return (cell.source for cell in notebook.cells if cell.cell_type == "code")
