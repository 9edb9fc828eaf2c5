"""The `spyre-bench` command. Heavy libraries are imported inside the command that needs them."""

import sys

import typer

app = typer.Typer(
    help="What serving a language model from precompiled static shapes costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Runs the command; an error meant for people becomes one line and exit code 1."""
    try:
        app()
    except (ValueError, OSError) as error:
        typer.echo(f"spyre-bench: {error}", err=True)
        sys.exit(1)


@app.command()
def version() -> None:
    """Print the version."""
    from spyre_bench import __version__

    typer.echo(__version__)


@app.command()
def model(name: str = typer.Argument("smollm2", help="directory, hub id or smollm2")) -> None:
    """Print the directory of a model, fetched or unpacked first where needed."""
    from spyre_bench.engine.checkpoint import model_directory

    typer.echo(model_directory(name))
