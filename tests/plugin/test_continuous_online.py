"""Continuous batching behind the real server, asked by the official client."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from spyre_bench.validate.step_decisions import logged_decisions
from tests.plugin.servers import PROMPTS, Server

pytestmark = pytest.mark.slow

CONTEXT = 256


@pytest.fixture(scope="module")
def passes(tmp_path_factory):
    return tmp_path_factory.mktemp("continuous") / "passes.jsonl"


@pytest.fixture(scope="module")
def server(smollm2, passes):
    spyre = {
        "pass_log": str(passes),
        "batching": "continuous",
        "compile_backend": "eager",
        "prefill_shapes": "64,256 128,256",
        "decode_shapes": "2,256 4,128 4,256",
        "blocks": 24,
    }
    one = Server(smollm2, spyre, passes.with_name("log"), "--enable-prompt-tokens-details")
    one.wait_until_ready()
    yield one
    one.clean_up()


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


def complete(client, prompt, **chosen):
    chosen = {"max_tokens": 16, "temperature": 0} | chosen
    return client.completions.create(
        model="smollm2", prompt=prompt, extra_body={"return_token_ids": True}, **chosen
    )


def test_clients_that_come_and_go_get_what_hugging_face_says(client, expected):
    with ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(lambda prompt: complete(client, prompt), PROMPTS * 2))
    said = [answer.choices[0].token_ids for answer in answers]
    assert [tokens[: len(want)] for tokens, want in zip(said, expected * 2, strict=True)] == (
        expected * 2
    )


@pytest.mark.parametrize("boundary", [64, 128, CONTEXT])
def test_lengths_one_below_at_and_above_every_compiled_boundary(client, boundary):
    """Alone and in company, and beyond the last one a refusal with the context that would do."""
    for length in (boundary - 1, boundary, boundary + 1):
        prompt = [(7 * place + length) % 900 + 100 for place in range(length - 4)]
        if length > CONTEXT:  # vLLM lowers a max_tokens, but no prompt
            with pytest.raises(openai.BadRequestError, match="compile a context of 320"):
                complete(client, prompt + prompt[:3], max_tokens=4)
            continue
        alone = complete(client, prompt, max_tokens=4).choices[0].token_ids
        with ThreadPoolExecutor(3) as clients:
            others = [clients.submit(complete, client, text) for text in PROMPTS[:2]]
            again = complete(client, prompt, max_tokens=4).choices[0].token_ids
            assert all(other.result() for other in others)
        assert len(alone) == 4
        assert again == alone


def test_cached_tokens_are_told_and_the_counter_is_their_sum(client, server):
    def hits() -> float:
        return sum(v for k, v in server.metrics().items() if k == "vllm:prefix_cache_hits_total")

    before = hits()
    prompt = [(11 * place) % 700 + 50 for place in range(200)]
    told = []
    for length in (200, 200, 130, 64):
        usage = complete(client, prompt[:length], max_tokens=2).usage
        details = usage.prompt_tokens_details
        told.append(details.cached_tokens if details and details.cached_tokens else 0)
    assert told == [0, 192, 128, 0]
    assert hits() - before == sum(told)


def test_what_the_shapes_did_is_on_metrics_and_no_block_is_left(client, server):
    gone = threading.Event()

    def leave() -> None:
        stream = client.completions.create(
            model="smollm2", prompt="Once", max_tokens=200, stream=True
        )
        next(iter(stream))
        stream.close()
        gone.set()

    leave()
    assert gone.is_set()
    complete(client, PROMPTS[0])
    server.wait_for(lambda: server.metrics()["spyre:blocks_used"] == 0, timeout_s=30)
    metrics = server.metrics()
    assert metrics["spyre:blocks_cached"] > 0
    names = {name.split("|")[0] for name in metrics}
    assert names >= {"spyre:passes_total", "spyre:slots_total", "spyre:decode_rows_total"}
    computed = [value for name, value in metrics.items() if name.startswith("spyre:slots_total")]
    assert min(computed) >= 0
    assert sum(computed) > 0


def test_the_log_names_the_shapes_and_nothing_compiled_later(server):
    text = server.output()
    assert re.search(r"Continuous batching: prefill 64,256 128,256 decode 2,256 4,128", text)
    assert len(re.findall(r"Shape \w+ [\d,]+: compiled", text)) == 5


def test_the_simulator_takes_the_servers_steps(client, passes):
    """All of this file's, or at least these."""
    with ThreadPoolExecutor(6) as clients:
        list(clients.map(lambda prompt: complete(client, prompt), PROMPTS * 2))
    found = logged_decisions(passes)
    assert found.same, str(found)
    assert found.batches > 40
