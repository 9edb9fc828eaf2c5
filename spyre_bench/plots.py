"""One function a figure: a tidy frame in, a matplotlib Axes out. Nothing is computed here; what a
figure means is its title, which the caller knows and passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

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
STAGES = {
    "load_s": ("load weights", GREY, ""),
    "compile_s": ("compile", ORANGE, "///"),
    "first_run_s": ("first runs", BLUE, "..."),
}


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
