"""No field of a request ends the engine: each at its extremes, on a checkpoint whose tokenizer has
one token more than its embedding, and whose end of sequence is that token."""

import json
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.plugin import extremes, hostile
from tests.plugin.servers import Server

pytestmark = pytest.mark.slow

BUCKETS = [[4, 64, 16], [2, 192, 32]]
KNOWN = ("no bucket fits prompt_tokens=", "the nearest buckets", "VLLM_SPYRE_WARMUP_PROMPT_LENS")


@pytest.fixture(scope="module")
def server(added_token, tmp_path_factory):
    one = Server(
        added_token,
        {"buckets": BUCKETS, "compile_backend": "eager"},
        tmp_path_factory.mktemp("extremes") / "log",
        "--max-logprobs",
        "1000",
        "--reasoning-config",
        json.dumps({"reasoning_start_str": "[", "reasoning_end_str": "]"}),
        "--logits-processors",
        "tests.plugin.force_token:ForceToken",
        "--trust-request-chat-template",
    )
    one.wait_until_ready()
    yield one
    one.clean_up()


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


def good(client) -> str:
    answer = client.completions.create(
        model="smollm2", prompt="One two", max_tokens=8, temperature=0
    )
    return answer.choices[0].text


def described(reply) -> tuple:
    return reply.request.kind, reply.request.body[:200], reply.status, reply.text[:200]


def test_each_extreme_gets_an_answer_or_400_and_the_next_request_its_tokens(server, client):
    before = good(client)
    replies = []
    with ThreadPoolExecutor(4) as pool:
        for reply in pool.map(lambda one: hostile.send(server.url, one), extremes.requests()):
            assert server.process.poll() is None, (described(reply), server.output()[-3000:])
            replies.append(reply)
    assert good(client) == before
    assert server.answers("/health")
    assert "EngineDeadError" not in server.output()
    assert not [described(one) for one in replies if one.status == 0]
    failed = {described(one)[:3]: described(one) for one in replies if one.status >= 500}
    assert not [d for d in failed.values() if not meant_to_fail(d)], failed


def meant_to_fail(described: tuple) -> bool:
    """A user's own logits processor that raises: a fault of the server's, not of the request."""
    return b'"force_token"' in described[1]


@pytest.mark.parametrize("prompt", [[5, extremes.BEYOND], [extremes.BEYOND], "a <added> b"])
def test_a_token_that_only_the_tokenizer_has_gets_400(server, client, prompt):
    with pytest.raises(openai.BadRequestError, match="not in the model's vocabulary of 264 tok"):
        client.completions.create(model="smollm2", prompt=prompt, max_tokens=2)
    messages = [{"role": "user", "content": "a <added> b"}]
    with pytest.raises(openai.BadRequestError, match="token id 264 in the prompt"):
        client.chat.completions.create(model="smollm2", messages=messages, max_tokens=2)
    assert server.answers("/health")


@pytest.mark.parametrize("tokens", [193, 223, 224, 225, 1000, 50_000])
def test_a_prompt_of_any_excess_gets_the_same_sentence(client, tokens):
    for prompt in ([5] * tokens, "a" * tokens):
        with pytest.raises(openai.BadRequestError) as refusal:
            client.completions.create(model="smollm2", prompt=prompt, max_tokens=1)
        assert all(words in refusal.value.message for words in KNOWN), refusal.value.message
    messages = [{"role": "user", "content": "a" * tokens}]
    with pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(model="smollm2", messages=messages, max_tokens=1)
    assert all(words in refusal.value.message for words in KNOWN), refusal.value.message


def test_a_request_that_fails_in_the_sampler_fails_alone(server, client):
    alone = good(client)
    xargs = {"vllm_xargs": {"force_token": 10**6}}
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(good, client) for _ in range(3)]
        bad = pool.submit(
            client.completions.create, model="smollm2", prompt="a", max_tokens=4, extra_body=xargs
        )
        others += [pool.submit(good, client) for _ in range(3)]
        with pytest.raises(openai.InternalServerError):
            bad.result()
    assert [one.result() for one in others] == [alone] * 6
    assert server.answers("/health")
