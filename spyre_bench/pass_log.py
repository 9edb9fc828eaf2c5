"""The pass log, what an engine did: one JSON line for each warmed bucket and each pass, written
here and read into tidy frames."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from spyre_bench.files import parse_json, read_text
from spyre_bench.shapes import Bucket

OF_A_PASS = ("batch", "step", "start_s", "seconds", "prompt_tokens", "running", "requests")


def read_passes(path: Path) -> pd.DataFrame:
    """One row a pass of the engine, in order: batch, bucket, kind (prefill or decode), step within
    the batch, start_s after the first pass, seconds, prompt_tokens of each row, running rows that
    had not finished, measured_at. Raises ValueError naming a line that is not of a pass log."""
    passes = pd.DataFrame(_passes(path))
    if passes.empty:
        raise ValueError(f"{path}: holds no pass: did the engine get a request?")
    passes["measured_at"] = [
        datetime.fromtimestamp(start_s, UTC).isoformat() for start_s in passes["start_s"]
    ]
    passes["start_s"] -= passes["start_s"].min()
    return passes.drop(columns="requests")


def count_passes(path: Path) -> int:
    """How many passes the log has, 0 before the first request. Raises ValueError as `read_passes`
    does for a line that is not of a pass log."""
    return len(_passes(path))


def read_warmup(path: Path) -> pd.DataFrame:
    """One row a warmed bucket, with the seconds of each of its stages."""
    return pd.DataFrame([line for line in _lines(path) if line["kind"] == "warmup"]).drop(
        columns="kind"
    )


def _passes(path: Path) -> list[dict[str, Any]]:
    return [line for line in _lines(path) if line["kind"] != "warmup"]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, text in enumerate(read_text(path).splitlines(), 1):
        try:
            line = _object(text)
            yield line | {"bucket": str(Bucket.parse(line["bucket"]))}
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: line {number} is not of a pass log: {error}") from error


def _object(text: str) -> dict[str, Any]:
    line = parse_json(text, "it")
    if not isinstance(line, dict):
        raise ValueError("it is not an object")
    needed = ("bucket", "kind", *(OF_A_PASS if line.get("kind") != "warmup" else ()))
    if missing := [name for name in needed if name not in line]:
        raise ValueError(f"it has no {missing[0]}")
    return line


class PassLog:
    """Lines to a file, each flushed, so that a reader sees every finished pass; to nowhere
    without a path."""

    def __init__(self, path: Path | None):
        self._file: TextIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="utf-8")

    def write_pass(self, **values: Any) -> None:
        self._write(values)

    def write_warmup(self, row: object) -> None:
        self._write({"kind": "warmup", **vars(row)})

    def _write(self, values: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(values, default=_plain) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _plain(value: Any) -> Any:
    """JSON has no buckets."""
    if isinstance(value, Bucket):
        return [value.batch_size, value.prompt_length, value.new_tokens]
    raise TypeError(f"{value!r} does not go into the pass log")
