"""Static and continuous batching side by side."""

from __future__ import annotations

import itertools
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
TP_MARKS = ("o", "s", "^", "D")
TODAY, ADVISED = "today", "advised"
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


@captioned
def pareto(
    frame: pd.DataFrame,
    bands: pd.DataFrame,
    measured: pd.DataFrame,
    title: str,
    ax: Axes | None = None,
) -> Axes:
    """What each way to serve on the same cards offers: a small mark for each way and load, filled
    on the line of those that no other beats in both. The shade is P5 to P95 of that line over what
    passes could take, the crosses those of today's and the advised way; stars were measured.

    `frame`: tokens_per_s_per_user, tokens_per_s_per_card, batching, tp, saturated. `bands`: of the
    rows on the front or marked, front, mark ("today", "advised", both or none), low and high of
    both axes, and which of these no other beats (`low_front`, `high_front`). `measured`: label and
    both axes.
    """
    ax = new_axes(ax, title, height=5)
    x, y = "tokens_per_s_per_user", "tokens_per_s_per_card"
    front, steady = bands[bands["front"]].sort_values(x), frame[~frame["saturated"]]
    for number, (batching, rows) in enumerate(steady.groupby("batching", sort=False)):
        colour, _ = MARKS[number % len(MARKS)]
        for mark, (tp, ways) in zip(itertools.cycle(TP_MARKS), rows.groupby("tp")):
            best = front[(front["batching"] == batching) & (front["tp"] == tp)]
            ax.plot(ways[x], ways[y], mark, color=colour, mfc="none", ms=4, alpha=0.4, zorder=2)
            ax.plot(
                best[x], best[y], mark, color=colour, ms=7, zorder=4, label=f"{batching}, TP {tp}"
            )
    ax.plot(front[x], front[y], "-", color="black", lw=1, zorder=3, label="no other is better")
    _shade(ax, front, x, y)
    today, advised = (bands["mark"].str.contains(mark) for mark in (TODAY, ADVISED))
    _mark(ax, bands[today & ~advised], x, y, TODAY, RED, -16)
    _mark(ax, bands[advised & ~today], x, y, ADVISED, GREEN, 16)
    _mark(ax, bands[advised & today], x, y, f"{TODAY} and {ADVISED}", GREEN, 16)
    if len(measured):
        ax.plot(measured[x], measured[y], "*", color="black", ms=13, zorder=6, label="measured")
    for row in measured.to_dict("records"):
        note(ax, row["label"], (row[x], row[y]), right=9)
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("tokens/s per user: output tokens over arrival to last token, median")
    ax.set_ylabel("output tokens/s per card")
    return legend(ax, columns=4)


def _shade(ax: Axes, front: pd.DataFrame, x: str, y: str) -> None:
    """From the best of what slow passes leave of the front to the best of what fast ones make of
    it: over the one line, under the other."""
    low, high = (
        front.loc[front[f"{end}_front"], [f"{end}_{x}", f"{end}_{y}"]].sort_values(f"{end}_{x}")
        for end in ("low", "high")
    )
    if len(low) and len(high):
        ends = [
            np.vstack([(0, it[0, 1]), it, (it[-1, 0], 0)]) for it in map(np.asarray, (low, high))
        ]
        corners = np.concatenate([ends[0], ends[1][::-1]])
        ax.fill(*corners.T, color=GREY, alpha=0.3, lw=0, zorder=1, label="P5 to P95 of that line")


def _mark(ax: Axes, rows: pd.DataFrame, x: str, y: str, mark: str, colour: str, up: float) -> None:
    """A ring, a cross of P5 to P95, and what it is."""
    for row in rows.to_dict("records"):
        style = {"color": colour, "lw": 1.5, "zorder": 5}
        ax.plot([row[f"low_{x}"], row[f"high_{x}"]], [row[y]] * 2, "-", **style)
        ax.plot([row[x]] * 2, [row[f"low_{y}"], row[f"high_{y}"]], "-", **style)
        ax.plot(row[x], row[y], "o", mfc="none", mec=colour, mew=2.5, ms=13, zorder=6)
        said = f"{mark}: {row['label']}"
        note(ax, said, (row[x], row[y]), 10, up, color=colour, weight="bold", zorder=7)
