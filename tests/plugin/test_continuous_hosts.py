"""One decision, two hosts: the pure block pool and vLLM's scheduler with its KVCacheManager take
the same steps with the same blocks, whatever comes, is aborted, paused or preempted."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from spyre_bench.policy import blocks as pool_module
from spyre_bench.policy.continuous import Prefill, Rules
from spyre_bench.shape_set import BLOCK_TOKENS, ShapeSet, blocks_of
from tests.plugin.conftest import platform_as_before
from tests.policy.engine_host import Host, Request, costs_of

pytestmark = pytest.mark.vllm

PREFILL, DECODE = "64,256 128,512", "2,512 4,256 8,128"
LONGEST = 512
SEEDS = 500


@pytest.fixture(scope="module")
def vllm_config(tiny_llama):
    from vllm.engine.arg_utils import EngineArgs

    spyre = {
        "batching": "continuous",
        "compile_backend": "eager",
        "prefill_shapes": PREFILL,
        "decode_shapes": DECODE,
    }
    with platform_as_before():
        yield EngineArgs(
            model=str(tiny_llama), max_model_len=LONGEST, additional_config={"spyre": spyre}
        ).create_engine_config()


def make_scheduler(vllm_config, shapes: ShapeSet, rules: Rules):
    import torch
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    from spyre_bench.pass_log import ShapeWarmup
    from spyre_bench.plugin.config import note_warmup
    from spyre_bench.plugin.continuous_scheduler import ContinuousScheduler

    note_warmup(vllm_config, [ShapeWarmup(s, 1.0, 0.1, 0.1, False, 1) for s in shapes])
    vllm_config.cache_config.num_gpu_blocks = shapes.blocks
    spec = FullAttentionSpec(
        block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=1, dtype=torch.float32
    )
    scheduler = ContinuousScheduler(
        vllm_config=vllm_config,
        kv_cache_config=KVCacheConfig(
            num_blocks=shapes.blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layers"], spec)],
        ),
        structured_output_manager=StructuredOutputManager(vllm_config),
        block_size=BLOCK_TOKENS,
    )
    scheduler.spyre_config = replace(scheduler.spyre_config, rules=rules)
    scheduler.costs = costs_of(shapes)
    hash_of = get_hash_fn_by_name(vllm_config.cache_config.prefix_caching_hash_algo)
    init_none_hash(hash_of)
    return scheduler, get_request_block_hasher(BLOCK_TOKENS, hash_of)


class PureHost(Host):
    """Notes what each pass was handed."""

    def compute(self, step) -> None:
        self.seen = as_seen(
            step.shape,
            [step.request] if isinstance(step, Prefill) else step.rows,
            step.tokens if isinstance(step, Prefill) else 1,
            step.again_tokens if isinstance(step, Prefill) else 0,
        )


def as_seen(shape, requests, tokens, again) -> tuple:
    rows = [
        (r.name, r.computed_tokens, tuple(r.table[: blocks_of(r.computed_tokens)]))
        for r in requests
    ]
    return shape, tokens, again, rows


class VllmHost:
    def __init__(self, vllm_config, shapes: ShapeSet, rules: Rules):
        self.scheduler, self.hasher = make_scheduler(vllm_config, shapes, rules)
        self.steps = 0
        self.scheduler.clock = self.scheduler.wall_clock = lambda: float(self.steps)
        self.scheduler.sleep = lambda seconds: None
        self.left: dict[str, int] = {}

    def add(self, name: str, prompt: list[int], outputs: int, limit: int) -> None:
        from vllm import SamplingParams
        from vllm.v1.request import Request as VllmRequest

        parameters = SamplingParams(max_tokens=limit, temperature=0, stop_token_ids=[STOP])
        self.left[name] = outputs
        self.scheduler.add_request(
            VllmRequest(
                name,
                prompt,
                parameters,
                None,
                arrival_time=float(self.steps),
                block_hasher=self.hasher,
            )
        )

    def abort(self, name: str) -> None:
        from vllm.v1.request import RequestStatus

        self.scheduler.finish_requests([name], RequestStatus.FINISHED_ABORTED)

    def step(self) -> tuple | None:
        """What the pass was handed; None where nothing ran."""
        from vllm.v1.outputs import ModelRunnerOutput

        output = self.scheduler.schedule()
        self.steps += 1
        names = list(output.num_scheduled_tokens)
        if not names:
            return None
        if output.chunk is not None:
            chunk, (name,) = output.chunk, names
            end = chunk.start + len(chunk.tokens)
            again = chunk.write_from - chunk.start
            rows = [(name, end, tuple(chunk.table[: blocks_of(end)]))]
            seen = output.shape, len(chunk.tokens) - again, again, rows
            sampled = [[self._token(name)] if output.is_last else []]
        else:
            rows = [
                (name, row.position + 1, tuple(row.table[: blocks_of(row.position + 1)]))
                for name, row in zip(output.row_ids, output.rows, strict=True)
            ]
            seen = output.shape, 1, 0, rows
            names = list(output.row_ids)
            sampled = [[self._token(name)] for name in names]
        result = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: row for row, name in enumerate(names)},
            sampled_token_ids=sampled,
        )
        self.scheduler.update_from_output(output, result)
        return seen

    def _token(self, name: str) -> int:
        self.left[name] -= 1
        return 1000 + int(name) if self.left[name] else STOP

    @property
    def free_blocks(self) -> int:
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()


STOP = 9


def draw_rules(draw: random.Random) -> Rules:
    return Rules(
        decode_between=draw.choice([0, 1, 1, 3]),
        order=draw.choice(["arrival", "arrival", "shortest_prefill"]),
        max_age_s=20.0,
        admission=draw.choice(["reserve", "preempt"]),
        layout=draw.choice(["ragged", "rectangular"]),
        chunk_tokens=draw.choice([None, 64, 128]),
        over_limit=draw.choice(["pause", "hold"]),
        max_batch_context_tokens=draw.choice([None, 640, 1024]),
        longest_first=draw.random() < 0.5,
    )


def draw_load(draw: random.Random) -> list[tuple]:
    """(arrival step, prompt, outputs, max_tokens, abort step or None)."""
    stems = [draw.choices(range(10, 90), k=256) for _ in range(3)]
    load = []
    for _ in range(draw.randint(2, 14)):
        shared = draw.choice([0, 0, 40, 64, 128, 192])
        prompt = draw.choice(stems)[:shared] + draw.choices(range(10, 90), k=draw.randint(1, 120))
        outputs = draw.randint(1, 90)
        limit = min(outputs + draw.choice([0, 5, 80]), LONGEST - len(prompt))
        arrival = draw.randrange(60)
        gone = arrival + draw.randrange(80) if draw.random() < 0.2 else None
        load.append((arrival, prompt, min(outputs, limit), limit, gone))
    return load


def serve_on_both(vllm_config, seed: int) -> tuple[int, int]:
    """Steps and prefix hits of a random load; the hosts differ nowhere."""
    draw = random.Random(seed)
    shapes = ShapeSet.parse(PREFILL, DECODE, draw.choice([10, 14, 20, 60]))
    rules, load = draw_rules(draw), draw_load(draw)
    pure, real = PureHost(shapes, rules), VllmHost(vllm_config, shapes, rules)
    asked: dict[int, Request] = {}
    hits = 0
    while len(asked) < len(load) or pure.waiting or pure.running:
        for place, (arrival, prompt, outputs, limit, _) in enumerate(load):
            if place not in asked and arrival <= pure.steps:
                whole = range(BLOCK_TOKENS, len(prompt) + 1, BLOCK_TOKENS)
                prefixes = [tuple(prompt[:end]) for end in whole]
                asked[place] = Request(
                    str(place), len(prompt), outputs, limit, pure.steps, prefixes
                )
                pure.add(asked[place])
                real.add(str(place), prompt, outputs, limit)
        for place, (*_, gone) in enumerate(load):
            request = asked.get(place)
            if gone == pure.steps and request and request in [*pure.waiting, *pure.running]:
                pure.abort(request)
                real.abort(str(place))
        pure.seen = None
        step, _ = pure.step()
        assert real.step() == pure.seen, f"seed {seed}, step {pure.steps}"
        assert real.free_blocks == pure.pool.free_blocks, f"seed {seed}, step {pure.steps}"
        if isinstance(step, Prefill) and step.is_first:
            hits += (pure.seen[3][0][1] - step.tokens) // BLOCK_TOKENS
        assert pure.steps < 5000
    assert real.free_blocks == shapes.blocks - 1, "blocks leaked"
    assert not real.scheduler.has_unfinished_requests()
    return pure.steps, hits


def serve_many(vllm_config, seeds: range) -> list[tuple[int, int]]:
    return [serve_on_both(vllm_config, seed) for seed in seeds]


@pytest.mark.parametrize("first", range(0, SEEDS, 100))
def test_both_hosts_take_the_same_steps_with_the_same_blocks(vllm_config, first):
    served = serve_many(vllm_config, range(first, first + 100))
    assert sum(steps for steps, _ in served) > 5000
    assert sum(hits for _, hits in served) > 20


@pytest.mark.parametrize("wrong", ["free order", "reservation", "prefix"])
def test_a_wrong_pool_or_reservation_is_noticed(vllm_config, monkeypatch, wrong):
    if wrong == "free order":
        right = pool_module.BlockPool.give_back
        monkeypatch.setattr(
            pool_module.BlockPool, "give_back", lambda self, table: right(self, table[::-1])
        )
    elif wrong == "reservation":
        monkeypatch.setattr(
            Request, "reserved_blocks", property(lambda self: max(0, blocks_of(self.limit) - 1))
        )
    else:
        monkeypatch.setattr(Request, "prefix", lambda self, index: (self.name, index))
    with pytest.raises(AssertionError, match="seed"):
        serve_many(vllm_config, range(60))


def test_a_pass_looks_at_one_of_a_thousand_waiting(vllm_config, monkeypatch):
    shapes = ShapeSet.parse(PREFILL, DECODE, 60)
    host = VllmHost(vllm_config, shapes, Rules())
    for name in range(1000):
        host.add(str(name), [5] * 100, 50, 50)
    manager = host.scheduler.kv_cache_manager
    looked = []
    original = manager.get_computed_blocks
    monkeypatch.setattr(
        manager, "get_computed_blocks", lambda r: (looked.append(r), original(r))[1]
    )
    host.step()
    host.step()
    assert len(looked) <= 4
