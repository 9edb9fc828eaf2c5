"""Requests that no sane client sends, by the thousand; the same seed makes the same ones."""

from __future__ import annotations

import http.client
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MODEL = "smollm2"
MEGABYTE = 10**6
NUMBERS = (
    "max_tokens",
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "logprobs",
    "seed",
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "prompt_logprobs",
    "truncate_prompt_tokens",
    "thinking_token_budget",
)
OTHERS = (
    "stop",
    "stop_token_ids",
    "logit_bias",
    "stream",
    "echo",
    "suffix",
    "model",
    "prompt",
    "response_format",
    "structured_outputs",
    "bad_words",
    "allowed_token_ids",
    "user",
    "stream_options",
    "ignore_eos",
    "priority",
    "request_id",
)
EXTREME = (-1, -(2**31), 2**31, 2**63, 10**30, -0.5, 1e308, 0, 3.7)
STRANGE = ("", "a", [], {}, None, True, [[]], [None], {"a": {}}, "\ud800", [1e400], "1", [-1])


@dataclass(frozen=True)
class Hostile:
    """One request: what is wrong with it, and its bytes."""

    kind: str
    path: str
    body: bytes
    method: str = "POST"
    content_type: str = "application/json"


@dataclass(frozen=True)
class Reply:
    request: Hostile
    status: int  # 0: the connection was closed
    seconds: float
    text: str


def requests(count: int, seed: int) -> Iterator[Hostile]:
    """`count` requests, of all kinds in turn."""
    rng = random.Random(seed)
    makers = list(KINDS.items())
    for number in range(count):
        kind, make = makers[number % len(makers)]
        made = make(rng)
        yield made if isinstance(made, Hostile) else Hostile(kind, *made)


def send(url: str, request: Hostile, timeout_s: float = 60) -> Reply:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)
    started = time.monotonic()
    try:
        headers = {"Content-Type": request.content_type}
        connection.request(request.method, request.path, request.body, headers)
        reply = connection.getresponse()
        status, text = reply.status, reply.read().decode(errors="replace")
    except (TimeoutError, http.client.RemoteDisconnected, ConnectionError) as error:
        status, text = 0, repr(error)
    finally:
        connection.close()
    return Reply(request, status, time.monotonic() - started, text)


def _completion(**chosen: Any) -> tuple[str, bytes]:
    return COMPLETIONS, _json({"model": MODEL, "prompt": "One two", "max_tokens": 2} | chosen)


def _chat(**chosen: Any) -> tuple[str, bytes]:
    messages = [{"role": "user", "content": "One two"}]
    return CHAT, _json({"model": MODEL, "messages": messages, "max_tokens": 2} | chosen)


def _json(body: Any) -> bytes:
    return json.dumps(body).encode(errors="surrogatepass")


def _extreme_number(rng: random.Random) -> tuple[str, bytes]:
    make = rng.choice((_completion, _chat))
    return make(**{rng.choice(NUMBERS): rng.choice(EXTREME)})


def _wrong_type(rng: random.Random) -> tuple[str, bytes]:
    make = rng.choice((_completion, _chat))
    return make(**{rng.choice(NUMBERS + OTHERS): rng.choice(STRANGE)})


def _strange_prompt(rng: random.Random) -> tuple[str, bytes]:
    prompts = ("", [], [[]], [""], None, {}, 7, [-1], [10**9], [2**70], ["a", 1], [[1], "a"], "\0")
    return _completion(prompt=rng.choice(prompts))


def _strange_messages(rng: random.Random) -> tuple[str, bytes]:
    messages = (
        [],
        [{}],
        "hello",
        [{"role": "king", "content": "a"}],
        [{"role": "user"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
        [{"role": "user", "content": 7}],
        [{"role": 1}],
        [None],
    )
    return _chat(messages=rng.choice(messages))


def _megabyte(rng: random.Random) -> tuple[str, bytes]:
    texts = ("a" * MEGABYTE, "\u00e9 " * (MEGABYTE // 2), [5] * (MEGABYTE // 4), "\n" * MEGABYTE)
    return _completion(prompt=rng.choice(texts))


def _broken_text(rng: random.Random) -> tuple[str, bytes]:
    path, body = rng.choice((_completion, _chat))()
    at = rng.randrange(len(body))
    junk = bytes(rng.randrange(128, 256) for _ in range(rng.randrange(1, 9)))
    return path, body[:at] + junk + body[at:]


def _cut_json(rng: random.Random) -> tuple[str, bytes]:
    path, body = rng.choice((_completion, _chat))()
    return path, body[: rng.randrange(len(body))]


def _deep_json(rng: random.Random) -> tuple[str, bytes]:
    depth = rng.choice((1000, 10_000, 100_000))
    left, right = rng.choice((("[", "]"), ('{"a":', "}")))
    inner = left * depth + "1" + right * depth
    return COMPLETIONS, f'{{"model": "{MODEL}", "prompt": {inner}}}'.encode()


def _no_json(rng: random.Random) -> tuple[str, bytes]:
    return rng.choice((COMPLETIONS, CHAT)), rng.choice(
        (b"", b"null", b"[]", b"7", b"<a/>", b"NaN", b"\xff\xfe", b"{}" * 100, b"model=a&prompt=b")
    )


def _schema(rng: random.Random) -> tuple[str, bytes]:
    deep: dict = {"type": "string"}
    for _ in range(rng.choice((50, 300))):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"]}
    bombs = (
        deep,
        {"$ref": "#"},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"enum": [f"value {number}" for number in range(5000)]},
        {"type": "string", "pattern": "(a+)+" * 20 + "$"},
        {"type": "string", "pattern": "([unclosed"},
        {"type": "string", "minLength": 10**9},
        {"type": "array", "minItems": 10**6, "items": {"type": "integer"}},
        {"allOf": [{"anyOf": [{"type": "object"}] * 50}] * 50},
        {"type": "nothing"},
        {"$ref": "file:///etc/passwd"},
    )
    schema = {"name": "bomb", "schema": rng.choice(bombs)}
    return _chat(response_format={"type": "json_schema", "json_schema": schema})


def _grammar(rng: random.Random) -> tuple[str, bytes]:
    grammars = (
        {"regex": "(" * 1000},
        {"regex": "(a|a)*" * 50},
        {"choice": []},
        {"choice": [""]},
        {"grammar": "root ::= root"},
        {"grammar": "%"},
        {"grammar": 'root ::= "a" root | root'},
        {"json": "{"},
        {"json": {}, "regex": "a"},
        {"structural_tag": "x"},
    )
    return _completion(structured_outputs=rng.choice(grammars))


def _tools(rng: random.Random) -> tuple[str, bytes]:
    name = rng.choice(("f", "", "a" * 10_000, "../x"))
    tool = {"type": "function", "function": {"name": name, "parameters": rng.choice(STRANGE)}}
    choice = rng.choice(
        (
            "auto",
            "required",
            "none",
            {"type": "function"},
            7,
            {"type": "function", "function": {"name": "other"}},
        )
    )
    return _chat(tools=rng.choice(([tool], [], tool, [{}], [tool] * 200)), tool_choice=choice)


def _many(rng: random.Random) -> tuple[str, bytes]:
    several = (
        {"stop": [f"word {number}" for number in range(10_000)]},
        {"logit_bias": {str(number): 100 for number in range(40_000)}},
        {"stop_token_ids": list(range(-100, 100))},
        {"n": 10**6},
        {"best_of": 10**6},
        {"prompt": ["a"] * 20_000, "max_tokens": -1},
        {"bad_words": ["a" * 10_000]},
        {"allowed_token_ids": [10**9]},
        {"user": "a" * MEGABYTE, "max_tokens": -1},
    )
    return _completion(**rng.choice(several))


def _address(rng: random.Random) -> Hostile:
    body = _completion()[1]
    return rng.choice(
        (
            Hostile("address", COMPLETIONS, body, method="PUT"),
            Hostile("address", COMPLETIONS, b"", method="GET"),
            Hostile("address", COMPLETIONS, body, content_type="text/plain"),
            Hostile("address", "/v1/" + "a" * 5000, body),
            Hostile("address", "/../../etc/passwd", b"", method="GET"),
            Hostile("address", "/v1/models/%00", b"", method="GET"),
            Hostile("address", COMPLETIONS, _json({"model": "other", "prompt": "a"})),
        )
    )


KINDS: dict[str, Callable[[random.Random], Any]] = {
    "extreme number": _extreme_number,
    "wrong type": _wrong_type,
    "prompt": _strange_prompt,
    "messages": _strange_messages,
    "megabyte": _megabyte,
    "broken text": _broken_text,
    "cut JSON": _cut_json,
    "deep JSON": _deep_json,
    "no JSON": _no_json,
    "schema": _schema,
    "grammar": _grammar,
    "tools": _tools,
    "too many": _many,
    "address": _address,
}
