"""vLLM's scheduler under continuous batching: `policy.continuous.next_step` says what the next pass
is, and vLLM's own scheduler, which sees only the requests of that pass, takes their blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple
from weakref import WeakKeyDictionary

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import create_request_queue
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.request import Request

from spyre_bench.cost.shape_cost import warmed_costs
from spyre_bench.engine.paged_causal_lm import Chunk, DecodeRow
from spyre_bench.pass_log import Came, Gone
from spyre_bench.plugin.base_scheduler import BaseScheduler
from spyre_bench.plugin.changes import Changes, completed
from spyre_bench.plugin.config import noted_shape_warmup
from spyre_bench.plugin.engine_counts import StepCounts
from spyre_bench.policy.continuous import NEVER, Decode, Preempt, Prefill, next_step
from spyre_bench.shape_set import (
    BLOCK_TOKENS,
    DecodeShape,
    PrefillShape,
    blocks_of,
)

COUNTED = 100
"""Requests of the queue that the statistics of a step may count."""


@dataclass
class ContinuousSchedulerOutput(SchedulerOutput):
    """What vLLM's scheduler tells the workers, and the pass as the engine takes it: a chunk, or a
    row for each of `row_ids`."""

    shape: PrefillShape | DecodeShape | None = None
    chunk: Chunk | None = None
    is_last: bool = False  # the chunk yields its request's next token
    rows: Sequence[DecodeRow] = ()
    row_ids: Sequence[str] = ()
    preempted: Sequence[str] = ()  # before this pass
    context: int = 0  # tokens of its longest row
    paused: int = 0
    waiting: int = 0
    free_blocks: int = 0
    came: Sequence[Came] = ()  # see pass_log.Step
    gone: Sequence[Gone] = ()
    named: Sequence[list[str]] = ()


class Waiting(NamedTuple):
    """A request without blocks as `next_step` sees it."""

    prompt_tokens: int
    max_tokens: int
    arrival_s: float
    hit_blocks: int
    shared_blocks: int
    request: Request


class Running(NamedTuple):
    """A request that holds blocks as `next_step` sees it."""

    prompt_tokens: int
    max_tokens: int
    computed_tokens: int
    held_blocks: int
    reserved_blocks: int
    paused_for: int
    request: Request


@dataclass
class Pauses:
    """Decode passes that each running request has sat out since its last."""

    since: WeakKeyDictionary[Request, int] = field(default_factory=WeakKeyDictionary)

    def of(self, request: Request) -> int:
        return self.since.get(request, 0)

    def count(self, decoding: Sequence[Request], rows: Sequence[Request]) -> None:
        for request in decoding:
            self.since[request] = self.of(request) + 1
        for request in rows:
            self.since[request] = 0


class ContinuousScheduler(BaseScheduler):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        shapes = self.spyre_config.shapes
        assert shapes is not None, "continuous batching has shapes"
        warmup = noted_shape_warmup(self.vllm_config)
        self.costs = warmed_costs(warmup, shapes.blocks)
        self.counts = StepCounts(warmup)
        self.decodes_since_chunk = NEVER
        self._pauses = Pauses()
        self._queued_tokens = 0
        # tokens that a running request had to prefill when it was admitted
        self._to_prefill: WeakKeyDictionary[Request, int] = WeakKeyDictionary()
        self._changes = Changes()

    def add_request(self, request: Request) -> None:
        super().add_request(request)
        refused = request.request_id in self.grammar_compile_error_reqs
        if self.spyre_config.pass_log is not None and not refused:
            self._changes.unseen.append(request)

    def _free_request(self, request: Request, *args, **kwargs):
        self._changes.leave(request)
        return super()._free_request(request, *args, **kwargs)

    def schedule(self, throttle_prefills: bool = False) -> ContinuousSchedulerOutput:
        """The next pass: a chunk of one request, or a token for each row whose turn it is."""
        self._changes.see(self.wall_clock())
        preempted: list[str] = []
        step = self._decide()
        while isinstance(step, Preempt):
            victim = step.request.request
            self.running.remove(victim)
            self._preempt_request(victim, self.clock())
            preempted.append(victim.request_id)
            self.counts.add_preemption()
            step = self._decide()
        output = self._narrowed(step, throttle_prefills)
        ran = bool(output.num_scheduled_tokens)
        assert ran == (step is not None), f"vLLM ran {output.num_scheduled_tokens} of {step}"
        values = {one.name: getattr(output, one.name) for one in fields(SchedulerOutput)}
        if ran and isinstance(step, Prefill):
            pass_ = self._chunk(step)
        elif ran:
            pass_ = self._rows(step)
        else:
            pass_ = {}
            if self.waiting:  # a grammar compiles
                self._poll()
        return ContinuousSchedulerOutput(
            **values,
            **pass_,
            preempted=preempted,
            waiting=len(self.waiting),
            free_blocks=self._free_blocks_now(),
            **(self._changes.told() if ran else {}),
        )

    def _decide(self) -> Prefill | Decode | Preempt | None:
        """What runs next; the queue is as before. Of a paused engine nobody is admitted, and with
        `PAUSED_ALL` nothing runs."""
        if self._pause_state == PauseState.PAUSED_ALL:
            return None
        read: list[Request] = []
        step = next_step(
            self._waiting(read) if self._pause_state == PauseState.UNPAUSED else (),
            [self._running(request) for request in self.running],
            self._free_blocks_now(),
            self.costs,
            self.spyre_config.rules,
            self.decodes_since_chunk,
            self.clock(),
        )
        self.waiting.prepend_requests(reversed(read))
        return step

    def _narrowed(self, step: Prefill | Decode | None, throttle_prefills: bool) -> SchedulerOutput:
        """vLLM's own step over the requests of ours, and nobody else."""
        running, waiting = self.running, self.waiting
        budget = self.max_num_scheduled_tokens
        self.running, self.waiting = [], create_request_queue(self.policy)
        newcomer: Request | None = None
        if isinstance(step, Prefill):
            request = step.request.request
            self.max_num_scheduled_tokens = step.tokens
            if step.is_first:
                newcomer = request
                waiting.remove_request(request)
                self.waiting.add_request(request)
            else:
                self.running = [request]
        elif isinstance(step, Decode):
            self.running = [row.request for row in step.rows]
            self.max_num_scheduled_tokens = len(self.running)
        try:
            return super().schedule(throttle_prefills)
        finally:
            self.max_num_scheduled_tokens = budget
            if newcomer is not None and newcomer in self.running:
                running = [*running, newcomer]
                self._to_prefill[newcomer] = newcomer.num_tokens
                self._pauses.since[newcomer] = 0
            waiting.prepend_requests(reversed(list(self.waiting)))
            self.running, self.waiting = running, waiting

    def _chunk(self, step: Prefill) -> dict:
        """What the engine needs of a chunk that was scheduled."""
        request: Request = step.request.request
        end = request.num_computed_tokens  # vLLM counts it as computed already
        write_from = end - step.tokens
        start = write_from - step.again_tokens
        self.decodes_since_chunk = 0
        self.counts.add_chunk(step.shape, step.tokens, step.again_tokens)
        return {
            "shape": step.shape,
            "chunk": Chunk(
                list(request.all_token_ids[start:end]), start, self._table(request), write_from
            ),
            "is_last": step.is_last,
            "context": end,
            "named": [completed(request, write_from, end)],
        }

    def _rows(self, step: Decode) -> dict:
        """What the engine needs of a decode pass that was scheduled."""
        rows = [row.request for row in step.rows]
        decoding = [request for request in self.running if self._has_decoded(request)]
        self._pauses.count(decoding, rows)
        self.decodes_since_chunk += 1
        self.counts.add_rows(step.shape, [row.num_computed_tokens for row in rows])
        return {
            "shape": step.shape,
            "rows": [
                DecodeRow(
                    request.all_token_ids[request.num_computed_tokens - 1],
                    request.num_computed_tokens - 1,
                    self._table(request),
                )
                for request in rows
            ],
            "row_ids": [request.request_id for request in rows],
            "context": step.context_tokens,
            "named": [completed(row, (n := row.num_computed_tokens) - 1, n) for row in rows],
            "paused": len(decoding) - len(rows),
        }

    def _samples(self, scheduler_output: SchedulerOutput) -> bool:
        assert isinstance(scheduler_output, ContinuousSchedulerOutput)
        return scheduler_output.chunk is None or scheduler_output.is_last

    def make_stats(self, *args, **kwargs) -> SchedulerStats | None:
        """vLLM's statistics of a step, and ours."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None:
            pool = self.kv_cache_manager.block_pool
            # a long queue is counted once in many steps: `COUNTED` requests of it in each
            if self.current_step % (len(self.waiting) // COUNTED + 1) == 0:
                prefilling = [r for r in self.running if not self._has_decoded(r)]
                to_come = [*self.waiting, *prefilling]
                self._queued_tokens = sum(r.num_tokens - r.num_computed_tokens for r in to_come)
            self.counts.note(
                used=pool.num_gpu_blocks - 1 - pool.get_num_free_blocks(),
                cached=len(pool.cached_block_hash_to_block),
                chunk_tokens=self._queued_tokens,
                paused=sum(self._pauses.of(request) > 0 for request in self.running),
            )
            self.counts.attach(stats, self._oldest_wait_s())
        return stats

    def _has_decoded(self, request: Request) -> bool:
        return request.num_computed_tokens >= self._to_prefill[request]

    def _free_blocks_now(self) -> int:
        return self.kv_cache_manager.block_pool.get_num_free_blocks()

    def _table(self, request: Request) -> list[int]:
        return list(self.kv_cache_manager.get_block_ids(request.request_id)[0])

    def _waiting(self, read: list[Request]) -> Iterator[Waiting]:
        for request in self._read_ready(read):
            computed = self.kv_cache_manager.get_computed_blocks(request)
            blocks = computed[0].blocks[0]
            done = request.num_tokens - request.num_prompt_tokens
            yield Waiting(
                request.num_tokens,
                request.max_tokens - done,
                self._arrival_s[request],
                computed[1] // BLOCK_TOKENS,
                sum(block.ref_cnt > 0 for block in blocks),
                request,
            )

    def _running(self, request: Request) -> Running:
        to_prefill = self._to_prefill[request]
        held = len(self.kv_cache_manager.get_block_ids(request.request_id)[0])
        longest = request.num_prompt_tokens + request.max_tokens
        return Running(
            to_prefill,
            longest - to_prefill,
            request.num_computed_tokens,
            held,
            blocks_of(longest) - held,
            self._pauses.of(request),
            request,
        )
