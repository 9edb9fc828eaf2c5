"""Measure what buckets cost: each one cold and warm, in fresh processes, as cost-table rows.

`python -m spyre_bench.engine.measure` is the child: one JSON request in, one JSON answer out.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from spyre_bench.cost import CostRow, read_cost_table, write_cost_table
from spyre_bench.shapes import Bucket, BucketSet

DEFAULT_PASSES = 9


def measure_bucket(
    model: str | Path,
    bucket: Bucket,
    *,
    tp: int = 1,
    compile_backend: str = "inductor",
    compile_scope: str = "layer",
    dtype: str = "float32",
    threads: int | None = None,
    passes: int = DEFAULT_PASSES,
) -> CostRow:
    """One row of the cost table, from two fresh processes: one that starts without compiled
    code, one that starts from the first one's artefact and also times the passes.

    `model` is a name or a model directory, `threads` those of each process (None: one a core).
    Raises ValueError for a setting that the engine refuses, with the engine's own words.
    """
    from spyre_bench.engine.checkpoint import model_directory

    if tp != 1:
        raise ValueError(f"tp {tp} cannot be measured yet: use 1")
    if passes < 1:
        raise ValueError(f"passes {passes} is below 1: use 1 or more")
    with tempfile.TemporaryDirectory(prefix="spyre-bench-measure-") as artefacts:
        request = {
            "model_directory": str(model_directory(str(model))),
            "bucket": str(bucket),
            "compile_backend": compile_backend,
            "compile_scope": compile_scope,
            "dtype": dtype,
            "artefact_directory": artefacts,
            "threads": threads or os.cpu_count(),
        }
        cold = _in_fresh_process(request | {"passes": 0})
        warm = _in_fresh_process(request | {"passes": passes})
    return CostRow(
        model=str(model),
        batch_size=bucket.batch_size,
        prompt_length=bucket.prompt_length,
        new_tokens=bucket.new_tokens,
        tp=tp,
        compile_backend=compile_backend,
        compile_scope=compile_scope,
        dtype=dtype,
        compile_s=cold["compile_s"],
        compile_warm_s=warm["compile_s"],
        passes=passes,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        **{
            name: warm[name]
            for name in (
                "load_s", "prefill_s", "prefill_iqr_s", "decode_s", "decode_iqr_s",
                "memory_bytes", "threads", "host", "cpu", "torch_version", "fms_version",
            )
        },
    )  # fmt: skip


def measure_table(
    out: Path, buckets: Iterable[Bucket], on_row: Callable[[CostRow], None] | None = None, **setting
) -> list[CostRow]:
    """Measures the buckets that `out` does not hold yet, writing it after each, so that an
    interrupted run goes on where it stopped. Returns all rows of the table."""
    rows = read_cost_table(out) if out.exists() else []
    threads = setting.get("threads") or os.cpu_count()
    for bucket in buckets:
        if not any(_same_measurement(row, bucket, threads, setting) for row in rows):
            rows.append(measure_bucket(bucket=bucket, **setting))
            out.parent.mkdir(parents=True, exist_ok=True)
            write_cost_table(out, rows)
        if on_row:
            on_row(rows[-1])
    return rows


def _same_measurement(row: CostRow, bucket: Bucket, threads: int, setting: dict) -> bool:
    asked = {name: str(value) for name, value in setting.items() if name not in ("threads",)}
    return (
        row.bucket == bucket
        and row.threads == threads
        and row.host == platform.node()
        and all(str(getattr(row, name)) == value for name, value in asked.items())
    )


def _in_fresh_process(request: dict) -> dict:
    """The child's answer; its own words as ValueError where it refused."""
    child = subprocess.run(
        [sys.executable, "-m", "spyre_bench.engine.measure"],
        input=json.dumps(request), capture_output=True, text=True,
    )  # fmt: skip
    if child.returncode:
        lines = child.stderr.strip().splitlines() or ["no message"]
        raise ValueError(f"measuring {request['bucket']} failed: {lines[-1]}")
    return json.loads(child.stdout.splitlines()[-1])


def measure_here(request: dict) -> dict:
    """In the child: warm the bucket up, time `passes` of each kind, say where."""
    import torch

    from spyre_bench.engine.model import EngineConfig, SpyreCausalLM
    from spyre_bench.engine.warmup import warm_up

    torch.set_num_threads(request["threads"])
    bucket = Bucket.parse(request["bucket"])
    model = SpyreCausalLM(
        EngineConfig(
            model_directory=Path(request["model_directory"]),
            buckets=BucketSet((bucket,)),
            dtype=request["dtype"],
            compile_backend=request["compile_backend"],
            compile_scope=request["compile_scope"],
            artefact_directory=Path(request["artefact_directory"]),
        )
    )
    (warmup,) = warm_up(model, progress=False)
    prefill_s, decode_s = _time_passes(model, bucket, request["passes"])
    return {
        "compile_s": warmup.compile_s,
        "load_s": model.load_s,
        "prefill_s": float(np.median(prefill_s or [warmup.prefill_s])),
        "prefill_iqr_s": _interquartile_range(prefill_s),
        "decode_s": float(np.median(decode_s or [warmup.decode_s])),
        "decode_iqr_s": _interquartile_range(decode_s),
        "memory_bytes": model.memory_bytes,
        "threads": torch.get_num_threads(),
        "host": platform.node(),
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "torch_version": torch.__version__,
        "fms_version": version("ibm-fms"),
    }


def _time_passes(model, bucket: Bucket, passes: int) -> tuple[list[float], list[float]]:
    """Seconds of `passes` prefills and as many decodes of a full batch; the decodes follow a
    prefill in runs of the bucket's length, since a step's cost may grow with its slot."""
    prompts = [[1] * bucket.prompt_length] * bucket.batch_size
    tokens = [1] * bucket.batch_size
    prefill_s, decode_s = [], []
    while len(prefill_s) < passes or len(decode_s) < passes:
        prefill_s.append(_seconds(lambda: model.prefill(bucket, prompts)))
        for _ in range(min(bucket.new_tokens - 1, passes)):
            decode_s.append(_seconds(lambda: model.decode(tokens)))
    return prefill_s, decode_s


def _seconds(run: Callable) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _interquartile_range(seconds: list[float]) -> float:
    return float(np.subtract(*np.percentile(seconds, [75, 25]))) if seconds else 0.0


if __name__ == "__main__":
    try:
        print(json.dumps(measure_here(json.load(sys.stdin))))
    except (ValueError, RuntimeError) as error:
        sys.exit(str(error))
