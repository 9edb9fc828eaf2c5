"""Static and continuous batching side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spyre_bench.plots.serving import dotted_where_saturated, legend_of_panels, panels_of
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
    stacked_bars,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

PAID = {
    "useful": ("useful", BLUE, ""),
    "idle_rows": ("rows without a token to compute", ORANGE, "///"),
    "prompt_padding": ("padding of prompts", SKY, "..."),
    "wider_shape": ("a wider shape than needed", PURPLE, "\\\\\\"),
    "again": ("computed again", GREY, "---"),
}
SERVED = {
    "tokens_per_s": "output tokens/s",
    "p95_ttft_s": "TTFT, P95 [s]",
    "p95_tpot_s": "TPOT, P95 [s]",
    "p95_e2el_s": "E2EL, P95 [s]",
}
CHUNKED = {"p95_ttft_s": "TTFT, P95 [s]", "p95_tpot_s": "TPOT, P95 [s]"}
MARKS = [(BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (RED, "v")]


@captioned
def kinds_under_load(frame: pd.DataFrame, title: str) -> Axes:
    """Throughput and latency of each kind of batching over the load, a panel each; saturated runs
    are hollow and dotted.

    Returns the first panel.

    `frame`: kind, load (1 is full), saturated, tokens_per_s, p95_ttft_s, p95_tpot_s, p95_e2el_s.
    """
    axes = panels_of(title, SERVED, "load, a share of what static batching serves")
    for column, ax in zip(SERVED, axes, strict=True):
        for number, (kind, group) in enumerate(frame.groupby("kind", sort=False)):
            dotted_where_saturated(ax, group, "load", column, kind, *MARKS[number % len(MARKS)])
        if column != "tokens_per_s":
            ax.set_yscale("log")
            plain_numbers(ax.yaxis)
    return legend_of_panels(axes, frame["saturated"].any())


@captioned
def paid(frame: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """What the device seconds of a request are paid for under each kind of batching; the mark is
    the least that any batching takes on what that kind compiles.

    `frame`: kind, graphs, compile_s, bound_s, and the parts in seconds a request (`useful`, ...).
    """
    ax = new_axes(ax, title, height=1.9 + 0.55 * len(frame))
    places = np.arange(len(frame))
    ends = stacked_bars(ax, places, PAID, frame, height=0.7)
    ax.plot(
        frame["bound_s"],
        places,
        "|",
        color="black",
        markersize=18,
        markeredgewidth=2.5,
        label="bound of its shapes",
    )
    for place, end, row in zip(places, ends, frame.itertuples(), strict=True):
        note(ax, f"{row.graphs} graphs, {row.compile_s:,.0f} s to compile", (end, place), right=4)
    ax.set_yticks(places, frame["kind"])
    ax.set_ylim(places[-1] + 0.6, -0.7)
    ax.set_xlim(0, 1.35 * ends.max())
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("device seconds per request [s]")
    return legend(ax, columns=3)


@captioned
def chunk_lengths(frame: pd.DataFrame, title: str) -> Axes:
    """Longest chunk against how long the first token takes, and how long each further one: a panel
    each.

    Returns the first panel.

    `frame`: chunk_tokens, saturated, p95_ttft_s, p95_tpot_s.
    """
    axes = panels_of(title, CHUNKED, "longest chunk [tokens]")
    for column, ax in zip(CHUNKED, axes, strict=True):
        dotted_where_saturated(ax, frame, "chunk_tokens", column, "continuous", *MARKS[1])
        ax.set_xscale("log", base=2)
        ax.set_xticks(frame["chunk_tokens"], frame["chunk_tokens"].astype(str))
        ax.set_ylim(bottom=0)
    return legend_of_panels(axes, frame["saturated"].any())


@captioned
def kinds_on_servers(frame: pd.DataFrame, title: str) -> Axes:
    """Each kind of batching on a real server (filled) and simulated from constants that were taken
    on that server before (hollow), a panel for each figure.

    Returns the first panel.

    `frame`: kind, run, source ("measured", "simulated"), and the columns of `kinds_under_load`.
    """
    axes = panels_of(title, SERVED, "run")
    runs = list(dict.fromkeys(frame["run"]))
    for column, ax in zip(SERVED, axes, strict=True):
        for number, (kind, group) in enumerate(frame.groupby("kind", sort=False)):
            colour, marker = MARKS[number % len(MARKS)]
            for source, fill in (("measured", "full"), ("simulated", "none")):
                some = group[group["source"] == source]
                places = [runs.index(run) + 0.12 * (2 * number - 1) for run in some["run"]]
                ax.plot(
                    places,
                    some[column],
                    marker,
                    color=colour,
                    fillstyle=fill,
                    markersize=7 if fill == "full" else 11,
                    label=f"{kind}, {source}",
                )
        ax.set_xticks(range(len(runs)), runs)
        ax.set_xlim(-0.6, len(runs) - 0.4)
        ax.set_ylim(bottom=0)
    return legend_of_panels(axes, saturated=False)
