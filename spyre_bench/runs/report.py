"""What a notebook leaves behind: checked parameters, tables, figures, checks and an answer, with
the machine and the versions they came from. `execute.py` executes notebooks and makes the HTML.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import make_dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
import pandas as pd

from spyre_bench.files import replace_text
from spyre_bench.runs.provenance import provenance

Rule = Callable[[Any], Any]
"""Takes a parameter's value, returns what the notebook shall use; ValueError where it is bad."""

WAYS = ("lower", "higher", None)
Better = Literal["lower", "higher"] | None
"""Which way a figure is better; None for one that has no such way, such as a choice."""

KINDS = {int: "a whole number", float: "a finite number", str: "text", bool: "True or False"}


def start(question: str, namespace: Mapping[str, Any], **rules: Rule) -> Run:
    """Opens the record of a notebook that answers `question`.

    The parameters are the annotated names of `namespace` (pass `globals()`): each value is held
    against its annotation, then against its rule. Whatever set it, a wrong type or range is a
    ValueError here. A parameter `output_directory` says where files go, "" for nowhere; `seed`
    seeds `run.rng`.
    """
    kinds = dict(namespace.get("__annotations__", {}))
    if strangers := sorted(set(rules) - set(kinds)):
        raise ValueError(f"rules for {strangers}, but the parameters are {sorted(kinds)}")
    raw = {name: _typed(name, namespace[name], kind) for name, kind in kinds.items()}
    return Run(question, raw, {name: _ruled(name, raw[name], rules.get(name)) for name in raw})


def between(low: float, high: float) -> Rule:
    """The rule for a number from `low` to `high`, both allowed."""

    def rule(value: float) -> float:
        if not low <= value <= high:
            raise ValueError(f"use a number from {low} to {high}")
        return value

    return rule


def one_of(*choices: Any) -> Rule:
    """The rule for one of a few values."""

    def rule(value: Any) -> Any:
        if value not in choices:
            raise ValueError(f"use one of {', '.join(map(str, choices))}")
        return value

    return rule


def several(rule: Rule) -> Rule:
    """The rule for a text of one or more words, each of which obeys `rule`; reads as a list."""

    def each(value: str) -> list[Any]:
        if not value.split():
            raise ValueError("name one or more, separated by spaces")
        return [rule(word) for word in value.split()]

    return each


def _typed(name: str, value: Any, kind: Any) -> Any:
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if value is None and NoneType in kinds:
        return None
    kinds = tuple(one for one in kinds if one is not NoneType)
    for one in kinds[:-1]:
        with suppress(ValueError):
            return _of_kind(name, value, one)
    return _of_kind(name, value, kinds[-1])


def _of_kind(name: str, value: Any, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in get_args(kind)):
            listed = ", ".join(map(repr, get_args(kind)))
            raise ValueError(f"parameter {name} = {value!r} is not one of {listed}")
        return value
    if kind not in KINDS:
        raise ValueError(
            f"parameter {name}: annotate it as int, float, str or bool, a Literal of such values, "
            f"or with `| None`, not {kind}"
        )
    if kind is float and type(value) is int and abs(value) < sys.float_info.max:
        value = float(value)
    if name == "seed" and type(value) is int and value < 0:
        raise ValueError(f"parameter seed = {value}: use 0 or more")
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ValueError(f"parameter {name} = {value!r} is not {KINDS[kind]}")
    return value


def _ruled(name: str, value: Any, rule: Rule | None) -> Any:
    try:
        return rule(value) if rule and value is not None else value
    except ValueError as error:
        raise ValueError(f"parameter {name} = {value!r}: {error}") from error


class Run:
    """The record of one run of a notebook; each entry is on disk as soon as it is made."""

    def __init__(self, question: str, raw: dict[str, Any], parameters: dict[str, Any]):
        kinds = [(name, type(value)) for name, value in parameters.items()]
        self.parameters = make_dataclass("Parameters", kinds, frozen=True)(**parameters)
        self.rng = np.random.default_rng(raw.get("seed", 0))
        directory = raw.get("output_directory")
        self.directory = Path(directory).absolute() if directory else None
        self._scratch: tempfile.TemporaryDirectory | None = None
        self._started = time.monotonic()
        self._record: dict[str, Any] = {
            "question": question,
            "finished": False,
            "answer": None,
            "unless": "",
            "parameters": raw,
            "seed": raw.get("seed"),
            "results": {},
            "better": {},
            "checks": {},
            "aims": {},
            "measurements": {},
            "figures": {},
            "captions": {},
            "started_at": _now(),
            "seconds": 0.0,
            **provenance(),
        }
        self._save()

    def path(self, name: str) -> Path:
        """Where a file of this run goes; where the run keeps nothing, a place that ends with it."""
        if self.directory:
            return _folder(self.directory) / name
        self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="spyre_bench-")
        return Path(self._scratch.name) / name

    def table(
        self, name: str, frame: pd.DataFrame, better: Mapping[str, Better] | None = None
    ) -> pd.DataFrame:
        """Keeps a table as CSV and returns it for display. Its column `measured_at`, where it has
        one, says when its rows were measured; otherwise that is taken to be now. `better` is for
        columns whose unit says the wrong way, such as the seconds of a proved bound."""
        self._tell(f"tables/{name}", dict(better or {}))
        times = frame.get("measured_at", pd.Series([_now()]))
        self._record["measurements"][name] = {
            "rows": len(frame),
            "first_measured_at": times.min(),
            "last_measured_at": times.max(),
        }
        if self.directory:
            frame.to_csv(_folder(self.directory / "tables") / f"{name}.csv", index=False)
        self._save()
        return frame

    def figure(self, name: str, axes: Any) -> None:
        """Shows the figure of a matplotlib Axes and below it its caption, which is the figure's
        label, and keeps it as PNG and SVG."""
        self._record["figures"][name] = axes.get_title(loc="left") or axes.get_title()
        self._record["captions"][name] = axes.figure.get_label()
        if self.directory:
            path = _folder(self.directory / "figures") / name
            for suffix in ("png", "svg"):
                axes.figure.savefig(f"{path}.{suffix}", dpi=150, bbox_inches="tight")
        self._save()
        _show(axes.figure)

    def result(self, name: str, value: Any, better: Better | Mapping[str, Better] = None) -> Any:
        """Keeps one figure of the answer under a name that ends in its unit; returns it. One that
        is no number (nan or None) makes `spyre-bench run` fail with its name. `better` says which
        way it is better, of a mapping for all of its keys or for each."""
        self._record["results"][name] = value
        self._tell(f"results/{name}", better)
        self._save()
        return value

    def _tell(self, item: str, better: Better | Mapping[str, Better]) -> None:
        """Keeps, by the item's path in a comparison, which way it is better."""
        told = better if isinstance(better, Mapping) else {"": better}
        for key, way in told.items():
            if way not in WAYS:
                raise ValueError(f"{item}: better={way!r}: use 'lower', 'higher' or None")
            self._record["better"][f"{item}/{key}".removesuffix("/")] = way

    def check(self, name: str, ok: bool, evidence: str) -> None:
        """Keeps the outcome of a check; AssertionError with the evidence where it does not hold."""
        self._record["checks"][name] = {"ok": bool(ok), "evidence": evidence}
        self._save()
        assert ok, f"{name}: {evidence}"

    def aim(self, name: str, met: bool | None, evidence: str) -> None:
        """Keeps whether an aim was met; None where the machine was disturbed, so that nobody can
        say. A missed one fails nothing, and a review shows it on its first page."""
        state = "disturbed" if met is None else "met" if met else "missed"
        self._record["aims"][name] = {"state": state, "evidence": evidence}
        self._save()

    def answer(self, markdown: str, *, unless: str = "") -> Any:
        """Keeps the answer, which ends the record; returns it for display. `unless` is a sentence
        with the number that would change it."""
        from IPython.display import Markdown

        self._record |= {"answer": markdown, "unless": unless, "finished": True}
        self._save()
        return Markdown(f"{markdown}\n\n**What would change it:** {unless}" if unless else markdown)

    def _save(self) -> None:
        self._record["seconds"] = round(time.monotonic() - self._started, 3)
        if self.directory:
            text = json.dumps(_plain(self._record), indent=1) + "\n"
            replace_text(self.directory / "results.json", text)


def _show(figure: Any) -> None:
    """Nothing outside a notebook. Left to itself, Jupyter shows a figure below all else that its
    cell shows, a caption too."""
    from IPython import get_ipython
    from IPython.display import Markdown, display
    from matplotlib import pyplot as plt

    if get_ipython():
        display(figure)
        if caption := figure.get_label():
            display(Markdown(f"*{caption}*"))
        plt.close(figure)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _plain(value: Any) -> Any:
    """The value in JSON's own types: numpy scalars unpacked; of the numbers that JSON lacks, an
    infinite one (a break-even never reached) as the text "inf" or "-inf", nan as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return None if math.isnan(value) else value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
