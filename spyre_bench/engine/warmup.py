"""Warmup: compile and first-run every bucket before the engine reports ready."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from tqdm import tqdm

from spyre_bench.engine.artefacts import DiscardedArtefact, code_cache
from spyre_bench.engine.causal_lm import EngineConfig, SpyreCausalLM
from spyre_bench.engine.compile import sendnn_warmup, unique_graphs
from spyre_bench.engine.parallel import in_turns
from spyre_bench.pass_log import Warmup
from spyre_bench.shapes import Bucket


def warm_up(model: SpyreCausalLM, *, progress: bool = True) -> list[Warmup]:
    """Compiles and runs every bucket, largest first, so that a lack of memory shows early.

    Afterwards nothing of this engine compiles: a pass that would raises.
    """
    try:
        return _warm_up(model, progress)
    except DiscardedArtefact:
        if model.config.rank.tp > 1:  # the other ranks are somewhere in this rank's passes
            raise
    return _warm_up(model, progress)


def _warm_up(model: SpyreCausalLM, progress: bool) -> list[Warmup]:
    rows = []
    with code_cache(model.config) as cache:
        for bucket in _with_bar(largest_first(model.buckets), progress):
            before = cache.work()
            *seconds, graphs = _warm_bucket(model, bucket)
            was_warm = cache.directory is not None and (cache.work() - before).is_none
            rows.append(Warmup(bucket, *seconds, was_warm, graphs))
    return rows


def largest_first(buckets: Iterable[Bucket]) -> list[Bucket]:
    return sorted(buckets, key=lambda b: (b.batch_size * b.context_length, b), reverse=True)


def _with_bar(buckets: list[Bucket], progress: bool) -> Iterable[Bucket]:
    """The buckets under a bar that names the current one and estimates the time left."""
    with tqdm(total=len(buckets), desc="warmup", unit="bucket", disable=not progress) as bar:
        for bucket in buckets:
            bar.set_postfix_str(f"bucket {bucket}")
            yield bucket
            bar.update()


def _warm_bucket(model: SpyreCausalLM, bucket: Bucket) -> tuple[float, float, float, float, int]:
    """Fields of a Warmup between `bucket` and `was_warm`, and the graphs captured."""
    prompts = [[model.pad_token] * bucket.prompt_length] * bucket.batch_size
    tokens = [model.pad_token] * bucket.batch_size
    graphs = unique_graphs()
    model.compile(bucket)
    started = time.perf_counter()
    with sendnn_warmup(model.config.compile_backend, _turn(model.config)):
        first_prefill_s = _seconds(lambda: model.prefill(bucket, prompts))
        first_decode_s = _seconds(lambda: model.decode(tokens))
    # sendnn compiles on leaving the phase, both passes together
    leaving_s = time.perf_counter() - started - first_prefill_s - first_decode_s
    model.close_compiling(bucket)
    graphs = unique_graphs() - graphs
    assert graphs <= 2, f"bucket {bucket} made {graphs} graphs"
    prefill_s = _seconds(lambda: model.prefill(bucket, prompts))
    decode_s = _seconds(lambda: model.decode(tokens))
    return (
        max(0.0, first_prefill_s - prefill_s),
        max(0.0, first_decode_s - decode_s) + leaving_s,
        prefill_s,
        decode_s,
        graphs,
    )


def _turn(config: EngineConfig) -> AbstractContextManager:
    return in_turns(config.rank, config.max_load_processes or config.rank.tp)


def _seconds(run: Callable) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
