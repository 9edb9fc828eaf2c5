"""What `--plot FILE` draws for the commands that only calculate."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spyre_bench.cli.options import result_file

if TYPE_CHECKING:
    import pandas as pd

    from spyre_bench.choose.advise import Advice
    from spyre_bench.choose.advise_shapes import ShapeAdvice
    from spyre_bench.simulate.result import StaticRun

Plot = Annotated[Path | None, result_file(help="takes a picture of the result: .png, .svg or .pdf")]
FORMATS = (".png", ".svg", ".pdf")
SWEPT = {
    "throughput_rps": "requests/s",
    "p95_ttft_ms": "P95 TTFT [s]",
    "p95_e2el_ms": "P95 E2EL [s]",
    "fill": "fill",
    "utilisation": "busy share",
    "rejected": "refused requests",
}


def require_drawable(path: Path | None, *, continuous: bool = False) -> None:
    """Before anything is calculated: ValueError for a suffix that is no picture's and for
    continuous batching, of which there is no picture; ModuleNotFoundError where nothing is there to
    draw with."""
    if path is None:
        return
    if continuous:
        raise ValueError("--plot draws the buckets of static batching: leave it out")
    if path.suffix not in FORMATS:
        raise ValueError(f"--plot {path} is no picture: name a file in {', '.join(FORMATS)}")
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError("--plot draws", name="matplotlib")


def draw_advice(advice: Advice, path: Path) -> None:
    """The contenders: device seconds per request, on both halves."""
    from spyre_bench import plots
    from spyre_bench.choose.advise import Beside, per_request

    replayed = per_request(advice)
    _save(plots.contenders(replayed, Beside.of(replayed).title), path)


def draw_shapes(advice: ShapeAdvice, path: Path) -> None:
    """The contenders: device seconds per served request, on both halves."""
    from spyre_bench import plots

    frame = advice.contenders
    fitted = len(advice.fitted) - frame["fitted_rejected"]
    held_out = len(advice.held_out) - frame["held_out_rejected"]
    frame = frame.assign(
        fitted_busy_s=frame["fitted_busy_s"] / fitted,
        held_out_busy_s=frame["held_out_busy_s"] / held_out,
        held_out_bound_s=frame["held_out_bound_s"] / held_out,
    )
    title = "Sets of shapes on requests that the choice has seen, and on others"
    _save(plots.contenders(frame, title), path)


def draw_run(run: StaticRun, path: Path) -> None:
    """What each bucket computed: useful slots and the kinds of waste."""
    from spyre_bench import plots
    from spyre_bench.studies.under_load import waste_by_bucket

    frame = waste_by_bucket(run)
    frame = frame.assign(group="bucket", label=frame["bucket"], saturated=False)
    _save(plots.ledger_shares(frame, "What each bucket computed"), path)


def draw_sweep(frame: pd.DataFrame, varied: list[str], path: Path) -> None:
    """A panel per figure over the first setting that varied, if possible in numbers; a line or bars
    for each value of the others. Points that could not run are left out."""
    from pandas.api.types import is_numeric_dtype

    from spyre_bench import plots

    frame = frame[frame["error"] == ""]
    first = next((name for name in varied if is_numeric_dtype(frame[name])), varied[0])
    others = [name for name in varied if name != first]
    series = [", ".join(f"{name}={row[name]}" for name in others) for _, row in frame.iterrows()]
    seconds = {name: frame[name] / 1e3 for name in SWEPT if name.endswith("_ms")}
    long = frame.assign(x=frame[first], series=series, **seconds).rename(columns=SWEPT)
    long = long.melt(["x", "series"], list(SWEPT.values()), var_name="panel", value_name="value")
    _save(plots.small_multiples(long, f"Simulated over {first}", first)[0], path)


def _save(axes, path: Path) -> None:
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    axes.figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(axes.figure)
    typer.echo(f"picture: {path}", err=True)
