"""The `spyre-bench` command. Heavy libraries are imported inside the command that needs them."""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

from spyre_bench.cli import export, gate, plan, shapes, tune, workloads
from spyre_bench.cli.options import Engine, result_file, with_options
from spyre_bench.errors import needs, sentence, unexpected

INTERRUPTED = 130  # Typer's exit code after Ctrl-C
DEBUG = "--debug"  # anywhere on the line

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Runs the command; whatever goes wrong becomes one line and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a name of a file may be no text
    words = [word for word in sys.argv[1:] if word != DEBUG]
    try:
        app(words)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            typer.echo("spyre-bench: interrupted", err=True)
        raise
    except Exception as error:
        if DEBUG in sys.argv:
            raise
        if missing := _missing_package(error):
            typer.echo(f"spyre-bench: {missing}", err=True)
            sys.exit(1)
        hint = f" (a fault of ours; {DEBUG} shows where)" if unexpected(error) else ""
        typer.echo(f"spyre-bench: {sentence(error)}{hint}", err=True)
        sys.exit(1)


def _missing_package(error: BaseException) -> str:
    """What to install, for a package of others that is not there; empty for any other error."""
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package in ("", "spyre_bench"):
        return ""
    return f"this command {needs(package)}"


def _print_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(DEBUG, help="an error with its traceback")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """What serving a language model from precompiled static shapes costs."""


app.command()(plan.simulate)
app.command()(plan.buckets)
app.command()(shapes.shapes)
app.command()(tune.tune)
app.command()(plan.sweep)
app.command()(export.export)
app.command()(plan.validate)
app.command()(workloads.workloads)
app.command()(gate.compare)
app.command()(gate.pairs)

baseline = typer.Typer(help="What the notebooks that only calculate are known to give.")
baseline.command()(gate.update)
app.add_typer(baseline, name="baseline", no_args_is_help=True)


@baseline.callback()
def _baseline() -> None:
    """Makes `update` a word of its own although it is the only one."""


@app.command()
def version() -> None:
    """Print the version."""
    from spyre_bench import __version__

    typer.echo(__version__)


@app.command()
def model(
    name: str = typer.Argument(
        "smollm2", help="directory, hub id, smollm2, or a model of the card's cost"
    ),
) -> None:
    """Print the directory of a model, fetched or unpacked first where needed; of a model that the
    card's cost knows by name, one without weights, for a simulated device."""
    from spyre_bench.checkpoints.config_only import config_only_directory
    from spyre_bench.checkpoints.find import model_directory
    from spyre_bench.model_sizes import PRESETS

    if name in PRESETS and not Path(name).exists():
        typer.echo(config_only_directory(name, PRESETS[name].as_config()))
        return
    typer.echo(model_directory(name))


class PairedParameters(TyperCommand):
    """Reads `-p name value` as papermill does, which Typer has no type for."""

    def parse_args(self, ctx, args):
        joined = []
        words = iter(args)
        for word in words:
            if word in ("-p", "--parameter"):
                name, value = next(words, None), next(words, None)
                if value is None:
                    raise typer.BadParameter(f"{word} takes a name and a value")
                joined += [word, f"{name}={value}"]
            else:
                joined.append(word)
        return super().parse_args(ctx, joined)


@app.command(cls=PairedParameters)
def run(
    notebooks: Annotated[list[Path] | None, typer.Argument(help="notebooks to execute")] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", metavar="NAME VALUE", help="may be repeated"),
    ] = None,
    parameters_file: Annotated[
        Path | None, typer.Option("-f", "--parameters-file", help="YAML, one section per notebook")
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help="gets a folder per run; with --all or --grid the run itself"
        ),
    ] = Path("reports"),
    every: Annotated[
        bool, typer.Option("--all", help="the project's notebooks; what has passed stays")
    ] = False,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=A,B,...", help="one notebook with every combination; resumable"),
    ] = None,
) -> None:
    """Execute notebooks headless and strictly; prints where the report is."""
    if bool(notebooks) == every or (grid and len(notebooks or []) != 1):
        raise ValueError("name notebooks, or say --all; for a --grid name one notebook")
    from spyre_bench.runs import suite
    from spyre_bench.runs.grid import parse_grid, run_grid

    given = dict(pair.split("=", 1) for pair in parameter or []), parameters_file
    if grid:
        passed = run_grid(notebooks[0], output, parse_grid(grid), *given)
    elif every:
        passed = suite.run_suite(suite.project_notebooks(), output, *given)
    else:
        passed = suite.run_notebooks(notebooks, output, *given)
    if not passed:
        raise typer.Exit(1)


@app.command()
def new(
    name: Annotated[Path, typer.Argument(help="of the notebook, such as notebooks/07_my_question")],
    question: Annotated[str, typer.Option(help="its title")] = "Which policy is fastest for me?",
) -> None:
    """Write a notebook to begin a study of your own with: it runs as it is."""
    from spyre_bench.runs.new import write_notebook

    path = write_notebook(name, question)
    word = shlex.quote(str(path))
    typer.echo(f"{path}: run it with spyre-bench run {word}, or open it with jupyter lab {word}")


@app.command("app")
def panels(
    notebooks: Annotated[Path, typer.Argument(help="their folder")] = Path("notebooks"),
    runs: Annotated[
        Path, typer.Option(help="folder of runs: answers, and panels of what was measured")
    ] = Path("reports"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="the next free one from here")] = 8866,
    address: Annotated[
        str, typer.Option(help="0.0.0.0 serves other machines, for anybody who can reach it")
    ] = "localhost",
    browser: Annotated[bool, typer.Option(help="open it")] = True,
) -> None:
    """Serve the notebooks' panels as pages without code, until Ctrl-C."""
    from spyre_bench.runs.app import serve

    serve(notebooks, runs, port, address, browser)


@app.command("report")
def design_review(
    run: Annotated[Path, typer.Argument(help="folder of a run")],
    base: Annotated[
        Path | None, typer.Option(help="an earlier run; default: the project's baseline")
    ] = None,
    output: Annotated[
        Path | None, result_file("-o", "--output", help="default: design-review.html in RUN")
    ] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="print it to a PDF too, by Chromium")] = False,
) -> None:
    """Make one page of a run for a design review: answers, figures, tables, bounds, changes."""
    from spyre_bench.review import document
    from spyre_bench.review import page as pages

    if output:
        pages.require_html(output)
    review = document.gather(run, base, document.project_baseline())
    page = output or review.folder / "design-review.html"
    pages.write_page(review, page)
    typer.echo(f"page: {page}")
    if pdf:
        pages.print_pdf(page, page.with_suffix(".pdf"))
        typer.echo(f"PDF: {page.with_suffix('.pdf')}")


@app.command()
@with_options(Engine)
def measure(
    engine: Engine,
    out: Annotated[Path, result_file(help="CSV; its rows are kept and not measured again")],
    bucket: Annotated[
        list[str] | None, typer.Option(help="batch_size,prompt_length,new_tokens")
    ] = None,
    prefill_shape: Annotated[list[str] | None, typer.Option(help="chunk,context")] = None,
    decode_shape: Annotated[list[str] | None, typer.Option(help="rows,context")] = None,
    passes: Annotated[int, typer.Option(help="repetitions behind each median")] = 9,
) -> None:
    """Measure buckets, or shapes of continuous batching, on the real engine: compile cold and warm,
    load, and their passes."""
    from tqdm import tqdm

    from spyre_bench.measure.buckets import measure_table
    from spyre_bench.measure.shapes import measure_shape_table
    from spyre_bench.shape_set import DecodeShape, PrefillShape
    from spyre_bench.shapes import BucketSet

    buckets = list(BucketSet.parse(bucket)) if bucket else []
    shapes = [PrefillShape.parse(text) for text in prefill_shape or []]
    shapes += [DecodeShape.parse(text) for text in decode_shape or []]
    if not buckets and not shapes:
        raise ValueError(
            "nothing to measure: name some with --bucket, --prefill-shape or --decode-shape"
        )
    with tqdm(total=len(buckets) + len(shapes), desc="measure") as bar:

        def on_row(row) -> None:
            compile_s = f"compile {row.compile_s:.1f} s cold, {row.compile_warm_s:.2f} s warm"
            bar.write(f"{row.name}: {compile_s}; {row.passes_text}", file=sys.stderr)
            bar.update()

        setting = {"passes": passes, **asdict(engine)}
        rows = len(measure_table(out, buckets, on_row, **setting)) if buckets else 0
        rows += len(measure_shape_table(out, shapes, on_row, **setting)) if shapes else 0
    typer.echo(f"{rows} rows in {out}", err=True)


if __name__ == "__main__":
    main()
