"""The results of other tools, as their versions of today write them, and conversations."""

import json
from pathlib import Path

import pytest

from spyre_bench.workload.trace_formats import Reading
from spyre_bench.workload.workload import Workload

VLLM = {
    "date": "20260101-000000",
    "backend": "openai",
    "completed": 2,
    "total_input_tokens": 770,
    "request_throughput": 2.0,
    "input_lens": [374, 396, 9],
    "output_lens": [44, 109, 0],
    "start_times": [100.5, 100.0, 101.0],
    "ttfts": [0.1, 0.1, 0.0],
    "itls": [[0.1], [0.1], []],
    "errors": ["", "", "Bad Request"],
}


def guidellm(prompt, output, start, **more):
    return {"request_id": "x", "prompt_tokens": prompt, "output_tokens": output} | {
        "request_start_time": start,
        "info": {"status": "completed", "timings": {"request_start": start}},
        **more,
    }


GUIDELLM = {
    "metadata": {"version": 1, "guidellm_version": "0.8.1"},
    "args": {"profile": "sweep"},
    "benchmarks": [
        {
            "type_": "generative_benchmark",
            "config": {"strategy": {"type_": "constant"}},
            "requests": {
                "successful": [
                    guidellm(374, 44, 1700000000.5),
                    guidellm(396, 109, 1700000000.0),
                ],
                "incomplete": [guidellm(None, 3, 1700000001.0)],
                "errored": [],
                "total": None,
            },
        }
    ],
}


def aiperf(prompt, output, start_ns, phase="profiling", error=None):
    return {
        "metadata": {
            "session_num": 0,
            "conversation_id": "c",
            "request_start_ns": start_ns,
            "request_end_ns": start_ns + 1,
            "benchmark_phase": phase,
        },
        "metrics": {
            "input_sequence_length": {"value": prompt, "unit": "tokens"},
            "output_sequence_length": {"value": output, "unit": "tokens"},
            "time_to_first_token": {"value": 18.5, "unit": "ms"},
        },
        "error": error,
    }


START_NS = 1_700_000_000_000_000_000
AIPERF = [
    aiperf(9, 9, START_NS, phase="warmup"),
    aiperf(374, 44, START_NS + 1_500_000_000),
    aiperf(396, 109, START_NS + 1_000_000_000),
    aiperf(9, 9, START_NS + 2_000_000_000, error={"code": 500, "message": "boom"}),
]

FILES = {
    "vllm.json": json.dumps(VLLM),
    "vllm-indented.json": json.dumps(VLLM, indent=1),
    "benchmarks.json": json.dumps(GUIDELLM),
    "benchmarks-indented.json": json.dumps(GUIDELLM, indent=2),
    "profile_export.jsonl": "\n".join(map(json.dumps, AIPERF)),
}


def written(tmp_path: Path, name: str, text: str) -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


@pytest.mark.parametrize("name", FILES)
def test_requests_come_in_order_of_arrival_and_those_that_failed_are_counted(tmp_path, name):
    some = Workload.read(written(tmp_path, name, FILES[name]))
    assert some.arrival_s.tolist() == pytest.approx([0, 0.5], abs=1e-6)
    assert some.prompt_tokens.tolist() == [396, 374]
    assert some.output_tokens.tolist() == [109, 44]
    assert "1 failed requests left out" in some.note


def test_what_was_read_is_said_by_the_tools_name(tmp_path):
    said = {
        name: Workload.read(written(tmp_path, name, text)).read_as for name, text in FILES.items()
    }
    assert "vllm bench serve; arrivals from start_times in s" in said["vllm.json"]
    assert "guidellm; arrivals from request_start_time in s since 1970" in said["benchmarks.json"]
    assert "AIPerf; arrivals from request_start_ns in ns since 1970" in said["profile_export.jsonl"]
    assert "1 requests of the warmup phase left out" in said["profile_export.jsonl"]


def test_a_sweep_of_guidellm_is_one_benchmark_after_another(tmp_path):
    two = GUIDELLM | {"benchmarks": GUIDELLM["benchmarks"] * 2}
    some = Workload.read(written(tmp_path, "sweep.json", json.dumps(two)))
    assert len(some) == 4
    assert "2 benchmarks one after another" in some.read_as


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("append.json", "\n".join([json.dumps(VLLM)] * 2), "several runs of vllm bench serve"),
        (
            "short.json",
            json.dumps({k: v for k, v in VLLM.items() if not isinstance(v, list)}),
            "without its requests: save it with --save-result --save-detailed",
        ),
        ("lists.json", json.dumps(VLLM | {"input_lens": [1]}), "are not lists of one length"),
        ("cut.json", json.dumps({"input_lens": [1], "output_lens": []}), "not lists of one length"),
        (
            "profile_export_aiperf.json",
            json.dumps({"aiperf_version": "0.13.0", "request_count": {"avg": 1}}, indent=2),
            "is AIPerf's summary, without its requests: give profile_export.jsonl",
        ),
        (
            "holes.jsonl",
            json.dumps(aiperf(None, 3, START_NS)),
            r"holes\.jsonl request 1: input_sequence_length is empty",
        ),
    ],
)
def test_what_has_no_requests_is_refused_with_the_remedy(tmp_path, name, text, words):
    with pytest.raises(ValueError, match=words):
        Workload.read(written(tmp_path, name, text))


# --- conversations --------------------------------------------------------------------------------

SHAREGPT = [
    {
        "id": "a_0",
        "conversations": [
            {"from": "human", "value": "one two three"},
            {"from": "gpt", "value": "four five"},
            {"from": "human", "value": "six"},
            {"from": "gpt", "value": "seven"},
        ],
    },
    {"id": "b_0", "conversations": [{"from": "gpt", "value": "nobody asked"}]},
]
LMSYS = {
    "conversation_id": "q",
    "model": "vicuna-13b",
    "conversation": [
        {"role": "user", "content": "one two three"},
        {"role": "assistant", "content": "four five"},
        {"role": "user", "content": "six"},
        {"role": "assistant", "content": "seven"},
    ],
    "turn": 2,
}


class Words:
    """A token is a word, and each message costs one more."""

    note = "words counted"

    def prompt_tokens(self, messages):
        return sum(1 + self.text_tokens(message["content"]) for message in messages)

    def text_tokens(self, text):
        return len(text.split())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sharegpt.json", json.dumps(SHAREGPT)),
        ("sharegpt-indented.json", json.dumps(SHAREGPT, indent=2)),
        ("lines.jsonl", "\n".join(map(json.dumps, SHAREGPT))),
        ("lmsys.jsonl", json.dumps(LMSYS)),
    ],
)
def test_each_answer_of_a_conversation_is_a_request_after_all_that_was_said(tmp_path, name, text):
    path = written(tmp_path, name, text)
    some = Workload.read(path, Reading(tokenizer=Words()))
    assert some.prompt_tokens.tolist() == [4, 9]
    assert some.output_tokens.tolist() == [2, 1]
    assert "conversations; no times" in some.read_as
    assert some.read_as.endswith("words counted")
    with pytest.raises(ValueError, match=r"conversations, .* --tokenizer MODEL --out trace\.csv"):
        Workload.read(path)
