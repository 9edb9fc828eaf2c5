"""One function a figure: a tidy frame in, a matplotlib Axes out. Nothing is computed here; what a
figure means is its title, which the caller knows and passes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, PercentFormatter

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# Okabe and Ito's colours, apart for colour-blind eyes; hatches keep them apart in black and white.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, YELLOW, GREY = "#56B4E9", "#D55E00", "#F0E442", "#BBBBBB"
PASSES = {"prefill": (ORANGE, "///"), "decode": (BLUE, "")}
LEDGER = {
    "useful": ("useful", BLUE, ""),
    "batch_pad": ("empty rows (batch pad)", ORANGE, "///"),
    "prompt_pad": ("shorter prompts (prompt pad)", SKY, "..."),
    "bucket_pad": ("up to the bucket's length (bucket pad)", PURPLE, "\\\\\\"),
    "decode_tail": ("finished rows (decode tail)", YELLOW, "xxx"),
    "cap": ("after the longest answer (cap)", GREY, "---"),
}
MARKS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"), (SKY, "v"), (RED, "P"))
STAGES = {
    "load_s": ("load weights", GREY, ""),
    "compile_s": ("compile", ORANGE, "///"),
    "first_run_s": ("first runs", BLUE, "..."),
}
LENGTHS = {
    "prompt_tokens": ("prompt", BLUE, "-"),
    "output_tokens": ("answer", RED, "--"),
    "max_tokens": ("longest answer asked for (max_tokens)", GREEN, ":"),
}
KINDS = {"given": (RED, "D"), "optimum": (BLUE, "o"), "baseline": (GREY, "s")}
LATENCIES = {
    "median_ttft_s": "TTFT, P50 [s]",
    "median_e2el_s": "E2EL, P50 [s]",
    "p95_ttft_s": "TTFT, P95 [s]",
    "p95_e2el_s": "E2EL, P95 [s]",
}
FULLNESS = {"fill": "fill [%]", "busy_over_shape_bound": "busy seconds over the shape bound"}
HOLDING = {
    "batches": "batches",
    "utilisation": "engine is busy [%]",
    "median_e2el_s": "E2EL, P50 [s]",
    "p95_e2el_s": "E2EL, P95 [s]",
}
POLICIES = {
    "best_fit": (BLUE, "o"),
    "length_aware": (GREEN, "s"),
    "skip": (ORANGE, "^"),
    "fcfs": (RED, "v"),
}
BATCHES = ((BLUE, "--"), (RED, "-"), (GREEN, "-."), (PURPLE, ":"), (ORANGE, "--"), (SKY, "-"))


def pass_timeline(passes: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """Every pass as a bar from its start to its end, one line a batch.

    `passes`: batch, bucket, kind ("prefill" or "decode"), start_s, seconds.
    """
    lines = passes.drop_duplicates("batch")
    ax = _axes(ax, title, height=1.4 + 0.55 * len(lines))
    for kind, (colour, hatch) in PASSES.items():
        some = passes[passes["kind"] == kind]
        ax.barh(some["batch"], some["seconds"], left=some["start_s"], height=0.6, color=colour,
                hatch=hatch, edgecolor="black", linewidth=0.3, label=kind)  # fmt: skip
    _name_batches(ax, lines)
    ax.set_xlabel("time since the first pass [s]; white between passes: the engine waits")
    return _legend(ax)


def waste_ledger(ledger: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """What each batch computed, split into useful tokens and the kinds of waste.

    `ledger`: batch, bucket, and a column of tokens for each part of the ledger.
    """
    ax = _axes(ax, title, height=1.9 + 0.55 * len(ledger))
    left = np.zeros(len(ledger))
    for part, (label, colour, hatch) in LEDGER.items():
        tokens = ledger[part].to_numpy()
        if tokens.any():
            ax.barh(ledger["batch"], tokens, left=left, height=0.6, color=colour, hatch=hatch,
                    edgecolor="white", linewidth=0.6, label=label)  # fmt: skip
        left += tokens
    ax.set_xlim(0, 1.02 * left.max())
    _name_batches(ax, ledger)
    ax.set_xlabel("token slots computed [tokens]")
    return _legend(ax, columns=2)


def startup_stages(frame: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """Seconds until ready, stacked by stage, one bar a row.

    `frame`: label, and a column of seconds for each of load_s, compile_s and first_run_s.
    """
    ax = _axes(ax, title, height=1.6 + 0.32 * len(frame))
    left = np.zeros(len(frame))
    for stage, (label, colour, hatch) in STAGES.items():
        seconds = frame[stage].to_numpy()
        ax.barh(frame["label"], seconds, left=left, height=0.7, color=colour, hatch=hatch,
                edgecolor="white", linewidth=0.6, label=label)  # fmt: skip
        left += seconds
    ax.invert_yaxis()
    ax.set_xlabel("seconds")
    return _legend(ax)


def growth(frame: pd.DataFrame, factor: float, title: str, ax: Axes | None = None) -> Axes:
    """By how much each stage grows as one dimension of a bucket grows by `factor`.

    `frame`: dimension, stage, ratio.
    """
    ax = _axes(ax, title)
    dimensions = list(frame["dimension"].unique())
    styles = ((ORANGE, "///"), (SKY, "..."), (BLUE, ""))
    for (stage, some), place, (colour, hatch) in zip(
        frame.groupby("stage", sort=False), (-0.26, 0, 0.26), styles, strict=True
    ):
        places = [dimensions.index(name) + place for name in some["dimension"]]
        ax.bar(places, some["ratio"], width=0.24, color=colour, hatch=hatch,
               edgecolor="white", label=stage)  # fmt: skip
    ax.axhline(1, color="black", linewidth=0.8, label="no growth")
    ax.axhline(factor, color="black", linewidth=0.8, linestyle="--", label="in proportion")
    ax.set_xticks(range(len(dimensions)), dimensions)
    ax.set_xlabel(f"dimension that grows by {factor:g}")
    ax.set_ylabel("seconds, relative to the base bucket")
    return _legend(ax)


def predicted(frame: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """Predicted beside measured seconds, one line a bucket.

    `frame`: bucket, role ("fitted" or "held out"), startup_s (measured), predicted_s.
    """
    ax = _axes(ax, title, height=1.6 + 0.4 * len(frame))
    places = np.arange(len(frame))
    ax.hlines(places, frame["startup_s"], frame["predicted_s"], color=GREY, linewidth=3)
    ax.plot(frame["startup_s"], places, "o", color=BLUE, markersize=8, label="measured")
    ax.plot(frame["predicted_s"], places, "D", color=RED, markersize=8, fillstyle="none",
            markeredgewidth=1.5, label="predicted")  # fmt: skip
    ax.set_yticks(places, frame["bucket"] + "\n" + frame["role"])
    ax.set_ylim(len(frame) - 0.5, -0.5)
    ax.set_xlim(0, 1.1 * frame[["startup_s", "predicted_s"]].to_numpy().max())
    ax.set_xlabel("start-up [s]")
    ax.set_ylabel("bucket B,P,N")
    return _legend(ax)


def break_even(frame: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """After how many requests each bucket has paid for itself; no bar where it never does.

    `frame`: bucket, start ("cold" or "warm"), requests (infinite: never).
    """
    labels = list(dict.fromkeys(frame["bucket"]))
    ax = _axes(ax, title, height=1.6 + 0.6 * len(labels))
    for offset, start, colour, hatch in ((-0.2, "cold", BLUE, "///"), (0.2, "warm", ORANGE, "")):
        some = frame[frame["start"] == start]
        places = [labels.index(label) + offset for label in some["bucket"]]
        requests = some["requests"].replace(np.inf, np.nan)
        bars = ax.barh(places, requests, height=0.38, color=colour, hatch=hatch,
                       edgecolor="white", label=f"{start} start")  # fmt: skip
        texts = ["never" if value == np.inf else f"{value:,.0f}" for value in some["requests"]]
        for bar, text in zip(bars, texts, strict=True):
            width = 0 if np.isnan(bar.get_width()) else bar.get_width()
            ax.annotate(text, (width, bar.get_y() + 0.19), xytext=(4, 0), fontsize=8,
                        textcoords="offset points", va="center")  # fmt: skip
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.margins(x=0.12)
    ax.set_xlabel("requests until the saved seconds equal the start-up seconds")
    ax.set_ylabel("bucket B,P,N")
    return _legend(ax)


def lengths(quantiles: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """The laws of the lengths as cumulative shares over a logarithmic axis.

    `quantiles`: length (a name of LENGTHS), level (0 to 1, ascending), tokens.
    """
    ax = _axes(ax, title)
    for name, (label, colour, style) in LENGTHS.items():
        some = quantiles[quantiles["length"] == name]
        ax.plot(some["tokens"], 100 * some["level"], color=colour, linestyle=style, linewidth=2.2,
                label=label)  # fmt: skip
    _token_axis(ax, "x", quantiles["tokens"])
    ax.set_ylim(0, 101)
    ax.set_xlabel("length [tokens]")
    ax.set_ylabel("requests that are no longer [%]")
    return _legend(ax)


def schemes(compared: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """Padding of each scheme and of the optimum with as many graphs, one line a scheme.

    `compared`: scheme, k, padding, optimal_padding, to_match and, of requests that were not looked
    at, held_out_padding and held_out_optimal_padding; shares from 0 to 1.
    """
    ax = _axes(ax, title, height=1.9 + 0.5 * len(compared))
    places = np.arange(len(compared))
    ax.hlines(places, 100 * compared["optimal_padding"], 100 * compared["padding"], color=GREY,
              linewidth=3, zorder=1)  # fmt: skip
    for column, label, colour, marker, offset in (
        ("padding", "the scheme", RED, "s", 0),
        ("held_out_padding", "the scheme, held out", RED, "s", 0.26),
        ("optimal_padding", "optimum of as many graphs", BLUE, "o", 0),
        ("held_out_optimal_padding", "that optimum, held out", BLUE, "o", 0.26),
    ):
        ax.plot(100 * compared[column], places + offset, marker, color=colour, markersize=8,
                fillstyle="none" if offset else "full", label=label)  # fmt: skip
    for place, text in ((-0.7, "optimum needs"), *enumerate(map(_graphs, compared["to_match"]))):
        ax.annotate(text, (1.01, place), xycoords=("axes fraction", "data"), fontsize=9,
                    va="center")  # fmt: skip
    ax.set_yticks(places, [f"{row.scheme}\n{_graphs(row.k)}" for row in compared.itertuples()])
    ax.set_ylim(len(compared) - 0.5, -0.9)
    ax.set_xlim(left=0)
    ax.set_xlabel("padding [% of the computed prompt tokens]")
    return _legend(ax, columns=2)


def _graphs(k: int) -> str:
    return f"{k} graph{'s' if k > 1 else ''}"


def k_curve(curve: pd.DataFrame, knee: int, title: str, ax: Axes | None = None) -> Axes:
    """Device seconds a request over the number of buckets, and with the compile time on top.

    `curve`: k, device_s, held_out_s, prompts_only_s and total_s, all seconds a request.
    """
    ax = _axes(ax, title)
    for column, label, colour, style, marker in (
        ("prompts_only_s", "only prompt lengths differ", GREEN, ":", "^"),
        ("device_s", "joint choice", BLUE, "-", "o"),
        ("held_out_s", "joint choice, held out", SKY, "--", "x"),
        ("total_s", "joint choice and its compile time", RED, "-", "s"),
    ):
        ax.plot(curve["k"], curve[column], color=colour, linestyle=style, marker=marker,
                linewidth=1.8, label=label)  # fmt: skip
    least_s = curve.loc[curve["k"] == knee, "total_s"].item()
    ax.plot(knee, least_s, "o", color="black", fillstyle="none", markersize=16, markeredgewidth=1.8)
    ax.annotate(f"knee: {knee}", (knee, least_s), xytext=(0, 16), textcoords="offset points",
                ha="center", fontsize=11, fontweight="bold")  # fmt: skip
    ax.set_yscale("log", subs=())
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 4, 5, 7)))
    _plain_numbers(ax.yaxis)
    ax.set_xticks(curve["k"])
    ax.set_xlabel("buckets that are compiled, k")
    ax.set_ylabel("seconds a request [s]")
    return _legend(ax, columns=2)


def buckets(chosen: pd.DataFrame, requests: pd.DataFrame, title: str, ax: Axes | None = None):
    """Each bucket as the region of requests that it takes, over the requests as dots.

    `chosen`: batch_size, prompt_length, new_tokens, compile_s, share (of the requests, 0 to 1).
    `requests`: prompt_tokens, max_tokens.
    """
    ax = _axes(ax, title, height=4.4 + 0.22 * len(chosen))
    ax.plot(requests["prompt_tokens"], requests["max_tokens"], ".", color="#999999", markersize=3,
            alpha=0.5, zorder=1, rasterized=True)  # fmt: skip
    _token_axis(ax, "x", np.append(requests["prompt_tokens"], chosen["prompt_length"]))
    _token_axis(ax, "y", np.append(requests["max_tokens"], chosen["new_tokens"]))
    low_x, low_y = ax.get_xlim()[0], ax.get_ylim()[0]
    sizes = sorted(set(chosen["batch_size"]))
    corners: list[tuple[int, int]] = []
    for number, row in enumerate(chosen.itertuples(), 1):
        colour, style = BATCHES[sizes.index(row.batch_size) % len(BATCHES)]
        ax.plot([row.prompt_length, row.prompt_length, low_x], [low_y, row.new_tokens,
                row.new_tokens], color=colour, linestyle=style, linewidth=1.6,
                label=f"{number}: B {row.batch_size}, P {row.prompt_length}, N {row.new_tokens}: "
                f"{row.share:.0%} of requests, compiles {row.compile_s:.0f} s")  # fmt: skip
        corner = (row.prompt_length, row.new_tokens)
        ax.annotate(str(number), corner, xytext=(0, -18 * corners.count(corner)),
                    textcoords="offset points", ha="center", va="center", fontsize=9, zorder=3,
                    color=colour, bbox={"boxstyle": "circle,pad=0.15", "fc": "white",
                                        "ec": colour})  # fmt: skip
        corners.append(corner)
    ax.set_xlabel("prompt [tokens]")
    ax.set_ylabel("answer asked for [tokens]")
    return _legend(ax, columns=2)


def contenders(frame: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """Device seconds of sets of buckets, replayed, beside the bound of each, and the latency.

    `frame`: name, graphs, advised; fitted_busy_s, held_out_busy_s and held_out_bound_s in seconds a
    request; held_out_p95_e2el_s, which means nothing where held_out_saturated.
    """
    ax = _axes(ax, title, height=1.9 + 0.55 * len(frame))
    places = np.arange(len(frame))
    for column, label, offset, colour, hatch in (
        ("fitted_busy_s", "fitted half", -0.19, GREY, ""),
        ("held_out_busy_s", "held-out half", 0.19, BLUE, "///"),
    ):
        ax.barh(places + offset, frame[column], height=0.36, color=colour, hatch=hatch,
                edgecolor="white", linewidth=0.6, label=label)  # fmt: skip
    ax.plot(frame["held_out_bound_s"], places + 0.19, "|", color="black", markersize=15,
            markeredgewidth=2.5, label="its shape bound: full batches, held out")  # fmt: skip
    names = [f"{row.name}\n{_graphs(row.graphs)}" for row in frame.itertuples()]
    ax.set_yticks(places, names)
    for place, label, row in zip(places, ax.get_yticklabels(), frame.itertuples(), strict=True):
        label.set_fontweight("bold" if row.advised else "normal")
        latency = f"p95 {row.held_out_p95_e2el_s:,.0f} s"
        end_s = max(row.held_out_busy_s, row.held_out_bound_s)
        ax.annotate("backlog grows" if row.held_out_saturated else latency, (end_s, place + 0.19),
                    xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)  # fmt: skip
    ax.set_ylim(len(frame) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.margins(x=0.12)
    ax.set_xlabel("device seconds a request [s]; bold: advised; p95: latency, held out")
    return _legend(ax)


def waterfall(stages: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """What each stage adds to the seconds of the one above it.

    `stages`: stage, meaning, seconds, step_s (may be negative).
    """
    ax = _axes(ax, title, height=1.6 + 0.55 * len(stages))
    places = np.arange(len(stages))
    before_s = stages["seconds"] - stages["step_s"]
    ax.barh(places, before_s, height=0.62, color="#E8E8E8", edgecolor="white")
    for label, some, colour, hatch in (
        ("the work itself", places == 0, BLUE, ""),
        ("added", (places > 0) & (stages["step_s"] >= 0), ORANGE, "///"),
        ("saved", (places > 0) & (stages["step_s"] < 0), GREEN, "..."),
    ):
        if some.any():
            ax.barh(places[some], stages["step_s"][some], left=before_s[some], height=0.62,
                    color=colour, hatch=hatch, edgecolor="white", linewidth=0.6,
                    label=label)  # fmt: skip
    for place, row in zip(places, stages.itertuples(), strict=True):
        step = f" ({row.step_s:+,.0f})" if place else ""
        end_s = max(row.seconds, row.seconds - row.step_s)
        ax.annotate(f"{row.seconds:,.0f} s{step}", (end_s, place), xytext=(5, 0),
                    textcoords="offset points", va="center", fontsize=9)  # fmt: skip
    ax.set_yticks(places, stages["stage"] + "\n" + stages["meaning"])
    ax.set_ylim(len(stages) - 0.5, -0.5)
    ax.margins(x=0.14)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("device seconds until all requests are served [s]")
    return _legend(ax)


def measured_and_simulated(frame: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """Every request of some runs, simulated over measured; on the line they agree.

    `frame`: run, measured_e2el_s, simulated_e2el_s.
    """
    ax = _axes(ax, title, height=5)
    columns = ["measured_e2el_s", "simulated_e2el_s"]
    ends = [frame[columns].min().min() / 1.2, frame[columns].max().max() * 1.2]
    ax.plot(ends, ends, color="black", linewidth=0.8, label="simulated = measured")
    for (run, some), (colour, marker) in zip(
        frame.groupby("run", sort=False), itertools.cycle(MARKS)
    ):
        ax.plot(*(some[name] for name in columns), marker, color=colour, markersize=6,
                markeredgecolor="black", markeredgewidth=0.5, label=run)  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    ax.set_xlim(ends)
    ax.set_ylim(ends)
    ax.set_xlabel("E2EL measured by the client [s]")
    ax.set_ylabel("E2EL simulated [s]")
    return _legend(ax)


def pass_errors(frame: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """How far the single passes of each bucket are from the constant they were simulated with: a
    point each, the bar is the median.

    `frame`: bucket, kind ("prefill" or "decode"), error (0.1: took 10 % longer).
    """
    groups = list(frame.groupby(["bucket", "kind"]))
    ax = _axes(ax, title, height=1.6 + 0.55 * len(groups))
    for place, ((_, kind), some) in enumerate(groups):
        colour, _ = PASSES[kind]
        spread = np.linspace(-0.25, 0.25, len(some))
        ax.plot(100 * some["error"], place + spread, ".", color=colour, markersize=4)
        ax.plot([100 * some["error"].median()] * 2, [place - 0.35, place + 0.35], color="black")
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(groups)), [f"{bucket}\n{kind}" for (bucket, kind), _ in groups])
    ax.invert_yaxis()
    ax.set_xscale("symlog", linthresh=10)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("the pass took longer than its constant by [%]; beyond 10 % the scale is shorter")
    ax.set_ylabel("bucket B,P,N")
    return ax


def fill_and_seconds(frame: pd.DataFrame, bound_s: float, title: str, ax: Axes | None = None):
    """Sets of buckets by how full their batches are and how long they take, all requests at once;
    numbered from the fastest. No set takes less than `bound_s`.

    `frame`: set, kind (a name of KINDS), fill (0 to 1), busy_s.
    """
    ax = _axes(ax, title, height=5)
    for number, row in enumerate(frame.sort_values("busy_s").itertuples(), 1):
        colour, marker = KINDS[row.kind]
        ax.plot(100 * row.fill, row.busy_s, marker, color=colour, markersize=9,
                markeredgecolor="black", label=f"{number}: {row.set}")  # fmt: skip
        side = 1 if number % 2 else -1  # neighbours in speed write to different sides
        ax.annotate(str(number), (100 * row.fill, row.busy_s), xytext=(12 * side, 0), ha="center",
                    textcoords="offset points", va="center", fontsize=11)  # fmt: skip
    ax.axhline(bound_s, color="black", linewidth=1, linestyle="--",
               label="bound: any scheduler, any choice of as many buckets")  # fmt: skip
    ax.margins(x=0.08)
    ax.set_yscale("log")
    ax.set_ylim(0.85 * bound_s, 1.25 * frame["busy_s"].max())
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.yaxis.set_minor_formatter("{x:,.0f}")
    ax.set_xlabel("fill: useful share of the computed token slots [%]; fuller to the right")
    ax.set_ylabel("until all are served [s]; faster below")
    ax.grid(which="minor", axis="y", alpha=0.3)
    return _legend(ax, columns=2)


def ledger_shares(frame: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """What was computed, split into useful slots and the kinds of waste, one bar a row, in groups.

    `frame`: group, label, saturated, and the parts of the ledger as shares (`useful_share`, ...)
    of 0 to 1; what is useful is written on its bar.
    """
    groups = list(dict.fromkeys(frame["group"]))
    places = np.arange(len(frame)) + 0.9 * frame["group"].map(groups.index).to_numpy()
    ax = _axes(ax, title, height=1.9 + 0.28 * places[-1])
    left = np.zeros(len(frame))
    for part, (label, colour, hatch) in LEDGER.items():
        shares = 100 * frame[f"{part}_share"].to_numpy()
        if shares.any():
            ax.barh(places, shares, left=left, height=0.8, color=colour, hatch=hatch,
                    edgecolor="white", linewidth=0.6, label=label)  # fmt: skip
        left += shares
    for place, useful in zip(places, frame["useful_share"], strict=True):
        text = f"{useful:.0%}" if 100 * useful > 0.06 * left.max() else ""  # else too narrow
        ax.annotate(text, (0, place), xytext=(4, 0), textcoords="offset points",
                    va="center", fontsize=9, color="white", fontweight="bold")  # fmt: skip
    for group in groups:
        first = places[(frame["group"] == group).to_numpy()][0]
        ax.annotate(group, (0, first - 0.5), xytext=(4, 0), textcoords="offset points", fontsize=9,
                    fontweight="bold", va="bottom")  # fmt: skip
    ax.set_yticks(places, frame["label"] + np.where(frame["saturated"], " (saturated)", ""))
    ax.set_ylim(places[-1] + 0.6, -1.3)
    ax.set_xlim(0, 1.01 * left.max())
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("share of the computed token slots [%]; numbers: useful")
    return _legend(ax, columns=2)


def latency_under_load(frame: pd.DataFrame, title: str) -> Axes:
    """TTFT and E2EL of every policy over the load, median and 95th percentile, a panel each;
    saturated runs are hollow and dotted. Returns the first panel.

    `frame`: policy, load (1 is full), saturated, median_ttft_s, p95_ttft_s, median_e2el_s,
    p95_e2el_s.
    """
    return _under_load(frame, LATENCIES, title, "log")


def fill_under_load(frame: pd.DataFrame, title: str) -> Axes:
    """Fill, and beside it the busy seconds over the shape bound, of every policy over the load.
    Returns the first panel.

    `frame`: policy, load (1 is full), saturated, fill (0 to 1), busy_over_shape_bound.
    """
    return _under_load(frame, FULLNESS, title, "linear")


def _under_load(frame: pd.DataFrame, panels: Mapping[str, str], title: str, scale: str) -> Axes:
    axes = _panels(title, panels, "load, a share of the capacity", sharey=scale == "log")
    for column, ax in zip(panels, axes, strict=True):
        for policy, some in frame.groupby("policy", sort=False):
            _dotted_where_saturated(ax, some, "load", column, policy, *POLICIES[policy])
        if scale == "log":
            ax.set_yscale("log")
            _plain_numbers(ax.yaxis)
    return _legend_of_panels(axes, frame["saturated"].any())


def hold_timers(frame: pd.DataFrame, title: str) -> Axes:
    """What a hold timer does on each set of buckets: batches, busy time and latency, a panel each.
    Returns the first panel.

    `frame`: set, max_wait_s, saturated, batches, utilisation (0 to 1), median_e2el_s, p95_e2el_s.
    """
    axes = _panels(title, HOLDING, "hold timer max_wait_s [s]")
    for column, ax in zip(HOLDING, axes, strict=True):
        for number, (name, some) in enumerate(frame.groupby("set", sort=False)):
            style = list(KINDS.values())[number % len(KINDS)]
            _dotted_where_saturated(ax, some, "max_wait_s", column, name, *style)
        ax.set_ylim(bottom=0)
    return _legend_of_panels(axes, frame["saturated"].any())


def _panels(
    title: str, panels: Mapping[str, str], xlabel: str, *, sharey: bool = False
) -> list[Axes]:
    """Two panels a line, named by their vertical axes; one in [%] shows shares of 0 to 1."""
    lines = -(-len(panels) // 2)
    _, axes = plt.subplots(lines, 2, figsize=(9, 1.2 + 2.7 * lines), sharex=True,
                           sharey=sharey, squeeze=False, layout="constrained")  # fmt: skip
    for ax, ylabel in zip(axes.flat, panels.values(), strict=True):
        _axes(ax, "")
        ax.set_ylabel(ylabel)
        if "[%]" in ylabel:
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    for ax in axes[-1]:
        ax.set_xlabel(xlabel)
    axes[0, 0].set_title(title, loc="left", fontsize=11)
    return list(axes.flat)


def _dotted_where_saturated(ax, frame, x, y, label, colour, marker) -> None:
    """A line with filled markers; hollow and dotted where the run is saturated."""
    ax.plot(frame[x], frame[y], ":", color=colour, linewidth=1.3)
    ax.plot(frame[x], frame[y].where(~frame["saturated"]), "-", color=colour, linewidth=1.8)
    for saturated, fill in ((False, "full"), (True, "none")):
        some = frame[frame["saturated"] == saturated]
        ax.plot(some[x], some[y], marker, color=colour, fillstyle=fill, markersize=6,
                label=None if saturated else label)  # fmt: skip


def _legend_of_panels(axes: list[Axes], saturated: bool) -> Axes:
    """One legend for all panels; returns the first."""
    handles, labels = axes[0].get_legend_handles_labels()
    if saturated:
        handles.append(Line2D([], [], color="black", linestyle=":", marker="o", fillstyle="none"))
        labels.append("saturated: the queue grows")
    axes[0].figure.legend(handles, labels, loc="outside lower left", ncols=3, frameon=False,
                          fontsize=9)  # fmt: skip
    return axes[0]


def _axes(ax: Axes | None, title: str, *, width: float = 8, height: float = 4) -> Axes:
    if ax is None:
        _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.set_title(title, loc="left", fontsize=11)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    ax.grid(alpha=0.3)
    return ax


def _name_batches(ax: Axes, batches: pd.DataFrame) -> None:
    """The vertical axis of a figure with one line a batch, the first on top."""
    numbers = batches["batch"].astype(str)
    ax.set_yticks(batches["batch"], "batch " + numbers + "\n" + batches["bucket"])
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set_ylabel("bucket B,P,N")


def _legend(ax: Axes, columns: int = 3) -> Axes:
    """Below the axes, where it covers no data."""
    ax.figure.legend(*ax.get_legend_handles_labels(), loc="outside lower left", ncols=columns,
                     frameon=False, fontsize=9)  # fmt: skip
    return ax


def _token_axis(ax: Axes, axis: str, tokens) -> None:
    """Makes the "x" or "y" axis logarithmic, from a little below the least to above the largest."""
    getattr(ax, f"set_{axis}scale")("log", base=2)
    getattr(ax, f"set_{axis}lim")(0.8 * np.min(tokens), 1.25 * np.max(tokens))
    _plain_numbers(getattr(ax, f"{axis}axis"))


def _plain_numbers(axis: Axis) -> None:
    """Numbers instead of powers on a logarithmic axis."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")
