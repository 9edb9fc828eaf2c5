"""A simulated device under random loads with clients that hang up: vLLM's engine on its virtual
clock, and a live server whose passes sleep, decide as the simulator does, pass by pass."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openai
import pytest

from spyre_bench.cost.bucket_cost import price
from spyre_bench.cost.source import load_cost
from spyre_bench.pass_log import read_passes, read_step_rows
from spyre_bench.plugin.config import SpyreConfig
from spyre_bench.policy.static import Policy
from spyre_bench.shape_set import ShapeSet
from spyre_bench.shapes import BucketSet
from spyre_bench.simulate import continuous, static
from spyre_bench.validate.decisions import decisions
from spyre_bench.validate.step_decisions import logged_decisions, step_decisions
from tests.plugin.conftest import platform_as_before
from tests.plugin.servers import Server
from tests.plugin.simulated_hosts import (
    BUCKETS,
    DECODE,
    LONGEST,
    PREFILL,
    Asked,
    VirtualHost,
    continuous_settings,
    draw_load,
    draw_rules,
    static_settings,
    workload_of,
    write_cost_table,
)
from tests.plugin.test_continuous_hosts import passes_of

SEEDS, IN_GATE = 1000, 50
PARTS = [
    pytest.param(range(first, last), marks=[pytest.mark.hosts] if first else [])
    for first, last in ((0, IN_GATE), (IN_GATE, SEEDS))
]
BLOCKS = (10, 14, 20, 60)
COMPILED = BucketSet.parse(" ".join(BUCKETS))


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    return write_cost_table(tmp_path_factory.mktemp("made-up") / "cost.csv")


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("passes") / "passes.jsonl"


@pytest.fixture(scope="module")
def continuous_hosts(without_weights, table, log) -> Iterator[dict[int, VirtualHost]]:
    with platform_as_before():
        hosts = {
            blocks: VirtualHost(
                without_weights, continuous_settings(table, blocks, log), max_model_len=LONGEST
            )
            for blocks in BLOCKS
        }
        yield hosts
        for host in hosts.values():
            host.close()


@pytest.fixture(scope="module")
def static_host(without_weights, table, log) -> Iterator[VirtualHost]:
    with platform_as_before():
        host = VirtualHost(without_weights, static_settings(table, log))
        yield host
        host.close()


@dataclass
class Seen:
    """What random loads had in them."""

    passes: int = 0
    hung_up: int = 0
    hit_tokens: int = 0

    def of(self, host: VirtualHost, passes: int) -> None:
        self.passes += passes
        self.hung_up += sum(reason == "abort" for reason in host.finished.values())


@pytest.mark.parametrize("seeds", PARTS)
def test_continuous_batching_takes_the_simulators_steps(continuous_hosts, table, log, seeds):
    """Foretold from the load and the costs alone, and told again from the pass log."""
    seen = Seen()
    for seed in seeds:
        draw = random.Random(seed)
        rules, load = draw_rules(draw), draw_load(draw, 255, 90)
        host = continuous_hosts[draw.choice(BLOCKS)]
        host.begin_again(log, rules=rules)
        said = host.serve(load)
        steps = read_step_rows(log)
        shapes = ShapeSet.parse(PREFILL, DECODE, host.scheduler.spyre_config.blocks)
        run = continuous.simulate(
            workload_of(load),
            load_cost(table).of_shapes(shapes),
            rules,
            prefixes=[it.prefixes for it in load],
            leaves_s=np.array([it.leaves_s for it in load]),
        )
        taken = [(one.shape.name, sum(one.context_tokens), names_of(one)) for one in steps]
        assert passes_of(run) == taken, f"seed {seed}, foretold"
        ends_s = run.passes.start_s[-1] + run.passes.seconds[-1] * run.passes.count[-1]
        assert steps[-1].start_s + steps[-1].seconds == pytest.approx(ends_s), f"seed {seed}"
        again = step_decisions(steps, rules, host.scheduler.costs)
        assert again.agree, f"seed {seed}, told again: {again}"
        for place, it in enumerate(load):
            assert host.finished[place] == "abort" or len(said[place]) == it.outputs
        seen.of(host, len(steps))
        seen.hit_tokens += int(run.hit_tokens.sum())
    assert seen.passes > 100 * len(seeds)
    assert seen.hung_up > len(seeds)
    assert seen.hit_tokens > 64 * len(seeds)


def names_of(step) -> list[str]:
    return [name.rsplit("-", 1)[0] for name in step.requests]


@pytest.mark.parametrize("seeds", PARTS)
@pytest.mark.parametrize("policy", ["best_fit", "skip", "fcfs", "length_aware"])
def test_static_batching_forms_the_simulators_batches(static_host, table, log, policy, seeds):
    seen = Seen()
    for seed in seeds[:: 1 if len(seeds) > IN_GATE else 3]:
        draw = random.Random(seed)
        gather_s, max_wait_s, max_age_s = (draw.choice([0, 0, 0.02, 0.3]) for _ in range(3))
        formed = Policy(policy, max_wait_s, gather_s, max_age_s)
        load = draw_load(draw, 255, 64)
        load = [it for it in load if any(b.fits(len(it.prompt), it.limit) for b in COMPILED)]
        static_host.begin_again(
            log, policy=policy, gather_s=gather_s, max_wait_s=max_wait_s, max_age_s=max_age_s
        )
        said = static_host.serve(load)
        if not any(said.values()):  # everybody hung up
            continue
        passes = read_passes(log, waits=True)
        costs = price(COMPILED, load_cost(table))
        again = decisions(passes, formed, costs)
        assert again.agree, f"seed {seed}, told again: {again}"
        run = foretold(load, said, static_host.finished, costs, formed)
        first = run.passes.first_of_batch
        batches = passes.groupby("batch").first()
        assert [str(run.costs[shape].bucket) for shape in run.passes.shape[first]] == list(
            batches["bucket"]
        ), f"seed {seed}"
        assert [run.passes.of_row(row)[0].size for row in first] == [
            len(prompts) for prompts in batches["prompt_tokens"]
        ], f"seed {seed}"
        seen.of(static_host, len(passes))
    assert seen.hung_up > len(seeds) / 3


def foretold(load: list[Asked], said, finished, costs, policy: Policy):
    """With outputs as they were in the end: the pass that ran when a client hung up still computed
    a token of it."""
    outputs, leaves_s = [], []
    for place, it in enumerate(load):
        ran = bool(said[place]) or finished[place] != "abort"
        outputs.append(len(said[place]) + (finished[place] == "abort"))
        leaves_s.append(math.inf if ran else it.leaves_s)
    return static.simulate(workload_of(load, outputs), costs, policy, leaves_s=np.array(leaves_s))


def test_another_cost_than_the_devices_foretells_other_passes(continuous_hosts, table, log):
    """The comparison would notice a device that took the wrong seconds."""
    noticed = 0
    for seed in range(10):
        draw = random.Random(seed)
        rules, load = draw_rules(draw), draw_load(draw, 255, 90)
        host = continuous_hosts[60]
        host.begin_again(log, rules=rules)
        host.serve(load)
        costs = load_cost(table).of_shapes(ShapeSet.parse(PREFILL, DECODE, 60))
        run = continuous.simulate(
            workload_of(load),
            costs.scaled([1.1] * len(costs.shapes)),
            rules,
            prefixes=[it.prefixes for it in load],
            leaves_s=np.array([it.leaves_s for it in load]),
        )
        taken = [(s.shape.name, sum(s.context_tokens), names_of(s)) for s in read_step_rows(log)]
        noticed += passes_of(run) != taken
    assert noticed >= 3


# --- the third host -------------------------------------------------------------------------------

LIVE = [
    pytest.param(10, marks=pytest.mark.slow),
    pytest.param(1000, marks=pytest.mark.hosts),
]


@pytest.mark.parametrize("loads", LIVE)
def test_a_live_server_of_continuous_batching_takes_the_simulators_steps(
    without_weights, table, log, tmp_path, loads
):
    spyre = continuous_settings(table, 20, log)
    server = Server(without_weights, spyre, tmp_path / "log")
    try:
        server.wait_until_ready()
        hung_up = asyncio.run(play(server, loads, 255, 90))
    finally:
        server.clean_up()
    found = logged_decisions(log)
    assert found.same, str(found)
    assert found.batches > 50 * loads
    assert hung_up > loads / 5


@pytest.mark.parametrize("loads", LIVE)
def test_a_live_server_of_static_batching_forms_the_simulators_batches(
    without_weights, table, log, tmp_path, loads
):
    server = Server(without_weights, static_settings(table, log), tmp_path / "log")
    try:
        server.wait_until_ready()
        hung_up = asyncio.run(play(server, loads, 64, 32))
    finally:
        server.clean_up()
    costs = price(COMPILED, load_cost(table))
    found = decisions(read_passes(log, waits=True), SpyreConfig(buckets=COMPILED).formation, costs)
    assert found.same, str(found)
    assert found.batches > loads
    assert hung_up > loads / 5


async def play(server: Server, loads: int, longest_prompt: int, longest_output: int) -> int:
    """Random loads, one after the other; how many clients hung up."""
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    hung_up = 0
    for seed in range(loads):
        load = draw_load(random.Random(seed), longest_prompt, longest_output)
        hung_up += sum(await asyncio.gather(*(send(client, server.model, it) for it in load)))
    await client.close()
    return hung_up


async def send(client: openai.AsyncOpenAI, model: str, it: Asked) -> bool:
    """Sends a request when its time has come; whether its client hung up."""
    await asyncio.sleep(it.arrival_s)
    told = {"spyre_output_tokens": it.outputs}

    async def answered() -> None:
        stream = await client.completions.create(
            model=model,
            prompt=it.prompt,
            max_tokens=it.limit,
            stream=True,
            extra_body={"vllm_xargs": told},
        )
        async with stream:
            async for _ in stream:
                pass

    patience_s = None if math.isinf(it.leaves_s) else it.leaves_s - it.arrival_s
    try:
        await asyncio.wait_for(answered(), patience_s)
    except TimeoutError:
        return True
    return False
