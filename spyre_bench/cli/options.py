"""Settings as options: a command that takes a dataclass of `setting`s has an option for each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from spyre_bench.files import require_place
from spyre_bench.simulate.scenario import TRACE_FILE, Scenario, setting

if TYPE_CHECKING:
    from spyre_bench.workload.workload import Workload

Json = Annotated[bool, typer.Option("--json", help="print JSON and nothing else")]


def result_file(*flags: str, help: str) -> Any:
    """An option that names a file for a result: where it cannot be written, that is said before
    anything is calculated."""
    return typer.Option(*flags, help=help, callback=_require_place)


def _require_place(path: Path | None) -> Path | None:
    if path is not None:
        require_place(path)
    return path


def with_options(
    kind: type, *, without: Collection[str] = (), positional: str = ""
) -> Callable[[Callable], Callable]:
    """Gives a command, in the place of its parameter of this dataclass, an option for each setting,
    but for those of some parts or names; the `positional` one is an argument. `--help` has a panel
    for each part."""
    hints = get_type_hints(kind)
    shown = [it for it in fields(kind) if {it.metadata["part"], it.name}.isdisjoint(without)]

    def expand(command: Callable) -> Callable:
        own = inspect.signature(command, eval_str=True).parameters.values()
        (name,) = (parameter.name for parameter in own if parameter.annotation is kind)

        @wraps(command)
        def expanded(**given: Any) -> Any:
            values = {it.name: _value(it, given.pop(it.name)) for it in shown}
            return command(**{name: kind(**values)}, **given)

        parameters = [
            _argument(it, hints[it.name]) if it.name == positional else _option(it, hints[it.name])
            for it in shown
        ]
        parameters += [it.replace(kind=it.KEYWORD_ONLY) for it in own if it.name != name]
        expanded.__signature__ = inspect.Signature(parameters)
        expanded.__annotations__ = {it.name: it.annotation for it in parameters}
        return expanded

    return expand


def _argument(it: Field, hint: Any) -> inspect.Parameter:
    annotation = Annotated[hint, typer.Argument(help=it.metadata["help"])]
    return inspect.Parameter(it.name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation)


def _option(it: Field, hint: Any) -> inspect.Parameter:
    told = it.metadata
    limits = {name: told[name] for name in ("metavar", "min", "max") if name in told}
    option = typer.Option(_flag(it), help=told["help"], rich_help_panel=told["part"], **limits)
    if told.get("many"):
        hint = list[str] if told.get("required") else list[str] | None
    needed = it.default is MISSING or told.get("required")
    default = inspect.Parameter.empty if needed else None if told.get("many") else it.default
    annotation = Annotated[hint, option]
    return inspect.Parameter(
        it.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _flag(it: Field) -> str:
    return it.metadata.get("flag", f"--{it.name.replace('_', '-')}")


def _value(it: Field, given: Any) -> Any:
    """What is repeated is one text of words, and none of them is what the default is."""
    if not it.metadata.get("many"):
        return given
    return " ".join(given) if given else it.default


def refuse_idle(why: str, given: Mapping[str, Any]) -> None:
    """Raises ValueError for the first of these options that was given, since it has no effect."""
    if idle := next((flag for flag, value in given.items() if value), None):
        raise ValueError(f"{why}: leave {idle} out")


def chosen(settings: Any, *parts: str, but: Collection[str] = ()) -> dict[str, bool]:
    """Of the options of these parts, but for those of some names, which were given."""
    return {
        _flag(it): getattr(settings, it.name) != it.default
        for it in fields(settings)
        if it.metadata["part"] in parts and it.name not in but and it.default is not MISSING
    }


def read_workload(scenario: Scenario) -> Workload:
    """As the scenario reads it. Raises ValueError for what says how a trace is read where there is
    none."""
    from spyre_bench.workload.source import is_drawn

    if is_drawn(scenario.workload):
        why = f"workload {scenario.workload} is drawn from a table of lengths, and no trace is read"
        refuse_idle(why, chosen(scenario, TRACE_FILE))
    return scenario.read_workload()


@dataclass(frozen=True)
class Engine:
    """The real engine that is measured."""

    model: str = setting("Engine", "directory, hub id or smollm2", "smollm2")
    tp: int = setting("Engine", "tensor parallel size", 1)
    model_code: str = setting("Engine", "whose code runs the model: fms or vllm", "fms")
    compile_backend: str = setting(
        "Engine", "eager, inductor or sendnn", "inductor", flag="--backend"
    )
    compile_scope: str = setting(
        "Engine", "compile the layer or the whole model", "layer", flag="--scope"
    )
    dtype: str = setting("Engine", "float32, bfloat16 or float16", "float32")
    threads: int | None = setting("Engine", "per process; default: one per core", None)
