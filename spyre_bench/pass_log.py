"""The pass log, what an engine did: one JSON line for each warmed bucket or shape and each pass,
written and read as the same rows, and read into tidy frames."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO, TypeAlias, TypeVar

import pandas as pd

from spyre_bench.files import parse_json
from spyre_bench.shape_set import DecodeShape, PrefillShape
from spyre_bench.shapes import Bucket

log = logging.getLogger(__name__)

WARMUP, PASSES = "warmup", ("prefill", "decode")  # kinds of a line of static batching
# ... and of continuous batching
SHAPE_WARMUP, STEP_RULES, STEPS = "shape_warmup", "step_rules", ("chunk", "rows")
KINDS = (WARMUP, *PASSES, SHAPE_WARMUP, STEP_RULES, *STEPS)


@dataclass(frozen=True)
class Warmup:
    """Seconds of one bucket's warmup. A first pass compiles and runs: `*_compile_s` is what
    it took beyond the fastest of those after it, which is `prefill_s` or `decode_s`."""

    bucket: Bucket
    prefill_compile_s: float
    decode_compile_s: float
    prefill_s: float
    decode_s: float
    was_warm: bool  # all code came from the artefact
    graphs: int  # captured or loaded; one prefill and one decode, for each kind of layer

    @property
    def compile_s(self) -> float:
        return self.prefill_compile_s + self.decode_compile_s


@dataclass(frozen=True)
class Pass:
    """One pass of the engine."""

    kind: str  # one of PASSES
    batch: int
    bucket: Bucket
    start_s: float  # of the system's clock
    seconds: float
    step: int  # within the batch
    requests: list[str]  # of each row
    prompt_tokens: list[int]  # of each row
    running: int  # rows that had not finished
    # Of a prefill, what its scheduler knew; a log from before that has none of it. Times are of the
    # system's clock.
    place: list[int] = field(default_factory=list)  # of each row: among all requests that came
    arrival_s: list[float] = field(default_factory=list)  # of each row, at the front end
    seen_s: list[float] = field(default_factory=list)  # of each row: first waited for a decision
    max_tokens: list[int] = field(default_factory=list)  # of each row
    # the beginning of the decision before this one, if there was one (perhaps to hold), and the end
    # of this one: in between nobody looked at the queue
    looked_s: list[float] = field(default_factory=list)
    # of those that gave up in the queue: place, arrival, seen, the beginning of the last decision
    # before they left, left, prompt_tokens, max_tokens
    left: list[list[float]] = field(default_factory=list)


LEFT = 7  # numbers of each
WAITS = ("place", "arrival_s", "seen_s", "max_tokens", "looked_s", "left")


@dataclass(frozen=True)
class ShapeWarmup:
    """Seconds of one shape's warmup: what its first pass took beyond the next one, a pass whose
    context is full, and one with nothing in it but one token."""

    shape: PrefillShape | DecodeShape
    compile_s: float
    full_s: float
    empty_s: float
    was_warm: bool  # all code came from the artefact
    graphs: int  # captured by Dynamo, one for each kind of layer


@dataclass(frozen=True)
class StepRules:
    """What an engine of continuous batching decides by, beside the seconds of its warmup."""

    blocks: int  # of the KV cache, the dummy included
    prefix_cache: bool
    rules: dict[str, Any]  # the fields of policy.continuous.Rules


@dataclass(frozen=True)
class Came:
    """A request of continuous batching that a decision saw for the first time, as the scheduler
    knew it. Times are of the system's clock."""

    request: str
    arrival_s: float  # at the front end
    seen_s: float  # of the decision
    prompt_tokens: int
    max_tokens: int  # as the shapes allow
    # a name for each whole block of its prompt: equal ones stand for equal tokens up to there
    prefixes: list[str]


@dataclass(frozen=True)
class Gone:
    """A request of continuous batching that gave its blocks back for good."""

    request: str
    ended: bool  # with its last token; otherwise its client hung up, or it failed
    output_tokens: int


@dataclass(frozen=True)
class Step:
    """One pass of an engine of continuous batching."""

    kind: str  # one of STEPS
    shape: PrefillShape | DecodeShape
    start_s: float  # of the system's clock
    seconds: float
    requests: list[str]  # of each row
    tokens: list[int]  # that each row computed
    again_tokens: int  # computed a second time, beside those
    context_tokens: list[int]  # of each row after it
    context: int  # tokens of the pass's longest row, its padding to a rectangle included
    paused: int  # running requests that sat it out
    waiting: int
    free_blocks: int
    # Since the decision for the pass before; a log from before that has none of it.
    came: list[Came] = field(default_factory=list)  # in the order of the queue
    gone: list[Gone] = field(default_factory=list)  # in the order in which they went
    # of each row: names of blocks that the pass completes behind those of its prompt; [] for none
    named: list[list[str]] = field(default_factory=list)


PARTS: dict[str, type[Any]] = {"came": Came, "gone": Gone}
Line: TypeAlias = Warmup | Pass | ShapeWarmup | StepRules | Step
Row = TypeVar("Row", Warmup, Pass, ShapeWarmup, StepRules, Step)
Part = TypeVar("Part", Warmup, Pass, ShapeWarmup, StepRules, Step, Came, Gone)
KIND_OF = {Warmup: WARMUP, ShapeWarmup: SHAPE_WARMUP, StepRules: STEP_RULES}
"""Of lines whose kind is their type."""


class PassLog:
    """Rows to a file, each flushed, so that a reader sees every finished pass; to nowhere without
    a path. What an engine before this one logged there is kept as `<name>.1`. Raises ValueError
    where another one still writes there."""

    def __init__(self, path: Path | None):
        self._file: TextIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _locked(path)
            if path.is_file() and path.stat().st_size:
                with self._file:  # still locked while it gets its other name
                    path.replace(path.with_name(f"{path.name}.1"))
                    self._file = _locked(path)

    def write(self, row: Line) -> None:
        """A log that takes no more, on a full disk, ends; the engine goes on."""
        if self._file is None:
            return
        kind = {"kind": KIND_OF[type(row)]} if type(row) in KIND_OF else {}
        try:
            self._file.write(json.dumps(kind | vars(row), default=_plain) + "\n")
            self._file.flush()
        except OSError as error:
            log.warning(
                "The pass log ends here, and passes go on: %s takes no more (%s). Make room and "
                "start again for a whole one.",
                *(self._file.name, error.strerror),
            )
            self.close()

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a process that we forked may hold the file too
                fcntl.flock(self._file, fcntl.LOCK_UN)
            with contextlib.suppress(OSError):  # of what a full disk did not take
                self._file.close()
            self._file = None


def _locked(path: Path) -> TextIO:
    """The file that has this name, to be written by nobody else. The system lifts the lock of a
    process that was killed; where it knows none, on some network's disks, nobody is refused."""
    while True:
        file = path.open("a", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ValueError(
                f"pass_log {path} is written by another engine that runs: name another file, one "
                f"for each server, or stop that one (in a notebook: `del` its LLM)"
            ) from None
        except OSError:
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # its last writer's: it got its other name when we had just opened it


def read_passes(path: Path, *, waits: bool = False) -> pd.DataFrame:
    """One row per pass of the engine, in order: the fields of `Pass` but requests, the bucket as
    text and all times after the start of the first pass, and measured_at; with `waits` what the
    scheduler knew too. Raises ValueError naming a line that is not of a pass log."""
    passes = _frame(_rows(path, Pass))
    if passes.empty:
        raise ValueError(f"{path}: holds no pass: did the engine get a request?")
    passes["measured_at"] = [
        datetime.fromtimestamp(start_s, UTC).isoformat() for start_s in passes["start_s"]
    ]
    first_s = passes["start_s"].min()
    passes["start_s"] -= first_s
    if not waits:
        return passes.drop(columns=["requests", *WAITS])
    for name in ("arrival_s", "seen_s", "looked_s"):
        passes[name] = [[at_s - first_s for at_s in times] for times in passes[name]]
    for left in passes["left"]:
        for request in left:
            if len(request) != LEFT:
                raise ValueError(
                    f"{path}: who left has {len(request)} numbers and not {LEFT}: an engine of "
                    f"another version wrote this log; measure again to hold its decisions"
                )
            request[1:5] = [at_s - first_s for at_s in request[1:5]]
    return passes.drop(columns="requests")


def count_passes(path: Path) -> int:
    """How many passes the log has, 0 before the first request. Raises ValueError as `read_passes`
    does for a line that is not of a pass log."""
    return len(_rows(path, Pass))


def read_warmup(path: Path) -> pd.DataFrame:
    """One row per warmed bucket: the fields of `Warmup` with the bucket as text. Raises ValueError
    naming a line that is not of a pass log, and for a log without a warmed bucket."""
    warmup = _frame(_rows(path, Warmup))
    if warmup.empty:
        raise ValueError(f"{path}: holds no warmed bucket: did the engine get ready?")
    return warmup


def read_step_rows(path: Path) -> list[Step]:
    """Every pass of continuous batching as it was written, times of the system's clock. Raises
    ValueError as `read_passes` does."""
    rows = _rows(path, Step)
    if not rows:
        raise ValueError(f"{path}: holds no pass of continuous batching: did a request come?")
    return rows


def count_steps(path: Path) -> int:
    """As `count_passes`, of an engine of continuous batching."""
    return len(_rows(path, Step))


def read_step_rules(path: Path) -> StepRules:
    """What the engine decided by. Raises ValueError for a log that does not say it."""
    rows = _rows(path, StepRules)
    if not rows:
        raise ValueError(
            f"{path} does not say what its engine decided by: an older server wrote it, or one of "
            f"static batching; serve and log again"
        )
    return rows[0]


def read_shape_warmup(path: Path) -> list[ShapeWarmup]:
    """What warmup measured of each shape. Raises ValueError as `read_warmup` does."""
    rows = _rows(path, ShapeWarmup)
    if not rows:
        raise ValueError(f"{path}: holds no warmed shape: did the engine get ready?")
    return rows


def _frame(rows: list[Any]) -> pd.DataFrame:
    return pd.DataFrame([vars(row) | {"bucket": str(row.bucket)} for row in rows])


def _rows(path: Path, wanted: type[Row]) -> list[Row]:
    """Those of one type; all are looked at. A last line without its end was being written when the
    engine was killed, or is right now: it is left out with a note."""
    lines = path.read_bytes().splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(_row(line))
        except (ValueError, TypeError) as error:
            if not line.endswith(b"\n"):
                log.warning("%s: line %d is half written and left out", path, number)
                break
            raise ValueError(f"{path}: line {number} is not of a pass log: {error}") from error
    return [row for row in rows if isinstance(row, wanted)]


def _row(text: bytes) -> Line:
    line = parse_json(text, "its text")
    if not isinstance(line, dict):
        raise ValueError("it is not an object")
    kind = line.get("kind")
    if kind not in KINDS:
        raise ValueError(f"its kind is {kind!r}, not one of {', '.join(KINDS)}")
    if kind == WARMUP:
        return _of_type(Warmup, line)
    if kind == SHAPE_WARMUP:
        return _of_type(ShapeWarmup, line)
    if kind == STEP_RULES:
        return _of_type(StepRules, line)
    return _of_type(Pass, line) if kind in PASSES else _of_type(Step, line)


def _of_type(row: type[Part], line: dict[str, Any]) -> Part:
    values = {}
    for entry in fields(row):
        if entry.name not in line:
            if entry.default_factory is not MISSING:
                continue
            raise ValueError(f"it has no {entry.name}")
        value = values[entry.name] = line[entry.name]
        if entry.type == "Bucket":
            values[entry.name] = Bucket.parse(value)
        elif entry.name == "shape":
            values[entry.name] = _shape(value)
        elif not IS[str(entry.type)](value):
            raise ValueError(f"its {entry.name} is {value!r}")
        elif entry.name in PARTS:
            values[entry.name] = [_of_type(PARTS[entry.name], one) for one in value]
    return row(**values)


def _is_seconds(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _is_whole(value: Any) -> bool:
    return type(value) is int and value >= 0


IS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "int": _is_whole,
    "float": _is_seconds,
    "list[str]": lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value),
    "list[float]": lambda value: isinstance(value, list) and all(map(_is_seconds, value)),
    "list[list[float]]": lambda value: (
        isinstance(value, list) and all(map(IS["list[float]"], value))
    ),
    "list[int]": lambda value: isinstance(value, list) and all(map(_is_whole, value)),
    "list[Came]": lambda value: IS["list[dict]"](value),
    "list[Gone]": lambda value: IS["list[dict]"](value),
    "list[dict]": lambda value: isinstance(value, list) and all(map(IS["dict[str, Any]"], value)),
    "list[list[str]]": lambda value: isinstance(value, list) and all(map(IS["list[str]"], value)),
    "dict[str, Any]": lambda value: isinstance(value, dict),
}
"""By a field's type: whether a value in JSON is of it."""


def _shape(text: Any) -> PrefillShape | DecodeShape:
    """`"prefill 64,512"` or `"decode 4,512"`."""
    kind, _, sizes = text.partition(" ") if isinstance(text, str) else ("", "", "")
    if kind == "prefill":
        return PrefillShape.parse(sizes)
    if kind == "decode":
        return DecodeShape.parse(sizes)
    raise ValueError(f"its shape is {text!r}")


def _plain(value: Any) -> Any:
    """JSON has no buckets, no shapes and no rows in rows."""
    if isinstance(value, Bucket):
        return [value.batch_size, value.prompt_length, value.new_tokens]
    if isinstance(value, PrefillShape | DecodeShape):
        return value.name
    if isinstance(value, Came | Gone):
        return vars(value)
    raise TypeError(f"{value!r} does not go into the pass log")
