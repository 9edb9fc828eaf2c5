"""The pass log: one JSON line for each warmed bucket and each pass of the engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from spyre_bench.shapes import Bucket

if TYPE_CHECKING:
    from spyre_bench.engine.warmup import WarmupRow


class PassLog:
    """Lines to a file, each flushed, so that a reader sees every finished pass; to nowhere
    without a path."""

    def __init__(self, path: Path | None):
        self._file: TextIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="utf-8")

    def write_pass(self, **values: Any) -> None:
        self._write(values)

    def write_warmup(self, row: WarmupRow) -> None:
        self._write({"kind": "warmup", **vars(row)})

    def _write(self, values: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(values, default=_plain) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _plain(value: Any) -> Any:
    """JSON has no buckets."""
    if isinstance(value, Bucket):
        return [value.batch_size, value.prompt_length, value.new_tokens]
    raise TypeError(f"{value!r} does not go into the pass log")
