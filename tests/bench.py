"""`make bench`: figures of this machine as JSON lines, one a measurement, medians of several.

`python -m tests.bench [decode|generate|overhead|compile ...]` runs some of them. Every
measurement has a process of its own, with its threads pinned; nothing else should be running.
"""

import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime

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


def warmed(batch_size: int, **setting):
    """A warmed SmolLM2 engine with one bucket."""
    from spyre_bench.engine.checkpoint import model_directory
    from spyre_bench.engine.model import EngineConfig, SpyreCausalLM
    from spyre_bench.engine.warmup import warm_up
    from spyre_bench.shapes import Bucket, BucketSet

    bucket = Bucket(batch_size, PROMPT_LENGTH, NEW_TOKENS)
    model = SpyreCausalLM(
        EngineConfig(
            model_directory=model_directory("smollm2"), buckets=BucketSet((bucket,)), **setting
        )
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
    floor_s = (model.shape.weight_bytes("float32") + cache) / bandwidth
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

    from spyre_bench.engine.checkpoint import model_directory

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


def compile_times(threads: int, batch_size: int) -> dict:
    """Compile seconds by scope, and a warm start over a cold one (scope `layer`)."""
    from spyre_bench.engine.measure import measure_bucket
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


BENCHES = {
    "decode": (decode, [(1, 1), (1, 4), (2, 1), (2, 4)]),
    "generate": (generate_against_hugging_face, [(1, 4), (2, 4)]),
    "overhead": (overhead, [(1, 4), (2, 4)]),
    "compile": (compile_times, [(2, 4)]),
}


def child(name: str, threads: int, batch_size: int) -> None:
    import torch

    torch.set_num_threads(threads)
    load = os.getloadavg()[0]
    result = BENCHES[name][0](threads, batch_size)
    where = {
        "bench": name,
        "bucket": [batch_size, PROMPT_LENGTH, NEW_TOKENS],
        "threads": threads,
        "mkl_cbwr": os.environ.get("MKL_CBWR", "unset"),
        "load_before": load,
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    print(json.dumps(where | {k: round(v, 3) for k, v in result.items()}), flush=True)


def main(names: list[str]) -> None:
    unknown = set(names) - set(BENCHES)
    if unknown:
        sys.exit(f"no bench named {', '.join(sorted(unknown))}: there are {', '.join(BENCHES)}")
    for name in names or BENCHES:
        for threads, batch_size in BENCHES[name][1]:
            command = [sys.executable, "-m", "tests.bench", "--child", name]
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            done = subprocess.run(
                [*command, str(threads), str(batch_size)],
                env=environment, capture_output=True, text=True,
            )  # fmt: skip
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
            # vLLM logs to stdout too
            print(*(s for s in done.stdout.splitlines() if s.startswith("{")), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main(sys.argv[1:])
