"""Trace files: when requests came and how long they were, read by the names of the columns."""

from __future__ import annotations

import gzip
import json
import math
import warnings
import zlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import pandas as pd

MAX_TOKENS = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """The columns of one publisher's files. They are found by name, so that more columns, in any
    order, do no harm."""

    publisher: str
    arrival: str
    prompt: str
    output: str
    max_tokens: str = ""  # of our own files only, and optional there
    unit_s: float = 1.0  # seconds in one unit of `arrival`
    dates: bool = False  # `arrival` is a date and time
    times_optional: bool = False  # a list of lengths is welcome too
    starts_at_zero: bool = True  # times count from the first request kept
    zero_output_failed: bool = False  # a request without an answer failed, and is left out

    @property
    def required(self) -> tuple[str, ...]:
        return (self.prompt, self.output) if self.times_optional else self.columns

    @property
    def columns(self) -> tuple[str, ...]:
        return self.arrival, self.prompt, self.output


FORMATS = (
    Format(
        publisher="our own",
        arrival="arrival_s",
        prompt="prompt_tokens",
        output="output_tokens",
        max_tokens="max_tokens",
        times_optional=True,
        starts_at_zero=False,
    ),
    Format(
        publisher="Azure",
        arrival="TIMESTAMP",
        prompt="ContextTokens",
        output="GeneratedTokens",
        dates=True,
    ),
    Format(
        publisher="BurstGPT",
        arrival="Timestamp",
        prompt="Request tokens",
        output="Response tokens",
        zero_output_failed=True,
    ),
    Format(
        publisher="Mooncake",
        arrival="timestamp",
        prompt="input_length",
        output="output_length",
        unit_s=1e-3,
    ),
    Format(
        publisher="vidur",
        arrival="arrived_at",
        prompt="num_prefill_tokens",
        output="num_decode_tokens",
        times_optional=True,
    ),
    Format(
        publisher="splitwise",
        arrival="arrival_timestamp",
        prompt="prompt_size",
        output="token_size",
    ),
)


class Columns(NamedTuple):
    """What a trace file says, one element a request."""

    arrival_s: np.ndarray | None  # float64, ascending; None where the file has no times
    prompt_tokens: np.ndarray  # int32, >= 1
    output_tokens: np.ndarray  # int32, >= 1
    max_tokens: np.ndarray | None  # int32, >= output_tokens; None where the file is silent
    failed: int  # requests left out, because they failed

    @property
    def requests_per_s(self) -> float | None:
        """Mean arrival rate; None without times, or where all requests came at once."""
        if self.arrival_s is None or self.arrival_s[-1] == self.arrival_s[0]:
            return None
        return (len(self.arrival_s) - 1) / float(self.arrival_s[-1] - self.arrival_s[0])


def read_trace(path: str | Path) -> Columns:
    """Reads `.csv` or `.jsonl`, plain or `.gz`, in any of `FORMATS`.

    Raises ValueError with the file and the line, counted as an editor does, for what cannot be a
    trace: unknown columns, lengths that are not whole numbers of 1 or more, times that are
    missing for some requests or go backwards, no requests at all, bytes that are no text.
    """
    path = Path(path)
    try:
        with open_text(path) as file:
            read = _read_jsonl if is_jsonl(path) else _read_csv
            frame, form = read(path, file)
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} is not readable as {'gzip of ' * (path.suffix == '.gz')}UTF-8 text ({error}): "
            f"is it whole, and is its suffix right?"
        ) from error
    if frame.empty:
        raise ValueError(f"{path} holds no requests: it needs at least one line of values")
    return _columns(path, frame, form)


def is_jsonl(path: Path) -> bool:
    """Whether the name says JSON lines; every other name means CSV."""
    return path.name.removesuffix(".gz").endswith((".jsonl", ".json"))


def open_text(path: Path) -> TextIO:
    """The file as text; a byte order mark is passed over."""
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def match_format(path: Path, names: Iterable[str]) -> Format:
    """The format that has these columns; ValueError with all known formats if none has."""
    names = list(names)
    for form in FORMATS:
        if set(form.required) <= set(names):
            return form
    known = "; ".join(f"{form.publisher}: {', '.join(form.columns)}" for form in FORMATS)
    raise ValueError(
        f"{path} line 1 has the columns {', '.join(map(str, names)) or '(none)'}, of no known "
        f"trace format. Rename them to one of: {known}"
    )


# --- files to frames: raw values, indexed by line number ------------------------------------------


def _read_csv(path: Path, file: TextIO) -> tuple[pd.DataFrame, Format]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a first row that is too long
            frame = pd.read_csv(
                file,
                index_col=False,
                keep_default_na=False,
                na_values=[""],
                skip_blank_lines=False,  # so that lines are counted right
                low_memory=False,
            )
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"{path} is empty: it needs a line of column names") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise ValueError(f"{path} is not a CSV table: {str(error).strip()}") from error
    frame.columns = [str(name).strip() for name in frame.columns]
    form = match_format(path, frame.columns)
    frame.index = frame.index + 2  # the header is line 1
    return frame.dropna(how="all"), form


def _read_jsonl(path: Path, file: TextIO) -> tuple[pd.DataFrame, Format]:
    """Line by line into arrays: block ids and other long values of a line are dropped at once."""
    form: Format | None = None
    values: dict[str, array[float]] = {}
    lines = array("q")
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        record = _json_object(path, line, text)
        if form is None:
            form = match_format(path, record)
            names = (*form.columns, form.max_tokens)
            values = {name: array("d") for name in names if name in record}
        for name, column in values.items():
            column.append(_json_number(path, line, name, record.get(name)))
        lines.append(line)
    if form is None:
        raise ValueError(f"{path} is empty: it needs one JSON object a line")
    columns = {name: np.frombuffer(column) for name, column in values.items()}
    return pd.DataFrame(columns, index=np.frombuffer(lines, np.int64)), form


def _json_object(path: Path, line: int, text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} line {line} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} line {line} is not a JSON object: write one object a line")
    return record


def _json_number(path: Path, line: int, name: str, value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{path} line {line}: {name} {value!r} is not a number")
    return value


# --- frames to columns ----------------------------------------------------------------------------


def _columns(path: Path, frame: pd.DataFrame, form: Format) -> Columns:
    everyone = len(frame)
    if form.zero_output_failed:
        frame = frame[pd.to_numeric(frame[form.output], errors="coerce") != 0]
        if frame.empty:
            raise ValueError(f"{path}: all {everyone} requests failed ({form.output} is 0)")
    prompt_tokens = _tokens(path, frame[form.prompt])
    output_tokens = _tokens(path, frame[form.output])
    return Columns(
        _arrivals(path, frame, form),
        prompt_tokens,
        output_tokens,
        _max_tokens(path, frame, form, output_tokens),
        everyone - len(frame),
    )


def _refuse(path: Path, column: pd.Series, bad: np.ndarray, words: str) -> None:
    """Raises ValueError for the first bad value of the column, if there is one."""
    if bad.any():
        at = int(np.argmax(bad))
        value = column.iloc[at]
        text = f"{value:.15g}" if isinstance(value, float) else value
        shown = "is empty, but" if pd.isna(value) else f"{text} is wrong:"
        raise ValueError(f"{path} line {column.index[at]}: {column.name} {shown} {words}")


def _numbers(column: pd.Series) -> np.ndarray:
    if column.dtype == bool:  # True is no length of 1
        column = column.astype(str)
    return pd.to_numeric(column, errors="coerce").to_numpy(np.float64)


def _tokens(path: Path, column: pd.Series) -> np.ndarray:
    values = _numbers(column)
    bad = ~((values >= 1) & (values <= MAX_TOKENS) & (values == np.floor(values)))
    _refuse(path, column, bad, "a length is a whole number of tokens, 1 or more")
    return values.astype(np.int32)


def _max_tokens(
    path: Path, frame: pd.DataFrame, form: Format, output_tokens: np.ndarray
) -> np.ndarray | None:
    if form.max_tokens not in frame or frame[form.max_tokens].isna().all():
        return None
    column = frame[form.max_tokens]
    max_tokens = _tokens(path, column)
    below = max_tokens < output_tokens
    _refuse(path, column, below, "a server stops at max_tokens, so output_tokens cannot exceed it")
    return max_tokens


def _arrivals(path: Path, frame: pd.DataFrame, form: Format) -> np.ndarray | None:
    if form.arrival not in frame or frame[form.arrival].isna().all():
        if form.times_optional:
            return None
        raise ValueError(f"{path}: {form.arrival} is empty in every line")
    column = frame[form.arrival]
    arrival_s = _seconds(column) if form.dates else _numbers(column) * form.unit_s
    what = "a date and time" if form.dates else "a number"
    rule = f"it must be {what}, for every request or for none"
    _refuse(path, column, ~np.isfinite(arrival_s), rule)
    backwards = np.diff(arrival_s, prepend=arrival_s[0]) < 0
    _refuse(path, column, backwards, "earlier than the line before, so sort the file by time")
    if form.starts_at_zero:
        return arrival_s - arrival_s[0]
    _refuse(path, column, arrival_s < 0, "times count from 0")
    return arrival_s


def _seconds(column: pd.Series) -> np.ndarray:
    """Seconds since the first date; nan for what is no date."""
    # As text: pandas takes a bare number for nanoseconds.
    dates = pd.to_datetime(column.astype(str), format="ISO8601", utc=True, errors="coerce")
    return (dates - dates.iloc[0]).dt.total_seconds().to_numpy(np.float64)
