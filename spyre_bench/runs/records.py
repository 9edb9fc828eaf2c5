"""A run as it lies on disk: what each notebook found, and what it says about itself.

A run is a folder with one folder per notebook, and in each `outcome.json` (how the execution
ended), `results.json` and `tables/*.csv` (what `report.py` kept).
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd

from spyre_bench.files import read_json

OURS = re.compile(r"\d{8}-\d{6}(-\d+)?")  # a folder of a run, by its time
OUTCOME, RESULTS = "outcome.json", "results.json"
INFINITE = ("inf", "-inf")  # JSON has no such numbers; `report.py` writes these texts
# columns of tables that earlier versions called otherwise
RENAMED = {f"believed_{kind}_s": f"estimated_{kind}_s" for kind in ("prefill", "decode")}
WHERE = ("output_directory", "interactive")  # parameters that say where and how, not what


@dataclass(frozen=True)
class Tie:
    """A choice of a solver that another one may make differently and as well.

    All are patterns or paths as in `Record.items`: where `choice` differs and `objective` agrees
    within `gap` (relative), what it `settles` cannot be compared.
    """

    choice: str
    objective: str
    gap: float
    settles: tuple[str, ...]


CELL_TIMEOUT_S = 3600.0  # unless a notebook's metadata says otherwise


@dataclass(frozen=True)
class Traits:
    """What a notebook says of itself in its metadata, under `spyre_bench`."""

    measures: bool | str = True  # times something, so that nothing else may run beside it; or the
    # parameter by which it does, which is empty where nobody gives it
    needs: tuple[str, ...] = ()  # packages that it measures with
    calculated: tuple[str, ...] = ()  # by one that measures: what repeats exactly all the same
    cell_timeout_s: float = CELL_TIMEOUT_S  # a cell that takes longer hangs
    chance: tuple[str, ...] = ()  # differs from run to run, for no reason of the code
    ties: tuple[Tie, ...] = ()
    figure: str = ""  # the one that a review shows beside the answer; empty: the first
    panel_of_run: bool = False  # the panel shows what was measured, so that an app needs a run

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Traits:
        """From `{"measures": false, "chance": ["results/..."], ...}`; ValueError for another key.

        A notebook that says nothing is taken to measure."""
        known = [entry.name for entry in fields(cls)]
        if not isinstance(metadata, Mapping):
            raise ValueError(f"metadata spyre_bench {metadata!r} is no mapping of names to values")
        if unknown := sorted(set(metadata) - set(known), key=str):
            raise ValueError(
                f"metadata spyre_bench has {unknown[0]!r}: there are {', '.join(known)}"
            )
        defaults: dict[str, Any] = {entry.name: entry.default for entry in fields(cls)}
        said = defaults | dict(metadata)
        timeout_s = said["cell_timeout_s"]
        if type(timeout_s) not in (int, float) or not 0 < timeout_s < math.inf:
            raise ValueError(f"cell_timeout_s {timeout_s!r} is not a number of seconds above 0")
        if not isinstance(said["measures"], bool | str):
            raise ValueError(
                f"measures {said['measures']!r} is not true, false or the name of a parameter"
            )
        if not isinstance(said["panel_of_run"], bool):
            raise ValueError(f"panel_of_run {said['panel_of_run']!r} is not true or false")
        if not isinstance(said["figure"], str):
            raise ValueError(f"figure {said['figure']!r} is not the name of a figure")
        for name in ("needs", "calculated", "chance", "ties"):
            if not isinstance(said[name], list | tuple):
                raise ValueError(f"{name} {said[name]!r} is not a list")
        return cls(
            measures=said["measures"],
            cell_timeout_s=timeout_s,
            needs=tuple(map(str, said["needs"])),
            calculated=tuple(said["calculated"]),
            chance=tuple(said["chance"]),
            ties=tuple(map(_tie, said["ties"])),
            figure=said["figure"],
            panel_of_run=said["panel_of_run"],
        )

    def of_run(self, given: Mapping[str, Any], known: Container[str] | None = None) -> Traits:
        """Those of a run with these parameters: it measures, or it does not. ValueError where the
        parameter by which it does is not among the known ones."""
        if isinstance(self.measures, bool):
            return self
        if known is not None and self.measures not in known:
            raise ValueError(f"measures {self.measures!r} is not true, false or a parameter of it")
        measures = bool(given.get(self.measures))
        return replace(self, measures=measures, needs=self.needs if measures else ())

    def repeats(self, item: str) -> bool:
        """Whether a repetition on another machine gives this item again. Wall-clock seconds never
        do, whoever takes them."""
        words = item.split("/")[-1].split("_") + item.split("/")[1].split("_")
        return "wall" not in words and (not self.measures or matches(item, self.calculated))


@dataclass(frozen=True)
class Record:
    """One executed notebook. `results` and `parameters` are by name, `tables` hold frames."""

    notebook: str
    traits: Traits
    error: str | None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    checks: Mapping[str, bool] = field(default_factory=dict)
    figures: tuple[str, ...] = ()
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    better: Mapping[str, str | None] | None = None  # by item, which way; None: an old run

    def items(self) -> dict[str, Any]:
        """Everything that can be compared, by its path: `parameters/k`, `results/fill`,
        `results/over_shape_bound/skip`, `checks/0 < fill <= 1`, `figures/waste`, and of a table
        `tables/hold` (its number of rows) and `tables/hold/fill` (a column, as a Series)."""
        found = {f"parameters/{name}": value for name, value in self.parameters.items()}
        found |= {f"results/{name}": value for name, value in leaves(self.results)}
        found |= {f"checks/{name}": ok for name, ok in self.checks.items()}
        found |= {f"figures/{name}": name for name in self.figures}
        for name, frame in self.tables.items():
            found[f"tables/{name}"] = len(frame)
            found |= {f"tables/{name}/{column}": frame[column] for column in _lasting(frame)}
        return found


def run_folder(folder: Path) -> Path:
    """Where the notebooks of a run are: in the folder itself, or, where it takes a folder per
    run, in that of its last one: `latest` points there unless it is somebody's own folder."""
    folder = Path(folder)
    latest = folder / "latest"
    if _holds_runs(folder):
        return folder
    if _holds_runs(latest) or (latest.is_symlink() and OURS.fullmatch(os.readlink(latest))):
        return latest.resolve()
    return max((path for path in folder.glob("*") if OURS.fullmatch(path.name)), default=folder)


def _holds_runs(folder: Path) -> bool:
    return any(folder.glob(f"*/{OUTCOME}"))


def read_run(folder: Path) -> dict[str, Record]:
    """The records of a run by notebook; ValueError where the folder holds none."""
    found = [path.parent for path in sorted(run_folder(folder).glob(f"*/{OUTCOME}"))]
    if not found:
        raise ValueError(
            f"{folder}: no notebook was run there (no */{OUTCOME}): name a folder that "
            f"`spyre-bench run` wrote"
        )
    return {place.name: read_record(place) for place in found}


def read_pairs(base: Path, new: Path) -> list[tuple[dict[str, Record], dict[str, Record]]]:
    """The runs of two folders that each take a folder per run (see `run_folder`), the first of one
    with the first of the other and so on. Raises ValueError where a folder has none, and where a
    pair did not end before the next one began, by the times that the folders are named by."""
    sides = [
        sorted(path for path in folder.glob("*") if OURS.fullmatch(path.name))
        for folder in (base, new)
    ]
    for folder, runs in zip((base, new), sides, strict=True):
        if not runs:
            raise ValueError(
                f"{folder}: no folder of a run by its time, such as 20260102-030405: name one that "
                f"`spyre-bench run NOTEBOOK -o {folder}` wrote several runs to"
            )
    pairs = list(zip(*sides, strict=False))  # a last one may wait for its partner
    for pair, following in itertools.pairwise(pairs):
        if max(it.name for it in pair) > min(it.name for it in following):
            raise ValueError(
                f"{pair[0]} and {pair[1]} are no pair: {min(it.name for it in following)} began "
                f"between them. Measure base and new in turns, so that both meet the same machine"
            )
    return [(read_run(was), read_run(now)) for was, now in pairs]


def read_record(folder: Path) -> Record:
    """The record of one notebook; of one that broke, what it left. ValueError with the file's name
    where a file cannot be read."""
    outcome, kept = _json(folder / OUTCOME), read_results(folder)
    try:
        return _record(folder, outcome, kept)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder}: {OUTCOME} or {RESULTS} is not as a run leaves it ({type(error).__name__}: "
            f"{error}): run the notebook again"
        ) from error


def read_results(folder: Path) -> dict[str, Any]:
    """The content of a notebook's `results.json`; empty where it never came to one."""
    return _json(folder / RESULTS) if (folder / RESULTS).exists() else {}


def _record(folder: Path, outcome: Mapping[str, Any], kept: Mapping[str, Any]) -> Record:
    return Record(
        notebook=outcome["notebook"],
        traits=Traits.of(outcome["traits"]),
        error=outcome["error"],
        parameters={k: v for k, v in kept.get("parameters", {}).items() if k not in WHERE},
        results=kept.get("results", {}),
        checks={name: check["ok"] for name, check in kept.get("checks", {}).items()},
        figures=tuple(map(str, kept.get("figures", ()))),
        better=kept.get("better"),
        tables={path.stem: _table(path) for path in sorted(folder.glob("tables/*.csv"))},
    )


def faults(record: Mapping[str, Any]) -> list[str]:
    """What is wrong with the content of a `results.json`, a sentence each."""
    found = [f"result {name} is not a number" for name, v in leaves(record["results"]) if v is None]
    found += [
        f"check {name!r} failed: {check['evidence']}"
        for name, check in record["checks"].items()
        if not check["ok"]
    ]
    return found + ([] if record["finished"] else ["its record ends without an answer"])


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The single figures of a result and their paths: a mapping by its keys, a list that holds
    fractions or gaps by its places. Any other list is one choice, such as a set of buckets."""
    if isinstance(value, Mapping):
        parts: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list) and _has_fractions(value):
        parts = enumerate(value)
    else:
        yield path, float(value) if value in INFINITE else value
        return
    for name, item in parts:
        yield from leaves(item, f"{path}/{name}" if path else str(name))


def _tie(said: Mapping[str, Any]) -> Tie:
    known = [entry.name for entry in fields(Tie)]
    if not isinstance(said, Mapping) or set(said) != set(known):
        raise ValueError(f"a tie has {', '.join(known)}, not {', '.join(map(str, said))}")
    return Tie(**{**said, "settles": tuple(said["settles"])})


def _has_fractions(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_has_fractions, value))
    return value is None or isinstance(value, float)


def matches(item: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(item, pattern) for pattern in patterns)


def _lasting(frame: pd.DataFrame) -> list[str]:
    """Columns that are no times of the clock."""
    return [name for name in frame.columns if not str(name).endswith("_at")]


def _table(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, index_col=False)  # a trailing comma shifts no column
        return frame.rename(columns=RENAMED)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except ValueError as error:
        raise ValueError(f"{path}: not a table: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; run the notebook again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not a JSON object; run the notebook again")
    return found
