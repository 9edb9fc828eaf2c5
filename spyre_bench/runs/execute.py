"""Executes one notebook headless and strictly, and leaves a report of it.

Papermill alone lets an unknown parameter pass with a warning and a wrong type without one; here
both, a missing kernel, a failing cell and a result that is no number are errors, and the executed
notebook is kept anyway.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpecManager
from nbclient.exceptions import CellTimeoutError
from papermill.exceptions import PapermillExecutionError

from spyre_bench.errors import needs, sentence
from spyre_bench.files import code, contents, digest, read_json, replace_text
from spyre_bench.runs import provenance
from spyre_bench.runs.html import notebook_page
from spyre_bench.runs.kernel import Output
from spyre_bench.runs.parameters import (
    declared,
    default_texts,
    given_value,
    literal,
    refuse_unknown,
    value_of,
)
from spyre_bench.runs.records import OUTCOME, WHERE, Traits, faults, read_results

UNFINISHED = "did not end"


@dataclass(frozen=True)
class Task:
    """A notebook to execute into a folder of its own. `texts` are parameters from the command
    line, read as the notebook declares them; they come before the `given` ones."""

    notebook: Path
    directory: Path
    given: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """One executed notebook: where its report is, and in one line what went wrong."""

    notebook: Path
    directory: Path
    seconds: float
    error: str | None
    traits: Traits
    basis: Mapping[str, str]  # what the result hangs on, as digests
    reused: bool = False  # was there already, and nothing it hangs on has changed
    again: str = ""  # why it was not, where an earlier one was there

    @property
    def state(self) -> str:
        return "failed" if self.error else "passed"

    @property
    def answer(self) -> str | None:
        """Markdown; None where the notebook records none."""
        return _answer(self.directory)


def measures(notebook: Path, given: Mapping[str, Any] | None = None) -> bool:
    """Whether nothing may run beside the notebook, with these parameters; of one that cannot be
    read, False."""
    try:
        return bool(_traits(_read(notebook)).of_run(given or {}).measures)
    except (ValueError, OSError):
        return False


def execute(task: Task, *, resume: bool = False, progress: bool = True) -> Outcome:
    """Runs the notebook and keeps `outcome.json` beside its record; errors are in the outcome.

    With `resume` a folder where the same notebook passed with the same parameters, code and
    versions is left as it is."""
    start = time.monotonic()
    traits, basis, again = Traits(), {}, ""
    try:
        document = _read(task.notebook)
        traits = _traits(document)
        known = _declared(task.notebook, document)
        parameters = _parameters(task, known)
        traits = traits.of_run(parameters, known)
        _require(traits.needs)
        basis = _basis(document, parameters)
        if resume and (earlier := _outcome(task.directory)):
            again = _why_again(earlier, basis)
            if not again:
                return Outcome(
                    task.notebook,
                    task.directory,
                    earlier["seconds"],
                    None,
                    traits,
                    basis,
                    reused=True,
                )
        _clear(task.directory)
        error = _execute(task, parameters, progress, traits.cell_timeout_s)
    except Exception as failure:  # whatever it is, the other notebooks still get their turn
        error = sentence(failure)
        with suppress(ValueError, OSError):
            _clear(task.directory)  # nothing ran: what an earlier run left is not of this one
    outcome = Outcome(
        notebook=task.notebook,
        directory=task.directory,
        seconds=time.monotonic() - start,
        error=f"{task.notebook}: {' '.join(error.split())}" if error else None,
        traits=traits,
        basis=basis,
        again=again,
    )
    try:
        _keep(outcome)
    except OSError as failure:
        return replace(outcome, error=f"{task.notebook}: {sentence(failure)}")
    return outcome


def refusal(task: Task) -> str:
    """Why the notebook cannot begin, in a sentence: it is none, has no such parameter, or needs a
    package that is not there; empty where it can."""
    try:
        document = _read(task.notebook)
        known = _declared(task.notebook, document)
        _require(_traits(document).of_run(_parameters(task, known), known).needs)
    except (ValueError, OSError) as error:
        return sentence(error)
    return ""


# --- before -------------------------------------------------------------------------------------


def _read(notebook: Path) -> nbformat.NotebookNode:
    try:
        document = nbformat.read(notebook, as_version=4)
        _ = [(cell.cell_type, cell.source, cell.metadata) for cell in document.cells]
        return document
    except FileNotFoundError as error:
        raise ValueError("there is no such notebook") from error
    except OSError:
        raise
    except Exception as error:  # of nbformat, which looks at nothing before it takes it apart
        raise ValueError(f"not a notebook: {' '.join(str(error).split()):.200}") from error


def _traits(document: nbformat.NotebookNode) -> Traits:
    return Traits.of(document.metadata.get("spyre_bench", {}))


def _require(packages: Sequence[str]) -> None:
    """Before minutes of calculating end at an import. ValueError names the first that is absent."""
    for package in packages:
        if find_spec(package) is None:
            raise ValueError(needs(package))


def _declared(notebook: Path, document: nbformat.NotebookNode) -> dict[str, str]:
    """The notebook's parameters with the names of their types; ValueError where it cannot run."""
    said = document.metadata.get("kernelspec")
    kernel = said.get("name") if isinstance(said, Mapping) else None
    installed = sorted(KernelSpecManager().find_kernel_specs())
    if kernel not in installed:
        raise ValueError(
            f"asks for kernel {kernel!r}, which is not installed; there are {installed}. Choose "
            f"one of these in Jupyter and save, or install it with `python -m ipykernel install`"
        )
    return declared(notebook, document)


def _parameters(task: Task, known: Mapping[str, str]) -> dict[str, Any]:
    """What papermill shall set."""
    refuse_unknown([*task.given, *task.texts], known)
    given = {name: given_value(name, value) for name, value in task.given.items()}
    texts = {name: value_of(name, text, known[name]) for name, text in task.texts.items()}
    ours: dict[str, Any] = {}
    if "output_directory" in known:
        ours["output_directory"] = str(task.directory)
    if "interactive" in known:  # nobody is there to move a widget
        ours["interactive"] = False
    return ours | given | texts


# --- what a result hangs on ---------------------------------------------------------------------


def _basis(document: nbformat.NotebookNode, parameters: Mapping[str, Any]) -> dict[str, str]:
    cells = [(cell.cell_type, cell.source) for cell in document.cells]
    said = {name: value for name, value in parameters.items() if name not in WHERE}
    may_name_files = [*said.values(), *default_texts(document)]
    return {
        "notebook": digest(cells, document.metadata.get("spyre_bench")),
        "parameters": digest(said, [contents(value) for value in may_name_files]),
        "code": _code(),
    }


@cache
def _code() -> str:
    """The package as it is on disk, and the versions beneath it."""
    return digest(code(), provenance.versions())


def _why_again(earlier: Mapping[str, Any], basis: Mapping[str, str]) -> str:
    """Empty where the earlier outcome still stands."""
    if earlier.get("error") == UNFINISHED:
        return "it did not end"
    if earlier.get("error") or not isinstance(earlier.get("basis"), dict):
        return "it had failed"
    different = [name for name in basis if earlier["basis"].get(name) != basis[name]]
    return f"other {' and '.join(different)}" if different else ""


def _outcome(directory: Path) -> dict[str, Any]:
    """Empty where there is none, or where what there is cannot be read."""
    try:
        found = read_json(directory / OUTCOME)
    except (ValueError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _clear(directory: Path) -> None:
    """Leaves an empty folder: what an earlier run left must not pass for this one's, and nothing
    else is taken away."""
    if strange := _strange(directory):
        raise ValueError(
            f"{directory} holds {strange[0]}, which is of no run: move it away, or name another "
            f"folder"
        )
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)


def _strange(directory: Path) -> list[str]:
    """Files there that no run left. Of a run that was ended from outside nobody knows them."""
    there = _files(directory)
    if not (directory / OUTCOME).exists():
        return there
    left = _outcome(directory).get("files")
    return sorted(set(there) - {*left, OUTCOME}) if isinstance(left, list) else []


def _files(directory: Path) -> list[str]:
    """But for what Jupyter keeps there when somebody has opened the notebook."""
    paths = (path.relative_to(directory) for path in sorted(directory.rglob("*")))
    return [
        str(path)
        for path in paths
        if ".ipynb_checkpoints" not in path.parts and not (directory / path).is_dir()
    ]


# --- the run and what it leaves -----------------------------------------------------------------


def _execute(
    task: Task, parameters: Mapping[str, Any], progress: bool, cell_timeout_s: float
) -> str | None:
    """Returns what went wrong, if anything."""
    executed = task.directory / "notebook.ipynb"
    # Until it has ended, the folder says that it has not.
    _keep(Outcome(task.notebook, task.directory, 0, UNFINISHED, Traits(), {}), finished=False)
    error, output = None, Output(task.directory)
    try:
        papermill.execute_notebook(
            literal(task.notebook),
            literal(executed),
            parameters=dict(parameters),
            log_output=False,
            progress_bar={"desc": task.notebook.stem, "leave": False} if progress else False,
            execution_timeout=cell_timeout_s,
            kernel_manager_class=output.kernel(),
        )
    except PapermillExecutionError as failure:
        place = f"In [{failure.exec_count}] ({_first_line(failure.source)})"
        error = f"cell {place}: {failure.ename}: {failure.evalue}"
    except CellTimeoutError:
        error = (
            f"cell {_hanging(executed)} has not ended after {cell_timeout_s:g} s and was given up: "
            f'mend it, or allow more in the notebook\'s metadata, "spyre_bench": '
            f'{{"cell_timeout_s": {2 * cell_timeout_s:g}}}'
        )
    except Exception as failure:  # such as a kernel that died
        error = sentence(failure) + output.mention
    if executed.exists():
        page = notebook_page(executed, task.notebook.stem, _answer(task.directory))
        replace_text(task.directory / "report.html", page)
    return error or _faults(task.directory)


def _answer(directory: Path) -> str | None:
    """Markdown; None where the notebook records none, or none that can be read."""
    with suppress(ValueError):
        answer = read_results(directory).get("answer")
        return answer if isinstance(answer, str) else None
    return None


def _hanging(executed: Path) -> str:
    """The last cell that papermill began."""
    cells = [cell for cell in _read(executed).cells if cell.cell_type == "code"]
    said = "(unknown)"
    for number, cell in enumerate(cells, start=1):
        if cell.metadata.get("papermill", {}).get("start_time"):
            said = f"In [{number}] ({_first_line(cell.source)})"
    return said


def _first_line(source: str) -> str:
    return next(iter(source.strip().splitlines()), "")


def _faults(directory: Path) -> str:
    try:
        kept = read_results(directory)
        return "; ".join(faults(kept)) if kept else ""
    except (ValueError, KeyError, TypeError, AttributeError) as failure:
        return f"its results.json is not as a run leaves it: {sentence(failure)}"


def _keep(outcome: Outcome, finished: bool = True) -> None:
    if _strange(outcome.directory):
        return
    facts = {
        "notebook": outcome.notebook.stem,
        "error": outcome.error,
        "seconds": round(outcome.seconds, 3),
        "traits": asdict(outcome.traits),
        "basis": dict(outcome.basis),
        "files": _files(outcome.directory) if finished else None,
    }
    replace_text(outcome.directory / OUTCOME, json.dumps(facts, indent=1) + "\n")
