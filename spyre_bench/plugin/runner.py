"""The runner: vLLM's requests on one side, the rows of the engine's batch on the other.

A row is given at prefill and kept to the end of the batch; the row of a finished request becomes
a dummy. vLLM's `InputBatch` closes its gaps instead, so the two orders differ: `_rows` maps them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vllm.logger import init_logger
from vllm.sampling_params import SamplingType
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput
from vllm.v1.sample.logits_processor import build_logitsprocs
from vllm.v1.sample.sampler import Sampler
from vllm.v1.structured_output.utils import apply_grammar_bitmask
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from spyre_bench.pass_log import Pass, PassLog
from spyre_bench.plugin.clock import noted_clock
from spyre_bench.plugin.shims import leave_triton_to_the_host
from spyre_bench.shapes import Bucket

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import GrammarOutput, NewRequestData
    from vllm.v1.outputs import SamplerOutput

    from spyre_bench.engine.causal_lm import SpyreCausalLM
    from spyre_bench.plugin.static_scheduler import SpyreSchedulerOutput

logger = init_logger("vllm.spyre_bench.runner")

DUMMY_TOKEN = 0


class SpyreModelRunner:
    """Of several ranks the first samples; to the others the scheduler tells its tokens."""

    def __init__(self, vllm_config: VllmConfig, model: SpyreCausalLM, pass_log: PassLog):
        leave_triton_to_the_host()  # the sampler's, in a rank's process too
        self.samples = model.config.rank.rank == 0
        self.causal_lm = model  # not `model`: vLLM takes that for a torch module of its own
        self.pass_log = pass_log
        self.clock = noted_clock(vllm_config)
        self.sampler = Sampler(
            vllm_config.model_config.logprobs_mode, vllm_config.model_config.use_fp64_gumbel
        )
        self.vllm_config = vllm_config
        self.input_batch = make_input_batch(vllm_config)
        self._requests: dict[str, CachedRequestState] = {}
        self._rows: dict[str, int] = {}  # every member of the running batch, also finished ones
        self._bucket: Bucket | None = None
        self._batches = -1
        self._step = 0
        self._pending: tuple[SpyreSchedulerOutput, torch.Tensor] | None = None

    @torch.no_grad()
    def warm_up_sampler(self) -> None:
        """vLLM's sampler compiles a function with the first request for logprobs: do it now."""
        logprobs = torch.zeros(2, self.causal_lm.vocab_size)
        self.sampler.gather_logprobs(logprobs, 1, torch.zeros(2, dtype=torch.long))

    def execute_model(self, scheduled: SpyreSchedulerOutput) -> ModelRunnerOutput | None:
        """One pass of the engine; None says that `sample_tokens` has its result."""
        self._forget(scheduled.finished_req_ids)
        if not scheduled.num_scheduled_tokens:
            return EMPTY_MODEL_RUNNER_OUTPUT
        if scheduled.scheduled_new_reqs:
            logits = self._prefill(scheduled)
        else:
            logits = self._decode(scheduled.last_tokens)
        self._pending = scheduled, logits
        return None

    def sample_tokens(self, grammar: GrammarOutput | None) -> ModelRunnerOutput:
        """The next token of every unfinished row, by vLLM's sampler."""
        assert self._pending is not None, "sample_tokens follows execute_model"
        (scheduled, logits), self._pending = self._pending, None
        if not self.samples:
            return EMPTY_MODEL_RUNNER_OUTPUT
        generators = {
            state.generator: state.generator.get_state()
            for state in self._requests.values()
            if state.generator is not None
        }
        failed: list[str] = []
        try:
            sampled = self._sample(scheduled, logits, grammar)
        except Exception:
            failed = self._failing_alone(logits)
            if not failed:
                raise
            for generator, state in generators.items():  # others draw what they would have drawn
                generator.set_state(state)
            self._forget(set(failed))
            self._settle()
            left = self.input_batch.req_ids
            sampled = self._sample(scheduled, logits, grammar) if left else None
        tokens = [] if sampled is None else sampled.sampled_token_ids.tolist()
        for request_id, new in zip(self.input_batch.req_ids, tokens, strict=True):
            self._requests[request_id].output_token_ids.extend(new)  # InputBatch shares the list
        logprobs = None if sampled is None else sampled.logprobs_tensors
        req_ids = self.input_batch.req_ids + failed
        return ModelRunnerOutput(
            req_ids=req_ids,
            req_id_to_index={request_id: index for index, request_id in enumerate(req_ids)},
            sampled_token_ids=tokens + [[] for _ in failed],  # by which the scheduler knows them
            logprobs=None if logprobs is None else logprobs.tolists(),
        )

    def _sample(
        self, scheduled: SpyreSchedulerOutput, logits: torch.Tensor, grammar: GrammarOutput | None
    ) -> SamplerOutput:
        # vLLM's order; a copy, since the sampler writes into it
        logits = logits[[self._rows[request_id] for request_id in self.input_batch.req_ids]]
        if grammar is not None:
            apply_grammar_bitmask(scheduled, grammar, self.input_batch, logits)
        return self.sampler(logits, self.input_batch.sampling_metadata)

    def _failing_alone(self, logits: torch.Tensor) -> list[str]:
        """The requests for which the sampler raises even without company: they end, the others of
        the batch go on. None where it needs all of them: then the fault is no request's."""
        failed = []
        for request_id in self.input_batch.req_ids:
            alone = make_input_batch(self.vllm_config)
            try:
                alone.add_request(self._requests[request_id])
                alone.refresh_metadata()
                self.sampler(logits[[self._rows[request_id]]], alone.sampling_metadata)
            except Exception:
                logger.exception("request %s fails in the sampler and ends", request_id)
                failed.append(request_id)
        return failed

    def _forget(self, finished: set[str]) -> None:
        """Drops requests that have ended."""
        for request_id in finished:
            self.input_batch.remove_request(request_id)
            self._requests.pop(request_id, None)

    def _settle(self) -> None:
        """After requests have come and gone: once before each pass, since `InputBatch` takes no
        removal behind it."""
        self.input_batch.condense()
        self.input_batch.refresh_metadata()

    def _prefill(self, scheduled: SpyreSchedulerOutput) -> torch.Tensor:
        """Starts the batch of the new requests; logits [rows, V]."""
        bucket, new = scheduled.bucket, scheduled.scheduled_new_reqs
        assert bucket is not None, "the scheduler names the bucket of a new batch"
        assert not self._requests, f"{list(self._requests)} still run: no prefill before they end"
        self._bucket = bucket
        self._rows = {request.req_id: row for row, request in enumerate(new)}
        self._batches += 1
        self._step = 0
        for request in new:
            state = new_state(request, self.causal_lm.vocab_size)
            self._requests[request.req_id] = state
            self.input_batch.add_request(state)
        self._settle()
        self._prompt_tokens = [len(request.prompt_token_ids) for request in new]
        noted = [scheduled.noted[request.req_id] for request in new]
        return self._timed(
            "prefill",
            lambda: self.causal_lm.prefill(bucket, [request.prompt_token_ids for request in new]),
            place=[one.place for one in noted],
            arrival_s=[one.arrival_s for one in noted],
            seen_s=[one.seen_s for one in noted],
            max_tokens=[one.max_tokens for one in noted],
            looked_s=scheduled.looked_s,
            left=scheduled.left,
        )

    def _decode(self, last_tokens: Mapping[str, int]) -> torch.Tensor:
        """One more token for every row of the running batch; logits [rows, V]."""
        tokens = [last_tokens.get(request_id, DUMMY_TOKEN) for request_id in self._rows]
        self._step += 1
        self._settle()
        return self._timed("decode", lambda: self.causal_lm.decode(tokens))

    def _timed(self, kind: str, run, **noted) -> torch.Tensor:
        start_s, start = self.clock.wall(), self.clock.monotonic()
        logits = run()
        assert self._bucket is not None, "a batch begins with a prefill"
        self.pass_log.write(
            Pass(
                kind=kind,
                batch=self._batches,
                bucket=self._bucket,
                start_s=start_s,
                seconds=self.clock.monotonic() - start,
                step=self._step,
                requests=list(self._rows),
                prompt_tokens=self._prompt_tokens,
                running=len(self._requests),
                **noted,
            )
        )
        return logits


def new_state(request: NewRequestData, vocab_size: int) -> CachedRequestState:
    params = request.sampling_params
    # A tokenizer's end may be a token that the model lacks: it never comes, and min_tokens would
    # look for its logit.
    params.all_stop_token_ids.intersection_update(range(vocab_size))
    generator = None
    if params.sampling_type == SamplingType.RANDOM_SEED:
        # its own stream: the same tokens whatever shares the batch
        generator = torch.Generator().manual_seed(params.seed)
    return CachedRequestState(
        req_id=request.req_id,
        prompt_token_ids=request.prompt_token_ids,
        mm_features=[],
        sampling_params=params,
        generator=generator,
        block_ids=request.block_ids,
        num_computed_tokens=request.num_computed_tokens,
        output_token_ids=[],
    )


def make_input_batch(vllm_config: VllmConfig) -> InputBatch:
    """vLLM's table of the running requests' sampling parameters."""
    model, scheduler = vllm_config.model_config, vllm_config.scheduler_config
    custom = model.logits_processors or ()
    device = torch.device("cpu")
    return InputBatch(
        max_num_reqs=scheduler.max_num_seqs,
        max_model_len=model.max_model_len,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        device=device,
        vocab_size=model.get_vocab_size(),
        block_sizes=[vllm_config.cache_config.block_size],
        max_num_blocks_per_req=[1],
        logitsprocs=build_logitsprocs(vllm_config, device, False, False, custom),
        logitsprocs_need_output_token_ids=bool(custom),
        reasoning_config=vllm_config.reasoning_config,
    )
