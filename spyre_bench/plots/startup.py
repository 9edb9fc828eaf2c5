"""What start-up costs: its stages, its growth, predictions, and when a bucket has paid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spyre_bench.plots.style import (
    BLUE,
    GREY,
    ORANGE,
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

STAGES = {
    "load_s": ("load weights", GREY, ""),
    "compile_s": ("compile", ORANGE, "///"),
    "first_run_s": ("first runs", BLUE, "..."),
}


@captioned
def startup_stages(frame: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """Seconds until ready, stacked by stage, one bar per row.

    `frame`: label, and a column of seconds for each of load_s, compile_s and first_run_s.
    """
    ax = new_axes(ax, title, height=1.6 + 0.32 * len(frame))
    stacked_bars(ax, frame["label"], STAGES, frame, height=0.7)
    ax.set_ylim(len(frame) - 0.5, -0.5)
    ax.set_xlabel("time until ready [s]")
    return legend(ax)


@captioned
def growth(frame: pd.DataFrame, factor: float, title: str, ax: Axes | None = None) -> Axes:
    """By how much each stage grows as one dimension of a bucket grows.

    `frame`: dimension, stage, ratio. `factor`: by how much the dimension grows.
    """
    ax = new_axes(ax, title)
    dimensions = list(frame["dimension"].unique())
    styles = ((ORANGE, "///"), (SKY, "..."), (BLUE, ""))
    for (stage, group), place, (colour, hatch) in zip(
        frame.groupby("stage", sort=False), (-0.26, 0, 0.26), styles, strict=True
    ):
        places = [dimensions.index(name) + place for name in group["dimension"]]
        ax.bar(
            places,
            group["ratio"],
            width=0.24,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=stage,
        )
    ax.axhline(1, color="black", linewidth=0.8, label="no growth")
    ax.axhline(factor, color="black", linewidth=0.8, linestyle="--", label="in proportion")
    ax.set_xticks(range(len(dimensions)), dimensions)
    ax.set_xlabel(f"dimension that grows by {factor:g}")
    ax.set_ylabel("seconds, relative to the base bucket")
    return legend(ax)


@captioned
def predicted(frame: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """Predicted beside measured seconds, one line per bucket.

    `frame`: bucket, role ("fitted" or "held out"), startup_s (measured), predicted_s.
    """
    ax = new_axes(ax, title, height=1.6 + 0.4 * len(frame))
    places = np.arange(len(frame))
    ax.hlines(places, frame["startup_s"], frame["predicted_s"], color=GREY, linewidth=3)
    ax.plot(frame["startup_s"], places, "o", color=BLUE, markersize=8, label="measured")
    ax.plot(
        frame["predicted_s"],
        places,
        "D",
        color=RED,
        markersize=8,
        fillstyle="none",
        markeredgewidth=1.5,
        label="predicted",
    )
    ax.set_yticks(places, frame["bucket"] + "\n" + frame["role"])
    ax.set_ylim(len(frame) - 0.5, -0.5)
    ax.set_xlim(0, 1.1 * frame[["startup_s", "predicted_s"]].to_numpy().max())
    ax.set_xlabel("start-up [s]")
    ax.set_ylabel("bucket B,P,N")
    return legend(ax)


@captioned
def break_even(
    frame: pd.DataFrame, title: str, ax: Axes | None = None, *, among: pd.DataFrame | None = None
) -> Axes:
    """After how many requests, on a logarithmic axis, each bucket has paid for itself; no bar where
    it never does.

    `frame`: bucket, start ("cold" or "warm"), requests (infinite: never). `among`: more buckets in
    the same form, whose range the axis has, so that pictures of some of them compare.
    """
    labels = list(dict.fromkeys(frame["bucket"]))
    ax = new_axes(ax, title, height=1.6 + 0.6 * len(labels))
    least, most = _decades((frame if among is None else among)["requests"])
    for offset, start, colour, hatch in ((-0.2, "cold", BLUE, "///"), (0.2, "warm", ORANGE, "")):
        group = frame[frame["start"] == start]
        places = [labels.index(label) + offset for label in group["bucket"]]
        requests = group["requests"].replace(np.inf, np.nan)
        bars = ax.barh(
            places,
            requests,
            height=0.38,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=f"{start} start",
        )
        texts = ["never" if value == np.inf else f"{value:,.0f}" for value in group["requests"]]
        for bar, text in zip(bars, texts, strict=True):
            width = least if np.isnan(bar.get_width()) else max(least, bar.get_width())
            note(ax, text, (width, bar.get_y() + 0.19), right=4)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.set_xscale("log")
    ax.set_xlim(least, most)
    plain_numbers(ax.xaxis)
    ax.set_xlabel("requests until the saved seconds equal the start-up seconds")
    ax.set_ylabel("bucket B,P,N")
    return legend(ax)


def _decades(requests: pd.Series) -> tuple[float, float]:
    """Whole powers of ten, from 1, that the finite numbers lie between, with room for a word."""
    finite = requests[np.isfinite(requests)].clip(lower=1)
    least, most = (finite.min(), finite.max()) if len(finite) else (1, 1)
    return 10 ** np.floor(np.log10(least)), 10 ** (np.floor(np.log10(2 * most)) + 1)
