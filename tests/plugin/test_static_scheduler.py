"""vLLM's scheduler with our rule, without a model: what it hands out, pass by pass."""

from types import SimpleNamespace

import pytest

from spyre_bench.shapes import Bucket
from tests.plugin.conftest import platform_as_before

SMALL, LARGE = Bucket(4, 64, 32), Bucket(2, 256, 64)


@pytest.fixture(scope="module")
def vllm_config(tiny_llama):
    from vllm.engine.arg_utils import EngineArgs

    with platform_as_before():
        yield EngineArgs(
            model=str(tiny_llama),
            scheduling_policy="fcfs",
            long_prefill_token_threshold=16,  # without effect, as these two
            max_num_active_seqs=2,
            watermark=0.5,
            additional_config={"spyre": {"buckets": [[4, 64, 32], [2, 256, 64]], "gather_s": 0}},
        ).create_engine_config()


@pytest.fixture
def host(vllm_config, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return Host(vllm_config)


class Host:
    """The loop of vLLM's engine around the scheduler; every pass gives every row token 7."""

    def __init__(self, vllm_config):
        import torch
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        from spyre_bench.pass_log import Warmup
        from spyre_bench.plugin.config import note_warmup
        from spyre_bench.plugin.static_scheduler import SpyreScheduler

        # as if warmed up on a machine that takes a millisecond a slot
        note_warmup(
            vllm_config,
            [
                Warmup(
                    bucket,
                    1.0,
                    0.5,
                    1e-3 * bucket.batch_size * bucket.prompt_length,
                    1e-3,
                    False,
                    2,
                )
                for bucket in (SMALL, LARGE)
            ],
        )
        cache = vllm_config.cache_config
        cache.num_gpu_blocks = cache.num_gpu_blocks_override
        spec = FullAttentionSpec(
            block_size=cache.block_size, num_kv_heads=1, head_size=1, dtype=torch.float32
        )
        self.scheduler = SpyreScheduler(
            vllm_config=vllm_config,
            kv_cache_config=KVCacheConfig(
                num_blocks=cache.num_gpu_blocks,
                kv_cache_tensors=[],
                kv_cache_groups=[KVCacheGroupSpec(["bucket"], spec)],
            ),
            structured_output_manager=StructuredOutputManager(vllm_config),
            block_size=cache.block_size,
        )
        self.outputs = {}

    def add(self, name: str, prompt_tokens: int = 10, max_tokens: int | None = 3, **chosen):
        from vllm import SamplingParams
        from vllm.v1.request import Request

        request = Request(
            name, [5] * prompt_tokens, SamplingParams(max_tokens=max_tokens), None, **chosen
        )
        self.scheduler.add_request(request)
        return request

    def step(self) -> tuple[str, Bucket | None]:
        """One pass: the requests in it, by their names of one letter, and a new batch's bucket."""
        from vllm.v1.outputs import ModelRunnerOutput

        output = self.scheduler.schedule()
        names = list(output.num_scheduled_tokens)
        result = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: row for row, name in enumerate(names)},
            sampled_token_ids=[[7] for _ in names],
        )
        for batch in self.scheduler.update_from_output(output, result).values():
            for one in batch.outputs:
                self.outputs[one.request_id] = one
        return "".join(names), output.bucket

    def run(self) -> list[tuple[str, Bucket | None]]:
        passes = []
        while self.scheduler.has_unfinished_requests():
            passes.append(self.step())
            assert len(passes) < 1000
        return passes


def test_nothing_is_prefilled_until_every_decode_of_the_running_batch_is_finished(host):
    for name in "ab":
        host.add(name)
    assert host.step() == ("ab", SMALL)
    host.add("c", max_tokens=2)
    assert host.run() == [("ab", None), ("ab", None), ("c", SMALL), ("c", None)]


def test_members_leave_as_they_end_and_the_longest_ends_the_batch(host):
    for name, tokens in {"a": 1, "b": 4, "c": 2}.items():
        host.add(name, max_tokens=tokens)
    host.add("L", prompt_tokens=200, max_tokens=1)
    assert host.run() == [("abc", SMALL), ("bc", None), ("b", None), ("b", None), ("L", LARGE)]


def test_misfits_keep_their_place_in_the_queue(host):
    for name, tokens in {"a": 10, "L": 200, "b": 10, "M": 200, "c": 10}.items():
        host.add(name, prompt_tokens=tokens, max_tokens=1)
    host.add("d", max_tokens=1)
    host.add("e", max_tokens=1)
    assert host.run() == [("abcd", SMALL), ("LM", LARGE), ("e", SMALL)]


def test_a_full_queue_is_served_in_order(host):
    for name in "abcdefghij":
        host.add(name, max_tokens=1)
    assert [names for names, _ in host.run()] == ["abcd", "efgh", "ij"]


def pause(host: Host, state: str) -> None:
    from vllm.v1.core.sched.interface import PauseState

    host.scheduler.set_pause_state(PauseState[state])


def test_a_paused_engine_admits_nobody_and_lets_its_batch_end(host):
    host.add("a")
    host.step()
    host.add("b", max_tokens=1)
    pause(host, "PAUSED_NEW")
    assert [host.step() for _ in range(3)] == [("a", None), ("a", None), ("", None)]
    assert host.scheduler.make_stats() is None  # and counts a's batch
    pause(host, "UNPAUSED")
    assert host.run() == [("b", SMALL)]


def test_a_stopped_engine_runs_nothing_until_it_goes_on(host):
    host.add("a")
    host.step()
    host.add("b", max_tokens=1)
    pause(host, "PAUSED_ALL")
    assert [host.step() for _ in range(3)] == [("", None)] * 3
    pause(host, "UNPAUSED")
    assert host.run() == [("a", None), ("a", None), ("b", SMALL)]


@pytest.mark.parametrize("state", ["PAUSED_NEW", "PAUSED_ALL"])
def test_whoever_comes_to_a_paused_engine_waits_for_it_to_go_on(host, state):
    pause(host, state)
    host.add("a", max_tokens=1)
    assert host.step() == ("", None)
    pause(host, "UNPAUSED")
    assert host.run() == [("a", SMALL)]


def test_who_leaves_an_engine_that_was_paused_before_its_first_decision_left_none(host):
    from vllm.v1.request import RequestStatus

    pause(host, "PAUSED_NEW")
    host.add("a")
    host.step()
    host.scheduler.finish_requests("a", RequestStatus.FINISHED_ABORTED)
    pause(host, "UNPAUSED")
    host.add("b")
    assert host.scheduler.schedule().left == []


def test_an_aborted_member_leaves_the_batch_running(host):
    for name in "ab":
        host.add(name)
    host.step()
    abort(host, "a")
    assert host.run() == [("b", None), ("b", None)]


def test_aborting_the_whole_batch_lets_the_next_one_start(host):
    host.add("a")
    host.step()
    host.add("b", max_tokens=1)
    abort(host, "a")
    assert host.run() == [("b", SMALL)]


def test_a_request_aborted_while_it_waits_never_runs(host):
    for name in "abc":
        host.add(name, max_tokens=1)
    abort(host, "b")
    assert host.run() == [("ac", SMALL)]


def abort(host: Host, name: str) -> None:
    from vllm.v1.request import RequestStatus

    host.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)


def test_a_lone_request_is_held_for_the_gather_time_so_that_others_can_join(host):
    clock = SimpleNamespace(now=100.0)
    host.scheduler.clock = lambda: clock.now
    host.scheduler.spyre_config = replaced(host.scheduler.spyre_config, gather_s=0.02)
    host.add("a", max_tokens=1)
    assert host.step() == ("", None)
    clock.now = 100.015
    host.add("b", max_tokens=1)
    assert host.step() == ("", None)
    clock.now = 100.021
    assert host.run() == [("ab", SMALL)]


@pytest.mark.parametrize("lost_at", range(1, 4))
def test_a_core_lost_between_two_clocks_does_not_lengthen_a_hold(host, lost_at):
    """The pass log has the arrival by one clock and the decision goes by the other."""
    clock = SimpleNamespace(now=100.0, reads=0)

    def monotonic():
        clock.reads += 1
        clock.now += 0.003 * (clock.reads == lost_at)
        return clock.now

    host.scheduler.clock = monotonic
    host.scheduler.wall_clock = lambda: 1_000_000.0 + clock.now
    host.scheduler.spyre_config = replaced(host.scheduler.spyre_config, gather_s=0.02)
    request = host.add("a", max_tokens=1, arrival_time=1_000_100.0)
    clock.now = 100.0199
    assert host.step() == ("", None)
    clock.now = 100.0201
    assert host.run() == [("a", SMALL)]
    assert request.arrival_time == 1_000_100.0


def replaced(config, **changes):
    from dataclasses import replace

    return replace(config, **changes)


def test_while_a_batch_gathers_the_loop_sleeps_but_an_idle_step_does_not(host):
    slept = []
    host.scheduler.sleep = slept.append
    host.step()
    assert slept == []
    host.scheduler.spyre_config = replaced(host.scheduler.spyre_config, gather_s=10)
    host.add("a")
    host.step()
    assert len(slept) == 1
    assert slept[0] <= 0.005


def test_what_vllm_filled_in_for_missing_max_tokens_is_cut_to_what_the_buckets_allow(host):
    assert host.add("a", prompt_tokens=10, max_tokens=310).max_tokens == 64
    assert host.add("b", prompt_tokens=256, max_tokens=20).max_tokens == 20


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"resumable": True}, "does not support streaming input: send the whole prompt"),
        ({"prompt_tokens": 300}, "no bucket fits prompt_tokens=300"),
    ],
)
def test_what_came_past_the_front_ends_checks_ends_with_an_error(host, caplog, chosen, words):
    host.add("a", max_tokens=1)
    with caplog.at_level("WARNING", logger="vllm.spyre_bench.scheduler"):
        host.add("x", **chosen)
    assert words in caplog.text
    assert host.run() == [("a", SMALL)]
    assert str(host.outputs["x"].finish_reason) == "error"
    assert str(host.outputs["a"].finish_reason) == "length"


def test_higher_priority_is_served_first(vllm_config, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(vllm_config.scheduler_config, "policy", "priority")
    host = Host(vllm_config)
    for name, priority in {"a": 2, "b": 1, "c": 0, "d": 2, "e": 1}.items():
        host.add(name, max_tokens=1, priority=priority, arrival_time=float(ord(name)))
    assert [names for names, _ in host.run()] == ["cbea", "d"]
