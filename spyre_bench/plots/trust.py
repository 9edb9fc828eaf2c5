"""The simulation beside the measurement."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from spyre_bench.plots.style import (
    BLUE,
    GREEN,
    ORANGE,
    PASSES,
    PURPLE,
    RED,
    SKY,
    captioned,
    legend,
    new_axes,
    plain_numbers,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MARKS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"), (SKY, "v"), (RED, "P"))


@captioned
def measured_and_simulated(
    frame: pd.DataFrame,
    title: str,
    metric: str = "e2el",
    ax: Axes | None = None,
    *,
    among: pd.DataFrame | None = None,
) -> Axes:
    """Every request of some runs, simulated over measured; on the line they agree, below it the
    simulator is optimistic.

    `frame`: run and, for the `metric` e2el, ttft or tpot, measured_e2el_s, simulated_e2el_s.
    `among`: more requests in the same form, whose range the axes have and whose runs the marks
    tell apart, so that pictures of some of them compare.
    """
    ax = new_axes(ax, title, height=5)
    among = frame if among is None else among
    columns = [f"measured_{metric}_s", f"simulated_{metric}_s"]
    ends = [among[columns].min().min() / 1.2, among[columns].max().max() * 1.2]
    marks = dict(zip(among["run"].unique(), itertools.cycle(MARKS), strict=False))
    ax.plot(ends, ends, color="black", linewidth=0.8, label="simulated = measured")
    for run, group in frame.groupby("run", sort=False):
        colour, marker = marks[run]
        ax.plot(
            *(group[name] for name in columns),
            marker,
            color=colour,
            markersize=6,
            markeredgecolor="black",
            markeredgewidth=0.5,
            label=run,
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    for axis in (ax.xaxis, ax.yaxis):
        plain_numbers(axis)
    ax.set_xlim(ends)
    ax.set_ylim(ends)
    ax.set_xlabel(f"{metric.upper()} measured by the client [s]")
    ax.set_ylabel(f"{metric.upper()} simulated [s]; optimistic below")
    return legend(ax)


@captioned
def pass_errors(frame: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """How far the single passes of each bucket or shape are from the constant they were simulated
    with: a point each, the bar is the median.

    `frame`: bucket (or shape), kind ("prefill" or "decode"), error (0.1: took 10 % longer).
    """
    groups = list(frame.groupby(["bucket", "kind"]))
    ax = new_axes(ax, title, height=1.6 + 0.55 * len(groups))
    for place, ((_, kind), group) in enumerate(groups):
        colour, _ = PASSES[kind]
        spread = np.linspace(-0.25, 0.25, len(group))
        ax.plot(100 * group["error"], place + spread, ".", color=colour, markersize=4)
        ax.plot([100 * group["error"].median()] * 2, [place - 0.35, place + 0.35], color="black")
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(groups)), [f"{bucket}\n{kind}" for (bucket, kind), _ in groups])
    ax.invert_yaxis()
    ax.set_xscale("symlog", linthresh=10)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel(
        "the pass took longer than its constant by [%], which was optimistic then; beyond 10 % the "
        "scale is shorter"
    )
    ax.set_ylabel("bucket B,P,N, or shape")
    return ax


@captioned
def predictions(frame: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """What was registered before each run and what came: the bar reaches from P5 to P95, the line
    in it is the point; a filled mark is inside, a red one outside, an empty one of a disturbed run.

    `frame`: run, figure, low, point, high, measured, state (see `validate.check.Check.judged`).
    """
    ax = new_axes(ax, title, height=1.4 + 0.3 * len(frame))
    marks = {"inside": (BLUE, BLUE), "outside": (RED, RED), "disturbed": ("black", "white")}
    low, high = (100 * (frame[end] / frame["point"] - 1) for end in ("low", "high"))
    places = np.arange(len(frame))
    ax.barh(places, high - low, left=low, height=0.6, color=SKY, label="P5 to P95")
    ax.axvline(0, color="black", linewidth=0.8)
    measured = 100 * (frame["measured"] / frame["point"] - 1)
    for state, (edge, face) in marks.items():
        of = (frame["state"] == state).to_numpy()
        if of.any():
            style = {"color": edge, "markerfacecolor": face}
            ax.plot(measured[of], places[of], "D", label=f"measured, {state}", **style)
    words = {"median_e2el_ms": "E2EL P50", "p95_e2el_ms": "E2EL P95"}
    names = frame["figure"].replace({**words, "request_throughput": "requests/s"})
    ax.set_yticks(places, [f"{run}: {name}" for run, name in zip(frame["run"], names, strict=True)])
    ax.invert_yaxis()
    ax.set_xlabel("off the predicted point by [%]")
    return legend(ax, columns=4)


@captioned
def pairs_saved(
    frame: pd.DataFrame, predicted: tuple[float, float, float], title: str, ax: Axes | None = None
) -> Axes:
    """What the second set of shapes saved in each pair of runs, in device seconds (filled where
    nothing disturbed the pair); the band is what was registered before the first, the line in it
    the point.

    `frame`: saving (0.1 is 10 %) and disturbed of each pair. `predicted`: low, point, high.
    """
    ax = new_axes(ax, title, height=1.9 + 0.25 * len(frame))
    low, point, high = (100 * share for share in predicted)
    ax.axvspan(low, high, color=SKY, alpha=0.5, label="registered, P5 to P95")
    ax.axvline(point, color=BLUE, label="its point")
    ax.axvline(0, color="black", linewidth=0.8)
    places, saved = np.arange(1, 1 + len(frame)), 100 * frame["saving"].to_numpy()
    for disturbed, face in ((False, BLUE), (True, "white")):
        of = frame["disturbed"].to_numpy(dtype=bool) == disturbed
        if of.any():
            said = "measured, disturbed" if disturbed else "measured"
            ax.plot(saved[of], places[of], "D", color=BLUE, markerfacecolor=face, label=said)
    ax.set_yticks(places, [f"pair {number}" for number in places])
    ax.set_ylim(len(frame) + 0.6, 0.4)
    ax.set_xlabel("device seconds saved [%]")
    return legend(ax, columns=4)
