"""Which buckets: lengths, schemes, the k-curve, the chosen regions, and what they are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spyre_bench.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    captioned,
    legend,
    new_axes,
    note,
    plain_numbers,
    token_axis,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

LENGTHS = {
    "prompt_tokens": ("prompt", BLUE, "-"),
    "output_tokens": ("output tokens", RED, "--"),
    "max_tokens": ("output tokens asked for (max_tokens)", GREEN, ":"),
}
BATCHES = ((BLUE, "--"), (RED, "-"), (GREEN, "-."), (PURPLE, ":"), (ORANGE, "--"), (SKY, "-"))


@captioned
def lengths(quantiles: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """The distributions of the lengths as cumulative shares over a logarithmic axis.

    `quantiles`: length (a name of LENGTHS), level (0 to 1, ascending), tokens.
    """
    ax = new_axes(ax, title)
    for name, (label, colour, style) in LENGTHS.items():
        group = quantiles[quantiles["length"] == name]
        ax.plot(
            group["tokens"],
            100 * group["level"],
            color=colour,
            linestyle=style,
            linewidth=2.2,
            label=label,
        )
    token_axis(ax, "x", quantiles["tokens"])
    ax.set_ylim(0, 101)
    ax.set_xlabel("length [tokens]")
    ax.set_ylabel("requests that are no longer [%]")
    return legend(ax)


@captioned
def schemes(compared: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """Padding of each scheme and of the optimum with as many graphs, one line per scheme.

    `compared`: scheme, k, padding, optimal_padding, to_match and, of requests that were not looked
    at, held_out_padding and held_out_optimal_padding; shares from 0 to 1.
    """
    ax = new_axes(ax, title, height=1.9 + 0.5 * len(compared))
    places = np.arange(len(compared))
    ax.hlines(
        places,
        100 * compared["optimal_padding"],
        100 * compared["padding"],
        color=GREY,
        linewidth=3,
        zorder=1,
    )
    for column, label, colour, marker, offset in (
        ("padding", "the scheme", RED, "s", 0),
        ("held_out_padding", "the scheme, held out", RED, "s", 0.26),
        ("optimal_padding", "optimum of as many graphs", BLUE, "o", 0),
        ("held_out_optimal_padding", "that optimum, held out", BLUE, "o", 0.26),
    ):
        ax.plot(
            100 * compared[column],
            places + offset,
            marker,
            color=colour,
            markersize=8,
            fillstyle="none" if offset else "full",
            label=label,
        )
    for place, text in ((-0.7, "optimum needs"), *enumerate(map(_graphs, compared["to_match"]))):
        ax.annotate(text, (1.01, place), xycoords=("axes fraction", "data"), va="center")
    ax.set_yticks(places, [f"{row.scheme}\n{_graphs(row.k)}" for row in compared.itertuples()])
    ax.set_ylim(len(compared) - 0.5, -0.9)
    ax.set_xlim(left=0)
    ax.set_xlabel("padding [% of the computed prompt tokens]")
    return legend(ax, columns=2)


def _graphs(k: int) -> str:
    return f"{k} graph{'s' if k > 1 else ''}"


@captioned
def k_curve(curve: pd.DataFrame, knee: int, title: str, ax: Axes | None = None) -> Axes:
    """Device seconds per request over the number of buckets, and with the compile time on top.

    `curve`: k, device_s, held_out_s, prompts_only_s and total_s, all seconds per request.
    """
    ax = new_axes(ax, title)
    for column, label, colour, style, marker in (
        ("prompts_only_s", "only prompt lengths differ", GREEN, ":", "^"),
        ("device_s", "joint choice", BLUE, "-", "o"),
        ("held_out_s", "joint choice, held out", SKY, "--", "x"),
        ("total_s", "joint choice and its compile time", RED, "-", "s"),
    ):
        ax.plot(
            curve["k"],
            curve[column],
            color=colour,
            linestyle=style,
            marker=marker,
            linewidth=1.8,
            label=label,
        )
    least_s = curve.loc[curve["k"] == knee, "total_s"].item()
    ax.plot(knee, least_s, "o", color="black", fillstyle="none", markersize=16, markeredgewidth=1.8)
    note(ax, f"knee: {knee}", (knee, least_s), up=16, ha="center", fontweight="bold", va="baseline")
    ax.set_yscale("log", subs=())
    plain_numbers(ax.yaxis)
    ax.set_xticks(curve["k"])
    ax.set_xlabel("buckets that are compiled, k")
    ax.set_ylabel("seconds per request [s]")
    return legend(ax, columns=2)


@captioned
def buckets(chosen: pd.DataFrame, requests: pd.DataFrame, title: str, ax: Axes | None = None):
    """Each bucket as the region of requests that it takes, over the requests as dots.

    `chosen`: batch_size, prompt_length, new_tokens, compile_s, share (of the requests, 0 to 1).
    `requests`: prompt_tokens, max_tokens.
    """
    ax = new_axes(ax, title, height=4.4 + 0.22 * len(chosen))
    ax.plot(
        requests["prompt_tokens"],
        requests["max_tokens"],
        ".",
        color="#999999",
        markersize=3,
        alpha=0.5,
        zorder=1,
        rasterized=True,
    )
    token_axis(ax, "x", np.append(requests["prompt_tokens"], chosen["prompt_length"]))
    token_axis(ax, "y", np.append(requests["max_tokens"], chosen["new_tokens"]))
    low_x, low_y = ax.get_xlim()[0], ax.get_ylim()[0]
    corners: list[tuple[int, int]] = []
    for number, row in enumerate(chosen.itertuples(), 1):
        colour, style = BATCHES[int(row.batch_size).bit_length() % len(BATCHES)]
        ax.plot(
            [row.prompt_length, row.prompt_length, low_x],
            [low_y, row.new_tokens, row.new_tokens],
            color=colour,
            linestyle=style,
            linewidth=1.6,
            label=f"{number}: B {row.batch_size}, P {row.prompt_length}, N {row.new_tokens}: "
            f"{row.share:.0%} of requests, compiles {row.compile_s:.0f} s",
        )
        corner = (row.prompt_length, row.new_tokens)
        note(
            ax,
            str(number),
            corner,
            up=-18 * corners.count(corner),
            ha="center",
            zorder=3,
            color=colour,
            bbox={"boxstyle": "circle,pad=0.15", "fc": "white", "ec": colour},
        )
        corners.append(corner)
    ax.set_xlabel("prompt [tokens]")
    ax.set_ylabel("output asked for [tokens]")
    return legend(ax, columns=2)


@captioned
def contenders(frame: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """Device seconds of sets of buckets, replayed, beside the bound of each, and the latency.

    `frame`: name, graphs, advised; fitted_busy_s, held_out_busy_s and held_out_bound_s in seconds a
    request; held_out_p95_e2el_s, which means nothing where held_out_saturated.
    """
    ax = new_axes(ax, title, height=1.9 + 0.55 * len(frame))
    places = np.arange(len(frame))
    for column, label, offset, colour, hatch in (
        ("fitted_busy_s", "fitted half", -0.19, GREY, ""),
        ("held_out_busy_s", "held-out half", 0.19, BLUE, "///"),
    ):
        ax.barh(
            places + offset,
            frame[column],
            height=0.36,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.6,
            label=label,
        )
    ax.plot(
        frame["held_out_bound_s"],
        places + 0.19,
        "|",
        color="black",
        markersize=15,
        markeredgewidth=2.5,
        label="its shape bound: full batches, held out",
    )
    names = [f"{row.name}\n{_graphs(row.graphs)}" for row in frame.itertuples()]
    ax.set_yticks(places, names)
    for place, label, row in zip(places, ax.get_yticklabels(), frame.itertuples(), strict=True):
        label.set_fontweight("bold" if row.advised else "normal")
        latency = f"P95 {row.held_out_p95_e2el_s:,.0f} s"
        end_s = max(row.held_out_busy_s, row.held_out_bound_s)
        note(
            ax,
            "backlog grows" if row.held_out_saturated else latency,
            (end_s, place + 0.19),
            right=6,
        )
    ax.set_ylim(len(frame) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.margins(x=0.12)
    ax.set_xlabel("device seconds per request [s]; bold: advised; P95: latency, held out")
    return legend(ax)


@captioned
def waterfall(stages: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """What each stage adds to the seconds of the one above it.

    `stages`: stage, meaning, seconds, step_s (may be negative).
    """
    ax = new_axes(ax, title, height=1.6 + 0.55 * len(stages))
    places = np.arange(len(stages))
    before_s = stages["seconds"] - stages["step_s"]
    ax.barh(places, before_s, height=0.62, color="#E8E8E8", edgecolor="white")
    for label, where, colour, hatch in (
        ("the work itself", places == 0, BLUE, ""),
        ("added", (places > 0) & (stages["step_s"] >= 0), ORANGE, "///"),
        ("saved", (places > 0) & (stages["step_s"] < 0), GREEN, "..."),
    ):
        if where.any():
            ax.barh(
                places[where],
                stages["step_s"][where],
                left=before_s[where],
                height=0.62,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.6,
                label=label,
            )
    for place, row in zip(places, stages.itertuples(), strict=True):
        step = f" ({row.step_s:+,.0f})" if place else ""
        end_s = max(row.seconds, row.seconds - row.step_s)
        note(ax, f"{row.seconds:,.0f} s{step}", (end_s, place), right=5)
    ax.set_yticks(places, stages["stage"] + "\n" + stages["meaning"])
    ax.set_ylim(len(stages) - 0.5, -0.5)
    ax.margins(x=0.14)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("device seconds until all requests are served [s]")
    return legend(ax)
