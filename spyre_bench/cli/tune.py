"""The command `tune`: from a deployment's log to better buckets, in a file that the server reads
back."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spyre_bench.cli import tables
from spyre_bench.cli.options import Json, result_file, with_options
from spyre_bench.pass_log import KINDS, PASSES, SHAPE_WARMUP, STEPS, WARMUP
from spyre_bench.simulate.scenario import CONTINUOUS, ENGINE, Scenario, setting

if TYPE_CHECKING:
    from spyre_bench.cost.bucket_cost import BucketCost, CostModel
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
        BUDGET, "buckets, at most; default: as many as today, or 5", None, flag="-k"
    )
    warmup_budget: float | None = setting(BUDGET, "seconds of cold compile, in all", None)
    memory_gib: float | None = setting(BUDGET, "of weights, cache and logits", None)


@with_options(Scenario, without=[ENGINE, CONTINUOUS], positional="workload")
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
        Path | None, result_file(help='takes the shapes: serve with "buckets": "@FILE"')
    ] = None,
    as_json: Json = False,
) -> None:
    """From a log to better buckets: what today's cost, what others save, and how sure that is.

    LOG is a pass log of our server, a result of `vllm bench serve --save-detailed`, guidellm or
    AIPerf, any trace, the log of a vLLM server, or a scrape of its /metrics.
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
    log = _read(scenario, today.lengths)
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
        read_as=log.said,
        costs=log.model.label,
    )
    if out:
        replace_text(out, json.dumps(shapes, indent=1, allow_nan=False) + "\n")
    if as_json:
        typer.echo(json.dumps(shapes, allow_nan=False))
        return
    for sentence in log.said:
        typer.echo(sentence, err=True)
    _print(tuning)
    if out:
        typer.echo(f'shapes in {out}: serve with "buckets": "@{out}" or SPYRE_BENCH_SHAPES={out}')


# --- the log --------------------------------------------------------------------------------------


def _read(scenario: Scenario, lengths: str | None) -> Log:
    """A pass log with its own buckets and costs, or requests with the buckets that were named."""
    path = Path(scenario.workload)
    kind = _kind(path)
    if kind in STEPS or kind == SHAPE_WARMUP:
        raise ValueError(
            f"{path} is a pass log of continuous batching: tune chooses buckets of static batching"
        )
    if kind in PASSES or kind == WARMUP:
        return _of_passes(path, scenario)
    base, loaded = scenario.load_cost(), _requests(path, scenario, lengths)
    workload, said = _covered(scenario.scaled(loaded), base)
    current = scenario.costs(base) if scenario.buckets else ()
    return Log(workload, base, current, None, [str(loaded), *said])


def _requests(path: Path, scenario: Scenario, lengths: str | None) -> Workload:
    """Of a trace or a tool's result; made up where a server's log or metrics say no more."""
    import numpy as np

    from spyre_bench.workload.server_log import METRICS, from_lines, from_metrics, kind_of

    kind = kind_of(path) if path.is_file() else None
    if kind is None:
        return scenario.read_workload()
    rng = np.random.default_rng(scenario.seed)
    if kind == METRICS:
        found = from_metrics(path, rng)
    elif lengths is None:
        raise ValueError(
            f"{path} says how many tokens there were, not how long requests are: say --lengths, a "
            f"workload (spyre-bench workloads lists them) or a trace like theirs"
        )
    else:
        found = from_lines(path, replace(scenario, workload=lengths).read_workload(), rng)
    return found.with_max_tokens(scenario.max_tokens) if scenario.max_tokens else found


def _of_passes(path: Path, scenario: Scenario) -> Log:
    from spyre_bench.cost.bucket_cost import price
    from spyre_bench.metrics.served import read_served
    from spyre_bench.studies.tune import of_log

    if scenario.buckets:
        raise ValueError(f"{path} says which buckets it ran: leave --bucket out")
    served = read_served(path)
    model = of_log(served, scenario.load_cost(), scenario.rules())
    workload, said = _covered(served.workload, model)
    asleep = 1 - served.busy_s / max(served.busy_s, workload.span_s)
    read = (
        f"{workload}; {served.batches:,} batches, busy {served.busy_s:,.1f} s ({asleep:.0%} idle)"
        + (f"; {served.gave_up:,} who gave up are left out" if served.gave_up else "")
    )
    busy_s = served.busy_s if len(workload) == len(served.workload) else None
    current = price((cost.bucket for cost in served.costs), model)
    return Log(workload, model, current, busy_s, [read, *said])


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
    table = tables.narrow("", "k", "busy s", "p95 E2EL s", "fill", "compile s", "refused")
    rows = {"today": tuning.current, "others": tuning.new}
    for name, figures in rows.items():
        if figures:
            table.add_row(name, *_row(figures, tuning.requests))
    tables.show(table)
    for name, figures in rows.items():
        if figures:
            typer.echo(f"{name}: {' '.join(map(str, figures.buckets))}")
    if tuning.measured_busy_s is not None:
        typer.echo(
            f"busy: device seconds, simulated; the log itself has {tuning.measured_busy_s:,.1f} s"
        )
    if tuning.saving:
        of = " of the requests that today's serve" if tuning.current.rejected else ""
        later = tuning.held_out or "-"
        typer.echo(
            f"saving of device seconds{of} {tuning.saving}, of P95 E2EL {tuning.saving_p95}; on "
            f"the second half, of which the choice has seen the longest only, {later} of device "
            f"seconds"
        )
        typer.echo(f"interval from: {tuning.source}")
    typer.echo(tuning.verdict)


def _row(figures: Figures, requests: int) -> list[str]:
    served = figures.rejected < requests  # else there is nothing to say of
    return [
        str(len(figures.costs)),
        f"{figures.busy_s:,.1f}",
        f"{figures.p95_e2el_s:,.2f}" if served else "-",
        f"{figures.fill:.0%}" if served else "-",
        f"{figures.compile_s:,.1f}",
        f"{figures.rejected:,}",
    ]
