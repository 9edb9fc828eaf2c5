"""vLLM's scheduler under continuous batching, without a model: what its host may ask of it between
two passes."""

from __future__ import annotations

import pytest

from spyre_bench.policy.continuous import Rules
from spyre_bench.shape_set import ShapeSet
from tests.plugin.conftest import platform_as_before
from tests.plugin.test_continuous_hosts import DECODE, LONGEST, PREFILL, VllmHost

PREEMPT = Rules(admission="preempt")


@pytest.fixture(scope="module")
def vllm_config(tiny_llama):
    from vllm.engine.arg_utils import EngineArgs

    spyre = {"batching": "continuous", "prefill_shapes": PREFILL, "decode_shapes": DECODE}
    with platform_as_before():
        yield EngineArgs(
            model=str(tiny_llama),
            max_model_len=LONGEST,
            scheduling_policy="fcfs",
            additional_config={"spyre": spyre},
        ).create_engine_config()


@pytest.fixture
def make(vllm_config):
    """make(blocks, rules): a host; `add` takes a prompt length and a number of outputs."""

    def host(blocks: int = 40, rules: Rules | None = None) -> Served:
        shapes = ShapeSet.parse(PREFILL, DECODE, blocks)
        return Served(vllm_config, shapes, rules or Rules())

    return host


class Served(VllmHost):
    def __init__(self, *args):
        from vllm.v1.metrics.stats import PrefixCacheStats

        super().__init__(*args)
        manager = self.scheduler.kv_cache_manager
        self.scheduler.log_stats = manager.log_stats = True
        manager.prefix_cache_stats = PrefixCacheStats()

    def ask(self, name: str, prompt_tokens: int, outputs: int) -> None:
        self.add(name, [int(name) + 10] * prompt_tokens, outputs, outputs)

    def run(self) -> list[str]:
        """Who was in each pass; the chunk of a request in brackets."""
        passes = []
        while self.scheduler.has_unfinished_requests():
            if seen := self.step():
                _, _, _, rows = seen
                names = "".join(name for name, *_ in rows)
                passes.append(f"[{names}]" if hasattr(seen[0], "chunk_length") else names)
            assert self.steps < 1000
        return passes


def pause(host: Served, state: str) -> None:
    from vllm.v1.core.sched.interface import PauseState

    host.scheduler.set_pause_state(PauseState[state])


def test_a_paused_engine_admits_nobody_and_lets_its_rows_end(make):
    host = make()
    host.ask("1", 130, 3)
    host.ask("2", 10, 3)
    host.step()
    pause(host, "PAUSED_NEW")
    assert host.run() == ["[1]", "1", "1"]
    assert host.step() is None
    pause(host, "UNPAUSED")
    assert host.run() == ["[2]", "2", "2"]


def test_a_stopped_engine_runs_nothing_until_it_goes_on(make):
    host = make()
    host.ask("1", 10, 4)
    host.step()
    host.step()
    pause(host, "PAUSED_ALL")
    assert [host.step() for _ in range(3)] == [None] * 3
    pause(host, "UNPAUSED")
    assert host.run() == ["1", "1"]


def test_a_reset_of_the_prefix_cache_computes_every_running_request_again(make):
    host = make()
    free = host.free_blocks
    host.ask("1", 200, 6)
    host.ask("2", 10, 6)
    for _ in range(6):
        host.step()
    assert len(host.scheduler.running) == 2
    assert host.scheduler.reset_prefix_cache(reset_running_requests=True)
    assert host.free_blocks == free
    left = dict(host.left)
    passes = host.run()
    assert [one for one in passes if "[" in one] == ["[1]", "[1]", "[2]"]
    assert sum(one.count("1") for one in passes if "[" not in one) == left["1"] - 1
    assert host.free_blocks == free


@pytest.mark.parametrize("steps", range(7))
def test_an_abort_after_any_pass_gives_every_block_back(make, steps):
    host = make(blocks=10, rules=PREEMPT)
    free = host.free_blocks
    for name in "1234":
        host.ask(name, 150, 60)
    for _ in range(steps * 9):
        host.step()
    for name in "4213":
        host.abort(name)
    assert host.free_blocks == free
    host.ask("5", 100, 2)
    assert host.run() == ["[5]", "5"]
    assert host.free_blocks == free


def test_the_counts_are_those_of_the_blocks(make):
    host = make()
    host.ask("1", 200, 3)
    host.step()
    totals = stats(host)
    assert (totals["blocks_used"], totals["blocks_cached"]) == (2, 2)
    assert totals["chunk_queue_tokens"] == 72
    host.ask("2", 50, 3)
    assert stats(host)["chunk_queue_tokens"] == 122
    host.run()
    totals = stats(host)
    assert (totals["blocks_used"], totals["blocks_cached"]) == (0, 3)
    assert totals["chunk_queue_tokens"] == 0
    assert sum_of(totals, "passes|prefill 128,512") == 2
    assert sum_of(totals, "passes|prefill 64,256") == 1
    assert sum_of(totals, "passes|decode") == 3  # one of them of both
    assert sum_of(totals, "step_rows") == 4


def test_the_slots_of_every_pass_are_useful_or_a_waste_by_name(make):
    host = make()
    for name, tokens in (("1", 100), ("2", 30), ("3", 200)):
        host.ask(name, tokens, 4)
    host.run()
    totals = stats(host)
    assert sum_of(totals, "slots|prefill", "useful") == 330
    assert sum_of(totals, "slots|decode", "useful") == 9
    ran = [key.partition("|")[2] for key in totals if key.startswith("passes")]
    assert len(ran) >= 3
    for shape in ran:
        length, context = map(int, shape.split()[1].split(","))
        passes = totals[f"passes|{shape}"]
        assert sum_of(totals, f"slots|{shape}") == length * passes
        if shape.startswith("decode"):
            assert sum_of(totals, f"context_slots|{shape}") == length * context * passes


def sum_of(totals: dict[str, int], start: str, end: str = "") -> int:
    return sum(n for key, n in totals.items() if key.startswith(start) and key.endswith(end))


def stats(host: Served) -> dict[str, int]:
    return host.scheduler.make_stats().waiting_lora_adapters
