"""Trace files: when requests came and how long they were, read by the names of the columns.

Nothing is guessed in silence: `Columns.read_as` says which columns and which unit were taken, and
what could mean two things is refused with the option that settles it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from spyre_bench.frames import read_frame
from spyre_bench.workload.tool_results import Unfold
from spyre_bench.workload.trace_formats import AS_TEXT, EXTRAS, Format, Reading, match_format
from spyre_bench.workload.trace_times import arrivals, coerced, looks_like_times, numbers, refuse

MAX_TOKENS = np.iinfo(np.int32).max


class Columns(NamedTuple):
    """What a trace file says, one element per request."""

    arrival_s: np.ndarray | None  # float64, ascending; None where the file has no times
    prompt_tokens: np.ndarray  # int32, >= 1
    output_tokens: np.ndarray  # int32, >= 1
    max_tokens: np.ndarray | None  # int32, >= output_tokens; None where the file is silent
    failed: int  # requests left out, because they failed
    read_as: str  # which columns and which unit were taken
    extras: dict[str, np.ndarray]  # the columns of `EXTRAS` that there are, as they stand

    @property
    def requests_per_s(self) -> float | None:
        """Mean arrival rate; None without times, or where all requests came at once."""
        if self.arrival_s is None or self.arrival_s[-1] == self.arrival_s[0]:
            return None
        return (len(self.arrival_s) - 1) / float(self.arrival_s[-1] - self.arrival_s[0])


def read_trace(path: str | Path, reading: Reading | None = None) -> Columns:
    """Reads `.csv`, `.tsv`, `.jsonl` and `.json`, plain or `.gz`, and `.parquet`, in any of
    `FORMATS`, by other spellings of their columns, or with those and the unit that `reading` says.

    Raises ValueError with the file and the line, counted as an editor does, for what cannot be a
    trace: unknown columns, lengths that are not whole numbers of 1 or more, times that are
    missing for some requests, go backwards or may be of two units, no requests, no text.
    """
    path, reading = Path(path), reading or Reading()

    def kept(names: Sequence[str]) -> list[str]:
        form = match_format(path, names, reading)
        wanted = {*form.columns, form.max_tokens, *form.also, *EXTRAS}
        wanted.update(filter(looks_like_times, names))
        return [name for name in names if name in wanted]

    unfold = Unfold(path, reading.tokenizer)
    frame = read_frame(path, kept, reading.separator, AS_TEXT, unfold)
    if frame.empty and not len(frame.columns):
        raise ValueError(f"{path} holds no requests: it needs at least one of them")
    form = match_format(path, frame.columns, reading)
    if frame.empty:
        raise ValueError(f"{path} holds no requests: it needs at least one line of values")
    columns = _columns(path, frame, form, reading)
    separator = frame.attrs.get("separator")
    notes = ([f"{separator}s between columns"] if separator else []) + unfold.notes
    return columns._replace(read_as="; ".join([columns.read_as, *notes]))


# --- frames to columns ----------------------------------------------------------------------------


def _columns(path: Path, frame: pd.DataFrame, form: Format, reading: Reading) -> Columns:
    everyone = len(frame)
    if form.zero_output_failed:
        frame = frame[coerced(frame[form.output]) != 0]
        if frame.empty:
            raise ValueError(f"{path}: all {everyone} requests failed ({form.output} is 0)")
    if form.any_order and form.arrival in frame:
        frame = frame.sort_values(form.arrival, kind="stable")
    prompt_tokens = _tokens(path, frame[form.prompt])
    output_tokens = _tokens(path, frame[form.output])
    max_tokens = _max_tokens(path, frame, form, output_tokens)
    arrival_s, times = arrivals(path, frame, form, reading)
    lengths = f"lengths from {form.prompt}, {form.output}"
    asked = f"max_tokens from {form.max_tokens}" if max_tokens is not None else "max_tokens: output"
    return Columns(
        arrival_s,
        prompt_tokens,
        output_tokens,
        max_tokens,
        everyone - len(frame),
        f"{path.name}: {form.publisher}; {times}; {lengths}; {asked}",
        {name: _extra(path, frame[name]) for name in EXTRAS if name in frame},
    )


def _tokens(path: Path, column: pd.Series) -> np.ndarray:
    values = numbers(path, column)
    bad = ~((values >= 1) & (values <= MAX_TOKENS) & (values == np.floor(values)))
    rule = "a length is a whole number of tokens, 1 or more: mend that line, or leave it out"
    refuse(path, column, bad, rule)
    return values.astype(np.int32)


def _max_tokens(
    path: Path, frame: pd.DataFrame, form: Format, output_tokens: np.ndarray
) -> np.ndarray | None:
    if form.max_tokens not in frame or frame[form.max_tokens].isna().all():
        return None
    column = frame[form.max_tokens]
    max_tokens = _tokens(path, column)
    below = max_tokens < output_tokens
    refuse(path, column, below, "a server stops at max_tokens, so output_tokens cannot exceed it")
    return max_tokens


def _extra(path: Path, column: pd.Series) -> np.ndarray:
    """As it stands; a list in a CSV file is written as JSON."""
    values = column.to_numpy()
    if column.name != "hash_ids":
        return values
    found = np.empty(len(values), dtype=object)
    for at, value in enumerate(values):
        try:
            found[at] = json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} {column.index.name} {column.index[at]}: hash_ids {value[:60]} is no JSON "
                f"list"
            ) from error
    return found
