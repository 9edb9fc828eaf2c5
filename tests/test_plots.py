"""Every figure draws its whole frame and says its units; what it looks like is for people."""

import io
from functools import partial

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from spyre_bench import plots

PASSES = pd.DataFrame(
    {
        "batch": [0, 0, 0, 1, 1],
        "bucket": ["4,64,32"] * 3 + ["2,256,64"] * 2,
        "kind": ["prefill", "decode", "decode", "prefill", "decode"],
        "start_s": [0.0, 0.5, 0.7, 1.0, 2.0],
        "seconds": [0.4, 0.1, 0.1, 0.9, 0.2],
    }
)
LEDGER = pd.DataFrame(
    {
        "batch": [0, 1],
        "bucket": ["4,64,32", "2,256,64"],
        "useful": [100, 200],
        "batch_pad": [0, 50],
        "prompt_pad": [10, 20],
        "bucket_pad": [30, 40],
        "decode_tail": [5, 6],
        "cap": [0, 0],
    }
)
STAGES = pd.DataFrame(
    {"label": ["a", "b"], "load_s": [1, 1], "compile_s": [9, 2], "first_run_s": [0.5, 0.4]}
)
GROWTH = pd.DataFrame(
    {
        "dimension": ["batch size"] * 3 + ["new tokens"] * 3,
        "stage": ["compile cold", "compile warm", "first run"] * 2,
        "ratio": [1.1, 1.0, 2.0, 1.0, 1.2, 1.1],
    }
)
PREDICTED = pd.DataFrame(
    {
        "bucket": ["4,64,32", "8,64,32"],
        "role": ["fitted", "held out"],
        "startup_s": [10.0, 20.0],
        "predicted_s": [11.0, 18.0],
    }
)
BREAK_EVEN = pd.DataFrame(
    {
        "bucket": ["a", "a", "b", "b"],
        "start": ["cold", "warm"] * 2,
        "requests": [1200.0, 12.0, np.inf, np.inf],
    }
)
FIGURES = {
    plots.pass_timeline: (PASSES, "[s]"),
    plots.waste_ledger: (LEDGER, "[tokens]"),
    plots.startup_stages: (STAGES, "seconds"),
    partial(plots.growth, factor=2): (GROWTH, "grows by 2"),
    plots.predicted: (PREDICTED, "[s]"),
    plots.break_even: (BREAK_EVEN, "requests"),
}
NAMES = [getattr(figure, "__name__", "growth") for figure in FIGURES]


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize("figure", FIGURES, ids=NAMES)
def test_every_figure_says_its_finding_and_its_unit_and_leaves_its_frame_alone(figure):
    frame, unit = FIGURES[figure]
    before = frame.copy()
    ax = figure(frame, title="It is so")
    assert ax.get_title(loc="left") == "It is so"
    assert unit in ax.get_xlabel()
    assert ax.figure.legends
    ax.figure.savefig(io.BytesIO())
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize("figure", FIGURES, ids=NAMES)
def test_every_figure_draws_where_it_is_told(figure):
    ax = plt.subplots()[1]
    assert figure(FIGURES[figure][0], title="It is so", ax=ax) is ax
    assert len(plt.get_fignums()) == 1


def bars(ax) -> set[tuple[float, float, float]]:
    """(place, from, to) of each horizontal bar that has a length."""
    return {
        (round(bar.get_y() + bar.get_height() / 2, 6), round(bar.get_x(), 6),
         round(bar.get_x() + bar.get_width(), 6))
        for bar in ax.patches
        if bar.get_width() > 0
    }  # fmt: skip


def test_a_pass_lies_on_its_batch_from_its_start_to_its_end():
    assert bars(plots.pass_timeline(PASSES, "")) == {
        (0, 0.0, 0.4), (0, 0.5, 0.6), (0, 0.7, 0.8), (1, 1.0, 1.9), (1, 2.0, 2.2),
    }  # fmt: skip


def test_the_parts_of_a_ledger_lie_end_to_end():
    ax = plots.waste_ledger(LEDGER, "")
    assert {bar for bar in bars(ax) if bar[0] == 1} == {
        (1, 0, 200), (1, 200, 250), (1, 250, 270), (1, 270, 310), (1, 310, 316),
    }  # fmt: skip
    legend = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert not [text for text in legend if "cap" in text]  # no token was: not in the legend


def test_the_stages_of_a_start_lie_end_to_end():
    assert bars(plots.startup_stages(STAGES, "")) == {
        (0, 0, 1), (0, 1, 10), (0, 10, 10.5), (1, 0, 1), (1, 1, 3), (1, 3, 3.4),
    }  # fmt: skip


def test_a_bucket_that_never_pays_is_said_to():
    ax = plots.break_even(BREAK_EVEN, "")
    assert [text.get_text() for text in ax.texts] == ["1,200", "never", "12", "never"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
