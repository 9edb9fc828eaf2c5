"""Executes notebooks headless and strictly, and leaves a report of each.

Papermill alone lets an unknown parameter pass with a warning and a wrong type without one; here
both, a missing kernel and a failing cell are errors, and the executed notebook is kept anyway.
"""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from jupyter_client.kernelspec import KernelSpecManager
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from papermill.exceptions import PapermillExecutionError
from rich.console import Console
from rich.table import Table

CONVERT = {"int": int, "float": float, "str": str, "bool": {"True": True, "False": False}.get}
# What nbconvert's pages would fetch from content networks.
NETWORK_ADDRESSES = ("mathjax_url", "require_js_url", "jquery_url", "mermaid_js_url",
                     "mermaid_layout_elk_js_url", "widget_renderer_url")  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """One executed notebook: where its report is, and in one line what went wrong."""

    notebook: Path
    directory: Path
    seconds: float
    error: str | None
    answer: str | None  # Markdown; None where the notebook records none

    @property
    def state(self) -> str:
        return "failed" if self.error else "passed"


def run_notebooks(
    notebooks: Sequence[Path],
    output: Path,
    parameters: Mapping[str, str],
    parameters_file: Path | None = None,
) -> bool:
    """Runs each notebook into a folder of its own under `output/<time>`, prints where the report
    is, and returns whether all passed. `parameters` are texts, read as the notebook declares
    them, and come before those of the file, which has one section a notebook."""
    console = Console(stderr=True)
    sections = _sections(parameters_file)
    report = _report_folder(output)
    outcomes = []
    for number, notebook in enumerate(notebooks, 1):
        console.rule(f"{number}/{len(notebooks)} {notebook.stem}", align="left")
        if parameters_file and notebook.stem not in sections:
            console.print(f"{parameters_file} has no section {notebook.stem}: default parameters")
        given = dict(sections.get(notebook.stem) or {})
        outcomes.append(_run(notebook, _fresh(report / notebook.stem), given, parameters))
        if outcomes[-1].error:
            console.print(outcomes[-1].error, style="red", markup=False, soft_wrap=True)
    (report / "index.html").write_text(_index(outcomes))
    console.print(_summary(outcomes))
    Console(soft_wrap=True).print(f"report: {report / 'index.html'}", highlight=False)
    return not any(outcome.error for outcome in outcomes)


def _run(
    notebook: Path, directory: Path, given: dict[str, Any], texts: Mapping[str, str]
) -> Outcome:
    start = time.monotonic()
    executed = directory / "notebook.ipynb"
    error = None
    try:
        known = _inspect(notebook)
        _refuse_unknown(list(given) + list(texts), known)
        given |= {name: _value(name, text, known[name]) for name, text in texts.items()}
        if "output_directory" in known:
            given = {"output_directory": str(directory)} | given
        if "interactive" in known:  # nobody is there to move a widget
            given = {"interactive": False} | given
        papermill.execute_notebook(
            _literal(notebook), _literal(executed), parameters=given, log_output=False
        )
    except PapermillExecutionError as failure:
        place = f"In [{failure.exec_count}] ({failure.source.strip().splitlines()[0]})"
        error = f"cell {place}: {failure.ename}: {failure.evalue}"
    except Exception as failure:  # whatever it is, the other notebooks still get their turn
        error = str(failure)
        if type(failure) is not ValueError:
            error = f"{type(failure).__name__}: {error}"
    if executed.exists():
        (directory / "report.html").write_text(_html(executed, notebook.stem))
    return Outcome(
        notebook=notebook,
        directory=directory,
        seconds=time.monotonic() - start,
        error=error and f"{notebook}: {' '.join(error.split())}",
        answer=_answer(directory),
    )


def _inspect(notebook: Path) -> dict[str, str]:
    """The notebook's parameters with the names of their types; ValueError where it cannot run."""
    try:
        document = nbformat.read(notebook, as_version=4)
    except FileNotFoundError as error:
        raise ValueError("there is no such notebook") from error
    except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise ValueError("not a notebook") from error
    kernel = document.metadata.get("kernelspec", {}).get("name")
    installed = sorted(KernelSpecManager().find_kernel_specs())
    if kernel not in installed:
        raise ValueError(
            f"asks for kernel {kernel!r}, which is not installed; there are {installed}. Choose "
            f"one of these in Jupyter and save, or install it with `python -m ipykernel install`"
        )
    declared = papermill.inspect_notebook(_literal(notebook))
    return {name: entry["inferred_type_name"] for name, entry in declared.items()}


def _refuse_unknown(names: Sequence[str], known: Mapping[str, str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(
                f"has no parameter {name!r}{hint}; it has {', '.join(known) or 'none'}"
            )


def _value(name: str, text: str, kind: str) -> Any:
    """A parameter from the command line as its notebook declares it."""
    convert = CONVERT.get(kind, yaml.safe_load)
    try:
        value = convert(text)
    except (ValueError, yaml.YAMLError):
        value = None
    if value is None:
        raise ValueError(f"parameter {name} = {text!r} is not of type {kind}")
    return value


def _sections(path: Path | None) -> dict[str, Any]:
    if not path:
        return {}
    try:
        sections = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(sections, dict) or not all(
        isinstance(section, dict) for section in sections.values()
    ):
        raise ValueError(f"{path}: write one section a notebook, each with `name: value` lines")
    return sections


def _report_folder(output: Path) -> Path:
    """A new folder named by the time; `latest` beside it points there."""
    output.mkdir(parents=True, exist_ok=True)
    report = _fresh(output.resolve() / datetime.now().strftime("%Y%m%d-%H%M%S"))
    latest = report.with_name("latest")
    latest.unlink(missing_ok=True)
    latest.symlink_to(report.name)
    return report


def _fresh(path: Path) -> Path:
    """Makes the folder, numbered where the name is taken."""
    for number in range(1, 1000):
        try:
            folder = path.with_name(f"{path.name}-{number}") if number > 1 else path
            folder.mkdir()
            return folder
        except FileExistsError:
            continue
    raise ValueError(f"{path}: a thousand folders of this name are there: remove some")


def _literal(path: Path) -> str:
    """Papermill reads braces in a path as its own placeholders."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _html(executed: Path, title: str) -> str:
    """The notebook as one page that asks the network for nothing."""
    exporter = HTMLExporter(**dict.fromkeys(NETWORK_ADDRESSES, ""))
    resources = {"metadata": {"name": title}}
    page, _ = exporter.from_notebook_node(nbformat.read(executed, as_version=4), resources)
    return page


def _answer(directory: Path) -> str | None:
    try:
        return json.loads((directory / "results.json").read_text())["answer"]
    except FileNotFoundError:
        return None


def _summary(outcomes: Sequence[Outcome]) -> Table:
    table = Table("notebook", "outcome", "seconds")
    for outcome in outcomes:
        colour = "red" if outcome.error else "green"
        table.add_row(
            outcome.notebook.stem, f"[{colour}]{outcome.state}[/]", f"{outcome.seconds:.0f}"
        )
    return table


def _index(outcomes: Sequence[Outcome]) -> str:
    parts = ["<!doctype html><meta charset=utf-8><title>spyre_bench report</title>"]
    parts.append("<style>body{font:16px/1.5 sans-serif;max-width:50em;margin:2em auto}</style>")
    for outcome in outcomes:
        folder = escape(outcome.directory.name)
        links = " · ".join(
            f'<a href="{folder}/{escape(path.name)}">{escape(path.name)}</a>'
            for path in sorted(outcome.directory.iterdir())
        )
        text = f"<pre>{escape(outcome.error)}</pre>" if outcome.error else ""
        text += markdown2html(outcome.answer or "")
        parts.append(
            f"<h2>{escape(outcome.notebook.stem)}: {outcome.state}, "
            f"{outcome.seconds:.0f} s</h2><p>{links}</p>{text}"
        )
    return "\n".join(parts)
