"""What an engine of static batching served, from its pass log: the requests, the seconds that they
took, and what each of its buckets cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.pass_log import read_passes, read_warmup
from spyre_bench.shapes import Bucket
from spyre_bench.workload.workload import Workload

PARTS = 8  # of a log's batches, whose paces say how the machine changed


@dataclass(frozen=True, eq=False)
class Served:
    """A deployment's pass log."""

    workload: Workload  # those that ran, in order of arrival
    costs: tuple[BucketCost, ...]  # of the buckets that it was warmed with, as its passes took
    busy_s: float  # a batch ran
    batches: int
    drift: float  # standard deviation of the logarithm of the machine's pace, part by part
    gave_up: int  # requests that left the queue


def read_served(path: Path) -> Served:
    """Raises ValueError for a log without a pass, or one that does not say when requests came."""
    passes = read_passes(path, waits=True)
    passes["step_s"] = _steps_s(passes)
    starts = passes[passes["kind"] == "prefill"]
    if (starts["arrival_s"].map(len) != starts["prompt_tokens"].map(len)).any():
        raise ValueError(
            f"{path} does not say when requests came: an older server wrote it; serve and log again"
        )
    by_batch = passes.groupby("batch")
    outputs = np.concatenate([output_tokens(batch) for _, batch in by_batch])
    arrival_s = np.concatenate(starts["arrival_s"].to_list())
    order = np.argsort(arrival_s, kind="stable")
    workload = Workload(
        path.stem,
        (arrival_s - arrival_s.min())[order],
        np.concatenate(starts["prompt_tokens"].to_list())[order],
        outputs[order],
        np.concatenate(starts["max_tokens"].to_list())[order],
        read_as=f"{path.name}: a pass log of static batching",
    )
    return Served(
        workload=workload,
        costs=_costs(path, passes),
        busy_s=float(passes["step_s"].sum()),
        batches=len(starts),
        drift=drift_of(passes["step_s"], passes["bucket"] + passes["kind"]),
        gave_up=int(starts["left"].map(len).sum()),
    )


def output_tokens(batch: pd.DataFrame) -> np.ndarray:
    """int [members] of a batch's passes (`read_passes(..., waits=True)`). The log counts the
    members that go on after each pass and not which: the shorter outputs go to those that asked for
    less."""
    max_tokens = np.array(batch["max_tokens"].iloc[0])
    running = batch["running"].to_numpy()
    tokens = np.array([int((running > place).sum()) for place in range(len(max_tokens))])
    outputs = np.empty_like(tokens)
    outputs[np.argsort(-max_tokens, kind="stable")] = tokens
    return np.minimum(outputs, max_tokens)


def _steps_s(passes: pd.DataFrame) -> pd.Series:
    """From the start of each pass to that of the next one of its batch: what lies between two
    passes costs time too. The last of a batch has the median of it."""
    until_next_s = passes.groupby("batch")["start_s"].shift(-1) - passes["start_s"]
    between_s = (until_next_s - passes["seconds"]).median()
    last_s = passes["seconds"] + (0.0 if np.isnan(between_s) else between_s)
    return until_next_s.fillna(last_s)


def _costs(path: Path, passes: pd.DataFrame) -> tuple[BucketCost, ...]:
    """Means of the passes, whose sum they give back; of a bucket without any, what its warmup took.
    The compile seconds of a warm start are not those of a cold one: 0, which is unknown."""
    mean_s = passes.groupby(["bucket", "kind"])["step_s"].mean()
    costs = []
    for row in read_warmup(path).to_dict("records"):
        prefill_s, decode_s = (
            float(mean_s.get((row["bucket"], kind), row[f"{kind}_s"]))
            for kind in ("prefill", "decode")
        )
        compile_s = row["prefill_compile_s"] + row["decode_compile_s"]
        cold_s = 0.0 if row["was_warm"] else compile_s
        costs.append(BucketCost(Bucket.parse(row["bucket"]), prefill_s, decode_s, cold_s))
    return tuple(sorted(costs, key=lambda cost: cost.bucket))


def drift_of(seconds: pd.Series, alike: pd.Series) -> float:
    """How the pace differs between parts of the log: the median of passes over those of their
    kind, which `alike` says of each."""
    over = (seconds / seconds.groupby(alike).transform("median")).to_numpy()
    paces = [np.median(part) for part in np.array_split(over, min(PARTS, len(over)))]
    return float(np.std(np.log(paces), ddof=1)) if len(paces) > 1 else 0.0
