"""Two runs held against each other, item by item: what got worse, better, lost, and what is new.

How near is near enough depends on the kind of an item, which follows from its name (results and
columns end in their unit), its type, and whether its notebook measures. Which way a result is
better its notebook says (`run.result(..., better=)`); of a table's column that it says nothing of,
and of all results of runs from before it could, the words of the name decide.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from spyre_bench.review.pairs import LEAST, judge
from spyre_bench.runs.records import Record, matches

TOLERANCES = {
    "exact": 0.0,  # counts, choices and texts
    "calculated": 1e-6,  # relative; whatever a notebook that does not measure finds
    "ratio": 0.1,  # relative; two figures of the same run, so that a slow machine cancels out
    "error": 0.1,  # absolute, since its ideal is 0
    "seconds": 0.5,  # relative; of a clock, so that the machine and its other work count
}
UNITS_OF_A_CLOCK = {"s", "ms", "rps", "seconds"}
# A calculated 0 may come out as the rounding error of a sum over a day of simulated seconds.
NOTHING = 1e-9

HIGHER_IS_BETTER = {"rps", "fill", "saving", "useful", "goodput", "agree", "efficiency", "speedup"}
LOWER_IS_BETTER = {
    "s",
    "ms",
    "seconds",
    "error",
    "lost",
    "rejected",
    "beyond",
    "left",
    "bytes",
    "growth",
    "pad",
    "padding",
    "tail",
    "cap",
    "slots",
    "never",
    "bound",
    "cold",
}
FAILING = {"worse", "changed", "vanished", "broken"}
STATES = (
    *("broken", "vanished", "worse", "changed", "better", "new"),
    *("tied", "by chance", "too few pairs", "same"),
)
COLUMNS = ["notebook", "item", "state", "fails", "kind", "base", "new", "change", "tolerance"]


@dataclass(frozen=True)
class Difference:
    """`change` is relative to the base (absolute for kind `error`) and signed; nan: no number."""

    kind: str
    change: float
    tolerance: float

    @property
    def matters(self) -> bool:
        return not abs(self.change) <= self.tolerance  # nan matters


def compare(
    base: Mapping[str, Record],
    new: Mapping[str, Record],
    tolerances: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """One row for each item of either run, those that fail first.

    `tolerances` replace those of kinds (`{"ratio": 0.2}`) or of single items by pattern, with or
    without their notebook (`{"results/fill": 0.05, "00_*/tables/*": 1.0}`).

    Columns: notebook; item (see `Record.items`; `outcome` for the execution itself); state
    (STATES); fails; kind; base and new, as text; change (see `Difference`); tolerance.
    Raises ValueError for a tolerance that is negative or of an unknown kind.
    """
    allowed = _checked(tolerances or {})
    rows = []
    for name in sorted({*base, *new}):
        if name not in new:
            rows.append(_row(name, "outcome", "vanished", base="ran"))
        elif name not in base:
            rows.append(_row(name, "outcome", "new", new="ran"))
        else:
            rows += _notebook(name, base[name], new[name], allowed)
    return _in_order(pd.DataFrame(rows, columns=COLUMNS))


def _in_order(frame: pd.DataFrame) -> pd.DataFrame:
    order = frame["state"].map(STATES.index)
    return (
        frame.assign(order=order)
        .sort_values(["fails", "order", "notebook"], ascending=[False, True, True], kind="stable")
        .drop(columns="order")
        .reset_index(drop=True)
    )


def compare_pairs(
    runs: Sequence[tuple[Mapping[str, Record], Mapping[str, Record]]],
    tolerances: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """As `compare`, of the last of several runs of both, but that seconds of a clock are judged by
    all: each run of the base beside the one of the new that was measured next to it
    (`pairs.judge`). Their kind is then `pairs`, their change that of the median ratio, and the
    tolerance of `seconds` the smallest change that matters (without one, `pairs.LEAST`). What is
    not above 0 in every run, or differs by chance, stays as `compare` has it."""
    least = (tolerances or {}).get("seconds", LEAST)
    rows = compare(*runs[-1], tolerances).to_dict("records")
    items = [[{name: it.items() for name, it in run.items()} for run in pair] for pair in runs]
    measured = {}
    for place, row in enumerate(rows):
        found = [[run.get(row["notebook"], {}).get(row["item"]) for run in pair] for pair in items]
        values = [[_middle(value) for value in pair] for pair in found]
        if row["kind"] == "seconds" and all(0 < it < math.inf for pair in values for it in pair):
            measured[place] = pd.DataFrame(values, columns=["base", "new"]).assign(figure=place)
    judged = judge(pd.concat(measured.values()), least) if measured else pd.DataFrame()
    for said in judged.to_dict("records"):
        row = rows[int(said["figure"])]
        was, now = (run[row["notebook"]] for run in runs[-1])
        state, change = said["state"], said["ratio"] - 1
        if state in ("slower", "faster"):
            state = _direction(change, _better(row["item"], _ways(was, now)))
        if state != "same" and matches(row["item"], now.traits.chance):
            continue
        text = f"{said['low'] - 1:+.1%} to {said['high'] - 1:+.1%} in {said['pairs']} pairs"
        row |= {"state": state, "fails": state == "worse", "kind": "pairs"}
        row |= {"new": f"{row['new']} ({text})", "change": change, "tolerance": least}
    return _in_order(pd.DataFrame(rows, columns=COLUMNS))


def _middle(value: Any) -> float:
    """A number or, of a column, its median; nan of anything else."""
    value = value.median() if isinstance(value, pd.Series) and _number(value) else value
    return float(value) if _number(value) else math.nan


def curves(
    base: Mapping[str, Record], new: Mapping[str, Record], compared: pd.DataFrame
) -> dict[tuple[str, str], pd.DataFrame]:
    """The numeric columns that differ, as tidy frames by notebook and table: panel (the column),
    series (base or new), x (the row, counted from 0), value."""
    different = compared[(compared["state"] != "same") & (compared["item"] != "outcome")]
    parts: dict[tuple[str, str], list[pd.DataFrame]] = {}
    for row in different.to_dict("records"):
        place, _, rest = row["item"].partition("/")
        table, _, column = rest.partition("/")
        notebook = row["notebook"]
        frames = [run[notebook].tables.get(table, pd.DataFrame()) for run in (base, new)]
        if place != "tables" or any(column not in frame for frame in frames):
            continue
        for series, values in zip(("base", "new"), (f[column] for f in frames), strict=True):
            if _number(values):
                part = {"panel": column, "series": series, "x": range(len(values)), "value": values}
                parts.setdefault((notebook, table), []).append(pd.DataFrame(part))
    return {key: pd.concat(some, ignore_index=True) for key, some in parts.items()}


def _checked(tolerances: Mapping[str, float]) -> dict[str, float]:
    for name, value in tolerances.items():
        if not value >= 0:
            raise ValueError(f"tolerance {name} = {value} is below 0: give 0 or more")
        if "/" not in name and name not in TOLERANCES:
            near = difflib.get_close_matches(name, TOLERANCES, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(
                f"tolerance {name!r} is of no kind{hint}: there are {', '.join(TOLERANCES)}; or "
                f"name an item, such as results/fill"
            )
    return TOLERANCES | dict(tolerances)


def _notebook(
    name: str, base: Record, new: Record, tolerances: Mapping[str, float]
) -> list[dict[str, Any]]:
    state = "broken" if new.error else "better" if base.error else "same"
    rows = [_row(name, "outcome", state, base=base.error or "ran", new=new.error or "ran")]
    before, after = base.items(), new.items()
    better = _ways(base, new)
    for item in dict.fromkeys([*before, *after]):
        rows.append(_item(name, item, before, after, new, better, tolerances))
    return _untied(rows, new, before, after)


def _ways(base: Record, new: Record) -> Mapping[str, str | None] | None:
    """Which way is better, by item; None: both are runs from before they could say so."""
    return base.better if new.better is None else new.better


def _item(
    name: str,
    item: str,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    record: Record,
    better: Mapping[str, str | None] | None,
    tolerances: Mapping[str, float],
) -> dict[str, Any]:
    was, now = before.get(item), after.get(item)
    shown = partial(_row, name, item, base=_text(was), new=_text(now))
    if item in before and item not in after:
        return shown("vanished")
    if now is None or (item.startswith("checks/") and not now):
        return shown("broken")
    if was is None:
        return shown("new")
    kind = _kind(item, was, now, record)
    way, tolerance = _better(item, better), _tolerance(name, item, kind, tolerances)
    difference = Difference(kind, _change(kind, was, now, way, tolerance), tolerance)
    state = "same" if not difference.matters else _direction(difference.change, way)
    if state != "same" and matches(item, record.traits.chance):
        state = "by chance"
    return shown(state, kind=kind, change=difference.change, tolerance=difference.tolerance)


def _kind(item: str, was: Any, now: Any, record: Record) -> str:
    result = item.startswith(("results/", "tables/"))
    numbers = _number(was) and _number(now)
    if not (result and numbers and (_fractional(was) or _fractional(now))):
        return "exact"
    if record.traits.repeats(item):
        return "calculated"
    words = _words(item)
    if "error" in words:
        return "error"
    return "seconds" if words[-1] in UNITS_OF_A_CLOCK else "ratio"


def _fractional(value: Any) -> bool:
    if isinstance(value, pd.Series):
        return pd.api.types.is_float_dtype(value)
    return isinstance(value, float)


def _change(kind: str, was: Any, now: Any, way: str | None = None, tolerance: float = 0.0) -> float:
    """Signed; of a column the worst (the largest, if no `way` is the better one), or that of its
    median where rows are measured one by one and single ones may be off."""
    if isinstance(was, pd.Series):
        if kind in ("exact", "calculated"):
            return _worst(_rows(kind, was, now), way, tolerance)
        was, now = (float(column.median()) for column in (was, now))
    if not (_number(was) and _number(now)):
        return 0.0 if was == now else math.nan
    return float(_changes(kind, np.array([was], dtype=float), np.array([now], dtype=float))[0])


def _worst(changes: np.ndarray, way: str | None, tolerance: float) -> float:
    """Of the changes of a column's rows, the largest for the worse where one matters, however much
    better others are; else the largest. nan where one cannot be said."""
    if np.isnan(changes).any():
        return math.nan
    sizes = np.abs(changes)
    for_the_worse = {"higher": -changes, "lower": changes}.get(way or "", sizes)
    counts = for_the_worse if (for_the_worse > tolerance).any() else sizes
    return float(changes[counts.argmax()]) if len(changes) else 0.0


def _rows(kind: str, was: pd.Series, now: pd.Series) -> np.ndarray:
    """The change of each row, nan where it cannot be said."""
    if len(was) != len(now):
        return np.array([math.nan])  # the number of rows is an item of its own
    if not (_number(was) and _number(now)):
        same = (was == now) | (was.isna() & now.isna())
        return np.where(same, 0.0, math.nan)
    return _changes(kind, was.to_numpy(dtype=float), now.to_numpy(dtype=float))


def _changes(kind: str, was: np.ndarray, now: np.ndarray) -> np.ndarray:
    """0 where both are the same, be it infinite or no number; nan where only one of them is."""
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = now - was
        change = difference if kind == "error" else difference / np.abs(was)
    change = np.where(np.isfinite(was) & np.isfinite(now), change, np.nan)
    near = (was == now) | (np.isnan(was) & np.isnan(now)) | (np.abs(difference) <= NOTHING)
    return np.where(near, 0.0, change)


def _number(value: Any) -> bool:
    """Also of a column; yes and no count as 1 and 0; a whole number beyond any float is none."""
    if isinstance(value, pd.Series):
        return pd.api.types.is_numeric_dtype(value)
    if isinstance(value, int):
        return abs(value) <= sys.float_info.max
    return isinstance(value, float)


def _direction(change: float, way: str | None) -> str:
    """Whether that change is for the better, where it is known."""
    if way is None or math.isnan(change):
        return "changed"
    return "better" if (change > 0) == (way == "higher") else "worse"


def _better(item: str, told: Mapping[str, str | None] | None) -> str | None:
    """Which way: as told of the item or of what it is a part of, else by its name."""
    place, *parts = item.split("/")
    for end in range(len(parts), 0, -1):
        if told and (path := "/".join((place, *parts[:end]))) in told:
            return told[path]
    if place == "tables" or (place == "results" and told is None):
        words = set(_words(item))
        if words & HIGHER_IS_BETTER:
            return "higher"
        if words & LOWER_IS_BETTER:
            return "lower"
    return None


def _words(item: str) -> list[str]:
    """The words of a name with a unit: that of a result, or of a table's column."""
    parts = item.split("/")
    return parts[min(2, len(parts) - 1) if parts[0] == "tables" else 1].split("_")


def _tolerance(name: str, item: str, kind: str, tolerances: Mapping[str, float]) -> float:
    patterns = {pattern: value for pattern, value in tolerances.items() if "/" in pattern}
    for pattern, value in patterns.items():
        if matches(item, (pattern,)) or matches(f"{name}/{item}", (pattern,)):
            return value
    return tolerances[kind]


def _untied(
    rows: list[dict[str, Any]], record: Record, before: Mapping[str, Any], after: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Takes back what follows from a solver's choosing otherwise and as well."""
    by_item = {row["item"]: row for row in rows}
    for tie in record.traits.ties:
        choice, objective = by_item.get(tie.choice), by_item.get(tie.objective)
        if not choice or not objective or choice["state"] == "same":
            continue
        kind, was, now = objective["kind"], before.get(tie.objective), after.get(tie.objective)
        if not kind or not abs(_change(kind, was, now)) <= tie.gap:  # a gain is no tie either
            continue
        for row in rows:
            if row["fails"] and matches(row["item"], (tie.choice, tie.objective, *tie.settles)):
                row |= {"state": "tied", "fails": False}
    return rows


def _row(
    notebook: str,
    item: str,
    state: str,
    *,
    kind: str = "",
    base: str = "",
    new: str = "",
    change: float = math.nan,
    tolerance: float = math.nan,
) -> dict[str, Any]:
    # Of a measurement, a change for no known better or worse is worth a line, not a failure.
    fails = state in FAILING and not (state == "changed" and kind in ("ratio", "seconds", "error"))
    return dict(
        zip(
            COLUMNS, (notebook, item, state, fails, kind, base, new, change, tolerance), strict=True
        )
    )


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, pd.Series):
        return _column_text(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _column_text(column: pd.Series) -> str:
    if _number(column) and not pd.api.types.is_bool_dtype(column):
        return f"median {column.median():.6g} of {len(column)}"
    return f"{len(column)} rows"
