"""What other tools write as JSON, unfolded into one record per request: the results of `vllm bench
serve`, guidellm and AIPerf, and conversations, whose tokens a tokenizer has to count.

The layouts were read from vLLM 0.32.0 (`benchmarks/serve.py`), guidellm 0.8.1
(`schemas/base/request_stats.py`) and AIPerf 0.13.0 (`common/models/record_models.py`). A request
that failed has no output tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

Record = dict[str, Any]
Message = Mapping[str, str]  # role and content


class Tokenizer(Protocol):
    """Who counts the tokens of conversations."""

    @property
    def note(self) -> str:
        """What a reader should know of its counts."""
        ...

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Of a conversation so far, as a model is given it to answer."""
        ...

    def text_tokens(self, text: str) -> int:
        """Of a text alone."""
        ...


ROLES = {"human": "user", "gpt": "assistant", "bard": "assistant", "chatgpt": "assistant"}
"""ShareGPT's words for who speaks, and a chat template's."""


class Unfold:
    """The requests of the objects of one file (see `frames.Unfold`); `notes` collects what a
    reader should know of them."""

    def __init__(self, path: Path, tokenizer: Tokenizer | None = None):
        self.path = path
        self.notes: list[str] = []
        self._tokenizer = tokenizer
        self._vllm_runs = 0
        self._warmups = 0

    def knows(self, value: Record) -> bool:
        return self._reader(value) is not None

    def rows(self, value: Record) -> list[Record]:
        reader = self._reader(value)
        return [value] if reader is None else list(reader(value))

    def _reader(self, value: Record) -> Callable[[Record], Iterator[Record]] | None:
        if _is_vllm(value):
            return self._of_vllm
        if _is_guidellm(value):
            return self._of_guidellm
        if _is_aiperf(value):
            return self._of_aiperf
        if "aiperf_version" in value:
            return self._refuse_summary
        return None if _turns(value) is None else self._of_conversation

    def _of_vllm(self, result: Record) -> Iterator[Record]:
        self._vllm_runs += 1
        if self._vllm_runs > 1:
            raise ValueError(
                f"{self.path} holds several runs of vllm bench serve (--append-result), each with "
                f"a clock of its own: keep one of its lines"
            )
        if "input_lens" not in result or "output_lens" not in result:
            raise ValueError(
                f"{self.path} is a result of vllm bench serve without its requests: save it with "
                f"--save-result --save-detailed"
            )
        names = [name for name in ("start_times", "input_lens", "output_lens") if name in result]
        columns = [result[name] for name in names]
        if (
            not all(isinstance(column, list) for column in columns)
            or len({len(column) for column in columns}) != 1
        ):
            raise ValueError(
                f"{self.path}: {', '.join(names)} are not lists of one length: save the result "
                f"again"
            )
        for row in zip(*columns, strict=True):
            yield dict(zip(names, row, strict=True))

    def _of_guidellm(self, report: Record) -> Iterator[Record]:
        benchmarks = report["benchmarks"]
        if len(benchmarks) > 1:
            self.notes.append(
                f"{len(benchmarks)} benchmarks one after another (--from and --to cut one out)"
            )
        for benchmark in benchmarks:
            by_status = benchmark["requests"]
            for status in ("successful", "incomplete", "errored"):
                for request in by_status.get(status) or ():
                    yield {
                        "status": status,
                        "request_start_time": request.get("request_start_time"),
                        "prompt_tokens": request.get("prompt_tokens"),
                        "output_tokens": (request.get("output_tokens") or 0)
                        if status == "successful"
                        else 0,
                    }

    def _of_aiperf(self, record: Record) -> Iterator[Record]:
        metadata, metrics = record["metadata"], record["metrics"]
        if metadata.get("benchmark_phase") == "warmup":
            self._warmups += 1
            self.notes = [f"{self._warmups} requests of the warmup phase left out"]
            return
        failed = record.get("error") is not None
        yield {
            "request_start_ns": metadata["request_start_ns"],
            "input_sequence_length": _value(metrics, "input_sequence_length"),
            "output_sequence_length": 0 if failed else _value(metrics, "output_sequence_length"),
            "conversation_id": metadata.get("conversation_id"),
        }

    def _refuse_summary(self, value: Record) -> Iterator[Record]:
        raise ValueError(
            f"{self.path} is AIPerf's summary, without its requests: give profile_export.jsonl, "
            f"which lies beside it (--export-level records)"
        )

    def _of_conversation(self, value: Record) -> Iterator[Record]:
        """A request for each answer: what was said until then is its prompt."""
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise ValueError(
                f"{self.path} holds conversations, whose tokens nobody has counted: spyre-bench "
                f"workloads {self.path} --tokenizer MODEL --out trace.csv counts them"
            )
        self.notes = [tokenizer.note]
        said: list[Message] = []
        name = next((str(value[key]) for key in ("id", "conversation_id") if key in value), "")
        for role, content in _turns(value) or ():
            message = {"role": role, "content": content}
            if role == "assistant" and said:
                prompt, answer = tokenizer.prompt_tokens(said), tokenizer.text_tokens(content)
                if prompt and answer:
                    yield {
                        "conversation_tokens": prompt,
                        "answer_tokens": answer,
                        "conversation_id": name,
                        "turn": len(said) // 2 + 1,
                    }
            said.append(message)


def _is_vllm(value: Record) -> bool:
    """By its totals; or by its lists alone, where somebody has cut the rest away."""
    totals = "request_throughput" in value and "total_input_tokens" in value
    return totals or isinstance(value.get("input_lens"), list)


def _is_guidellm(value: Record) -> bool:
    benchmarks = value.get("benchmarks")
    return (
        isinstance(benchmarks, list)
        and bool(benchmarks)
        and all(isinstance(b, dict) and isinstance(b.get("requests"), dict) for b in benchmarks)
    )


def _is_aiperf(value: Record) -> bool:
    metadata, metrics = value.get("metadata"), value.get("metrics")
    return (
        isinstance(metadata, dict) and "request_start_ns" in metadata and isinstance(metrics, dict)
    )


def _value(metrics: Record, name: str) -> Any:
    metric = metrics.get(name)
    return metric.get("value") if isinstance(metric, dict) else metric


def _turns(value: Record) -> list[tuple[str, str]] | None:
    """Who said what, of ShareGPT ("from", "value") and of LMSYS and others ("role", "content");
    None where it is no conversation."""
    for key in ("conversations", "conversation", "messages"):
        turns = value.get(key)
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            continue
        pairs = [
            (turn.get("from", turn.get("role")), turn.get("value", turn.get("content")))
            for turn in turns
        ]
        if all(isinstance(who, str) and isinstance(what, str) for who, what in pairs):
            return [(ROLES.get(who, who), what) for who, what in pairs]
    return None
