"""The runners of a device that computes nothing: its models say tokens, and vLLM's sampler gets
logits only where a request asks for something that only logits can answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vllm.v1.outputs import SamplerOutput

from spyre_bench.plugin.continuous_runner import ContinuousModelRunner
from spyre_bench.plugin.runner import SpyreModelRunner
from spyre_bench.plugin.told import Told, ends_with

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.core.sched.output import GrammarOutput
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.worker.gpu_input_batch import CachedRequestState

    from spyre_bench.plugin.simulated_model import Chosen
    from spyre_bench.plugin.static_scheduler import SpyreSchedulerOutput


class SimulatedModelRunner(SpyreModelRunner):
    def execute_model(self, scheduled: SpyreSchedulerOutput) -> ModelRunnerOutput | None:
        if not scheduled.num_scheduled_tokens:
            self.causal_lm.rest()
        return super().execute_model(scheduled)

    def _sample(
        self, scheduled: SpyreSchedulerOutput, logits: Chosen, grammar: GrammarOutput | None
    ) -> SamplerOutput:
        """What the device says: a token that ends the request where it was told so, no sooner."""
        request_ids = self.input_batch.req_ids
        needs_logits = grammar is not None or bool(self.vllm_config.model_config.logits_processors)
        for request_id in request_ids:
            state, row = self._requests[request_id], self._rows[request_id]
            if is_last(state):
                logits.tokens[row] = ends_with(state.sampling_params)
            elif logits.tokens[row] in (ends := state.sampling_params.all_stop_token_ids):
                logits.tokens[row] = self.causal_lm.voice.other_than(ends)
            needs_logits = needs_logits or asks_for_logits(state.sampling_params)
        if needs_logits:
            return super()._sample(scheduled, logits, grammar)
        said = [[logits.tokens[self._rows[request_id]]] for request_id in request_ids]
        return SamplerOutput(torch.tensor(said, dtype=torch.int32), logprobs_tensors=None)


class SimulatedContinuousModelRunner(SimulatedModelRunner, ContinuousModelRunner):
    """The same for chunks and rows."""


def is_last(state: CachedRequestState) -> bool:
    """Whether the next token is the last one that the request was told of."""
    wanted = Told.of(state.sampling_params).output_tokens
    ends = ends_with(state.sampling_params) is not None
    return ends and wanted is not None and len(state.output_token_ids) + 1 >= wanted


def asks_for_logits(params: SamplingParams) -> bool:
    """Whether the sampler could choose otherwise than the device, or is asked for more than a
    token. Of what is certain no temperature, top_k, top_p or min_p chooses another."""
    return bool(
        params.logprobs is not None
        or params.logprob_token_ids
        or params.logit_bias
        or params.bad_words
        or params.allowed_token_ids is not None
        or params.min_tokens
        or params.thinking_token_budget is not None
    )
