"""The commands that only calculate: `simulate`, `buckets`, `sweep` and `validate`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spyre_bench.cli import pictures, tables
from spyre_bench.cli.options import Json, read_workload, refuse_idle, result_file, with_options
from spyre_bench.simulate.scenario import CONTINUOUS, ENGINE, Scenario

if TYPE_CHECKING:
    from spyre_bench.cost.bucket_cost import CostModel
    from spyre_bench.cost.spread import Draw
    from spyre_bench.simulate.result import SimulatedRun

LARGEST_GIB = 2**30  # more is a slip, and its bytes are a number that no array holds


@with_options(Scenario)
def simulate(
    scenario: Scenario,
    out: Annotated[Path | None, result_file(help="takes the result as JSON")] = None,
    detailed: Annotated[bool, typer.Option("--detailed", help="arrays of all requests")] = False,
    replications: Annotated[
        int, typer.Option(help="behind the interval of each figure; 0: a point only")
    ] = 100,
    plot: pictures.Plot = None,
    as_json: Json = False,
) -> None:
    """Serve a workload in simulation, by static batches in buckets or by continuous batching on
    paged shapes: latency, throughput, fill and waste, each as a point and, where the costs have a
    spread, from P5 to P95. Exit code 1 where nobody is served."""
    from spyre_bench.choose.lint import lint, lint_shapes
    from spyre_bench.files import replace_text
    from spyre_bench.metrics.intervals import replicate
    from spyre_bench.metrics.latency import require_limits
    from spyre_bench.metrics.vllm_json import bench_result

    require_other(out, {"--workload": scenario.workload, "--cost": scenario.cost})
    pictures.require_drawable(plot, continuous=scenario.is_continuous)
    scenario.require_used()
    if not (out or as_json):
        refuse_idle("arrays go into --out or --json", {"--detailed": detailed})
    limits = scenario.limits_ms()
    require_limits(limits)
    source = scenario.load_cost()
    loaded = read_workload(scenario)
    workload = scenario.scaled(loaded)

    def served(at: CostModel, draw: Draw | None = None) -> SimulatedRun:
        if scenario.is_continuous:
            return scenario.run_continuous(workload, at, draw)
        return scenario.run(workload, scenario.costs(at), draw)

    run = served(source)
    result = bench_result(run, goodput_ms=limits, detailed=detailed, model=source.model_name) | {
        "spyre_seed": scenario.seed,
        "spyre_read_as": str(loaded),
    }
    if scenario.is_continuous:
        shapes = scenario.shape_costs(source)
        spread = source.spread_of_shapes(shapes)
        result["spyre_lint"] = lint_shapes(workload, shapes.shapes)
    else:
        costs = scenario.costs(source)
        spread = source.spread(costs)
        result["spyre_lint"] = lint(workload, costs, source).sentences()
    if replications and result["completed"]:
        result["spyre_interval"] = (
            spread
            and replicate(
                lambda draw: served(source, draw),
                spread,
                replications=replications,
                seed=scenario.seed,
            ).said()
        )
    if source.ends and result["completed"]:
        ends = [bench_result(served(at)) for at in source.ends]
        result["spyre_modelled"] = tables.modelled(source.label, tables.RANGED, ends)
    if plot and result["completed"]:
        pictures.draw_run(run, plot)
    if out:
        replace_text(out, json.dumps(result, indent=1, allow_nan=False) + "\n")
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False))
    else:
        tables.say_what_was_read(loaded)
        tables.print_result(result)
    if not result["completed"]:
        raise typer.Exit(1)


@with_options(Scenario, without=[ENGINE, CONTINUOUS])
def buckets(
    scenario: Scenario,
    k: Annotated[int, typer.Option("-k", help="buckets, at most")] = 5,
    warmup_budget: Annotated[
        float | None, typer.Option(help="seconds of cold compile, in all")
    ] = None,
    memory_gib: Annotated[float | None, typer.Option(help="of weights, cache and logits")] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="to consider; default: those of the cost table")
    ] = None,
    objective: Annotated[str, typer.Option(help="device_seconds or goodput")] = "device_seconds",
    plot: pictures.Plot = None,
    as_json: Json = False,
) -> None:
    """Choose buckets for a workload: proved optimum, replayed, against other stacks' schemes."""
    from spyre_bench.choose.advise import advise, within
    from spyre_bench.choose.optimize import Limits
    from spyre_bench.cost.bucket_cost import price
    from spyre_bench.metrics.bounds import shape_bound_s
    from spyre_bench.metrics.latency import require_limits

    pictures.require_drawable(plot)
    limits = Limits(k, warmup_budget, memory_bytes(memory_gib))
    goodput_ms, rules = scenario.limits_ms(), scenario.rules()
    require_limits(goodput_ms)
    source = scenario.load_cost()
    loaded = read_workload(scenario)
    workload = scenario.scaled(loaded)
    covered = within(workload, source)
    beyond = len(workload) - len(covered)
    advice = advise(
        covered,
        source,
        limits,
        batch_sizes=batch_size or source.batch_sizes,
        policy=rules,
        objective=objective,
        goodput_ms=goodput_ms,
    )
    result = tables.advice_json(advice, beyond) | {"read_as": str(loaded)}
    if source.ends:
        ends = [
            {
                "shape_bound_s": shape_bound_s(advice.fitted, costs),
                "compile_s": sum(cost.compile_s for cost in costs),
            }
            for costs in (price(advice.buckets, at) for at in source.ends)
        ]
        result["modelled"] = tables.modelled(source.label, tables.ADVISED, ends)
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False))
    else:
        tables.say_what_was_read(loaded)
        tables.print_advice(advice, len(workload), beyond, source.span)
        if "modelled" in result:
            typer.echo(tables.modelled_sentence(result["modelled"], tables.ADVISED))
    if plot:  # last, where whoever looks for it looks
        pictures.draw_advice(advice, plot)


def validate(
    measured: Annotated[
        Path,
        typer.Argument(help="of `vllm bench serve --save-detailed`; or a server's pass log alone"),
    ],
    simulated: Annotated[
        Path | None, typer.Argument(help="of `spyre-bench simulate --detailed --out`")
    ] = None,
    as_json: Json = False,
) -> None:
    """Hold a simulated result against a measured one of the same requests; or, of the pass log of a
    server of continuous batching, the simulator's decisions against the server's (exit code 1 where
    they differ)."""
    from rich.markup import escape

    from spyre_bench.validate.compare import by_quantity, left_out, read_result
    from spyre_bench.validate.step_decisions import logged_decisions

    if simulated is None:
        found = logged_decisions(measured)
        said = asdict(found) | {"agree": found.agree}
        typer.echo(json.dumps(said) if as_json else str(found))
        if not found.agree:
            raise typer.Exit(1)
        return
    results = read_result(measured), read_result(simulated)
    frame = by_quantity(*results)
    for sentence in left_out(*results):
        typer.echo(sentence, err=True)
    if as_json:
        typer.echo(frame.to_json(orient="records"))
        return
    table = tables.narrow("", "measured", "simulated", "bias", "absolute error", "the simulator is")
    for row in frame.itertuples():
        off = (f"{row.error:+.1%}", "") if row.kind == "bias" else ("", f"{row.error:.1%}")
        values = (f"{row.measured:,.3f}", f"{row.simulated:,.3f}", *off, row.direction)
        shown = ("" if "nan" in text else text for text in values)
        table.add_row(escape(row.quantity), *shown)  # [s] is a unit, no markup
    tables.show(table)


def sweep(
    grid: Annotated[Path, typer.Argument(help="YAML: a list of values for each setting")],
    out: Annotated[Path, result_file(help="CSV; its rows are kept and not run again")],
    jobs: Annotated[int, typer.Option(help="processes; -1: one per core")] = -1,
    backend: Annotated[str, typer.Option(help="loky, dask or ray")] = "loky",
    scheduler: Annotated[
        str | None, typer.Option(help="address of the cluster; default: one on this machine")
    ] = None,
    plot: pictures.Plot = None,
) -> None:
    """Simulate every combination of a grid of settings, in parallel; resumable. Exit code 1 where
    none of them can run."""
    from spyre_bench.cost.source import PREFIX
    from spyre_bench.studies.sweep import read_points, run_sweep, varying

    pictures.require_drawable(plot)
    points = read_points(grid)
    if plot and not varying(points):
        raise ValueError(f"--plot {plot}: no setting of the grid varies, so there is no axis")
    frame = run_sweep(points, out, jobs=jobs, backend=backend, scheduler=scheduler)
    failed = int((frame["error"] != "").sum())
    modelled = int(frame["cost"].str.startswith(PREFIX).sum())
    first = next((text for text in frame["error"] if text), "")
    typer.echo(
        f"{len(frame)} rows in {out}"
        + (f", {modelled} of them modelled, not measured: show both ends" if modelled else "")
        + (f", {failed} of them with an error, such as: {first}" if failed else ""),
        err=True,
    )
    if failed == len(frame):
        raise typer.Exit(1)
    if plot:
        pictures.draw_sweep(frame, varying(points), plot)


# --- arguments ------------------------------------------------------------------------------------


def memory_bytes(memory_gib: float | None) -> int | None:
    if memory_gib is None:
        return None
    if not 0 < memory_gib < LARGEST_GIB:
        raise ValueError(
            f"--memory-gib {memory_gib} is not above 0 and below {LARGEST_GIB:,}: leave it out for "
            f"no limit"
        )
    return int(memory_gib * 2**30)


def require_other(out: Path | None, inputs: Mapping[str, str | None]) -> None:
    """Raises ValueError where the result would take the place of what it is calculated from: the
    files by the options that named them."""
    for option, name in inputs.items():
        if out and name and out.exists() and Path(name).exists() and out.samefile(name):
            raise ValueError(f"--out {out} is the file of {option}: name another for the result")
