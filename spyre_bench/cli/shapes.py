"""The command `shapes`: what an engine of continuous batching compiles."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spyre_bench.cli import pictures, tables
from spyre_bench.cli.options import Json, read_workload, with_options
from spyre_bench.simulate.scenario import ENGINE, SCHEDULING, Scenario

if TYPE_CHECKING:
    from rich.table import Table

    from spyre_bench.choose.advise_shapes import ShapeAdvice


@with_options(Scenario, without=[ENGINE, SCHEDULING])
def shapes(
    scenario: Scenario,
    k: Annotated[int, typer.Option("-k", help="shapes of both kinds, at most")] = 6,
    rows: Annotated[int, typer.Option(help="requests that decode together, at most")] = 8,
    warmup_budget: Annotated[
        float | None, typer.Option(help="seconds of cold compile, in all")
    ] = None,
    plot: pictures.Plot = None,
    as_json: Json = False,
) -> None:
    """Choose shapes of continuous batching for a workload: proved for the passes that it makes,
    replayed, against other schemes and today's (--prefill-shape, --decode-shape)."""
    from spyre_bench.choose.advise_shapes import Engine, advise_shapes, within_contexts
    from spyre_bench.choose.visits import ShapeLimits
    from spyre_bench.metrics.summary import busy_s
    from spyre_bench.shape_set import DEFAULT_CHUNK

    pictures.require_drawable(plot)
    limits = ShapeLimits(k, warmup_budget)
    engine = Engine(rows, scenario.chunk_tokens or DEFAULT_CHUNK, scenario.blocks)
    source = replace(scenario, batching="continuous").load_cost()
    loaded = read_workload(scenario)
    covered = within_contexts(scenario.scaled(loaded), source)
    advice = advise_shapes(
        covered,
        source,
        limits,
        engine,
        scenario.step_rules(source),
        scenario.shapes() if scenario.prefill_shapes or scenario.decode_shapes else None,
        scenario.prefixes,
    )
    beyond = len(loaded) - len(covered)
    result = _json(advice) | {
        "requests_beyond_the_cost_table": beyond,
        "read_as": str(loaded),
    }
    if source.ends:
        compiled = replace(scenario, **advice.shapes.setting)
        runs = [compiled.run_continuous(advice.fitted, at) for at in source.ends]
        ends = [{"busy_s": busy_s(run), "compile_s": run.compile_s} for run in runs]
        result["modelled"] = tables.modelled(source.label, tables.ADVISED_SHAPES, ends)
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False))
    else:
        tables.say_what_was_read(loaded)
        if beyond:
            typer.echo(
                f"{beyond:,} of {len(loaded):,} requests are longer than any context of the cost "
                f"table and left out; --extrapolate takes them in",
                err=True,
            )
        _print(advice, source.label)
        if "modelled" in result:
            typer.echo(tables.modelled_sentence(result["modelled"], tables.ADVISED_SHAPES))
    if plot:  # last, where whoever looks for it looks
        pictures.draw_shapes(advice, plot)


def _json(advice: ShapeAdvice) -> dict[str, Any]:
    from spyre_bench.choose import server_settings

    found = advice.certificate
    return {
        "prefill_shapes": [str(shape) for shape in advice.shapes.prefill],
        "decode_shapes": [str(shape) for shape in advice.shapes.decode],
        "additional_config": server_settings.of_shapes(advice.shapes, advice.rules),
        "requests_fitted": len(advice.fitted),
        "requests_held_out": len(advice.held_out),
        "certificate": {
            "of": advice.certified,
            "seconds_of_visits": found.objective_s,
            "proved_bound_s": found.bound_s,
            "gap": found.gap,
            "rounds": found.rounds,
            "settled": found.settled,
            "seconds": found.seconds,
        },
        "verdict": advice.verdict,
        "contenders": advice.contenders.to_dict("records"),
    }


def _print(advice: ShapeAdvice, priced: str) -> None:

    from spyre_bench.choose import server_settings

    tables.show(_table(advice))
    typer.echo(
        "busy: device seconds on the first half of the requests; bound: no batching on the shapes "
        "takes less; held out: busy on the second half, with its p95 of TTFT and E2EL and how many "
        "requests it lost, since they are longer than its contexts"
    )
    for row in advice.contenders.itertuples():
        mark = "  <- advised" if row.advised else ""
        typer.echo(f"{row.name}: prefill {row.prefill} decode {row.decode}{mark}")
    if advice.contenders["held_out_saturated"].any():
        typer.echo("* saturated: that latency measures the backlog, not the service")
    typer.echo(f"Verdict: {advice.verdict}")
    found = advice.certificate
    ended = "until it stayed" if found.settled else "and never stayed: this is the fastest of them"
    typer.echo(
        f"Certificate of {advice.certified}: the passes that the first half makes on its shapes "
        f"take {found.objective_s:,.1f} s, each where it is cheapest, and on no other candidates "
        f"within the limits less than {found.bound_s:,.1f} s, a gap of {found.gap:.3%}; other "
        f"shapes make other passes, so the choice was simulated and repeated {found.rounds} times, "
        f"{ended}. Costs: {priced}"
    )
    setting = server_settings.of_shapes(advice.shapes, advice.rules)
    typer.echo(f"--additional-config '{json.dumps(setting)}'")


def _table(advice: ShapeAdvice) -> Table:
    from rich.markup import escape

    names = ("seconds", "k", "compile", "bound", "busy", "held out", "ttft", "e2el", "lost")
    table = tables.narrow(*names)
    for row in advice.contenders.itertuples():
        end = (row.held_out_saturated, row.held_out_rejected < len(advice.held_out))
        table.add_row(
            escape(row.name),
            str(row.graphs),
            f"{row.compile_s:,.0f}",
            f"{row.fitted_bound_s:,.0f}",
            f"{row.fitted_busy_s:,.0f}",
            f"{row.held_out_busy_s:,.0f}",
            tables.latency_cell(row.held_out_p95_ttft_s, ".3g", *end),
            tables.latency_cell(row.held_out_p95_e2el_s, ".3g", *end),
            str(row.held_out_rejected),
            style="bold" if row.advised else None,
        )
    return table
