"""The figures that the notebooks which only calculate are known to give, kept in the repository.

A baseline has the form of a run without its pictures: `compare` reads both.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spyre_bench.files import replace_text
from spyre_bench.runs.records import OUTCOME, RESULTS, Record

DIGITS = 10  # of a number; tolerances begin at a millionth


def calculated(run: Mapping[str, Record]) -> dict[str, Record]:
    """Those of a run's records that a repetition gives again."""
    return {name: record for name, record in run.items() if not record.traits.measures}


def write_baseline(folder: Path, run: Mapping[str, Record]) -> None:
    """Replaces the baseline by the calculated records of a run. Raises ValueError where one of
    them is of a notebook that failed."""
    records = calculated(run)
    for record in records.values():
        if record.error:
            raise ValueError(f"{record.error}: a baseline is of notebooks that passed")
    for earlier in folder.glob(f"*/{OUTCOME}"):
        shutil.rmtree(earlier.parent)
    for name, record in records.items():
        _write(folder / name, record)


def _write(folder: Path, record: Record) -> None:
    (folder / "tables").mkdir(parents=True)
    _dump(
        folder / OUTCOME,
        {
            "notebook": record.notebook,
            "error": None,
            "traits": asdict(record.traits),
        },
    )
    _dump(
        folder / RESULTS,
        {
            "parameters": dict(record.parameters),
            "results": _rounded(record.results),
            **({} if record.better is None else {"better": dict(record.better)}),
            "checks": {name: {"ok": ok} for name, ok in record.checks.items()},
            "figures": record.figures,
        },
    )
    for name, frame in record.tables.items():
        frame.to_csv(folder / "tables" / f"{name}.csv", index=False, float_format=f"%.{DIGITS}g")


def _dump(path: Path, content: dict[str, Any]) -> None:
    replace_text(path, json.dumps(content, indent=1) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
