"""The simulator and vLLM's scheduler, given the same arrivals, form the same batches.

The scheduler is the real one around a model that only says how long its passes take; its clock is
virtual. All times are multiples of 1/1024 s, so that sums of them are exact and "the same" means
equal, not near.
"""

import math
from dataclasses import asdict, dataclass, field

import numpy as np
import pytest

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.metrics import waste
from spyre_bench.plugin import static_scheduler as module
from spyre_bench.policy.static import Policy
from spyre_bench.simulate.static import simulate
from spyre_bench.workload.workload import Workload
from tests.plugin.test_static_scheduler import LARGE, SMALL, Host, abort, replaced, vllm_config

__all__ = ["vllm_config"]  # the fixture

TICK_S = 1 / 1024
COSTS = (
    BucketCost(LARGE, 96 * TICK_S, 7 * TICK_S),
    BucketCost(SMALL, 40 * TICK_S, 5 * TICK_S),
)
TOKEN, STOP = 7, 8
PASSES_OVER = "skip"
"""The policy under which somebody who waits and never runs changes nothing for the others, so that
the simulator, which knows no aborts, can be told of a queue without them."""


@dataclass
class Replay:
    """The engine's loop on a virtual clock: requests are handed over between passes, as vLLM does,
    with the time at which they came."""

    host: Host
    workload: Workload
    abort_s: dict[int, float]  # by request
    abort_waiting: bool  # also those that have not run yet
    now: float = 0.0
    batches: list = field(default_factory=list)  # (start_s, bucket, requests)
    generated: dict[int, int] = field(default_factory=dict)  # tokens of each request that ran

    def __post_init__(self):
        scheduler = self.host.scheduler
        scheduler.clock = scheduler.wall_clock = lambda: self.now
        scheduler.sleep = self._sleep
        self._to_come = list(range(len(self.workload)))
        self._to_abort = sorted(self.abort_s, key=self.abort_s.get)

    def run(self) -> None:
        while self._to_come or self.host.scheduler.has_unfinished_requests():
            self._hand_over()
            if not self._pass() and not self.host.scheduler.has_unfinished_requests():
                self.now = self._next_event_s()

    def _hand_over(self) -> None:
        arrival_s = self.workload.arrival_s
        while self._to_come and arrival_s[self._to_come[0]] <= self.now:
            self._add(self._to_come.pop(0))
        while self._to_abort and self.abort_s[self._to_abort[0]] <= self.now:
            index = self._to_abort.pop(0)
            if self.abort_waiting or index in self.generated:
                abort(self.host, str(index))

    def _add(self, index: int) -> None:
        from vllm import SamplingParams
        from vllm.v1.request import Request

        some = self.workload
        parameters = SamplingParams(
            max_tokens=int(some.max_tokens[index]), stop_token_ids=[STOP], temperature=0
        )
        prompt = [5] * int(some.prompt_tokens[index])
        arrival_s = float(some.arrival_s[index])
        self.host.scheduler.add_request(
            Request(str(index), prompt, parameters, None, arrival_time=arrival_s)
        )

    def _pass(self) -> bool:
        """One step of the engine; whether a model ran."""
        from vllm.v1.outputs import ModelRunnerOutput

        output = self.host.scheduler.schedule()
        names = list(output.num_scheduled_tokens)
        if not names:
            return False
        if output.bucket:
            self.batches.append((self.now, output.bucket, [int(name) for name in names]))
        cost = next(c for c in COSTS if c.bucket == self.batches[-1][1])
        self.now += cost.prefill_s if output.bucket else cost.decode_s
        result = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: row for row, name in enumerate(names)},
            sampled_token_ids=[[self._token(int(name))] for name in names],
        )
        self.host.scheduler.update_from_output(output, result)
        return True

    def _token(self, index: int) -> int:
        self.generated[index] = self.generated.get(index, 0) + 1
        return STOP if self.generated[index] == self.workload.output_tokens[index] else TOKEN

    def _sleep(self, seconds: float) -> None:
        self.now = min(self.now + seconds, self._next_event_s())

    def _next_event_s(self) -> float:
        arrivals = [self.workload.arrival_s[self._to_come[0]]] if self._to_come else []
        aborts = [self.abort_s[self._to_abort[0]]] if self._to_abort else []
        return min([*map(float, arrivals), *aborts], default=math.inf)


def random_workload(rng: np.random.Generator) -> Workload:
    """A few bursts of short and long requests; at some seeds everything at once."""
    count = int(rng.integers(1, 30))
    gaps = rng.geometric(rng.choice([0.01, 0.1, 1]), count) - 1
    long = rng.random(count) < rng.random()
    max_tokens = np.where(long, rng.integers(1, 65, count), rng.integers(1, 33, count))
    return Workload(
        "random",
        np.cumsum(gaps) * TICK_S,
        np.where(long, rng.integers(65, 257, count), rng.integers(1, 65, count)),
        rng.integers(1, max_tokens + 1),
        max_tokens,
    )


def random_policy(rng: np.random.Generator, name: str) -> Policy:
    gather_s, max_wait_s, max_age_s = (int(rng.choice([0, 0, 20, 300])) * TICK_S for _ in range(3))
    return Policy(name, max_wait_s, gather_s, max_age_s)


def random_aborts(rng: np.random.Generator, workload: Workload) -> dict[int, float]:
    gone = np.flatnonzero(rng.random(len(workload)) < rng.choice([0, 0.3]))
    later = rng.integers(0, 800, len(gone)) * TICK_S
    return {int(i): float(workload.arrival_s[i] + s) for i, s in zip(gone, later, strict=True)}


def as_it_was(replay: Replay) -> tuple[Workload, np.ndarray]:
    """The workload as the engine saw it in the end: who was aborted in the queue never came, whose
    answer was cut short had a short answer. And the numbers of the requests that are left."""
    ran = np.array(sorted(replay.generated))
    some = replay.workload.take(ran)
    output_tokens = np.array([replay.generated[index] for index in ran])
    return Workload("seen", some.arrival_s, some.prompt_tokens, output_tokens, some.max_tokens), ran


def counted_tokens(host: Host) -> dict[str, int]:
    """What the scheduler counted for the metrics, over all buckets."""
    tokens = dict.fromkeys(waste.LEDGER, 0)
    for key, number in host.scheduler.counts.totals.items():
        if key.startswith("tokens|"):
            tokens[key.split("|")[2]] += number
    return tokens


@pytest.mark.parametrize("name", ["best_fit", "skip", "fcfs", "length_aware"])
def test_the_same_arrivals_give_the_same_batches(vllm_config, monkeypatch, name):
    monkeypatch.setattr(module, "POLL_S", math.inf)  # a hold ends at its very end
    left, cut = 0, 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        workload, policy = random_workload(rng), random_policy(rng, name)
        host = Host(vllm_config)
        host.scheduler.costs = COSTS
        host.scheduler.spyre_config = replaced(
            host.scheduler.spyre_config,
            policy=name,
            gather_s=policy.gather_s,
            max_wait_s=policy.max_wait_s,
            max_age_s=policy.max_age_s,
        )
        replay = Replay(host, workload, random_aborts(rng, workload), name == PASSES_OVER)
        replay.run()
        if not replay.batches:  # everybody left the queue
            continue
        seen, ran = as_it_was(replay)
        trace = simulate(seen, COSTS, policy)
        passes = trace.passes
        simulated = [
            (passes.start_s[row], COSTS[passes.shape[row]].bucket, set(ran[passes.of_row(row)[0]]))
            for row in passes.first_of_batch
        ]
        real = [(start_s, bucket, set(members)) for start_s, bucket, members in replay.batches]
        assert real == simulated, f"seed {seed}"
        assert counted_tokens(host) == asdict(waste.ledger(trace)), f"seed {seed}"
        left += len(workload) - len(ran)
        cut += int((seen.output_tokens < workload.output_tokens[ran]).sum())
    assert left > 20 or name != PASSES_OVER, "aborted while they waited"
    assert cut > 20, "aborted while they ran"
