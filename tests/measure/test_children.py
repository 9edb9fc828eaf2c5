"""Whoever is killed leaves no process behind that measures on."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.processes import runs

SERVER = """
import signal, subprocess, time
from spyre_bench.measure.children import ends_with_us
signal.signal(signal.SIGINT, signal.SIG_IGN)
server = subprocess.Popen(
    ["sleep", "60"], start_new_session=True, stdout=subprocess.DEVNULL, preexec_fn=ends_with_us
)
print(server.pid, flush=True)
time.sleep(60)
"""
STARTS = """
import signal, sys
from spyre_bench.measure import starts
sys.executable = sys.argv[1]
starts.measure_starts("no-model", starts.BucketSet.parse("1,64,4"), warm=False)
"""
CHILD = """#!/bin/sh
echo $$ >&2
exec sleep 60
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is a signal on Linux only")
@pytest.mark.parametrize("program", [SERVER, STARTS])
def test_a_process_does_not_outlive_a_notebook_that_is_killed(tmp_path, program):
    child = tmp_path / "child"
    child.write_text(CHILD)
    child.chmod(0o755)
    notebook = subprocess.Popen(
        [sys.executable, "-c", program, str(child)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    pid = int(notebook.stdout.readline())
    os.kill(pid, 0)
    notebook.send_signal(signal.SIGKILL)
    notebook.wait()
    end = time.monotonic() + 30
    while runs(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not runs(pid)
