"""What an engine did, as tidy frames: the server's pass log read into passes, warmups and waste."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from spyre_bench.batching import WasteLedger
from spyre_bench.files import parse_json, read_text
from spyre_bench.shapes import Bucket

OF_A_PASS = ("batch", "step", "start_s", "seconds", "prompt_tokens", "running", "requests")
WASTES = tuple(field.name for field in fields(WasteLedger) if field.name != "useful")


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


def waste(passes: pd.DataFrame) -> pd.DataFrame:
    """The waste ledger of each batch, in tokens, with its bucket, sum and fill."""
    return pd.DataFrame([_ledger(some) for _, some in passes.groupby("batch")])


def _ledger(passes: pd.DataFrame) -> dict[str, Any]:
    first = passes.iloc[0]
    # Each pass gives every running row a token; which row stopped when does not matter here.
    rows = range(len(first["prompt_tokens"]))
    outputs = [int((passes["running"] > row).sum()) for row in rows]
    ledger = WasteLedger.of_batch(Bucket.parse(first["bucket"]), first["prompt_tokens"], outputs)
    names = {"batch": first["batch"], "bucket": first["bucket"]}
    return names | asdict(ledger) | {"computed": ledger.computed, "fill": ledger.fill}


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
