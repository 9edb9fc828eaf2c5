"""Whole processes on the embedded model: answers equal to Hugging Face's, clean starts and ends."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

SPYRE = {"buckets": [[4, 64, 16], [2, 128, 16]], "compile_backend": "eager"}
SLOW_TO_WARM = {"buckets": [[8, 512, 64]], "compile_scope": "model"}
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time there was a little girl who",
    "Count: one, two, three,",
    "Water boils at a temperature of",
    "A list of colours: red, " * 12,
]
SCRIPT = Path(__file__).parent / "offline_script.py"


class Run:
    """A process of ours with all that it starts, found again by its session, or by a mark in the
    environment where a compile worker has a session of its own. (vLLM's engine process overwrites
    its environment with its title.)"""

    def __init__(self, command: list[str], log: Path):
        self.mark = uuid.uuid4().hex
        self.log = log
        environment = os.environ | {
            "SPYRE_TEST_MARK": self.mark,
            "VLLM_PLUGINS": "spyre",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
            "VLLM_LOGGING_LEVEL": "INFO",
            "OMP_NUM_THREADS": "1",
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

    def require_nothing_left(self) -> None:
        end = time.monotonic() + 5
        while self.left() and time.monotonic() < end:
            time.sleep(0.1)
        assert not self.left()

    def clean_up(self) -> None:
        for process in self.left():
            process.kill()
        self.process.wait()


@pytest.fixture
def start(tmp_path):
    runs = []

    def run(*command: str) -> Run:
        runs.append(Run(list(command), tmp_path / f"{len(runs)}.log"))
        return runs[-1]

    yield run
    for one in runs:
        one.clean_up()


@pytest.fixture(scope="module")
def expected(smollm2) -> list[list[int]]:
    """What Hugging Face transformers says to each prompt, one at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()

    def answer(prompt: str) -> list[int]:
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        return output[0, inputs["input_ids"].shape[1] :].tolist()

    return [answer(prompt) for prompt in PROMPTS]


def test_an_offline_script_says_what_hugging_face_says_and_ends_cleanly(
    start, smollm2, expected, tmp_path
):
    log = tmp_path / "passes.jsonl"
    arguments = json.dumps([str(smollm2), SPYRE | {"pass_log": str(log)}, PROMPTS, 16])
    run = start(sys.executable, str(SCRIPT), arguments)
    assert run.process.wait(180) == 0, run.output()
    (answers,) = [json.loads(line) for line in run.output().splitlines() if line.startswith("[[")]
    assert answers == expected
    passes = [json.loads(line) for line in log.read_text().splitlines()]
    rows = [line["running"] for line in passes if line["kind"] == "prefill"]
    assert rows == [4, 2], "prompts that arrive together share a batch"
    assert "Traceback" not in run.output()
    run.require_nothing_left()


def test_a_model_that_does_not_fit_the_memory_ends_with_one_sentence(start, smollm2):
    arguments = json.dumps([str(smollm2), SPYRE | {"memory_bytes": 10**8}, PROMPTS, 16])
    run = start(sys.executable, str(SCRIPT), arguments)
    assert run.process.wait(60) > 0
    assert re.search(
        r"ValueError: bucket \S+ needs \S+ bytes in float32 .* there are 100,000,000: not even "
        r"batch_size 1 fits: use shorter lengths or a smaller model",
        run.output(),
    ), run.output()
    run.require_nothing_left()


@pytest.mark.parametrize("who", ["the whole foreground", "the front end"])
def test_ctrl_c_during_warmup_ends_within_ten_seconds(start, smollm2, who):
    arguments = json.dumps([str(smollm2), SLOW_TO_WARM, PROMPTS, 16])
    run = start(sys.executable, str(SCRIPT), arguments)
    run.wait_for(lambda: "warmup:" in run.output())
    time.sleep(2)
    began = time.monotonic()
    if who == "the whole foreground":
        run.ctrl_c()
    else:
        run.process.send_signal(signal.SIGINT)
    assert run.process.wait(20) == -signal.SIGINT  # as Python ends on Ctrl-C
    run.require_nothing_left()
    assert time.monotonic() - began < 10


def test_a_server_answers_as_hugging_face_refuses_with_a_sentence_and_ends_cleanly(
    start, smollm2, expected, unused_port
):
    run = start(
        str(Path(sys.executable).with_name("vllm")),
        "serve",
        str(smollm2),
        *("--port", str(unused_port), "--additional-config", json.dumps({"spyre": SPYRE})),
    )
    url = f"http://127.0.0.1:{unused_port}"
    run.wait_for(lambda: answers(f"{url}/health"))

    plain = {"model": str(smollm2), "max_tokens": 16, "temperature": 0, "return_token_ids": True}
    for prompt, tokens in zip(PROMPTS[:3], expected, strict=False):
        reply = post(f"{url}/v1/completions", plain | {"prompt": prompt})
        assert reply["choices"][0]["token_ids"] == tokens
    too_long = {"model": str(smollm2), "prompt": "word " * 130, "max_tokens": 2}
    with pytest.raises(urllib.error.HTTPError) as refusal:
        post(f"{url}/v1/completions", too_long)
    assert refusal.value.code == 400
    assert "no bucket fits prompt_tokens=" in refusal.value.read().decode()

    run.ctrl_c()
    assert run.process.wait(20) == 0, run.output()
    assert "Traceback" not in run.output()
    run.require_nothing_left()


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=1).status == 200
    except OSError:
        return False


def post(url: str, body: dict) -> dict:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)
