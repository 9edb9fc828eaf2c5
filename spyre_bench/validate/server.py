"""A real server and real clients for a notebook: `vllm serve` on the backend, `vllm bench serve`
replaying a workload, and a single request where times of a client are not asked for.

Nothing of vLLM is imported here: server and benchmark are processes of their own, one each.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spyre_bench.measure.children import ends_with_us
from spyre_bench.shapes import BucketSet
from spyre_bench.validate.bench_client import BenchClient
from spyre_bench.workload.workload import Workload

VLLM = Path(sys.executable).with_name("vllm")
READY_S = 900  # a cold compile of many buckets
STOP_S = 30
KEEP_ALIVE_S = 120
"""The server's for an idle connection, longer than the 60 s of vLLM's client: with the default of 5
a request that came just then after a pause was lost ("Connection reset by peer")."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    model_directory: Path
    pass_log: Path
    session: int  # of all its processes
    client: BenchClient

    @property
    def sessions(self) -> list[int]:
        """Its own, and its client's once there is one."""
        theirs = self.client.session
        return [self.session] if theirs is None else [self.session, theirs]


@contextlib.contextmanager
def serve(
    model_directory: Path,
    buckets: BucketSet | str | None,
    directory: Path,
    *,
    threads: int = 1,
    tp: int = 1,
    replays: bool = False,
    **setting: Any,
) -> Iterator[Server]:
    """`vllm serve` with these buckets over `tp` ranks of so many threads until the block ends. As
    text ("@shapes.json") the server itself reads them; None where `setting`, further keys of
    `additional_config["spyre"]`, says what is compiled. With `replays` the client starts beside the
    server, not with the first replay. Logs and pass log go into the directory.
    Raises ValueError with the end of the log where the server ends or is not ready within a quarter
    of an hour."""
    directory.mkdir(parents=True, exist_ok=True)
    pass_log = directory / "passes.jsonl"
    asked = buckets
    if isinstance(buckets, BucketSet):
        asked = [[b.batch_size, b.prompt_length, b.new_tokens] for b in buckets]
    spyre = {"pass_log": str(pass_log), **setting}
    if asked is not None:
        spyre["buckets"] = asked
    port = _free_port()
    command = [
        *_environment(threads),
        str(VLLM),
        "serve",
        str(model_directory),
        "--port",
        str(port),
        "--served-model-name",
        "model",
        "--additional-config",
        json.dumps({"spyre": spyre}),
        "--tensor-parallel-size",
        str(tp),
    ]
    log = directory / "server.log"
    with log.open("w") as sink:
        process = subprocess.Popen(
            command,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=ends_with_us,
        )
    client = BenchClient(directory / "client.log", _environment(1), ends_with_us)
    try:
        if replays:
            client.start()
        _wait_until_ready(process, f"http://127.0.0.1:{port}/health", log)
        yield Server(f"http://127.0.0.1:{port}", model_directory, pass_log, process.pid, client)
    finally:
        client.close()
        _stop(process)


def complete(server: Server, prompts: list[list[int]], new_tokens: int) -> None:
    """One request with so many prompts of token ids, each answered with so many tokens, the end of
    sequence ignored. Returns with the whole answer; raises urllib.error.HTTPError for a refusal."""
    body = {
        "model": "model",
        "prompt": prompts,
        "max_tokens": new_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    request = urllib.request.Request(
        f"{server.url}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as reply:
        reply.read()


def replay(server: Server, workload: Workload, directory: Path, name: str) -> dict[str, Any]:
    """`vllm bench serve` sends the requests at their times, each with a prompt of exactly its
    length and max_tokens = output_tokens, the end of sequence ignored. Returns its result with all
    arrays, which stays in the directory as `<name>.json`."""
    trace = directory / f"{name}.jsonl"
    first = secrets.randbits(48)  # prompts are drawn by these: no run meets another's prefixes
    with trace.open("w") as file:
        file.writelines(
            json.dumps({"timestamp": at, "input_length": p, "output_length": o, "hash_ids": [i]})
            + "\n"
            for i, (at, p, o) in enumerate(
                zip(
                    workload.arrival_s.tolist(),
                    workload.prompt_tokens.tolist(),
                    workload.output_tokens.tolist(),
                    strict=True,
                ),
                start=first,
            )
        )
    server.client.run(
        [
            *("--base-url", server.url, "--model", "model", "--backend", "vllm"),
            *("--tokenizer", str(server.model_directory)),
            *("--dataset-name", "timed_trace", "--dataset-path", str(trace)),
            *("--timed-trace-chunk-hash-size", str(int(workload.prompt_tokens.max()))),
            *("--num-prompts", str(len(workload)), "--num-warmups", "0", "--temperature", "0"),
            *("--save-result", "--save-detailed", "--disable-tqdm"),
            *("--result-dir", str(directory), "--result-filename", f"{name}.json"),
        ]
    )
    result = json.loads((directory / f"{name}.json").read_text())
    if result["failed"]:
        error = next(error for error in result["errors"] if error)
        raise ValueError(f"{result['failed']} of {len(workload)} requests failed: {error[-500:]}")
    return result


def _environment(threads: int) -> list[str]:
    """What a command runs under, beside this process's own environment."""
    names = {
        "VLLM_PLUGINS": "spyre",
        "VLLM_NO_USAGE_STATS": 1,
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": KEEP_ALIVE_S,
        "OMP_NUM_THREADS": threads,
    }
    return ["env", *(f"{name}={value}" for name, value in names.items())]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_ready(process: subprocess.Popen, url: str, log: Path) -> None:
    end = time.monotonic() + READY_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as reply:
            if reply.status == 200:
                return
        time.sleep(0.2)
    raise ValueError(f"the server did not become ready:\n{log.read_text()[-2000:]}")


def _stop(process: subprocess.Popen) -> None:
    """As Ctrl-C does, and by force where that does not help."""
    for number, seconds in ((signal.SIGINT, STOP_S), (signal.SIGKILL, STOP_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return
