"""Executes one notebook headless and strictly, and leaves a report of it.

Papermill alone lets an unknown parameter pass with a warning and a wrong type without one; here
both, a missing kernel, a failing cell and a result that is no number are errors, and the executed
notebook is kept anyway.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import signal
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import nbformat
import papermill
import yaml
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError

from spyre_bench import report
from spyre_bench.records import OUTCOME, RESULTS, WHERE, Traits, faults

CONVERT = {"int": int, "float": float, "str": str, "bool": {"True": True, "False": False}.get}
# What nbconvert's pages would fetch from content networks.
NETWORK_ADDRESSES = ("mathjax_url", "require_js_url", "jquery_url", "mermaid_js_url",
                     "mermaid_layout_elk_js_url", "widget_renderer_url")  # fmt: skip


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
        return _kept(self.directory).get("answer")


def measures(notebook: Path) -> bool:
    """Whether nothing may run beside the notebook; of one that cannot be read, False."""
    try:
        return _traits(_read(notebook)).measures
    except ValueError:
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
        parameters = _parameters(task, _declared(task.notebook, document))
        basis = _basis(document, parameters)
        if resume and (earlier := _outcome(task.directory)):
            again = _why_again(earlier, basis)
            if not again:
                return Outcome(task.notebook, task.directory, earlier["seconds"], None, traits,
                               basis, reused=True)  # fmt: skip
        _clear(task.directory)
        error = _execute(task, parameters, progress)
    except Exception as failure:  # whatever it is, the other notebooks still get their turn
        error = _sentence(failure)
        with suppress(ValueError):
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
    _keep(outcome)
    return outcome


class Kernel(AsyncKernelManager):
    """A kernel that `interrupt_kernels` finds."""

    running: ClassVar[weakref.WeakSet[Kernel]] = weakref.WeakSet()

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.running.add(self)


def interrupt_kernels(number: int = signal.SIGINT) -> None:
    """Sends the signal to every kernel of this process and to what the kernel has started."""
    for kernel in list(Kernel.running):
        if kernel.has_kernel and (group := getattr(kernel.provisioner, "pgid", None)):
            try:
                os.killpg(group, number)
            except ProcessLookupError:
                continue


# --- before -------------------------------------------------------------------------------------


def _read(notebook: Path) -> nbformat.NotebookNode:
    try:
        return nbformat.read(notebook, as_version=4)
    except FileNotFoundError as error:
        raise ValueError("there is no such notebook") from error
    except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise ValueError("not a notebook") from error


def _traits(document: nbformat.NotebookNode) -> Traits:
    return Traits.of(document.metadata.get("spyre_bench", {}))


def _declared(notebook: Path, document: nbformat.NotebookNode) -> dict[str, str]:
    """The notebook's parameters with the names of their types; ValueError where it cannot run."""
    kernel = document.metadata.get("kernelspec", {}).get("name")
    installed = sorted(KernelSpecManager().find_kernel_specs())
    if kernel not in installed:
        raise ValueError(
            f"asks for kernel {kernel!r}, which is not installed; there are {installed}. Choose "
            f"one of these in Jupyter and save, or install it with `python -m ipykernel install`"
        )
    declared = papermill.inspect_notebook(_literal(notebook))
    return {name: entry["inferred_type_name"] for name, entry in declared.items()}


def _parameters(task: Task, known: Mapping[str, str]) -> dict[str, Any]:
    """What papermill shall set."""
    _refuse_unknown([*task.given, *task.texts], known)
    texts = {name: _value(name, text, known[name]) for name, text in task.texts.items()}
    ours: dict[str, Any] = {}
    if "output_directory" in known:
        ours["output_directory"] = str(task.directory)
    if "interactive" in known:  # nobody is there to move a widget
        ours["interactive"] = False
    return ours | dict(task.given) | texts


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


# --- what a result hangs on ---------------------------------------------------------------------


def _basis(document: nbformat.NotebookNode, parameters: Mapping[str, Any]) -> dict[str, str]:
    cells = [(cell.cell_type, cell.source) for cell in document.cells]
    said = {name: value for name, value in parameters.items() if name not in WHERE}
    return {
        "notebook": _digest(cells, document.metadata.get("spyre_bench")),
        "parameters": _digest(said, [_content(value) for value in said.values()]),
        "code": _code(),
    }


@cache
def _code() -> str:
    """The package as it is on disk (a commit alone would miss what is edited since), and the
    versions beneath it."""
    package = Path(__file__).parent
    files = sorted(path for path in package.rglob("*") if path.suffix not in ("", ".pyc"))
    contents = [(str(path.relative_to(package)), _content(str(path))) for path in files]
    return _digest(contents, report.versions())


def _content(value: Any) -> str | None:
    """Of a parameter that names a file, such as a cost table."""
    try:
        path = Path(value)
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    except (TypeError, OSError):
        return None


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _why_again(earlier: Mapping[str, Any], basis: Mapping[str, str]) -> str:
    """Empty where the earlier outcome still stands."""
    if earlier["error"]:
        return "it had failed"
    different = [name for name in basis if earlier["basis"].get(name) != basis[name]]
    return f"other {' and '.join(different)}" if different else ""


def _outcome(directory: Path) -> dict[str, Any]:
    try:
        return json.loads((directory / OUTCOME).read_text())
    except FileNotFoundError:
        return {}


def _clear(directory: Path) -> None:
    """Leaves an empty folder: what an earlier run left must not pass for this one's."""
    if not _ours(directory):
        raise ValueError(
            f"{directory} holds something that is of no run: move it away, or name another folder"
        )
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)


def _ours(directory: Path) -> bool:
    """Whether an earlier run made it, or nobody has."""
    return not directory.exists() or (directory / OUTCOME).exists() or not any(directory.iterdir())


# --- the run and what it leaves -----------------------------------------------------------------


def _execute(task: Task, parameters: Mapping[str, Any], progress: bool) -> str | None:
    """Returns what went wrong, if anything."""
    executed = task.directory / "notebook.ipynb"
    # Until it has ended, the folder says that it has not.
    _keep(Outcome(task.notebook, task.directory, 0, "did not end", Traits(), {}))
    error = None
    try:
        papermill.execute_notebook(
            _literal(task.notebook), _literal(executed), parameters=dict(parameters),
            log_output=False, progress_bar=progress, kernel_manager_class=Kernel,
        )  # fmt: skip
    except PapermillExecutionError as failure:
        place = f"In [{failure.exec_count}] ({failure.source.strip().splitlines()[0]})"
        error = f"cell {place}: {failure.ename}: {failure.evalue}"
    except Exception as failure:  # such as a kernel that died
        error = _sentence(failure)
    if executed.exists():
        (task.directory / "report.html").write_text(_html(executed, task.notebook.stem))
    if not error and (kept := _kept(task.directory)):
        error = "; ".join(faults(kept))
    return error


def _sentence(failure: Exception) -> str:
    """An error meant for people speaks for itself, any other has its type before it."""
    kind = "" if type(failure) is ValueError else f"{type(failure).__name__}: "
    return f"{kind}{failure}"


def _keep(outcome: Outcome) -> None:
    if not _ours(outcome.directory):
        return
    outcome.directory.mkdir(parents=True, exist_ok=True)
    facts = {
        "notebook": outcome.notebook.stem,
        "error": outcome.error,
        "seconds": round(outcome.seconds, 3),
        "traits": asdict(outcome.traits),
        "basis": dict(outcome.basis),
    }
    (outcome.directory / OUTCOME).write_text(json.dumps(facts, indent=1) + "\n")


def _kept(directory: Path) -> dict[str, Any]:
    try:
        return json.loads((directory / RESULTS).read_text())
    except FileNotFoundError:
        return {}


def _literal(path: Path) -> str:
    """Papermill reads braces in a path as its own placeholders."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _html(executed: Path, title: str) -> str:
    """The notebook as one page that asks the network for nothing."""
    exporter = HTMLExporter(**dict.fromkeys(NETWORK_ADDRESSES, ""))
    resources = {"metadata": {"name": title}}
    page, _ = exporter.from_notebook_node(nbformat.read(executed, as_version=4), resources)
    return page
