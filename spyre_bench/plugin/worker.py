"""The worker: one process with one device, its share of the model and its runner."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vllm.logger import init_logger
from vllm.utils.torch_utils import available_cpu_count, set_random_seed
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheSpec
from vllm.v1.worker.worker_base import CompilationTimes, WorkerBase

from spyre_bench.checkpoints.find import model_directory
from spyre_bench.engine.artefacts import default_artefact_directory
from spyre_bench.engine.causal_lm import SpyreCausalLM
from spyre_bench.engine.compiled_model import EngineConfig
from spyre_bench.engine.fms import FMSCode
from spyre_bench.engine.model_code import ModelCode
from spyre_bench.engine.paged_causal_lm import PagedCausalLM
from spyre_bench.engine.parallel import Rank, join
from spyre_bench.engine.warmup import warm_up
from spyre_bench.pass_log import PassLog, ShapeWarmup, StepRules, Warmup
from spyre_bench.plugin import card_runtime
from spyre_bench.plugin.config import SpyreConfig
from spyre_bench.plugin.continuous_runner import ContinuousModelRunner
from spyre_bench.plugin.rank_failures import last_words
from spyre_bench.plugin.runner import SpyreModelRunner

if TYPE_CHECKING:
    from vllm.tasks import SupportedTask
    from vllm.v1.core.sched.output import GrammarOutput
    from vllm.v1.outputs import ModelRunnerOutput

    from spyre_bench.plugin.static_scheduler import SpyreSchedulerOutput

logger = init_logger("vllm.spyre_bench.worker")


@contextmanager
def signals_end_the_process() -> Iterator[None]:
    """vLLM only notes signals while its engine process is being built; a model that loads and
    compiles for minutes shall stop at once. In a user's own process Python's Ctrl-C stands."""
    ours = (signal.SIGINT, signal.SIGTERM)
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        yield
        return

    def stop(number: int, frame) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def says_why(method: Callable) -> Callable:
    """A worker's method whose error is written down for the executor before it goes on."""

    @wraps(method)
    def wrapped(self: SpyreWorker, *args: Any, **kwargs: Any) -> Any:
        with last_words(self.vllm_config, self.spyre_rank):
            return method(self, *args, **kwargs)

    return wrapped


class SpyreWorker(WorkerBase):
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.spyre_rank = Rank(self.rank, self.parallel_config.tensor_parallel_size)

    @says_why
    def init_device(self) -> None:
        self.device = torch.device("cpu")
        self.spyre_config = config = SpyreConfig.of(self.vllm_config)
        set_random_seed(self.model_config.seed)
        self._share_cores()
        if config.compile_backend == "sendnn":
            card_runtime.prepare(self.spyre_rank, torch.get_num_threads())
        if self.spyre_rank.tp > 1:
            meeting_point = Path(self.distributed_init_method.removeprefix("file://"))
            join(self.spyre_rank, meeting_point, config.join_timeout_s)

    def _share_cores(self) -> None:
        """Says how vLLM has divided the cores among the ranks, once."""
        if self.spyre_rank.tp == 1 or not self.is_driver_worker:
            return
        tp, threads, cores = self.spyre_rank.tp, torch.get_num_threads(), available_cpu_count()
        logger.info("%d ranks share %d cores, threads each: %d.", tp, cores, threads)
        if tp * threads > cores:
            logger.warning(
                "%d ranks with %d threads each want more than the %d cores there are: they will "
                "wait for each other. Set OMP_NUM_THREADS=%d, or use fewer ranks.",
                *(tp, threads, cores, max(1, cores // tp)),
            )

    @signals_end_the_process()
    @says_why
    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        config = self.spyre_config
        model_class, runner_class = (
            (SpyreCausalLM, SpyreModelRunner)
            if config.shapes is None
            else (PagedCausalLM, ContinuousModelRunner)
        )
        self.model = model_class(
            EngineConfig(
                model_directory=model_directory(self.model_config.model, tokenizer=False),
                model_code=self._model_code(),
                buckets=config.buckets,
                shapes=config.shapes,
                dtype=str(self.model_config.dtype).removeprefix("torch."),
                compile_backend=config.compile_backend,
                compile_scope=config.compile_scope,
                artefact_directory=config.artefact_directory or default_artefact_directory(),
                artefact_trust=config.artefact_trust,
                require_precompiled=config.require_precompiled,
                memory_bytes=config.memory_bytes,
                rank=self.spyre_rank,
                max_load_processes=config.max_load_processes,
            )
        )
        logger.info(
            "%s holds %s bytes of weights and needs %s in all.",
            str(self.spyre_rank).capitalize(),
            f"{self.model.weight_bytes:,}",
            f"{self.model.memory_bytes:,}",
        )
        self._make_runner(runner_class)

    def _make_runner(self, runner_class: type[SpyreModelRunner]) -> None:
        # One log is enough: a pass takes as long on every rank, since they wait for each other.
        self.pass_log = PassLog(self.spyre_config.pass_log if self.is_driver_worker else None)
        self.model_runner = runner_class(self.vllm_config, self.model, self.pass_log)

    def _model_code(self) -> ModelCode:
        if self.spyre_config.model_code == "fms":
            return FMSCode()
        from spyre_bench.plugin.vllm_model import VLLMCode  # seconds of imports

        return VLLMCode(self.vllm_config)

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        """Of all layers as one. Static batching has no paged cache: vLLM is told of one block, of
        no size, for each row."""
        sizes, tp = self.model.sizes, self.spyre_rank.tp
        paged = self.spyre_config.shapes is not None
        return {
            "layers": FullAttentionSpec(
                block_size=self.cache_config.block_size,
                num_kv_heads=sizes.layers * sizes.card_kv_heads(tp) if paged else 1,
                head_size=sizes.head_dim if paged else 1,
                dtype=self.model.dtype if paged else torch.float32,
            )
        }

    def get_supported_kv_cache_layouts(self) -> list[str]:
        return ["LBNHC"]

    def determine_available_memory(self) -> int:
        """Enough for those blocks; the real memory was checked when the model was built."""
        page = self.get_kv_cache_spec()["layers"].page_size_bytes
        return page * self.cache_config.num_gpu_blocks_override

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        """The engine holds its own cache."""

    # --------------------------------------------------------------------------------------------
    @signals_end_the_process()
    @says_why
    def compile_or_warm_up_model(self) -> CompilationTimes:
        start_s = time.perf_counter()
        self.warmup = self._warm_up()
        for row in self.warmup if self.is_driver_worker else ():
            self.pass_log.write(row)
            logger.info("%s", _said(row))
        if (shapes := self.spyre_config.shapes) is not None:
            cached, rules = self.cache_config.enable_prefix_caching, self.spyre_config.rules
            self.pass_log.write(StepRules(shapes.blocks, bool(cached), asdict(rules)))
        self.model_runner.warm_up_sampler()
        set_random_seed(self.model_config.seed)  # as if nothing had run
        return CompilationTimes(language_model=time.perf_counter() - start_s, encoder=0.0)

    def _warm_up(self) -> list[Warmup] | list[ShapeWarmup]:
        return warm_up(self.model, progress=self.is_driver_worker)

    def warmup_rows(self) -> list[Warmup] | list[ShapeWarmup]:
        """What warmup measured, for the scheduler."""
        return self.warmup

    @says_why
    @torch.no_grad()
    def execute_model(self, scheduler_output: SpyreSchedulerOutput) -> ModelRunnerOutput | None:
        return self.model_runner.execute_model(scheduler_output)

    @says_why
    @torch.no_grad()
    def sample_tokens(self, grammar_output: GrammarOutput | None) -> ModelRunnerOutput:
        return self.model_runner.sample_tokens(grammar_output)

    def reset_encoder_cache(self) -> None:
        """Text has no encoder; vLLM asks for it whenever it pauses."""

    def wake_up(self, tags: list[str] | None = None) -> None:
        """No worker of ours sleeps, but vLLM may think so after a call that was refused."""

    def get_supported_tasks(self) -> tuple[SupportedTask, ...]:
        return ("generate",)

    def shutdown(self) -> None:
        if self.model_runner is not None:
            self.pass_log.close()


def _said(row: Warmup | ShapeWarmup) -> str:
    done = f"{'loaded' if row.was_warm else 'compiled'} in {row.compile_s:.1f} s"
    if isinstance(row, Warmup):
        passes = f"prefill {row.prefill_s:.3f} s, decode {row.decode_s:.3f} s"
        return f"Bucket {row.bucket}: {done}, {passes}."
    return f"Shape {row.shape.name}: {done}, full {row.full_s:.3f} s, empty {row.empty_s:.3f} s."
