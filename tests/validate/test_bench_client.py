"""A client that outlives its runs; in place of vLLM's a process that answers lines."""

import os
import signal
import sys
import threading
import time

import pytest

from spyre_bench.validate import bench_client
from spyre_bench.validate.bench_client import BenchClient

STAND_IN = """
import json, os, sys, time
for line in sys.stdin:
    word = json.loads(line)[0]
    print(os.getpid(), word, file=sys.stderr, flush=True)
    if word == "dies":
        os._exit(1)
    if word == "hangs":
        time.sleep(60)
    print(json.dumps(word != "fails"), flush=True)
"""


@pytest.fixture
def client(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_client, "PROGRAM", (sys.executable, "-c", STAND_IN))
    one = BenchClient(tmp_path / "client.log")
    yield one
    one.close()


def test_one_process_makes_all_runs_and_the_first_starts_it(client):
    assert client.session is None
    client.run(["first"])
    process = client.session
    client.run(["second"])
    assert client.log.read_text().split() == [str(process), "first", str(process), "second"]


def test_it_may_start_before_its_first_run(client):
    process = client.start().pid
    client.run(["first"])
    assert client.session == process


def test_a_run_that_fails_says_what_was_printed_and_the_next_goes_on(client):
    client.run(["well"])
    process = client.session
    with pytest.raises(ValueError, match=f"(?s)vllm bench serve failed:.*{process} fails"):
        client.run(["fails"])
    client.run(["well"])
    assert client.session == process


def test_a_client_that_dies_fails_its_run_and_the_next_starts_another(client):
    with pytest.raises(ValueError, match="dies"):
        client.run(["dies"])
    client.run(["well"])


def test_one_that_has_died_since_its_last_run_fails_the_next(client):
    client.run(["well"])
    os.kill(client.session, signal.SIGKILL)
    os.waitid(os.P_PID, client.session, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ValueError, match="vllm bench serve failed"):
        client.run(["well"])


def test_ctrl_c_in_a_run_ends_the_client(client):
    def interrupt() -> None:
        while not (client.log.exists() and "hangs" in client.log.read_text()):
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            client.run(["hangs"])
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert client.session is None


def test_closed_it_is_gone(client):
    client.run(["well"])
    process = client.session
    client.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
