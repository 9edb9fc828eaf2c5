"""The command `tune`: from a deployment's log to better buckets or shapes, in a file that the
server reads back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from spyre_bench.pass_log import KINDS, PASSES, SHAPE_WARMUP, STEP_RULES, STEPS, WARMUP
from spyre_bench.simulate.scenario import (
    CONTINUOUS,
    ENGINE,
    SCHEDULING,
    TRACE_FILE,
    WORKLOAD,
    Scenario,
    setting,
)

if TYPE_CHECKING:
    from spyre_bench.cost.bucket_cost import BucketCost, CostModel
    from spyre_bench.metrics.served import Served
    from spyre_bench.metrics.served_steps import ServedSteps
    from spyre_bench.studies.tune import Figures, Tuning
    from spyre_bench.workload.workload import Workload

TODAY, BUDGET = "Today", "Budget"  # panels of --help


@dataclass(frozen=True)
class Log:
    """What a log says, and what its costs are taken for."""

    workload: Workload
    model: CostModel
    current: tuple[BucketCost, ...]  # today's; none where nobody says them
    measured_busy_s: float | None
    said: list[str]


@dataclass(frozen=True)
class Today:
    """The deployment as it runs, where its log does not say it."""

    bucket: str = setting(
        TODAY, "each of today's, or @shapes.json; a pass log says them itself", "", many=True
    )
    gather_s: float = setting(TODAY, "the server's hold of a first request", 0.02)
    max_wait_s: float = setting(TODAY, "the server's hold of free rows", 0.0)
    lengths: str | None = setting(
        TODAY, "of requests, where LOG is lines of a log: a workload or a trace", None
    )


@dataclass(frozen=True)
class Allowed:
    """What others may take."""

    k: int | None = setting(
        BUDGET, "buckets or shapes, at most; default: as many as today, or 5", None, flag="-k"
    )
    warmup_budget: float | None = setting(BUDGET, "seconds of cold compile, in all", None)
    memory_gib: float | None = setting(BUDGET, "of weights, cache and logits", None)
    rows: int | None = setting(
        BUDGET, "of continuous batching that decode together; default: as today", None
    )


@with_options(Scenario, without=[ENGINE, CONTINUOUS, "goodput"], positional="workload")
@with_options(Today)
@with_options(Allowed)
def tune(
    scenario: Scenario,
    today: Today,
    allowed: Allowed,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="to consider; default: those of the cost table")
    ] = None,
    replications: Annotated[
        int, typer.Option(help="behind the interval of the saving; 0: a point only")
    ] = 100,
    out: Annotated[
        Path | None, result_file(help='takes what is advised: serve with "buckets": "@FILE"')
    ] = None,
    as_json: Json = False,
) -> None:
    """From a log to better buckets or shapes: what today's cost, what others save, and how sure
    that is.

    LOG is a pass log of our server, of either kind of batching, a result of `vllm bench serve
    --save-detailed`, guidellm or AIPerf, any trace, the log of a vLLM server, or a scrape of its
    /metrics.
    """
    from spyre_bench.choose.optimize import Limits
    from spyre_bench.cli.plan import memory_bytes, require_other
    from spyre_bench.files import content, replace_text
    from spyre_bench.studies import tune as study

    require_other(out, {"LOG": scenario.workload, "--cost": scenario.cost})
    scenario = replace(
        scenario,
        gather_s=today.gather_s,
        max_wait_s=today.max_wait_s,
        buckets=today.bucket,
    )
    path = Path(scenario.workload)
    if _kind(path) in (*STEPS, SHAPE_WARMUP, STEP_RULES):
        _refuse_said(path, chosen(scenario, WORKLOAD, TRACE_FILE, SCHEDULING, but=["seed"]))
        _refuse_said(path, chosen(today, TODAY))
        tuning, said, costs = _of_steps(path, scenario, allowed, batch_size, replications)
    else:
        if allowed.rows is not None:
            raise ValueError(f"--rows is of continuous batching, and {path} is no log of it")
        log = _read(path, scenario, today)
        said, costs = log.said, log.model.label
        tuning = study.tune(
            log.workload,
            log.model,
            log.current,
            Limits(
                (len(log.current) or 5) if allowed.k is None else allowed.k,
                allowed.warmup_budget,
                memory_bytes(allowed.memory_gib),
            ),
            batch_sizes=batch_size or log.model.batch_sizes,
            policy=scenario.rules(),
            measured_busy_s=log.measured_busy_s,
            replications=replications,
            seed=scenario.seed,
        )
    shapes = study.shapes_file(
        tuning,
        log=scenario.workload,
        log_sha256=content(scenario.workload),
        read_as=said,
        costs=costs,
    )
    if out:
        replace_text(out, json.dumps(shapes, indent=1, allow_nan=False) + "\n")
    if as_json:
        typer.echo(json.dumps(shapes, allow_nan=False))
        return
    for sentence in said:
        typer.echo(sentence, err=True)
    _print(tuning)
    if out:
        typer.echo(f"{tuning.what} in {out}; serve with {_keys(tuning, out)}")


# --- the log --------------------------------------------------------------------------------------


def _of_steps(
    path: Path,
    scenario: Scenario,
    allowed: Allowed,
    batch_sizes: list[int] | None,
    replications: int,
) -> tuple[Tuning, list[str], str]:
    """A pass log of continuous batching: what it comes to, what is said of it, and its costs."""
    from spyre_bench.choose.advise_shapes import Engine, within_contexts
    from spyre_bench.choose.visits import ShapeLimits
    from spyre_bench.metrics.served_steps import read_served_steps
    from spyre_bench.studies.tune_shapes import of_log, tune_shapes

    for name, value in (("--batch-size", batch_sizes), ("--memory-gib", allowed.memory_gib)):
        if value:
            raise ValueError(
                f"{path} is a pass log of continuous batching, whose blocks of memory stay: leave "
                f"{name} out"
            )
    served = read_served_steps(path)
    model = of_log(served, replace(scenario, batching="continuous").load_cost())
    said = [_read_as(served, served.workload, f"{len(served.steps):,} passes")]
    covered = within_contexts(served.workload, model)
    if beyond := len(served.workload) - len(covered):
        said.append(
            f"{beyond:,} of {len(served.workload):,} requests are longer than any context of the "
            f"cost table and left out; --extrapolate takes them in"
        )
    today = served.costs.shapes
    chunk = served.rules.chunk_tokens or today.max_chunk
    tuning = tune_shapes(
        replace(served, workload=covered),
        model,
        ShapeLimits(len(today) if allowed.k is None else allowed.k, allowed.warmup_budget),
        Engine(today.max_rows if allowed.rows is None else allowed.rows, chunk, today.blocks),
        measured_busy_s=None if beyond else served.busy_s,
        replications=replications,
        seed=scenario.seed,
    )
    return tuning, said, model.label


def _read(path: Path, scenario: Scenario, today: Today) -> Log:
    """A pass log with its own buckets and costs, or requests with the buckets that were named."""
    kind = _kind(path)
    if kind in PASSES or kind == WARMUP:
        _refuse_said(path, chosen(scenario, WORKLOAD, TRACE_FILE, but=["seed"]))
        _refuse_said(path, chosen(today, TODAY, but=["gather_s", "max_wait_s"]))
        return _of_passes(path, scenario)
    base, loaded = scenario.load_cost(), _requests(path, scenario, today.lengths)
    workload, said = _covered(scenario.scaled(loaded), base)
    current = scenario.costs(base) if scenario.buckets else ()
    return Log(workload, base, current, None, [str(loaded), *said])


def _requests(path: Path, scenario: Scenario, lengths: str | None) -> Workload:
    """Of a trace or a tool's result; made up where a server's log or metrics say no more."""
    import numpy as np

    from spyre_bench.workload.server_log import LINES, METRICS, from_lines, from_metrics, kind_of
    from spyre_bench.workload.source import part_of

    kind = kind_of(path) if path.is_file() else None
    if lengths is not None and kind != LINES:
        raise ValueError(f"{path} says how long requests are: leave --lengths out")
    if kind is None:
        return read_workload(scenario)
    rng = np.random.default_rng(scenario.seed)
    if kind == METRICS:
        _refuse_said(path, chosen(scenario, TRACE_FILE))
        found = from_metrics(path, rng)
    elif lengths is None:
        raise ValueError(
            f"{path} says how many tokens there were, not how long requests are: say --lengths, a "
            f"workload (spyre-bench workloads lists them) or a trace like theirs"
        )
    else:
        theirs = Scenario(
            lengths,
            seed=scenario.seed,
            columns=scenario.columns,
            time_unit=scenario.time_unit,
            separator=scenario.separator,
        )
        found = from_lines(path, read_workload(theirs), rng)
    return part_of(
        found,
        scenario.requests,
        rng,
        scenario.arrivals,
        scenario.max_tokens,
        scenario.from_s,
        scenario.to_s,
    )


def _of_passes(path: Path, scenario: Scenario) -> Log:
    from spyre_bench.cost.bucket_cost import price
    from spyre_bench.metrics.served import read_served
    from spyre_bench.studies.tune import of_log

    served = read_served(path)
    model = of_log(served, scenario.load_cost(), scenario.rules())
    workload, said = _covered(served.workload, model)
    read = _read_as(served, workload, f"{served.batches:,} batches")
    busy_s = served.busy_s if len(workload) == len(served.workload) else None
    current = price((cost.bucket for cost in served.costs), model)
    return Log(workload, model, current, busy_s, [read, *said])


def _read_as(served: Served | ServedSteps, workload: Workload, ran: str) -> str:
    asleep = 1 - served.busy_s / max(served.busy_s, workload.span_s)
    gave_up = f"; {served.gave_up:,} who gave up are left out" if served.gave_up else ""
    return f"{workload}; {ran}, busy {served.busy_s:,.1f} s ({asleep:.0%} idle){gave_up}"


def _refuse_said(path: Path, given: Mapping[str, Any]) -> None:
    """Options that the file leaves without effect."""
    refuse_idle(f"{path} says that itself, or has none of it", given)


def _kind(path: Path) -> str | None:
    """Of the first line of a pass log; None for any other file, and for none."""
    if not path.is_file() or path.suffix not in (".jsonl", ".log", ".json", ".txt"):
        return None
    with path.open("rb") as file:
        first = file.readline(100_000)
    try:
        line = json.loads(first)
    except ValueError:
        return None
    kind = line.get("kind") if isinstance(line, dict) else None
    return kind if kind in KINDS else None


def _covered(workload: Workload, model: CostModel) -> tuple[Workload, list[str]]:
    from spyre_bench.choose.advise import within

    covered = within(workload, model)
    if beyond := len(workload) - len(covered):
        return covered, [
            f"{beyond:,} of {len(workload):,} requests are beyond the cost table ({model.span}) "
            f"and left out; --extrapolate takes them in"
        ]
    return covered, []


# --- what is said ---------------------------------------------------------------------------------


def _print(tuning: Tuning) -> None:
    what = tuning.what
    table = tables.narrow("", what, "busy s", "p95 E2EL s", "fill", "compile s", "refused")
    rows = {"today": tuning.current, "others": tuning.new}
    for name, figures in rows.items():
        if figures:
            table.add_row(name, *_row(figures, tuning.requests))
    tables.show(table)
    measured_s = tuning.measured_busy_s
    itself = "" if measured_s is None else f" (the log itself has {measured_s:,.1f})"
    typer.echo(
        f"busy: device seconds, simulated{itself}; E2EL: arrival to last token; fill: of the token "
        f"slots computed, those that were asked for; compile: of all {what}, cold"
    )
    for name, figures in rows.items():
        if figures:
            typer.echo(f"{name}: {_said(figures)}")
    if tuning.saving:
        of = " of the requests that today's serve" if tuning.current.rejected else ""
        later = (
            f"{tuning.held_out} of device seconds" if tuning.held_out else "today's serve nobody"
        )
        typer.echo(
            f"others save{of}: {tuning.saving} of device seconds, {tuning.saving_p95} of the P95 "
            f"of E2EL; on the second half alone, of which the choice has seen only the longest "
            f"request, {later}"
        )
        typer.echo(f"interval from: {tuning.source}")
    typer.echo(tuning.verdict)


def _keys(tuning: Tuning, out: Path) -> str:
    """What a server is given to read the file."""
    compiled, file = tuning.advised.compiled, f"@{out}"
    keys: dict[str, Any]
    if isinstance(compiled, tuple):
        keys, stands_for = {"buckets": file}, "it"
    else:
        keys = {"batching": "continuous", "blocks": compiled.blocks}
        keys |= dict.fromkeys(("prefill_shapes", "decode_shapes"), file)
        stands_for = "the last two"
    return (
        f"--additional-config '{json.dumps({'spyre': keys})}' and your other keys; "
        f"SPYRE_BENCH_SHAPES={out} stands for {stands_for}"
    )


def _row(figures: Figures, requests: int) -> list[str]:
    served = figures.rejected < requests  # else there is nothing to say of
    return [
        str(len(figures.compiled)),
        f"{figures.busy_s:,.1f}",
        f"{figures.p95_e2el_s:,.2f}" if served else "-",
        f"{figures.fill:.0%}" if served else "-",
        f"{figures.compile_s:,.1f}",
        f"{figures.rejected:,}",
    ]


def _said(figures: Figures) -> str:
    compiled = figures.compiled
    return " ".join(map(str, compiled)) if isinstance(compiled, tuple) else str(compiled)
