"""The executor for one card: vLLM's own for one process."""

from vllm.v1.executor.uniproc_executor import UniProcExecutor

from spyre_bench.plugin.config import note_warmup
from spyre_bench.plugin.shims import make_shutdown_quiet


class SpyreExecutor(UniProcExecutor):
    def _init_executor(self) -> None:
        make_shutdown_quiet()
        super()._init_executor()

    def compile_or_warm_up_model(self) -> None:
        super().compile_or_warm_up_model()
        note_warmup(self.vllm_config, self.collective_rpc("warmup_rows")[0])

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        return False  # the next pass of a batch needs this pass's tokens
