"""Random loads with clients that hang up, on three hosts: the simulator, vLLM's engine on a virtual
clock, and (`test_three_hosts.py`) a live server whose passes sleep."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spyre_bench.policy.continuous import Rules
from spyre_bench.shape_set import BLOCK_TOKENS
from spyre_bench.workload.workload import Workload

SHAPES = {
    "prefill": {"64,256": 4.0, "128,512": 9.0},
    "decode": {"2,512": 2.5, "4,256": 3.0, "8,128": 3.5},
}
"""Milliseconds of a full pass; an empty one takes half."""
PREFILL, DECODE = (" ".join(SHAPES[kind]) for kind in ("prefill", "decode"))
LONGEST = 512  # tokens that the shapes take
BUCKETS = {"4,64,32": (8.0, 2.0), "2,256,64": (12.0, 2.5)}
"""Milliseconds of a prefill and a decode."""
TEXT_TOKENS = range(1000, 4000)


def write_cost_table(path: Path, compile_s: float = 0.01) -> Path:
    """A made-up engine's."""
    common = {"model": "made-up", "tp": 1, "compile_s": compile_s, "memory_bytes": 1000}
    rows: list[dict[str, Any]] = []
    for text, (prefill_ms, decode_ms) in BUCKETS.items():
        sizes = dict(
            zip(("batch_size", "prompt_length", "new_tokens"), text.split(","), strict=True)
        )
        seconds = {"prefill_s": prefill_ms / 1e3, "decode_s": decode_ms / 1e3}
        rows.append(common | {"kind": "static"} | sizes | seconds)
    for kind, shapes in SHAPES.items():
        for text, full_ms in shapes.items():
            width, context = text.split(",")
            name = "chunk_length" if kind == "prefill" else "rows"
            seconds = {"full_s": full_ms / 1e3, "empty_s": full_ms / 2e3}
            rows.append(common | {"kind": kind, name: width, "context_length": context} | seconds)
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@dataclass
class Asked:
    """A request of a random load."""

    arrival_s: float
    prompt: list[int]
    outputs: int
    limit: int  # its max_tokens
    leaves_s: float  # its client hangs up

    def told(self) -> dict[str, Any]:
        """What a simulated device on a virtual clock is told of it."""
        told = {"spyre_arrival_s": self.arrival_s, "spyre_output_tokens": self.outputs}
        return told if math.isinf(self.leaves_s) else told | {"spyre_leaves_s": self.leaves_s}

    @property
    def prefixes(self) -> list[tuple[int, ...]]:
        whole = range(BLOCK_TOKENS, len(self.prompt) + 1, BLOCK_TOKENS)
        return [tuple(self.prompt[:end]) for end in whole]


def draw_load(draw: random.Random, longest_prompt: int, longest_output: int) -> list[Asked]:
    """A few bursts, some of which begin alike, in order of arrival."""
    stems = [draw.choices(TEXT_TOKENS, k=256) for _ in range(3)]
    load, now = [], 0.0
    for _ in range(draw.randint(2, 20)):
        now += draw.choice([0.0, 0.002, 0.05, 0.5]) * draw.random()
        shared = draw.choice([0, 0, 40, 64, 128, 192])
        prompt = draw.choice(stems)[:shared] + draw.choices(TEXT_TOKENS, k=draw.randint(1, 120))
        prompt = prompt[:longest_prompt]
        limit = draw.randint(1, longest_output)
        outputs = draw.randint(1, limit) if draw.random() < 0.5 else limit
        patience_s = draw.expovariate(10.0) if draw.random() < 0.3 else math.inf
        load.append(Asked(now, prompt, outputs, limit, now + patience_s))
    return load


def workload_of(load: Sequence[Asked], outputs: Sequence[int] | None = None) -> Workload:
    return Workload(
        "random",
        np.array([it.arrival_s for it in load]),
        np.array([len(it.prompt) for it in load]),
        np.array([it.outputs for it in load] if outputs is None else outputs),
        np.array([it.limit for it in load]),
    )


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


class VirtualHost:
    """vLLM's engine, all of it but the front end, on a simulated device and a virtual clock."""

    def __init__(self, model: Path, spyre: dict[str, Any], **options: Any):
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.core import EngineCore
        from vllm.v1.executor import Executor

        arguments = EngineArgs(
            model=str(model),
            skip_tokenizer_init=True,
            additional_config={"spyre": {"clock": "virtual"} | spyre},
            **options,
        )
        self.config = arguments.create_engine_config()
        self.core = EngineCore(self.config, Executor.get_class(self.config), log_stats=True)
        self.scheduler = self.core.scheduler
        self.runner = self.core.model_executor.driver_worker.worker.model_runner
        self.runner.pass_log.close()  # several hosts share one, in turns

    def begin_again(self, pass_log: Path, **changed: Any) -> None:
        """As a new engine with some settings changed, which takes a second less."""
        from spyre_bench.pass_log import PassLog

        before = self.scheduler
        assert not before.has_requests()
        before._time.now_s = 0.0
        self.scheduler = self.core.scheduler = type(before)(
            vllm_config=self.config,
            kv_cache_config=before.kv_cache_config,
            structured_output_manager=self.core.structured_output_manager,
            block_size=before.block_size,
            log_stats=True,
        )
        self.scheduler.spyre_config = replace(before.spyre_config, **changed)
        self.runner.pass_log = PassLog(pass_log)

    def serve(self, load: Sequence[Asked]) -> dict[int, list[int]]:
        """Tokens of each request, by its place."""
        from vllm import SamplingParams
        from vllm.v1.engine import EngineCoreRequest

        for place, it in enumerate(load):
            params = SamplingParams(
                max_tokens=it.limit, stop_token_ids=[STOP], extra_args=it.told()
            )
            request, _ = self.core.preprocess_add_request(
                EngineCoreRequest(
                    request_id=str(place),
                    prompt_token_ids=it.prompt,
                    mm_features=None,
                    sampling_params=params,
                    pooling_params=None,
                    arrival_time=0.0,
                    lora_request=None,
                    cache_salt=None,
                    data_parallel_rank=None,
                )
            )
            self.core.add_request(request)
        said: dict[int, list[int]] = {place: [] for place in range(len(load))}
        self.finished: dict[int, str] = {}
        while self.scheduler.has_requests():
            outputs, _ = self.core.step()
            for one in outputs[0].outputs if 0 in outputs else ():
                said[int(one.request_id)] += one.new_token_ids
                if one.finish_reason is not None:
                    self.finished[int(one.request_id)] = str(one.finish_reason)
        self.runner.pass_log.close()
        return said

    def close(self) -> None:
        self.core.shutdown()


STOP = 9


def continuous_settings(table: Path, blocks: int, pass_log: Path) -> dict[str, Any]:
    return {
        "device": f"simulated:{table}",
        "batching": "continuous",
        "prefill_shapes": PREFILL,
        "decode_shapes": DECODE,
        "blocks": blocks,
        "pass_log": str(pass_log),
    }


def static_settings(table: Path, pass_log: Path) -> dict[str, Any]:
    buckets = [[int(size) for size in text.split(",")] for text in BUCKETS]
    return {"device": f"simulated:{table}", "buckets": buckets, "pass_log": str(pass_log)}
