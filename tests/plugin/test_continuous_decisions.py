"""The pass log of vLLM's scheduler on a virtual clock, fed to the simulator: the same steps in the
same order at the same times, whatever comes, hangs up, hits a prefix, pauses or is preempted."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from spyre_bench.pass_log import Step
from spyre_bench.policy.continuous import Rules
from spyre_bench.shape_set import ShapeSet
from spyre_bench.validate.decisions import NEAR_S, Decisions
from spyre_bench.validate.step_decisions import step_decisions
from tests.plugin.simulated_hosts import draw_rules
from tests.plugin.test_continuous_hosts import (
    DECODE,
    LONGEST,
    PREFILL,
    STOP,
    VllmHost,
    vllm_config,
)

__all__ = ["vllm_config"]  # the fixture

SEEDS = 300
LATE_S = 0.002  # at most, from a decision to its pass, and from a pass to the next decision


@dataclass
class Asked:
    """A request of a random load."""

    arrival_s: float
    prompt: list[int]
    outputs: int
    limit: int  # its max_tokens
    gone_s: float  # its client hangs up


def draw_load(draw: random.Random) -> list[Asked]:
    """A few bursts, some of which begin alike or go on with an earlier one's answer."""
    stems = [draw.choices(range(10, 90), k=256) for _ in range(3)]
    load, now = [], 0.0
    for _ in range(draw.randint(2, 20)):
        now += draw.choice([0.0, 0.01, 0.3, 4.0]) * draw.random()
        shared = draw.choice([0, 0, 40, 64, 128, 192])
        prompt = draw.choice(stems)[:shared] + draw.choices(range(10, 90), k=draw.randint(1, 120))
        if load and draw.random() < 0.3:
            before = draw.choice(load)
            prompt = answered(before.prompt, before.outputs) + prompt[-draw.randint(1, 60) :]
        prompt = prompt[: LONGEST - 1]
        limit = min(draw.randint(1, 90) + draw.choice([0, 5, 80]), LONGEST - len(prompt))
        outputs = draw.randint(1, limit) if draw.random() < 0.5 else limit
        patience_s = draw.expovariate(1.0) if draw.random() < 0.3 else math.inf
        load.append(Asked(now, prompt, outputs, limit, now + patience_s))
    return load


def next_token(tokens: list[int]) -> int:
    """What the model says: the same to the same."""
    return 100 + (7919 * sum(tokens[-5:]) + len(tokens)) % 150


def answered(prompt: list[int], outputs: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(outputs - 1):
        tokens.append(next_token(tokens))
    return tokens


@dataclass
class Clocked:
    """The loop of vLLM's engine on a virtual clock. While a pass runs, requests and aborts come;
    aborts are read before the pass's tokens, requests after them."""

    host: VllmHost
    load: list[Asked]
    draw: random.Random
    now: float = 1e9  # a wall clock
    log: list[Step] = field(default_factory=list)

    def __post_init__(self):
        scheduler = self.host.scheduler
        scheduler.clock = scheduler.wall_clock = lambda: self.now
        self.host._token = self._token
        zero_s = self.now
        self._to_come = [(zero_s + it.arrival_s, place) for place, it in enumerate(self.load)]
        gone = ((zero_s + it.gone_s, place) for place, it in enumerate(self.load))
        self._to_go = sorted(it for it in gone if it[0] < math.inf)
        self.hung_up = 0

    def run(self) -> None:
        from spyre_bench.plugin.continuous_runner import step_of

        while self._to_come or self.host.scheduler.has_unfinished_requests():
            self._read_requests()
            self._read_aborts()
            output = self.host.scheduler.schedule()
            if not output.num_scheduled_tokens:
                coming_s = [at_s for at_s, _ in (*self._to_come[:1], *self._to_go[:1])]
                self.now = min(coming_s, default=self.now)
                continue
            start_s = self.now + LATE_S * self.draw.random()
            seconds = self.draw.choice([0.02, 0.1]) * (1 + self.draw.random())
            self.log.append(step_of(output, start_s, seconds))
            self.now = start_s + seconds
            self._read_aborts()
            self.host.answer(output)
            self.now += LATE_S * self.draw.random()

    def _read_requests(self) -> None:
        while self._to_come and self._to_come[0][0] <= self.now:
            arrival_s, place = self._to_come.pop(0)
            it = self.load[place]
            self.host.add(str(place), it.prompt, it.outputs, it.limit, arrival_s)

    def _read_aborts(self) -> None:
        read = [it for it in self._to_go if it[0] <= self.now]
        for gone_s, place in read:
            if all(place != coming for _, coming in self._to_come):
                self._to_go.remove((gone_s, place))
                self.hung_up += str(place) in self.host.scheduler.requests
                self.host.abort(str(place))

    def _token(self, name: str) -> int:
        self.host.left[name] -= 1
        request = self.host.scheduler.requests.get(name)  # None: it was aborted a moment ago
        if request is None or not self.host.left[name]:
            return STOP
        return next_token(list(request.all_token_ids))


def served(vllm_config, seed: int) -> tuple[Clocked, ShapeSet, Rules]:
    draw = random.Random(seed)
    shapes = ShapeSet.parse(PREFILL, DECODE, draw.choice([10, 14, 20, 60]))
    rules, load = draw_rules(draw), draw_load(draw)
    host = VllmHost(vllm_config, shapes, rules)
    host.scheduler.spyre_config = replace(host.scheduler.spyre_config, pass_log=Path("passes"))
    clocked = Clocked(host, load, draw)
    clocked.run()
    return clocked, shapes, rules


def decided(vllm_config, seed: int) -> tuple[Decisions, Clocked]:
    clocked, _, rules = served(vllm_config, seed)
    return step_decisions(clocked.log, rules, clocked.host.scheduler.costs), clocked


@pytest.mark.parametrize("first", range(0, SEEDS, 100))
def test_the_simulator_takes_the_steps_that_the_pass_log_says(vllm_config, first):
    hung_up = 0
    for seed in range(first, first + 100):
        found, clocked = decided(vllm_config, seed)
        assert found.same, f"seed {seed}: pass {found.first_other} of {found.batches}"
        assert found.latest_s <= LATE_S < NEAR_S, f"seed {seed}"
        hung_up += clocked.hung_up
    assert hung_up > 50


@pytest.mark.parametrize("lost", ["names of outputs", "who hung up", "a rule"])
def test_a_log_that_lacks_something_or_another_rule_is_noticed(vllm_config, lost):
    def less(step: Step) -> Step:
        if lost == "names of outputs":
            return replace(step, named=[[] for _ in step.named])
        if lost == "who hung up":
            return replace(step, gone=[one for one in step.gone if one.ended])
        return step

    noticed = 0
    for seed in range(12):
        clocked, _, rules = served(vllm_config, seed)
        if lost == "a rule":
            rules = replace(rules, decode_between=rules.decode_between + 1)
        log, costs = list(map(less, clocked.log)), clocked.host.scheduler.costs
        noticed += not step_decisions(log, rules, costs).same
    assert noticed >= 2
