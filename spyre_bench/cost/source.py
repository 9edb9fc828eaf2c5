"""A source of costs from text, as commands and grids take it: the file of a cost table, the name
of one that ships, or the Spyre card's model as `card:MODEL,tp=4,dtype=fp8,end=pessimistic`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from spyre_bench.cost.bucket_cost import CostModel
from spyre_bench.cost.card import SpyreCost
from spyre_bench.cost.card_parameters import WORDS, with_all_reduce
from spyre_bench.cost.measured import SHIPPED, SHIPPED_SHAPES, load_cost_table
from spyre_bench.model_sizes import preset

BUCKETS, SHAPES = "buckets", "shapes"
NAMED = {BUCKETS: SHIPPED, SHAPES: SHIPPED_SHAPES}
"""The tables that ship, of two machines. That of buckets prices a paged pass as a static one."""
PREFIX = "card:"
SIMULATED = "simulated:"
"""Before a source of costs: a device that computes nothing and takes their time."""
DEFAULTS = {"tp": "1", "dtype": "fp16", "end": "value", "all_reduce_us": "0"}
"""Keys behind the model and what they are if not given; 0 µs: the card's range."""


def load_cost(text: str | Path | None = None, *, extrapolate: bool = False) -> CostModel:
    """The costs that `text` names: the table of a file, one that ships, the card's model, or, where
    it is empty, the table of buckets that ships.

    Raises ValueError for a model, a key or a value that is not known, naming those that are.
    """
    if text and str(text).startswith(PREFIX):
        return _card(str(text))
    path = NAMED.get(str(text or BUCKETS)) or Path(str(text))
    return load_cost_table(path, extrapolate=extrapolate)


def on_cards(text: str | None, tp: int) -> str | None:
    """The same source for an engine of `tp` cards. Raises ValueError for a measured table, which is
    of the engine that it was measured on, and any other number of cards than 1."""
    if not (text and text.startswith(PREFIX)):
        if tp != 1:
            raise ValueError(
                f"tp {tp}: a cost table is of the engine that was measured: use the card's model, "
                f"such as {PREFIX}granite-3.3-8b"
            )
        return text
    name, *settings = text.split(",")
    return ",".join([name, *(it for it in settings if not it.startswith("tp=")), f"tp={tp}"])


def cards_of(text: str | None) -> int:
    """How many cards an engine of this source has; of a measured table, which counts as one, 1."""
    return _card(text).tp if text and text.startswith(PREFIX) else 1


def _card(text: str) -> SpyreCost:
    name, *settings = text.removeprefix(PREFIX).split(",")
    values = DEFAULTS | _settings(text, settings)
    tp = _number(text, "tp", values["tp"], int)
    card = with_all_reduce(_number(text, "all_reduce_us", values["all_reduce_us"], float))
    ends = {word: end for end, word in WORDS.items()}
    end = ends.get(values["end"], values["end"])
    return SpyreCost(preset(name), tp, values["dtype"], card, end)


def _settings(text: str, settings: Sequence[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key not in DEFAULTS:
            raise ValueError(
                f"cost {text!r}: {setting!r} is not a setting of the card: write key=value with "
                f"one of {', '.join(DEFAULTS)}"
            )
        if key in values:
            raise ValueError(f"cost {text!r} gives {key} twice: keep one")
        values[key] = value
    return values


N = TypeVar("N", int, float)


def _number(text: str, key: str, value: str, kind: Callable[[str], N]) -> N:
    try:
        return kind(value)
    except ValueError as error:
        raise ValueError(
            f"cost {text!r}: {key} {value!r} is not a number: write, for example, {key}=4"
        ) from error
