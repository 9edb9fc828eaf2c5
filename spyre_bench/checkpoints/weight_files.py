"""Which safetensors files of a directory are its model, and what their headers say.

Loads no torch: a model is found and checked by name before anything heavy is imported.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open

log = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
MODEL_FILE = "model.safetensors"
NAMED = 5
"""How many names a message lists."""


@dataclass(frozen=True)
class WeightFiles:
    """The safetensors files of a directory that are its model."""

    directory: Path

    @cached_property
    def files(self) -> list[Path]:
        """Those that the index names, or without one the model's one file. Files beside them are
        named in the log. Raises ValueError where it is not clear which are meant."""
        there = {path.name for path in self.directory.glob("*.safetensors")}
        index = self.directory / INDEX
        if index.is_file():
            meant = _shards(index)
            if missing := sorted(meant - there):
                raise ValueError(
                    f"{self.directory}: {listed(missing)} is missing, {INDEX} names it"
                )
            if MODEL_FILE in there - meant:
                raise ValueError(
                    f"{self.directory}: it holds {MODEL_FILE} and an index that does not name it: "
                    f"readers differ in which they take. Remove the one that is not meant"
                )
        else:
            meant = {_only_file(self.directory, there)}
        if others := sorted(there - meant):
            log.warning("%s: not part of the model, not read: %s", self.directory, others)
        return [self.directory / name for name in sorted(meant)]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor, by name, from the files' headers. Raises ValueError for a name that two
        files have and for a file that is damaged."""
        found: dict[str, tuple[int, ...]] = {}
        for path in self.files:
            for name, shape in header(path).items():
                if name in found:
                    raise ValueError(f"{self.directory}: tensor {name} stands in two files")
                found[name] = shape
        return found

    @property
    def elements(self) -> dict[str, int]:
        return {name: math.prod(shape) for name, shape in self.shapes.items()}


def _shards(index: Path) -> set[str]:
    try:
        shards = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(f"{index.parent}: {INDEX} is no JSON with a weight_map") from None
    if outside := sorted(name for name in shards if name != os.path.basename(str(name))):
        raise ValueError(f"{index.parent}: {INDEX} names files elsewhere: {listed(outside)}")
    return shards


def _only_file(directory: Path, there: set[str]) -> str:
    if MODEL_FILE in there:
        return MODEL_FILE
    candidates = sorted(name for name in there if not name.startswith("adapter"))
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise ValueError(
            f"{directory}: weights in safetensors are missing (other weight formats are not read)"
        )
    raise ValueError(
        f"{directory}: neither {INDEX} nor {MODEL_FILE} is there, and {len(candidates)} files "
        f"could be it ({listed(candidates)}): name the right one {MODEL_FILE}"
    )


def header(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a file's tensors, by name; ValueError for a file that is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path.parent}: {path.name} is damaged ({error})") from None


def listed(names: Iterable[str], before: str = "") -> str:
    """The first few names, after `before`; nothing for none."""
    names = sorted(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{before}{', '.join(names[:NAMED])}{more}" if names else ""
