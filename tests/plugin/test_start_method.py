"""What a process does before it forks. Which start method an engine gets: test_platform.py."""

import subprocess
import sys

import pytest

COMPUTES_THEN_FORKS = """
import os, signal, torch
from spyre_bench.plugin import start_method
{preparation}
def compute():
    torch.compile(lambda x: x.sin() * x)(torch.ones(1_000_000))
    return torch.ones(1000, 1000) @ torch.ones(1000, 1000)
compute()
for _ in range(2):
    child = os.fork()
    if not child:
        signal.alarm(20)
        compute()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    compute()
    if status:
        raise SystemExit("the fork waits for threads that it does not have")
"""


def computes_in_a_fork(preparation: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", COMPUTES_THEN_FORKS.format(preparation=preparation)],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")


def test_a_process_that_has_computed_can_fork_and_both_compute_on():
    done = computes_in_a_fork("start_method.let_forks_compute()")
    assert done.returncode == 0, done.stderr
    assert "the fork waits" in computes_in_a_fork("").stderr, (
        "OpenMP forks safely by itself: delete let_forks_compute and its call"
    )


def test_where_threads_cannot_be_let_go_the_engine_is_spawned(monkeypatch):
    from spyre_bench.plugin import start_method

    monkeypatch.setattr(start_method, "ASKED", None)
    monkeypatch.delenv(start_method.NAME, raising=False)
    monkeypatch.setattr(start_method, "_openmp_runtimes", lambda: iter([object()]))
    start_method.prefer_fork()
    assert start_method.os.environ[start_method.NAME] == "spawn"
