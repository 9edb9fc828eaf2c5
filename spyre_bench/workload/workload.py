"""Which requests come when, as columns: read from a trace file, cut, scaled, drawn anew."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from spyre_bench.files import replacing
from spyre_bench.frames import is_json
from spyre_bench.shapes import Bucket
from spyre_bench.workload.arrivals import Process, Replay, parse_arrivals
from spyre_bench.workload.max_tokens import MaxTokens, parse_max_tokens, scaled_tokens
from spyre_bench.workload.trace_files import MAX_TOKENS, read_trace
from spyre_bench.workload.trace_formats import Reading

COLUMNS = {
    "arrival_s": np.float64,
    "prompt_tokens": np.int32,
    "output_tokens": np.int32,
    "max_tokens": np.int32,
}


@dataclass(frozen=True, eq=False, repr=False)
class Workload:
    """Requests in order of arrival, as read-only columns, one element per request.

    A scheduler may see `max_tokens`, what the client asked for, and never `output_tokens`, where
    the output really ends: at `max_tokens` at the latest, since a server stops there.
    """

    name: str
    arrival_s: np.ndarray  # float64, >= 0, ascending
    prompt_tokens: np.ndarray  # int32, >= 1
    output_tokens: np.ndarray  # int32, >= 1
    max_tokens: np.ndarray  # int32, >= output_tokens
    note: str = ""  # what a reader should know, such as requests that were left out
    # A recording starts with its first request, at any time of any clock. What a process draws
    # starts one gap earlier, whose seconds these are.
    lead_in_s: float = 0.0
    read_as: str = ""  # of a file: which columns and which unit were taken
    # Columns that nothing here looks at, one element per request: sessions, ids of shared prefixes.
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in COLUMNS.items():
            column = np.asarray(getattr(self, name))
            if column.dtype != kind:
                self._refuse(name, ~_representable(column, kind), f"a value of {kind.__name__}")
            column = column.astype(kind, copy=False).view()
            column.flags.writeable = False
            object.__setattr__(self, name, column)
        sizes = {len(getattr(self, name)) for name in COLUMNS}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                f"workload {self.name}: columns of {sorted(sizes)} requests: give all of them the "
                f"same length, 1 or more"
            )
        arrival_s = self.arrival_s
        self._refuse("arrival_s", ~(np.isfinite(arrival_s) & (arrival_s >= 0)), "0 s or later")
        backwards = np.diff(arrival_s, prepend=0) < 0
        self._refuse("arrival_s", backwards, "in ascending order: sort the requests by time")
        self._refuse("prompt_tokens", self.prompt_tokens < 1, "1 token or more")
        self._refuse("output_tokens", self.output_tokens < 1, "1 token or more")
        if wrong := [name for name, column in self.extras.items() if len(column) != len(self)]:
            raise ValueError(
                f"workload {self.name}: {wrong[0]} has {len(self.extras[wrong[0]])} elements for "
                f"{len(self)} requests: give one for each"
            )
        too_long = self.output_tokens > self.max_tokens
        self._refuse("output_tokens", too_long, "at most its max_tokens: a server stops there")

    def _refuse(self, name: str, bad: np.ndarray, rule: str) -> None:
        if bad.any():
            at = int(np.argmax(bad))
            value = np.asarray(getattr(self, name))[at]
            raise ValueError(
                f"workload {self.name}: {name} {value} of request {at} (counted from 0) must be "
                f"{rule}"
            )

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def start_s(self) -> float:
        """Where its clock stands when it begins: at the first arrival, or its lead-in before."""
        return float(self.arrival_s[0]) - self.lead_in_s

    @property
    def span_s(self) -> float:
        """Seconds from its start to the last arrival."""
        return float(self.arrival_s[-1]) - self.start_s

    @property
    def requests_per_s(self) -> float:
        """Mean arrival rate over the span; infinite if all come at once."""
        return len(self) / self.span_s if self.span_s > 0 else math.inf

    def __str__(self) -> str:
        rate = self.requests_per_s
        come = "all at once" if math.isinf(rate) else f"in {self.span_s:,.6g} s, {rate:.3g}/s"
        what = f"{len(self):,} request{'s' if len(self) > 1 else ''} {come}"
        return _joined(self.read_as or self.name, what, self.note)

    def __repr__(self) -> str:
        return f"<Workload {self}>"

    def _repr_html_(self) -> str:
        levels = {"minimum": 0.0, "median": 0.5, "P95": 0.95, "P99": 0.99, "maximum": 1.0}
        lengths = (
            self.quantiles(list(levels.values()))["tokens"].to_numpy().reshape(-1, len(levels))
        )
        table = pd.DataFrame(lengths, list(COLUMNS)[1:], list(levels))
        return f"<p>{escape(str(self))}</p>{table.to_html()}"

    def fits(self, bucket: Bucket) -> np.ndarray:
        """bool [requests], which of them the bucket takes: by prompt and max_tokens, as a scheduler
        sees them."""
        return (self.prompt_tokens <= bucket.prompt_length) & (self.max_tokens <= bucket.new_tokens)

    # --- files

    @classmethod
    def read(cls, path: str | Path, reading: Reading | None = None) -> Workload:
        """A trace file of any known format (see `trace_formats`), found by its columns, or by
        what `reading` says of them. Printed, the workload says what was taken for what.

        Without times, all requests come at 0; without max_tokens, the client knew the length of
        its output (`Exact`). BurstGPT's failed requests (no response) are left out, and the note
        counts them. Raises ValueError with file and line for what cannot be a trace.
        """
        columns = read_trace(path, reading)
        output, max_tokens = columns.output_tokens, columns.max_tokens
        arrival_s = np.zeros(len(output)) if columns.arrival_s is None else columns.arrival_s
        return cls(
            trace_name(path),
            arrival_s,
            columns.prompt_tokens,
            output,
            output if max_tokens is None else max_tokens,
            f"{columns.failed} failed requests left out" if columns.failed else "",
            read_as=columns.read_as,
            extras=columns.extras,
        )

    def save(self, path: str | Path) -> None:
        """Writes `.csv` or `.jsonl`, plain or `.gz`; `read` gives back the very same columns."""
        path = Path(path)
        if not path.name.removesuffix(".gz").endswith((".csv", ".jsonl")):
            raise ValueError(f"{path} has no known suffix: use .csv or .jsonl, with or without .gz")
        compressed = path.suffix == ".gz"
        with replacing(path) as partial, _create_text(partial, compressed=compressed) as file:
            if is_json(path):
                file.writelines(self._json_lines())
            else:
                extras = {
                    name: [json.dumps(v) if isinstance(v, list) else v for v in _plain(column)]
                    for name, column in self.extras.items()
                }
                self.frame().assign(**extras).to_csv(file, index=False, lineterminator="\n")

    def _json_lines(self) -> Iterator[str]:
        line = ", ".join(f'"{name}": {{}}' for name in (*COLUMNS, *self.extras))
        columns = [getattr(self, name) for name in COLUMNS]
        columns += [map(json.dumps, _plain(column)) for column in self.extras.values()]
        return (f"{{{line.format(*row)}}}\n" for row in zip(*columns, strict=True))

    def frame(self) -> pd.DataFrame:
        """One row per request, the four columns."""
        return pd.DataFrame({name: getattr(self, name) for name in COLUMNS})

    def quantiles(self, levels: Sequence[float]) -> pd.DataFrame:
        """The distributions of its lengths, one row per length and level (0 to 1): length
        ("prompt_tokens", "output_tokens" or "max_tokens"), level, tokens. Only lengths that occur,
        none between."""
        return pd.DataFrame(
            {
                "length": np.repeat(list(COLUMNS)[1:], len(levels)),
                "level": np.tile(levels, len(COLUMNS) - 1),
                "tokens": np.concatenate(
                    [
                        np.quantile(getattr(self, name), levels, method="inverted_cdf")
                        for name in list(COLUMNS)[1:]
                    ]
                ),
            }
        )

    # --- parts

    def take(self, index: slice | np.ndarray) -> Workload:
        """The requests of an ascending index, a slice or a mask, at their own times. A lead-in
        still begins where it did."""
        columns: dict[str, Any] = {name: getattr(self, name)[index] for name in COLUMNS}
        if self.lead_in_s and len(columns["arrival_s"]):
            columns["lead_in_s"] = float(columns["arrival_s"][0]) - self.start_s
        extras = {name: column[index] for name, column in self.extras.items()}
        return replace(self, **columns, extras=extras)

    def only(self, fits: np.ndarray, otherwise: str) -> Workload:
        """The requests of a mask. Raises ValueError, with what is said `otherwise`, where there is
        none."""
        if not fits.any():
            raise ValueError(otherwise)
        return self if fits.all() else self.take(fits)

    def head(self, requests: int) -> Workload:
        """The first requests; ValueError if there are fewer."""
        if not 1 <= requests <= len(self):
            raise ValueError(
                f"workload {self.name} has {len(self)} requests: {requests} cannot be taken"
            )
        return self.take(slice(requests))

    def halves(self) -> tuple[Workload, Workload]:
        """The earlier half to fit on, and the later half, its time starting anew at 0, to test
        on."""
        if len(self) < 2:
            raise ValueError(f"workload {self.name} has 1 request: it cannot be halved")
        middle = len(self) // 2
        return self.take(slice(middle)), self.take(slice(middle, None)).from_zero()

    def from_zero(self) -> Workload:
        """The same requests, the first of them at 0."""
        return replace(self, arrival_s=self.arrival_s - self.arrival_s[0], lead_in_s=0.0)

    def window(self, from_s: float = 0.0, to_s: float = math.inf) -> Workload:
        """The requests of a window in seconds from its start (`start_s`), which becomes 0: to leave
        a ramp-up out, or what comes after. ValueError where it holds none."""
        if not 0 <= from_s < to_s:
            raise ValueError(
                f"window from {from_s} s to {to_s} s is none: start at 0 or later, end after that"
            )
        since_s = self.arrival_s - self.start_s
        within = (since_s >= from_s) & (since_s < to_s)
        if not within.any():
            raise ValueError(
                f"workload {self.name} has no requests from {from_s} s to {to_s} s: it is "
                f"{self.span_s:.6g} s long"
            )
        arrival_s = since_s[within] - from_s
        end = "on" if math.isinf(to_s) else f"to {to_s:g} s"
        return replace(
            self.take(within),
            arrival_s=arrival_s,
            lead_in_s=float(arrival_s[0]),
            note=_joined(self.note, f"those from {from_s:g} s {end}"),
        )

    # --- the same requests under other circumstances

    def with_arrivals(
        self, process: Process | str, rng: np.random.Generator | None = None
    ) -> Workload:
        """The same requests, in the same order, at other times."""
        process = parse_arrivals(process)
        if isinstance(process, Replay):
            return self
        arrival_s = process.times(len(self), rng)
        return replace(
            self,
            arrival_s=arrival_s,
            lead_in_s=float(arrival_s[0]),
            read_as=self.read_as and f"{self.read_as}; arrivals drawn anew: {process}",
        )

    def with_max_tokens(self, rule: MaxTokens | str) -> Workload:
        """The same requests with another max_tokens. Longer outputs are cut there, as a server
        stops: a rule can shorten outputs, and a second one does not bring them back."""
        rule = parse_max_tokens(rule)
        max_tokens = rule.of(self.output_tokens, self.max_tokens)
        cut = int((self.output_tokens > max_tokens).sum())
        told = f"max_tokens by {rule} cut {cut:,} of {len(self):,} outputs short"
        return replace(
            self,
            max_tokens=max_tokens,
            output_tokens=np.minimum(self.output_tokens, max_tokens),
            note=_joined(self.note, told if cut else ""),
        )

    def scaled(self, lengths: float = 1.0, rate: float = 1.0) -> Workload:
        """A workload for a smaller machine: all lengths, max_tokens too, times `lengths` and
        rounded up; `rate` times as many requests per second."""
        for name, factor in (("lengths", lengths), ("rate", rate)):
            if not 0 < factor < math.inf:
                raise ValueError(f"scaled {name} {factor} is not a positive number")
        columns: dict[str, Any] = {
            name: scaled_tokens(getattr(self, name), lengths) for name in list(COLUMNS)[1:]
        }
        arrival_s = self.arrival_s / rate
        return replace(self, arrival_s=arrival_s, lead_in_s=self.lead_in_s / rate, **columns)


def _representable(column: np.ndarray, kind: type) -> np.ndarray:
    """Which values the type can hold without loss; no fractions of a token."""
    if column.dtype.kind not in "iuf":
        return np.zeros(column.shape, bool)
    if kind is np.float64:
        return np.ones(column.shape, bool)
    return (np.abs(column) <= MAX_TOKENS) & (column == np.floor(column))


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _plain(values: np.ndarray) -> list[Any]:
    """Python's own lists, numbers and texts, as files take them."""
    missing = (None if isinstance(v, float) and math.isnan(v) else v for v in values.tolist())
    return [v.tolist() if isinstance(v, np.ndarray | np.generic) else v for v in missing]


def trace_name(path: str | Path) -> str:
    name = Path(path).name.removesuffix(".gz")
    return Path(name).stem


def _create_text(path: Path, compressed: bool) -> TextIO:
    if compressed:
        return gzip.open(path, "wt", encoding="utf-8", compresslevel=6)  # 9 is slow, little gained
    return open(path, "w", encoding="utf-8")
