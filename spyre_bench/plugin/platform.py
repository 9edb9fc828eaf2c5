"""The platform: what vLLM asks before and beside running a model."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import psutil
import torch
from vllm import envs
from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger
from vllm.platforms.interface import Platform, PlatformEnum

from spyre_bench.checkpoints.find import model_directory
from spyre_bench.engine.carried import NotCarried
from spyre_bench.engine.memory import blocks_that_fit, memory_there
from spyre_bench.engine.weights import require_servable
from spyre_bench.files import require_place
from spyre_bench.model_sizes import ModelSizes
from spyre_bench.plugin import environment
from spyre_bench.plugin.config import SpyreConfig
from spyre_bench.plugin.counters import rejected
from spyre_bench.plugin.options import refuse_options, without_effect
from spyre_bench.plugin.requests import refuse_request, require_prompt_type
from spyre_bench.plugin.shims import (
    explain_long_prompts,
    leave_triton_to_the_host,
    let_ctrl_c_through,
    watch_options,
)
from spyre_bench.plugin.simulated import as_simulated
from spyre_bench.plugin.start_method import let_forks_compute, prefer_fork
from spyre_bench.plugin.told import require_told
from spyre_bench.plugin.unsupported import refuse_config, refuse_quantization
from spyre_bench.plugin.vllm_sizes import may_run, sizes_of, warn_of_untried
from spyre_bench.policy.continuous import require_every_request
from spyre_bench.shape_set import BLOCK_TOKENS, ShapeSet
from spyre_bench.shapes import BucketSet

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.inputs import EngineInput
    from vllm.pooling_params import PoolingParams
    from vllm.sampling_params import SamplingParams

logger = init_logger("vllm.spyre_bench.platform")  # vLLM prints only loggers below its own name
# ... and those of the engine, which knows no vLLM, stand below it from here on.
logging.getLogger("spyre_bench").parent = logging.getLogger("vllm")


SIZES = ("max_num_seqs", "max_num_batched_tokens", "num_gpu_blocks_override")
"""vLLM's options from which shapes of continuous batching are made; not given, they are None, which
vLLM's own configuration no longer shows."""


VIRTUAL = {
    "static": "spyre_bench.plugin.virtual_scheduler.VirtualScheduler",
    "continuous": "spyre_bench.plugin.virtual_scheduler.VirtualContinuousScheduler",
}

FREE_SHARE = 0.9
"""Of the free memory, that a cache of unnamed size may take with the rest of the engine."""


class RefusedRequest(VLLMValidationError, ValueError):
    """A ValueError for callers, and the kind of error that vLLM's server answers with 400."""


class SpyrePlatform(Platform):
    """Spyre cards, and without them the same static shapes on the CPU.

    The hooks for requests get no VllmConfig: they use the configuration of the engine built last
    in this process. Two live engines with different buckets in one process are not supported.
    """

    # Not CPU: vLLM would then call kernels that its build without kernels lacks.
    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"  # becomes a torch device
    dispatch_key = "CPU"
    dist_backend = "gloo"
    # For small functions of vLLM's own, such as the rank in its sampler's logprobs: not worth a
    # C++ compilation while a request waits.
    simple_compile_backend = "eager"

    _config: ClassVar[SpyreConfig | None] = None
    _vllm_config: ClassVar[VllmConfig | None] = None
    _options: ClassVar[dict[str, int | None]] = {}  # as somebody gave them, see `SIZES`

    @property
    def supported_dtypes(self) -> list[torch.dtype]:
        """One only, so that `dtype auto` becomes it whatever the checkpoint says."""
        return [torch.float32]

    @classmethod
    def pre_register_and_update(cls, parser=None) -> None:
        """Tells vLLM our environment names, which it would warn of as unknown, and asks for a look
        at options. Before it judges any, there is no Triton."""
        leave_triton_to_the_host()
        for name in environment.NAMES:
            envs.environment_variables.setdefault(name, lambda: None)
        watch_options(cls._judge_options)

    @classmethod
    def _judge_options(cls, arguments: EngineArgs) -> None:
        refuse_options(arguments)
        cls._options = {name: getattr(arguments, name) for name in SIZES}
        if sentence := without_effect(arguments, SpyreConfig.of(arguments).batching):
            logger.warning("%s", sentence)

    @classmethod
    def verify_quantization(cls, quant: str) -> None:
        refuse_quantization(quant)

    @classmethod
    def apply_config_platform_defaults(cls, vllm_config: VllmConfig) -> None:
        from vllm.config import CompilationMode

        # The engine compiles, vLLM's model code too.
        vllm_config.compilation_config.mode = CompilationMode.NONE

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Refuses what we cannot do, then makes vLLM's scheduler and cache follow the buckets."""
        if vllm_config.model_config is None:  # as vLLM's own tools build it
            return
        let_ctrl_c_through()
        config = cls._read_config(vllm_config)
        cls._take(config, vllm_config)
        parallel = vllm_config.parallel_config
        parallel.worker_cls = "spyre_bench.plugin.worker.SpyreWorker"
        if config.device is not None:
            parallel.worker_cls = "spyre_bench.plugin.simulated_worker.SimulatedWorker"
        one_process = parallel.world_size == 1 or config.device is not None
        name = "SpyreExecutor" if one_process else "MultiprocessingSpyreExecutor"
        parallel.distributed_executor_backend = f"spyre_bench.plugin.executor.{name}"
        let_forks_compute()
        # forked ranks left a process behind when one was killed; the card's runtime is not tried
        if one_process and config.compile_backend != "sendnn":
            prefer_fork()
        vllm_config.scheduler_config.async_scheduling = False
        _take_no_part(vllm_config)
        if config.shapes is None:
            cls._fit_to_buckets(vllm_config, config.compiled)
        else:
            cls._fit_to_shapes(vllm_config, config.shapes)
        if config.clock == "virtual":
            vllm_config.scheduler_config.scheduler_cls = VIRTUAL[config.batching]

    @classmethod
    def _read_config(cls, vllm_config: VllmConfig) -> SpyreConfig:
        model = vllm_config.model_config
        refuse_config(vllm_config)
        config = SpyreConfig.of(vllm_config)
        for sentence in config.environment_warnings():
            logger.warning("%s", sentence)
        if config.pass_log is not None:
            require_place(config.pass_log)
        blocks_are_named = True
        if config.batching == "continuous":
            rows, chunk, blocks = (cls._options.get(name) for name in SIZES)
            blocks_are_named = (config.blocks or blocks) is not None
            config = config.with_shapes(model.max_model_len, rows, chunk, blocks)
        if config.shapes is not None and config.device is None:
            config = _without_steps(config, config.shapes)
        config.require_context(model.max_model_len)
        sizes = _sizes(config, vllm_config)
        sizes.require_tp(vllm_config.parallel_config.tensor_parallel_size)
        if model.enforce_eager and config.compile_backend != "eager":
            logger.info("enforce_eager: compile_backend is eager, not %s.", config.compile_backend)
            config = replace(config, compile_backend="eager")
        if config.compile_backend == "sendnn" and model.dtype != torch.float16:
            logger.info("The card computes in float16: dtype is that, not %s.", model.dtype)
            model.dtype = torch.float16
        if config.device is not None:
            config = as_simulated(config, sizes, vllm_config, blocks_are_named)
        elif not blocks_are_named:
            config = _with_blocks_that_fit(config, sizes, vllm_config)
        if config.shapes is not None:
            require_every_request(config.shapes, config.rules)
        if cls._config not in (None, config):
            logger.info("Requests are checked against the new engine's buckets from here on.")
        # From here on no process depends on its own environment.
        vllm_config.additional_config = vllm_config.additional_config | {
            "spyre": config.as_settings()
        }
        return config

    @classmethod
    def adopt(cls, vllm_config: VllmConfig) -> None:
        """Takes the configuration of an engine that another process built, where this one has none:
        the second API server of a server checks requests too."""
        if cls._config is None:
            cls._take(SpyreConfig.of(vllm_config), vllm_config)

    @classmethod
    def _take(cls, config: SpyreConfig, vllm_config: VllmConfig) -> None:
        """From here on requests are checked against these."""
        cls._config, cls._vllm_config = config, vllm_config
        explain_long_prompts(cls._refuse_long_prompt, cls._longest_prompt)

    @staticmethod
    def _fit_to_buckets(vllm_config: VllmConfig, buckets: BucketSet) -> None:
        """One block holds a whole sequence, and there is one for each row of the largest bucket:
        so vLLM's paging never decides anything."""
        model, scheduler = vllm_config.model_config, vllm_config.scheduler_config
        length, rows = buckets.max_context_length, buckets.max_batch_size
        if model.max_model_len > length:
            logger.info(
                "max_model_len is %d, the longest bucket, not %d.", length, model.max_model_len
            )
        model.max_model_len = length
        scheduler.scheduler_cls = "spyre_bench.plugin.static_scheduler.SpyreScheduler"
        scheduler.max_num_seqs = rows
        scheduler.max_num_batched_tokens = scheduler.max_num_scheduled_tokens = rows * length
        cache = vllm_config.cache_config
        if scheduler.enable_chunked_prefill or cache.enable_prefix_caching:
            logger.info("Prefix caching and chunked prefill are off: a bucket takes whole prompts.")
        scheduler.enable_chunked_prefill = cache.enable_prefix_caching = False
        cache.block_size = length
        cache.num_gpu_blocks_override = rows + 1  # vLLM keeps one for itself

    @staticmethod
    def _fit_to_shapes(vllm_config: VllmConfig, shapes: ShapeSet) -> None:
        """vLLM's blocks are the engine's, its rows and its longest context those of the shapes."""
        model, scheduler = vllm_config.model_config, vllm_config.scheduler_config
        if model.max_model_len != shapes.max_model_len:
            logger.info(
                "max_model_len is %d, what the shapes take, not %d.",
                *(shapes.max_model_len, model.max_model_len),
            )
        model.max_model_len = shapes.max_model_len
        scheduler.scheduler_cls = "spyre_bench.plugin.continuous_scheduler.ContinuousScheduler"
        scheduler.max_num_seqs = shapes.max_rows
        # what a step may hold at most; how long a chunk is, each step says
        tokens = max(shapes.max_model_len, shapes.max_rows)
        scheduler.max_num_batched_tokens = scheduler.max_num_scheduled_tokens = tokens
        if not scheduler.enable_chunked_prefill and shapes.max_chunk < shapes.max_model_len:
            raise ValueError(
                f"chunked prefill is off and the longest chunk has {shapes.max_chunk} of "
                f"{shapes.max_model_len} tokens: leave out --no-enable-chunked-prefill, or compile "
                f"a prefill shape {shapes.max_model_len},{shapes.max_model_len}"
            )
        scheduler.enable_chunked_prefill = True
        cache = vllm_config.cache_config
        cache.block_size, cache.user_specified_block_size = BLOCK_TOKENS, True
        cache.num_gpu_blocks_override = shapes.blocks
        logger.info("Continuous batching: %s.", shapes)

    @classmethod
    def validate_request(
        cls, processed_inputs: EngineInput, params: SamplingParams | PoolingParams
    ) -> None:
        """Raises ValueError (HTTP 400) for a request that no bucket takes or that asks for what
        we do not do."""
        if cls._config is None:  # no engine of ours was built in this process
            return
        reason: str | None = "unsupported"
        try:
            require_prompt_type(processed_inputs["type"])
            token_ids = processed_inputs["prompt_token_ids"]
            refuse_request(token_ids, params, cls._vllm_config)
            has_tokenizer = not cls._vllm_config.model_config.skip_tokenizer_init
            require_told(params, cls._config, has_tokenizer)
            # Without max_tokens the output may be as long as a bucket allows, but no shorter.
            at_least = max(1, params.min_tokens)
            max_tokens = at_least if params.max_tokens is None else params.max_tokens
            reason = cls._config.compiled.rejection(len(token_ids), max_tokens)
            cls._config.compiled.require_fit(len(token_ids), max_tokens)
        except ValueError as error:
            rejected().labels(reason).inc()
            raise RefusedRequest(str(error)) from None

    @classmethod
    def _refuse_long_prompt(cls, prompt_tokens: int, max_tokens: int) -> None:
        """The same sentence for a prompt that vLLM refuses before it asks `validate_request`."""
        if cls._config is None:
            return
        try:
            cls._config.compiled.require_fit(prompt_tokens, max_tokens)
        except ValueError as error:
            rejected().labels(cls._config.compiled.rejection(prompt_tokens, max_tokens)).inc()
            raise RefusedRequest(str(error)) from None

    @classmethod
    def _longest_prompt(cls) -> int:
        return sys.maxsize if cls._config is None else cls._config.compiled.max_prompt_length

    @classmethod
    def takes_prompt(cls, prompt_tokens: int) -> bool:
        """Whether a bucket takes such a prompt with any output; True without an engine of ours."""
        return cls._config is None or cls._config.compiled.max_new_tokens(prompt_tokens) > 0

    @classmethod
    def get_max_output_tokens(cls, prompt_len: int) -> int:
        """What the buckets allow after such a prompt; 1 where nothing fits, so that the request
        reaches `validate_request` and its sentence."""
        if cls._config is None:
            return sys.maxsize
        return max(1, cls._config.compiled.max_new_tokens(prompt_len))

    @classmethod
    def get_attn_backend_cls(cls, *args: Any, **kwargs: Any) -> str:
        return "spyre_bench.plugin.vllm_attention.SpyreAttentionBackend"

    @classmethod
    def get_device_communicator_cls(cls) -> str:
        return "spyre_bench.plugin.communicator.SpyreCommunicator"

    @classmethod
    def use_custom_op_collectives(cls) -> bool:
        return True  # so that a graph may hold them

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        return cls.device_name

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        return psutil.virtual_memory().total

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        return False

    @classmethod
    def inference_mode(cls):
        return torch.no_grad()

    @classmethod
    def manual_seed_all(cls, seed: int) -> None:
        torch.manual_seed(seed)

    @classmethod
    def import_kernels(cls) -> None:
        """vLLM's kernels are not needed."""

    @classmethod
    def import_ir_kernels(cls) -> None:
        """vLLM's kernels are not needed."""

    @classmethod
    def update_block_size_for_backend(cls, vllm_config: VllmConfig) -> None:
        """The block size is that of the buckets."""


def _take_no_part(vllm_config: VllmConfig) -> None:
    """As if nobody had set the options by which vLLM's scheduler would cut a prompt or refuse a
    member after our policy has decided, or would not start: `options` says so in the log."""
    scheduler = vllm_config.scheduler_config
    scheduler.long_prefill_token_threshold = 0
    scheduler.long_prefill_token_threshold_adaptive = False
    scheduler.max_num_active_seqs = None
    scheduler.watermark = 0.0
    vllm_config.cache_config.prefix_match_unit = None
    vllm_config.cache_config.prefix_cache_retention_interval = 0


def _without_steps(config: SpyreConfig, shapes: ShapeSet) -> SpyreConfig:
    """With the shapes that the engine computes: no pass leaves out what is beyond a step."""
    whole = shapes.without_steps
    if whole == shapes:
        return config
    logger.info("Shapes run whole, since this engine compiles no steps: %s, not %s.", whole, shapes)
    texts = {name: whole.setting[name] for name in ("prefill_shapes", "decode_shapes")}
    return replace(config, **texts)


def _sizes(config: SpyreConfig, vllm_config: VllmConfig) -> ModelSizes:
    """Of a model that the model code serves as transformers would; ValueError for any other."""
    model, length = vllm_config.model_config, config.compiled.max_context_length
    if config.device is not None:  # nothing of it is loaded
        return ModelSizes.of(model.hf_config.to_dict(), Path(model.model).name)
    if config.model_code == "vllm":
        sizes = sizes_of(vllm_config, model_directory(model.model, tokenizer=False), length)
        warn_of_untried(model)
        return sizes
    directory = Path(model.model)
    try:
        if directory.is_dir():  # another one is looked at when it is there
            require_servable(directory, length)
    except NotCarried as error:
        if not may_run(model):
            raise
        raise NotCarried(
            f'{error}. vLLM\'s own code may run it: additional_config {{"spyre": '
            f'{{"model_code": "vllm", ...}}}}'
        ) from None
    return ModelSizes.of(model.hf_config.to_dict(), directory.name)


def _with_blocks_that_fit(
    config: SpyreConfig, sizes: ModelSizes, vllm_config: VllmConfig
) -> SpyreConfig:
    """With fewer blocks where nobody named a number and `FREE_SHARE` of the free memory holds fewer
    than fill the widest decode shape. Where it does not hold one request, the engine says so."""
    shapes = config.shapes
    assert shapes is not None, "static batching has no blocks"
    tp = vllm_config.parallel_config.tensor_parallel_size
    dtype = str(vllm_config.model_config.dtype).removeprefix("torch.")
    limit = config.memory_bytes or int(FREE_SHARE * memory_there(None, tp))
    packs = config.compile_backend == "inductor"
    fit = blocks_that_fit(sizes, shapes, dtype, limit, tp, packs)
    if not shapes.least_blocks <= fit < shapes.blocks:
        return config
    logger.warning(
        "There is room for %d blocks of KV cache, not for the %d that fill decode shape %s: "
        "requests may wait for blocks. num_gpu_blocks_override names another number.",
        *(fit, shapes.blocks, max(shapes.decode, key=lambda s: s.rows * s.context_length)),
    )
    return replace(config, blocks=fit)
