"""What a bucket needs in bytes, known before anything is loaded or compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil

from spyre_bench.checkpoints.weight_files import WeightFiles
from spyre_bench.engine.container import room_bytes
from spyre_bench.engine.weights import COMPUTED, HEAD
from spyre_bench.model_sizes import ITEM_BYTES, ModelSizes
from spyre_bench.shape_set import BLOCK_TOKENS, ShapeSet
from spyre_bench.shapes import Bucket, BucketSet

if TYPE_CHECKING:
    from transformers import PretrainedConfig

LOGIT_BYTES = 4  # float32, whatever the engine's type


def sizes_of(config: PretrainedConfig, files: WeightFiles) -> ModelSizes:
    """From a config; loads no weight. Raises ValueError where the headers of the files count
    other parameters than the sizes do: the memory would be reckoned wrong."""
    sizes = ModelSizes.of(config.to_dict(), files.directory.name)
    stored = sum(
        count
        for name, count in files.elements.items()
        if not COMPUTED.search(name) and not (sizes.tied_head and name == HEAD)
    )
    if stored != sizes.parameters:
        raise ValueError(
            f"{files.directory}: the weight files hold {stored:,} parameters and config.json "
            f"makes {sizes.parameters:,}: serve the files that belong to it"
        )
    return sizes


def pass_bytes(sizes: ModelSizes, bucket: Bucket, dtype: str, tp: int = 1) -> int:
    """What an engine of this bucket alone holds beside its weights, in bytes a rank."""
    return cache_bytes(sizes, bucket, dtype, tp) + work_bytes(sizes, bucket, dtype, tp)


def cache_bytes(sizes: ModelSizes, bucket: Bucket, dtype: str, tp: int = 1) -> int:
    """The KV cache, which stays."""
    slots = bucket.batch_size * bucket.context_length
    return slots * sizes.kv_bytes_per_token(tp, ITEM_BYTES[dtype])


def work_bytes(sizes: ModelSizes, bucket: Bucket, dtype: str, tp: int = 1) -> int:
    """Logits, mask and the activations of one layer's prefill, which go with the pass."""
    item, rows, prompt = ITEM_BYTES[dtype], bucket.batch_size, bucket.prompt_length
    scores = sizes.score_bytes(rows, prompt, prompt, tp, item)
    return sizes.prefill_bytes(bucket, tp, item, LOGIT_BYTES) + scores


def check_memory(
    sizes: ModelSizes,
    buckets: BucketSet,
    dtype: str,
    limit: int | None,
    tp: int = 1,
    packs: bool = False,
) -> int:
    """Bytes that each of `tp` ranks needs, at most `limit`, which is a rank's (None: its share of
    what the machine has free now).

    One bucket runs at a time and they share one cache, so the largest cache stays beside the
    largest pass, whichever buckets these are of. An engine that `packs` its weights holds a tied
    head twice: as the embedding, and packed. Raises ValueError with the bytes needed, the bytes
    there, and the largest batch that would fit.
    """
    there = memory_there(limit, tp)
    weights = _held_weights(sizes, dtype, tp, packs)
    cache, holds = max((cache_bytes(sizes, one, dtype, tp), one) for one in buckets)
    work, computes = max((work_bytes(sizes, one, dtype, tp), one) for one in buckets)
    needed = weights + cache + work
    if needed <= there:
        return needed
    each = f" on each of {tp} ranks" if tp > 1 else ""
    worst = max(buckets, key=lambda bucket: pass_bytes(sizes, bucket, dtype, tp))
    alone, left = pass_bytes(sizes, worst, dtype, tp), there - weights
    if alone <= left:
        raise ValueError(
            f"the KV cache of bucket {holds} stays while bucket {computes} computes, which needs "
            f"{needed:,} bytes in {dtype}{each} ({weights:,} of them weights), and there are "
            f"{there:,}: make one of them smaller, or leave it out"
        )
    a_row = pass_bytes(sizes, Bucket(1, worst.prompt_length, worst.new_tokens), dtype, tp)
    remedy = (
        f"the largest batch_size that fits with these lengths is {left // a_row}"
        if left >= a_row
        else "not even batch_size 1 fits: use shorter lengths or a smaller model"
    )
    raise ValueError(
        f"bucket {worst} needs {weights + alone:,} bytes in {dtype}{each} "
        f"({weights:,} of them weights) and there are {there:,}: {remedy}"
    )


def pool_bytes(sizes: ModelSizes, shapes: ShapeSet, dtype: str, tp: int = 1) -> tuple[int, int]:
    """Bytes a rank of one block of the KV cache, and of what the largest pass needs beside the
    cache: mask, activations of one layer, contexts as that layer gathers them, logits."""
    item = ITEM_BYTES[dtype]
    token = sizes.kv_bytes_per_token(tp, item)
    block = BLOCK_TOKENS * token
    chunks = [
        sizes.prefill_bytes(Bucket(1, shape.chunk_length, 2), tp, item, LOGIT_BYTES)
        + (shape.chunk_length + 4 * sizes.hidden_size // tp) * shape.context_length * item
        + sizes.score_bytes(1, shape.chunk_length, shape.context_length, tp, item)
        for shape in shapes.prefill
    ]
    wides = [
        shape.rows * shape.context_length * (token // sizes.layers + item)
        for shape in shapes.decode
    ]
    logits = shapes.max_rows * sizes.vocab_size * LOGIT_BYTES
    return block, max(chunks + wides) + logits


def blocks_that_fit(
    sizes: ModelSizes,
    shapes: ShapeSet,
    dtype: str,
    limit: int,
    tp: int = 1,
    packs: bool = False,
) -> int:
    """Blocks of the KV cache for which a rank of `limit` bytes has room beside its weights and its
    passes, however many the shapes ask for."""
    block, passes = pool_bytes(sizes, shapes, dtype, tp)
    return max(0, limit - passes - _held_weights(sizes, dtype, tp, packs)) // block


def check_pool(
    sizes: ModelSizes,
    shapes: ShapeSet,
    dtype: str,
    limit: int | None,
    tp: int = 1,
    packs: bool = False,
) -> int:
    """Bytes that each rank of an engine of continuous batching needs; limit and `packs` as in
    `check_memory`. Raises ValueError with how many blocks would fit and what holds the rest."""
    there = memory_there(limit, tp)
    fit = blocks_that_fit(sizes, shapes, dtype, there, tp, packs)
    block, passes = pool_bytes(sizes, shapes, dtype, tp)
    weights = _held_weights(sizes, dtype, tp, packs)
    if shapes.blocks <= fit:
        return weights + passes + shapes.blocks * block
    least = shapes.least_blocks
    remedy = (
        f"{fit} blocks would fit: set num_gpu_blocks_override to {fit} or less"
        if fit >= least
        else f"{fit} blocks would fit and one request of {shapes.max_model_len} tokens needs "
        f"{least}: use shorter contexts or a smaller model"
    )
    each = f" on each of {tp} ranks" if tp > 1 else ""
    raise ValueError(
        f"{shapes.blocks} blocks of {BLOCK_TOKENS} tokens need {shapes.blocks * block:,} bytes in "
        f"{dtype}{each}, beside {weights:,} of weights and {passes:,} of passes, and there are "
        f"{there:,} in all: {remedy}"
    )


def memory_there(limit: int | None, tp: int) -> int:
    """Bytes of one of `tp` ranks: its limit, else its share of what the machine, and the container
    that we are in, have free now."""
    if limit is not None:
        return limit
    return min(psutil.virtual_memory().available, room_bytes()) // tp


def _held_weights(sizes: ModelSizes, dtype: str, tp: int, packs: bool) -> int:
    copied = sizes.head_linear().weights if packs and sizes.tied_head else 0
    return sizes.weight_bytes(dtype, tp) + copied * ITEM_BYTES[dtype]
