"""The formats of trace files, found by the names of their columns or by what a reader is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

UNITS_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
PARTS = ("arrival", "prompt", "output", "max_tokens")
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
    """How to read a trace file where its column names do not settle it."""

    columns: Mapping[str, str] = field(default_factory=dict)  # of `PARTS`; arrival may be "none"
    time_unit: str | None = None  # of `UNITS_S`
    separator: str | None = None  # of a CSV file: a character, or its name

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
            if part.strip() in pairs:
                raise ValueError(f"columns {columns!r} gives {part.strip()} twice: keep one")
            pairs[part.strip()] = name.strip()
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
)


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
    for form in known:
        needed = set(form.required) - {getattr(form, part) for part in given}
        if needed <= set(names):
            return _with_columns(form, given)
    listed = "; ".join(f"{form.publisher}: {', '.join(form.columns)}" for form in FORMATS)
    raise ValueError(
        f"{path} line 1 has the columns {', '.join(map(str, names)) or '(none)'}, of no known "
        f"trace format. Rename them to one of: {listed}. Or say which is which, for example "
        f"--columns arrival=created_at,prompt=n_in,output=n_out"
    )


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
