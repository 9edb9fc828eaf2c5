"""vLLM's scheduler with one rule changed: nothing is prefilled until every member of the running
batch has finished, and then `policy.static.next_batch` says who runs next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import NamedTuple
from weakref import WeakKeyDictionary

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import create_request_queue
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.request import Request

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.plugin.base_scheduler import BaseScheduler
from spyre_bench.plugin.config import noted_warmup
from spyre_bench.plugin.engine_counts import Counts
from spyre_bench.policy.ledger import WasteLedger
from spyre_bench.policy.static import Batch, Hold, Step, next_batch
from spyre_bench.shapes import Bucket


class Noted(NamedTuple):
    """What the pass log keeps of a request's wait; times are of the system's clock."""

    place: int  # among all requests that came
    arrival_s: float  # at the front end
    seen_s: float  # of the first decision that it waited for
    max_tokens: int


@dataclass
class SpyreSchedulerOutput(SchedulerOutput):
    """What vLLM's scheduler tells the workers, the bucket of a batch that starts here, what the
    pass log keeps of its members, when it was decided and who left the queue since the last one,
    and the last token of each request that goes on: of several ranks only the first samples."""

    bucket: Bucket | None = None
    noted: Mapping[str, Noted] = field(default_factory=dict)
    looked_s: list[float] = field(default_factory=list)
    left: list[list[float]] = field(default_factory=list)
    last_tokens: Mapping[str, int] = field(default_factory=dict)


class WaitingRequest(NamedTuple):
    """A request as `next_batch` sees it."""

    prompt_tokens: int
    max_tokens: int
    arrival_s: float
    request: Request


@dataclass
class RunningBatch:
    """What the waste ledger needs to know of a batch at its end."""

    bucket: Bucket
    members: list[Request]
    passes: int = 0


class SpyreScheduler(BaseScheduler):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        warmup = noted_warmup(self.vllm_config)
        self.costs = tuple(
            BucketCost(row.bucket, row.prefill_s, row.decode_s, row.compile_s) for row in warmup
        )
        self.counts = Counts(warmup)
        self._batch: RunningBatch | None = None
        self._seen: WeakKeyDictionary[Request, Noted] = WeakKeyDictionary()
        self._came = 0
        self._unseen: list[Request] = []  # no decision since they came
        self._left: list[list[float]] = []
        self._looked_s: list[float] = []  # the beginning of the last decision, if there was one

    def add_request(self, request: Request) -> None:
        self._unseen.append(request)
        super().add_request(request)

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        """As vLLM's, with no prefixes to forget. Raises ValueError where a running batch would have
        to be prefilled again: its output so far may be longer than its bucket's prompts."""
        if reset_running_requests and self.running:
            raise ValueError(
                f"the spyre backend cannot reset the {len(self.running)} running requests, a batch "
                f"is prefilled once: wait for their end or abort them first; a pause keeps them "
                f"with clear_cache=false"
            )
        return super().reset_prefix_cache(reset_running_requests, reset_connector)

    def finish_requests(self, request_ids, finished_status) -> list[Request]:
        """As vLLM's; notes who leaves the queue."""
        waiting = set(self.waiting)
        finished = super().finish_requests(request_ids, finished_status)
        now = self.wall_clock()
        for request in waiting.intersection(finished):
            if request in self._seen and self._looked_s:  # otherwise no decision was without it
                place, arrival_s, seen_s, max_tokens = self._seen[request]
                tokens = (request.num_prompt_tokens, max_tokens)
                self._left.append([place, arrival_s, seen_s, *self._looked_s, now, *tokens])
        return finished

    def schedule(self, throttle_prefills: bool = False) -> SpyreSchedulerOutput:
        """The next pass: a decode of the running batch, or the prefill of the next one."""
        now_s, wall_s = self._now()
        self._see(wall_s)
        step, looked_s = None, []
        if not self.running and self._pause_state == PauseState.UNPAUSED:
            step = self._decide(now_s)
            looked_s, self._looked_s = [*self._looked_s, self.wall_clock()], [wall_s]
        batch = step if isinstance(step, Batch) else None
        # The one place that touches vLLM's queue: it sees the admitted requests only.
        waiting, self.waiting = self.waiting, create_request_queue(self.policy)
        for member in batch.members if batch else ():
            self.waiting.add_request(member.request)
        output = super().schedule(throttle_prefills)
        waiting.prepend_requests(reversed(list(self.waiting)))
        self.waiting = waiting
        if batch:
            self._batch = RunningBatch(batch.bucket, list(self.running))
        if output.num_scheduled_tokens:
            self._batch.passes += 1
        elif isinstance(step, Hold):
            self._idle_until(step.until_s)
        elif self.waiting:  # a grammar compiles
            self._poll()
        values = {one.name: getattr(output, one.name) for one in fields(SchedulerOutput)}
        if batch:
            members = [member.request for member in batch.members]
            noted = {request.request_id: self._seen[request] for request in members}
            left, self._left = self._left, []
            return SpyreSchedulerOutput(
                **values, bucket=batch.bucket, noted=noted, looked_s=looked_s, left=left
            )
        last_tokens = {request.request_id: request.output_token_ids[-1] for request in self.running}
        return SpyreSchedulerOutput(**values, last_tokens=last_tokens)

    def make_stats(self, *args, **kwargs) -> SchedulerStats | None:
        """vLLM's statistics of a step, and ours."""
        self._close_batch()
        stats = super().make_stats(*args, **kwargs)
        if stats is not None:
            self.counts.attach(stats, self._oldest_wait_s())
        return stats

    def _see(self, wall_s: float) -> None:
        """All requests that came since the last step are seen by this one at once."""
        for request in self._unseen:
            self._came += 1
            noted = Noted(self._came, request.arrival_time, wall_s, request.max_tokens)
            self._seen[request] = noted
        self._unseen.clear()

    def _decide(self, now_s: float) -> Step[WaitingRequest] | None:
        """Who runs next; the members of a batch are taken out of the queue, the others stay in
        order."""
        self._close_batch()
        read: list[Request] = []
        step = next_batch(self._members(read), self.costs, self.spyre_config.formation, now_s)
        members = step.members if isinstance(step, Batch) else ()
        taken = {member.request for member in members}
        self.waiting.prepend_requests(r for r in reversed(read) if r not in taken)
        return step

    def _close_batch(self) -> None:
        """Counts the batch whose last member has ended."""
        if self.running or self._batch is None:
            return
        batch, self._batch = self._batch, None
        prompts = [member.num_prompt_tokens for member in batch.members]
        outputs = [member.num_output_tokens for member in batch.members]
        ledger = WasteLedger.of_batch(batch.bucket, prompts, outputs, batch.passes)
        self.counts.add_batch(batch.bucket, len(batch.members), ledger)

    def _members(self, read: list[Request]) -> Iterator[WaitingRequest]:
        for request in self._read_ready(read):
            yield WaitingRequest(
                request.num_prompt_tokens, request.max_tokens, self._arrival_s[request], request
            )
