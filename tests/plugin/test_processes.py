"""Whole processes on the embedded model: answers equal to Hugging Face's, clean starts and ends."""

import json
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.plugin.servers import GATHERED, PROMPTS, SPYRE

pytestmark = pytest.mark.slow

SLOW_TO_WARM = {"buckets": [[8, 512, 64]], "compile_scope": "model"}
SCRIPT = Path(__file__).parent / "offline_script.py"


def test_an_offline_script_that_has_computed_says_what_hugging_face_says_and_ends_cleanly(
    start, smollm2, expected, tmp_path
):
    log = tmp_path / "passes.jsonl"
    arguments = json.dumps([str(smollm2), GATHERED | {"pass_log": str(log)}, PROMPTS, 16])
    run = start(sys.executable, str(SCRIPT), arguments, OMP_NUM_THREADS="2")
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
