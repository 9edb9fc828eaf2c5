"""The waste of an engine's batches, from its pass log."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import pandas as pd

from spyre_bench.policy.ledger import WasteLedger
from spyre_bench.shapes import Bucket

WASTES = tuple(field.name for field in fields(WasteLedger) if field.name != "useful")


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
