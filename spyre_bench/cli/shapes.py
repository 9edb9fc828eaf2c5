"""The command `export`: sizes for stacks that take a list of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spyre_bench.cli import tables
from spyre_bench.cli.options import Json, with_options
from spyre_bench.simulate.scenario import COSTS, ENGINE, SCHEDULING, Scenario

if TYPE_CHECKING:
    from spyre_bench.choose.export import Export, HeldOut, Needs

RUNNING, COUNT = "running", "count"
SERVER, BUDGET = "Server", "Budget"


def _server(help: str, **limits: Any) -> Any:
    return typer.Option(help=help, rich_help_panel=SERVER, **limits)


def _budget(help: str, **limits: Any) -> Any:
    return typer.Option(help=help, rich_help_panel=BUDGET, **limits)


@with_options(Scenario, without=[ENGINE, COSTS, SCHEDULING])
def export(
    scenario: Scenario,
    stack: Annotated[
        str,
        typer.Argument(
            help="vllm, sglang, tensorrt-llm, vllm-gaudi, vllm-rbln, tpu-inference, neuron, "
            "vllm-neuron or qefficient"
        ),
    ],
    rows: Annotated[int, _server("requests at once, at most: max_num_seqs")],
    context_tokens: Annotated[int, _server("max_model_len")] = 8192,
    step_tokens: Annotated[int, _server("max_num_batched_tokens")] = 8192,
    width_step: Annotated[int, _server("widths are multiples: ranks that share the rows")] = 1,
    block_tokens: Annotated[int, _server("of a KV block, or of lengths")] = 128,
    step_ms: Annotated[float, _server("a decode step, to derive how many run at once")] = 20.0,
    row_ms: Annotated[float, _server("and for each request in it")] = 0.1,
    prompt_token_ms: Annotated[float, _server("a token of a prompt")] = 0.05,
    graphs: Annotated[
        str | None, _budget("sizes in a list: 25, or widths=5,contexts=5,prompts=12")
    ] = None,
    warmup_budget: Annotated[float | None, _budget("seconds for all graphs")] = None,
    graph_s: Annotated[float | None, _budget("seconds of one graph")] = None,
    memory_gib: Annotated[float | None, _budget("for all graphs")] = None,
    graph_mib: Annotated[float | None, _budget("of one graph")] = None,
    unseen: Annotated[
        float, _budget("share of steps to expect at any width alike; 0: only what was seen")
    ] = 0.01,
    sizes: Annotated[
        list[str] | None,
        typer.Option(metavar="LIST=A,B,...", help="judge these, choose none: widths=1,2,4,8"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="takes what is to be pasted")] = None,
    as_json: Json = False,
) -> None:
    """Choose the sizes that another stack compiles, within its rules, and write its setting.

    A workload, or a file with a column `running` (requests at once, one row a step, or `count`
    steps), says what is needed.
    """
    from spyre_bench.choose.export import export as choose
    from spyre_bench.choose.export import held_out, judge
    from spyre_bench.choose.one_dimension import Budget
    from spyre_bench.choose.stack import Deployment
    from spyre_bench.choose.stacks import named
    from spyre_bench.cli.plan import require_other
    from spyre_bench.files import replace_text

    require_other(out, workload=scenario.workload)
    target = named(stack)
    deployment = Deployment(rows, context_tokens, step_tokens, width_step, block_tokens)
    budget = Budget(
        warmup_s=warmup_budget,
        memory_bytes=None if memory_gib is None else memory_gib * 2**30,
        graph_s=graph_s,
        graph_bytes=None if graph_mib is None else graph_mib * 2**20,
    )
    seconds = [it / 1e3 for it in (step_ms, row_ms, prompt_token_ms)]
    needs, said = _needs(scenario, deployment.rows, deployment.context_tokens, seconds)
    later: dict[str, HeldOut] = {}
    if sizes:
        found = judge(target, needs, deployment, _size_lists(sizes))
    else:
        allowed = _allowed(graphs, [it.name for it in target.lists])
        limits = deployment, allowed, budget, unseen
        found = choose(target, needs, *limits)
        if len(needs.running) > 1:
            later = held_out(target, needs, *limits)
    if out:
        replace_text(out, found.text)
    if as_json:
        typer.echo(json.dumps(_as_json(found, later) | {"read_as": said}, allow_nan=False))
    else:
        for sentence in said:
            typer.echo(sentence, err=True)
        _print(found, later)
    if sizes and found.findings:
        raise typer.Exit(1)


# --- what is needed -------------------------------------------------------------------------------


def _needs(
    scenario: Scenario, rows: int, context_tokens: int, seconds: list[float]
) -> tuple[Needs, list[str]]:
    """And the sentences that say what it was taken from."""
    from spyre_bench.choose.export import Needs, within_context
    from spyre_bench.simulate.decode_steps import decode_steps

    path = Path(scenario.workload)
    if path.is_file() and (series := _running(path)) is not None:
        return series
    loaded = scenario.read_workload()
    workload = within_context(scenario.scaled(loaded), context_tokens)
    steps = decode_steps(workload, rows, *seconds)
    said = [
        str(loaded),
        f"{int(steps.steps.sum()):,} decode steps of up to {int(steps.running.max())} requests, "
        f"derived: {seconds[0] * 1e3:g} ms a step, {seconds[1] * 1e3:g} ms a request in it, "
        f"{seconds[2] * 1e3:g} ms a token of a prompt",
    ]
    if left_out := len(loaded) - len(workload):
        said.append(f"{left_out:,} requests are longer than {context_tokens} tokens and left out")
    return Needs.of(workload, steps), said


def _running(path: Path) -> tuple[Needs, list[str]] | None:
    """A series of running requests; None for a file without such a column."""
    import numpy as np

    from spyre_bench.choose.export import Needs
    from spyre_bench.frames import read_frame

    wanted = (RUNNING, COUNT)
    frame = read_frame(path, lambda names: [it for it in names if it in wanted])
    if RUNNING not in frame:
        return None
    running = frame[RUNNING].to_numpy()
    count = frame[COUNT].to_numpy() if COUNT in frame else np.ones(len(frame))
    for name, column, least in ((RUNNING, running, 0), (COUNT, count, 0)):
        good = np.issubdtype(column.dtype, np.number)
        bad = ~(column >= least) if good else np.ones(len(frame), dtype=bool)
        if bad.any():
            line, value = frame.index[bad][0], column[bad][0]
            raise ValueError(f"{path} line {line}: {name} {value!r} is not a number of 0 or more")
    busy = (running >= 1) & (count > 0)
    if not busy.any():
        raise ValueError(f"{path}: no row has a request running and a count above 0")
    said = [
        f"{path}: {int(busy.sum()):,} rows with up to {int(running[busy].max())} requests running; "
        f"{int((~busy).sum()):,} idle ones left out"
    ]
    return Needs(None, running[busy].astype(int), None, count[busy].astype(float)), said


def _allowed(graphs: str | None, names: list[str]) -> dict[str, int]:
    if graphs is None:
        return {}
    if "=" not in graphs:
        return dict.fromkeys(names, _whole(graphs, "--graphs"))
    pairs = (pair.partition("=") for pair in graphs.split(","))
    return {name.strip(): _whole(value, "--graphs") for name, _, value in pairs}


def _size_lists(sizes: list[str]) -> dict[str, list[int]]:
    pairs = (some.partition("=") for some in sizes)
    return {
        name.strip(): [_whole(value, "--sizes") for value in values.split(",")]
        for name, _, values in pairs
    }


def _whole(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(
            f"{option} {text!r} is not a whole number: write, for example, widths=1,2,4,8 for "
            f"--sizes, and 25 or widths=5,contexts=5 for --graphs"
        ) from error


# --- what is said ---------------------------------------------------------------------------------


def _print(found: Export, later: dict[str, HeldOut]) -> None:
    from rich.console import Console

    table = tables.narrow("", "sizes", "padding", "held out", "by itself", "padding", "held out")
    for it in found.lists:
        after = later.get(it.of.name)
        table.add_row(
            it.of.name,
            str(len(it.sizes)),
            _share(it.padding),
            _share(after and after.padding),
            str(len(it.default) or "–"),
            _share(it.default_padding),
            _share(after and after.default_padding),
        )
    Console().print(table)
    typer.echo(f"{found.stack.title}, {found.graphs} graphs; {found.stack.paste}:\n\n{found.text}")
    for it in found.lists:
        if it.beyond:
            typer.echo(f"{_share(it.beyond)} of the need is above the largest of {it.of.name}")
        if it.idle:
            typer.echo(f"nothing here runs on {it.of.name} {', '.join(map(str, it.idle))}")
    for finding in found.findings:
        typer.echo(str(finding))
    if not found.findings:
        typer.echo(f"all {len(found.stack.rules)} rules of {found.stack.title} hold")
    if found.stack.note:
        typer.echo(f"note: {found.stack.note}")


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _as_json(found: Export, later: dict[str, HeldOut]) -> dict[str, Any]:
    return {
        "stack": found.stack.title,
        "graphs": found.graphs,
        "text": found.text,
        "paste": found.stack.paste,
        "note": found.stack.note,
        "lists": {
            it.of.name: {
                "setting": it.of.setting,
                "sizes": it.sizes,
                "padding": it.padding,
                "held_out": vars(later[it.of.name]) if it.of.name in later else None,
                "by_itself": it.default or None,
                "by_itself_padding": it.default_padding,
                "beyond": it.beyond,
                "idle": it.idle,
            }
            for it in found.lists
        },
        "findings": [vars(it) for it in found.findings],
        "rules": [{"says": it.says, "source": it.source} for it in found.stack.rules],
    }
