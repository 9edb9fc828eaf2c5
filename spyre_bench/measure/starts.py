"""Start-ups of an engine with several buckets, cold and warm, each in a fresh process.

A server starts with all of its buckets, and what every start pays once is then paid once;
`buckets.py` starts with each bucket alone, for the cost table.

`python -m spyre_bench.measure.starts` is the child, one per rank: one JSON request in, one JSON
answer out; its progress bar goes to stderr.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spyre_bench.engine.parallel import Rank, join, share_of_cores
from spyre_bench.measure.children import ends_with_us
from spyre_bench.shape_set import ShapeSet
from spyre_bench.shapes import Bucket, BucketSet

if TYPE_CHECKING:
    from spyre_bench.engine.model_code import ModelCode

STARTS = ("cold", "warm")
UNTIMED = dict.fromkeys(
    (
        *("prefill_s", "prefill_iqr_s", "decode_s", "decode_iqr_s"),
        *("prefill_reduces", "prefill_reduced_elements", "prefill_reduce_share"),
        *("decode_reduces", "decode_reduced_elements", "decode_reduce_share"),
    ),
    np.nan,
)


def measure_starts(
    model_directory: Path,
    buckets: BucketSet,
    *,
    model_code: str = "fms",
    compile_backend: str = "inductor",
    compile_scope: str = "layer",
    dtype: str = "float32",
    layers: int | None = None,
    tp: int = 1,
    threads: int | None = None,
    passes: int = 5,
    warm: bool = True,
    timed: Sequence[str] = STARTS,
) -> pd.DataFrame:
    """One row for each bucket of a cold start and, where `warm`, of the start after it, in warmup
    order.

    `load_s` is of the whole start; `compile_s` and `first_run_s` are of the bucket, `startup_s`
    their sum. Nan for a start that is not in `timed`: `prefill_s` and `decode_s`, medians of at
    least `passes` passes afterwards, the `_iqr_s`, their interquartile ranges; the `_reduces` of a
    pass, their `_reduced_elements`, and `_reduce_share`, the median share of a pass that the first
    rank spends in them, under a profiler that makes passes slower. `memory_bytes` and `weights`
    (elements) are of each rank.

    `layers` takes only that many of the model's. With `tp` above 1 every start is of that many
    processes, and seconds are those of the first rank, which waits for the others in every layer.
    `threads` are those of a process, None for its share of the cores.
    ValueError for a setting that the engine refuses.
    """
    setting = {
        "model_code": model_code,
        "compile_backend": compile_backend,
        "compile_scope": compile_scope,
        "dtype": dtype,
    }
    rows = starts_of(
        model_directory,
        {"buckets": str(buckets)},
        layers=layers,
        tp=tp,
        threads=threads,
        passes={start: passes if start in timed else 0 for start in STARTS[: 1 + warm]},
        **setting,
    )
    return pd.DataFrame(rows).assign(layers=layers, tp=tp, **setting)


def starts_of(
    model_directory: Path,
    compiled: dict[str, object],
    *,
    passes: dict[str, int],
    layers: int | None = None,
    tp: int = 1,
    threads: int | None = None,
    **setting: str,
) -> list[dict]:
    """What the first rank answers of each start, one row for each thing that it compiled, which
    `compiled` says as the child reads it; `passes` to time by start, cold first."""
    Rank(0, tp)  # refuses a number that cannot be before any process starts
    with tempfile.TemporaryDirectory(prefix="spyre-bench-starts-") as scratch:
        if layers is not None:
            from spyre_bench.checkpoints.first_layers import shallow_copy

            model_directory = shallow_copy(model_directory, layers, Path(scratch) / "model")
        request = setting | {
            **compiled,
            "model_directory": str(model_directory),
            "artefact_directory": str(Path(scratch) / "artefacts"),
            "threads": threads or share_of_cores(tp),
            "tp": tp,
        }
        return [
            {"start": start, **row}
            for start, count in passes.items()
            for row in _in_fresh_processes(
                request
                | {"passes": count}
                | {"meeting_point": str(Path(scratch) / f"meeting-{start}")}
            )
        ]


def _in_fresh_processes(request: dict) -> list[dict]:
    """What the first of a request's ranks answers."""
    with ThreadPoolExecutor(request["tp"]) as pool:
        ranks = list(pool.map(_child, [request | {"rank": rank} for rank in range(request["tp"])]))
    for child in ranks:
        lines = child.stdout.splitlines()
        if child.returncode or not lines:
            raise ValueError(
                f"starting with {_words(request)} failed: "
                f"{lines[-1] if lines else f'exit code {child.returncode}, its words are above'}"
            )
    return json.loads(ranks[0].stdout.splitlines()[-1])


def _words(request: dict) -> str:
    if "buckets" in request:
        return f"buckets {request['buckets']}"
    return "prefill shapes {} and decode shapes {}".format(*request["shapes"])


def _child(request: dict) -> subprocess.CompletedProcess:
    return subprocess.run(
        # the profiler's library would tell of each start and stop
        ["env", "KINETO_LOG_LEVEL=5", sys.executable, "-m", "spyre_bench.measure.starts"],
        input=json.dumps(request),
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=ends_with_us,
    )


def start_here(request: dict) -> list[dict]:
    """In the child: start the engine, then time passes of each bucket, or of each shape."""
    import torch

    from spyre_bench.engine.warmup import warm_up

    torch.set_num_threads(request["threads"])
    model = _engine(request)
    if "shapes" in request:
        _compile_anything(request["compile_backend"])
    warmed = warm_up(model, progress=request["rank"] == 0)
    measured_at = datetime.now(UTC).isoformat(timespec="seconds")
    times = _times_of_buckets if "buckets" in request else _times_of_shapes
    return [
        {
            **figures,
            "load_s": model.load_s,
            "compile_s": row.compile_s,
            "was_warm": row.was_warm,
            "memory_bytes": model.memory_bytes,
            "weights": model.weight_bytes // model.dtype.itemsize,
            "threads": torch.get_num_threads(),
            "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
            "measured_at": measured_at,
        }
        for row, figures in zip(warmed, times(model, warmed, request["passes"]), strict=True)
    ]


def _compile_anything(backend: str) -> None:
    """What the first compile of a process pays once would else stand in the row of whichever of
    the engine's shapes comes first."""
    import torch

    if backend == "inductor":
        torch.compile(torch.cos, backend=backend)(torch.ones(1))
        torch.compiler.reset()


def _engine(request: dict):
    """A SpyreCausalLM of buckets or a PagedCausalLM of shapes, its code not yet compiled."""
    from spyre_bench.engine.causal_lm import SpyreCausalLM
    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.engine.paged_causal_lm import PagedCausalLM

    rank = Rank(request["rank"], request["tp"])
    if rank.tp > 1:
        join(rank, Path(request["meeting_point"]), timeout_s=120)
    static = "buckets" in request
    directory, dtype = Path(request["model_directory"]), request["dtype"]
    buckets = BucketSet.parse(request["buckets"]) if static else None
    shapes = None if static else ShapeSet.parse(*request["shapes"])
    config = EngineConfig(
        model_directory=directory,
        model_code=_model_code(request["model_code"], directory, buckets or shapes, dtype, rank.tp),
        buckets=buckets,
        shapes=shapes,
        dtype=dtype,
        compile_backend=request["compile_backend"],
        compile_scope=request["compile_scope"],
        artefact_directory=Path(request["artefact_directory"]),
        rank=rank,
    )
    return SpyreCausalLM(config) if static else PagedCausalLM(config)


def _model_code(
    name: str, directory: Path, compiled: BucketSet | ShapeSet, dtype: str, tp: int
) -> ModelCode:
    if name == "fms":
        from spyre_bench.engine.fms import FMSCode

        return FMSCode()
    if name != "vllm":
        raise ValueError(f"model_code {name!r} is unknown: use fms or vllm")
    from spyre_bench.plugin.vllm_model import VLLMCode  # vLLM, which the other code needs not

    return VLLMCode.of(directory, compiled, dtype=dtype, tp=tp)


def _times_of_buckets(model, warmed: list, passes: int) -> Iterator[dict]:
    for row in warmed:
        first_run_s = row.prefill_s + row.decode_s
        yield {
            "bucket": str(row.bucket),
            "first_run_s": first_run_s,
            "startup_s": row.compile_s + first_run_s,
            **_time_passes(model, row.bucket, passes),
        }


def _times_of_shapes(model, warmed: list, passes: int) -> Iterator[dict]:
    from spyre_bench.engine.memory import pool_bytes
    from spyre_bench.measure.shape_passes import time_shapes

    config = model.config
    block_bytes, _ = pool_bytes(model.sizes, model.shapes, config.dtype, config.rank.tp)
    held = {
        "fixed_bytes": model.memory_bytes - block_bytes * model.shapes.blocks,
        "block_bytes": block_bytes,
    }
    timed = time_shapes(model, passes)
    for row in warmed:
        yield {"shape": row.shape.name, **timed[row.shape], **held}


def _time_passes(model, bucket: Bucket, passes: int) -> dict[str, float]:
    """Medians and spreads of full batches; the decodes follow a prefill in runs of the bucket's
    length, since a step's cost may grow with its slot. No passes, no figures."""
    if not passes:
        return UNTIMED
    prompts = [[1] * bucket.prompt_length] * bucket.batch_size
    tokens = [1] * bucket.batch_size
    prefill_s, decode_s = [], []
    while len(prefill_s) < passes or len(decode_s) < passes:
        prefill_s.append(_seconds(lambda: model.prefill(bucket, prompts)))
        for _ in range(min(bucket.new_tokens - 1, passes)):
            decode_s.append(_seconds(lambda: model.decode(tokens)))
    return {
        **_profile_passes(
            lambda: model.prefill(bucket, prompts),
            lambda: model.decode(tokens),
            passes if model.config.rank.tp > 1 else 1,  # alone there is no share to measure
        ),
        "prefill_s": float(np.median(prefill_s)),
        "prefill_iqr_s": _interquartile_range(prefill_s),
        "decode_s": float(np.median(decode_s)),
        "decode_iqr_s": _interquartile_range(decode_s),
    }


def _profile_passes(prefill: Callable, decode: Callable, passes: int) -> dict[str, float]:
    from spyre_bench.measure.collectives import profile_pass

    pairs = [(profile_pass(prefill), profile_pass(decode)) for _ in range(passes)]
    return {
        f"{kind}_{name}": value
        for kind, passes in zip(("prefill", "decode"), zip(*pairs, strict=True), strict=True)
        for name, value in (
            ("reduces", passes[0].reduces),
            ("reduced_elements", passes[0].reduced_elements),
            ("reduce_share", float(np.median([one.share for one in passes]))),
        )
    }


def _interquartile_range(seconds: list[float]) -> float:
    return float(np.subtract(*np.percentile(seconds, [75, 25])))


def _seconds(run: Callable) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    try:
        print(json.dumps(start_here(json.load(sys.stdin))))
    except (ValueError, RuntimeError) as error:
        print(" ".join(str(error).split()))
        sys.exit(1)
