"""What the commands that only calculate print: tables, sentences, and the JSON of an advice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from spyre_bench.choose.advise import Advice
    from spyre_bench.workload.workload import Workload

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
ADVISED_SHAPES = {
    "busy_s": ("device seconds on the advised shapes for the first half", 1),
    "compile_s": ("seconds of their compiling", 1),
}


def modelled(
    label: str, names: Iterable[str], ends: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """What a result says of costs that were not measured: the range of its figures, from the
    pessimistic to the optimistic end of the card's parameters."""
    slow, fast = ends
    return {"of": label, "slow_to_fast": {name: [slow[name], fast[name]] for name in names}}


def modelled_sentence(modelled: Mapping[str, Any], words: Mapping[str, tuple[str, float]]) -> str:
    ranges = []
    for name, ends in modelled["slow_to_fast"].items():
        what, scale = words[name]
        slow, fast = (end * scale for end in ends)
        form = ",.0f" if max(slow, fast) >= 100 else ".3g"
        ranges.append(f"{what} {slow:{form}} to {fast:{form}}")
    return (
        f"modelled, not measured (docs/SPYRE_CARD.md): {modelled['of']}. From their "
        f"pessimistic to their optimistic end: {', '.join(ranges)}"
    )


# --- what is printed ------------------------------------------------------------------------------


def say_what_was_read(loaded: Workload) -> None:
    """On stderr, before any table: what a trace file was taken for. JSON has it too."""
    if loaded.read_as:
        typer.echo(str(loaded), err=True)


def narrow(*columns: str) -> Table:
    """A table narrow enough for 80 columns, the width where output is no terminal."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    return table


def latency_cell(seconds: float, form: str, saturated: bool, served: bool) -> str:
    """Marked where it measures the backlog; a dash where nobody was served."""
    return f"{seconds:{form}}{'*' if saturated else ''}" if served else "-"


def show(table: Table) -> None:
    """Prints it, wider than a narrow terminal where it must be: a number that is cut is another."""
    from rich.console import Console

    console = Console()
    unbounded = console.options.update(max_width=10_000)
    console.width = max(console.width, console.measure(table, options=unbounded).maximum)
    console.print(table)


def print_result(result: dict[str, Any]) -> None:
    if result["failed"]:
        typer.echo(_refused_sentence(result))
    show(_latency_table(result))
    if result["spyre_waste"]["computed"]:
        show(_waste_table(result["spyre_waste"]))
    batches, compiled = f"{result['spyre_batches']:,} batches", "buckets"
    if paid := result.get("spyre_paid"):
        show(_paid_table(paid))
        batches = " and ".join(f"{n:,} × {name}" for name, n in result["spyre_shape_hits"].items())
        compiled = "shapes"
    typer.echo(
        f"{result['completed']:,} of {result['num_prompts']:,} requests served in "
        f"{result['duration']:,.1f} s by {batches}: "
        f"{result['request_throughput']:.3f} requests/s, {result['output_throughput']:,.1f} output "
        f"tokens/s, {result['spyre_utilisation']:.0%} busy"
    )
    if result["request_goodput"] is not None:
        typer.echo(f"goodput {result['request_goodput']:.3f} requests/s")
    if bound := result["spyre_busy_over_shape_bound"]:
        typer.echo(f"busy {bound:.2f} times the shape bound of these {compiled}")
    if result["spyre_saturated"]:
        typer.echo(f"saturated: {result['spyre_saturation']}")
    for sentence in result["spyre_lint"]:
        typer.echo(sentence)
    if "spyre_interval" in result:
        typer.echo(_interval_sentence(result["spyre_interval"]))
    if "spyre_modelled" in result:
        typer.echo(modelled_sentence(result["spyre_modelled"], RANGED))
    elif result["spyre_extrapolated"]:
        typer.echo(f"extrapolated: {', '.join(result['spyre_extrapolated'])}")


def _refused_sentence(result: dict[str, Any]) -> str:
    """Before any latency, which those who were refused have none of."""
    reasons = ", ".join(
        f"{count:,} {reason.replace('_', ' ')}"
        for reason, count in result["spyre_rejected"].items()
        if count
    )
    served = f"figures are of the {result['completed']:,} served"
    return (
        f"REFUSED: {result['failed']:,} of {result['num_prompts']:,} requests ({reasons}); "
        f"{served if result['completed'] else 'nobody was served'}"
    )


def _interval_sentence(said: Mapping[str, Any] | None) -> str:
    if said is None:
        return "points without an interval: nothing says how far passes are from their costs"
    ranges = [
        f"{words} {low * scale:.3g} to {high * scale:.3g}"
        for name, (words, scale) in RANGED.items()
        for low, high in [said["p5_to_p95"][name]]
    ]
    return (
        f"P5 to P95 of {said['replications']} replications: {', '.join(ranges)}. Drawn from: "
        f"{said['of']}"
    )


def _latency_table(result: dict[str, Any]) -> Table:
    table = narrow("seconds", "mean", "median", "p90", "p99")
    names = {"spyre_queue": "queue", "ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL"}
    for metric, label in names.items():
        seconds = (result[f"{of}_{metric}_ms"] / 1e3 for of in ("mean", "median", "p90", "p99"))
        # vLLM's results have a 0 where nothing was measured; every request waits for its tokens
        measured = result["completed"] and (metric == "spyre_queue" or result[f"mean_{metric}_ms"])
        table.add_row(label, *(f"{value:,.3f}" if measured else "-" for value in seconds))
    return table


def _waste_table(waste: dict[str, int]) -> Table:
    table = narrow("of the token slots computed", "share")
    for name, tokens in waste.items():
        if name != "computed":
            table.add_row(name.replace("_", " "), f"{tokens / max(1, waste['computed']):.1%}")
    return table


def _paid_table(paid: dict[str, float]) -> Table:
    table = narrow("of the seconds paid", "share")
    busy_s = sum(paid.values())
    for name, seconds in paid.items():
        table.add_row(
            name.removesuffix("_s").replace("_", " "), f"{max(0.0, seconds) / (busy_s or 1):.1%}"
        )
    return table


def advice_json(advice: Advice, beyond: int) -> dict[str, Any]:
    from spyre_bench.choose import server_settings

    certificate = advice.certificate
    return {
        "buckets": [str(bucket) for bucket in advice.buckets],
        "additional_config": server_settings.of_buckets(advice.buckets, advice.policy),
        "objective": advice.objective,
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
        "verdict": advice.verdict,
        "contenders": advice.contenders.to_dict("records"),
    }


def print_advice(advice: Advice, requests: int, beyond: int, span: str) -> None:
    from spyre_bench.choose import server_settings

    if beyond:
        typer.echo(
            f"{beyond:,} of {requests:,} requests are beyond the cost table ({span}) and left out; "
            f"--extrapolate takes them in"
        )
    show(_contenders_table(advice))
    good = ""
    if advice.objective == "goodput":
        good = "; goodput: requests/s within the limits, on the first half and on the second"
    typer.echo(
        "k: buckets B,P,N (batch size, prompt length, new tokens); compile: of all, cold; busy: "
        "device seconds on the first half of the requests; bound: no batching takes less; held "
        "out: busy on the second half, with its p95 of E2EL (arrival to last token), its fill (of "
        "the token slots computed, those that were asked for) and how many requests it lost, since "
        f"no bucket fits{good}"
    )
    for row in advice.contenders.itertuples():
        typer.echo(f"{row.name}: {row.buckets}{'  <- advised' if row.advised else ''}")
    if advice.contenders["held_out_saturated"].any():
        typer.echo("* saturated: that latency measures the backlog, not the service")
    typer.echo(f"Verdict: {advice.verdict}")
    found = advice.certificate
    typer.echo(
        f"Certificate: even with full batches, no choice of candidates within the limits serves "
        f"the first half in less than {found.bound_s:,.1f} device seconds. The optimum's bound is "
        f"{found.objective_s:,.1f} s, a gap of {found.gap:.3%}, found in {found.seconds:.1f} s."
    )
    setting = server_settings.of_buckets(advice.buckets, advice.policy)
    typer.echo(f"--additional-config '{json.dumps(setting)}'")


def _contenders_table(advice: Advice) -> Table:
    from rich.markup import escape

    names = ("seconds", "k", "compile", "bound", "busy", "held out", "p95", "fill", "lost")
    by_goodput = advice.objective == "goodput"
    table = narrow(*names, *(("goodput", "held out") if by_goodput else ()))
    for row in advice.contenders.itertuples():
        served = row.held_out_rejected < len(advice.held_out)
        rates = (row.fitted_goodput_rps, row.held_out_goodput_rps)
        table.add_row(
            escape(row.name),
            str(row.graphs),
            f"{row.compile_s:,.0f}",
            f"{row.fitted_bound_s:,.0f}",
            f"{row.fitted_busy_s:,.0f}",
            f"{row.held_out_busy_s:,.0f}",
            latency_cell(row.held_out_p95_e2el_s, ",.0f", row.held_out_saturated, served),
            f"{row.held_out_fill:.0%}" if served else "-",
            str(row.held_out_rejected),
            *(f"{rps:.3g}" for rps in rates if by_goodput),
            style="bold" if row.advised else None,
        )
    return table
