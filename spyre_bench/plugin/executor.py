"""The executors: vLLM's own for one process and for one process per rank, and what both share."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from vllm.logger import init_logger
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from spyre_bench.engine.parallel import Rank
from spyre_bench.plugin.config import SpyreConfig, note_warmup
from spyre_bench.plugin.rank_failures import RankProcess, diagnose, open_last_words
from spyre_bench.plugin.shims import leave_triton_to_the_host, make_shutdown_quiet
from spyre_bench.plugin.unsupported import refuse_call

logger = init_logger("vllm.spyre_bench.executor")

PASS = ("execute_model", "sample_tokens")
GRACE_S = 2.0
"""How long the executor looks for the cause of a failure."""
DEATH_SHOWS_S = 0.5
"""How much later than the connection that it broke a rank's death may show."""


class StaticShapes:
    """What a device with compiled buckets asks of vLLM's executors."""

    def _init_executor(self) -> None:
        make_shutdown_quiet()
        leave_triton_to_the_host()  # an engine process of its own has judged no options
        super()._init_executor()

    def compile_or_warm_up_model(self) -> None:
        super().compile_or_warm_up_model()
        note_warmup(self.vllm_config, self.collective_rpc("warmup_rows")[0])

    def collective_rpc(self, method: str | Callable, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's; raises ValueError for what no worker of ours does, before any is asked."""
        refuse_call(method)
        return super().collective_rpc(method, *args, **kwargs)

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        return False  # the next pass of a batch needs this pass's tokens


class SpyreExecutor(StaticShapes, UniProcExecutor):
    """One card."""


class MultiprocessingSpyreExecutor(StaticShapes, MultiprocExecutor):
    """One process per card. Whatever ends the engine, its error names the rank that was the
    cause."""

    def _init_executor(self) -> None:
        self.step_timeout_s = SpyreConfig.of(self.vllm_config).step_timeout_s
        self._ranks: list[RankProcess] = []
        self._cause: str | None = None
        self._last_words = open_last_words(self.vllm_config)
        try:
            super()._init_executor()
        except Exception as error:
            if cause := diagnose([], Path(self._last_words.name)):
                raise RuntimeError(f"the engine cannot start: {cause}") from error
            raise

    def start_worker_monitor(self, inline: bool = False) -> None:
        tp = len(self.workers)
        self._ranks = [RankProcess(Rank(one.rank, tp), one.proc) for one in self.workers]
        super().start_worker_monitor(inline)

    def collective_rpc(
        self,
        method: str | Callable,
        timeout: float | None = None,
        args: tuple = (),
        kwargs: dict | None = None,
        non_block: bool = False,
        unique_reply_rank: int | None = None,
        **aggregators: Any,
    ) -> Any:
        """As vLLM's, a pass within `step_timeout_s`; the RuntimeError names the rank."""
        if method in PASS:
            timeout = self.step_timeout_s
        future = super().collective_rpc(
            method, timeout, args, kwargs, True, unique_reply_rank, **aggregators
        )
        future.get_response = partial(self._explained, future.get_response)
        return future if non_block else future.result()

    def _explained(self, get_response: Callable[[], Any]) -> Any:
        try:
            return get_response()
        except Exception as error:
            cause = self._wait_for_cause() or "every rank is alive"
            raise RuntimeError(f"the engine stops: {cause} ({error})") from error

    def shutdown(self) -> None:
        # Before the others are ended too: afterwards nobody could tell the cause.
        if self.is_failed and (cause := self._wait_for_cause()):
            logger.error("The engine stops: %s.", cause)
        super().shutdown()

    def _wait_for_cause(self) -> str | None:
        """A dead rank's connections and its sentinel close a little before its exit code is there;
        others that are ended with it are no cause."""
        end = time.monotonic() + GRACE_S
        while self._cause is None and time.monotonic() < end:
            if not getattr(self, "shutting_down", False):
                self._cause = diagnose(self._ranks, Path(self._last_words.name), DEATH_SHOWS_S)
            time.sleep(0.02)
        return self._cause
