"""Many notebooks: those that only calculate side by side, those that measure one by one and beside
nothing, and one index of what came of them.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import replace
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from rich.console import Console

from spyre_bench.files import in_use, read_yaml, replace_text
from spyre_bench.runs.execute import Outcome, Task, execute, measures, refusal
from spyre_bench.runs.html import markdown
from spyre_bench.runs.kernel import interrupt_kernels
from spyre_bench.runs.records import OURS, Traits

UNPRINTABLE = re.compile(r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML
FOLDER = "%Y%m%d-%H%M%S"  # of a run, by its time
INDEX = "index.html"
RELOAD_S = 20  # of that page, as long as it grows
PATIENCE_S = 10.0  # between two interrupts: a notebook may have a server to end


def run_notebooks(
    notebooks: Sequence[Path],
    output: Path,
    parameters: Mapping[str, str],
    parameters_file: Path | None = None,
) -> bool:
    """Runs each notebook into a folder of its own under `output/<time>`, prints where the report
    is, and returns whether all passed. `parameters` are texts, read as the notebook declares
    them, and come before those of the file, which has one section per notebook."""
    sections = sections_of(parameters_file, notebooks)
    tasks = [Task(path, Path(path.stem), sections[path.stem], parameters) for path in notebooks]
    _require_one(tasks)
    folder = _report_folder(output)
    tasks = [replace(task, directory=_fresh(folder / task.directory)) for task in tasks]
    return conclude(run_tasks(tasks, folder), folder)


def run_suite(
    notebooks: Sequence[Path],
    output: Path,
    parameters: Mapping[str, str],
    parameters_file: Path | None = None,
) -> bool:
    """The same into `output` itself, where a notebook that passed with the same content,
    parameters, code and versions is not run again."""
    sections = sections_of(parameters_file, notebooks)
    folder = output.resolve()
    tasks = [Task(path, folder / path.stem, sections[path.stem], parameters) for path in notebooks]
    folder.mkdir(parents=True, exist_ok=True)
    with in_use(folder):
        return conclude(run_tasks(tasks, folder, resume=True), folder)


def _require_one(tasks: Sequence[Task]) -> None:
    """ValueError where none of them can begin: nothing would run, and `latest` would point to it,
    for a slip of the pen in a name or a value."""
    refusals = [refusal(task) for task in tasks]
    if tasks and all(refusals):
        notebook = tasks[0].notebook
        hint = "" if notebook.is_file() else _meant(notebook)
        raise ValueError(f"{notebook}: {refusals[0]}{hint}")


def _meant(path: Path) -> str:
    """A hint at the project's notebook that begins like it, or is spelt nearly so."""
    try:
        notebooks = {notebook.stem: notebook for notebook in project_notebooks()}
    except ValueError:
        return ""
    alike = [stem for stem in notebooks if stem.startswith(path.stem)]
    alike += difflib.get_close_matches(path.stem, notebooks, n=1)
    return f": did you mean {os.path.relpath(notebooks[alike[0]])}?" if alike else ""


def project_notebooks() -> list[Path]:
    """`notebooks/*.ipynb` of the current folder or the nearest above it; ValueError without."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if found := sorted((folder / "notebooks").glob("*.ipynb")):
            return found
    raise ValueError(f"no notebooks/*.ipynb in {here} or above it: change into the project")


def run_tasks(tasks: Sequence[Task], folder: Path, *, resume: bool = False) -> list[Outcome]:
    """Executes the tasks and returns their outcomes in the same order; those that only calculate
    come first. Says a line for each, and from the first on `index.html` in `folder` has them.

    Ctrl-C interrupts what is running, which then has failed like what was to come, and leaves what
    has finished; a second one kills."""
    done: dict[Path, Outcome] = {}

    def finish(outcome: Outcome) -> None:
        done[outcome.directory] = outcome
        _say(f"{len(done)}/{len(tasks)} {outcome.directory.name}: {_line(outcome)}", outcome.error)
        if len(done) < len(tasks):
            so_far = [done[task.directory] for task in tasks if task.directory in done]
            replace_text(folder / INDEX, _index(so_far, to_come=len(tasks) - len(done)))
            if len(done) == 1:
                _say(f"what has finished is in {folder / INDEX}")

    measuring = [task for task in tasks if measures(task.notebook, {**task.given, **task.texts})]
    calculating = [task for task in tasks if task not in measuring]
    terminal = sys.stderr.isatty()
    try:
        alone = terminal and len(calculating) == 1
        _run(calculating, resume, side_by_side=True, progress=alone, finish=finish)
        _run(measuring, resume, side_by_side=False, progress=terminal, finish=finish)
    except KeyboardInterrupt:
        again = "; the same command goes on from there" if resume else ""
        _say(f"interrupted; what has finished stays in {folder}{again}")
    return [done.get(task.directory) or _left_out(task) for task in tasks]


def _left_out(task: Task) -> Outcome:
    error = f"{task.notebook}: interrupted"
    return Outcome(task.notebook, task.directory, 0.0, error, Traits(), {})


def conclude(outcomes: Sequence[Outcome], folder: Path) -> bool:
    """Writes `index.html`, `index.json` and `junit.xml`, prints how many passed and where the first
    is, and returns whether all did."""
    replace_text(folder / INDEX, _index(outcomes))
    replace_text(folder / "index.json", json.dumps(_index_json(outcomes), indent=1) + "\n")
    replace_text(folder / "junit.xml", junit(outcomes))
    passed = sum(not outcome.error for outcome in outcomes)
    if len(outcomes) > 1:
        _say(f"{passed} of {len(outcomes)} notebooks passed")
    print(f"report: {folder / INDEX}")
    return passed == len(outcomes)


def _run(
    tasks: Sequence[Task],
    resume: bool,
    *,
    side_by_side: bool,
    progress: bool,
    finish: Callable[[Outcome], None],
) -> None:
    if not tasks:
        return
    workers = min(len(tasks), len(os.sched_getaffinity(0))) if side_by_side else 1
    # In threads even one by one: papermill would swallow an interrupt of the main thread.
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(execute, task, resume=resume, progress=progress) for task in tasks]
        try:
            for future in as_completed(futures):
                finish(future.result())
        except KeyboardInterrupt:
            _stop(futures)
            raise


def _stop(futures: Sequence[Future]) -> None:
    for future in futures:
        future.cancel()
    number = signal.SIGINT
    while True:
        try:
            interrupt_kernels(number)
            if not wait(futures, timeout=PATIENCE_S).not_done:
                return
        except KeyboardInterrupt:
            number = signal.SIGKILL


def sections_of(path: Path | None, notebooks: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """The parameters that the file has for each notebook, by its stem. Raises ValueError for a file
    that is no such thing, and for a section of a notebook that lies beside none of these: its
    parameters would be left out in silence."""
    sections = _read_sections(path) if path else {}
    folders = {notebook.parent for notebook in notebooks}
    there = sorted({other.stem for folder in folders for other in folder.glob("*.ipynb")})
    for name in sections:
        if name not in there:
            raise ValueError(
                f"{path}: section {name} is of no notebook here; there are {', '.join(there)}"
            )
    return {notebook.stem: sections.get(notebook.stem, {}) for notebook in notebooks}


def _read_sections(path: Path) -> dict[str, dict[str, Any]]:
    sections = read_yaml(path)
    if not isinstance(sections, dict) or not all(
        isinstance(section, dict) for section in sections.values()
    ):
        raise ValueError(f"{path}: write one section per notebook, each with `name: value` lines")
    return sections


def _report_folder(output: Path) -> Path:
    """A new folder named by the time; `latest` beside it points there."""
    output.mkdir(parents=True, exist_ok=True)
    folder = _fresh(output.resolve() / datetime.now().strftime(FOLDER))
    latest = folder.with_name("latest")
    try:
        _point(latest, folder.name)
    except (ValueError, OSError) as error:
        print(f"no link to this run, which is in {folder}: {error}", file=sys.stderr)
    return folder


def _point(link: Path, name: str) -> None:
    """Makes the link, in the place of one of ours and of nothing else."""
    if os.path.lexists(link) and not (link.is_symlink() and OURS.fullmatch(os.readlink(link))):
        raise ValueError(f"{link} is not a link that this command made, and is left as it is")
    fresh = link.with_name(f".{name}.link")
    fresh.symlink_to(name)
    os.replace(fresh, link)


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


# --- what is said -------------------------------------------------------------------------------


def _line(outcome: Outcome) -> str:
    if outcome.reused:
        return "there already, nothing has changed"
    again = f" (again: {outcome.again})" if outcome.again else ""
    return f"{outcome.state}, {outcome.seconds:.0f} s{again}"


def _say(line: str, error: str | None = None) -> None:
    """A line for people and, where something went wrong, what; both red then."""
    for text in filter(None, (line, error)):
        Console(stderr=True).print(
            text, style="red" if error else None, markup=False, highlight=False, soft_wrap=True
        )


def _index(outcomes: Sequence[Outcome], to_come: int = 0) -> str:
    """The page; while notebooks are to come it says so and loads itself anew."""
    parts = ["<!doctype html><meta charset=utf-8><title>spyre_bench report</title>"]
    if to_come:
        parts.append(f"<meta http-equiv=refresh content={RELOAD_S}>")
        parts.append(f"<p>{to_come} of {len(outcomes) + to_come} notebooks are still to come.</p>")
    parts.append("<style>body{font:16px/1.5 sans-serif;max-width:50em;margin:2em auto}</style>")
    for outcome in outcomes:
        folder = escape(outcome.directory.name)
        links = " · ".join(
            f'<a href="{quote(f"{outcome.directory.name}/{path.name}")}">{escape(path.name)}</a>'
            for path in sorted(outcome.directory.glob("*"))
        )
        text = f"<pre>{escape(outcome.error)}</pre>" if outcome.error else ""
        text += markdown(outcome.answer or "")
        parts.append(
            f"<h2>{folder}: {outcome.state}, {outcome.seconds:.0f} s</h2><p>{links}</p>{text}"
        )
    return "\n".join(parts)


def junit(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as JUnit XML, which every CI reads: a test case for each notebook."""
    suite = ElementTree.Element(
        "testsuite",
        name="notebooks",
        tests=str(len(outcomes)),
        failures=str(sum(bool(outcome.error) for outcome in outcomes)),
        errors="0",
        skipped="0",
        time=f"{sum(outcome.seconds for outcome in outcomes):.3f}",
    )
    for outcome in outcomes:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname="notebooks",
            name=outcome.directory.name,
            time=f"{outcome.seconds:.3f}",
        )
        if outcome.error:
            said = UNPRINTABLE.sub("?", outcome.error)
            ElementTree.SubElement(case, "failure", message=said).text = said
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _index_json(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    return [
        {
            "notebook": outcome.notebook.stem,
            "folder": outcome.directory.name,
            "state": outcome.state,
            "error": outcome.error,
            "seconds": round(outcome.seconds, 3),
            "measures": outcome.traits.measures,
            "reused": outcome.reused,
            "answer": outcome.answer,
        }
        for outcome in outcomes
    ]
