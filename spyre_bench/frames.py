"""Files to frames: CSV, JSON lines, JSON arrays and parquet, their values as they stand.

The index of a frame says where a row stands in its file: the line as an editor counts, or the
number of the request where there are no lines. `choose` is asked for the columns to keep as soon as
their names are known, so that long values nobody uses are dropped at once.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import pandas as pd

Choose = Callable[[Sequence[str]], Iterable[str]]
SEPARATORS = {";": "semicolon", "\t": "tab", "|": "pipe", ",": "comma"}  # and their names


class Unfold(Protocol):
    """Objects of a JSON file that are more than one row each, or rows within rows."""

    def knows(self, value: dict[str, Any]) -> bool: ...

    def rows(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        """Of an object of a file whose first object it knows."""
        ...


def read_frame(
    path: Path,
    choose: Choose,
    separator: str | None = None,
    as_text: Iterable[str] = (),
    unfold: Unfold | None = None,
) -> pd.DataFrame:
    """The columns that `choose` keeps; of a CSV file all of them, those of `as_text` as they are
    spelled. An object of a JSON file is a row, or the rows that `unfold` makes of it. What
    separates a CSV file is in `attrs["separator"]` where it was found and not told.

    Raises ValueError with the file, and the line where there is one, for bytes that are no table.
    """
    if path.name.endswith(".parquet"):
        return _read_parquet(path, choose)
    try:
        with open_text(path) as file:
            if is_json(path):
                return _read_json(path, file, choose, unfold)
            return read_csv(path, file, separator, as_text)
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} is not readable as {'gzip of ' * (path.suffix == '.gz')}UTF-8 text ({error}): "
            f"is it whole, is its suffix right, was it saved as UTF-8?"
        ) from error


def is_json(path: Path) -> bool:
    """Whether the name says JSON, whole or in lines; any other name but .parquet means CSV."""
    return path.name.removesuffix(".gz").endswith((".jsonl", ".json"))


def open_text(path: Path) -> TextIO:
    """The file as text; a byte order mark is passed over."""
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline="")


# --- CSV ------------------------------------------------------------------------------------------


def read_csv(
    path: Path, file: TextIO, separator: str | None = None, as_text: Iterable[str] | None = ()
) -> pd.DataFrame:
    """All columns of a CSV file; every cell as text where `as_text` is None. Where nobody says what
    separates them, it is what stands in the first line; a semicolon brings decimal commas."""
    by_name = {name: character for character, name in SEPARATORS.items()} | {"\\t": "\t"}
    sep = _sniffed(path, file) if separator is None else by_name.get(separator, separator)
    if len(sep) != 1:
        raise ValueError(f"separator {separator!r} is not one character: write, for example, tab")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a first row that is too long
            frame = pd.read_csv(
                file,
                sep=sep,
                decimal="," if sep == ";" else ".",  # a number with a point stays text, and is read
                dtype=str if as_text is None else dict.fromkeys(as_text, str),
                index_col=False,
                keep_default_na=False,
                na_values=[""],
                skip_blank_lines=False,  # so that lines are counted right
                low_memory=False,
            )
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"{path} is empty: it needs a line of column names") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        line = re.search(r"in line \d+", str(error))  # of the first row, it is not said
        where = line[0] if line else "in line 2"
        raise ValueError(
            f"{path} is not a CSV table: {where} there are more values than column names in line "
            f"1: look for a title above the names, a comma too many, or another separator"
        ) from error
    _require_distinct(path, file, sep)
    frame.columns = [str(name).strip() for name in frame.columns]
    if separator is None and sep != _default(path):
        frame.attrs["separator"] = SEPARATORS[sep]
    if len(frame.columns) == 1 and (other := [s for s in SEPARATORS if s in frame.columns[0]]):
        raise ValueError(
            f"{path} line 1 has no {SEPARATORS.get(sep, sep)} between its column names, but "
            f"{other[0]!r}: separate by commas, or, of a trace, say --separator "
            f"{SEPARATORS[other[0]]}"
        )
    frame.index = pd.RangeIndex(2, len(frame) + 2, name="line")  # the header is line 1
    unnamed = [name for name in frame.columns if name.startswith("Unnamed: ")]
    return frame.dropna(how="all").drop(columns=[n for n in unnamed if frame[n].isna().all()])


def _require_distinct(path: Path, file: TextIO, sep: str) -> None:
    """ValueError for a name that two columns have: pandas would give the second another."""
    file.seek(0)
    names = [name.strip() for name in next(csv.reader(file, delimiter=sep), [])]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(
            f"{path} line 1 has {names.count(twice)} columns called {twice}: rename all but one"
        )


def _default(path: Path) -> str:
    return "\t" if path.name.removesuffix(".gz").endswith(".tsv") else ","


def _sniffed(path: Path, file: TextIO) -> str:
    """What the name of the file says, unless the first line has other separators only."""
    first, default = file.readline(), _default(path)
    file.seek(0)
    others = [character for character in SEPARATORS if character in first]
    return others[0] if others and default not in first else default


# --- JSON -----------------------------------------------------------------------------------------


def _read_json(path: Path, file: TextIO, choose: Choose, unfold: Unfold | None) -> pd.DataFrame:
    """One object per line, or a file that is one value: an array of objects, or an object that
    holds one array of objects. Objects within objects are flattened: the inner names count."""
    numbered = enumerate(file, start=1)
    lines: Iterator[tuple[int, str]] = (line for line in numbered if line[1].strip())
    first = next(lines, None)
    if first is None:
        raise ValueError(f"{path} is empty: it needs one JSON object per line, or an array of them")
    second = next(lines, None)
    lines = itertools.chain([] if second is None else [second], lines)
    whole = _whole(path, first, lines, second is None, unfold)
    if whole is None:
        place, objects = "line", _each_line(path, itertools.chain([first], lines))
    else:
        place, objects = "request", _numbered(path, whole)
    head = list(itertools.islice(objects, 1))
    objects = itertools.chain(head, objects)
    if unfold and head and unfold.knows(head[0][1]):
        rows = itertools.chain.from_iterable(unfold.rows(value) for _, value in objects)
        return _frame(path, "request", enumerate(rows, start=1), choose)
    return _frame(path, place, ((number, _flat(value)) for number, value in objects), choose)


def _whole(
    path: Path,
    first: tuple[int, str],
    lines: Iterator[tuple[int, str]],
    only: bool,
    unfold: Unfold | None,
) -> Any:
    """The requests of a file that is one JSON value, in its `only` line or over all; None where
    each line is one, of which only the first has been looked at."""
    number, text = first
    over_lines = False
    try:
        value = _loads(text)
    except ValueError:
        try:
            value = _loads(text + "".join(line for _, line in lines))
        except ValueError as error:
            raise ValueError(f"{path} line {number} is not JSON: {error}") from error
        over_lines = True
    if not (only or over_lines):
        return None
    if isinstance(value, list):
        if value and not isinstance(value[0], dict):
            raise ValueError(
                f"{path} line {number} is not a JSON object: write one object per line, or an "
                f"array of objects"
            )
        return value
    if isinstance(value, dict):
        arrays = [held for held in value.values() if _is_array_of_objects(held)]
        if len(arrays) == 1 and not (unfold and unfold.knows(value)):
            return arrays[0]
        if over_lines:
            return [value]
    return None


def _is_array_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _numbered(path: Path, values: Sequence[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise ValueError(f"{path} request {number} is not a JSON object")
        yield number, value


def _each_line(
    path: Path, lines: Iterable[tuple[int, str]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text in lines:
        try:
            record = _loads(text)
        except ValueError as error:
            raise ValueError(f"{path} line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(
                f"{path} line {number} is not a JSON object: write one object per line, or one "
                f"array of objects in the whole file"
            )
        yield number, record


def _loads(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError for a name that two values have: the first of them would be lost."""
    value = dict(pairs)
    if len(value) < len(pairs):
        (name, times), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name} is there {times} times in one object: keep one")
    return value


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """Without objects in it: their names stand beside the outer ones, which go first. A name that
    two of them share says whose it is, as `usage.prompt_tokens`."""
    while inner := {name: value for name, value in record.items() if isinstance(value, dict)}:
        record = {name: value for name, value in record.items() if name not in inner}
        shared = Counter(itertools.chain.from_iterable(inner.values()))
        for outer, value in inner.items():
            for name, item in value.items():
                record.setdefault(name if shared[name] == 1 else f"{outer}.{name}", item)
    return record


def _frame(
    path: Path, place: str, records: Iterable[tuple[int, dict[str, Any]]], choose: Choose
) -> pd.DataFrame:
    """The columns that `choose` keeps of the names in any record; None where a record has none."""
    values: dict[str, list[Any]] = {}
    seen: set[str] = set()
    places: list[int] = []
    for number, record in records:
        if not (places and record.keys() <= seen):
            names = [*values, *(name for name in record if name not in seen)]
            seen.update(names)
            values |= {n: [None] * len(places) for n in choose(names) if n not in values}
        for name, column in values.items():
            column.append(record.get(name))
        places.append(number)
    columns = {name: _column(column) for name, column in values.items()}
    return pd.DataFrame(columns, index=pd.Index(places, name=place, dtype="int64"))


def _column(values: list[Any]) -> np.ndarray:
    """Numbers as numbers; anything else as the objects they are."""
    kinds = set(map(type, values))
    if kinds <= {int, float, type(None)}:
        try:
            return np.array(values, np.int64 if kinds == {int} else np.float64)
        except OverflowError:
            pass
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


# --- parquet --------------------------------------------------------------------------------------


def _read_parquet(path: Path, choose: Choose) -> pd.DataFrame:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ValueError(
            f"{path}: parquet is read with pyarrow, which is not installed: pip install "
            f"'spyre-bench[parquet]'"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            kept = set(choose(names))
            frame = file.read(columns=[name for name in names if name in kept]).to_pandas()
    except arrow.ArrowException as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error
    frame.index = pd.RangeIndex(1, len(frame) + 1, name="request")
    return frame
