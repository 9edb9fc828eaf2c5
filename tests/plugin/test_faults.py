"""Ranks that die, stop or run out of memory: the engine says which and why, open requests get an
error, and everything ends by itself. `make test-faults` prints the seconds."""

import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from tests.plugin.servers import PAGED, SPYRE, Server

pytestmark = [pytest.mark.slow, pytest.mark.faults]

END_S = 30
LONG = {"buckets": [[4, 64, 400]], "compile_backend": "eager"}
SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def serve(tiny_llama, tmp_path):
    """Starts a server of two ranks; afterwards no process and no shared memory of it is left."""
    before = set(SHARED_MEMORY.iterdir())
    servers = []

    def start(*words: str, spyre=SPYRE, **environment: str) -> Server:
        words = ("--tensor-parallel-size", "2", *words)
        servers.append(Server(tiny_llama, spyre, tmp_path / "log", *words, **environment))
        return servers[-1]

    yield start
    (server,) = servers
    try:
        server.require_nothing_left()
        end = time.monotonic() + 10  # others on this machine come and go too
        while left := set(SHARED_MEMORY.iterdir()) - before:
            assert time.monotonic() < end, left
            time.sleep(0.2)
    finally:
        server.clean_up()


def ends_by_itself(server: Server, since: float, words: str, within_s: float = END_S) -> None:
    server.process.wait(within_s + 5)
    seconds = time.monotonic() - since
    print(f"ended {seconds:.1f} s after the fault")
    assert seconds < within_s
    assert re.search(words, server.output()), server.output()


def ask(server: Server, new_tokens: int):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)
    return client.completions.create(
        model=server.model,
        prompt="a prompt",
        max_tokens=new_tokens,
        temperature=0,
        extra_body={"ignore_eos": True},
    )


def decodes(log: Path) -> int:
    kinds = ('"kind": "decode"', '"kind": "rows"')
    return sum(map(log.read_text().count, kinds)) if log.exists() else 0


def signal_mid_decode(server: Server, log: Path, number: int, rank: int = 1) -> float:
    """Six open requests, of which four run: each ends with an error. When the signal was sent."""
    with ThreadPoolExecutor(6) as pool:
        open_ones = [pool.submit(ask, server, 400) for _ in range(6)]
        server.wait_for(lambda: decodes(log) > 20)
        sent_at = time.monotonic()
        server.ranks()[rank].send_signal(number)
        for one in open_ones:
            assert isinstance(one.exception(), openai.APIError)
    return sent_at


MANY = {"buckets": [[2, 64 * place, 2] for place in range(1, 7)]}  # inductor: seconds each
MANY_SHAPES = {"batching": "continuous"}


@pytest.mark.parametrize("settings", [MANY, MANY_SHAPES], ids=["static", "continuous"])
def test_a_rank_killed_during_warmup(serve, tmp_path, settings):
    server = serve(spyre=settings | {"artefact_directory": str(tmp_path / "artefacts")})
    server.wait_for(lambda: "warmup:" in server.output())
    time.sleep(2)
    killed_at = time.monotonic()
    server.ranks()[1].kill()
    ends_by_itself(server, killed_at, r"rank 1 of 2 \(process \d+\) was killed by SIGKILL")


def test_an_idle_rank_killed(serve):
    server = serve()
    server.wait_until_ready()
    killed_at = time.monotonic()
    server.ranks()[1].kill()
    ends_by_itself(server, killed_at, r"rank 1 of 2 \(process \d+\) was killed by SIGKILL")


@pytest.mark.parametrize("settings", [LONG, PAGED], ids=["static", "continuous"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_in_a_decode_pass(serve, tmp_path, rank, settings):
    log = tmp_path / "passes.jsonl"
    server = serve(spyre=settings | {"pass_log": str(log)})
    server.wait_until_ready()
    killed_at = signal_mid_decode(server, log, signal.SIGKILL, rank)
    ends_by_itself(server, killed_at, rf"rank {rank} of 2 \(process \d+\) was killed by SIGKILL")


@pytest.mark.parametrize("settings", [LONG, PAGED], ids=["static", "continuous"])
def test_a_rank_stopped_in_a_decode_pass(serve, tmp_path, settings):
    log = tmp_path / "passes.jsonl"
    server = serve(spyre=settings | {"pass_log": str(log), "step_timeout_s": 5})
    server.wait_until_ready()
    stopped_at = signal_mid_decode(server, log, signal.SIGSTOP)
    words = r"rank 1 of 2 \(process \d+\) is stopped \(SIGSTOP\) .*timed out"
    ends_by_itself(server, stopped_at, words, within_s=5 + END_S)


def test_a_rank_out_of_memory(serve):
    server = serve("--logits-processors", "tests.plugin.hungry:Hungry")
    server.wait_for(lambda: "ranks share" in server.output())
    ends_by_itself(
        server,
        time.monotonic(),
        r"the engine cannot start: rank 1 of 2 \(process \d+\) failed: .*memory",
    )


def test_a_rank_that_never_joins(serve):
    server = serve(
        spyre=SPYRE | {"join_timeout_s": 5},
        VLLM_WORKER_MULTIPROC_METHOD="spawn",  # forked ranks join too fast to be stopped before
    )
    server.wait_for(lambda: len(server.ranks()) == 2)
    stopped_at = time.monotonic()
    server.ranks()[1].send_signal(signal.SIGSTOP)
    ends_by_itself(server, stopped_at, r"waited 5 s for rank 1", within_s=60)


def test_the_step_time_out_is_a_minute_unless_said_otherwise():
    from spyre_bench.plugin.config import SpyreConfig

    buckets = {"buckets": [[1, 64, 2]]}
    assert SpyreConfig.read(buckets, {}).step_timeout_s == 60
    vllms = {"VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "7"}
    assert SpyreConfig.read(buckets, vllms).step_timeout_s == 7
