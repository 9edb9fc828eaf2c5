"""The simulator and vLLM's scheduler, given the same arrivals, form the same batches.

The scheduler is the real one around a model that only says how long its passes take; its clock is
virtual. All times are multiples of 1/1024 s, so that sums of them are exact and "the same" means
equal, not near.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
import pandas as pd
import pytest

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.metrics import waste
from spyre_bench.plugin import base_scheduler as module
from spyre_bench.policy.static import Policy
from spyre_bench.simulate.static import simulate
from spyre_bench.validate.decisions import decisions
from spyre_bench.workload.workload import Workload
from tests.plugin.test_static_scheduler import LARGE, SMALL, Host, abort, replaced, vllm_config

__all__ = ["vllm_config"]  # the fixture

TICK_S = 1 / 1024
COSTS = (
    BucketCost(LARGE, 96 * TICK_S, 7 * TICK_S),
    BucketCost(SMALL, 40 * TICK_S, 5 * TICK_S),
)
TOKEN, STOP = 7, 8


@dataclass
class Replay:
    """The engine's loop on a virtual clock: requests are handed over between passes, as vLLM does,
    with the time at which they came."""

    host: Host
    workload: Workload
    abort_s: dict[int, float]  # by request
    dawdles_s: Callable[[], float] = lambda: 0.0  # what the loop takes before it reads what came
    now: float = 0.0
    batches: list = field(default_factory=list)  # (start_s, bucket, requests)
    generated: dict[int, int] = field(default_factory=dict)  # tokens of each request that ran
    log: list = field(default_factory=list)  # passes as `read_passes` has them

    def __post_init__(self):
        scheduler = self.host.scheduler
        scheduler.clock = scheduler.wall_clock = lambda: self.now
        scheduler.sleep = self._sleep
        self._to_come = list(range(len(self.workload)))
        self._to_abort = sorted(self.abort_s, key=self.abort_s.get)

    def run(self) -> None:
        while self._to_come or self.host.scheduler.has_unfinished_requests():
            self.now += self.dawdles_s()
            self._hand_over()
            if not self._pass() and not self.host.scheduler.has_unfinished_requests():
                self.now = self._next_event_s()

    def _hand_over(self) -> None:
        arrival_s = self.workload.arrival_s
        while self._to_come and arrival_s[self._to_come[0]] <= self.now:
            self._add(self._to_come.pop(0))
        while self._to_abort and self.abort_s[self._to_abort[0]] <= self.now:
            abort(self.host, str(self._to_abort.pop(0)))

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
        seconds = cost.prefill_s if output.bucket else cost.decode_s
        self._log(output, names, seconds)
        self.now += seconds
        result = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: row for row, name in enumerate(names)},
            sampled_token_ids=[[self._token(int(name))] for name in names],
        )
        self.host.scheduler.update_from_output(output, result)
        return True

    def _log(self, output, names: list[str], seconds: float) -> None:
        some, (_, bucket, members) = self.workload, self.batches[-1]
        noted = [output.noted[name] for name in names] if output.bucket else []
        self.log.append(
            {
                "kind": "prefill" if output.bucket else "decode",
                "batch": len(self.batches),
                "bucket": str(bucket),
                "start_s": self.now,
                "seconds": seconds,
                "prompt_tokens": some.prompt_tokens[members].tolist(),
                "running": len(names),
                "place": [one.place for one in noted],
                "arrival_s": [one.arrival_s for one in noted],
                "seen_s": [one.seen_s for one in noted],
                "max_tokens": [one.max_tokens for one in noted],
                "looked_s": output.looked_s if output.bucket else [],
                "left": output.left,
            }
        )

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
    """The workload with outputs as they were in the end, and when each request left the queue
    without having run."""
    some, count = replay.workload, len(replay.workload)
    output_tokens = [replay.generated.get(index, 1) for index in range(count)]
    leaves_s = [
        math.inf if index in replay.generated else replay.abort_s.get(index, math.inf)
        for index in range(count)
    ]
    columns = (some.arrival_s, some.prompt_tokens, np.array(output_tokens), some.max_tokens)
    return Workload("seen", *columns), np.array(leaves_s)


def counted_tokens(host: Host) -> dict[str, int]:
    """What the scheduler counted for the metrics, over all buckets."""
    tokens = dict.fromkeys(waste.LEDGER, 0)
    for key, number in host.scheduler.counts.totals.items():
        if key.startswith("tokens|"):
            tokens[key.split("|")[2]] += number
    return tokens


def host_of(vllm_config, policy: Policy) -> Host:
    host = Host(vllm_config)
    host.scheduler.costs = COSTS
    host.scheduler.spyre_config = replaced(
        host.scheduler.spyre_config,
        policy=policy.name,
        gather_s=policy.gather_s,
        max_wait_s=policy.max_wait_s,
        max_age_s=policy.max_age_s,
    )
    return host


@pytest.mark.parametrize("name", ["best_fit", "skip", "fcfs", "length_aware"])
def test_the_same_arrivals_give_the_same_batches(vllm_config, monkeypatch, name):
    monkeypatch.setattr(module, "POLL_S", math.inf)  # a hold ends at its very end
    left, cut = 0, 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        workload, policy = random_workload(rng), random_policy(rng, name)
        host = host_of(vllm_config, policy)
        replay = Replay(host, workload, random_aborts(rng, workload))
        replay.run()
        if not replay.batches:  # everybody left the queue
            continue
        seen, leaves_s = as_it_was(replay)
        trace = simulate(seen, COSTS, policy, leaves_s=leaves_s)
        passes = trace.passes
        simulated = [
            (passes.start_s[row], COSTS[passes.shape[row]].bucket, set(passes.of_row(row)[0]))
            for row in passes.first_of_batch
        ]
        real = [(start_s, bucket, set(members)) for start_s, bucket, members in replay.batches]
        assert real == simulated, f"seed {seed}"
        assert counted_tokens(host) == asdict(waste.ledger(trace)), f"seed {seed}"
        from_its_log = decisions(pd.DataFrame(replay.log), policy, COSTS)
        assert from_its_log.same, f"seed {seed}"
        assert from_its_log.latest_s < 1e-4, f"seed {seed}"
        ran = np.array(sorted(replay.generated))
        left += len(workload) - len(ran)
        cut += int((seen.output_tokens < workload.output_tokens)[ran].sum())
    assert left > 20, "aborted while they waited"
    assert cut > 20, "aborted while they ran"


@pytest.mark.parametrize("name", ["best_fit", "skip", "fcfs"])
def test_a_loop_that_dawdles_decides_as_its_log_says(vllm_config, name):
    """Somebody comes or hangs up while the loop of a busy machine does not look: between two
    batches, or between the end of a hold and the step that notices it."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        workload, policy = random_workload(rng), random_policy(rng, name)
        seldom = rng.choice([0.01, 0.1, 0.5])

        def dawdles_s(rng=rng, seldom=seldom) -> float:
            return int(rng.integers(1, 100)) * TICK_S if rng.random() < seldom else TICK_S / 8

        replay = Replay(
            host_of(vllm_config, policy), workload, random_aborts(rng, workload), dawdles_s
        )
        replay.run()
        if replay.batches:
            found = decisions(pd.DataFrame(replay.log), policy, COSTS)
            assert found.same, f"seed {seed}: {found}"
