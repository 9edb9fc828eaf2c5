"""Tensor parallel on this machine: the real server by number of ranks, and what its ranks send.

The ranks of a CPU share its cores and its memory's bandwidth, which cards do not: what is measured
here is the execution (that it works, what is sent, what waits), never what cards would gain.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from spyre_bench.model_sizes import FP16_BYTES, ModelSizes
from spyre_bench.pass_log import read_passes, read_warmup
from spyre_bench.shapes import Bucket, BucketSet
from spyre_bench.validate.server import complete, serve
from spyre_bench.validate.static import pass_costs

BATCHES = 3
GATHER_S = 5.0  # the prompts of a request shall share a batch, however busy the machine is


def timed_bucket(text: str) -> Bucket:
    """Raises ValueError for a bucket that shows no decode pass between two others."""
    bucket = Bucket.parse(text)
    if bucket.new_tokens < 3:
        raise ValueError(
            f"bucket {bucket} has new_tokens {bucket.new_tokens}: a decode pass is timed to the "
            f"start of the next one, so give 3 or more"
        )
    return bucket


def serve_by_tp(
    model_directory: Path,
    bucket: Bucket,
    tps: Sequence[int],
    directory: Path,
    *,
    threads: int = 1,
    compile_backend: str = "inductor",
) -> pd.DataFrame:
    """One row for each number of ranks of a server that starts without compiled code and serves
    `BATCHES` full batches: start_s to the first answer of its health page, compile_s of the bucket,
    median seconds of a prefill and of a decode pass with vLLM's own time in them, and both as gain
    over the first of `tps`, and as gain per rank. Logs stay in the directory."""
    buckets = BucketSet((bucket,))
    prompts = [[1] * bucket.prompt_length] * bucket.batch_size
    rows = []
    for tp in tps:
        here = directory / f"tp{tp}"
        began = time.perf_counter()
        with serve(
            model_directory,
            buckets,
            here,
            threads=threads,
            tp=tp,
            gather_s=GATHER_S,
            compile_backend=compile_backend,
            artefact_directory=str(here / "artefacts"),
        ) as server:
            start_s = time.perf_counter() - began
            for _ in range(BATCHES):
                complete(server, prompts, bucket.new_tokens)
            (cost,) = pass_costs(read_passes(server.pass_log))
            warmup = read_warmup(server.pass_log).iloc[0]
        rows.append(
            {
                "tp": tp,
                "threads": threads,
                "start_s": start_s,
                "compile_s": warmup["prefill_compile_s"] + warmup["decode_compile_s"],
                "prefill_s": cost.prefill_s,
                "decode_s": cost.decode_s,
                "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
    return gains(pd.DataFrame(rows))


def starts_by_tp(model_directory: Path, bucket: Bucket, tps: Sequence[int]) -> pd.DataFrame:
    """One row for each number of ranks, of one thread each, of an engine that compiles nothing: see
    `measure.starts.measure_starts`, which counts what the ranks hold and send."""
    from spyre_bench.measure.starts import measure_starts

    starts = [
        measure_starts(
            model_directory,
            BucketSet((bucket,)),
            tp=tp,
            threads=1,
            compile_backend="eager",
            passes=1,
            warm=False,
        )
        for tp in tps
    ]
    return pd.concat(starts, ignore_index=True)


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `prefill_gain` and `decode_gain` over the first, and each per rank."""
    first = rows.iloc[0]
    ranks = rows["tp"] / first["tp"]
    named = {}
    for kind in ("prefill", "decode"):
        named[f"{kind}_gain"] = first[f"{kind}_s"] / rows[f"{kind}_s"]
        named[f"{kind}_gain_a_rank"] = named[f"{kind}_gain"] / ranks
    return rows.assign(**named)


def configuration(model_directory: Path) -> ModelSizes:
    """Of a Hugging Face directory."""
    return ModelSizes.of(json.loads((model_directory / "config.json").read_text()))


def against_model(starts: pd.DataFrame, model: ModelSizes) -> pd.DataFrame:
    """What each rank held and sent in `starts_by_tp`, beside the closed form that the card's cost
    model uses: one row for each number of ranks and quantity.

    A layer's two all-reduces sum [rows, tokens, hidden size] elements; weights are counted in
    elements too, so that their type does not matter.
    """
    rows = []
    for start in starts.itertuples():
        bucket, tp = Bucket.parse(start.bucket), int(start.tp)
        reduces = 2 * model.layers if tp > 1 else 0
        width = bucket.batch_size * model.hidden_size
        for quantity, measured, modelled in (
            ("weights of a rank", start.weights, model.weight_bytes("fp16", tp) // FP16_BYTES),
            ("all-reduces of a pass", start.decode_reduces, reduces),
            ("elements reduced in a decode", start.decode_reduced_elements, reduces * width),
            (
                "elements reduced in a prefill",
                start.prefill_reduced_elements,
                reduces * width * bucket.prompt_length,
            ),
        ):
            rows.append({"tp": tp, "quantity": quantity, "measured": measured, "model": modelled})
    return pd.DataFrame(rows).astype({"measured": int, "model": int})
