"""A deployment that nobody has, judged before it starts: whether its cost is of this model and of
as many cards and has a figure for each shape, and how many blocks the cards hold."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vllm import envs
from vllm.logger import init_logger

from spyre_bench.cost.bucket_cost import CostModel, price
from spyre_bench.model_sizes import ModelSizes
from spyre_bench.plugin.config import SpyreConfig
from spyre_bench.shape_set import BLOCK_TOKENS

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger("vllm.spyre_bench.platform")

WITHOUT_EFFECT = (
    *("model_code", "compile_backend", "compile_scope", "artefact_directory", "artefact_trust"),
    *("require_precompiled", "join_timeout_s", "step_timeout_s", "max_load_processes"),
)


def as_simulated(
    config: SpyreConfig, sizes: ModelSizes, vllm_config: VllmConfig, blocks_are_named: bool
) -> SpyreConfig:
    """The configuration with what the cost's cards decide: how many blocks there are where nobody
    has named a number, and their limit on rows × context.

    Raises ValueError, with a remedy, for a deployment that the cost is not of, or has no figure
    for.
    """
    if config.clock == "virtual" and envs.VLLM_ENABLE_V1_MULTIPROCESSING:
        raise ValueError(
            "additional_config[\"spyre\"]: clock 'virtual' jumps in the process of its caller: set "
            "VLLM_ENABLE_V1_MULTIPROCESSING=0 and use vllm.LLM, or leave it out, so that passes "
            "sleep as a server's do"
        )
    try:
        source = config.cost
        source.require_deployment(sizes, vllm_config.parallel_config.tensor_parallel_size)
        if config.warmup:
            source.require_known("compile_s", 'a cold start ("warmup": false starts at once)')
        if not blocks_are_named and config.shapes is not None:
            config = _with_blocks_that_fit(config, source)
        needed = _memory_bytes(config, source)
    except (ValueError, OSError) as error:
        raise ValueError(
            f'additional_config["spyre"]: device {config.device!r}: {error}'
        ) from error
    if config.memory_bytes is not None and needed > config.memory_bytes:
        raise ValueError(
            f"the simulated device needs {needed:,} bytes and memory_bytes is "
            f"{config.memory_bytes:,}: use smaller shapes, or more memory"
        )
    _say_what_has_no_effect(config)
    logger.info("Simulated device: %s.", source.label)
    limit = source.batch_tokens
    if config.batching == "continuous" and config.rules.max_batch_context_tokens is None and limit:
        rules = replace(config.rules, max_batch_context_tokens=limit)
        return replace(config, rules=rules)
    return config


def _memory_bytes(config: SpyreConfig, source: CostModel) -> int:
    """Of one card, or 0 where the cost does not say. Prices every shape."""
    if config.shapes is not None:
        return source.of_shapes(config.shapes).memory_bytes
    assert config.buckets is not None
    return max(cost.memory_bytes for cost in price(config.buckets, source))


def _with_blocks_that_fit(config: SpyreConfig, source: CostModel) -> SpyreConfig:
    shapes, slots = config.shapes, source.slots
    assert shapes is not None, "static batching has no blocks"
    if slots is None or slots // BLOCK_TOKENS >= shapes.blocks:
        return config
    fit = slots // BLOCK_TOKENS
    if fit < shapes.least_blocks:
        return config  # the cost says what does not fit
    logger.warning(
        "The cards hold %d blocks of KV cache, not the %d that fill the widest decode shape: "
        "requests may wait for blocks. num_gpu_blocks_override names another number.",
        *(fit, shapes.blocks),
    )
    return replace(config, blocks=fit)


def _say_what_has_no_effect(config: SpyreConfig) -> None:
    asked = [name for name in WITHOUT_EFFECT if getattr(config, name) != getattr(SpyreConfig, name)]
    if asked:
        logger.warning("Without effect on a simulated device: %s.", ", ".join(asked))
