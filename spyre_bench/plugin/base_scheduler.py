"""What both our schedulers add to vLLM's: a clock for requests, and late refusals."""

from __future__ import annotations

import time
from collections.abc import Iterator
from weakref import WeakKeyDictionary

from vllm.logger import init_logger
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from spyre_bench.plugin.config import SpyreConfig
from spyre_bench.plugin.engine_counts import Counts
from spyre_bench.plugin.requests import refuse_request

logger = init_logger("vllm.spyre_bench.scheduler")

POLL_S = 0.001
"""How long a step without a pass may sleep; vLLM reads new requests between steps."""


class BaseScheduler(Scheduler):
    counts: Counts

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.spyre_config = SpyreConfig.of(self.vllm_config)
        self.clock = time.monotonic  # a wall clock may be set back while requests wait
        self.wall_clock = time.time
        self.sleep = time.sleep
        self._arrival_s: WeakKeyDictionary[Request, float] = WeakKeyDictionary()

    def add_request(self, request: Request) -> None:
        # It came to the front end perhaps a long pass ago; this process reads between passes.
        now_s, wall_s = self._now()
        self._arrival_s[request] = now_s - max(0.0, wall_s - request.arrival_time)
        super().add_request(request)
        if reason := self._misfit(request):
            logger.warning("request %s is refused: %s", request.request_id, reason)
            # vLLM's list of requests to end with an error at the next step.
            self.grammar_compile_error_reqs.add(request.request_id)
            fits = self.spyre_config.compiled.max_new_tokens(request.num_prompt_tokens) > 0
            self.counts.add_rejected("unsupported" if fits else "prompt_too_long")
            return
        # vLLM fills a missing max_tokens with the rest of the context: the shapes may allow less.
        allowed = self.spyre_config.compiled.max_new_tokens(request.num_prompt_tokens)
        request.max_tokens = min(request.max_tokens, allowed)

    def _now(self) -> tuple[float, float]:
        """The clock and the wall clock at one moment. A process that loses its core between two
        reads would lengthen a request's wait by as much, unseen by the log: hence the closest."""
        reads = [(self.clock(), self.wall_clock(), self.clock()) for _ in range(3)]
        now_s, wall_s, _ = min(reads, key=lambda read: read[2] - read[0])
        return now_s, wall_s

    def _misfit(self, request: Request) -> str | None:
        """Why a request that came past the platform's checks cannot run."""
        if request.resumable:
            return "the spyre backend does not support streaming input: send the whole prompt"
        try:
            refuse_request(
                request.prompt_token_ids or (), request.sampling_params, self.vllm_config
            )
            self.spyre_config.compiled.require_fit(request.num_prompt_tokens, 1)
        except ValueError as error:
            return str(error)
        return None

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """As vLLM's; a request that was to get a token and got none has failed in the sampler, and
        ends alone."""
        if self._samples(scheduler_output):
            tokens = model_runner_output.sampled_token_ids
            self.grammar_compile_error_reqs.update(
                request_id
                for request_id, new in zip(model_runner_output.req_ids, tokens, strict=True)
                if not new
            )
        return super().update_from_output(scheduler_output, model_runner_output)

    def _samples(self, scheduler_output: SchedulerOutput) -> bool:
        """Whether the pass yields tokens."""
        return True

    def _idle_until(self, at_s: float) -> None:
        """Nobody may run before that time of the clock, but somebody may come."""
        self.sleep(min(POLL_S, max(0.0, at_s - self.clock())))

    def _poll(self) -> None:
        """Something that another thread does has to happen first."""
        self.sleep(POLL_S)

    def _oldest_wait_s(self) -> float:
        if not self.waiting:
            return 0.0
        return self.clock() - self._arrival_s[self.waiting.peek_request()]

    def _read_ready(self, read: list[Request]) -> Iterator[Request]:
        """Pops from the queue as far as it is asked to, into `read`; yields who could run now."""
        while self.waiting:
            request = self.waiting.pop_request()
            read.append(request)
            if request.request_id in self.grammar_compile_error_reqs:
                continue
            if self._handle_blocked_waiting_request(request):  # its grammar has compiled
                yield request
