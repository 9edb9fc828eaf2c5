"""The formats of trace files, found by the names of their columns or by what a reader is told."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spyre_bench.workload.tool_results import Tokenizer

UNITS_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
PARTS = ("arrival", "prompt", "output", "max_tokens")
OUR_NAMES = {"arrival_s": "arrival", "prompt_tokens": "prompt", "output_tokens": "output"}
# Of sessions and shared prefixes: kept as the file has them, for the steps that use them.
EXTRAS = (
    "session_id",
    "Session ID",
    "conversation_id",
    "chat_id",
    "parent_chat_id",
    "parent_id",
    "parent_ids",
    "parents",
    "turn",
    "delay",
    "hash_ids",
)
AS_TEXT = tuple(name for name in EXTRAS if name not in ("turn", "delay"))


@dataclass(frozen=True)
class Reading:
    """How to read a trace file where it does not settle that itself."""

    columns: Mapping[str, str] = field(default_factory=dict)  # of `PARTS`; arrival may be "none"
    time_unit: str | None = None  # of `UNITS_S`
    separator: str | None = None  # of a CSV file: a character, or its name
    tokenizer: Tokenizer | None = None  # counts the tokens of conversations

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.columns) - set(PARTS)):
            raise ValueError(f"columns {unknown[0]!r} is not one of {', '.join(PARTS)}")
        if self.time_unit is not None and self.time_unit not in UNITS_S:
            raise ValueError(f"time unit {self.time_unit!r} is not one of {', '.join(UNITS_S)}")

    @classmethod
    def parse(
        cls,
        columns: str | None = None,
        time_unit: str | None = None,
        separator: str | None = None,
    ) -> Reading:
        """From text: columns as `arrival=created_at,prompt=n_in,output=n_out`."""
        pairs: dict[str, str] = {}
        for pair in columns.split(",") if columns else ():
            part, equals, name = pair.partition("=")
            if not equals or not name.strip():
                raise ValueError(
                    f"columns {columns!r}: {pair!r} is not PART=COLUMN: write, for example, "
                    f"arrival=created_at,prompt=n_in,output=n_out"
                )
            part = OUR_NAMES.get(part.strip(), part.strip())
            if part in pairs:
                raise ValueError(f"columns {columns!r} gives {part} twice: keep one")
            pairs[part] = name.strip()
        return cls(pairs, time_unit, separator)


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """The columns of one publisher's files. They are found by name, so that more columns, in any
    order, do no harm."""

    publisher: str
    arrival: str
    prompt: str
    output: str
    max_tokens: str = ""  # of our own files only, and optional there
    unit: str = "s"  # of `arrival`, one of `UNITS_S`; empty: nothing says which
    dates: bool = False  # `arrival` is a date and time
    times_optional: bool = False  # a list of lengths is welcome too
    starts_at_zero: bool = True  # times count from the first request kept
    also: tuple[str, ...] = ()  # more columns that tell it from others
    zero_output_failed: bool = False  # a request without output failed, and is left out
    any_order: bool = False  # written as requests end: they are put in order of arrival

    @property
    def required(self) -> tuple[str, ...]:
        lengths = (self.prompt, self.output, *self.also)
        return lengths if self.times_optional else (self.arrival, *lengths)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.arrival, self.prompt, self.output


FORMATS = (
    Format(
        publisher="our own",
        arrival="arrival_s",
        prompt="prompt_tokens",
        output="output_tokens",
        max_tokens="max_tokens",
        times_optional=True,
        starts_at_zero=False,
    ),
    Format(
        publisher="Azure",
        arrival="TIMESTAMP",
        prompt="ContextTokens",
        output="GeneratedTokens",
        unit="",
        dates=True,
    ),
    Format(
        publisher="BurstGPT",
        arrival="Timestamp",
        prompt="Request tokens",
        output="Response tokens",
        zero_output_failed=True,
    ),
    Format(
        publisher="Qwen-Bailian",
        arrival="timestamp",
        prompt="input_length",
        output="output_length",
        also=("chat_id",),
    ),
    Format(
        publisher="Mooncake",
        arrival="timestamp",
        prompt="input_length",
        output="output_length",
        unit="ms",
    ),
    Format(
        publisher="vidur",
        arrival="arrived_at",
        prompt="num_prefill_tokens",
        output="num_decode_tokens",
        times_optional=True,
    ),
    Format(
        publisher="splitwise",
        arrival="arrival_timestamp",
        prompt="prompt_size",
        output="token_size",
    ),
    Format(
        publisher="ServeGen",
        arrival="timestamp",
        prompt="input_tokens",
        output="output_tokens",
    ),
    Format(
        publisher="LLMServingSim",
        arrival="arrival_time_ns",
        prompt="input_toks",
        output="output_toks",
        unit="ns",
    ),
    Format(
        publisher="conversations",
        arrival="",
        prompt="conversation_tokens",
        output="answer_tokens",
        times_optional=True,
    ),
    Format(
        publisher="vllm bench serve",
        arrival="start_times",
        prompt="input_lens",
        output="output_lens",
        times_optional=True,  # early versions saved none
        zero_output_failed=True,
        any_order=True,
    ),
    Format(
        publisher="guidellm",
        arrival="request_start_time",
        prompt="prompt_tokens",
        output="output_tokens",
        also=("status",),
        zero_output_failed=True,
        any_order=True,
    ),
    Format(
        publisher="AIPerf",
        arrival="request_start_ns",
        prompt="input_sequence_length",
        output="output_sequence_length",
        unit="ns",
        zero_output_failed=True,
        any_order=True,
    ),
)

# Words of a column's name that say what is counted; what is left says of which part.
UNIT_WORDS = re.compile("num|number|n|count|of|total|tokens?|toks?|length|len|size")
MEANINGS = {
    "prompt": re.compile("prompts?|inputs?|in|context|request|isl|prefill|query"),
    "output": re.compile(
        "completions?|outputs?|out|generated|generation|response|answer|osl|decode"
    ),
    "max_tokens": re.compile("max( (new|completion|output|out))?"),
}


def match_format(path: Path, names: Iterable[str], reading: Reading) -> Format:
    """The first format that has these columns, those that `reading` gives in their place;
    ValueError with all known formats if none has."""
    names, given = list(names), dict(reading.columns)
    without_times = given.get("arrival") == "none"
    for part, name in given.items():
        if name not in names and not (part == "arrival" and without_times):
            raise ValueError(
                f"{path} has no column {name!r} for {part}: it has {', '.join(map(str, names))}"
            )
    known: tuple[Format, ...] = FORMATS
    if {"prompt", "output"} <= set(given):
        known = (replace(FORMATS[0], publisher="columns as given", arrival="", max_tokens=""),)
    found = [form for form in known if _needed(form, given) <= set(names)]
    if found:
        form = _with_columns(max(found, key=lambda form: len(form.required)), given)
        _require_one(path, "max_tokens", form.max_tokens, names)
        return form
    guessed = _guess(path, names, given)
    if guessed:
        return _with_columns(guessed, given)
    listed = "; ".join(
        f"{form.publisher}: {', '.join(filter(None, form.columns))}" for form in FORMATS
    )
    raise ValueError(
        f"{path} line 1 has the columns {', '.join(map(str, names)) or '(none)'}, of no known "
        f"trace format. Rename them to one of: {listed}. Or say which is which, for example "
        f"--columns arrival=created_at,prompt=n_in,output=n_out"
    )


def _require_one(path: Path, part: str, wanted: str, names: Sequence[str]) -> None:
    """ValueError where what may be left out is there twice, in two objects of a record."""
    several = [name for name in names if wanted and name.endswith(f".{wanted}")]
    if several and wanted not in names:
        raise ValueError(
            f"{path}: {' and '.join(several)} may each be the {part}: say --columns "
            f"{part}={several[0]}"
        )


def _needed(form: Format, given: Mapping[str, str]) -> set[str]:
    return set(form.required) - {getattr(form, part) for part in given}


def _guess(path: Path, names: Sequence[str], given: Mapping[str, str]) -> Format | None:
    """The format of columns whose names say in other words what they hold; None where prompt or
    output has none. Raises ValueError where two columns may be the same part."""
    found = {}
    for part, meanings in MEANINGS.items():
        spelt = [name for name in names if meanings.fullmatch(_meaning(name))]
        counted = [name for name in spelt if any(map(UNIT_WORDS.fullmatch, words(name)))]
        likely = [given[part]] if part in given else counted or spelt
        if len(likely) > 1:
            raise ValueError(
                f"{path}: {' and '.join(likely)} may each be the {part} tokens: say --columns "
                f"{part}={likely[0]}"
            )
        found[part] = likely[0] if likely else ""
    if not (found["prompt"] and found["output"]):
        return None
    return Format(
        publisher="guessed from its columns' names",
        arrival="",
        prompt=found["prompt"],
        output=found["output"],
        max_tokens=found["max_tokens"],
        times_optional=True,
    )


def _meaning(name: str) -> str:
    return " ".join(word for word in words(name) if not UNIT_WORDS.fullmatch(word))


def words(name: str) -> list[str]:
    """The words of a column's name, in lower case."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.findall(r"[a-z0-9]+", apart.lower())


def _with_columns(form: Format, given: Mapping[str, str]) -> Format:
    changes: dict[str, Any] = dict(given)
    if "arrival" in given and given["arrival"] != form.arrival:
        changes |= {
            "unit": "",
            "dates": False,
            "starts_at_zero": True,
            "times_optional": given["arrival"] == "none",
        }
    return replace(form, **changes)
