"""The commands of the regression gate: `compare`, `pairs` and `baseline update`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spyre_bench.cli.options import refuse_idle, result_file

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from spyre_bench.runs.records import Record

TITLES = {
    "broken": "broken: failed, or no number",
    "vanished": "vanished: covered before, and no longer",
    "worse": "worse",
    "changed": "changed, for no known better or worse",
    "better": "better",
    "new": "new",
    "tied": "tied: a solver chose otherwise, and as well",
    "by chance": "differs by chance",
    "too few pairs": "too few pairs to say",
}
STYLES = {
    "broken": "red",
    "vanished": "red",
    "worse": "red",
    "changed": "yellow",
    "better": "green",
    "slower": "red",
    "faster": "green",
}
SHOWN = 20  # rows of a kind; all of them with --json
BASELINE = "baseline"  # a folder beside the notebooks

Tolerance = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="of a kind (ratio=0.2) or an item (results/fill=0.05)"),
]
Tolerances = Annotated[Path | None, typer.Option(help="YAML of such names and values")]


def compare(
    base: Annotated[Path, typer.Argument(help="folder of a run, or notebooks/baseline")],
    new: Annotated[Path, typer.Argument(help="folder of a later run")],
    tolerance: Tolerance = None,
    tolerances: Tolerances = None,
    pairs: Annotated[
        bool,
        typer.Option(
            "--pairs", help="seconds by all runs of both folders, which were run in turns"
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="takes a picture of each differing table")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON and nothing else")] = False,
) -> None:
    """Hold a run against an earlier one: exit code 1 where anything got worse or lost."""
    from spyre_bench.review import regression
    from spyre_bench.runs.records import read_pairs, read_run

    allowed = _tolerances(tolerance or [], tolerances)
    if pairs:
        several = read_pairs(base, new)
        runs, compared = several[-1], regression.compare_pairs(several, allowed)
    else:
        runs = read_run(base), read_run(new)
        compared = regression.compare(*runs, allowed)
    if output:
        _draw(regression.curves(*runs, compared), output)
    if as_json:
        typer.echo(compared[compared["state"] != "same"].to_json(orient="records", indent=1))
    else:
        _print(compared)
    if compared["fails"].any():
        raise typer.Exit(1)


def pairs(
    base: Annotated[str, typer.Argument(help="a checkout, or a command that prints figures")],
    new: Annotated[str, typer.Argument(help="another one")],
    bucket: Annotated[
        list[str] | None, typer.Option(help="of a checkout's engine: what is measured")
    ] = None,
    model: Annotated[str, typer.Option(help="directory, hub id or smollm2")] = "smollm2",
    starts: Annotated[int, typer.Option(min=1, help="how often both are started")] = 5,
    count: Annotated[int, typer.Option("-n", "--pairs", min=1, help="of each start")] = 12,
    least: Annotated[
        float | None,
        typer.Option(help="the smallest change that matters; default: 0.03"),
    ] = None,
    out: Annotated[Path | None, result_file(help="CSV that takes every pair")] = None,
) -> None:
    """Measure two checkouts or commands in turns: exit code 1 where the new one is slower."""
    import pandas as pd
    from tqdm import tqdm

    from spyre_bench.files import replacing
    from spyre_bench.measure.in_turns import measure_starts_in_turns
    from spyre_bench.review.pairs import LEAST, judge, require_limits

    least = LEAST if least is None else least
    require_limits(least)
    commands = [_measuring(side, bucket or [], model) for side in (base, new)]
    if not (os.path.isdir(base) or os.path.isdir(new)):
        given = {"--bucket": bucket, "--model": model != "smollm2"}
        refuse_idle("commands say themselves what they measure", given)
    measuring = measure_starts_in_turns(*commands, starts, count)
    measured: list[pd.DataFrame] = []
    try:
        measured.extend(tqdm(measuring, desc="pairs", total=starts * count))
    finally:
        if out and measured:  # those before an interruption too
            with replacing(out) as partial:
                pd.concat(measured).to_csv(partial, index=False)
    judged = judge(pd.concat(measured), least)
    _print_pairs(judged, least)
    if (judged["state"] == "slower").any():
        raise typer.Exit(1)


def _measuring(side: str, buckets: list[str], model: str) -> str:
    """The command that measures one side. Raises ValueError for a slip of the pen, which a command
    would only say in its own words, and twice."""
    from spyre_bench.measure.in_turns import engine_command
    from spyre_bench.shapes import BucketSet

    if os.path.isdir(side):  # which a text too long for a path is not
        if not buckets:
            raise ValueError(f"nothing to measure in {side}: name buckets with --bucket")
        named = str(BucketSet.parse(buckets))
        command = engine_command(Path(side), buckets=named, model=model)
        if find_spec("torch") is None:  # both sides run in this environment
            raise ModuleNotFoundError("an engine is measured", name="torch")
        return command
    words = side.split()
    if not words or (len(words) == 1 and shutil.which(words[0]) is None):
        raise ValueError(
            f"{side!r} is neither a folder nor a command: name a checkout, such as a git worktree, "
            f"or what prints figures"
        )
    return side


def update(
    yes: Annotated[bool, typer.Option("--yes", help="after review: write it")] = False,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="takes the run; what is there is not run again")
    ] = Path("reports/baseline"),
) -> None:
    """Run the notebooks that only calculate, show how they differ from the baseline, and with --yes
    make what they found the new one."""
    from spyre_bench.review import regression
    from spyre_bench.review.baseline import calculated, write_baseline
    from spyre_bench.runs.execute import measures
    from spyre_bench.runs.records import read_run
    from spyre_bench.runs.suite import project_notebooks, run_suite

    notebooks = project_notebooks()
    folder = notebooks[0].parent / BASELINE
    chosen = [notebook for notebook in notebooks if not measures(notebook)]
    if not run_suite(chosen, output, {}):
        raise ValueError("a notebook failed: the baseline stays as it is")
    run = {path.stem: record for path in chosen for record in [read_run(output)[path.stem]]}
    compared = regression.compare(_baseline(folder), calculated(run))
    _print(compared)
    if (compared["state"] == "same").all():
        typer.echo("nothing to update")
    elif yes or typer.confirm(f"write this to {folder}?"):
        write_baseline(folder, run)
        typer.echo(f"written: {folder}")
    else:
        raise typer.Exit(1)


def _baseline(folder: Path) -> dict[str, Record]:
    from spyre_bench.runs.records import read_run

    return read_run(folder) if folder.exists() else {}


def _tolerances(texts: Sequence[str], path: Path | None) -> dict[str, float]:
    """Those of the command line come first; ValueError for what is no number."""
    from spyre_bench.files import read_yaml

    in_file = (read_yaml(path) or {}) if path else {}
    if not isinstance(in_file, dict):
        raise ValueError(f"{path}: write a line for each tolerance, such as `ratio: 0.2`")
    given = dict(text.rpartition("=")[::2] for text in texts)
    try:
        return {str(name): float(value) for name, value in (given | in_file | given).items()}
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"a tolerance is a name and a number: {error}") from error


def _console() -> Console:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # a log has no window to fit into
        console.width = max(console.width, 140)
    return console


def _print(compared: pd.DataFrame) -> None:
    console = _console()
    for state, title in TITLES.items():
        rows = compared[compared["state"] == state]
        if len(rows):
            console.print(_table(title, rows, STYLES.get(state)))
    counts = compared["state"].value_counts()
    said = ", ".join(f"{count:,} {state}" for state, count in counts.items())
    console.print(f"{len(compared):,} items: {said}", highlight=False)


def _print_pairs(judged: pd.DataFrame, least: float) -> None:
    from spyre_bench.cli.tables import narrow, show

    table = narrow("figure", "new / base", "95 %", "p", "pairs", "")
    for row in judged.itertuples():
        style = STYLES.get(row.state, "")
        interval = f"{row.low:.3f} to {row.high:.3f}"
        cells = (f"{row.ratio:.3f}", interval, f"{row.p:.2g}", str(row.pairs), row.state)
        table.add_row(row.figure, *cells, style=style)
    show(table)
    typer.echo(f"slower: above {1 + least:g} for certain; faster: below {1 / (1 + least):.3g}")


def _table(title: str, rows: pd.DataFrame, style: str | None) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    more = f" ({len(rows)}, the first {SHOWN} shown)" if len(rows) > SHOWN else f" ({len(rows)})"
    table = Table(title=title + more, title_justify="left", title_style=style or "", box=box.SIMPLE)
    for name in ("item", "base", "new", "change", "allowed"):
        table.add_column(name, justify="left" if name == "item" else "right", overflow="fold")
    for row in rows.head(SHOWN).itertuples():
        change = "" if row.change != row.change else f"{row.change:+.2%}"
        allowed = "" if row.tolerance != row.tolerance else f"{row.tolerance:.2g}"
        texts = (f"{row.notebook}/{row.item}", row.base, row.new)
        table.add_row(*map(escape, map(str, texts)), change, allowed)
    return table


def _draw(curves: dict[tuple[str, str], pd.DataFrame], output: Path) -> None:
    """A picture a table, its differing columns as panels, the runs over each other."""
    import matplotlib.pyplot as plt

    from spyre_bench import plots

    output.mkdir(parents=True, exist_ok=True)
    for (notebook, table), frame in curves.items():
        axes = plots.small_multiples(frame, f"{notebook}: {table}", "row")
        axes[0].figure.savefig(output / f"{notebook}-{table}.png", bbox_inches="tight")
        plt.close(axes[0].figure)
