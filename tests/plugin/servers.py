"""Processes of ours for tests: a script or a server, with all that it starts."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

import psutil

SPYRE = {"buckets": [[4, 64, 16], [2, 128, 16]], "compile_backend": "eager"}
# Prompts of one request form the same batches, however late a busy machine brings them and whatever
# its warmup measured, by which `best_fit` would choose.
GATHERED = SPYRE | {"gather_s": 10, "policy": "skip"}
PAGED = {
    "batching": "continuous",
    "compile_backend": "eager",
    "prefill_shapes": "64,512",
    "decode_shapes": "4,512",
    "blocks": 20,  # three requests of the longest kind
}
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time there was a little girl who",
    "Count: one, two, three,",
    "Water boils at a temperature of",
    "A list of colours: red, " * 12,
]


class Run:
    """A process of ours with all that it starts, found again by its session, or by a mark in the
    environment where a compile worker has a session of its own. (vLLM's engine process overwrites
    its environment with its title.)"""

    def __init__(self, command: list[str], log: Path, **environment: str):
        self.mark = uuid.uuid4().hex
        self.log = log
        environment = os.environ | {
            "SPYRE_TEST_MARK": self.mark,
            "VLLM_PLUGINS": "spyre",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
            "VLLM_LOGGING_LEVEL": "INFO",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),  # for logits processors of the tests
            **environment,
        }
        with log.open("w") as sink:
            self.process = subprocess.Popen(
                command,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                # a shell's background job ignores Ctrl-C and hands that on
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def output(self) -> str:
        return self.log.read_text()

    def wait_for(self, ready, timeout_s: float = 120) -> None:
        end = time.monotonic() + timeout_s
        while not ready():
            assert self.process.poll() is None, f"ended early:\n{self.output()}"
            assert time.monotonic() < end, f"not ready after {timeout_s} s:\n{self.output()}"
            time.sleep(0.2)

    def ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def left(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if (
                    os.getsid(process.pid) == self.process.pid
                    or process.environ().get("SPYRE_TEST_MARK") == self.mark
                ):
                    found.append(process)
        return found

    def ranks(self) -> list[psutil.Process]:
        """The processes of a tensor parallel engine's ranks, in order."""
        engines = [one for one in self.left() if "EngineCore" in " ".join(one.cmdline())]
        return sorted(
            (
                child
                for engine in engines
                for child in engine.children()
                if "resource_tracker" not in " ".join(child.cmdline())
            ),
            key=lambda one: one.create_time(),
        )

    def require_nothing_left(self) -> None:
        end = time.monotonic() + 5
        while self.left() and time.monotonic() < end:
            time.sleep(0.1)
        assert not self.left()

    def clean_up(self) -> None:
        for process in self.left():
            process.kill()
        self.process.wait()


class Server(Run):
    """`vllm serve` on the backend, on a free port."""

    def __init__(self, model: Path, spyre: dict, log: Path, *words: str, **environment: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.model = "smollm2"
        super().__init__(
            [
                str(Path(sys.executable).with_name("vllm")),
                "serve",
                str(model),
                "--port",
                str(port),
                "--served-model-name",
                self.model,
                "--additional-config",
                json.dumps({"spyre": spyre}),
                *words,
            ],
            log,
            **environment,
        )

    def wait_until_ready(self) -> None:
        self.wait_for(lambda: self.answers("/health"), timeout_s=300)

    def answers(self, path: str) -> bool:
        try:
            return urllib.request.urlopen(self.url + path, timeout=5).status == 200
        except OSError:
            return False

    def metrics(self) -> dict[str, float]:
        """Every sample of `/metrics`, by its name with the labels that tell samples apart."""
        from prometheus_client.parser import text_string_to_metric_families

        text = urllib.request.urlopen(self.url + "/metrics", timeout=30).read().decode()
        return {
            "|".join(
                [sample.name, *(v for k, v in sorted(sample.labels.items()) if k in TOLD)]
            ): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


TOLD = ("bucket", "shape", "kind", "reason", "finished_reason")
