"""What an engine did, as tidy frames: the server's pass log read into passes, warmups and waste."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from spyre_bench.batching import WasteLedger
from spyre_bench.shapes import Bucket


def read_passes(path: Path) -> pd.DataFrame:
    """One row a pass of the engine, in order: batch, bucket, kind (prefill or decode), step within
    the batch, start_s after the first pass, seconds, prompt_tokens of each row, running rows that
    had not finished, measured_at. Raises ValueError naming a line that is not of a pass log."""
    passes = pd.DataFrame([line for line in _lines(path) if line["kind"] != "warmup"])
    if passes.empty:
        raise ValueError(f"{path}: holds no pass: did the engine get a request?")
    passes["measured_at"] = [
        datetime.fromtimestamp(start_s, UTC).isoformat() for start_s in passes["start_s"]
    ]
    passes["start_s"] -= passes["start_s"].min()
    return passes.drop(columns="requests")


def read_warmup(path: Path) -> pd.DataFrame:
    """One row a warmed bucket, with the seconds of each of its stages."""
    return pd.DataFrame([line for line in _lines(path) if line["kind"] == "warmup"]).drop(
        columns="kind"
    )


def waste(passes: pd.DataFrame) -> pd.DataFrame:
    """The waste ledger of each batch, in tokens, with its bucket and its fill."""
    return pd.DataFrame(
        {"batch": batch, "bucket": ledger_bucket, **asdict(ledger), "fill": ledger.fill}
        for batch, ledger_bucket, ledger in map(
            _ledger, *zip(*passes.groupby("batch"), strict=True)
        )
    )


def _ledger(batch: int, passes: pd.DataFrame) -> tuple[int, str, WasteLedger]:
    bucket, prompt_tokens = passes[["bucket", "prompt_tokens"]].iloc[0]
    # Each pass gives every running row a token; which row stopped when does not matter here.
    outputs = [int((passes["running"] > row).sum()) for row in range(len(prompt_tokens))]
    return batch, bucket, WasteLedger.of_batch(Bucket.parse(bucket), prompt_tokens, outputs)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            line = json.loads(text)
            yield line | {"bucket": str(Bucket.parse(line["bucket"])), "kind": line["kind"]}
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: line {number} is not of a pass log: {error}") from error
