"""`make bench`: figures of this machine as JSON lines, one a measurement, medians of several.

`python -m tests.bench [NAME ...]` runs some of them: decode, generate, overhead, compile,
model_codes, padding, paged and shapes of the engine; simulate, simulate_many, simulate_continuous,
optimize_1d, optimize_joint and sweep of the core, without torch; scheduler, continuous_scheduler,
serve, healthy and kinds of the server; tensor_parallel and dead_rank of its ranks; panels of
notebooks. Every measurement has a process of its own, with its threads pinned; nothing else should
be running.
"""

import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

PROMPT_LENGTH, NEW_TOKENS = 64, 32


def read_bandwidth() -> float:
    """Bytes a second that a plain sum reads from memory: the best of seven, 256 MB each."""
    import torch

    x = torch.ones(64 * 2**20)
    return max(x.nbytes / seconds(x.sum) for _ in range(7))


def seconds(run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def warmed(batch_size: int, prompt_length: int = PROMPT_LENGTH, new_tokens: int = NEW_TOKENS):
    """A warmed SmolLM2 engine with one bucket, and that."""
    from spyre_bench.checkpoints.find import model_directory
    from spyre_bench.engine.causal_lm import SpyreCausalLM
    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.engine.warmup import warm_up
    from spyre_bench.shapes import Bucket, BucketSet

    bucket = Bucket(batch_size, prompt_length, new_tokens)
    model = SpyreCausalLM(
        EngineConfig(model_directory=model_directory("smollm2"), buckets=BucketSet((bucket,)))
    )
    warm_up(model, progress=False)
    return model, bucket


def generate(model, bucket) -> list[float]:
    """Seconds of every pass of one full greedy batch, the prefill first."""
    prompts = [list(range(1, PROMPT_LENGTH + 1))] * bucket.batch_size
    passes, tokens = [], None
    for step in range(NEW_TOKENS):
        started = time.perf_counter()
        logits = model.decode(tokens) if step else model.prefill(bucket, prompts)
        tokens = logits.argmax(-1).tolist()
        passes.append(time.perf_counter() - started)
    return passes


def decode(threads: int, batch_size: int) -> dict:
    """Decode step over the time that reading weights and cache once takes."""
    model, bucket = warmed(batch_size)
    bandwidth = read_bandwidth()
    step_s = statistics.median(s for _ in range(4) for s in generate(model, bucket)[1:])
    cache = sum(part.nbytes for pair in model._caches[bucket] for part in pair)
    floor_s = (model.sizes.weight_bytes("float32") + cache) / bandwidth
    return {
        "step_ms": step_s * 1e3,
        "floor_ms": floor_s * 1e3,
        "bandwidth_gb_s": bandwidth / 1e9,
        "over_floor": step_s / floor_s,
    }


def generate_against_hugging_face(threads: int, batch_size: int) -> dict:
    """Tokens a second of a greedy batch, ours and transformers' in turn."""
    import torch
    from transformers import AutoModelForCausalLM

    model, bucket = warmed(batch_size)
    other = AutoModelForCausalLM.from_pretrained(
        model.config.model_directory, dtype=torch.float32
    ).eval()
    prompts = torch.arange(1, PROMPT_LENGTH + 1).repeat(batch_size, 1)

    def theirs():
        other.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
        )

    theirs()
    rounds = [(sum(generate(model, bucket)), seconds(theirs)) for _ in range(5)]
    ours_s, theirs_s = (statistics.median(column) for column in zip(*rounds, strict=True))
    tokens = batch_size * NEW_TOKENS
    return {
        "tokens_s": tokens / ours_s,
        "hugging_face_tokens_s": tokens / theirs_s,
        "ratio": theirs_s / ours_s,
    }


def overhead(threads: int, batch_size: int) -> dict:
    """Time of a vLLM step beyond its model pass, from the starts in the pass log."""
    import tempfile

    from vllm import LLM, SamplingParams

    from spyre_bench.checkpoints.find import model_directory

    with tempfile.NamedTemporaryFile() as log:
        llm = LLM(
            str(model_directory("smollm2")),
            additional_config={
                "spyre": {
                    "buckets": [[batch_size, PROMPT_LENGTH, NEW_TOKENS]],
                    "pass_log": log.name,
                }
            },
        )
        prompts = [{"prompt_token_ids": [5 + row] * 20} for row in range(batch_size)]
        params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
        for _ in range(4):
            llm.generate(prompts, params, use_tqdm=False)
        passes = [json.loads(line) for line in log]
    decodes = [p for p in passes if p["kind"] == "decode"]
    gaps = [
        later["start_s"] - earlier["start_s"] - earlier["seconds"]
        for earlier, later in itertools.pairwise(decodes)
        if later["batch"] == earlier["batch"] and later["step"] == earlier["step"] + 1
    ]
    return {
        "overhead_ms": statistics.median(gaps) * 1e3,
        "step_ms": statistics.median(p["seconds"] for p in decodes) * 1e3,
        "steps": len(gaps),
    }


def paged_over_static(threads: int, rows: int, context_length: int) -> dict:
    """The price of blocks: a decode step of a shape with full contexts, over one of the static
    bucket of as many rows and slots, in turn in one process; both over the memory floor."""
    from spyre_bench.checkpoints.find import model_directory
    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.engine.paged_causal_lm import PagedCausalLM
    from spyre_bench.engine.warmup import run_full, warm_up
    from spyre_bench.shape_set import ShapeSet

    length, new_tokens = 64, context_length - 64
    static, bucket = warmed(rows, length, new_tokens)
    shapes = ShapeSet.parse(f"64,{context_length}", f"{rows},{context_length}")
    model = model_directory("smollm2")
    paged = PagedCausalLM(EngineConfig(model_directory=model, shapes=shapes))
    warm_up(paged, progress=False)
    bandwidth = read_bandwidth()
    static.prefill(bucket, [[5] * length] * rows)
    (wide,) = shapes.decode
    pairs = [
        (seconds(lambda: static.decode([5] * rows)), seconds(lambda: run_full(paged, wide)))
        for _ in range(min(120, new_tokens - 1))
    ]
    static_s, paged_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    cache = sum(part.nbytes for pair in static._caches[bucket] for part in pair)
    floor_s = (static.sizes.weight_bytes("float32") + cache) / bandwidth
    return {
        "shape": [rows, context_length],
        "steps": len(pairs),
        "static_ms": static_s * 1e3,
        "paged_ms": paged_s * 1e3,
        "paged_over_static": paged_s / static_s,
        "aim": 1.05,
        "at_most": 1.10,
        "floor_ms": floor_s * 1e3,
        "bandwidth_gb_s": bandwidth / 1e9,
        "static_over_floor": static_s / floor_s,
        "paged_over_floor": paged_s / floor_s,
    }


def model_codes(threads: int, batch_size: int) -> dict:
    """vLLM's model code over FMS's: passes of the same checkpoint, bucket and prompts in turn in
    one process; starts, cold and warm, in fresh ones."""
    from spyre_bench.checkpoints.find import model_directory
    from spyre_bench.engine.causal_lm import SpyreCausalLM
    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.engine.warmup import warm_up
    from spyre_bench.measure.starts import measure_starts
    from spyre_bench.plugin.vllm_model import VLLMCode
    from spyre_bench.shapes import Bucket, BucketSet

    directory = model_directory("smollm2")
    bucket = Bucket(batch_size, PROMPT_LENGTH, NEW_TOKENS)
    buckets = BucketSet((bucket,))
    figures = {}
    for name in ("fms", "vllm"):
        starts = measure_starts(directory, buckets, model_code=name, threads=threads, timed=())
        for start in starts.to_dict("records"):
            figures[f"{name}_{start['start']}_compile_s"] = start["compile_s"]
            figures[f"{name}_{start['start']}_load_s"] = start["load_s"]
    ours, _ = warmed(batch_size)
    theirs = SpyreCausalLM(
        EngineConfig(
            model_directory=directory, model_code=VLLMCode.of(directory, buckets), buckets=buckets
        )
    )
    warm_up(theirs, progress=False)
    rounds = [(generate(ours, bucket), generate(theirs, bucket)) for _ in range(5)]
    for which, name in enumerate(("fms", "vllm")):
        figures[f"{name}_prefill_ms"] = 1e3 * statistics.median(one[which][0] for one in rounds)
        figures[f"{name}_decode_ms"] = 1e3 * statistics.median(
            s for one in rounds for s in one[which][1:]
        )
    return figures | {
        "prefill_ratio": figures["vllm_prefill_ms"] / figures["fms_prefill_ms"],
        "decode_ratio": figures["vllm_decode_ms"] / figures["fms_decode_ms"],
        "aim": 1.1,
    }


def padding() -> Iterator[dict]:
    """Is a padded slot a cost? What is paid of padding in proportion to its slots (1: all of it),
    by rows and by prompt; then passes around boundaries and with fewer live rows, one thread."""
    import torch

    from spyre_bench.checkpoints.find import model_directory
    from spyre_bench.engine.causal_lm import SpyreCausalLM
    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.engine.paged_causal_lm import PagedCausalLM
    from spyre_bench.engine.warmup import warm_up
    from spyre_bench.shape_set import ShapeSet
    from spyre_bench.shapes import Bucket, BucketSet
    from tests.padding import contents, full, paid_shares, time_contents, time_live

    torch.set_num_threads(1)
    sizes = itertools.product((1, 2, 4, 8), (64, 128, 192, 256))
    buckets = BucketSet(tuple(Bucket(rows, prompt, NEW_TOKENS) for rows, prompt in sizes))
    directory = model_directory("smollm2")
    model = SpyreCausalLM(EngineConfig(model_directory=directory, buckets=buckets))
    warm_up(model, progress=False)
    measured = time_contents(model, contents(buckets, (64, 128, 192)), rounds=5)
    yield from paid_shares(full(measured)).to_dict("records")
    for row in measured.to_dict("records"):
        seconds = {f"{kind}_ms": 1e3 * row.pop(f"{kind}_s") for kind in ("prefill", "decode")}
        yield row | {"bucket": str(row["bucket"])} | seconds
    shapes = ShapeSet.parse("64,320 128,320 256,320", "1,320 2,320 4,320 8,320")
    paged = PagedCausalLM(EngineConfig(model_directory=directory, shapes=shapes))
    warm_up(paged, progress=False)
    for row in time_live(paged, rounds=15).to_dict("records"):
        known = {name: value for name, value in row.items() if value == value}  # JSON has no nan
        taken_s = known.pop("seconds")
        yield known | {"ms": 1e3 * taken_s}


def shape_starts() -> Iterator[dict]:
    """Warmup of every shape, cold and then from the artefact, each start in a fresh process."""
    import tempfile
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with tempfile.TemporaryDirectory() as artefacts:
        for start in ("cold", "warm"):
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                for line in process.submit(shape_start, artefacts).result():
                    yield {"start": start} | line


def shape_start(artefacts: str) -> list[dict]:

    import torch

    from spyre_bench.checkpoints.find import model_directory
    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.engine.paged_causal_lm import PagedCausalLM
    from spyre_bench.engine.warmup import warm_up
    from spyre_bench.shape_set import shapes_for

    torch.set_num_threads(1)
    config = EngineConfig(
        model_directory=model_directory("smollm2"),
        shapes=shapes_for(1024),
        artefact_directory=Path(artefacts),
    )
    started = time.perf_counter()
    rows = warm_up(PagedCausalLM(config), progress=False)
    lines = [
        {
            "shape": row.shape.name,
            "compile_s": row.compile_s,
            "full_ms": row.full_s * 1e3,
            "empty_ms": row.empty_s * 1e3,
            "graphs": row.graphs,
            "was_warm": row.was_warm,
        }
        for row in rows
    ]
    graphs = sum(row.graphs for row in rows)
    return [*lines, {"shapes": len(rows), "graphs": graphs, "s": time.perf_counter() - started}]


def compile_times(threads: int, batch_size: int) -> dict:
    """Compile seconds by scope, and a warm start over a cold one (scope `layer`)."""
    from spyre_bench.measure.buckets import measure_bucket
    from spyre_bench.shapes import Bucket

    bucket = Bucket(batch_size, PROMPT_LENGTH, NEW_TOKENS)
    layer, model = (
        measure_bucket("smollm2", bucket, compile_scope=scope, threads=threads)
        for scope in ("layer", "model")
    )
    return {
        "layer_compile_s": layer.compile_s,
        "layer_warm_s": layer.compile_warm_s,
        "warm_over_cold": layer.compile_warm_s / layer.compile_s,
        "model_compile_s": model.compile_s,
        "model_warm_s": model.compile_warm_s,
        "layer_over_model": layer.compile_s / model.compile_s,
        "layer_decode_ms": layer.decode_s * 1e3,
        "model_decode_ms": model.decode_s * 1e3,
        "layer_prefill_ms": layer.prefill_s * 1e3,
        "model_prefill_ms": model.prefill_s * 1e3,
    }


# --- the core -------------------------------------------------------------------------------------

EVENT = "a batch: one prefill and S - 1 decode passes, in closed form"


def fixed_lengths(requests: int, load: float):
    """Requests of 256 prompt and 64 output tokens, Poisson at `load` times what full batches of
    eight serve, and three buckets that take them, on a machine of a simple closed form."""
    import numpy as np

    from spyre_bench.cost.bucket_cost import price
    from spyre_bench.cost.closed_form import FittedCost
    from spyre_bench.shapes import BucketSet
    from spyre_bench.workload.arrivals import Poisson
    from spyre_bench.workload.workload import Workload

    machine = FittedCost((0.02, 1e-4), (0.02, 5e-4, 0.0))
    costs = price(BucketSet.parse("1,256,64 4,256,64 8,256,64"), machine)
    rate = load * 8 / costs[-1].batch_s(64)
    arrival_s = Poisson(rate).times(requests, np.random.default_rng(0))
    prompt, output = np.full(requests, 256, np.int32), np.full(requests, 64, np.int32)
    return Workload("256/64", arrival_s, prompt, output, output), costs


def simulated(requests: int, load: float, name: str) -> dict:
    """One run, with all figures of a result and without its arrays."""
    from spyre_bench.metrics.vllm_json import bench_result
    from spyre_bench.policy.static import Policy
    from spyre_bench.simulate.static import simulate

    some, costs = fixed_lengths(requests, load)
    started = time.perf_counter()
    result = bench_result(simulate(some, costs, Policy(name)))
    elapsed_s = time.perf_counter() - started
    return {
        "policy": name,
        "load": load,
        "requests": requests,
        "event": EVENT,
        "batches": result["spyre_batches"],
        "requests_s": requests / elapsed_s,
    }


def simulate() -> Iterator[dict]:
    """Requests a second of each policy, at half of what full batches serve and far above it."""
    from spyre_bench.policy.static import POLICIES

    for load, name in itertools.product((0.5, 20.0), POLICIES):
        runs = [simulated(10_000, load, name) for _ in range(9)]
        rate = statistics.median(run["requests_s"] for run in runs)
        yield runs[0] | {"requests_s": round(rate), "aim_requests_s": 200_000}


def simulate_many() -> Iterator[dict]:
    """Whether ten million requests take ten times as long as one million, and their memory."""
    import resource

    rates = []
    for requests in (10**6, 10**7):
        run = simulated(requests, 0.5, "best_fit")
        rates.append(run["requests_s"])
        yield run | {
            "requests_s": round(rates[-1]),
            "over_one_million": rates[-1] / rates[0],
            "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
            "aim_peak_gb": 2,
        }


CONTINUOUS_EVENT = "a chunk, or decode passes that nothing can interrupt"


def continuously_simulated(requests: int, load: float, chunk: int) -> dict:
    """One run of the simulator of continuous batching, of requests of 256 and 64 tokens, Poisson
    at `load` times what eight rows serve; by processor time."""
    import numpy as np

    from spyre_bench.cost.shape_cost import DecodeCost, PrefillCost, ShapeCosts
    from spyre_bench.shape_set import DecodeShape, PrefillShape
    from spyre_bench.simulate.continuous import simulate
    from spyre_bench.workload.arrivals import Poisson
    from spyre_bench.workload.workload import Workload

    chunk_cost = PrefillCost(PrefillShape(chunk, 512), 0.004 + 1e-4 * chunk, 1e-7)
    wide = DecodeCost(DecodeShape(8, 512), 0.02, 5e-4, 1e-7)
    costs = ShapeCosts((chunk_cost,), (wide,), 65)
    request_s = -(-256 // chunk) * chunk_cost.base_s + 63 * wide.pass_s(8, 8 * 288) / 8
    arrival_s = Poisson(load / request_s).times(requests, np.random.default_rng(0))
    prompt, output = np.full(requests, 256, np.int32), np.full(requests, 64, np.int32)
    some = Workload("256/64", arrival_s, prompt, output, output)
    started = time.process_time()
    run = simulate(some, costs)
    elapsed_s = time.process_time() - started
    return {
        "chunk": chunk,
        "load": load,
        "requests": requests,
        "event": CONTINUOUS_EVENT,
        "events": len(run.passes),
        "requests_s": requests / elapsed_s,
    }


def simulate_continuous() -> Iterator[dict]:
    """Requests a second of continuous batching at chunks of 512 and 64, the best of nine, and
    whether 200,000 requests go as fast as 20,000."""
    for chunk, load in itertools.product((512, 64), (0.5, 0.9, 20.0)):
        runs = [continuously_simulated(10_000, load, chunk) for _ in range(9)]
        best = max(runs, key=lambda run: run["requests_s"])
        aim = 100_000 if chunk == 512 else 40_000
        yield best | {"requests_s": round(best["requests_s"]), "aim_requests_s": aim}
    for requests in (20_000, 200_000):
        run = continuously_simulated(requests, 0.9, 512)
        yield run | {"requests_s": round(run["requests_s"])}


def drawn(requests: int):
    import numpy as np

    from spyre_bench.workload.source import named_workload

    return named_workload("azure_conv", requests, np.random.default_rng(0))


def optimize_1d() -> Iterator[dict]:
    """The exact optimum of 1 to 16 prompt lengths."""
    from spyre_bench.choose.schemes import optimal

    some = drawn(20_000)
    runs = [seconds(lambda: optimal(some.prompt_tokens, 16, step=64)) for _ in range(9)]
    yield {
        "requests": len(some),
        "k": 16,
        "step": 64,
        "longest": int(some.prompt_tokens.max()),
        "seconds": statistics.median(runs),
        "aim_s": 0.2,
    }


def optimize_joint() -> Iterator[dict]:
    """Eight buckets out of 200 with their certificate, on the cost table that ships."""
    from spyre_bench.choose.advise import within
    from spyre_bench.choose.optimize import Limits, candidates, choose_buckets
    from spyre_bench.cost.bucket_cost import price
    from spyre_bench.cost.source import load_cost

    model = load_cost()
    some = within(drawn(10_000), model)
    costs = price(candidates(some, (1, 2, 4, 8), smallest=model.smallest[1:]), model)
    choices = [choose_buckets(some, costs, Limits(8)) for _ in range(5)]
    yield {
        "requests": len(some),
        "candidates": len(costs),
        "k": 8,
        "seconds": statistics.median(choice.seconds for choice in choices),
        "gap": choices[0].gap,
        "aim_s": 5,
        "aim_gap": 1e-3,
    }


def sweep() -> Iterator[dict]:
    """A thousand sets of buckets, in two processes, into a CSV file."""
    import tempfile

    from spyre_bench.studies.sweep import points, run_sweep

    steps = range(64, 704, 64)
    grid = {
        "workload": "azure_conv",
        "requests": 10_000,
        "length_scale": 0.14,  # to the range of the table that ships
        "rate_scale": 0.1,
        "extrapolate": True,
        "buckets": [
            f"8,{short},32 4,{short + more},96 {rows},2048,160"
            for short, more, rows in itertools.product(steps, steps, range(1, 11))
        ],
    }
    with tempfile.TemporaryDirectory() as folder:
        some = points(grid)
        started = time.perf_counter()
        frame = run_sweep(some, Path(folder) / "sweep.csv", jobs=2, progress=False)
        elapsed_s = time.perf_counter() - started
    assert (frame["error"] == "").all()
    yield {
        "sets": len(frame),
        "requests": grid["requests"],
        "processes": 2,
        "batches": int(frame["batches"].sum()),
        "rejected": int(frame["rejected"].sum()),
        "seconds": elapsed_s,
        "requests_s": round(len(frame) * grid["requests"] / elapsed_s),
        "aim_s": 120,
    }


ENGINE = {
    "decode": (decode, [(threads, rows) for threads in (1, 2) for rows in (1, 2, 4, 8)]),
    "generate": (generate_against_hugging_face, [(1, 4), (2, 4)]),
    "overhead": (overhead, [(1, 4), (2, 4)]),
    "compile": (compile_times, [(2, 4)]),
    "model_codes": (model_codes, [(1, 4), (2, 4)]),
    "paged": (paged_over_static, [(1, 4, 256), (1, 8, 512), (1, 8, 1024)]),
}


def serve() -> Iterator[dict]:
    """Tokens a second and P95 latency of one trace near saturation: best_fit, upstream's `skip`,
    and Hugging Face `generate` on whoever waits, up to the rows of the widest bucket."""
    import tempfile

    import numpy as np

    from spyre_bench.checkpoints.find import model_directory
    from spyre_bench.policy.static import Policy
    from spyre_bench.shapes import BucketSet
    from spyre_bench.studies import under_load
    from spyre_bench.validate import check, static
    from spyre_bench.validate import server as serving
    from spyre_bench.workload.source import load_workload

    buckets, model = BucketSet.parse("4,64,32 2,256,64"), model_directory("smollm2")
    drawn = load_workload("azure_conv", requests=200, rng=np.random.default_rng(0)).scaled(0.12)
    some = static.fitting(drawn, buckets).head(40)
    with tempfile.TemporaryDirectory(prefix="spyre-bench-") as scratch:
        directory, arriving = Path(scratch), None
        for policy in ("best_fit", "skip"):
            with serving.serve(model, buckets, directory / policy, policy=policy) as server:
                rules = Policy(policy, gather_s=0.02)
                host = static.StaticHost(server, directory / policy, buckets, rules)
                constants = check.calibrate(host, directory / policy, "first")
                if arriving is None:  # the same trace for all three
                    rate = under_load.capacity_rps(some, constants.costs, rules)
                    arriving = some.with_arrivals(f"poisson:{rate}", np.random.default_rng(1))
                result = serving.replay(server, arriving, directory / policy, "trace")
            yield _served(policy, result["duration"], np.array(result["latencies"]), arriving)
    yield _served("hugging_face", *hugging_face_server(model, arriving, buckets), arriving)


def healthy() -> Iterator[dict]:
    """Seconds from `vllm serve` to a healthy server with two buckets, on two threads: cold, and
    then three times from the code that the cold start left."""
    import tempfile

    from spyre_bench.checkpoints.find import model_directory
    from spyre_bench.pass_log import read_warmup
    from spyre_bench.shapes import BucketSet
    from spyre_bench.validate import server as serving

    model, buckets = model_directory("smollm2"), BucketSet.parse("4,64,32 2,256,64")
    with tempfile.TemporaryDirectory(prefix="spyre-bench-") as scratch:
        artefacts = str(Path(scratch) / "artefacts")
        for start, aim_s in (("cold", 25), *[("warm", 15)] * 3):
            directory, began = Path(scratch) / start, time.perf_counter()
            with serving.serve(
                model, buckets, directory, threads=2, artefact_directory=artefacts
            ) as server:
                healthy_s = time.perf_counter() - began
                warmup = read_warmup(server.pass_log)
            compile_s = float((warmup.prefill_compile_s + warmup.decode_compile_s).sum())
            yield {"start": start, "healthy_s": healthy_s, "compile_s": compile_s, "aim_s": aim_s}


KINDS = {
    "static": {"buckets": [[4, 64, 32], [4, 256, 64]]},
    "continuous": {
        "batching": "continuous",
        "prefill_shapes": "64,320 256,320",
        "decode_shapes": "4,128 4,320",
    },
    "continuous, 8 rows": {
        "batching": "continuous",
        "prefill_shapes": "64,320 256,320",
        "decode_shapes": "4,128 8,128 4,320 8,320",
    },
}
"""What a server of each kind compiles; the first two have room for as many rows."""


def kinds() -> Iterator[dict]:
    """One trace of conversations, scaled to this machine, on a server of each kind in turn: all at
    once (throughput at saturation), and at half of what static batching served then (latency)."""
    import tempfile

    import numpy as np

    from spyre_bench.checkpoints.find import model_directory
    from spyre_bench.shapes import BucketSet
    from spyre_bench.validate import server as serving
    from spyre_bench.validate import static
    from spyre_bench.workload.source import load_workload

    drawn = load_workload("azure_conv", requests=300, rng=np.random.default_rng(0)).scaled(0.12)
    buckets = BucketSet.parse(map(tuple, KINDS["static"]["buckets"]))
    some = static.fitting(drawn, buckets).head(30)
    model, half, static_s = model_directory("smollm2"), None, None
    with tempfile.TemporaryDirectory(prefix="spyre-bench-") as scratch:
        for kind, setting in KINDS.items():
            directory = Path(scratch) / kind.replace(", ", "_").replace(" ", "_")
            others = {name: value for name, value in setting.items() if name != "buckets"}
            compiled = buckets if "buckets" in setting else None
            with serving.serve(model, compiled, directory, **others) as server:
                serving.replay(server, some.head(8).with_arrivals("all"), directory, "first")
                full = serving.replay(server, some.with_arrivals("all"), directory, "all")
                if half is None:
                    static_s = full["duration"]
                    rate = len(some) / static_s / 2
                    half = some.with_arrivals(f"poisson:{rate}", np.random.default_rng(1))
                calm = serving.replay(server, half, directory, "half")
            yield _served(kind, full["duration"], np.array(full["latencies"]), some) | {
                "over_static": static_s / full["duration"],
                "aim": 1.5,
                "half_load_rps": rate,
                "p95_ttft_s": float(np.percentile(calm["ttfts"], 95)),
                "p95_e2el_s": float(np.percentile(calm["latencies"], 95)),
                "median_e2el_s": float(np.median(calm["latencies"])),
            }


def _served(who: str, duration_s: float, e2el_s, workload) -> dict:
    import numpy as np

    tokens = int(workload.output_tokens.sum())
    return {
        "server": who,
        "requests": len(workload),
        "tokens_s": tokens / duration_s,
        "median_e2el_s": float(np.median(e2el_s)),
        "p95_e2el_s": float(np.percentile(e2el_s, 95)),
    }


def hugging_face_server(model_directory, workload, buckets) -> tuple:
    """Seconds until all are answered, and each request's latency: whoever has arrived when the
    batch before is done, in order, padded to the longest prompt, run to the longest answer."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32).eval()

    def run(rows: list[int]) -> None:
        longest = int(workload.prompt_tokens[rows].max())
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for row, request in enumerate(rows):
            mask[row, longest - int(workload.prompt_tokens[request]) :] = 1
        tokens = int(workload.output_tokens[rows].max())
        model.generate(
            5 * mask,
            attention_mask=mask,
            do_sample=False,
            pad_token_id=0,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
        )

    run([0])
    arrival_s = workload.arrival_s - workload.arrival_s[0]
    e2el_s, served, started = np.zeros(len(workload)), 0, time.perf_counter()
    while served < len(workload):
        now = time.perf_counter() - started
        here = int(np.searchsorted(arrival_s, now, side="right"))
        if here == served:
            time.sleep(arrival_s[served] - now)
            continue
        rows = list(range(served, min(here, served + buckets.max_batch_size)))
        run(rows)
        e2el_s[rows] = time.perf_counter() - started - arrival_s[rows]
        served += len(rows)
    return time.perf_counter() - started, e2el_s


def scheduler() -> Iterator[dict]:
    """Milliseconds of vLLM's scheduler with our rule, a step, while many wait: of steps that start
    a batch, and of steps that go on with one. Half of the requests are long."""
    import tempfile

    from vllm.engine.arg_utils import EngineArgs

    from tests.plugin.test_static_scheduler import Host, replaced
    from tests.tiny_models import tiny_model

    with tempfile.TemporaryDirectory() as directory:
        config = EngineArgs(
            model=str(tiny_model(Path(directory) / "model", "llama")),
            additional_config={"spyre": {"buckets": [[4, 64, 32], [2, 256, 64]], "gather_s": 0}},
        ).create_engine_config()
        for waiting in (1_000, 100_000):
            for policy in ("best_fit", "skip", "fcfs", "length_aware"):
                host = Host(config)
                host.scheduler.spyre_config = replaced(host.scheduler.spyre_config, policy=policy)
                for number in range(waiting):
                    host.add(str(number), prompt_tokens=200 if number % 2 else 20, max_tokens=3)
                schedule, found = host.scheduler.schedule, {True: [], False: []}

                def timed(schedule=schedule, found=found):
                    started = time.perf_counter()
                    output = schedule()
                    found[output.bucket is not None].append(time.perf_counter() - started)
                    return output

                host.scheduler.schedule = timed
                for _ in range(300):
                    host.step()
                yield {
                    "policy": policy,
                    "waiting": waiting,
                    "new_batch_ms": statistics.median(found[True]) * 1e3,
                    "decode_ms": statistics.median(found[False]) * 1e3,
                }


def continuous_scheduler() -> Iterator[dict]:
    """Milliseconds of vLLM's scheduler under continuous batching, a pass, sixteen rows decoding
    while many wait: of `schedule`, and of what follows the pass with its statistics."""
    import tempfile

    from vllm.engine.arg_utils import EngineArgs

    from spyre_bench.policy.continuous import Rules
    from spyre_bench.shape_set import ShapeSet
    from tests.plugin.test_continuous_hosts import VllmHost
    from tests.tiny_models import tiny_model

    prefill, decode = "64,512 256,512", "4,512 16,512"
    spyre = {"batching": "continuous", "prefill_shapes": prefill, "decode_shapes": decode}
    with tempfile.TemporaryDirectory() as directory:
        config = EngineArgs(
            model=str(tiny_model(Path(directory) / "model", "llama")),
            additional_config={"spyre": spyre},
        ).create_engine_config()
        for waiting in (1_000, 100_000):
            for order in ("arrival", "shortest_prefill"):
                host = VllmHost(config, ShapeSet.parse(prefill, decode, 140), Rules(order=order))
                scheduler = host.scheduler
                scheduler.log_stats = True
                scheduler.kv_cache_manager.make_prefix_cache_stats = object
                for number in range(waiting):
                    host.add(str(number), [5 + number % 50] * (200 + number % 50), 200, 200)
                for _ in range(100):  # until all rows decode
                    host.step()
                seconds_of = {"schedule": [], "update_from_output": []}
                for name, found in seconds_of.items():
                    method = getattr(scheduler, name)

                    def timed(*arguments, method=method, found=found):
                        started = time.perf_counter()
                        result = method(*arguments)
                        found.append(time.perf_counter() - started)
                        return result

                    setattr(scheduler, name, timed)
                for _ in range(300):
                    host.step()
                yield {
                    "order": order,
                    "waiting": len(scheduler.waiting),
                    "rows": len(scheduler.running),
                } | {f"{name}_ms": statistics.median(s) * 1e3 for name, s in seconds_of.items()}


def tensor_parallel() -> Iterator[dict]:
    """Ranks of one thread each: gains over one rank, the share of a pass in all-reduces, start-up.
    A tiny model, where all is overhead, and one of SmolLM2's sizes with heads that divide."""
    import tempfile

    import pandas as pd

    from spyre_bench.checkpoints.find import model_directory
    from spyre_bench.checkpoints.stand_in import stand_in
    from spyre_bench.measure.starts import measure_starts
    from spyre_bench.shapes import BucketSet
    from spyre_bench.validate.tensor_parallel import gains
    from tests.tiny_models import tiny_model

    buckets = BucketSet.parse(f"4,{PROMPT_LENGTH},{NEW_TOKENS}")
    with tempfile.TemporaryDirectory() as scratch:
        models = {
            "tiny": tiny_model(Path(scratch) / "tiny", "llama"),
            "smollm2-sized": stand_in(model_directory("smollm2"), 12, 6, Path(scratch) / "sized"),
        }
        for name, model in models.items():
            starts = [measure_starts(model, buckets, tp=tp, threads=1) for tp in (1, 2)]
            cold, warm = (
                gains(pd.concat([one[one["start"] == start] for one in starts]))
                for start in ("cold", "warm")
            )
            for tp in range(len(starts)):
                first, again = cold.iloc[tp], warm.iloc[tp]
                yield {
                    "model": name,
                    "tp": int(again["tp"]),
                    "threads_a_rank": 1,
                    "prefill_ms": again["prefill_s"] * 1e3,
                    "decode_ms": again["decode_s"] * 1e3,
                    "prefill_gain": again["prefill_gain"],
                    "decode_gain": again["decode_gain"],
                    "decode_gain_a_rank": again["decode_gain_a_rank"],
                    "prefill_reduce_share": again["prefill_reduce_share"],
                    "decode_reduce_share": again["decode_reduce_share"],
                    "cold_start_s": first["load_s"] + first["startup_s"],
                    "warm_start_s": again["load_s"] + again["startup_s"],
                }


def dead_rank() -> Iterator[dict]:
    """From the kill of one of two idle ranks to the sentence that names it, and to the end of the
    server."""
    import tempfile

    from tests.plugin.servers import SPYRE, Server
    from tests.tiny_models import tiny_model

    with tempfile.TemporaryDirectory() as scratch:
        model = tiny_model(Path(scratch) / "tiny", "llama")
        detected_s, ended_s = [], []
        for turn in range(3):
            server = Server(model, SPYRE, Path(scratch) / f"{turn}", "--tensor-parallel-size", "2")
            try:
                server.wait_until_ready()
                killed_at = time.monotonic()
                server.ranks()[1].kill()
                while "The engine stops: rank 1" not in server.output():
                    time.sleep(0.01)
                detected_s.append(time.monotonic() - killed_at)
                server.process.wait(60)
                ended_s.append(time.monotonic() - killed_at)
            finally:
                server.clean_up()
        yield {"detected_s": statistics.median(detected_s), "ended_s": statistics.median(ended_s)}


def panels() -> Iterator[dict]:
    """From a moved control to the new picture and its numbers, in every notebook's panel: those
    that calculate at the notebooks' own settings, those of what was measured on made-up frames."""
    import ast
    from types import SimpleNamespace

    import numpy as np
    from papermill import inspect_notebook

    from spyre_bench import explore
    from spyre_bench.cost.bucket_cost import price
    from spyre_bench.cost.source import load_cost
    from spyre_bench.policy.static import Policy
    from spyre_bench.shapes import BucketSet
    from spyre_bench.studies import under_load
    from spyre_bench.workload.source import load_workload
    from tests.explore.test_explore import parts, some_passes, some_requests, some_starts

    def settings(stem: str) -> SimpleNamespace:
        declared = inspect_notebook(f"notebooks/{stem}.ipynb").items()
        return SimpleNamespace(**{name: ast.literal_eval(it["default"]) for name, it in declared})

    p = settings("03_how_full_are_batches")
    costs, rules = price(BucketSet.parse(p.buckets), load_cost()), Policy(p.policy)
    rng, drawn = np.random.default_rng(p.seed), {"arrivals": p.arrivals, "max_tokens": p.max_tokens}
    asked = load_workload(p.workload, requests=p.requests, rng=rng, **drawn)
    queue = under_load.fitting(asked.scaled(lengths=p.length_scale), costs)
    rate = under_load.capacity_rps(queue, costs, rules)
    tp = settings("04_does_tensor_parallel_pay")
    tp.cards = [int(word) for word in tp.cards.split()]
    used = {
        "00_first_look": (
            explore.first_look(some_passes()),
            {"show": ["waste", "passes"], "first batches": [1, 2, 3]},
        ),
        "01_which_buckets": (
            explore.which_buckets(settings("01_which_buckets"), 6),
            {"k": [3, 4, 8], "workload": ["sharegpt", "fmperf_ibm"]},
        ),
        "02_what_does_warmup_cost": (
            explore.what_warmup_costs(*some_starts()),
            {"answers [tokens]": [4, 8, 20], "start": ["warm", "cold"]},
        ),
        "03_how_full_are_batches": (
            explore.how_full(queue, costs, rules, rate),
            {"max_wait [s]": [5.0, 20.0, 60.0], "policy": ["skip", "length_aware"]},
        ),
        "04_does_tensor_parallel_pay": (
            explore.does_tp_pay(tp),
            {
                "all-reduce at least [µs], 0: the card's range": [100.0, 500.0, 900.0],
                "dtype": ["fp8", "fp16"],
            },
        ),
        "05_can_we_trust_the_simulator": (
            explore.trust_the_simulator(some_requests(64)),
            {"off by at least [%]": [1.0, 5.0, 9.0], "quantity": ["ttft", "tpot"]},
        ),
    }
    for stem, (box, moves) in used.items():
        panel, took_s, cpu_s = parts(box), [], []
        for words, values in moves.items():
            for value in values:
                started, busy_from = time.perf_counter(), time.process_time()
                panel.controls[words].value = value
                took_s.append(time.perf_counter() - started)
                cpu_s.append(time.process_time() - busy_from)
                assert not panel.message.value, panel.message.value
        yield {
            "notebook": stem,
            "redraws": len(took_s),
            "median_s": statistics.median(took_s),
            "median_cpu_s": statistics.median(cpu_s),
            "longest_s": max(took_s),
            "aim_median_s": 0.5,
        }


CORE = {
    "padding": padding,
    "shapes": shape_starts,
    "simulate": simulate,
    "simulate_many": simulate_many,
    "simulate_continuous": simulate_continuous,
    "optimize_1d": optimize_1d,
    "optimize_joint": optimize_joint,
    "sweep": sweep,
    "scheduler": scheduler,
    "continuous_scheduler": continuous_scheduler,
    "serve": serve,
    "healthy": healthy,
    "kinds": kinds,
    "tensor_parallel": tensor_parallel,
    "dead_rank": dead_rank,
    "panels": panels,
}
BENCHES = {name: [[]] for name in CORE} | {name: sizes for name, (_, sizes) in ENGINE.items()}
"""Name -> the arguments of each of its processes: threads and sizes, or none."""


def child(name: str, arguments: Sequence[int]) -> None:
    where = {"bench": name, "load_before": os.getloadavg()[0], "at": now()}
    lines = CORE[name]() if name in CORE else engine(name, arguments)
    for line in lines:
        rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in line.items()}
        print(json.dumps(where | rounded), flush=True)


def engine(name: str, arguments: Sequence[int]) -> Iterator[dict]:
    import torch

    run, threads = ENGINE[name][0], arguments[0]
    torch.set_num_threads(threads)
    bucket = {} if name == "paged" else {"bucket": [arguments[1], PROMPT_LENGTH, NEW_TOKENS]}
    yield {
        **bucket,
        "threads": threads,
        "mkl_cbwr": os.environ.get("MKL_CBWR", "unset"),
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        **run(*arguments),
    }


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def main(names: list[str]) -> None:
    unknown = set(names) - set(BENCHES)
    if unknown:
        sys.exit(f"no bench named {', '.join(sorted(unknown))}: there are {', '.join(BENCHES)}")
    for name in names or BENCHES:
        for arguments in BENCHES[name]:
            threads = str(arguments[0]) if arguments else "1"
            done = subprocess.run(
                [sys.executable, "-m", "tests.bench", "--child", name, *map(str, arguments)],
                env=os.environ | {"OMP_NUM_THREADS": threads},
                capture_output=True,
                text=True,
            )
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
            # vLLM logs to stdout too
            print(*(s for s in done.stdout.splitlines() if s.startswith("{")), sep="\n", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], [int(number) for number in sys.argv[3:]])
    else:
        main(sys.argv[1:])
