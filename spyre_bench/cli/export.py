"""The command `export`: sizes for stacks that take a list of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spyre_bench.cli import tables
from spyre_bench.cli.options import (
    Json,
    chosen,
    read_workload,
    refuse_idle,
    result_file,
    with_options,
)
from spyre_bench.simulate.scenario import (
    CONTINUOUS,
    COSTS,
    ENGINE,
    SCHEDULING,
    TRACE_FILE,
    WORKLOAD,
    Scenario,
    setting,
)

if TYPE_CHECKING:
    from spyre_bench.choose.export import Export, HeldOut, Needs
    from spyre_bench.choose.one_dimension import Budget
    from spyre_bench.choose.stack import Deployment

SERVER, STEPS, BUDGET = "Server", "Steps of a workload", "Budget"


@dataclass(frozen=True)
class Server:
    """The other stack's server, and how long its steps take."""

    rows: int = setting(SERVER, "requests at once, at most: max_num_seqs")
    context_tokens: int = setting(SERVER, "max_model_len", 8192)
    step_tokens: int = setting(SERVER, "max_num_batched_tokens", 8192)
    width_step: int = setting(SERVER, "widths are multiples: ranks that share the rows", 1)
    block_tokens: int = setting(SERVER, "of a KV block, or of lengths", 128)
    step_ms: float = setting(STEPS, "a decode step, to derive how many run at once", 20.0)
    row_ms: float = setting(STEPS, "and for each request in it", 0.1)
    prompt_token_ms: float = setting(STEPS, "a token of a prompt", 0.05)

    @property
    def deployment(self) -> Deployment:
        from spyre_bench.choose.stack import Deployment

        return Deployment(
            self.rows, self.context_tokens, self.step_tokens, self.width_step, self.block_tokens
        )


@dataclass(frozen=True)
class Allowance:
    """How many sizes may be compiled, and for what besides what was seen."""

    graphs: str | None = setting(
        BUDGET, "sizes in a list: 25, or widths=5,contexts=5,prompts=12", None
    )
    warmup_budget: float | None = setting(BUDGET, "seconds for all graphs", None)
    graph_s: float | None = setting(BUDGET, "seconds of one graph", None)
    memory_gib: float | None = setting(BUDGET, "for all graphs", None)
    graph_mib: float | None = setting(BUDGET, "of one graph", None)
    unseen: float = setting(
        BUDGET, "share of steps to expect at any width alike; 0: only what was seen", 0.01
    )

    @property
    def budget(self) -> Budget:
        from spyre_bench.choose.one_dimension import Budget

        return Budget(
            warmup_s=self.warmup_budget,
            memory_bytes=None if self.memory_gib is None else self.memory_gib * 2**30,
            graph_s=self.graph_s,
            graph_bytes=None if self.graph_mib is None else self.graph_mib * 2**20,
        )

    def sizes(self, lists: list[str]) -> dict[str, int]:
        """How many in each list; {} where nothing is said."""
        if self.graphs is None:
            return {}
        if "=" not in self.graphs:
            return dict.fromkeys(lists, _whole(self.graphs, "--graphs"))
        pairs = (pair.partition("=") for pair in self.graphs.split(","))
        return {name.strip(): _whole(value, "--graphs") for name, _, value in pairs}


@with_options(Scenario, without=[ENGINE, CONTINUOUS, COSTS, SCHEDULING])
@with_options(Server)
@with_options(Allowance)
def export(
    scenario: Scenario,
    server: Server,
    allowance: Allowance,
    stack: Annotated[
        str,
        typer.Argument(
            help="vllm, sglang, tensorrt-llm, vllm-gaudi, vllm-rbln, tpu-inference, neuron, "
            "vllm-neuron or qefficient"
        ),
    ],
    sizes: Annotated[
        list[str] | None,
        typer.Option(metavar="LIST=A,B,...", help="judge these, choose none: widths=1,2,4,8"),
    ] = None,
    out: Annotated[Path | None, result_file(help="takes what is to be pasted")] = None,
    as_json: Json = False,
) -> None:
    """Choose the sizes that another stack compiles, within its rules, and write its setting.

    A workload, or a file with a column `running` (requests at once, one row a step, or `count`
    steps), says what is needed.
    """
    from spyre_bench.choose.export import export as choose
    from spyre_bench.choose.export import held_out, judge
    from spyre_bench.choose.stacks import named
    from spyre_bench.cli.plan import require_other
    from spyre_bench.files import replace_text

    require_other(out, {"--workload": scenario.workload})
    target, deployment = named(stack), server.deployment
    needs, said = _needs(scenario, server)
    later: dict[str, HeldOut] = {}
    if sizes:
        refuse_idle("--sizes are judged, and none chosen", chosen(allowance, BUDGET))
        exported = judge(target, needs, deployment, _size_lists(sizes))
    else:
        graphs = allowance.sizes([it.name for it in target.lists])
        limits = deployment, graphs, allowance.budget, allowance.unseen
        exported = choose(target, needs, *limits)
        if len(needs.running) > 1:
            later = held_out(target, needs, *limits)
    if out:
        replace_text(out, exported.text)
    if as_json:
        typer.echo(json.dumps(_as_json(exported, later) | {"read_as": said}, allow_nan=False))
    else:
        for sentence in said:
            typer.echo(sentence, err=True)
        _print(exported, later)
    if sizes and exported.findings:
        raise typer.Exit(1)


# --- what is needed -------------------------------------------------------------------------------


def _needs(scenario: Scenario, server: Server) -> tuple[Needs, list[str]]:
    """And the sentences that say what it was taken from."""
    from spyre_bench.choose.export import Needs, within_context
    from spyre_bench.choose.running import read_running
    from spyre_bench.simulate.decode_steps import decode_steps

    path = Path(scenario.workload)
    if path.is_file() and (series := read_running(path)) is not None:
        told = chosen(scenario, WORKLOAD, TRACE_FILE) | chosen(server, STEPS)
        refuse_idle(f"{path} says how many run at once, step by step", told)
        return series[0], [series[1]]
    loaded = read_workload(scenario)
    workload = within_context(scenario.scaled(loaded), server.context_tokens)
    milliseconds = server.step_ms, server.row_ms, server.prompt_token_ms
    steps = decode_steps(workload, server.rows, *(it / 1e3 for it in milliseconds))
    said = [
        str(loaded),
        f"{int(steps.steps.sum()):,} decode steps of up to {int(steps.running.max())} requests, "
        f"derived: {server.step_ms:g} ms a step, {server.row_ms:g} ms a request in it, "
        f"{server.prompt_token_ms:g} ms a token of a prompt",
    ]
    if left_out := len(loaded) - len(workload):
        said.append(
            f"{left_out:,} requests are longer than {server.context_tokens} tokens and left out"
        )
    return Needs.of(workload, steps), said


def _size_lists(sizes: list[str]) -> dict[str, list[int]]:
    for text in sizes:
        if "=" not in text:
            raise ValueError(f"--sizes {text!r} names no list: write, for example, widths={text}")
    pairs = (text.partition("=") for text in sizes)
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


def _print(chosen: Export, later: dict[str, HeldOut]) -> None:
    table = tables.narrow("", "sizes", "padding", "held out", "by itself", "padding", "held out")
    for it in chosen.lists:
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
    tables.show(table)
    typer.echo(
        f"{chosen.stack.title}, {chosen.graphs} graphs; {chosen.stack.paste}:\n\n{chosen.text}"
    )
    for it in chosen.lists:
        if it.beyond:
            typer.echo(f"{_share(it.beyond)} of the need is above the largest of {it.of.name}")
        if it.idle:
            typer.echo(f"nothing here runs on {it.of.name} {', '.join(map(str, it.idle))}")
    for finding in chosen.findings:
        typer.echo(str(finding))
    if not chosen.findings:
        typer.echo(f"all {len(chosen.stack.rules)} rules of {chosen.stack.title} hold")
    if chosen.stack.note:
        typer.echo(f"note: {chosen.stack.note}")


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _as_json(chosen: Export, later: dict[str, HeldOut]) -> dict[str, Any]:
    return {
        "stack": chosen.stack.title,
        "graphs": chosen.graphs,
        "text": chosen.text,
        "paste": chosen.stack.paste,
        "note": chosen.stack.note,
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
            for it in chosen.lists
        },
        "findings": [vars(it) for it in chosen.findings],
        "rules": [{"says": it.says, "source": it.source} for it in chosen.stack.rules],
    }
