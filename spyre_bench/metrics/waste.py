"""Where computed tokens go: the waste ledger of a simulated run, and of an engine's pass log."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from spyre_bench.metrics.bounds import least_row_s
from spyre_bench.policy.ledger import Ledger, PaidLedger, StepLedger, WasteLedger
from spyre_bench.shapes import Bucket
from spyre_bench.simulate.result import PREFILL, ContinuousRun, SimulatedRun, StaticRun

LEDGER = tuple(field.name for field in fields(WasteLedger))
STEP_LEDGER = tuple(field.name for field in fields(StepLedger))
PAID_LEDGER = tuple(field.name for field in fields(PaidLedger))
WASTES = tuple(name for name in LEDGER if name != "useful")


def batches(run: StaticRun) -> pd.DataFrame:
    """One row per batch: batch, replica, bucket, start_s, seconds, rows, passes, the waste ledger
    in token slots (see `policy.ledger.WasteLedger`), computed and fill."""
    names = np.array([str(cost.bucket) for cost in run.costs])
    passes, first = run.passes, run.passes.first_of_batch
    frame = pd.DataFrame(
        {
            "batch": passes.batch[first],
            "replica": passes.replica[first],
            "bucket": names[passes.shape[first]],
            "start_s": passes.start_s[first],
            "seconds": passes.batch_seconds,
            "rows": passes.rows[first],
            "passes": passes.sum_over_batches(passes.count),
            **{name: passes.sum_over_batches(tokens) for name, tokens in of_passes(run).items()},
        }
    )
    computed = frame[list(LEDGER)].sum(axis=1)
    return frame.assign(computed=computed, fill=frame["useful"] / computed)


def ledger(run: SimulatedRun) -> Ledger:
    """The waste ledger of the whole run, in token slots: of its kind of batching."""
    if isinstance(run, StaticRun):
        return WasteLedger(**{name: int(tokens.sum()) for name, tokens in of_passes(run).items()})
    assert isinstance(run, ContinuousRun)
    return StepLedger(**{name: int(tokens.sum()) for name, tokens in _of_steps(run).items()})


def _of_steps(run: ContinuousRun) -> dict[str, np.ndarray]:
    """Each part of `StepLedger` for each row of passes, int64 [p]."""
    passes = run.passes
    pad = passes.slots * passes.count - passes.useful - passes.again
    prefill = passes.kind == PREFILL
    return {
        "useful": passes.useful,
        "chunk_pad": np.where(prefill, pad, 0),
        "again": passes.again,
        "row_pad": np.where(prefill, 0, pad),
    }


def paid(run: ContinuousRun) -> PaidLedger:
    """What the busy seconds of a run were paid for. Seconds of a chunk are divided by its slots,
    what a decode pass takes without anybody by its rows."""
    passes, costs = run.passes, run.costs
    steps, seconds = _of_steps(run), passes.seconds * passes.count
    chunk = passes.kind == PREFILL
    slot_s = np.where(chunk, seconds / passes.slots, 0.0)
    base_s = np.array([0.0] * len(costs.prefill) + [cost.base_s for cost in costs.decode])
    empty_s = np.where(chunk, 0.0, base_s[passes.shape] * passes.count)
    most = np.array([1] * len(costs.prefill) + [cost.shape.rows for cost in costs.decode])
    most = most[passes.shape]
    row_s = empty_s / most  # a row's part
    least_s = passes.rows * np.where(chunk, 0.0, _least_empty_s(run))
    parts = {
        "useful_s": slot_s * steps["useful"] + np.where(chunk, 0.0, seconds - empty_s + least_s),
        "chunk_pad_s": slot_s * steps["chunk_pad"],
        "again_s": slot_s * steps["again"],
        "row_pad_s": row_s * (most - passes.rows),
        "shape_pad_s": passes.rows * row_s - least_s,
    }
    return PaidLedger(**{name: float(part.sum()) for name, part in parts.items()})


def _least_empty_s(run: ContinuousRun) -> np.ndarray:
    """Of each row of decode passes: a row's part of what they take without anybody, in the shape
    where that is least, float64 [p]."""
    passes = run.passes
    bare = [replace(cost, row_s=0.0, slot_s=0.0) for cost in run.costs.decode]
    least = np.cumsum(np.append(0.0, least_row_s(bare)))
    first = np.maximum(passes.width, 1)
    last = np.minimum(first + passes.count - 1, len(least) - 1)
    return np.asarray(least[last] - least[first - 1])


def by_bucket(batches: pd.DataFrame) -> pd.DataFrame:
    """One row per bucket that ran: batches, rows, seconds, the ledger's sums, computed and fill."""
    columns = ["rows", "seconds", *LEDGER, "computed"]
    frame = batches.groupby("bucket")[columns].sum()
    frame.insert(0, "batches", batches.groupby("bucket").size())
    return frame.assign(fill=frame["useful"] / frame["computed"]).reset_index()


def of_passes(run: StaticRun) -> dict[str, np.ndarray]:
    """Each part of `WasteLedger.of_batch` for each row of passes of a static batch, int64 [p]."""
    passes = run.passes
    if not len(passes):
        return {name: np.zeros(0, dtype=np.int64) for name in LEDGER}
    prefill = passes.kind == PREFILL
    sizes = [(c.bucket.batch_size, c.bucket.prompt_length) for c in run.costs]
    batch_size, prompt_length = np.array(sizes, dtype=np.int64)[passes.shape].T
    prompt_length = np.where(prefill, prompt_length, 0)
    prompts = run.workload.prompt_tokens[passes.members]
    longest = np.where(prefill, np.maximum.reduceat(prompts, passes.first_member), 0)
    rows, outputs = passes.rows.astype(np.int64), passes.outputs
    return {
        "useful": passes.useful,
        "batch_pad": (batch_size - rows) * (prompt_length + passes.count),
        "prompt_pad": rows * longest - (passes.useful - outputs),
        "bucket_pad": rows * (prompt_length - longest),
        "decode_tail": rows * passes.count - outputs,
        "cap": np.zeros_like(rows),  # a batch ends with its longest output
    }


# --- of a pass log --------------------------------------------------------------------------------


def waste(passes: pd.DataFrame) -> pd.DataFrame:
    """The waste ledger of each batch, in tokens, with its bucket, sum and fill."""
    return pd.DataFrame([_of_batch(batch) for _, batch in passes.groupby("batch")])


def _of_batch(passes: pd.DataFrame) -> dict[str, Any]:
    first = passes.iloc[0]
    # Each pass gives every running row a token; which row stopped when does not matter here.
    rows = range(len(first["prompt_tokens"]))
    outputs = [int((passes["running"] > row).sum()) for row in rows]
    ledger = WasteLedger.of_batch(Bucket.parse(first["bucket"]), first["prompt_tokens"], outputs)
    names = {"batch": first["batch"], "bucket": first["bucket"]}
    return names | asdict(ledger) | {"computed": ledger.computed, "fill": ledger.fill}
