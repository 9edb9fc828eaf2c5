"""Measure what buckets cost: each one cold and warm, in fresh processes, as cost-table rows."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from spyre_bench.checkpoints.find import model_directory
from spyre_bench.cost.table import (
    CostRow,
    Measurement,
    read_cost_table,
    read_shape_rows,
    write_cost_table,
)
from spyre_bench.engine.parallel import Rank, share_of_cores
from spyre_bench.files import in_use
from spyre_bench.measure.starts import measure_starts
from spyre_bench.shapes import Bucket, BucketSet

Sizes = TypeVar("Sizes")
Measured = TypeVar("Measured", bound=Measurement)
DEFAULT_PASSES = 9
REPLACED = {"passes", "torch_version", "fms_version"}
"""A row that differs in these is of the same engine, and gives way to a new one."""


def measure_bucket(
    model: str | Path,
    bucket: Bucket,
    *,
    tp: int = 1,
    model_code: str = "fms",
    compile_backend: str = "inductor",
    compile_scope: str = "layer",
    dtype: str = "float32",
    threads: int | None = None,
    passes: int = DEFAULT_PASSES,
) -> CostRow:
    """One row of the cost table, from two fresh processes: one that starts without compiled
    code, one that starts from the first one's artefact and also times the passes.

    `model` is a name or a model directory, `threads` those of each process (None: its share of the
    cores), of which there are `tp`.
    Raises ValueError for a setting that the engine refuses, with the engine's own words.
    """
    if passes < 1:
        raise ValueError(f"passes {passes} is below 1: use 1 or more")
    starts = measure_starts(
        model_directory(str(model), tokenizer=False),
        BucketSet((bucket,)),
        model_code=model_code,
        compile_backend=compile_backend,
        compile_scope=compile_scope,
        dtype=dtype,
        tp=tp,
        threads=threads,
        passes=passes,
        timed=("warm",),
    ).set_index("start")
    cold, warm = starts.loc["cold"], starts.loc["warm"]
    return CostRow(
        model=str(model),
        batch_size=bucket.batch_size,
        prompt_length=bucket.prompt_length,
        new_tokens=bucket.new_tokens,
        tp=tp,
        model_code=model_code,
        compile_backend=compile_backend,
        compile_scope=compile_scope,
        dtype=dtype,
        prefill_s=float(warm["prefill_s"]),
        prefill_iqr_s=float(warm["prefill_iqr_s"]),
        decode_s=float(warm["decode_s"]),
        decode_iqr_s=float(warm["decode_iqr_s"]),
        passes=passes,
        memory_bytes=int(warm["memory_bytes"]),
        **common(cold, warm),
    )


DEFAULTS = measure_bucket.__kwdefaults__
"""Settings that nobody gives, `measure_shapes`' too: a table's rows are asked for them as well."""


def common(cold: Mapping[str, Any], warm: Mapping[str, Any]) -> dict[str, Any]:
    """What rows of buckets and of shapes say alike of their starts and of this machine."""
    return {
        "compile_s": float(cold["compile_s"]),
        "compile_warm_s": float(warm["compile_s"]),
        "load_s": float(warm["load_s"]),
        "threads": int(warm["threads"]),
        "host": platform.node(),
        "cpu": warm["cpu"],
        "torch_version": version("torch"),
        "fms_version": version("ibm-fms"),
        "measured_at": warm["measured_at"],
    }


def measure_table(
    out: Path, buckets: Iterable[Bucket], on_row: Callable[[CostRow], None] | None = None, **setting
) -> list[CostRow]:
    """Measures the buckets that `out` does not hold yet, writing it after each, so that an
    interrupted run goes on where it stopped. Returns all rows of the table.

    A row of the same bucket by other passes or versions is measured again and replaced. Raises
    ValueError, before anything is measured, for a table of another engine or host: a table of both
    would be of use to nobody.
    """
    return keep_table(
        out,
        list(buckets),
        lambda missing: (measure_bucket(bucket=bucket, **setting) for bucket in missing),
        on_row,
        setting,
    )


def keep_table(
    out: Path,
    wanted: list[Sizes],
    measure: Callable[[list[Sizes]], Iterable[Measured]],
    on_row: Callable[[Measured], None] | None,
    setting: dict,
) -> list[Measured]:
    """The rows of `out`, with what is missing of the buckets or shapes `wanted` measured and
    written one by one. Rows of the other kind of batching stay."""
    with in_use(out):
        rows: list[Measurement] = []
        if out.exists():
            rows = [*read_cost_table(out), *read_shape_rows(out)]
        asked = _asked(setting)
        _require_same_engine(out, rows, asked)
        there = {row.sizes: row for row in rows if _is(row, asked)}
        new = iter(measure([sizes for sizes in wanted if sizes not in there]))
        for sizes in wanted:
            while sizes not in there:
                row = next(new)
                there[row.sizes] = row
                rows = [*(other for other in rows if other.sizes != row.sizes), row]
                write_cost_table(out, rows)
            if on_row:
                on_row(there[sizes])
        kind = type(there[wanted[0]]) if wanted else Measurement
        return [row for row in rows if isinstance(row, kind)]


def _asked(setting: dict) -> dict[str, str]:
    """What a row says of itself if it was measured as this call would, and where."""
    setting = DEFAULTS | setting
    Rank(0, setting["tp"])  # refuses a number that cannot be
    return {name: str(value) for name, value in setting.items()} | {
        "threads": str(setting["threads"] or share_of_cores(setting["tp"])),
        "host": platform.node(),
        "torch_version": version("torch"),
        "fms_version": version("ibm-fms"),
    }


def _require_same_engine(out: Path, rows: Iterable[Measurement], asked: dict[str, str]) -> None:
    for row in rows:
        for name in sorted(asked.keys() - REPLACED):
            if (there := str(getattr(row, name))) != asked[name]:
                raise ValueError(
                    f"{out} holds rows of {name} {there}, and this would measure {name} "
                    f"{asked[name]}: name another file, a table is of one engine on one host"
                )


def _is(row: Measurement, asked: dict[str, str]) -> bool:
    return all(str(getattr(row, name)) == value for name, value in asked.items())
