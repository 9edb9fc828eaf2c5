"""What happened while serving: passes, waste, fill and latency under load, hold timers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from spyre_bench.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PASSES,
    PURPLE,
    RED,
    SKY,
    YELLOW,
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

LEDGER = {
    "useful": ("useful", BLUE, ""),
    "batch_pad": ("empty rows (batch pad)", ORANGE, "///"),
    "prompt_pad": ("shorter prompts (prompt pad)", SKY, "..."),
    "bucket_pad": ("up to the bucket's length (bucket pad)", PURPLE, "\\\\\\"),
    "decode_tail": ("finished rows (decode tail)", YELLOW, "xxx"),
    "cap": ("after the longest output (cap)", GREY, "---"),
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
POLICY_MARKS = {
    "best_fit": (BLUE, "o"),
    "length_aware": (GREEN, "s"),
    "skip": (ORANGE, "^"),
    "fcfs": (RED, "v"),
    "continuous": (PURPLE, "D"),
}


@captioned
def pass_timeline(passes: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """Every pass as a bar from its start to its end, one line per batch.

    `passes`: batch, bucket, kind ("prefill" or "decode"), start_s, seconds.
    """
    lines = passes.drop_duplicates("batch")
    ax = new_axes(ax, title, height=1.4 + 0.55 * len(lines))
    for kind, (colour, hatch) in PASSES.items():
        group = passes[passes["kind"] == kind]
        ax.barh(
            group["batch"],
            group["seconds"],
            left=group["start_s"],
            height=0.6,
            color=colour,
            hatch=hatch,
            edgecolor="black",
            linewidth=0.3,
            label=kind,
        )
    _name_batches(ax, lines)
    ax.set_xlabel("time since the first pass [s]; white between passes: the engine waits")
    return legend(ax)


@captioned
def waste_ledger(ledger: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """What each batch computed, split into useful tokens and the kinds of waste.

    `ledger`: batch, bucket, and a column of tokens for each part of the ledger.
    """
    ax = new_axes(ax, title, height=1.9 + 0.55 * len(ledger))
    ends = stacked_bars(ax, ledger["batch"], LEDGER, ledger, height=0.6)
    ax.set_xlim(0, 1.02 * ends.max())
    _name_batches(ax, ledger)
    ax.set_xlabel("token slots computed [tokens]")
    return legend(ax, columns=2)


@captioned
def fill_and_seconds(frame: pd.DataFrame, bound_s: float, title: str, ax: Axes | None = None):
    """Sets of buckets by how full their batches are and how long they take, all requests at once;
    numbered from the fastest. No set takes less than the dashed bound.

    `bound_s`: that bound. `frame`: set, kind (a name of KINDS), fill (0 to 1), busy_s.
    """
    ax = new_axes(ax, title, height=5)
    frame = frame.sort_values("busy_s")
    sides = _free_sides(np.column_stack([frame["fill"], np.log(frame["busy_s"])]))
    for number, (row, side) in enumerate(zip(frame.itertuples(), sides, strict=True), 1):
        colour, marker = KINDS[row.kind]
        ax.plot(
            100 * row.fill,
            row.busy_s,
            marker,
            color=colour,
            markersize=9,
            markeredgecolor="black",
            label=f"{number}: {row.set}",
        )
        note(ax, str(number), (100 * row.fill, row.busy_s), right=12 * side, ha="center")
    ax.axhline(
        bound_s,
        color="black",
        linewidth=1,
        linestyle="--",
        label="bound: any scheduler, any choice of as many buckets",
    )
    ax.margins(x=0.08)
    ax.set_yscale("log")
    ax.set_ylim(0.85 * bound_s, 1.25 * frame["busy_s"].max())
    plain_numbers(ax.yaxis)
    ax.set_xlabel("fill: useful share of the computed token slots [%]; fuller to the right")
    ax.set_ylabel("until all are served [s]; faster below")
    ax.grid(which="minor", axis="y", alpha=0.3)
    return legend(ax, columns=2)


def _free_sides(places: np.ndarray) -> np.ndarray:
    """Of each point [x, y] the side that its nearest neighbour is not on: 1 right, -1 left."""
    scaled = places / np.maximum(np.ptp(places, axis=0), np.finfo(float).tiny)
    away = np.linalg.norm(scaled[:, None] - scaled, axis=2)
    np.fill_diagonal(away, np.inf)
    return np.where(scaled[:, 0] < scaled[away.argmin(axis=1), 0], -1, 1)


@captioned
def ledger_shares(frame: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """What was computed, split into useful slots and the kinds of waste.

    `frame`: group, label, saturated, and the parts of the ledger as shares (`useful_share`, ...)
    of 0 to 1; a bar per row, with what is useful written on it.
    """
    groups = list(dict.fromkeys(frame["group"]))
    places = np.arange(len(frame)) + 0.9 * frame["group"].map(groups.index).to_numpy()
    ax = new_axes(ax, title, height=1.9 + 0.28 * places[-1])
    shares = {part: 100 * frame[f"{part}_share"] for part in LEDGER}
    ends = stacked_bars(ax, places, LEDGER, shares, height=0.8)
    for place, useful in zip(places, frame["useful_share"], strict=True):
        text = f"{useful:.0%}" if 100 * useful > 0.06 * ends.max() else ""  # else too narrow
        note(ax, text, (0, place), right=4, color="white", fontweight="bold")
    for group in groups:
        first = places[(frame["group"] == group).to_numpy()][0]
        note(ax, group, (0, first - 0.5), right=4, fontweight="bold", va="bottom")
    ax.set_yticks(places, frame["label"] + np.where(frame["saturated"], " (saturated)", ""))
    ax.set_ylim(places[-1] + 0.6, -1.3)
    ax.set_xlim(0, 1.01 * ends.max())
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("share of the computed token slots [%]; numbers: useful")
    return legend(ax, columns=2)


@captioned
def latency_under_load(frame: pd.DataFrame, title: str, bands: pd.DataFrame | None = None) -> Axes:
    """TTFT and E2EL of every policy over the load, median and 95th percentile, a panel each;
    saturated runs are hollow and dotted. A shade is P5 to P95 of what passes could take.

    Returns the first panel.

    `frame`: policy, load (1 is full), saturated, median_ttft_s, p95_ttft_s, median_e2el_s,
    p95_e2el_s. `bands`, of some policies: policy, load, and of each latency `low_...` and
    `high_...`.
    """
    return _under_load(frame, LATENCIES, title, "log", bands)


@captioned
def fill_under_load(frame: pd.DataFrame, title: str) -> Axes:
    """Fill, and beside it the busy seconds over the shape bound, of every policy over the load.

    Returns the first panel.

    `frame`: policy, load (1 is full), saturated, fill (0 to 1), busy_over_shape_bound.
    """
    return _under_load(frame, FULLNESS, title, "linear")


def _under_load(
    frame: pd.DataFrame,
    panels: Mapping[str, str],
    title: str,
    scale: str,
    bands: pd.DataFrame | None = None,
) -> Axes:
    axes = panels_of(title, panels, "load, a share of the capacity", sharey=scale == "log")
    for column, ax in zip(panels, axes, strict=True):
        for policy, group in frame.groupby("policy", sort=False):
            dotted_where_saturated(ax, group, "load", column, policy, *POLICY_MARKS[policy])
        for policy, group in () if bands is None or bands.empty else bands.groupby("policy"):
            ends = (group[f"low_{column}"], group[f"high_{column}"])
            colour, shade = POLICY_MARKS[policy][0], f"{policy}, P5 to P95"
            ax.fill_between(group["load"], *ends, color=colour, alpha=0.25, lw=0, label=shade)
        if scale == "log":
            ax.set_yscale("log")
            plain_numbers(ax.yaxis)
    return legend_of_panels(axes, frame["saturated"].any())


@captioned
def hold_timers(frame: pd.DataFrame, title: str) -> Axes:
    """What a hold timer does on each set of buckets: batches, busy time and latency, a panel each.

    Returns the first panel.

    `frame`: set, max_wait_s, saturated, batches, utilisation (0 to 1), median_e2el_s, p95_e2el_s.
    """
    axes = panels_of(title, HOLDING, "hold timer max_wait [s]")
    for column, ax in zip(HOLDING, axes, strict=True):
        for number, (name, group) in enumerate(frame.groupby("set", sort=False)):
            style = list(KINDS.values())[number % len(KINDS)]
            dotted_where_saturated(ax, group, "max_wait_s", column, name, *style)
        ax.set_ylim(bottom=0)
    return legend_of_panels(axes, frame["saturated"].any())


def panels_of(
    title: str, panels: Mapping[str, str], xlabel: str, *, sharey: bool = False
) -> list[Axes]:
    """Two panels per line, named by their vertical axes; one in [%] shows shares of 0 to 1."""
    lines = -(-len(panels) // 2)
    _, axes = plt.subplots(
        lines, 2, figsize=(10, 1.2 + 3.0 * lines), sharex=True, sharey=sharey, squeeze=False
    )
    for ax, ylabel in zip(axes.flat, panels.values(), strict=True):
        new_axes(ax, "")
        ax.set_ylabel(ylabel)
        if "[%]" in ylabel:
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    for ax in axes[-1]:
        ax.set_xlabel(xlabel)
    axes[0, 0].set_title(title)
    return list(axes.flat)


def dotted_where_saturated(ax, frame, x, y, label, colour, marker) -> None:
    """A line with filled markers; hollow and dotted where the run is saturated."""
    ax.plot(frame[x], frame[y], ":", color=colour, linewidth=1.3)
    ax.plot(frame[x], frame[y].where(~frame["saturated"]), "-", color=colour, linewidth=1.8)
    for saturated, fill in ((False, "full"), (True, "none")):
        group = frame[frame["saturated"] == saturated]
        ax.plot(
            group[x],
            group[y],
            marker,
            color=colour,
            fillstyle=fill,
            markersize=6,
            label=None if saturated else label,
        )


def legend_of_panels(axes: list[Axes], saturated: bool) -> Axes:
    """One legend for all panels, unless one name would be all of it; returns the first."""
    handles, labels = axes[0].get_legend_handles_labels()
    if saturated:
        handles.append(Line2D([], [], color="black", linestyle=":", marker="o", fillstyle="none"))
        labels.append("saturated: the queue grows")
    if len(labels) > 1:
        axes[0].figure.legend(handles, labels, loc="outside lower left", ncols=3)
    return axes[0]


def _name_batches(ax: Axes, batches: pd.DataFrame) -> None:
    """The vertical axis of a figure with one line per batch, the first on top."""
    numbers = batches["batch"].astype(str)
    ax.set_yticks(batches["batch"], "batch " + numbers + "\n" + batches["bucket"])
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set_ylabel("bucket B,P,N")
