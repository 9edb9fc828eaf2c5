"""The times of a trace: which column has them, in which unit, on which clock. What could mean two
things is refused, with the option that settles it."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spyre_bench.frames import is_json
from spyre_bench.workload.trace_formats import EXTRAS, UNITS_S, Format, Reading, words

# Words of a column that holds times of day or of a run; of one that holds how long something took;
# and of one that holds the time since another request.
TIMES = re.compile(
    "times?|timestamps?|date|datetime|arrivals?|arrived|created|start|started|sent|submitted|"
    "received|ts|at|epoch|clock"
)
SECONDS_TAKEN = re.compile(
    "elapsed|duration|latency|response|processing|ttft|tpot|e2e|queue|wait|waiting|timeout|zone|"
    "service"
)
GAPS = re.compile("inter|interarrival|gap|delta")
# How a column's name ends that says its unit.
ENDINGS = {
    "s": "s sec secs second seconds",
    "ms": "ms msec millis milliseconds",
    "us": "us usec micros microseconds",
    "ns": "ns nsec nanos nanoseconds",
}
EPOCH_S = (1e9, 4.2e9)  # 2001 to 2103, seconds since 1970
DATE = "a date and time, such as 2024-05-10 13:00:00.5 or 2024-05-10T13:00:00+02:00"
MOST_PER_S = 20.0  # more in a file of milliseconds are taken for one of seconds


def looks_like_times(name: str) -> bool:
    """Whether the name is one of a column of arrival times, or of the gaps between them."""
    return (_has(TIMES, name) or _has(GAPS, name)) and not _has(SECONDS_TAKEN, name)


def _has(pattern: re.Pattern[str], name: str) -> bool:
    return any(pattern.fullmatch(word) for word in words(name))


def arrivals(
    path: Path, frame: pd.DataFrame, form: Format, reading: Reading
) -> tuple[np.ndarray | None, str]:
    """Seconds of each request, None where there are no times, and what was read as what."""
    if form.arrival == "none":
        return None, "no times, as told: all arrive at 0"
    if form.arrival not in frame or frame[form.arrival].isna().all():
        if not form.times_optional:
            raise ValueError(f"{path}: {form.arrival} is empty in every line")
        other = _left_over(path, frame, form, reading)
        if other is None:
            return None, "no times: all arrive at 0"
        form = other
    column = frame[form.arrival]
    only_dates = form.dates and column.dtype.kind not in "iuf"
    read = None if only_dates else _seconds_of_numbers(path, column, form, reading)
    if read is None:
        if reading.time_unit:
            raise ValueError(
                f"{path}: {column.name} holds dates, which have no time unit: leave --time-unit out"
            )
        arrival_s, unit, starts_at_zero = _seconds_of_dates(column), "dates", True
    else:
        arrival_s, unit, starts_at_zero = read
    what = "a number" if read else DATE
    rule = f"it must be {what}, for every request or for none"
    refuse(path, column, ~np.isfinite(arrival_s), rule)
    backwards = np.diff(arrival_s, prepend=arrival_s[0]) < 0
    refuse(path, column, backwards, "earlier than the line before, so sort the file by time")
    if starts_at_zero:
        arrival_s = arrival_s - arrival_s[0]
    refuse(path, column, arrival_s < 0, "times count from 0")
    return arrival_s, f"arrivals from {column.name} in {unit}"


def _left_over(path: Path, frame: pd.DataFrame, form: Format, reading: Reading) -> Format | None:
    """The format with a column of times that it does not know, where one is there and can only be
    read in one way; None where there is none. Raises ValueError where it may mean something
    else."""
    known = {*form.columns, form.max_tokens, *EXTRAS}
    found = [
        name
        for name in frame.columns
        if name not in known and looks_like_times(name) and not frame[name].isna().all()
    ]
    if not found:
        return None
    name = found[0]
    clear = len(found) == 1 and not _has(GAPS, name)
    unit = reading.time_unit or _unit_of(frame[name])
    if clear and unit:
        dates = unit == "dates"
        unit = "" if dates else unit
        return replace(form, arrival=name, unit=unit, dates=dates, starts_at_zero=True)
    why = "nothing says in which unit" if clear else "which of them are of arrivals is not clear"
    settle = f"--columns arrival={name}" + ("" if unit else " --time-unit s (or ms, us, ns)")
    if clear and np.isnan(coerced(frame[name])).all():
        why, settle = f"{_short(str(frame[name].iloc[0]))} is no number", f"it as {DATE}"
    raise ValueError(
        f"{path}: {' and '.join(found)} may hold times, but {why}: say {settle}, or --columns "
        f"arrival=none to let all arrive at 0"
    )


def _unit_of(column: pd.Series) -> str:
    """The unit that a column's name or its values give away, or "dates"; empty where neither."""
    name = words(str(column.name))
    ending = name[-1] if len(name) > 1 else ""
    if named := [unit for unit, endings in ENDINGS.items() if ending in endings.split()]:
        return named[0]
    first = math.nan if column.dtype.kind == "M" else coerced(column)[0]
    if math.isnan(first):
        return "dates" if _are_dates(column) else ""
    return _epoch_unit(float(first))


def _epoch_unit(value: float) -> str:
    """The unit in which a number is a date between 2001 and 2103, if there is one."""
    low, high = EPOCH_S
    return next((unit for unit, scale in UNITS_S.items() if low < value * scale < high), "")


def _seconds_of_numbers(
    path: Path, column: pd.Series, form: Format, reading: Reading
) -> tuple[np.ndarray, str, bool] | None:
    """Seconds, their unit in words, and whether they count from the first; None for dates."""
    told = reading.time_unit
    unit = told or form.unit or _unit_of(column)
    if unit == "dates" or column.dtype.kind == "M" or _are_dates_in_text(column):
        return None
    values = numbers(path, column)
    if np.isnan(values).all() and column.dtype.kind not in "iuf":
        return None  # of dates nobody writes so, refused with the line
    if not np.isfinite(values).all():
        return values, unit, form.starts_at_zero  # refused with its line
    if not unit:
        raise ValueError(
            f"{path}: nothing says in which unit {column.name} is ({column.iloc[0]}, ...): say "
            f"--time-unit s, ms, us or ns"
        )
    epoch = _epoch_unit(float(values[0]))
    if not told and epoch and epoch != unit:
        raise ValueError(
            f"{path} {column.index.name} {column.index[0]}: {column.name} {column.iloc[0]} would "
            f"be in {unit}, but looks like a date in {epoch} since 1970: say --time-unit {epoch}, "
            f"or --time-unit {unit} if it is so"
        )
    if column.dtype.kind in "iu":  # whole numbers keep every digit
        since = (column - column.iloc[0]).to_numpy(np.float64)
    else:
        since = values - values[0]
    if not told and form.publisher == "Mooncake" and form.unit == "ms":
        _require_milliseconds(path, column, values, since)
    starts_at_zero = form.starts_at_zero or bool(epoch)
    seconds = (since if starts_at_zero else values) * UNITS_S[unit]
    clock = ""
    if epoch == unit:
        start = datetime.fromtimestamp(float(values[0]) * UNITS_S[unit], UTC)
        clock = f" since 1970, counted from {start:%Y-%m-%d %H:%M:%S} UTC"
    return seconds, f"{unit}{clock}{', as told' if told else ''}", starts_at_zero


def _require_milliseconds(
    path: Path, column: pd.Series, values: np.ndarray, since: np.ndarray
) -> None:
    """Mooncake's times are whole milliseconds; others use its names for seconds."""
    fractions = bool((values != np.floor(values)).any())
    rate = (len(values) - 1) / (since[-1] * 1e-3) if since[-1] > 0 else 0.0
    if fractions or rate > MOST_PER_S:
        why = "has fractions" if fractions else f"would be {rate:,.0f} requests/s"
        raise ValueError(
            f"{path}: {column.name} is in milliseconds in Mooncake's files, but here it {why}: say "
            f"--time-unit s, or --time-unit ms if it is so"
        )


def _are_dates(column: pd.Series) -> bool:
    return bool(np.isfinite(_seconds_of_dates(column)).all())


def _are_dates_in_text(column: pd.Series) -> bool:
    return column.dtype.kind not in "iuf" and _are_dates(column)


def _seconds_of_dates(column: pd.Series) -> np.ndarray:
    """Seconds since the first date; nan for what is no date."""
    dates = column
    if column.dtype.kind != "M":
        # As text: pandas takes a bare number for nanoseconds.
        dates = pd.to_datetime(column.astype(str), format="ISO8601", utc=True, errors="coerce")
    return (dates - dates.iloc[0]).dt.total_seconds().to_numpy(np.float64)


# --- values, of lengths too -----------------------------------------------------------------------


def refuse(path: Path, column: pd.Series, bad: np.ndarray, rule: str) -> None:
    """Raises ValueError for the first bad value of the column, if there is one."""
    if bad.any():
        at = int(np.argmax(bad))
        value = column.iloc[at]
        empty = value is None or (isinstance(value, float) and math.isnan(value))
        text = f"{value:.15g}" if isinstance(value, float) else _short(str(value))
        shown = "is empty, but" if empty else f"{text} is wrong:"
        raise ValueError(
            f"{path} {column.index.name} {column.index[at]}: {column.name} {shown} {rule}"
        )


def numbers(path: Path, column: pd.Series) -> np.ndarray:
    """float64, nan for what is no number. In JSON, a text or a truth value is no number."""
    if column.dtype == bool:  # True is no length of 1
        column = column.astype(str)
    if not (is_json(path) and column.dtype == object):
        return coerced(column)
    for place, value in column.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(
                f"{path} {column.index.name} {place}: {column.name} {_short(repr(value))} is not a "
                f"number"
            )
    return coerced(column)


def coerced(column: pd.Series) -> np.ndarray:
    """float64, nan for what is no number, infinite for a whole number beyond any float."""
    try:
        return pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    except OverflowError:
        return np.array([_float(value) for value in column])


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return math.nan


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
