"""The ranks of one engine as processes, forked from one that has imported torch and FMS already."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from spyre_bench.shape_set import ShapeSet

PRELOAD = ["fms.models", "spyre_bench.engine.warmup", "tests.engine.ranks"]


@dataclass(frozen=True)
class Told:
    """What a rank says of itself."""

    tokens: list  # as asked; by default of each bucket, of each pass, of each row
    weight_bytes: int
    predicted_bytes: int
    was_warm: list[bool]


def run_ranks(
    model: Path,
    tp: int,
    compiled: str | ShapeSet,
    prompts: list,
    ask: Callable | None = None,
    **setting,
) -> list[Told]:
    """What `ask(engine, prompts)` says on every rank of an engine of buckets (a text) or shapes; by
    default greedy tokens of every bucket."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with TemporaryDirectory() as meeting, ProcessPoolExecutor(tp, context) as pool:
        point = Path(meeting) / "point"
        ranks = [
            pool.submit(_rank, model, r, tp, point, compiled, prompts, ask, setting)
            for r in range(tp)
        ]
        return [rank.result(300) for rank in ranks]


def _rank(model, rank, tp, point, compiled, prompts, ask, setting) -> Told:
    import torch

    from spyre_bench.engine.causal_lm import SpyreCausalLM
    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.engine.paged_causal_lm import PagedCausalLM
    from spyre_bench.engine.parallel import Rank, join
    from spyre_bench.engine.warmup import warm_up
    from spyre_bench.shapes import BucketSet

    torch.set_num_threads(1)
    join(Rank(rank, tp), point, 60)
    if isinstance(compiled, str):
        engine_class, setting = SpyreCausalLM, setting | {"buckets": BucketSet.parse(compiled)}
    else:
        engine_class, setting = PagedCausalLM, setting | {"shapes": compiled}
    engine = engine_class(EngineConfig(model_directory=model, rank=Rank(rank, tp), **setting))
    rows = warm_up(engine, progress=False)
    return Told(
        (ask or greedy)(engine, prompts),
        engine.weight_bytes,
        engine.sizes.weight_bytes("float32", tp),
        [row.was_warm for row in rows],
    )


def greedy(engine, prompts: list[list[int]]) -> list[list[list[int]]]:
    """The likeliest tokens of as many prompts as each bucket takes."""
    tokens = []
    for bucket in engine.buckets:
        logits = engine.prefill(bucket, prompts[: bucket.batch_size])
        tokens.append([logits.argmax(-1).tolist()])
        for _ in range(bucket.new_tokens - 1):
            tokens[-1].append(engine.decode(tokens[-1][-1]).argmax(-1).tolist())
    return tokens
