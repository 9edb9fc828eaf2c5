"""An engine that fails while it serves: everybody gets an error, and the server ends by itself.

Whatever ended the engine, `vllm serve` itself ends with exit code 0: a supervisor must restart on
any exit (docs/OPERATIONS.md).
"""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import psutil
import pytest

from tests.plugin.servers import PAGED, SPYRE, Server

pytestmark = pytest.mark.slow

END_S = 30


@pytest.fixture
def server(request, tiny_llama, tmp_path):
    one = Server(
        tiny_llama,
        getattr(request, "param", SPYRE),
        tmp_path / "log",
        "--logits-processors",
        "tests.plugin.fail_pass:FailPass",
    )
    one.wait_until_ready()
    yield one
    one.clean_up()


def ask(server: Server, **chosen):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)
    return client.completions.create(
        model=server.model, prompt="a prompt", max_tokens=16, temperature=0, **chosen
    )


def engine_process(server: Server) -> psutil.Process:
    """psutil tells a child from its time, for which a stepped clock can take it for no child."""
    for _ in range(20):
        for child in psutil.Process(server.process.pid).children(recursive=True):
            if "EngineCore" in " ".join(child.cmdline()):
                return child
        time.sleep(0.5)
    raise AssertionError(f"no engine process\n{server.output()}")


def ends_by_itself(server: Server, asked_at: float) -> None:
    assert server.process.wait(END_S) == 0, server.output()
    assert time.monotonic() - asked_at < END_S
    server.require_nothing_left()


@pytest.mark.parametrize(
    ("server", "place"),
    [(SPYRE, 0), (SPYRE, 3), (PAGED, 3)],
    indirect=["server"],
    ids=["prefill", "decode", "continuous"],
)
def test_a_failing_pass_ends_every_open_request_and_then_the_server(server, place):
    """In the prefill, and in a decode pass; company in the batch and in the queue."""
    asked_at = time.monotonic()
    with ThreadPoolExecutor(41) as pool:
        others = [pool.submit(ask, server, extra_body={"ignore_eos": True}) for _ in range(20)]
        failing = pool.submit(ask, server, extra_body={"vllm_xargs": {"fail_at": place}})
        others += [pool.submit(ask, server, extra_body={"ignore_eos": True}) for _ in range(20)]
        with pytest.raises(openai.APIError):
            failing.result()
        outcomes = [other.exception() for other in others]
    assert any(outcomes), "nobody was left to be failed"
    assert all(one is None or isinstance(one, openai.APIError) for one in outcomes)
    assert "injected by a test" in server.output()
    ends_by_itself(server, asked_at)


def test_a_killed_engine_process_ends_every_open_request_and_then_the_server(server):
    engine = engine_process(server)
    with ThreadPoolExecutor(1) as pool:
        open_one = pool.submit(ask, server, extra_body={"ignore_eos": True, "min_tokens": 16})
        asked_at = time.monotonic()
        engine.send_signal(signal.SIGKILL)
        with pytest.raises(openai.APIError):
            open_one.result()
    ends_by_itself(server, asked_at)
