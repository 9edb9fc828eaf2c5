"""One decision, three hosts: the pure block pool and vLLM's scheduler with its KVCacheManager take
the same steps with the same blocks, and the simulator the same steps, whatever comes, is aborted
between passes or in the middle of one, paused or preempted."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from spyre_bench.cost.shape_cost import ShapeCosts
from spyre_bench.policy import blocks as pool_module
from spyre_bench.policy.continuous import Prefill, Rules
from spyre_bench.shape_set import BLOCK_TOKENS, ShapeSet, blocks_of
from spyre_bench.simulate.continuous import _Engine, simulate
from spyre_bench.simulate.result import PREFILL as PREFILL_KIND
from spyre_bench.simulate.result import ContinuousRun
from spyre_bench.workload.workload import Workload
from tests.plugin.conftest import platform_as_before
from tests.plugin.simulated_hosts import draw_rules
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
    """Notes what each pass was handed; some are aborted while it runs."""

    def __init__(self, *args):
        super().__init__(*args)
        self.aborted: list[Request] = []

    def compute(self, step) -> None:
        self.seen = as_seen(
            step.shape,
            [step.request] if isinstance(step, Prefill) else step.rows,
            step.tokens if isinstance(step, Prefill) else 1,
            step.again_tokens if isinstance(step, Prefill) else 0,
        )
        for request in self.aborted:
            self.abort(request)


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

    def add(
        self,
        name: str,
        prompt: list[int],
        outputs: int,
        limit: int,
        arrival_s: float | None = None,
    ) -> None:
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
                arrival_time=float(self.steps) if arrival_s is None else arrival_s,
                block_hasher=self.hasher,
            )
        )

    def abort(self, name: str) -> None:
        from vllm.v1.request import RequestStatus

        self.scheduler.finish_requests([name], RequestStatus.FINISHED_ABORTED)

    def step(self, aborted: Sequence[str] = ()) -> tuple | None:
        """What the pass was handed; None where nothing ran. Some are aborted while it runs."""
        output = self.scheduler.schedule()
        self.steps += 1
        for name in aborted:
            self.abort(name)
        if not output.num_scheduled_tokens:
            return None
        seen = self._handed(output)
        self.answer(output)
        return seen

    @staticmethod
    def _handed(output) -> tuple:
        """See `as_seen`."""
        if output.chunk is None:
            rows = [
                (name, row.position + 1, tuple(row.table[: blocks_of(row.position + 1)]))
                for name, row in zip(output.row_ids, output.rows, strict=True)
            ]
            return output.shape, 1, 0, rows
        chunk, (name,) = output.chunk, output.num_scheduled_tokens
        end = chunk.start + len(chunk.tokens)
        again = chunk.write_from - chunk.start
        rows = [(name, end, tuple(chunk.table[: blocks_of(end)]))]
        return output.shape, len(chunk.tokens) - again, again, rows

    def answer(self, output) -> None:
        """What a model would say, to vLLM's scheduler."""
        from vllm.v1.outputs import ModelRunnerOutput

        decodes = output.chunk is None
        names = list(output.row_ids if decodes else output.num_scheduled_tokens)
        yields = decodes or output.is_last
        result = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: row for row, name in enumerate(names)},
            sampled_token_ids=[[self._token(name)] if yields else [] for name in names],
        )
        self.scheduler.update_from_output(output, result)

    def _token(self, name: str) -> int:
        self.left[name] -= 1
        return 1000 + int(name) if self.left[name] else STOP

    @property
    def free_blocks(self) -> int:
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()


STOP = 9


@dataclass
class Asked:
    """A request of a random load; times are steps."""

    arrival: int
    prompt: list[int]
    outputs: int
    limit: int  # its max_tokens
    gone: float  # aborted, in the middle of a pass where it is no whole number; or never

    @property
    def prefixes(self) -> list[tuple[int, ...]]:
        whole = range(BLOCK_TOKENS, len(self.prompt) + 1, BLOCK_TOKENS)
        return [tuple(self.prompt[:end]) for end in whole]


def draw_load(draw: random.Random) -> list[Asked]:
    """In order of arrival."""
    stems = [draw.choices(range(10, 90), k=256) for _ in range(3)]
    load = []
    for _ in range(draw.randint(2, 14)):
        shared = draw.choice([0, 0, 40, 64, 128, 192])
        prompt = draw.choice(stems)[:shared] + draw.choices(range(10, 90), k=draw.randint(1, 120))
        outputs = draw.randint(1, 90)
        limit = min(outputs + draw.choice([0, 5, 80]), LONGEST - len(prompt))
        arrival = draw.randrange(60)
        gone = arrival + draw.randrange(160) / 2 if draw.random() < 0.3 else math.inf
        load.append(Asked(arrival, prompt, min(outputs, limit), limit, gone))
    return sorted(load, key=lambda asked: asked.arrival)


@dataclass
class Agreed:
    """What the hosts did alike with a random load."""

    steps: int
    hits: int  # blocks
    waited: int  # aborted while they waited
    ran: int  # aborted while they ran, between two passes
    in_pass: int  # ... in the middle of one


def serve_on_all(vllm_config, seed: int) -> Agreed:
    """Serves a random load; the hosts differ nowhere."""
    draw = random.Random(seed)
    shapes = ShapeSet.parse(PREFILL, DECODE, draw.choice([10, 14, 20, 60]))
    rules, load = draw_rules(draw), draw_load(draw)
    pure, real = PureHost(shapes, rules), VllmHost(vllm_config, shapes, rules)
    asked: dict[int, Request] = {}
    done = Agreed(0, 0, 0, 0, 0)
    passes, ends = [], []

    def here(at: float) -> list[int]:
        """Who is aborted then, of those that wait or run."""
        some = [*pure.waiting, *pure.running]
        return [place for place, it in enumerate(load) if it.gone == at and asked[place] in some]

    while len(asked) < len(load) or pure.waiting or pure.running:
        now = pure.steps
        for place, it in enumerate(load):
            if place not in asked and it.arrival <= now:
                asked[place] = Request(
                    str(place), len(it.prompt), it.outputs, it.limit, now, it.prefixes
                )
                pure.add(asked[place])
                real.add(str(place), it.prompt, it.outputs, it.limit)
        for place in here(now):
            done.waited += asked[place] in pure.waiting
            done.ran += asked[place] in pure.running
            pure.abort(asked[place])
            real.abort(str(place))
        pure.seen, in_pass = None, here(now + 0.5)
        done.in_pass += len(in_pass)
        pure.aborted = [asked[place] for place in in_pass]
        step, _ = pure.step()
        assert real.step(list(map(str, in_pass))) == pure.seen, f"seed {seed}, step {now}"
        assert real.free_blocks == pure.pool.free_blocks, f"seed {seed}, step {now}"
        if isinstance(step, Prefill) and step.is_first:
            done.hits += (pure.seen[3][0][1] - step.tokens) // BLOCK_TOKENS
        if pure.seen:
            passes.append(pure.seen)
            ends.append(pure.steps)
        assert pure.steps < 5000
    assert real.free_blocks == shapes.blocks - 1, "blocks leaked"
    assert not real.scheduler.has_unfinished_requests()
    run = simulated(load, pure.costs, rules, ends)
    assert passes_of(run) == [in_short(seen) for seen in passes], f"seed {seed}, simulated"
    done.steps = pure.steps
    return done


def simulated(load: list[Asked], costs: ShapeCosts, rules: Rules, ends: list[int]) -> ContinuousRun:
    """The load on the simulator, with passes that end when those of the hosts did."""
    numbers = ((it.arrival, len(it.prompt), it.outputs, it.limit, it.gone) for it in load)
    arrival_s, *tokens, leaves_s = map(np.array, zip(*numbers, strict=True))
    return simulate(
        Workload("random", arrival_s.astype(float), *tokens),
        costs,
        rules,
        prefixes=[it.prefixes for it in load],
        leaves_s=leaves_s,
        ends_s=np.array(ends, float),
    )


def passes_of(run: ContinuousRun) -> list[tuple]:
    """Each pass of a simulated run: its shape, the tokens of its rows behind it, and who they
    are."""
    passes, found = run.passes, []
    for row in range(len(passes)):
        members = [str(name) for name in passes.of_row(row)[0]]
        tokens = int(passes.before[row])
        shape = run.shapes[passes.shape[row]]
        if passes.kind[row] == PREFILL_KIND:
            found.append((shape, tokens + passes.useful[row] + passes.again[row], members))
        else:
            for _ in range(passes.count[row]):
                tokens += len(members)
                found.append((shape, tokens, members))
    return found


def in_short(seen: tuple) -> tuple:
    """The same of what a pass was handed."""
    shape, _, _, rows = seen
    return shape.name, sum(tokens for _, tokens, _ in rows), [name for name, *_ in rows]


def serve_many(vllm_config, seeds: range) -> list[Agreed]:
    return [serve_on_all(vllm_config, seed) for seed in seeds]


@pytest.mark.parametrize("first", range(0, SEEDS, 100))
def test_all_hosts_take_the_same_steps_with_the_same_blocks(vllm_config, first):
    served = serve_many(vllm_config, range(first, first + 100))
    assert sum(it.steps for it in served) > 5000
    assert sum(it.hits for it in served) > 20
    assert min(sum(it.waited for it in served), sum(it.ran for it in served)) > 10
    assert sum(it.in_pass for it in served) > 20


def test_a_simulator_in_which_nobody_hangs_up_is_noticed(vllm_config, monkeypatch):
    monkeypatch.setattr(_Engine, "_hang_up", lambda self, before_s: False)
    with pytest.raises(AssertionError, match="simulated"):
        serve_many(vllm_config, range(20))


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
