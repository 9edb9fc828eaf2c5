"""Many cards: what each division of them serves, what all-reduces take, and what decides."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import PercentFormatter

from spyre_bench.plots.style import (
    BLUE,
    GREEN,
    ORANGE,
    PASSES,
    PURPLE,
    RED,
    captioned,
    legend,
    new_axes,
    note,
    plain_numbers,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

ENGINES = ((BLUE, "o"), (GREEN, "s"), (ORANGE, "^"), (PURPLE, "D"))
MARKS = {"prefill": "s", "decode": "o"}
MINUTE = 60  # seconds; figures of a card are a few requests per minute
UNSEEN = 0.01  # of the widest move: a bar so short is no bar
FIGURES = {
    "goodput_rps_a_card": ("goodput per card [requests/min]", MINUTE),
    "median_ttft_s": ("TTFT, median [s]", 1),
    "p99_ttft_s": ("TTFT, P99 [s]", 1),
}
"""How a figure of a deployment is called, and how many of its unit are one of the table's."""
REASON = 80  # letters of a refusal that fit into the picture


@captioned
def intervals(frame: pd.DataFrame, title: str) -> Axes:
    """Each deployment at one rate, a panel per figure: the bar is P5 to P95 of what the card could
    be, the mark is at the nominal values.

    Returns the first panel.

    `frame`: deployment, figure, low, point, high.
    """
    figures = list(dict.fromkeys(frame["figure"])) or ["nothing is served"]
    height = 1.5 + 0.35 * frame["deployment"].nunique()
    width = plt.rcParams["figure.figsize"][0]
    _, axes = plt.subplots(1, len(figures), figsize=(width, height), sharey=True)
    for figure, ax in zip(figures, np.atleast_1d(axes), strict=True):
        of = frame[frame["figure"] == figure]
        places = range(len(of))
        name, times = FIGURES.get(figure, (figure, 1))
        low, point, high = (times * of[end] for end in ("low", "point", "high"))
        ax.hlines(places, low, high, color=BLUE, linewidth=7, alpha=0.35)
        ax.plot(point, places, "o", color=BLUE)
        ax.set_yticks(places, of["deployment"])
        ax.set_xlabel(name)
        if figure.endswith("_s"):  # a wait that grows with a queue
            ax.set_xscale("log")
            plain_numbers(ax.xaxis)
        else:
            ax.set_xlim(left=0)
    first = np.atleast_1d(axes)[0]
    first.invert_yaxis()
    first.set_title(title)
    return first


@captioned
def capacities(frame: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """Capacity per card of every deployment from the pessimistic to the optimistic end of the
    parameters, with a mark at their nominal values, in groups of as many cards.

    `frame`: cards, tp, deployment, end ("fast", "value", "slow"), capacity_rps_a_card, refused (why
    there is none; empty where there is).
    """
    deployments = list(frame.groupby(["cards", "deployment"], sort=False))
    numbers = list(dict.fromkeys(frame["cards"]))
    places = [n + 0.9 * numbers.index(cards) for n, ((cards, _), _) in enumerate(deployments)]
    ax = new_axes(ax, title, height=1.9 + 0.34 * places[-1])
    styles = dict(zip(sorted(set(frame["tp"])), itertools.cycle(ENGINES), strict=False))
    for place, (_, group) in zip(places, deployments, strict=True):
        tp, refused = group["tp"].iloc[0], group["refused"].iloc[0]
        if refused:
            text = refused if len(refused) <= REASON else f"{refused[: REASON - 1]}…"
            note(ax, text, (0, place), right=6, style="italic")
            continue
        colour, marker = styles[tp]
        at = MINUTE * group.set_index("end")["capacity_rps_a_card"]
        ax.plot(
            [at["slow"], at["fast"]],
            [place] * 2,
            color=colour,
            linewidth=7,
            alpha=0.35,
            solid_capstyle="butt",
        )
        ax.plot(at["value"], place, marker, color=colour, markersize=8)
    for cards in numbers:
        first = next(p for p, ((n, _), _) in zip(places, deployments, strict=True) if n == cards)
        note(
            ax,
            f"{cards} card{'s' if cards > 1 else ''}",
            (0, first - 0.5),
            right=4,
            fontweight="bold",
            va="bottom",
        )
    for tp, (colour, marker) in styles.items():
        ax.plot(
            [],
            [],
            marker=marker,
            color=colour,
            linewidth=7,
            alpha=0.6,
            markersize=8,
            label=f"engines of {tp} card{'s' if tp > 1 else ''}",
        )
    ax.set_yticks(places, [name for (_, name), _ in deployments])
    ax.set_ylim(places[-1] + 0.6, -1.3)
    ax.set_xlim(left=0)
    ax.margins(x=0.05)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("capacity per card [requests/min]; bar: pessimistic to optimistic, mark: nominal")
    ax.set_ylabel("engines × cards")
    return legend(ax, columns=4)


@captioned
def all_reduce_shares(frame: pd.DataFrame, title: str) -> Axes:
    """Seconds of a pass over the cards of an engine, beside what all-reduces take of them, each
    from low to high with a mark at the value.

    Returns the first panel.

    `frame`: tp, pass ("prefill" or "decode"), and low, value and high as `_s` and as `_share` (of
    0 to 1).
    """
    _, axes = plt.subplots(1, 2, sharex=True)
    sizes = sorted(set(frame["tp"]))
    for ax, quantity in zip(axes, ("s", "share"), strict=True):
        for (name, group), shift in zip(frame.groupby("pass"), (-0.08, 0.08), strict=True):
            places = np.array([sizes.index(tp) for tp in group["tp"]]) + shift
            colour, value = PASSES[name][0], group[f"value_{quantity}"]
            ax.vlines(
                places,
                group[f"low_{quantity}"],
                group[f"high_{quantity}"],
                color=colour,
                linewidth=7,
                alpha=0.35,
            )
            ax.plot(places, value, marker=MARKS[name], color=colour, markersize=8, label=name)
            if quantity == "s":
                ax.plot(
                    places, value.iloc[0] * group["tp"].iloc[0] / group["tp"], ":", color=colour
                )
        ax.set_xticks(range(len(sizes)), [f"TP {tp}" for tp in sizes])
        ax.set_xlabel("cards of an engine")
    axes[0].set_yscale("log")
    plain_numbers(axes[0].yaxis)
    axes[0].set_ylabel("seconds of a pass [s]")
    axes[1].set_ylim(0, 1)
    axes[1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    axes[1].set_ylabel("in all-reduces [% of the pass]")
    axes[0].plot([], [], ":", color="black", label="were cards all that counted")
    axes[0].set_title(title)
    return legend(axes[0], columns=4)


@captioned
def tornado(frame: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """How far the winner leads as one parameter at a time moves to its optimistic and its
    pessimistic end; left of the line it has lost, to the deployment that is named there.

    `frame`, the widest move first: name, range, confidence, winner, base_lead, fast_lead,
    slow_lead, fast_winner, slow_winner, changes. Moves that nobody could see are named below the
    axis.
    """
    leads = frame[["base_lead", "fast_lead", "slow_lead"]]
    width = leads.max(axis=1) - leads.min(axis=1)
    seen = frame["changes"] | (width > UNSEEN * width.max())
    frame, left_out = frame[seen], frame[~seen]
    ax = new_axes(ax, title, height=1.9 + 0.5 * len(frame))
    places, base = np.arange(len(frame)), MINUTE * frame["base_lead"]
    for end, word, colour, hatch, shift in (
        ("fast", "optimistic", BLUE, "", -0.18),
        ("slow", "pessimistic", ORANGE, "///", 0.18),
    ):
        lead = MINUTE * frame[f"{end}_lead"]
        ax.barh(
            places + shift,
            lead - base,
            left=base,
            height=0.34,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=f"at its {word} end",
        )
        for place, value, winner in zip(places, lead, frame[f"{end}_winner"], strict=True):
            if value < 0:
                note(ax, winner, (value, place + shift), right=-4, ha="right")
    ax.axvline(0, color=RED, linewidth=1.5, label="left of it another deployment serves more")
    ax.axvline(base.iloc[0], color="black", linewidth=0.8)
    ax.set_yticks(
        places,
        [f"{row.name}\n{row.range}, confidence {row.confidence}" for row in frame.itertuples()],
    )
    for label, changes in zip(ax.get_yticklabels(), frame["changes"], strict=True):
        label.set_fontweight("bold" if changes else "normal")
    ax.set_ylim(len(frame) - 0.5, -0.5)
    ax.margins(x=0.14)
    ax.grid(visible=False, axis="y")
    says = (
        f"capacity per card of {frame['winner'].iloc[0]} above that of the best other "
        f"[requests/min]; bold: it decides"
    )
    if len(left_out):
        says += f"\nhardly move it: {', '.join(left_out['name'])}"
    ax.set_xlabel(says)
    return legend(ax)


@captioned
def gains(frame: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """How much faster passes get with ranks, as measured, and what would be the whole gain.

    `frame`: tp, prefill_gain, decode_gain (1 for the first row).
    """
    ax = new_axes(ax, title)
    ranks = frame["tp"]
    for kind in ("prefill", "decode"):
        ax.plot(ranks, frame[f"{kind}_gain"], f"{MARKS[kind]}-", color=PASSES[kind][0], label=kind)
    ax.plot(ranks, ranks / ranks.iloc[0], "--", color=RED, label="as many times as ranks")
    ax.axhline(1, color="0.6", linewidth=1)
    ax.set_xticks(list(ranks))
    ax.set_ylim(bottom=0)
    ax.set_xlabel("ranks (processes, one thread each)")
    ax.set_ylabel("speed against one rank (1 = the same)")
    return legend(ax)
