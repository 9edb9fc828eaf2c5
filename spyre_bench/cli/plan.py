"""The commands that only calculate: `simulate`, `buckets`, `sweep` and `validate`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from spyre_bench.choose.advise import Advice
    from spyre_bench.cost.bucket_cost import BucketCost
    from spyre_bench.cost.source import CardCost
    from spyre_bench.simulate.result import Trace
    from spyre_bench.workload.workload import Workload

WorkloadName = Annotated[
    str, typer.Option("--workload", help="azure_conv, burstgpt, ..., or a trace file")
]
Cost = Annotated[
    str | None,
    typer.Option(
        help="cost table, or card:MODEL,tp=4,dtype=fp8,end=slow; default: the table that ships"
    ),
]
Requests = Annotated[
    int | None, typer.Option(max=10**9, help="how many; default: 10,000, or the whole file")
]
Seed = Annotated[int, typer.Option(min=0, help="of every random draw")]
Arrivals = Annotated[
    str | None, typer.Option(help="all, constant:4, poisson:2.5, gamma:2.5,0.5, onoff:10,5,20")
]
MaxTokens = Annotated[
    str | None,
    typer.Option(help="clients ask for: exact, recorded, fixed:256, multiple:2, quantile:0.99"),
]
Columns = Annotated[
    str | None,
    typer.Option(
        metavar="PART=COLUMN,...",
        help="of a trace file: arrival=created_at,prompt=n_in,output=n_out,max_tokens=limit; "
        "arrival=none: no times",
    ),
]
TimeUnit = Annotated[
    str | None, typer.Option(help="of a trace file's times: s, ms, us or ns; default: as it says")
]
Separator = Annotated[
    str | None, typer.Option(help="of a CSV trace: a character, or tab, semicolon, comma, pipe")
]
From = Annotated[
    float, typer.Option("--from", help="leaves out what comes before, in seconds from the start")
]
To = Annotated[
    float,
    typer.Option("--to", help="leaves out what comes from then on, in seconds from the start"),
]
LengthScale = Annotated[float, typer.Option(help="multiplies all lengths")]
RateScale = Annotated[float, typer.Option(help="divides the times between arrivals")]
PolicyName = Annotated[str, typer.Option("--policy", help="best_fit, skip, fcfs, length_aware")]
Goodput = Annotated[
    list[str] | None,
    typer.Option(metavar="METRIC:MS", help="a limit, such as ttft:2000; repeatable"),
]
Extrapolate = Annotated[
    bool, typer.Option("--extrapolate", help="price buckets beyond what was measured, marked")
]
LARGEST_GIB = 2**30  # more is a slip, and its bytes are a number that no array holds
Json = Annotated[bool, typer.Option("--json", help="print JSON and nothing else")]


def simulate(
    workload: WorkloadName,
    bucket: Annotated[list[str], typer.Option(help="batch_size,prompt_length,new_tokens")],
    cost: Cost = None,
    policy: PolicyName = "best_fit",
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="takes the result as JSON")] = None,
    requests: Requests = None,
    arrivals: Arrivals = None,
    max_tokens: MaxTokens = None,
    length_scale: LengthScale = 1.0,
    rate_scale: RateScale = 1.0,
    columns: Columns = None,
    time_unit: TimeUnit = None,
    separator: Separator = None,
    from_s: From = 0.0,
    to_s: To = math.inf,
    max_wait_s: Annotated[float, typer.Option(help="hold of a batch with free rows")] = 0.0,
    gather_s: Annotated[float, typer.Option(help="hold for simultaneous arrivals")] = 0.0,
    max_age_s: Annotated[float, typer.Option(help="age guard of length_aware")] = 60.0,
    replicas: Annotated[int, typer.Option(help="identical engines")] = 1,
    router: Annotated[str, typer.Option(help="round_robin or least_loaded")] = "round_robin",
    warmup: Annotated[
        bool, typer.Option("--warmup", help="engines become ready after a cold warmup")
    ] = False,
    client_overhead_ms: Annotated[
        float, typer.Option(help="what a client waits beyond the engine")
    ] = 0.0,
    goodput: Goodput = None,
    extrapolate: Extrapolate = False,
    detailed: Annotated[bool, typer.Option("--detailed", help="arrays of all requests")] = False,
    as_json: Json = False,
) -> None:
    """Serve a workload on buckets, in simulation: latency, throughput, fill and waste."""
    import numpy as np

    from spyre_bench.choose.lint import lint
    from spyre_bench.cost.bucket_cost import price
    from spyre_bench.cost.measured import MeasuredCost
    from spyre_bench.cost.source import CardCost, load_source
    from spyre_bench.files import replace_text
    from spyre_bench.metrics.vllm_json import bench_result
    from spyre_bench.policy.static import Policy
    from spyre_bench.shapes import BucketSet
    from spyre_bench.simulate import static as simulator
    from spyre_bench.workload.workload import Reading, load_workload

    _require_other(out, workload=workload, cost=cost)
    buckets = BucketSet.parse(bucket)
    limits = _limits(goodput)
    rules = Policy(policy, max_wait_s=max_wait_s, gather_s=gather_s, max_age_s=max_age_s)
    model = load_source(cost, extrapolate=extrapolate)
    if warmup and isinstance(model, MeasuredCost):
        model.require("compile_s", "a warmup (--warmup)")
    costs = price(buckets, model)
    reading = Reading.parse(columns, time_unit, separator)
    loaded = load_workload(
        workload, requests=requests, rng=np.random.default_rng(seed), arrivals=arrivals,
        max_tokens=max_tokens, reading=reading, from_s=from_s, to_s=to_s,
    )  # fmt: skip
    some = loaded.scaled(lengths=length_scale, rate=rate_scale)

    def served(costs: Sequence[BucketCost]) -> Trace:
        return simulator.simulate(
            some, costs, rules, replicas=replicas, router=router,
            ready_s=sum(c.warmup_s for c in costs) if warmup else 0.0,
            client_overhead_s=client_overhead_ms / 1e3,
        )  # fmt: skip

    result = bench_result(
        served(costs), goodput_ms=limits, detailed=detailed, model=model.model
    ) | {
        "spyre_seed": seed,
        "spyre_read_as": str(loaded),
        "spyre_lint": lint(some, costs, model).sentences(),
    }
    if isinstance(model, CardCost):
        ends = [bench_result(served(price(buckets, at))) for at in model.slow_and_fast()]
        result["spyre_modelled"] = _modelled(model, RANGED, ends)
    if out:
        replace_text(out, json.dumps(result, indent=1, allow_nan=False) + "\n")
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False))
    else:
        _say_what_was_read(loaded)
        _print_result(result)


def buckets(
    workload: WorkloadName,
    k: Annotated[int, typer.Option("-k", help="buckets, at most")] = 5,
    warmup_budget: Annotated[
        float | None, typer.Option(help="seconds of cold compile, in all")
    ] = None,
    cost: Cost = None,
    memory_gib: Annotated[float | None, typer.Option(help="of weights, cache and logits")] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="to consider; default: those of the cost table")
    ] = None,
    policy: PolicyName = "best_fit",
    objective: Annotated[str, typer.Option(help="device_seconds or goodput")] = "device_seconds",
    goodput: Goodput = None,
    seed: Seed = 0,
    requests: Requests = None,
    arrivals: Arrivals = None,
    max_tokens: MaxTokens = None,
    length_scale: LengthScale = 1.0,
    rate_scale: RateScale = 1.0,
    columns: Columns = None,
    time_unit: TimeUnit = None,
    separator: Separator = None,
    from_s: From = 0.0,
    to_s: To = math.inf,
    extrapolate: Extrapolate = False,
    as_json: Json = False,
) -> None:
    """Choose buckets for a workload: proved optimum, replayed, against other stacks' schemes."""
    import numpy as np

    from spyre_bench.choose.advise import advise, within
    from spyre_bench.choose.optimize import Limits
    from spyre_bench.cost.bucket_cost import price
    from spyre_bench.cost.source import CardCost, load_source
    from spyre_bench.metrics.bounds import shape_bound_s
    from spyre_bench.policy.static import Policy
    from spyre_bench.workload.workload import Reading, load_workload

    limits = Limits(k, warmup_budget, _memory_bytes(memory_gib))
    goodput_ms = _limits(goodput)
    rules = Policy(policy)
    model = load_source(cost, extrapolate=extrapolate)
    reading = Reading.parse(columns, time_unit, separator)
    loaded = load_workload(
        workload, requests=requests, rng=np.random.default_rng(seed), arrivals=arrivals,
        max_tokens=max_tokens, reading=reading, from_s=from_s, to_s=to_s,
    )  # fmt: skip
    some = loaded.scaled(lengths=length_scale, rate=rate_scale)
    kept = within(some, model)
    advice = advise(
        kept, model, limits,
        batch_sizes=batch_size or model.batch_sizes,
        policy=rules, objective=objective, goodput_ms=goodput_ms,
    )  # fmt: skip
    found = _advice_json(advice, len(some) - len(kept))
    if isinstance(model, CardCost):
        ends = [price(advice.buckets, at) for at in model.slow_and_fast()]
        figures = [
            {
                "shape_bound_s": shape_bound_s(advice.fitted, costs),
                "compile_s": sum(c.compile_s for c in costs),
            }
            for costs in ends
        ]
        found["modelled"] = _modelled(model, ADVISED, figures)
    found["read_as"] = str(loaded)
    if as_json:
        typer.echo(json.dumps(found, allow_nan=False))
        return
    _say_what_was_read(loaded)
    _print_advice(advice, len(some), len(some) - len(kept), model.span)
    if "modelled" in found:
        typer.echo(_modelled_sentence(found["modelled"], ADVISED))


def validate(
    measured: Annotated[Path, typer.Argument(help="of `vllm bench serve --save-detailed`")],
    simulated: Annotated[Path, typer.Argument(help="of `spyre-bench simulate --detailed --out`")],
    as_json: Json = False,
) -> None:
    """Hold a simulated result against a measured one of the same requests."""
    from rich.console import Console
    from rich.markup import escape

    from spyre_bench.validate.compare import by_quantity, left_out, read_result

    results = read_result(measured), read_result(simulated)
    frame = by_quantity(*results)
    for sentence in left_out(*results):
        typer.echo(sentence, err=True)
    if as_json:
        typer.echo(frame.to_json(orient="records"))
        return
    table = _table("", "measured", "simulated", "error")
    for row in frame.itertuples():
        values = (f"{row.measured:,.3f}", f"{row.simulated:,.3f}", f"{row.error:+.1%}")
        shown = ("" if "nan" in text else text for text in values)
        table.add_row(escape(row.quantity), *shown)  # [s] is a unit, no markup
    Console().print(table)


def sweep(
    grid: Annotated[Path, typer.Argument(help="YAML: a list of values for each setting")],
    out: Annotated[Path, typer.Option(help="CSV; its rows are kept and not run again")],
    jobs: Annotated[int, typer.Option(help="processes; -1: one a core")] = -1,
    backend: Annotated[str, typer.Option(help="loky, dask or ray")] = "loky",
    scheduler: Annotated[
        str | None, typer.Option(help="address of the cluster; default: one on this machine")
    ] = None,
) -> None:
    """Simulate every combination of a grid of settings, in parallel; resumable."""
    from spyre_bench.cost.source import PREFIX
    from spyre_bench.studies.sweep import read_grid, run_sweep

    frame = run_sweep(read_grid(grid), out, jobs=jobs, backend=backend, scheduler=scheduler)
    failed = int((frame["error"] != "").sum())
    modelled = int(frame["cost"].str.startswith(PREFIX).sum())
    typer.echo(
        f"{len(frame)} rows in {out}"
        + (f", {failed} of them with an error" if failed else "")
        + (f", {modelled} of them modelled, not measured: show both ends" if modelled else ""),
        err=True,
    )


# --- arguments ------------------------------------------------------------------------------------


def _say_what_was_read(loaded: Workload) -> None:
    """On stderr, before any table: what a trace file was taken for. JSON has it too."""
    if loaded.read_as:
        typer.echo(str(loaded), err=True)


def _limits(goodput: Iterable[str] | None) -> dict[str, float]:
    """`["ttft:2000"]` as milliseconds by metric; refused before anything runs."""
    from spyre_bench.metrics.summary import require_limits

    limits = {}
    for text in goodput or ():
        name, _, value = text.partition(":")
        try:
            limits[name] = float(value)
        except ValueError as error:
            raise ValueError(
                f"goodput limit {text!r} is not a metric and milliseconds: write, for example, "
                f"ttft:2000"
            ) from error
    require_limits(limits)
    return limits


def _memory_bytes(memory_gib: float | None) -> int | None:
    if memory_gib is None:
        return None
    if not 0 < memory_gib < LARGEST_GIB:
        raise ValueError(
            f"--memory-gib {memory_gib} is not above 0 and below {LARGEST_GIB:,}: leave it out for "
            f"no limit"
        )
    return int(memory_gib * 2**30)


def _require_other(out: Path | None, **inputs: str | None) -> None:
    """Raises ValueError where the result would take the place of what it is calculated from."""
    for option, name in inputs.items():
        if out and name and out.exists() and Path(name).exists() and out.samefile(name):
            raise ValueError(f"--out {out} is the file of --{option}: name another for the result")


# --- a card that nobody measured ------------------------------------------------------------------

# figure -> its words and its scale; those that the card's model has a range of
RANGED = {
    "request_throughput": ("requests/s", 1),
    "output_throughput": ("output tokens/s", 1),
    "median_ttft_ms": ("seconds of median TTFT", 1e-3),
    "median_tpot_ms": ("of median TPOT", 1e-3),
    "p99_e2el_ms": ("of p99 E2EL", 1e-3),
}
ADVISED = {
    "shape_bound_s": ("seconds of the advised buckets' bound for the first half", 1),
    "compile_s": ("of their compiling", 1),
}


def _modelled(
    model: CardCost, names: Iterable[str], ends: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """What a result says of costs that were not measured: the range of its figures, from the slow
    to the fast end of the card's parameters."""
    slow, fast = ends
    return {"of": str(model), "slow_to_fast": {name: [slow[name], fast[name]] for name in names}}


def _modelled_sentence(modelled: Mapping[str, Any], words: Mapping[str, tuple[str, float]]) -> str:
    ranges = []
    for name, ends in modelled["slow_to_fast"].items():
        what, scale = words[name]
        slow, fast = (end * scale for end in ends)
        form = ",.0f" if max(slow, fast) >= 100 else ".3g"
        ranges.append(f"{what} {slow:{form}} to {fast:{form}}")
    return (
        f"modelled, not measured (docs/SPYRE_CARD.md): {modelled['of']}. From their slow to their "
        f"fast end: {', '.join(ranges)}"
    )


# --- what is printed ------------------------------------------------------------------------------


def _table(*columns: str) -> Table:
    """A table narrow enough for 80 columns, the width where output is no terminal."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    return table


def _print_result(result: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    console.print(_latency_table(result), _waste_table(result["spyre_waste"]))
    typer.echo(
        f"{result['completed']:,} of {result['num_prompts']:,} requests served in "
        f"{result['duration']:,.1f} s by {result['spyre_batches']:,} batches: "
        f"{result['request_throughput']:.3f} requests/s, {result['output_throughput']:,.1f} output "
        f"tokens/s, {result['spyre_utilisation']:.0%} busy"
    )
    if result["request_goodput"] is not None:
        typer.echo(f"goodput {result['request_goodput']:.3f} requests/s")
    if bound := result["spyre_busy_over_shape_bound"]:
        typer.echo(f"busy {bound:.2f} times the shape bound of these buckets")
    if result["spyre_saturated"]:
        typer.echo(f"saturated: {result['spyre_saturation']}")
    for sentence in result["spyre_lint"]:
        typer.echo(sentence)
    if "spyre_modelled" in result:
        typer.echo(_modelled_sentence(result["spyre_modelled"], RANGED))
    elif result["spyre_extrapolated"]:
        typer.echo(f"extrapolated: {', '.join(result['spyre_extrapolated'])}")


def _latency_table(result: dict[str, Any]) -> Table:
    table = _table("seconds", "mean", "median", "p90", "p99")
    names = {"spyre_queue": "queue", "ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL"}
    for metric, label in names.items():
        seconds = (result[f"{of}_{metric}_ms"] / 1e3 for of in ("mean", "median", "p90", "p99"))
        table.add_row(label, *(f"{value:,.3f}" for value in seconds))
    return table


def _waste_table(waste: dict[str, int]) -> Table:
    table = _table("of the token slots computed", "share")
    for name, tokens in waste.items():
        if name != "computed":
            table.add_row(name.replace("_", " "), f"{tokens / max(1, waste['computed']):.1%}")
    return table


def _setting(advice: Advice) -> str:
    """What `--additional-config` takes."""
    sizes = [[b.batch_size, b.prompt_length, b.new_tokens] for b in advice.buckets]
    return json.dumps({"spyre": {"buckets": sizes}})


def _advice_json(advice: Advice, beyond: int) -> dict[str, Any]:
    certificate = advice.certificate
    return {
        "buckets": [str(bucket) for bucket in advice.buckets],
        "additional_config": json.loads(_setting(advice)),
        "requests_beyond_the_cost_table": beyond,
        "requests_fitted": len(advice.fitted),
        "requests_held_out": len(advice.held_out),
        "certificate": {
            "buckets": [str(bucket) for bucket in certificate.buckets],
            "shape_bound_s": certificate.objective_s,
            "proved_bound_s": certificate.bound_s,
            "gap": certificate.gap,
            "seconds": certificate.seconds,
        },
        "contenders": advice.contenders.to_dict("records"),
    }


def _print_advice(advice: Advice, requests: int, beyond: int, span: str) -> None:
    from rich.console import Console

    if beyond:
        typer.echo(
            f"{beyond:,} of {requests:,} requests are beyond the cost table ({span}) and left out; "
            f"--extrapolate takes them in"
        )
    Console().print(_contenders_table(advice))
    typer.echo(
        "busy: device seconds on the first half of the requests; bound: no batching takes less; "
        "held out: busy on the second half, with its p95 of E2EL, its fill and how many requests "
        "it lost, since no bucket fits"
    )
    for row in advice.contenders.itertuples():
        typer.echo(f"{row.name}: {row.buckets}{'  <- advised' if row.advised else ''}")
    if advice.contenders["held_out_saturated"].any():
        typer.echo("* saturated: that latency measures the backlog, not the service")
    found = advice.certificate
    typer.echo(
        f"Certificate: even with full batches, no choice of candidates within the limits serves "
        f"the first half in less than {found.bound_s:,.1f} device seconds. The optimum's bound is "
        f"{found.objective_s:,.1f} s, a gap of {found.gap:.3%}, found in {found.seconds:.1f} s."
    )
    typer.echo(f"--additional-config '{_setting(advice)}'")


def _contenders_table(advice: Advice) -> Table:
    from rich.markup import escape

    names = ("seconds", "k", "compile", "bound", "busy", "held out", "p95", "fill", "lost")
    table = _table(*names)
    for row in advice.contenders.itertuples():
        table.add_row(
            escape(row.name), str(row.graphs),
            f"{row.compile_s:,.0f}", f"{row.fitted_bound_s:,.0f}",
            f"{row.fitted_busy_s:,.0f}", f"{row.held_out_busy_s:,.0f}",
            f"{row.held_out_p95_e2el_s:,.0f}{'*' if row.held_out_saturated else ''}",
            f"{row.held_out_fill:.0%}", str(row.held_out_rejected),
            style="bold" if row.advised else None,
        )  # fmt: skip
    return table
