"""Every field of a request at its extremes, for a checkpoint of 264 tokens whose tokenizer has one
more. A field of vLLM's protocol that is in no table here fails a test: classify it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.plugin.hostile import CHAT, COMPLETIONS, MODEL, Hostile

VOCAB_SIZE = 264
ADDED = "<added>"
BEYOND = VOCAB_SIZE  # the id of the added token
INT64 = (-(2**63) - 1, -(2**63), 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**70)
NUMBERS = (
    0,
    -1,
    -2,
    1,
    1e-300,
    1e308,
    -1e308,
    0.5,
    2,
    2.1,
    1000,
    2**31,
    *INT64,
    float("nan"),
    float("inf"),
    -float("inf"),
    True,
    "1",
    None,
    [],
)
IDS = (
    [BEYOND],
    [BEYOND - 1, BEYOND],
    [-1],
    [2**31],
    [2**63],
    [2**70],
    [],
    [1.5],
    ["5"],
    [True],
    list(range(VOCAB_SIZE)),
    list(range(VOCAB_SIZE + 1)),
    [5] * 10_000,
    None,
)
TEXTS = ("", "a", ADDED, "\0", "é" * 5000, "a" * 100_000, None, 7, [ADDED])
WORDS = (
    [ADDED],
    ["a" + ADDED, ADDED + "a"],
    ["\ud800"],
    [""],
    ["a"] * 10_000,
    [f"w{n}" for n in range(10_000)],
    ["a" * 100_000],
    ADDED,
    [7],
    None,
)
TRUTHS = (True, False, None, 7, "x")
OBJECTS = ({}, {"a": 1}, {"a": [2**70]}, {"a": None}, "a", 7, [], None)
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"]}

NUMERIC = (
    "frequency_penalty",
    "length_penalty",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "min_p",
    "min_tokens",
    "n",
    "presence_penalty",
    "priority",
    "prompt_logprobs",
    "repetition_penalty",
    "routed_experts_prompt_start",
    "seed",
    "stream_interval",
    "temperature",
    "thinking_token_budget",
    "top_k",
    "top_logprobs",
    "top_p",
    "truncate_prompt_tokens",
)
TOKEN_IDS = ("allowed_token_ids", "logprob_token_ids", "stop_token_ids")
TEXTUAL = (
    "cache_salt",
    "chat_template",
    "model",
    "reasoning_effort",
    "request_id",
    "session_id",
    "suffix",
    "truncation_side",
    "user",
    "mm_payload",
)
TRUE_OR_FALSE = (
    "add_generation_prompt",
    "add_special_tokens",
    "continue_final_message",
    "echo",
    "ignore_eos",
    "include_reasoning",
    "include_stop_str_in_output",
    "parallel_tool_calls",
    "return_mm_kwargs",
    "return_prompt_text",
    "return_token_ids",
    "return_token_offsets",
    "return_tokens_as_token_ids",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "stream",
    "use_beam_search",
    "watermarking",
)
STRUCTURED = (
    "chat_template_kwargs",
    "documents",
    "ec_transfer_params",
    "kv_transfer_params",
    "media_io_kwargs",
    "mm_processor_kwargs",
    "prompt_embeds",
    "stream_options",
    "tools",
    "tool_choice",
)

FIELDS: dict[str, tuple] = {
    **dict.fromkeys(NUMERIC, NUMBERS),
    **dict.fromkeys(TOKEN_IDS, IDS),
    **dict.fromkeys(TEXTUAL, TEXTS),
    **dict.fromkeys(TRUE_OR_FALSE, TRUTHS),
    **dict.fromkeys(STRUCTURED, OBJECTS),
    "prompt": (*IDS, *TEXTS, [[5], [BEYOND]], ["a", ADDED], [[]], [5] * 100_000),
    "messages": (
        [],
        *(
            [{"role": role, "content": text}]
            for role in ("user", "system", "tool")
            for text in TEXTS
        ),
    ),
    "stop": WORDS,
    "bad_words": WORDS,
    "logit_bias": (
        *({str(token): 1} for token in (BEYOND, -1, 2**70, "a", 1.5)),
        *({"5": bias} for bias in NUMBERS),
        {str(token): -100 for token in range(VOCAB_SIZE)},
        {str(token): 100 for token in range(VOCAB_SIZE + 1)},
    ),
    "structured_outputs": (
        {"json": SCHEMA},
        {"json": "{"},
        {"regex": ""},
        {"regex": ADDED + "+"},
        {"regex": "(" * 99},
        {"choice": [ADDED]},
        {"choice": [""]},
        {"choice": []},
        {"grammar": 'root ::= "a" | "b"'},
        {"grammar": "%"},
        {"json_object": True},
        {"json_object": False},
        {"structural_tag": "{}"},
        {"json": {"type": "object", "patternProperties": {"^a": {"type": "string"}}}},
        {},
        None,
    ),
    "response_format": (
        {"type": "json_object"},
        {"type": "text"},
        {"type": "other"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
    ),
    "repetition_detection": (
        {"max_pattern_size": 2**63, "min_count": 2},
        {"max_pattern_size": 2**70, "min_count": 2},
        {"max_pattern_size": 3, "min_count": 2**64},
        {"max_pattern_size": -1},
        {},
        7,
    ),
    "vllm_xargs": (
        {"a": 2**70},
        {"a": [2**63, "x"]},
        {"force_token": 5},
        {"force_token": "x"},
        {"force_token": BEYOND},
        {"force_token": -(10**6)},
        *OBJECTS,
    ),
}

TOGETHER: tuple[dict[str, Any], ...] = (
    {"seed": 2**63 - 1, "n": 3, "temperature": 1},
    {"min_tokens": 3, "max_tokens": 2},
    {"min_tokens": 2, "stop_token_ids": [BEYOND]},
    {"min_tokens": 2},  # the checkpoint's own end of sequence is the added token
    {"n": 200, "temperature": 1, "max_tokens": 1},
    {"use_beam_search": True, "n": 1000},
    {"use_beam_search": True, "n": 2, "max_tokens": 3},
    {"logprobs": 1000, "top_logprobs": 1000},
    {"logprobs": VOCAB_SIZE, "logprob_token_ids": [1, 2]},
    {"logprobs": 2, "logprob_token_ids": [1, 2], "temperature": 2, "seed": 0},
    {"echo": True, "max_tokens": 0},
    {"thinking_token_budget": 0, "prompt": "[ a"},
    {"structured_outputs": {"choice": ["y"]}, "allowed_token_ids": [5]},
    {"structured_outputs": {"choice": ["y"]}, "bad_words": ["y"], "min_tokens": 2},
    {"truncate_prompt_tokens": -1, "prompt": [5] * 1000},
    {"truncate_prompt_tokens": 3, "prompt": [5, 5, 5, BEYOND], "truncation_side": "right"},
    {"truncate_prompt_tokens": 3, "prompt": [5, 5, 5, BEYOND], "truncation_side": "left"},
    {"vllm_xargs": {"force_token": BEYOND}, "structured_outputs": {"choice": ["y"]}, "seed": 1},
)
OTHERS: tuple[tuple[str, Any], ...] = (
    ("/tokenize", {"prompt": ADDED}),
    ("/tokenize", {"messages": [{"role": "user", "content": ADDED * 1000}]}),
    *(("/detokenize", {"tokens": ids}) for ids in IDS),
    *(("/v1/responses", {"input": text}) for text in TEXTS),
    *(("/v1/responses", {"input": "a", "max_output_tokens": n}) for n in NUMBERS),
    *(("/v1/responses", {"input": "a", "top_logprobs": n}) for n in NUMBERS),
    *(
        ("/v1/messages", {"messages": [{"role": "user", "content": text}], "max_tokens": 2})
        for text in TEXTS
    ),
    ("/v1/embeddings", {"input": ADDED}),
    *(
        ("/generative_scoring", {"query": "a", "items": ["b", ADDED], "label_token_ids": ids})
        for ids in IDS
    ),
)


def requests() -> Iterator[Hostile]:
    """Every field at every extreme, as a completion and as a chat; then what only matters together,
    and other addresses."""
    alone = [{field: value} for field, values in FIELDS.items() for value in values]
    for chosen in (*alone, *TOGETHER):
        kind = ", ".join(chosen)
        if "messages" not in chosen:
            yield _request(kind, COMPLETIONS, {"prompt": "One two", "max_tokens": 2} | chosen)
        if "prompt" not in chosen:
            message = {"role": "user", "content": "One two"}
            yield _request(kind, CHAT, {"messages": [message], "max_tokens": 2} | chosen)
    for path, body in OTHERS:
        yield _request(path, path, body)


def _request(kind: str, path: str, body: dict[str, Any]) -> Hostile:
    whole = json.dumps({"model": MODEL} | body)  # NaN and Infinity as Python writes them
    return Hostile(kind, path, whole.encode(errors="surrogatepass"))
