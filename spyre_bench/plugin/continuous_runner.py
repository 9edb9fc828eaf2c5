"""The runner of continuous batching: the scheduler names the chunk, or the rows; vLLM's sampler,
over an `InputBatch` of those alone, chooses the tokens.

A request that joins is sampled in a batch of its own, so that the decoding rows keep theirs. A row
that sits out a pass leaves its batch and comes back with what it has put out so far.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput

from spyre_bench.engine.paged_causal_lm import PagedCausalLM
from spyre_bench.pass_log import PassLog, Step
from spyre_bench.plugin.runner import SpyreModelRunner, make_input_batch, new_state

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vllm.config import VllmConfig

    from spyre_bench.plugin.continuous_scheduler import ContinuousSchedulerOutput


class ContinuousModelRunner(SpyreModelRunner):
    def __init__(self, vllm_config: VllmConfig, model: PagedCausalLM, pass_log: PassLog):
        super().__init__(vllm_config, model, pass_log)
        self.engine = model
        self._decoding = self.input_batch
        self._joining = make_input_batch(vllm_config)

    def execute_model(self, scheduled: ContinuousSchedulerOutput) -> ModelRunnerOutput | None:
        """One pass of the engine; None says that `sample_tokens` has its result."""
        self._forget(scheduled.finished_req_ids)
        self._leave(self._decoding, scheduled.preempted)
        for request in scheduled.scheduled_new_reqs:
            if request.req_id in self._requests:
                continue  # it goes on where it was preempted: what it drew and said stays
            state = new_state(request, self.engine.vocab_size)
            state.block_ids = ([],)  # tables come with every pass
            self._requests[request.req_id] = state
        if not scheduled.num_scheduled_tokens:
            return EMPTY_MODEL_RUNNER_OUTPUT
        if scheduled.chunk is None:
            self._pending = scheduled, self._decode(scheduled)
            return None
        (request_id,) = scheduled.num_scheduled_tokens
        logits = self._chunk(scheduled, request_id)
        if scheduled.is_last:
            self._pending = scheduled, logits
            return None
        return ModelRunnerOutput(
            req_ids=[request_id], req_id_to_index={request_id: 0}, sampled_token_ids=[[]]
        )

    def _chunk(self, scheduled: ContinuousSchedulerOutput, request_id: str) -> torch.Tensor:
        """Logits [1, V] after the chunk."""
        logits = self._logged(
            scheduled, lambda: self.engine.prefill(scheduled.shape, scheduled.chunk)
        )
        if scheduled.is_last:
            self._sample_of(self._joining, [request_id])
        return logits

    def _decode(self, scheduled: ContinuousSchedulerOutput) -> torch.Tensor:
        """Logits [rows, V] after one token for each row."""
        logits = self._logged(
            scheduled, lambda: self.engine.decode(scheduled.shape, scheduled.rows)
        )
        self._sample_of(self._decoding, scheduled.row_ids)
        return logits

    def _sample_of(self, batch, row_ids: Sequence[str]) -> None:
        """The batch becomes that of these requests, whose logits come in this order."""
        self._rows = {request_id: row for row, request_id in enumerate(row_ids)}
        self.input_batch = batch
        if not self.samples:
            return
        self._leave(batch, set(batch.req_ids) - self._rows.keys())
        for request_id in row_ids:
            if request_id not in batch.req_id_to_index:
                batch.add_request(self._requests[request_id])
        self._settle()

    def _forget(self, finished: Iterable[str]) -> None:
        for batch in (self._decoding, self._joining):
            self._leave(batch, finished)
        for request_id in finished:
            self._requests.pop(request_id, None)

    @staticmethod
    def _leave(batch, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            batch.remove_request(request_id)

    def _logged(self, scheduled: ContinuousSchedulerOutput, run) -> torch.Tensor:
        start_s, start = self.clock.wall(), self.clock.monotonic()
        logits = run()
        self.pass_log.write(step_of(scheduled, start_s, self.clock.monotonic() - start))
        return logits


def step_of(scheduled: ContinuousSchedulerOutput, start_s: float, seconds: float) -> Step:
    """The line of the pass log for a pass that took so long."""
    chunk = scheduled.chunk
    rows: dict[str, Any]
    if chunk is None:
        rows = {
            "kind": "rows",
            "requests": list(scheduled.row_ids),
            "tokens": [1] * len(scheduled.rows),
            "again_tokens": 0,
            "context_tokens": [row.position + 1 for row in scheduled.rows],
        }
    else:
        end = chunk.start + len(chunk.tokens)
        written = max(chunk.start, chunk.write_from)
        rows = {
            "kind": "chunk",
            "requests": list(scheduled.num_scheduled_tokens),
            "tokens": [end - written],
            "again_tokens": written - chunk.start,
            "context_tokens": [end],
        }
    return Step(
        shape=scheduled.shape,
        start_s=start_s,
        seconds=seconds,
        context=scheduled.context,
        paused=scheduled.paused,
        waiting=scheduled.waiting,
        free_blocks=scheduled.free_blocks,
        came=list(scheduled.came),
        gone=list(scheduled.gone),
        named=list(scheduled.named),
        **rows,
    )
