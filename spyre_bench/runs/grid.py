"""One notebook over a grid of parameters: a run for every combination, in one frame and one figure.

A combination that failed is a row with its error; one that passed is not run again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from spyre_bench.files import in_use, parse_yaml, replace_text
from spyre_bench.runs.execute import Outcome, Task
from spyre_bench.runs.records import leaves, read_record
from spyre_bench.runs.suite import conclude, run_tasks, sections_of

FRAME, FIGURE = "grid.csv", "grid.png"


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """`["rate=1,2,4", "buckets=['4,64,32', '8,64,32']"]` as values by parameter: separated by
    commas, or a list of YAML where values have commas themselves. Raises ValueError for anything
    else, for an empty list and for a parameter or value that is named twice."""
    grid: dict[str, list[str]] = {}
    for text in texts:
        text = text.encode(errors="backslashreplace").decode()  # bytes that are no text have no row
        name, equals, listed = text.partition("=")
        values = _values(listed.strip())
        if not name or not equals or not values or not all(values):
            raise ValueError(f"grid {text!r}: write, for example, rate=1,2,4")
        if name in grid or len(set(values)) < len(values):
            raise ValueError(f"grid {text!r}: a parameter and a value are named once each")
        grid[name] = values
    return grid


def run_grid(
    notebook: Path,
    output: Path,
    grid: Mapping[str, Sequence[str]],
    parameters: Mapping[str, str],
    parameters_file: Path | None = None,
) -> bool:
    """Runs the notebook with every combination, the last parameter changing fastest, each into a
    folder of its own in `output`; keeps `grid.csv` and `grid.png` there, and returns whether all
    passed. `parameters` are the same in every combination. Raises ValueError where one is in the
    grid too."""
    if both := sorted(set(grid) & set(parameters)):
        raise ValueError(f"parameter {both[0]} has a value and a grid: give one of them")
    given = sections_of(parameters_file, [notebook])[notebook.stem]
    folder = output.resolve()
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    tasks = [
        Task(notebook, folder / _folder_name(point), given, {**parameters, **point})
        for point in points
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with in_use(folder):
        outcomes = run_tasks(tasks, folder, resume=True)
        passed = conclude(outcomes, folder)
        frame = collect(points, outcomes)
        replace_text(folder / FRAME, frame.to_csv(index=False))
        _draw(frame, list(grid), notebook.stem, folder / FIGURE)
    print(f"grid: {folder / FRAME}")
    return passed


def collect(points: Sequence[Mapping[str, str]], outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """One row per combination: its parameters; the results, those of a mapping or list under
    `name/key`; seconds, of the execution; error, empty where it passed. A failed one has no
    results."""
    rows = [
        {**point, **_results(outcome), "seconds": outcome.seconds, "error": outcome.error or ""}
        for point, outcome in zip(points, outcomes, strict=True)
    ]
    frame = pd.DataFrame(rows)
    last = ["seconds", "error"]
    return frame[[name for name in frame.columns if name not in last] + last]


def panels(frame: pd.DataFrame, parameters: Sequence[str]) -> pd.DataFrame:
    """The numeric results of a grid as `plots.small_multiples` takes them: x is the first of the
    parameters, a series has the same values of all others."""
    results = [name for name in frame.columns if name not in {*parameters, "seconds", "error"}]
    numeric = [
        name
        for name in results
        if pd.api.types.is_numeric_dtype(frame[name])
        and not pd.api.types.is_bool_dtype(frame[name])
    ]
    first, *others = parameters
    series = [", ".join(f"{n}={row[n]}" for n in others) for _, row in frame.iterrows()]
    long = frame.assign(x=_numbers(frame[first]), series=series)
    long = long[long["error"] == ""]
    return long.melt(["x", "series"], numeric, var_name="panel", value_name="value")


def _values(text: str) -> list[str]:
    if not text.startswith("["):
        return [value.strip() for value in text.split(",")]
    try:
        values = parse_yaml(text, "grid")
    except ValueError:
        return [""]
    return [str(value) for value in values] if isinstance(values, list) else [""]


def _folder_name(point: Mapping[str, str]) -> str:
    """Readable, and another for every combination whatever its values are."""
    said = ",".join(f"{name}={value}" for name, value in point.items())
    digest = hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_.,=-]', '_', said)[:80]}-{digest}"


def _results(outcome: Outcome) -> dict[str, Any]:
    if outcome.error:
        return {}
    return dict(leaves(read_record(outcome.directory).results))


def _numbers(column: pd.Series) -> pd.Series:
    """As numbers where all of them are."""
    numbers = pd.to_numeric(column, errors="coerce")
    return column if numbers.isna().any() else numbers


def _draw(frame: pd.DataFrame, parameters: Sequence[str], title: str, path: Path) -> None:
    """Leaves no figure where no combination passed."""
    from spyre_bench import plots

    path.unlink(missing_ok=True)
    long = panels(frame, parameters)
    if long.empty:
        return
    axes = plots.small_multiples(long, f"{title} over {' and '.join(parameters)}", parameters[0])
    axes[0].figure.savefig(path, dpi=150, bbox_inches="tight")
