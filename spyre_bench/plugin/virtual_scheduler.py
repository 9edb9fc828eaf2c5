"""Our schedulers on a virtual clock. All requests may be handed over at once: each is read when its
time has come, and with nothing to do the clock jumps to whoever comes or hangs up next.

Requests and clients that hang up are read when vLLM's engine reads them: both before a pass, and
who hangs up also behind it, before its tokens.
"""

from __future__ import annotations

import heapq
import math
import multiprocessing
import time
from itertools import count

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from spyre_bench.plugin.base_scheduler import POLL_S, BaseScheduler
from spyre_bench.plugin.clock import noted_clock
from spyre_bench.plugin.continuous_scheduler import ContinuousScheduler
from spyre_bench.plugin.static_scheduler import SpyreScheduler
from spyre_bench.plugin.told import Told

ENGINE_PROCESS = "EngineCore"
"""How vLLM's processes of engines are called."""


class OnVirtualClock(BaseScheduler):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if multiprocessing.current_process().name.startswith(ENGINE_PROCESS):
            raise ValueError(
                'clock "virtual" jumps in the process of its caller, and this engine has one of '
                'its own: leave "clock" out, so that passes sleep, or set '
                "VLLM_ENABLE_V1_MULTIPROCESSING=0 and use vllm.LLM"
            )
        self._time = noted_clock(self.vllm_config)
        self.clock = self.wall_clock = self._time.monotonic
        self._order = count()
        self._to_come: list[tuple[float, int, Request]] = []
        self._to_go: list[tuple[float, int, Request]] = []
        self._hung_up: list[Request] = []

    def add_request(self, request: Request) -> None:
        """Notes when it comes and goes; without a word it comes now."""
        told = Told.of(request.sampling_params)
        request.arrival_time = self.clock() if told.arrival_s is None else told.arrival_s
        place = next(self._order)
        heapq.heappush(self._to_come, (request.arrival_time, place, request))
        if told.leaves_s is not None:
            heapq.heappush(self._to_go, (told.leaves_s, place, request))

    def finish_requests(self, request_ids, finished_status) -> list[Request]:
        """As vLLM's; of those to come too."""
        some = {request_ids} if isinstance(request_ids, str) else request_ids
        some = None if some is None else set(some)
        stay, go = [], []
        for one in self._to_come:
            (go if some is None or one[2].request_id in some else stay).append(one)
        if go:
            self._to_come = stay
            heapq.heapify(stay)
            for _, _, request in go:
                request.status = finished_status
        return super().finish_requests(some, finished_status)

    def get_num_unfinished_requests(self) -> int:
        return super().get_num_unfinished_requests() + len(self._to_come)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        self._read_requests()
        self._read_aborts()
        output = super().schedule(throttle_prefills)
        self._stamp_scheduled(output)
        idle = not (output.num_scheduled_tokens or self.waiting or self.running)
        if idle and (next_s := self._next_event_s()) < math.inf:
            self._time.wait_until(next_s)
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        self._read_aborts()
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for request in self._hung_up:  # nobody else tells the front end
            last = EngineCoreOutput(
                request.request_id,
                [],
                finish_reason=request.get_finished_reason(),
                events=request.take_events(),
            )
            outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(last)
        self._hung_up.clear()
        for one in outputs.values():
            one.timestamp = self.clock()
        return outputs

    def _read_requests(self) -> None:
        while self._to_come and self._to_come[0][0] <= self.clock():
            _, _, request = heapq.heappop(self._to_come)
            super().add_request(request)
            self._stamp(request)

    def _read_aborts(self) -> None:
        """Of those that have been read; who comes and goes within a pass is read behind it."""
        unread = []
        while self._to_go and self._to_go[0][0] <= self.clock():
            one = heapq.heappop(self._to_go)
            request = one[2]
            if request.request_id in self.requests:
                name = request.request_id
                self._hung_up += super().finish_requests(name, RequestStatus.FINISHED_ABORTED)
            elif not request.is_finished():
                unread.append(one)
        for one in unread:
            heapq.heappush(self._to_go, one)

    def _next_event_s(self) -> float:
        return min(
            (events[0][0] for events in (self._to_come, self._to_go) if events), default=math.inf
        )

    def _idle_until(self, at_s: float) -> None:
        self._time.wait_until(min(at_s, self._next_event_s()))

    def _poll(self) -> None:
        time.sleep(POLL_S)  # a grammar compiles in no virtual time

    def _stamp_scheduled(self, output: SchedulerOutput) -> None:
        """vLLM has stamped the first pass of these by the system's clock."""
        came_back = output.scheduled_cached_reqs.resumed_req_ids
        for name in (*(new.req_id for new in output.scheduled_new_reqs), *came_back):
            self._stamp(self.requests[name])

    def _stamp(self, request: Request) -> None:
        if request.events:
            request.events[-1].timestamp = self.clock()


class VirtualScheduler(OnVirtualClock, SpyreScheduler):
    """Static batching."""


class VirtualContinuousScheduler(OnVirtualClock, ContinuousScheduler):
    """Continuous batching."""
