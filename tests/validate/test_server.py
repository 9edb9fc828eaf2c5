"""The server that a notebook starts."""

import os
import signal
import subprocess
import sys
import time

import pytest

NOTEBOOK = """
import signal, subprocess, time
from spyre_bench.validate.server import ends_with_us
signal.signal(signal.SIGINT, signal.SIG_IGN)
server = subprocess.Popen(
    ["sleep", "60"], start_new_session=True, stdout=subprocess.DEVNULL, preexec_fn=ends_with_us
)
print(server.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is a signal on Linux only")
def test_a_server_does_not_outlive_a_notebook_that_is_killed():
    notebook = subprocess.Popen([sys.executable, "-c", NOTEBOOK], stdout=subprocess.PIPE, text=True)
    server = int(notebook.stdout.readline())
    os.kill(server, 0)
    notebook.send_signal(signal.SIGKILL)
    notebook.wait()
    end = time.monotonic() + 30
    while _runs(server) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _runs(server)


def _runs(pid: int) -> bool:
    """Whether there is such a process and it is no zombie that nobody asks for."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
