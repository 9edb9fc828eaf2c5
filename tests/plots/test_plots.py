"""Every figure draws its whole frame and says its units; what it looks like is for people."""

import io
from functools import partial

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.text import Text

from spyre_bench import plots
from spyre_bench.plots.style import plain_numbers

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
LENGTHS = pd.DataFrame(
    {
        "length": np.repeat(["prompt_tokens", "output_tokens", "max_tokens"], 3),
        "level": [0.0, 0.5, 1.0] * 3,
        "tokens": [1, 60, 900, 1, 8, 64, 2, 16, 128],
    }
)
SCHEMES = pd.DataFrame(
    {
        "scheme": ["powers of two", "one shape"],
        "k": [5, 1],
        "padding": [0.3, 0.9],
        "optimal_padding": [0.1, 0.9],
        "held_out_padding": [0.32, 0.88],
        "held_out_optimal_padding": [0.12, 0.88],
        "to_match": [3, 1],
    }
)
CURVE = pd.DataFrame(
    {
        "k": [1, 2, 3],
        "prompts_only_s": [4.0, 2.2, 2.1],
        "device_s": [4.0, 2.0, 1.9],
        "held_out_s": [4.1, 2.1, 2.0],
        "total_s": [4.2, 2.4, 2.5],
    }
)
CHOSEN = pd.DataFrame(
    {
        "batch_size": [4, 8, 8],
        "prompt_length": [256, 64, 64],
        "new_tokens": [32, 8, 8],
        "compile_s": [10.0, 9.0, 9.0],
        "share": [0.25, 0.75, 0.0],
    }
)
REQUESTS = pd.DataFrame({"prompt_tokens": [10, 60, 200], "max_tokens": [2, 8, 30]})
CONTENDERS = pd.DataFrame(
    {
        "name": ["optimum", "one shape"],
        "graphs": [3, 1],
        "advised": [True, False],
        "fitted_busy_s": [2.0, 5.0],
        "held_out_busy_s": [2.2, 5.1],
        "held_out_bound_s": [1.5, 4.0],
        "held_out_p95_e2el_s": [30.0, 9000.0],
        "held_out_saturated": [False, True],
    }
)
WATERFALL = pd.DataFrame(
    {
        "stage": ["work bound", "shape bound", "best_fit"],
        "meaning": ["no shapes", "these buckets", "head first"],
        "seconds": [10.0, 14.0, 13.0],
        "step_s": [10.0, 4.0, -1.0],
    }
)
SETS = pd.DataFrame(
    {
        "set": ["these buckets", "optimum", "one shape"],
        "kind": ["given", "optimum", "baseline"],
        "fill": [0.5, 0.4, 0.2],
        "busy_s": [100.0, 90.0, 300.0],
    }
)
SHARES = pd.DataFrame(
    {
        "group": ["load 0.2", "load 0.2", "load 2"],
        "label": ["best_fit", "fcfs", "fcfs"],
        "saturated": [False, False, True],
        "useful_share": [0.5, 0.25, 0.02],
        "batch_pad_share": [0.25, 0.5, 0.9],
        "prompt_pad_share": [0.25, 0.0, 0.0],
        "bucket_pad_share": [0.0, 0.25, 0.0],
        "decode_tail_share": [0.0, 0.0, 0.08],
        "cap_share": 0.0,
    }
)
CAPACITIES = pd.DataFrame(
    {
        "cards": np.repeat([1, 2, 2], 3),
        "tp": np.repeat([1, 1, 2], 3),
        "deployment": np.repeat(["1 × TP 1", "2 × TP 1", "1 × TP 2"], 3),
        "end": ["fast", "value", "slow"] * 3,
        "capacity_rps_a_card": [0.3, 0.2, 0.1, 0.6, 0.4, 0.0, *[np.nan] * 3],
        "refused": [""] * 6 + ["it does not split over two cards, " + "and so on " * 9] * 3,
    }
)
SHARES_BY_TP = pd.DataFrame(
    {
        "tp": [1, 1, 4, 4],
        "pass": ["prefill", "decode"] * 2,
        "low_s": [1.0, 0.1, 0.5, 0.05],
        "value_s": [2.0, 0.2, 1.0, 0.1],
        "high_s": [3.0, 0.3, 2.0, 0.2],
        "low_share": [0.0, 0.0, 0.1, 0.05],
        "value_share": [0.0, 0.0, 0.4, 0.1],
        "high_share": [0.0, 0.0, 0.7, 0.3],
    }
)
GAINS = pd.DataFrame(
    {"tp": [1, 2, 3], "prefill_gain": [1.0, 1.6, 1.4], "decode_gain": [1.0, 0.9, 0.5]}
)
TORNADO = pd.DataFrame(
    {
        "name": ["overhead per layer in decode", "latency of an all-reduce", "fp16 products"],
        "range": ["0 to 3.6 ms", "50 to 200 µs", "98.3 to 72 TFLOPS"],
        "confidence": ["low to medium", "low", "high to medium"],
        "winner": "2 × TP 1",
        "base_lead": 0.1,
        "fast_lead": [0.2, 0.05, 0.1],
        "slow_lead": [-0.3, 0.15, 0.0999],
        "fast_winner": "2 × TP 1",
        "slow_winner": ["1 × TP 2", "2 × TP 1", "2 × TP 1"],
        "changes": [True, False, False],
    }
)
OFFERS = pd.DataFrame(
    {
        "tokens_per_s_per_user": [2.0, 4.0, 1.0, 9.0],
        "tokens_per_s_per_card": [20.0, 10.0, 5.0, 90.0],
        "batching": ["continuous", "continuous", "static", "static"],
        "tp": [1, 2, 1, 1],
        "saturated": [False, False, False, True],
    }
)
OFFERED = ("tokens_per_s_per_user", "tokens_per_s_per_card")
FRONT = OFFERS.head(2).assign(
    label=["2 × TP 1", "1 × TP 2"],
    front=True,
    mark=["advised", "today"],
    low_front=True,
    high_front=True,
    **{f"low_{axis}": OFFERS[axis] / 2 for axis in OFFERED},
    **{f"high_{axis}": OFFERS[axis] * 2 for axis in OFFERED},
)
MEASURED_THERE = pd.DataFrame({"label": ["a.json"], OFFERED[0]: [3.0], OFFERED[1]: [12.0]})
FIGURES = {
    partial(plots.pareto, bands=FRONT, measured=MEASURED_THERE): (OFFERS, "per user"),
    plots.capacities: (CAPACITIES, "[requests/min]"),
    plots.tornado: (TORNADO, "[requests/min]"),
    plots.gains: (GAINS, "(processes, one thread each)"),
    plots.ledger_shares: (SHARES, "[%]"),
    partial(plots.fill_and_seconds, bound_s=50.0): (SETS, "[%]"),
    plots.lengths: (LENGTHS, "[tokens]"),
    plots.schemes: (SCHEMES, "[%"),
    partial(plots.k_curve, knee=2): (CURVE, "buckets"),
    partial(plots.buckets, requests=REQUESTS): (CHOSEN, "[tokens]"),
    plots.contenders: (CONTENDERS, "[s]"),
    plots.waterfall: (WATERFALL, "[s]"),
    plots.pass_timeline: (PASSES, "[s]"),
    plots.waste_ledger: (LEDGER, "[tokens]"),
    plots.startup_stages: (STAGES, "[s]"),
    partial(plots.growth, factor=2): (GROWTH, "grows by 2"),
    plots.predicted: (PREDICTED, "[s]"),
    plots.break_even: (BREAK_EVEN, "requests"),
}
NAMES = [getattr(figure, "func", figure).__name__ for figure in FIGURES]


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize("figure", FIGURES, ids=NAMES)
def test_every_figure_has_a_caption_of_whole_sentences(figure):
    caption = figure(FIGURES[figure][0], title="It is so").figure.get_label()
    assert caption[0].isupper()
    assert caption.endswith(".")
    assert "`" not in caption  # words for a reader, not for who calls it


def test_what_is_drawn_can_be_read_off_by_series_and_place():
    table = plots.drawn(plots.waste_ledger(LEDGER, title="It is so"))
    useful = table[table["series"] == "useful"]
    assert useful["x"].tolist() == [100, 200]
    assert useful["start"].tolist() == [0, 0]
    assert useful["y"].tolist() == ["batch 0 4,64,32", "batch 1 2,256,64"]
    assert set(table["panel"]) == {"bucket B,P,N"}


def test_points_of_every_panel_are_read_off():
    table = plots.drawn(plots.latency_under_load(LOADED, title="It is so"))
    assert set(table["panel"]) == set(plots.LATENCIES.values())
    named = table[table["series"] != ""]
    assert len(named) == 4 * (~LOADED["saturated"]).sum()


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
        (
            round(bar.get_y() + bar.get_height() / 2, 6),
            round(bar.get_x(), 6),
            round(bar.get_x() + bar.get_width(), 6),
        )
        for bar in ax.patches
        if bar.get_width() > 0
    }


def test_a_pass_lies_on_its_batch_from_its_start_to_its_end():
    assert bars(plots.pass_timeline(PASSES, "")) == {
        (0, 0.0, 0.4),
        (0, 0.5, 0.6),
        (0, 0.7, 0.8),
        (1, 1.0, 1.9),
        (1, 2.0, 2.2),
    }


def test_the_parts_of_a_ledger_lie_end_to_end():
    ax = plots.waste_ledger(LEDGER, "")
    assert {bar for bar in bars(ax) if bar[0] == 1} == {
        (1, 0, 200),
        (1, 200, 250),
        (1, 250, 270),
        (1, 270, 310),
        (1, 310, 316),
    }
    legend = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert not [text for text in legend if "cap" in text]  # no token was: not in the legend


def test_the_stages_of_a_start_lie_end_to_end():
    assert bars(plots.startup_stages(STAGES, "")) == {
        (0, 0, 1),
        (0, 1, 10),
        (0, 10, 10.5),
        (1, 0, 1),
        (1, 1, 3),
        (1, 3, 3.4),
    }


def test_a_bucket_that_never_pays_is_said_to():
    ax = plots.break_even(BREAK_EVEN, "")
    assert ax.get_xscale() == "log"
    assert ax.get_xlim() == (10, 10_000), "around 12 and 1,200, with room for the words"
    some = plots.break_even(BREAK_EVEN.query("bucket == 'b'"), "", among=BREAK_EVEN)
    assert some.get_xlim() == ax.get_xlim(), "one bucket beside the range of all"
    assert [text.get_text() for text in ax.texts] == ["1,200", "never", "12", "never"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_a_law_is_drawn_from_its_least_to_its_largest():
    ax = plots.lengths(LENGTHS, "")
    prompt, answer, asked = ([line.get_xdata()[0], line.get_xdata()[-1]] for line in ax.lines)
    assert [prompt, answer, asked] == [[1, 900], [1, 64], [2, 128]]
    assert ax.lines[0].get_ydata().tolist() == [0, 50, 100]


def test_a_scheme_is_beside_its_optimum_and_what_that_needs():
    ax = plots.schemes(SCHEMES, "")
    places = {line.get_label(): list(line.get_xdata()) for line in ax.lines}
    assert places["the scheme"] == [30, 90]
    assert places["that optimum, held out"] == [12, 88]
    assert texts(ax) == ["optimum needs", "3 graphs", "1 graph"]
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["powers of two\n5 graphs", "one shape\n1 graph"]


def test_the_knee_is_marked_on_the_curve_that_has_the_compile_time():
    ax = plots.k_curve(CURVE, 2, "")
    assert texts(ax) == ["knee: 2"]
    assert ax.texts[0].xy == (2, 2.4)
    assert len(ax.lines) == 5


def test_a_bucket_is_a_corner_and_equal_corners_keep_their_numbers_apart():
    ax = plots.buckets(CHOSEN, REQUESTS, "")
    assert [label.xy for label in ax.texts] == [(256, 32), (64, 8), (64, 8)]
    assert texts(ax) == ["1", "2", "3"]
    assert ax.texts[1].xyann != ax.texts[2].xyann
    legend = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert legend[0] == "1: B 4, P 256, N 32: 25% of requests, compiles 10 s"
    colours = [line.get_color() for line in ax.lines if "B" in str(line.get_label())]
    assert colours[0] != colours[1] == colours[2]


def test_what_is_advised_is_bold_and_a_growing_backlog_has_no_latency():
    ax = plots.contenders(CONTENDERS, "")
    assert [label.get_fontweight() for label in ax.get_yticklabels()] == ["bold", "normal"]
    assert texts(ax) == ["P95 30 s", "backlog grows"]


def test_a_stage_begins_where_the_one_before_ended_and_may_save():
    ax = plots.waterfall(WATERFALL, "")
    added = {bar.get_label(): bar.patches[0] for bar in ax.containers}
    assert added["the work itself"].get_width() == 10
    assert (added["added"].get_x(), added["added"].get_width()) == (10, 4)
    assert (added["saved"].get_x(), added["saved"].get_width()) == (14, -1)
    assert texts(ax) == ["10 s", "14 s (+4)", "13 s (-1)"]


def test_sets_are_numbered_from_the_fastest_at_their_fill():
    ax = plots.fill_and_seconds(SETS, 50.0, "")
    legend = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert legend[:3] == ["1: optimum", "2: these buckets", "3: one shape"]
    assert [(text.get_text(), *text.xy) for text in ax.texts] == [
        ("1", 40.0, 90.0),
        ("2", 50.0, 100.0),
        ("3", 20.0, 300.0),
    ]
    assert ax.get_ylim()[0] < 50.0, "the bound is in the picture"


def test_the_number_of_a_set_stands_where_its_nearest_neighbour_is_not():
    near = pd.DataFrame(
        {
            "set": ["a", "b", "far"],
            "kind": ["baseline"] * 3,
            "fill": [0.2, 0.21, 0.9],
            "busy_s": [90.0, 91.0, 60.0],
        }
    )
    ax = plots.fill_and_seconds(near, 50.0, "")
    sides = {text.get_text(): np.sign(text.get_position()[0]) for text in ax.texts}
    assert sides == {"1": 1, "2": -1, "3": 1}


@pytest.mark.parametrize("ends", [(0.045, 0.28), (1500, 9000), (3, 170), (0.01, 1000)])
def test_a_logarithmic_axis_has_plain_numbers_enough_to_be_read_by(ends):
    _, ax = plt.subplots()
    ax.set_yscale("log")
    ax.set_ylim(ends)
    plain_numbers(ax.yaxis)
    ax.figure.draw_without_rendering()
    texts = [label.get_text() for label in ax.get_yticklabels()]
    inside = [
        text
        for place, text in zip(ax.get_yticks(), texts, strict=True)
        if ends[0] <= place <= ends[1]
    ]
    assert 3 <= len(inside) <= 7
    assert not any("e" in text or "$" in text for text in inside)


def test_shares_lie_end_to_end_and_groups_apart():
    ax = plots.ledger_shares(SHARES, "")
    places = ax.get_yticks()
    assert places[2] - places[1] > places[1] - places[0]
    assert {bar for bar in bars(ax) if bar[0] == places[0]} == {
        (places[0], 0, 50),
        (places[0], 50, 75),
        (places[0], 75, 100),
    }
    assert [label.get_text() for label in ax.get_yticklabels()][2] == "fcfs (saturated)"
    written = [text.get_text() for text in ax.texts]
    assert written == ["50%", "25%", "", "load 0.2", "load 2"], "no figure where it has no room"


def test_a_capacity_reaches_from_the_slow_to_the_fast_end_and_a_refusal_says_why():
    ax = plots.capacities(CAPACITIES, "")
    drawn = [line.get_xdata() for line in ax.lines if len(line.get_xdata())]
    spans = [list(x) for x in drawn if len(x) == 2]
    assert np.allclose(spans, [[6, 18], [0, 36]])
    assert np.allclose([x[0] for x in drawn if len(x) == 1], [12, 24])
    reason, *groups = texts(ax)
    assert reason.startswith("it does not split over two cards")
    assert len(reason) == 80
    assert groups == ["1 card", "2 cards"]
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["1 × TP 1", "2 × TP 1", "1 × TP 2"]
    legend = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert legend == ["engines of 1 card", "engines of 2 cards"]


def test_a_pass_is_beside_what_it_would_take_were_cards_all_that_counted():
    first = plots.all_reduce_shares(SHARES_BY_TP, "It is so")
    seconds, shares = first.figure.axes
    assert first.get_title(loc="left") == "It is so"
    assert "[s]" in seconds.get_ylabel()
    assert "[%" in shares.get_ylabel()
    assert [label.get_text() for label in shares.get_xticklabels()] == ["TP 1", "TP 4"]
    dotted = [list(line.get_ydata()) for line in seconds.lines if line.get_linestyle() == ":"]
    assert dotted[:2] == [[0.2, 0.05], [2.0, 0.5]]
    solid = [list(line.get_ydata()) for line in shares.lines]
    assert solid == [[0, 0.1], [0, 0.4]]
    legend = [text.get_text() for text in first.figure.legends[0].get_texts()]
    assert legend == ["decode", "prefill", "were cards all that counted"]


def test_a_parameter_that_decides_is_bold_and_who_wins_then_is_named():
    ax = plots.tornado(TORNADO, "")
    assert {bar[1:] for bar in bars(ax)} == {(6, 12), (6, 9)}, "what lies right of the lead of 6"
    lost = [bar for bar in ax.patches if bar.get_width() < 0]
    assert sorted(round(bar.get_x() + bar.get_width(), 6) for bar in lost) == [-18, 3]
    assert texts(ax) == ["1 × TP 2"]
    assert [label.get_fontweight() for label in ax.get_yticklabels()] == ["bold", "normal"]
    assert "2 × TP 1" in ax.get_xlabel()


def test_a_parameter_is_called_what_people_call_it_and_one_that_moves_nothing_has_no_row():
    ax = plots.tornado(TORNADO, "")
    first, second = (label.get_text() for label in ax.get_yticklabels())
    assert first == "overhead per layer in decode\n0 to 3.6 ms, confidence low to medium"
    assert second.startswith("latency of an all-reduce\n50 to 200 µs")
    assert ax.get_xlabel().endswith("hardly move it: fp16 products")


def smallest_text(figure) -> float:
    """Points of the smallest text that is drawn."""
    figure.canvas.draw()
    found = figure.findobj(lambda artist: isinstance(artist, Text))
    return min(text.get_fontsize() for text in found if text.get_visible() and text.get_text())


def test_no_text_is_below_nine_points_on_ten_inches():
    figures = [figure(frame, title="It is so") for figure, (frame, _) in FIGURES.items()]
    figures += [plots.all_reduce_shares(SHARES_BY_TP, "x"), plots.hold_timers(HELD, "x")]
    for ax in figures:
        assert ax.figure.get_size_inches()[0] == 10
        assert smallest_text(ax.figure) >= 9, ax.get_xlabel()


def test_the_colours_that_follow_one_another_are_those_for_colour_blind_eyes():
    cycle = [colour["color"] for colour in plt.rcParams["axes.prop_cycle"]]
    assert cycle[:4] == ["#0072B2", "#E69F00", "#009E73", "#CC79A7"]


LOADED = pd.DataFrame(
    {
        "policy": ["best_fit"] * 3 + ["fcfs"] * 3,
        "load": [0.2, 0.6, 1.2] * 2,
        "saturated": [False, False, False, False, True, True],
        "fill": [0.3, 0.4, 0.5, 0.3, 0.35, 0.4],
        "busy_over_shape_bound": [3.0, 2.0, 1.5, 3.1, 2.2, 2.0],
        **{name: [1.0, 2.0, 9.0, 1.0, 50.0, 90.0] for name in plots.LATENCIES},
    }
)
HELD = pd.DataFrame(
    {
        "set": ["a"] * 2 + ["b"] * 2,
        "max_wait_s": [0.0, 10.0] * 2,
        "saturated": False,
        "batches": [100, 50, 90, 80],
        "utilisation": [0.5, 0.4, 0.6, 0.5],
        "median_e2el_s": [1.0, 5.0, 2.0, 6.0],
        "p95_e2el_s": [2.0, 9.0, 3.0, 8.0],
    }
)


@pytest.mark.parametrize(
    ("figure", "frame", "panels", "across"),
    [
        (plots.latency_under_load, LOADED, plots.LATENCIES, "load"),
        (plots.fill_under_load, LOADED, plots.FULLNESS, "load"),
        (plots.hold_timers, HELD, plots.HOLDING, "[s]"),
    ],
)
def test_panels_have_a_title_once_and_units_on_every_axis(figure, frame, panels, across):
    before = frame.copy()
    first = figure(frame, "It is so")
    axes = first.figure.axes
    assert [ax.get_ylabel() for ax in axes] == list(panels.values())
    assert [ax.get_title(loc="left") for ax in axes] == ["It is so"] + [""] * (len(axes) - 1)
    assert all(across in ax.get_xlabel() for ax in axes[-2:])
    assert len(first.figure.legends) == 1
    first.figure.savefig(io.BytesIO())
    pd.testing.assert_frame_equal(frame, before)


def markers(ax, fillstyle: str) -> set[tuple[float, float]]:
    """The points of the lines that have markers of this style."""
    lines = [line for line in ax.lines if line.get_marker() in "osv^D"]
    points = (
        zip(*line.get_data(), strict=True) for line in lines if line.get_fillstyle() == fillstyle
    )
    return {(float(x), float(y)) for some in points for x, y in some}


def test_saturated_points_are_hollow_and_no_solid_line_leads_to_them():
    ax = plots.fill_under_load(LOADED, "")
    assert markers(ax, "none") == {(0.6, 0.35), (1.2, 0.4)}
    assert markers(ax, "full") == {(0.2, 0.3), (0.6, 0.4), (1.2, 0.5)}
    solid = [line.get_ydata() for line in ax.lines if line.get_linestyle() == "-"]
    assert np.isnan(solid[1][1:]).all()
    legend = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert legend == ["best_fit", "fcfs", "saturated: the queue grows"]


def test_where_nothing_is_saturated_the_legend_does_not_speak_of_it():
    ax = plots.hold_timers(HELD, "")
    assert [text.get_text() for text in ax.figure.legends[0].get_texts()] == ["a", "b"]


def test_shares_on_an_axis_read_as_per_cent():
    ax = plots.fill_under_load(LOADED, "")
    assert ax.yaxis.get_major_formatter()(0.35) == "35"


# --- intervals ------------------------------------------------------------------------------------

JUDGED = pd.DataFrame(
    {
        "run": ["load 1"] * 3,
        "figure": ["median_e2el_ms", "p95_e2el_ms", "request_throughput"],
        "low": [900.0, 1900.0, 1.8],
        "point": [1000.0, 2000.0, 2.0],
        "high": [1200.0, 2500.0, 2.1],
        "measured": [1100.0, 2600.0, 2.0],
        "state": ["inside", "outside", "disturbed"],
    }
)


def test_a_prediction_is_a_bar_around_its_point_and_what_came_a_mark_that_says_how():
    ax = plots.predictions(JUDGED, "It is so")
    assert bars(ax) == {(0, -10, 20), (1, -5, 25), (2, -10, 5)}
    marks = {line.get_label(): list(line.get_xdata()) for line in ax.lines}
    assert marks["measured, inside"] == pytest.approx([10])
    assert marks["measured, outside"] == pytest.approx([30])
    assert marks["measured, disturbed"] == pytest.approx([0])
    assert ax.get_yticklabels()[0].get_text() == "load 1: E2EL P50"


def test_pairs_stand_in_the_band_that_was_registered_and_disturbed_ones_are_empty():
    frame = pd.DataFrame({"saving": [0.1, -0.02], "disturbed": [False, True]})
    ax = plots.pairs_saved(frame, (0.06, 0.08, 0.12), "It is so")
    assert (ax.patches[0].get_x(), ax.patches[0].get_width()) == pytest.approx((6, 6))
    marks = {line.get_label(): line for line in ax.lines}
    assert list(marks["its point"].get_xdata()) == pytest.approx([8, 8])
    assert marks["measured"].get_xydata().tolist() == [[10, 1]]
    assert marks["measured, disturbed"].get_xydata().tolist() == [[-2, 2]]
    assert marks["measured, disturbed"].get_markerfacecolor() == "white"


def test_a_band_is_shaded_around_the_line_of_its_policy_in_every_panel():
    policy = LOADED["policy"].iloc[0]
    ends = {f"{end}_{name}": [1.0, 2.0] for name in plots.LATENCIES for end in ("low", "high")}
    bands = pd.DataFrame({"policy": [policy] * 2, "load": [0.5, 1.0], **ends})
    figure = plots.latency_under_load(LOADED, "It is so", bands).figure
    assert [len(ax.collections) for ax in figure.axes] == [1] * len(plots.LATENCIES)
    bare = plots.latency_under_load(LOADED, "It is so", pd.DataFrame()).figure
    assert not any(ax.collections for ax in bare.axes)


def test_the_intervals_of_deployments_have_a_panel_per_figure():
    frame = pd.DataFrame(
        [("2 × TP 1", name, 1.0, 2.0, 4.0) for name in ("goodput_rps_a_card", "p99_ttft_s")],
        columns=["deployment", "figure", "low", "point", "high"],
    )
    ax = plots.intervals(frame, "It is so")
    names = ["goodput per card [requests/min]", "TTFT, P99 [s]"]
    assert [panel.get_xlabel() for panel in ax.figure.axes] == names
    assert list(ax.lines[0].get_xdata()) == [120.0]


def test_a_front_has_a_line_marks_with_crosses_a_shade_and_what_was_measured():
    ax = plots.pareto(OFFERS, FRONT, MEASURED_THERE, "It is so")
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert lines["no other is better"] == [[2, 20], [4, 10]]
    assert lines["measured"] == [[3, 12]]
    assert lines["continuous, TP 2"] == [[4, 10]]
    drawn = [line.get_xydata().tolist() for line in ax.lines]
    assert [[1, 20], [4, 20]] in drawn  # P5 to P95 of the advised one, per user
    assert [[2, 10], [2, 40]] in drawn  # and per card
    assert [9, 90] not in [point for line in drawn for point in line]  # saturated
    assert {text.get_text() for text in ax.texts} == {
        "today: 1 × TP 2",
        "advised: 2 × TP 1",
        "a.json",
    }
    (shade,) = ax.patches
    low, high = [(0, 10), (1, 10), (2, 5), (2, 0)], [(0, 40), (4, 40), (8, 20), (8, 0)]
    assert {*low, *high} == {tuple(at) for at in shade.get_xy().tolist()}


def test_one_setup_that_is_todays_and_the_advised_one_has_one_name():
    marked = FRONT[FRONT["mark"] == "advised"].assign(mark="today, advised")
    ax = plots.pareto(OFFERS, marked, MEASURED_THERE.head(0), "It is so")
    assert [text.get_text() for text in ax.texts] == ["today and advised: 2 × TP 1"]


def test_a_front_without_a_spread_or_a_measurement_has_neither_shade_nor_star():
    bare = FRONT.assign(low_front=False, high_front=False).assign(
        **{f"{end}_{axis}": np.nan for axis in OFFERED for end in ("low", "high")}
    )
    ax = plots.pareto(OFFERS, bare, MEASURED_THERE.head(0), "It is so")
    assert not ax.patches
    assert "measured" not in [line.get_label() for line in ax.lines]


def test_names_are_bars_and_only_numbers_are_joined_by_a_line():
    rows = [
        {"panel": "fill", "series": one, "x": x, "value": 0.5}
        for one in ("seed=0", "seed=1")
        for x in ("skip", "best_fit")
    ]
    over_names = plots.small_multiples(pd.DataFrame(rows), "Fill", "policy")[0]
    assert not over_names.lines
    assert len(over_names.patches) == 4
    assert [text.get_text() for text in over_names.get_yticklabels()] == ["skip", "best_fit"]
    places = sorted(bar.get_y() + bar.get_height() / 2 for bar in over_names.patches)
    assert places == pytest.approx([-0.2, 0.2, 0.8, 1.2])
    numbers = pd.DataFrame(rows).assign(x=[2, 1, 2, 1])
    over_numbers = plots.small_multiples(numbers, "Fill", "rate")[0]
    assert [line.get_xdata().tolist() for line in over_numbers.lines] == [[1, 2], [1, 2]]
    assert not over_numbers.patches
