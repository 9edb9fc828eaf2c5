"""The command `workloads`: those that ship, and what a file of requests is taken for."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spyre_bench.cli.options import refuse_idle, result_file
from spyre_bench.cli.tables import narrow, show

if TYPE_CHECKING:
    from spyre_bench.workload.workload import Workload

LEVELS = {"min": 0.0, "median": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}


def workloads(
    file: Annotated[
        Path | None, typer.Argument(help="of requests; without one: the workloads that ship")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(metavar="PART=COLUMN,...", help="arrival=created_at,prompt=n_in,output=n_out"),
    ] = None,
    time_unit: Annotated[str | None, typer.Option(help="s, ms, us or ns")] = None,
    separator: Annotated[str | None, typer.Option(help="of a CSV file")] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="counts the tokens of conversations: directory, hub id or smollm2"),
    ] = None,
    out: Annotated[
        Path | None, result_file(help="takes the requests, as .csv or .jsonl, plain or .gz")
    ] = None,
) -> None:
    """List the workloads that ship, or say what a file of requests is taken for."""
    if file is None:
        given = {"--columns": columns, "--time-unit": time_unit, "--separator": separator}
        given |= {"--tokenizer": tokenizer, "--out": out}
        refuse_idle("no file of requests is named", given)
        _print_shipped()
        return
    from spyre_bench.workload.trace_formats import Reading
    from spyre_bench.workload.workload import Workload

    reading = Reading.parse(columns, time_unit, separator)
    if tokenizer is not None:
        from spyre_bench.checkpoints.tokenizer import ModelTokenizer

        reading = replace(reading, tokenizer=ModelTokenizer(tokenizer))
    workload = Workload.read(file, reading)
    typer.echo(str(workload))
    _print_lengths(workload)
    if out:
        workload.save(out)
        typer.echo(f"{len(workload):,} requests in {out}", err=True)


def _print_shipped() -> None:
    import numpy as np

    from spyre_bench.workload.length_table import WORKLOADS, attributions
    from spyre_bench.workload.source import load_workload

    table = narrow("tokens", "requests/s", "prompt P50", "P95", "output P50", "P95")
    for name in WORKLOADS:
        drawn = load_workload(name, rng=np.random.default_rng(0))
        tokens = drawn.quantiles([0.5, 0.95])["tokens"][:4]
        rate = drawn.requests_per_s
        table.add_row(
            name, "all at once" if math.isinf(rate) else f"{rate:.3g}", *(f"{t:,}" for t in tokens)
        )
    show(table)
    for name, source in attributions().items():
        typer.echo(f"{name}: {source}")


def _print_lengths(workload: Workload) -> None:
    table = narrow("tokens", *LEVELS)
    found = workload.quantiles(list(LEVELS.values()))
    for name, some in found.groupby("length", sort=False):
        table.add_row(str(name).removesuffix("_tokens"), *(f"{v:,.0f}" for v in some["tokens"]))
    show(table)
