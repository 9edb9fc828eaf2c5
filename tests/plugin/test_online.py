"""One server on the embedded model, asked by the official client, as its users would."""

import json
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from spyre_bench.shapes import BucketSet
from tests.plugin import hostile
from tests.plugin.servers import PROMPTS, Server

pytestmark = pytest.mark.slow

BUCKETS = [[4, 64, 32], [2, 256, 64]]
LONGEST_PROMPT, CONTEXT = 256, 320
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def server(smollm2, tmp_path_factory):
    spyre = {"buckets": BUCKETS, "compile_backend": "eager"}
    template = str(Path(__file__).with_name("tools.jinja"))
    one = Server(
        smollm2,
        spyre,
        tmp_path_factory.mktemp("online") / "log",
        "--enable-auto-tool-choice",
        "--tool-call-parser",
        "hermes",
        "--chat-template",
        template,
    )
    one.wait_until_ready()
    yield one
    one.clean_up()


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


def complete(client, prompt, **chosen):
    chosen = {"max_tokens": 16, "temperature": 0} | chosen
    return client.completions.create(model="smollm2", prompt=prompt, **chosen)


def chat(client, **chosen):
    chosen = {"messages": QUESTION, "max_tokens": 16, "temperature": 0} | chosen
    return client.chat.completions.create(model="smollm2", **chosen)


def tokens(client, prompt, **chosen) -> list[int]:
    answer = complete(client, prompt, extra_body={"return_token_ids": True}, **chosen)
    return answer.choices[0].token_ids


def increase(server, before: dict, name: str) -> float:
    return server.metrics().get(name, 0) - before.get(name, 0)


def waiting_or_running(server) -> float:
    now = server.metrics()
    return now["vllm:num_requests_running"] + now["vllm:num_requests_waiting"]


def wait_until_idle(server, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while waiting_or_running(server):
        assert time.monotonic() < end, "requests are left"
        time.sleep(0.1)


# --- what is served


def test_simultaneous_prompts_are_answered_as_hugging_face_does(client, expected):
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        answers = list(pool.map(lambda prompt: tokens(client, prompt), PROMPTS))
    assert answers == expected


def test_a_chat_ends_by_itself_and_streams_the_same_words(client):
    whole = chat(client).choices[0]
    assert "Paris" in whole.message.content
    assert whole.finish_reason == "stop"
    parts = [chunk.choices[0].delta.content for chunk in chat(client, stream=True)]
    assert "".join(part for part in parts if part) == whole.message.content


def test_several_answers_to_one_prompt(client):
    answer = complete(client, "Once upon a time", n=3, temperature=1, seed=1, max_tokens=8)
    texts = [choice.text for choice in answer.choices]
    assert len(set(texts)) == 3
    again = complete(client, "Once upon a time", n=3, temperature=1, seed=1, max_tokens=8)
    assert [choice.text for choice in again.choices] == texts


def test_an_answer_stops_at_a_stop_word(client):
    whole = complete(client, "Count: one, two, three,").choices[0].text
    stopped = complete(client, "Count: one, two, three,", stop=[","]).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.text == whole.split(",")[0]


def test_logprobs_come_with_the_likeliest_others(client):
    found = complete(client, "One two", logprobs=3, max_tokens=4).choices[0].logprobs
    for value, others in zip(found.token_logprobs, found.top_logprobs, strict=True):
        assert len(others) == 3
        assert value == max(others.values())  # greedy


def test_an_answer_obeys_a_schema(client):
    schema = {"name": "answer", "schema": TOOL["function"]["parameters"]}
    answer = chat(
        client, max_tokens=32, response_format={"type": "json_schema", "json_schema": schema}
    )
    assert json.loads(answer.choices[0].message.content)["city"] in ("Paris", "Rome")


def test_a_named_tool_is_called_with_arguments_of_its_schema(client):
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = chat(client, tools=[TOOL], tool_choice=choice, max_tokens=32)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def test_the_template_counts_towards_the_prompt_and_shows_the_tools(client):
    plain, with_tools = chat(client, max_tokens=1), chat(client, max_tokens=1, tools=[TOOL])
    assert plain.usage.prompt_tokens > 10  # the question alone has 7
    assert with_tools.usage.prompt_tokens > plain.usage.prompt_tokens + 30


def test_health_models_and_metrics_answer(server, client):
    assert server.answers("/health")
    (model,) = client.models.list()
    assert (model.id, model.max_model_len) == ("smollm2", CONTEXT)
    assert server.metrics()["vllm:num_requests_running"] == 0


# --- what is refused or lowered


@pytest.mark.parametrize("prompt_tokens", [LONGEST_PROMPT + 1, CONTEXT, CONTEXT + 1, 3000])
def test_a_prompt_that_fits_no_bucket_gets_400_with_the_offline_sentence(
    server, client, prompt_tokens
):
    before = server.metrics()
    with pytest.raises(openai.BadRequestError) as refusal:
        complete(client, [5] * prompt_tokens, max_tokens=1)
    assert f"no bucket fits prompt_tokens={prompt_tokens} with max_tokens=1; the nearest" in (
        refusal.value.message
    )
    assert increase(server, before, "spyre:rejected_requests_total|prompt_too_long") == 1
    assert increase(server, before, "spyre:clamped_requests_total|max_tokens") == 0


def test_what_the_template_adds_can_make_a_chat_too_long(client):
    words = [{"role": "user", "content": "word " * (LONGEST_PROMPT - 6)}]
    with pytest.raises(openai.BadRequestError, match=r"no bucket fits prompt_tokens=2[5-9]\d "):
        chat(client, messages=words)


def test_a_max_tokens_beyond_the_buckets_is_lowered_and_counted(server, client):
    before = server.metrics()
    ignore_eos = {"ignore_eos": True}
    answer = complete(client, "Once upon a time", max_tokens=200, extra_body=ignore_eos)
    assert answer.usage.completion_tokens == 64
    assert increase(server, before, "spyre:clamped_requests_total|max_tokens") == 1


def test_a_missing_max_tokens_is_what_the_buckets_allow_and_not_counted(server, client):
    before = server.metrics()
    ignore_eos = {"ignore_eos": True}
    answer = chat(client, max_tokens=openai.NOT_GIVEN, extra_body=ignore_eos)
    assert answer.usage.completion_tokens == 64
    assert increase(server, before, "spyre:clamped_requests_total|max_tokens") == 0


def test_what_the_backend_does_not_do_is_counted_as_unsupported(server, client):
    before = server.metrics()
    with pytest.raises(openai.BadRequestError, match="does not support prompt_logprobs"):
        complete(client, "One", echo=True, logprobs=1)
    assert increase(server, before, "spyre:rejected_requests_total|unsupported") == 1


def test_a_refusal_disturbs_nobody(client):
    alone = tokens(client, PROMPTS[2], max_tokens=32)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(tokens, client, PROMPTS[2], max_tokens=32)
        refused = 0
        while not running.done():
            with pytest.raises(openai.BadRequestError):
                complete(client, [5] * (LONGEST_PROMPT + 1))
            refused += 1
        assert running.result() == alone
    assert refused > 3


# --- metrics


def test_the_metrics_of_a_batch_split_every_computed_token(server, client):
    complete(client, [5] * 10, max_tokens=1)  # whatever ran before is counted from here on
    before = server.metrics()
    complete(client, [5] * 40, max_tokens=7, extra_body={"ignore_eos": True})
    wait_until_idle(server)
    # The warmup's seconds say in which bucket a request alone is cheapest: here either may be.
    ran = {
        bucket: increase(server, before, f"spyre:batches_total|{bucket}")
        for bucket in BucketSet.parse("4,64,32 2,256,64")
    }
    assert sorted(ran.values()) == [0, 1]
    bucket = max(ran, key=ran.get)
    assert increase(server, before, f"spyre:batch_rows_total|{bucket}") == 1
    spent = {
        kind: increase(server, before, f"spyre:tokens_total|{bucket}|{kind}")
        for kind in ("useful", "batch_pad", "prompt_pad", "bucket_pad", "decode_tail", "cap")
    }
    assert spent == {
        "useful": 47,
        "batch_pad": (bucket.batch_size - 1) * (bucket.prompt_length + 7),
        "prompt_pad": 0,
        "bucket_pad": bucket.prompt_length - 40,
        "decode_tail": 0,
        "cap": 0,
    }
    assert sum(spent.values()) == bucket.batch_size * (bucket.prompt_length + 7)


def test_the_warmup_of_every_bucket_is_told(server, client):
    now = server.metrics()
    for name in ("4,64,32", "2,256,64"):
        assert now[f"spyre:warmup_seconds|{name}"] > 0
        assert now[f"spyre:warmup_graphs|{name}"] == 2


def test_the_queue_has_an_age_while_somebody_waits(server, client):
    with ThreadPoolExecutor(2) as pool:
        pool.submit(complete, client, "Once", max_tokens=32, extra_body={"ignore_eos": True})
        time.sleep(0.3)
        late = pool.submit(complete, client, "Once", max_tokens=1)
        ages = []
        while not late.done():
            ages.append(server.metrics()["spyre:queue_age_seconds"])
            time.sleep(0.05)
    assert 0.1 < max(ages) < 60
    wait_until_idle(server)
    assert server.metrics()["spyre:queue_age_seconds"] == 0


# --- who leaves


def leave(client, when: str) -> None:
    """A client that closes its connection before, during or after the first token."""
    long = {"max_tokens": 32, "extra_body": {"ignore_eos": True}}
    with complete(client, "Once upon a time", stream=True, **long) as stream:
        if when == "decoding":
            next(iter(stream))
            next(iter(stream))


@pytest.mark.parametrize("when", ["at once", "decoding"])
def test_a_client_that_leaves_changes_nothing_for_the_others(server, client, when):
    prompt = "A list of colours: red,"
    alone = tokens(client, prompt, max_tokens=24)
    before = server.metrics()
    with ThreadPoolExecutor(2) as pool:
        leaving = pool.submit(leave, client, when)
        staying = pool.submit(tokens, client, prompt, max_tokens=24)
        assert staying.result() == alone
        leaving.result()
    wait_until_idle(server)
    assert increase(server, before, "vllm:generation_tokens_total") < 24 + 32
    assert tokens(client, prompt, max_tokens=24) == alone


def test_clients_that_time_out_in_the_queue_never_run(server, client):
    hasty = client.with_options(timeout=0.5)
    with ThreadPoolExecutor(8) as pool:
        running = pool.submit(complete, client, "Once", max_tokens=64, extra_body={"ignore_eos": 1})
        time.sleep(0.3)
        before = server.metrics()
        for late in [pool.submit(complete, hasty, "Never", max_tokens=64) for _ in range(6)]:
            with pytest.raises(openai.APITimeoutError):
                late.result()
        assert running.result().usage.completion_tokens == 64
    wait_until_idle(server)
    rows = sum(
        increase(server, before, f"spyre:batch_rows_total|{','.join(map(str, bucket))}")
        for bucket in BUCKETS
    )
    assert rows == 1


def test_a_hundred_that_leave_at_random_leave_no_trace(server, client):
    alone = tokens(client, PROMPTS[0])

    def hurry(number: int) -> None:
        hasty = client.with_options(timeout=0.05 * (number % 40) + 0.01)
        try:
            complete(hasty, PROMPTS[number % 5], max_tokens=8)
        except openai.APITimeoutError:
            return

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(hurry, range(100)))
    wait_until_idle(server)
    assert tokens(client, PROMPTS[0]) == alone
    assert server.metrics()["vllm:kv_cache_usage_perc"] == 0


# --- who means harm

VLLM_FAILS = (  # with 500, in its own front end; docs/OPERATIONS.md lists them
    b'"schema": {"$ref": "#"}',
    b'"$ref": "#/$defs/a"',
    b'"grammar": "root ::= root"',
    b'"tools": [{}]',
    b'"structured_outputs": "',
)


def test_a_thousand_hostile_requests_are_refused_or_served_and_the_server_stays_well(
    server, client
):
    alone = tokens(client, PROMPTS[0])
    with ThreadPoolExecutor(4) as pool:
        replies = list(
            pool.map(lambda one: hostile.send(server.url, one), hostile.requests(1000, seed=0))
        )
    bad = [
        reply
        for reply in replies
        if not 200 <= reply.status < 500 and not any(s in reply.request.body for s in VLLM_FAILS)
    ]
    assert not bad, [(r.request.kind, r.request.body[:300], r.status, r.text[:300]) for r in bad]
    assert max(reply.seconds for reply in replies) < 30
    refused = {reply.request.kind for reply in replies if 400 <= reply.status < 500}
    assert refused == set(hostile.KINDS), "every kind is refused at least once"
    wait_until_idle(server)
    assert server.answers("/health")
    assert tokens(client, PROMPTS[0]) == alone


# --- the end


def test_the_server_ends_cleanly_with_its_last_answer(server, client):
    done = threading.Thread(target=complete, args=(client, "Once"), kwargs={"max_tokens": 2})
    done.start()
    done.join()
    before = len(server.output())  # vLLM prints a traceback with each 500 of its own
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(20) == 0, server.output()
    assert "Traceback" not in without_the_race(server.output()[before:])
    assert not re.search(r"ERROR.*EngineCore", without_the_race(server.output()))
    server.require_nothing_left()


def without_the_race(output: str) -> str:
    """vLLM's front end ends its engine, and only then the task that reads from it: now and then
    that task hears first that the engine is gone, and says so with a traceback."""
    told = [line for line in output.splitlines() if re.search(r"ERROR .*\[async_llm.py:", line)]
    race = told and "output_handler failed" in told[0] and "EngineDeadError" in told[-1]
    return "\n".join(line for line in output.splitlines() if not (race and line in told))
