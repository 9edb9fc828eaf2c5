"""Warmup: compile and first-run every shape before the engine reports ready."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar, overload

from tqdm import tqdm

from spyre_bench.engine.artefacts import DiscardedArtefact, code_cache
from spyre_bench.engine.causal_lm import SpyreCausalLM
from spyre_bench.engine.compile import sendnn_warmup, unique_graphs
from spyre_bench.engine.compiled_model import EngineConfig
from spyre_bench.engine.paged_causal_lm import Chunk, DecodeRow, PagedCausalLM
from spyre_bench.engine.parallel import in_turns
from spyre_bench.pass_log import ShapeWarmup, Warmup
from spyre_bench.shape_set import DecodeShape, PrefillShape
from spyre_bench.shapes import Bucket

Compiled = TypeVar("Compiled", Bucket, "PrefillShape | DecodeShape")

TIMED_PASSES = 2
"""Of each kind, the fastest counts. A scheduler prefers shapes by these seconds for as long as the
server lives, and a single pass may have lost its core."""


@overload
def warm_up(model: SpyreCausalLM, *, progress: bool = True) -> list[Warmup]: ...
@overload
def warm_up(model: PagedCausalLM, *, progress: bool = True) -> list[ShapeWarmup]: ...
def warm_up(model, *, progress=True):
    """Compiles and runs every bucket, or every shape, largest first, so that a lack of memory shows
    early.

    Afterwards nothing of this engine compiles: a pass that would raises.
    """
    try:
        return _warm_up(model, progress)
    except DiscardedArtefact:
        if model.config.rank.tp > 1:  # the other ranks are somewhere in this rank's passes
            raise
    return _warm_up(model, progress, anew=True)


def _warm_up(
    model: SpyreCausalLM | PagedCausalLM, progress: bool, anew: bool = False
) -> list[Warmup | ShapeWarmup]:
    static = isinstance(model, SpyreCausalLM)
    rows: list[Warmup | ShapeWarmup] = []
    with code_cache(model.config, anew) as cache:
        for shape in with_bar(largest_first(model.config.compiled), progress):
            before = cache.work()
            warm = _warm_bucket if static else _warm_shape
            *seconds, graphs = warm(model, shape, cache.directory)
            was_warm = cache.directory is not None and (cache.work() - before).is_none
            row = Warmup if static else ShapeWarmup
            rows.append(row(shape, *seconds, was_warm, graphs))
    return rows


def largest_first(shapes: Iterable[Compiled]) -> list[Compiled]:
    """By the tokens that the cache of a pass holds."""
    return sorted(shapes, key=lambda shape: (_tokens(shape), str(shape)), reverse=True)


def _tokens(shape: Bucket | PrefillShape | DecodeShape) -> int:
    if isinstance(shape, Bucket):
        return shape.batch_size * shape.context_length
    rows = shape.rows if isinstance(shape, DecodeShape) else 1
    return rows * shape.context_length


def with_bar(shapes: list[Compiled], progress: bool) -> Iterable[Compiled]:
    """The shapes under a bar that names the current one and estimates the time left."""
    unit = "bucket" if isinstance(shapes[0], Bucket) else "shape"
    with tqdm(total=len(shapes), desc="warmup", unit=unit, disable=not progress) as bar:
        for shape in shapes:
            bar.set_postfix_str(f"bucket {shape}" if isinstance(shape, Bucket) else shape.name)
            yield shape
            bar.update()


def _warm_bucket(
    model: SpyreCausalLM, bucket: Bucket, directory: Path | None
) -> tuple[float, float, float, float, int]:
    """Fields of a Warmup between `bucket` and `was_warm`, and the graphs captured."""
    prompts = [[model.pad_token] * bucket.prompt_length] * bucket.batch_size
    tokens = [model.pad_token] * bucket.batch_size
    graphs = unique_graphs()
    model.compile(bucket, directory)
    started = time.perf_counter()
    with sendnn_warmup(model.config.compile_backend, _turn(model.config)):
        first_prefill_s = _seconds(lambda: model.prefill(bucket, prompts))
        first_decode_s = _seconds(lambda: model.decode(tokens))
    # sendnn compiles on leaving the phase, both passes together
    leaving_s = time.perf_counter() - started - first_prefill_s - first_decode_s
    model.close_compiling(bucket)
    graphs = unique_graphs() - graphs
    assert graphs <= 2 * model.graphs_per_pass, f"bucket {bucket} made {graphs} graphs"
    prefill_s, decode_s = _least_seconds(
        lambda: model.prefill(bucket, prompts), lambda: model.decode(tokens)
    )
    return (
        max(0.0, first_prefill_s - prefill_s),
        max(0.0, first_decode_s - decode_s) + leaving_s,
        prefill_s,
        decode_s,
        graphs,
    )


def _warm_shape(
    model: PagedCausalLM, shape: PrefillShape | DecodeShape, directory: Path | None
) -> tuple[float, float, float, int]:
    """Fields of a ShapeWarmup between `shape` and `was_warm`, and the graphs captured."""
    graphs = unique_graphs()
    model.compile(shape, directory)
    started = time.perf_counter()
    with sendnn_warmup(model.config.compile_backend, _turn(model.config)):
        run_full(model, shape)
    first_s = time.perf_counter() - started
    model.close_compiling(shape)
    graphs = unique_graphs() - graphs
    assert graphs <= model.graphs_per_pass, f"{shape.name} made {graphs} graphs"
    full_s, empty_s = _least_seconds(
        lambda: run_full(model, shape), lambda: run_empty(model, shape)
    )
    return max(0.0, first_s - full_s), full_s, empty_s, graphs


def run_full(model: PagedCausalLM, shape: PrefillShape | DecodeShape) -> None:
    """The pass that has most to read: every context full, in blocks of its own as far as the cache
    has them. What it overwrites must be nobody's."""
    last = model.shapes.blocks - 1

    def table(row: int) -> list[int]:
        return [(row * shape.blocks + index) % last + 1 for index in range(shape.blocks)]

    if isinstance(shape, DecodeShape):
        position = shape.context_length - 1
        model.decode(
            shape, [DecodeRow(model.pad_token, position, table(row)) for row in range(shape.rows)]
        )
    else:
        start = shape.context_length - shape.chunk_length
        model.prefill(shape, Chunk([model.pad_token] * shape.chunk_length, start, table(0)))


def run_empty(model: PagedCausalLM, shape: PrefillShape | DecodeShape) -> None:
    """The pass that has least to read: one row of one token, or a chunk with nothing before it."""
    table = [1] * shape.blocks
    if isinstance(shape, DecodeShape):
        model.decode(shape, [DecodeRow(model.pad_token, 0, table)])
    else:
        model.prefill(shape, Chunk([model.pad_token] * shape.chunk_length, 0, table))


def _turn(config: EngineConfig) -> AbstractContextManager:
    return in_turns(config.rank, config.max_load_processes or config.rank.tp)


def _least_seconds(*runs: Callable) -> list[float]:
    """Of each run; one follows the other, since a decode pass needs its prefill."""
    turns = [[_seconds(run) for run in runs] for _ in range(TIMED_PASSES)]
    return [min(times) for times in zip(*turns, strict=True)]


def _seconds(run: Callable) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
