"""A run as a document for a design review: what was asked, found and checked, how far it is from
the bounds, and what has changed since an earlier run. `page.py` makes the page and the PDF.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

from spyre_bench.review import regression
from spyre_bench.runs.records import Record, leaves, read_results, read_run, run_folder

SHOWN_ROWS, SHOWN_COLUMNS = 6, 8  # of a table on the page; its CSV file has all
SHOWN_CHANGES = 15  # of each state
LABEL = 40  # characters at most of words that a row is called by
MADE = re.compile(r"""run\.(figure|table)\(\s*["']([^"']+)["']""")
BOLD = re.compile(r"\*\*(.+?)\*\*", re.DOTALL)
PARAMETER = re.compile(r"^(\w+): \w+ = .*?  # (.+)$", re.MULTILINE)
# A table's column of device seconds, and the column it cannot be below, behind the same prefix; a
# column that ends with RATIO is the one over the other already.
SECONDS = {"busy_s": "busy seconds", "device_s": "device seconds"}
BOUND = {"bound_s": "bound", "shape_bound_s": "shape bound"}
RATIO = "over_shape_bound"
ERRORS = ("quantity", "run", "error")
MEASURED = "measured"  # column that an earlier version left empty in rows of absolute errors
DIRECTIONS = ("optimistic", "pessimistic")
PREDICTED = ("run", "figure", "low", "point", "high", "measured", "state")
PROVENANCE = ("commit", "host", "cpu", "threads", "load", "started_at", "seconds", "versions")


@dataclass(frozen=True)
class Prose:
    """What the notebook says between its cells, in Markdown."""

    markdown: str
    kind: str = "prose"


@dataclass(frozen=True)
class Figure:
    """A picture that a notebook kept; `path` is without the suffix."""

    title: str
    path: Path
    caption: str = ""
    kind: str = "figure"


@dataclass(frozen=True)
class Table:
    """A table that a notebook kept."""

    name: str
    path: Path
    frame: pd.DataFrame
    kind: str = "table"

    @property
    def shown(self) -> pd.DataFrame:
        """The first rows; of a wide table the first columns that differ from row to row."""
        shown = self.frame
        if shown.shape[1] > SHOWN_COLUMNS:
            shown = shown[[name for name in shown if shown[name].nunique(dropna=False) > 1]]
        return shown.iloc[:SHOWN_ROWS, :SHOWN_COLUMNS]


@dataclass(frozen=True)
class Chapter:
    """One notebook: what it says, found and made, in its own order."""

    name: str
    question: str
    error: str | None
    answer: str | None
    checks: Mapping[str, Mapping[str, Any]]
    aims: Mapping[str, Mapping[str, str]]  # by name: state (met, missed, disturbed) and evidence
    parameters: list[tuple[str, Any, str]]  # name, value, meaning
    results: list[tuple[str, Any]]
    provenance: Mapping[str, str]
    story: list[Prose | Figure | Table] = field(default_factory=list)
    unless: str = ""  # what would change the answer, with its number
    figure: Figure | None = None  # the one to look at first

    @property
    def headline(self) -> str:
        """What the answer begins with: its first bold words, or else its first sentence."""
        said = (self.answer or "").strip()
        bold = BOLD.search(said)
        return bold[1] if bold else re.split(r"(?<=[.!?])\s", said, maxsplit=1)[0]

    @property
    def passed(self) -> int:
        """How many of its checks hold."""
        return sum(check["ok"] for check in self.checks.values())


@dataclass(frozen=True)
class Changes:
    """What differs from the run at `base`; `frame` as of `regression.compare`, None without one.
    `left_out` are notebooks of this run that the base knows nothing of."""

    base: str
    frame: pd.DataFrame | None = None
    left_out: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Items by state, those that fail first."""
        found = {} if self.frame is None else self.frame["state"].value_counts().to_dict()
        return {state: found[state] for state in regression.STATES if state in found}

    def of(self, state: str) -> pd.DataFrame:
        """The first items in that state."""
        return self.frame[self.frame["state"] == state].head(SHOWN_CHANGES)


@dataclass(frozen=True)
class Accuracy:
    """Errors of the simulator, a row per quantity and a column per run: `bias` is signed,
    `absolute` is of single requests, either way."""

    bias: pd.DataFrame
    absolute: pd.DataFrame
    optimistic: int  # figures that the simulator promises better than they came
    pessimistic: int
    has_directions: bool  # a run of an earlier version does not say which these are


@dataclass(frozen=True)
class Review:
    """All that goes onto the page."""

    folder: Path
    chapters: list[Chapter]
    distances: pd.DataFrame
    accuracy: dict[str, Accuracy]  # by notebook that held the simulator against a server
    predictions: dict[str, pd.DataFrame]  # by notebook: what was registered, and what came
    errors: list[tuple[str, str, float]]  # notebook, path of a result that is called an error, it
    changes: Changes
    unread: tuple[str, ...] = ()  # notebooks whose table of errors has columns that nobody knows

    @property
    def not_met(self) -> list[tuple[str, str, str, str]]:
        """Notebook, aim, state and evidence of every aim that was not met; missed ones first."""
        rows = [
            (chapter.name, name, aim["state"], aim["evidence"])
            for chapter in self.chapters
            for name, aim in chapter.aims.items()
            if aim["state"] != "met"
        ]
        return sorted(rows, key=lambda row: row[2] != "missed")

    @property
    def missed(self) -> int:
        """How many aims were missed."""
        return sum(state == "missed" for _, _, state, _ in self.not_met)

    @property
    def provenance(self) -> dict[str, dict[str, list[str]]]:
        """Each fact's values, and the notebooks that have them."""
        found: dict[str, dict[str, list[str]]] = {}
        for chapter in self.chapters:
            for fact, value in chapter.provenance.items():
                found.setdefault(fact, {}).setdefault(value, []).append(chapter.name)
        return found


def gather(run: Path, base: Path | None = None, baseline: Path | None = None) -> Review:
    """Reads the run, and what it is held against: another run (`base`), or else the notebooks that
    it shares with a `baseline`. ValueError where `run` or `base` is the folder of no run."""
    folder = run_folder(run)
    records = read_run(folder)
    accuracy = {name: _accuracy(record) for name, record in records.items()}
    return Review(
        folder=folder,
        chapters=[_sound_chapter(folder / name, record) for name, record in records.items()],
        distances=distances(records),
        accuracy={name: errors for name, errors in accuracy.items() if errors},
        unread=tuple(
            name
            for name, record in records.items()
            if "errors" in record.tables and accuracy[name] is None
        ),
        predictions={
            name: predictions
            for name, record in records.items()
            if (predictions := record.tables.get("predictions")) is not None
            and {*PREDICTED} <= {*predictions}
        },
        errors=[
            (name, path, value)
            for name, record in records.items()
            for path, value in leaves(record.results)
            if "error" in path.split("/")[0].split("_") and isinstance(value, float)
        ],
        changes=_changes(records, base, baseline),
    )


def project_baseline() -> Path | None:
    """`notebooks/baseline` of the current folder or the nearest above it, where there is one."""
    here = Path.cwd()
    places = (folder / "notebooks" / "baseline" for folder in (here, *here.parents))
    return next(filter(Path.is_dir, places), None)


# --- a notebook ---------------------------------------------------------------------------------


def _sound_chapter(folder: Path, record: Record) -> Chapter:
    try:
        return _chapter(folder, record)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{folder}: its files are not as a run leaves them ({type(error).__name__}: {error}): "
            f"run the notebook again"
        ) from error


def _chapter(folder: Path, record: Record) -> Chapter:
    kept = read_results(folder)
    cells = _cells(folder / "notebook.ipynb")
    meanings = dict(PARAMETER.findall("\n".join(cell.source for cell in cells)))
    story = list(_story(cells, _exhibits(folder, record, kept)))
    figures = [part for part in story if isinstance(part, Figure)]
    named = [figure for figure in figures if figure.path.name == record.traits.figure]
    return Chapter(
        name=folder.name,
        question=kept.get("question") or folder.name,
        error=record.error,
        answer=kept.get("answer"),
        checks=kept.get("checks", {}),
        aims=kept.get("aims", {}),
        parameters=[
            (name, value, meanings.get(name, "")) for name, value in record.parameters.items()
        ],
        results=list(leaves(record.results)),
        provenance=_provenance(kept),
        story=story,
        unless=str(kept.get("unless") or ""),
        figure=next(iter([*named, *figures]), None),
    )


def _cells(path: Path) -> list[nbformat.NotebookNode]:
    """None of a notebook that never ran."""
    return nbformat.read(path, as_version=4).cells if path.exists() else []


def _exhibits(folder: Path, record: Record, kept: Mapping) -> dict[tuple[str, str], Figure | Table]:
    tables = {
        ("table", name): Table(name, folder / "tables" / f"{name}.csv", frame)
        for name, frame in record.tables.items()
    }
    titles, captions = kept.get("figures", {}), kept.get("captions", {})
    return tables | {
        ("figure", name): Figure(titles[name], folder / "figures" / name, captions.get(name, ""))
        for name in titles
    }


def _story(cells: list, exhibits: dict) -> Iterator[Prose | Figure | Table]:
    """Prose as it stands, and each exhibit where the cell is that kept it; exhibits that no cell
    names come last."""
    left = dict(exhibits)
    for cell in cells:
        if cell.cell_type == "markdown":
            # The title is the chapter's.
            yield Prose(re.sub(r"\A# .*\n?", "", cell.source))
        for made in MADE.findall(cell.source) if cell.cell_type == "code" else ():
            if made in left:
                yield left.pop(made)
    yield from left.values()


def _provenance(kept: Mapping[str, Any]) -> dict[str, str]:
    facts = {name: kept[name] for name in PROVENANCE if kept.get(name) is not None}
    if "commit" in facts:
        facts["commit"] += ", and changes to it" if kept.get("dirty") else ""
    if "versions" in facts:
        facts["versions"] = ", ".join(f"{name} {is_}" for name, is_ in facts["versions"].items())
    if "load" in facts:
        facts["load"] = ", ".join(map(str, facts["load"])) + " (1, 5, 15 minutes)"
    if "seconds" in facts:
        facts["seconds"] = f"{facts['seconds']:.0f}"
    return {name: str(value) for name, value in facts.items()}


# --- across notebooks ---------------------------------------------------------------------------


def distances(records: Mapping[str, Record]) -> pd.DataFrame:
    """How far above a bound: whatever results and tables hold under a name that says so.

    One row per figure of a result that is called `..._over_shape_bound`, and one per group of rows
    of a table with seconds and their `bound_s`, or else with such a column, if no result has it
    already. Rows that words name are alternatives, such as sets of buckets, each with a bound of
    its own: they are held against the least of these, so that they compare.
    Columns: notebook, of (the measure), item, least, median, largest (each over the bound, less 1).
    """
    rows = [
        {"notebook": name, **row}
        for name, record in records.items()
        for row in (*_of_results(record), *_of_tables(record))
    ]
    return pd.DataFrame(rows, columns=["notebook", "of", "item", "least", "median", "largest"])


def _of_results(record: Record) -> Iterator[dict[str, Any]]:
    for path, value in leaves(record.results):
        name, _, item = path.partition("/")
        if name.endswith(RATIO) and isinstance(value, int | float):
            yield {"of": _ratio_words(name), "item": item, **_spread(pd.Series([value]) - 1)}


def _of_tables(record: Record) -> Iterator[dict[str, Any]]:
    for table, frame in record.tables.items():
        for words, above in _above(frame, known=record.results):
            of = f"{_plain(table)}: {words}"
            for item, values in above.groupby(_groups(frame), sort=False):
                yield {"of": of, "item": item, **_spread(values)}


def _above(frame: pd.DataFrame, known: Container[str]) -> Iterator[tuple[str, pd.Series]]:
    """What is above which bound, in words, and by how much; ratios only where neither a result is
    called like them (`known`) nor their seconds and bound are there."""
    numbers = frame.select_dtypes("number")
    pairs = [
        (prefix, seconds, bound)
        for bound in BOUND
        for prefix in (name.removesuffix(bound) for name in numbers if name.endswith(bound))
        for seconds in SECONDS
        if f"{prefix}{seconds}" in numbers
    ]
    alternatives = _label(frame) is not None
    for prefix, seconds, bound in pairs:
        bounds = numbers[f"{prefix}{bound}"]
        words = f"{SECONDS[seconds]} over the {'least ' if alternatives else ''}{BOUND[bound]}"
        least = bounds.min() if alternatives else bounds
        yield _behind(prefix, words), numbers[f"{prefix}{seconds}"] / least - 1
    for name in numbers:
        if name.endswith(RATIO) and not pairs and name not in known:
            yield _ratio_words(name), numbers[name] - 1


def _ratio_words(name: str) -> str:
    prefix = name.removesuffix(RATIO).removesuffix("busy_")
    return _behind(prefix, "busy seconds over the shape bound")


def _behind(prefix: str, words: str) -> str:
    """Words behind those of a column's prefix: "held out, busy seconds over the bound"."""
    return f"{_plain(prefix)}, {words}" if _plain(prefix) else words


def _plain(name: str) -> str:
    """A name of ours as words: held_out_ is "held out", max_wait_s "max wait [s]"."""
    unit = " [s]" if name.endswith("_s") else ""
    return name.removesuffix("_s").replace("_", " ").strip() + unit


def _groups(frame: pd.DataFrame) -> pd.Series:
    """For each row what it is about: its words, or else the span of the first column."""
    if label := _label(frame):
        return frame[label].fillna("")
    first = frame.iloc[:, 0]
    words = _plain(str(frame.columns[0]))
    return pd.Series(f"{words} {first.min()} to {first.max()}", index=frame.index)


def _label(frame: pd.DataFrame) -> str | None:
    """The column of short words that tells most rows apart."""
    words = [
        name
        for name in frame
        if pd.api.types.is_string_dtype(frame[name]) and not frame[name].str.len().max() > LABEL
    ]
    return max(words, key=lambda name: frame[name].nunique(), default=None)


def _spread(values: pd.Series) -> dict[str, float]:
    return {"least": values.min(), "median": values.median(), "largest": values.max()}


def _accuracy(record: Record) -> Accuracy | None:
    """None where the notebook has no such errors. A run made before bias and absolute error were
    told apart has both all the same: nothing was measured where single requests are off."""
    errors = record.tables.get("errors")
    if errors is None or not {*ERRORS} <= {*errors} or not {"kind", MEASURED} & {*errors}:
        return None
    has_directions = "direction" in errors
    if "kind" not in errors:
        kinds = errors[MEASURED].isna().map({True: "absolute", False: "bias"})
        errors = errors.assign(kind=kinds)
    if not has_directions:
        errors = errors.assign(direction="")
    bias, absolute = (
        errors[errors["kind"] == kind].pivot_table(
            index="quantity", columns="run", values="error", sort=False
        )
        for kind in ("bias", "absolute")
    )
    said = errors["direction"].value_counts()
    optimistic, pessimistic = (int(said.get(word, 0)) for word in DIRECTIONS)
    return Accuracy(bias, absolute, optimistic, pessimistic, has_directions)


def _changes(records: Mapping[str, Record], base: Path | None, baseline: Path | None) -> Changes:
    if base:
        return Changes(str(base), regression.compare(read_run(base), records))
    if not baseline:
        return Changes("")
    # Of a baseline, which is of the whole project, only what this run repeats.
    known = read_run(baseline)
    shared = {name: record for name, record in records.items() if name in known}
    was = {name: known[name] for name in shared}
    left_out = tuple(name for name in records if name not in known)
    return Changes(str(baseline), regression.compare(was, shared), left_out)
