"""Panels: a moved control changes the picture, and what goes wrong is to be read in them."""

import asyncio
import base64
import functools
import io
import json
import re
import threading
from dataclasses import replace
from html import unescape
from types import SimpleNamespace
from urllib.parse import parse_qsl

import ipywidgets as widgets
import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from spyre_bench import explore, plots
from spyre_bench.choose.advise import per_request, within
from spyre_bench.choose.advise_shapes import Engine
from spyre_bench.choose.optimize import Limits
from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.cost.card_parameters import with_all_reduce
from spyre_bench.cost.measured import MeasuredCost
from spyre_bench.cost.source import load_cost
from spyre_bench.cost.table import write_cost_table
from spyre_bench.explore import cards, choice, fill, kept, passes, settings, trust
from spyre_bench.explore.result import ALONG, Drawn
from spyre_bench.explore.work import Step
from spyre_bench.metrics import summary, waste
from spyre_bench.policy.continuous import Rules
from spyre_bench.policy.static import Policy
from spyre_bench.shape_set import ShapeSet
from spyre_bench.shapes import Bucket
from spyre_bench.simulate.scenario import Scenario
from spyre_bench.simulate.static import simulate
from spyre_bench.studies import startup, under_load
from spyre_bench.studies import static_or_continuous as kinds
from spyre_bench.studies.advised import advise_at
from spyre_bench.studies.deployments import best, capacities
from spyre_bench.workload.source import load_workload
from tests.cost.test_cost import CORNERS, machine


def parts(box) -> SimpleNamespace:
    """The pieces of a panel: its controls by name, message, figure, note and numbers, and where it
    has long work, the buttons and the bar of it."""
    controls, *work, pins, message, results, note = box.children
    named = {control.description: control for control in controls.children}
    pieces = {"message": message, "note": note, "pinned": result(results.children[0])}
    pieces |= dict(zip(("pin", "unpin"), pins.children, strict=True))
    pieces |= vars(result(results.children[1]))
    if work:
        pieces |= dict(zip(("begin", "bar", "stop", "what"), work[0].children, strict=True))
    return SimpleNamespace(controls=named, **pieces)


def result(box) -> SimpleNamespace:
    """The pieces of a result."""
    settings, figure, caption, folded = box.children
    numbers, along = folded.children
    pieces = {"box": box, "settings": settings, "figure": figure, "caption": caption}
    return SimpleNamespace(**pieces, folded=folded, numbers=numbers, along=along)


def numbers(panel) -> pd.DataFrame:
    """What a panel says that its figure shows."""
    text = unescape(panel.numbers.value.removeprefix("<pre>").removesuffix("</pre>"))
    return pd.read_csv(io.StringIO(text))


# --- the panel itself -----------------------------------------------------------------------------


def draw_bar(height: int):
    if height == 13:
        raise ValueError("height 13 is < 14 & unlucky")
    if height == 14:
        raise KeyError("no <such> row")
    ax = plt.subplots()[1]
    ax.bar(0, height)
    ax.figure.set_label("The height.")
    return Drawn(ax, {"height": height}, "--high")


@pytest.fixture
def bar() -> SimpleNamespace:
    control = widgets.IntSlider(value=3, max=20)
    return parts(explore.panel(draw_bar, {"height": control}, note="only < 20"))


def test_the_first_picture_is_there_before_anything_is_moved(bar):
    assert bytes(bar.figure.value).startswith(b"\x89PNG")
    assert bar.message.value == ""
    assert bar.caption.value == "<i>The height.</i>"
    assert bar.note.value == "only &lt; 20"


def test_a_changed_control_changes_the_picture_and_back(bar):
    first = bar.figure.value
    bar.controls["height"].value = 5
    assert bar.figure.value != first
    bar.controls["height"].value = 3
    assert bar.figure.value == first


@pytest.mark.parametrize("bad", [13, 14])
def test_no_picture_of_other_settings_stays_beside_an_error(bar, bad):
    first = bar.figure.value
    bar.controls["height"].value = bad
    shown = bar.figure.value, bar.caption.value, bar.numbers.value, bar.box.layout.display
    assert shown == (b"", "", "", "none")
    bar.controls["height"].value = 3
    assert bar.message.value == ""
    assert bar.figure.value == first
    assert bar.box.layout.display is None


def test_what_is_meant_for_people_is_a_sentence(bar):
    bar.controls["height"].value = 13
    assert bar.message.value == "<b>height 13 is &lt; 14 &amp; unlucky</b>"


def test_any_other_error_shows_its_type(bar):
    bar.controls["height"].value = 14
    assert bar.message.value.startswith("<b>KeyError: ")
    assert "&lt;such&gt;" in bar.message.value


def test_no_figure_stays_open(bar):
    bar.controls["height"].value = 5
    assert not plt.get_fignums()


def test_the_numbers_beside_the_figure_are_those_that_it_shows(bar):
    bar.controls["height"].value = 5
    (row,) = numbers(bar).itertuples()
    assert (row.x, row.y, row.start) == (0, 5, 0)


# --- a result pinned beside the next --------------------------------------------------------------


def test_a_pinned_result_stays_while_the_next_one_follows_the_controls(bar):
    assert bar.pinned.box.layout.display == bar.unpin.layout.display == "none"
    bar.pin.click()
    bar.controls["height"].value = 5
    assert [numbers(it)["y"].item() for it in (bar.pinned, bar)] == [3, 5]
    assert bar.pinned.settings.value == "Pinned: <b>height: 3</b>"
    assert bar.settings.value == "<b>height: 5</b>"
    bar.unpin.click()
    assert bar.pinned.box.layout.display == "none"
    assert bar.settings.value == ""


def test_beside_each_other_figures_have_axes_of_the_same_range_and_alone_their_own(bar):
    alone = bar.figure.value
    bar.pin.click()
    assert bar.pinned.figure.value == bar.figure.value == alone
    bar.controls["height"].value = 20
    assert bar.pinned.figure.value != alone  # drawn anew, on the longer axis
    assert numbers(bar.pinned)["y"].item() == 3
    bar.controls["height"].value = 3
    assert bar.pinned.figure.value == bar.figure.value == alone


def test_a_pinned_result_stays_when_the_next_one_is_an_error_and_then_nothing_can_be_pinned(bar):
    bar.pin.click()
    bar.controls["height"].value = 13
    assert numbers(bar.pinned)["y"].item() == 3
    assert bar.pinned.settings.value == "Pinned: <b>height: 3</b>"  # not what the controls say
    assert bar.box.layout.display == "none"
    assert bar.pin.disabled
    bar.controls["height"].value = 4
    assert not bar.pin.disabled


def test_an_error_after_the_figure_was_begun_leaves_no_figure():
    def draw(height):
        plt.subplots()
        raise ValueError("too late")

    panel = parts(explore.panel(draw, {"height": widgets.IntSlider()}))
    assert "too late" in panel.message.value
    assert not plt.get_fignums()


# --- what one takes along -------------------------------------------------------------------------


def files(result) -> dict[str, bytes]:
    """The files of a result, by their names."""
    result.folded.selected_index = ALONG
    found = re.findall(r'href="data:[^,]*;base64,([^"]*)" download="([^"]*)"', result.along.value)
    return {name: base64.b64decode(data) for data, name in found}


def test_figure_table_and_configuration_are_files_of_what_is_shown(bar):
    assert bar.along.value == ""  # nobody looks
    found = files(bar)
    assert list(found) == ["panel.png", "panel.svg", "panel.csv", "panel.json"]
    assert found["panel.png"].startswith(b"\x89PNG")
    assert b"<svg" in found["panel.svg"]
    assert pd.read_csv(io.BytesIO(found["panel.csv"]))["y"].item() == 3
    assert json.loads(found["panel.json"]) == {"height": 3}
    command = 'vllm serve MODEL --high --additional-config "$(cat panel.json)"'
    assert command in unescape(bar.along.value)
    bar.controls["height"].value = 5
    assert json.loads(files(bar)["panel.json"]) == {"height": 5}


def test_a_pinned_result_has_files_of_its_own(bar):
    bar.pin.click()
    bar.controls["height"].value = 5
    assert json.loads(files(bar.pinned)["panel.json"]) == {"height": 3}


def test_the_settings_are_a_call_that_makes_the_panel_with_them():
    cell = "explore.how_full(work, costs, rules, 0.5, rate=1) if p.interactive else None"
    values = {"policy": "fcfs", "rate": 0.25}
    assert settings.as_code("how_full", values, cell) == (
        "explore.how_full(work, costs, rules, 0.5, policy='fcfs', rate=0.25)"
    )
    unknown = "explore.how_full(..., policy='fcfs', rate=0.25)"
    assert settings.as_code("how_full", values, "") == unknown
    assert settings.as_code("how_full", values, "%env A=1") == unknown


def test_a_panel_begins_with_the_settings_that_it_is_given(arriving):
    some, capacity_rps = arriving
    given = {"policy": "fcfs", "rate": 0.3 * capacity_rps}
    panel = parts(explore.how_full(some, FOUR_ROWS, Policy(), capacity_rps, **given))
    assert panel.controls["policy"].value == "fcfs"
    assert panel.controls["rate [requests/s]"].value == given["rate"]


def every_kind() -> dict[str, widgets.Widget]:
    """Of control."""
    return {
        "policy": widgets.Dropdown(options=["fcfs", "skip"]),
        "quantity": widgets.Dropdown(options=[("TTFT", "ttft"), ("TPOT", "tpot")]),
        "chunk": widgets.Dropdown(options=[64, 128]),
        "k": widgets.IntSlider(min=1, max=9),
        "rate": widgets.FloatSlider(min=0.0, max=2.0),
    }


@given(
    policy=st.sampled_from(["fcfs", "skip"]),
    quantity=st.sampled_from(["ttft", "tpot"]),
    chunk=st.sampled_from([64, 128]),
    k=st.integers(1, 9),
    rate=st.floats(0, 2),
)
def test_settings_are_the_same_after_the_journey_in_a_link(**values):
    moved = every_kind()
    settings.apply(moved, dict(parse_qsl(settings.as_link(values).removeprefix("?"))))
    assert {name: control.value for name, control in moved.items()} == values


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"nosuch": 1}, "nosuch is no setting of this panel: it has policy, quantity, chunk, k"),
        ({"policy": "lifo"}, "policy = lifo is not one of fcfs, skip"),
        ({"k": "many"}, "k = many is not a whole number"),
        ({"k": 10}, "k = 10 is not from 1 to 9"),
        ({"rate": "nan"}, "rate = nan is not from 0 to 2"),
    ],
)
def test_a_setting_that_no_control_has_is_refused_in_a_sentence(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        settings.apply(every_kind(), wrong)


def test_a_page_begins_with_the_settings_of_its_link_and_offers_one(monkeypatch):
    monkeypatch.setenv(settings.QUERY, "height=5&theme=dark")
    panel = parts(explore.panel(draw_bar, {"height": widgets.IntSlider(value=3, max=20)}))
    assert numbers(panel)["y"].item() == 5
    files(panel)
    assert 'href="?height=5"' in panel.along.value


def test_what_is_wrong_with_a_link_is_a_sentence_and_no_figure_of_other_settings(monkeypatch):
    monkeypatch.setenv(settings.QUERY, "height=50")
    panel = parts(explore.panel(draw_bar, {"height": widgets.IntSlider(value=3, max=20)}))
    assert panel.message.value == "<b>in the link: height = 50 is not from 0 to 20</b>"
    assert panel.box.layout.display == "none"
    panel.controls["height"].value = 4
    assert numbers(panel)["y"].item() == 4


# --- long work ------------------------------------------------------------------------------------


class Building:
    """Long work in three steps, the second of which waits until it is let go."""

    def __init__(self):
        self.reached, self.let_go, self.ended = threading.Event(), threading.Event(), False

    def steps(self, height: int):
        yield Step(0.0, "begins")
        self.reached.set()
        yield Step(0.5, "half of it")
        assert self.let_go.wait(60)
        if height == 9:
            raise ValueError("9 is too high")
        self.ended = True
        return functools.partial(draw_bar, 10 * height)


@pytest.fixture
def building() -> Building:
    return Building()


@pytest.fixture
def built(building) -> SimpleNamespace:
    control = widgets.IntSlider(value=1, max=20)
    return parts(explore.panel(draw_bar, {"height": control}, "", ("Build", building.steps)))


async def until(condition) -> None:
    """Lets the loop turn, as a kernel's does between two messages."""
    for _ in range(12000):  # a machine that does much else takes its time
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("waited a minute")


def test_long_work_is_not_shown_before_it_is_asked_for(built):
    assert built.bar.layout.display == built.stop.layout.display == "none"
    assert not built.begin.disabled


def test_long_work_shows_how_far_it_is_and_then_its_picture(built, building):
    async def use():
        built.begin.click()
        await until(lambda: built.bar.value == 0.5)
        assert built.what.value == "half of it"
        assert built.bar.layout.display is None
        assert built.begin.disabled
        assert numbers(built)["y"].item() == 1
        building.let_go.set()
        await until(lambda: not built.begin.disabled)

    asyncio.run(use())
    assert numbers(built)["y"].item() == 10
    assert built.bar.layout.display == "none"
    assert not plt.get_fignums()


def test_cancelled_work_shows_nothing_even_when_its_step_ends_later(built, building):
    async def use():
        built.begin.click()
        await until(lambda: built.bar.value == 0.5)
        built.stop.click()
        await until(lambda: built.what.value == "cancelled")
        assert not built.begin.disabled
        building.let_go.set()
        await until(lambda: building.ended)

    asyncio.run(use())
    assert numbers(built)["y"].item() == 1


def test_a_moved_control_ends_the_work_that_was_for_its_old_value(built, building):
    async def use():
        built.begin.click()
        await until(building.reached.is_set)
        built.controls["height"].value = 4
        building.let_go.set()
        await until(lambda: built.what.value == "cancelled")

    asyncio.run(use())
    assert numbers(built)["y"].item() == 4


def test_what_is_wrong_with_long_work_is_a_sentence_and_it_can_begin_anew(built, building):
    building.let_go.set()

    async def use():
        built.controls["height"].value = 9
        built.begin.click()
        await until(lambda: not built.begin.disabled)
        assert built.message.value == "<b>9 is too high</b>"
        built.controls["height"].value = 2
        built.begin.click()
        await until(lambda: not built.begin.disabled)

    asyncio.run(use())
    assert built.message.value == ""
    assert numbers(built)["y"].item() == 20


# --- 00_first_look --------------------------------------------------------------------------------


def batch(number: int, bucket: str, rows: int, seconds: float) -> list[dict]:
    """A prefill and two decode passes for so many rows, a second apart from the next batch."""
    return [
        {
            "batch": number,
            "bucket": bucket,
            "kind": "decode" if step else "prefill",
            "step": step,
            "start_s": number + 0.2 * step,
            "seconds": seconds,
            "prompt_tokens": [10] * rows,
            "running": rows,
        }
        for step in range(3)
    ]


def some_passes() -> pd.DataFrame:
    return pd.DataFrame(
        batch(0, "4,64,16", 4, 0.1) + batch(1, "2,128,16", 2, 0.2) + batch(2, "4,64,16", 1, 0.1)
    )


@pytest.fixture
def ran() -> pd.DataFrame:
    return some_passes()


def test_every_control_of_the_first_look_changes_its_picture(ran):
    panel = parts(explore.first_look(ran))
    seen = {panel.figure.value}
    for name, value in (("show", "waste"), ("bucket", "4,64,16"), ("first batches", 1)):
        panel.controls[name].value = value
        assert panel.message.value == ""
        seen.add(panel.figure.value)
    assert len(seen) == 4


def test_the_first_look_shows_the_passes_of_the_first_batches_of_a_bucket(ran):
    panel = parts(explore.first_look(ran))
    panel.controls["bucket"].value = "4,64,16"
    assert set(numbers(panel)["y"]) == {"batch 0 4,64,16", "batch 2 4,64,16"}
    panel.controls["first batches"].value = 1
    shown = numbers(panel)
    assert set(shown["y"]) == {"batch 0 4,64,16"}
    assert shown["start"].tolist() == pytest.approx([0, 0.2, 0.4])
    assert shown["x"].tolist() == pytest.approx([0.1, 0.3, 0.5])


def test_the_title_of_the_first_look_is_that_of_the_ledger(ran):
    ax = passes.draw_batches(ran, "waste", "4,64,16", 2).axes
    ledger = waste.waste(ran[ran["bucket"] == "4,64,16"])
    fill_share = ledger["useful"].sum() / ledger["computed"].sum()
    assert ax.get_title(loc="left").startswith(f"2 batches of 4,64,16: {fill_share:.0%} of ")
    ax = passes.draw_batches(ran, "passes", "2,128,16", 3).axes
    title = ax.get_title(loc="left")
    assert title == "1 batch of 2,128,16: 0.60 s in passes, 67% of it decoding"
    plt.close("all")


# --- 01_which_buckets -----------------------------------------------------------------------------


@pytest.fixture
def chosen_for(tmp_path) -> SimpleNamespace:
    """Parameters of the notebook, on a table of a machine that obeys the closed form."""
    write_cost_table(tmp_path / "cost.csv", machine(*CORNERS))  # P to 1024, N to 512
    return SimpleNamespace(
        workload="azure_conv",
        requests=300,
        length_scale=0.2,
        max_tokens="multiple:2",
        cost=str(tmp_path / "cost.csv"),
        seed=0,
        warmup_budget_s=0.0,
        arrivals="poisson:1",
        load=0.1,
        policy="best_fit",
    )


def test_every_control_of_the_choice_changes_its_picture(chosen_for):
    panel = parts(explore.which_buckets(chosen_for, 3))
    budget = panel.controls["warmup budget [s], 0: none"]
    seen = {panel.figure.value}
    for control, value in (
        (panel.controls["k"], 2),
        (panel.controls["workload"], "sharegpt"),
        (budget, 11.0),  # one bucket, of 10 s
    ):
        control.value = value
        assert panel.message.value == ""
        seen.add(panel.figure.value)
    assert len(seen) == 4
    assert "at most 600 requests" in panel.note.value


def test_a_budget_too_small_for_any_bucket_is_a_sentence(chosen_for):
    panel = parts(explore.which_buckets(chosen_for, 3))
    panel.controls["warmup budget [s], 0: none"].value = 5.0
    assert "no choice of 3 buckets within a warmup budget of 5 s" in panel.message.value
    assert panel.figure.value == b""


def test_the_panel_shows_the_advised_set_and_says_what_is_left_out(chosen_for):
    table = MeasuredCost(machine(*CORNERS))
    drawn = Scenario.of(chosen_for, workload="azure_conv").load_workload()
    some = within(drawn, table)
    assert len(some) < len(drawn) == 300
    ax = choice.draw_choice(chosen_for, table, "azure_conv", 2, 0.0).axes
    settings = {"batch_sizes": table.batch_sizes, "policy": Policy("best_fit")}
    advice = advise_at(0.1, some, table, Limits(2), **settings, **choice.FEW_CANDIDATES)
    assert advice.buckets != advice.certificate.buckets  # a light load fills no batch
    ours = per_request(advice).query("advised").iloc[0]
    seconds, beyond = ax.get_title(loc="left").split("\n")
    assert f"advised: {ours['held_out_busy_s']:.3f} device seconds" in seconds
    assert f"{1 - len(some) / 300:.0%} of the requests are beyond" in beyond
    labels = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    for label, bucket in zip(labels, advice.buckets, strict=True):
        shape = f"B {bucket.batch_size}, P {bucket.prompt_length}, N {bucket.new_tokens}"
        assert shape in label
    plt.close("all")


def test_for_the_whole_workload_the_title_says_what_the_last_bucket_saves(chosen_for):
    table = MeasuredCost(machine(*CORNERS))
    steps, shares = choice.choose_for_all(chosen_for, table, "azure_conv", 2, 0.0), []
    while True:
        try:
            shares.append(next(steps).share)
        except StopIteration as end:
            ax = end.value().axes
            break
    assert shares == pytest.approx([0, 1 / 3, 2 / 3])
    some = within(Scenario.of(chosen_for, workload="azure_conv").load_workload(), table)
    settings = {"batch_sizes": table.batch_sizes, "policy": Policy("best_fit")}
    one, two = (
        per_request(advise_at(0.1, some, table, Limits(k), **settings)).query("advised").iloc[0]
        for k in (1, 2)
    )
    saved = 1 - two["held_out_busy_s"] / one["held_out_busy_s"]
    title = ax.get_title(loc="left").replace("\n", " ")
    assert title.startswith(f"300 requests, 2 buckets advised: {two['held_out_busy_s']:.3f} ")
    assert f", {saved:.0%} less than with 1, " in title
    plt.close("all")


def test_a_batch_size_has_its_colour_whatever_other_sizes_are_chosen():
    requests = pd.DataFrame({"prompt_tokens": [10, 60], "max_tokens": [5, 30]})
    large = {"batch_size": 8, "prompt_length": 64, "new_tokens": 32, "compile_s": 1, "share": 1}
    small = large | {"batch_size": 2}
    alone, among = (
        plots.buckets(pd.DataFrame(some), requests, "").lines[-1]
        for some in ([large], [small, large])
    )
    assert alone.get_color() == among.get_color()
    plt.close("all")


def test_a_file_shorter_than_the_few_requests_is_no_obstacle(chosen_for, tmp_path):
    trace = tmp_path / "mine.csv"
    load_workload("azure_conv", requests=40, rng=np.random.default_rng(0)).save(trace)
    chosen_for.workload, chosen_for.requests = str(trace), 40
    panel = parts(explore.which_buckets(chosen_for, 2))
    assert panel.figure.value
    assert panel.controls["workload"].value == str(trace)


# --- 02_what_does_warmup_cost ---------------------------------------------------------------------


def some_starts() -> tuple[pd.DataFrame, Bucket]:
    """Predicted starts of eight buckets, each of which takes longer the larger it is."""
    fitted, held_out = startup.corners(Bucket(2, 64, 16), 2)
    rows = [
        {
            "role": role,
            "start": start,
            "bucket": str(bucket),
            "compile_s": seconds,
            "first_run_s": 0.5,
            "startup_s": seconds + 0.5,
            "prefill_s": 1e-4 * bucket.prompt_length,
            "decode_s": 1e-5 * bucket.batch_size * bucket.context_length,
        }
        for role, some in (("fitted", fitted), ("held out", held_out))
        for start, part in (("cold", 1.0), ("warm", 0.1))
        for bucket in some
        for seconds in [part * (2 + 1e-3 * bucket.batch_size * bucket.prompt_length)]
    ]
    return startup.predict(pd.DataFrame(rows)), max(fitted)


@pytest.fixture
def started() -> tuple[pd.DataFrame, Bucket]:
    return some_starts()


def test_every_control_of_the_start_changes_its_picture(started):
    panel = parts(explore.what_warmup_costs(*started))
    seen = {panel.figure.value}
    for name, value in (
        ("buckets beside 4,128,32", 3),
        ("output [tokens]", 20),
        ("start", "warm"),
    ):
        panel.controls[name].value = value
        assert panel.message.value == ""
        seen.add(panel.figure.value)
    assert len(seen) == 4


def test_the_start_is_that_of_the_buckets_that_pay_soonest(started):
    predicted, fallback = started
    panel = parts(explore.what_warmup_costs(predicted, fallback))
    panel.controls["buckets beside 4,128,32"].value = 2
    shown = numbers(panel)
    paid = startup.break_even(predicted, fallback, panel.controls["output [tokens]"].value)
    soonest = paid[paid["start"] == "cold"].nsmallest(2, "requests")
    cold = shown[shown["series"] == "cold start"]
    assert cold["y"].tolist() == soonest["bucket"].tolist()
    assert cold["x"].tolist() == pytest.approx(soonest["requests"].tolist(), rel=1e-5)


# --- 03_how_full_are_batches ----------------------------------------------------------------------

FOUR_ROWS = (BucketCost(Bucket(4, 128, 64), 1.0, 0.1), BucketCost(Bucket(4, 512, 128), 3.0, 0.2))


@pytest.fixture
def arriving():
    """1,200 requests that fit one of the two buckets, and the rate that keeps an engine busy."""
    rng = np.random.default_rng(0)
    drawn = load_workload("azure_conv", requests=1200, rng=rng, arrivals="poisson:1")
    some = under_load.fitting(drawn.scaled(lengths=0.12), FOUR_ROWS)
    return some, under_load.capacity_rps(some, FOUR_ROWS)


def test_every_control_of_the_fill_changes_its_picture(arriving):
    some, capacity_rps = arriving
    panel = parts(explore.how_full(some, FOUR_ROWS, Policy(), capacity_rps))
    seen = {panel.figure.value}
    for name, value in (
        ("policy", "fcfs"),
        ("rate [requests/s]", 0.25 * capacity_rps),
        ("max_wait [s]", 30.0),
    ):
        panel.controls[name].value = value
        assert panel.message.value == ""
        seen.add(panel.figure.value)
    assert len(seen) == 4
    assert not plt.get_fignums()


def test_the_sliders_of_the_fill_wait_until_they_are_let_go(arriving):
    panel = parts(explore.how_full(arriving[0], FOUR_ROWS, Policy(), arriving[1]))
    assert not panel.controls["rate [requests/s]"].continuous_update
    assert not panel.controls["max_wait [s]"].continuous_update


def test_the_panel_says_where_it_simulates_less_than_the_notebook(arriving):
    some, capacity_rps = arriving
    panel = parts(explore.how_full(some, FOUR_ROWS, Policy(), capacity_rps))
    assert f"Only the first 1,000 of {len(some):,} requests" in panel.note.value
    panel = parts(explore.how_full(some.head(50), FOUR_ROWS, Policy(), capacity_rps))
    assert "Only" not in panel.note.value


def test_the_panel_starts_with_the_policy_and_the_timer_of_the_notebook(arriving):
    rules = Policy("skip", max_wait_s=5.0)
    panel = parts(explore.how_full(arriving[0], FOUR_ROWS, rules, arriving[1]))
    assert panel.controls["policy"].value == "skip"
    assert panel.controls["max_wait [s]"].value == 5.0


def test_the_title_of_the_fill_is_that_of_the_run(arriving):
    some, capacity_rps = arriving
    rules = Policy(max_age_s=9.0)
    run = simulate(under_load.at_rate(some, 0.2), FOUR_ROWS, Policy("length_aware", 3.0, 0.0, 9.0))
    ax = fill.draw_fill(some, FOUR_ROWS, rules, capacity_rps, "length_aware", 0.2, 3.0).axes
    first, second = ax.get_title(loc="left").split("\n")
    found = summary.summary(run)
    assert first.startswith(f"length_aware at {0.2 / capacity_rps:.0%} load: {found['fill']:.0%}")
    assert f"{found['batches']:,} batches" in first
    assert f"P95 {found['p95_e2el_ms'] / 1e3:.1f} s" in second
    assert "saturated" not in second
    ax = fill.draw_fill(some, FOUR_ROWS, rules, capacity_rps, "fcfs", 3 * capacity_rps, 0.0).axes
    assert "saturated" in ax.get_title(loc="left")
    plt.close("all")


def test_a_bucket_without_a_batch_keeps_its_place_and_the_axis_its_length(arriving):
    some, capacity_rps = arriving
    costs = (*FOUR_ROWS, BucketCost(Bucket(4, 2048, 128), 90.0, 9.0))  # never the cheapest
    for rate in (0.2 * capacity_rps, 2 * capacity_rps):
        ax = fill.draw_fill(some, costs, Policy(), capacity_rps, "best_fit", rate, 0.0).axes
        names = [label.get_text().split(":")[0] for label in ax.get_yticklabels()]
        assert names == ["4,128,64", "4,512,128", "4,2048,128"]
        assert ax.get_yticklabels()[-1].get_text().endswith(": 0")
        assert ax.get_xlim() == (0, 100)
    plt.close("all")


# --- 04_does_tensor_parallel_pay ------------------------------------------------------------------


@pytest.fixture
def divided() -> SimpleNamespace:
    """Parameters of the notebook."""
    return SimpleNamespace(
        model="granite-3.3-8b",
        workload="fmperf_ibm",
        dtype="fp16",
        cards=[1, 2],
        requests_a_card=50,
        arrivals="poisson:1",
        max_tokens="multiple:2",
        ttft_ms=20_000.0,
        tpot_ms=250.0,
        share=0.9,
        k=3,
        policy="best_fit",
        buckets="",
        all_reduce_us=0.0,
        seed=0,
    )


def test_every_control_of_the_division_changes_its_picture(divided):
    panel = parts(explore.does_tp_pay(divided))
    assert panel.controls["cards"].value == 2
    seen = {panel.figure.value}
    for name, value in (
        ("all-reduce at least [µs], 0: the card's range", 1000.0),
        ("dtype", "fp8"),
        ("workload", "sharegpt"),
        ("model", "llama-3.1-8b"),
        ("cards", 4),
    ):
        panel.controls[name].value = value
        assert panel.message.value == ""
        seen.add(panel.figure.value)
    assert len(seen) == 6
    assert "Modelled, not measured" in panel.note.value
    assert not panel.controls["all-reduce at least [µs], 0: the card's range"].continuous_update


def test_a_model_that_does_not_split_says_so_in_the_picture(divided):
    few = functools.partial(cards.few_deployments, divided)
    ax = cards.draw_deployments(few, "best_fit", "smollm2-135m", 2, "fp16", "fmperf_ibm", 0.0).axes
    assert any("does not split over tp=2" in text.get_text() for text in ax.texts)
    assert "2 × TP 1 serves most at the nominal values" in ax.get_title(loc="left")
    plt.close("all")


def test_given_buckets_are_those_that_the_panel_compiles_everywhere(divided):
    divided.buckets = "4,1024,256 4,4096,512"
    _, found = cards.few_deployments(divided, "granite-3.3-8b", 2, "fp16", "fmperf_ibm")
    given = (Bucket(4, 1024, 256), Bucket(4, 4096, 512))
    assert [it.sets for it in found] == [(given,), (given,)]


def test_the_division_shown_is_that_of_the_capacities(divided):
    few = functools.partial(cards.few_deployments, divided)
    service, found = few("granite-3.3-8b", 2, "fp16", "fmperf_ibm")
    assert len(service.requests(2)) == 2 * cards.FEW_A_CARD
    card = with_all_reduce(700)
    slowed = [replace(it, cost=replace(it.cost, card=card)) for it in found]
    tops = best(capacities(slowed, service)).set_index("end")["deployment"]
    ax = cards.draw_deployments(
        few, "best_fit", "granite-3.3-8b", 2, "fp16", "fmperf_ibm", 700.0
    ).axes
    title = ax.get_title(loc="left")
    assert f"{tops['value']} serves most" in title
    assert f"{tops['slow']} at the pessimistic end, {tops['fast']} at the optimistic" in title
    plt.close("all")


# --- 05_can_we_trust_the_simulator ----------------------------------------------------------------


def some_requests(a_run: int = 5) -> pd.DataFrame:
    """Requests of two runs; the simulation is off by as many per cent as the request's number."""
    n = np.arange(1, 2 * a_run + 1)
    frame = pd.DataFrame({"run": np.repeat(["queued", "load 1"], a_run)})
    for metric in ("ttft", "e2el", "tpot"):
        frame[f"measured_{metric}_s"] = 0.1 * n
        frame[f"error_{metric}"] = n / 100
        frame[f"simulated_{metric}_s"] = frame[f"measured_{metric}_s"] * (1 + n / 100)
    return frame


@pytest.fixture
def compared() -> pd.DataFrame:
    return some_requests()


def test_every_control_of_the_comparison_changes_its_picture(compared):
    panel = parts(explore.trust_the_simulator(compared))
    seen = {panel.figure.value}
    for name, value in (("off by at least [%]", 4.0), ("quantity", "ttft"), ("run", "load 1")):
        panel.controls[name].value = value
        assert panel.message.value == ""
        seen.add(panel.figure.value)
    assert len(seen) == 4


def test_the_comparison_shows_the_requests_that_are_off_by_so_much(compared):
    panel = parts(explore.trust_the_simulator(compared))
    panel.controls["off by at least [%]"].value = 9.0
    shown = numbers(panel)
    points = shown[shown["series"] == "load 1"]
    assert points["x"].tolist() == pytest.approx([0.9, 1.0])
    assert points["y"].tolist() == pytest.approx([0.9 * 1.09, 1.1])
    assert "queued" not in set(shown["series"])
    ax = trust.draw_requests(compared, "every run", "e2el", 9.0).axes
    assert ax.get_title(loc="left").replace("\n", " ") == (
        "E2EL is off by 9.5% either way, +9.5% signed (pessimistic), in the median of the 2 of 10 "
        "requests of every run that are off by 9 % or more"
    )
    plt.close("all")


def test_the_axes_and_the_marks_of_the_comparison_are_the_same_whatever_is_picked_out(compared):
    every = trust.draw_requests(compared, "every run", "e2el", 0.0).axes
    (last,) = compared["run"].unique()[-1:]
    alone = trust.draw_requests(compared, last, "e2el", 0.0).axes
    assert alone.get_xlim() == every.get_xlim()
    marks = [
        {line.get_label(): (line.get_marker(), line.get_color()) for line in ax.lines}
        for ax in (every, alone)
    ]
    assert marks[1][last] == marks[0][last]
    plt.close("all")


def test_where_no_request_is_off_by_so_much_a_sentence_says_how_far_the_furthest_is(compared):
    panel = parts(explore.trust_the_simulator(compared))
    panel.controls["run"].value = "queued"
    panel.controls["off by at least [%]"].value = 6.0
    assert panel.message.value == (
        "<b>no request of queued is off by 6 % or more in E2EL: the furthest is 5.0%</b>"
    )


# --- what the panels of kept runs show ------------------------------------------------------------


def keep(folder, name: str, frame: pd.DataFrame) -> str:
    """As a run keeps a table."""
    (folder / "tables").mkdir(exist_ok=True)
    frame.to_csv(folder / "tables" / f"{name}.csv", index=False)
    return str(folder)


def test_what_a_run_has_kept_is_shown_as_if_it_were_measured_now(tmp_path, ran, compared):
    there = parts(kept.first_look(keep(tmp_path, "passes", ran), bucket="4,64,16"))
    here = parts(explore.first_look(ran, bucket="4,64,16"))
    pd.testing.assert_frame_equal(numbers(there), numbers(here))
    there = parts(kept.trust_the_simulator(keep(tmp_path, "requests", compared)))
    here = parts(explore.trust_the_simulator(compared))
    pd.testing.assert_frame_equal(numbers(there), numbers(here))


def test_the_starts_that_a_run_has_kept_are_predicted_as_in_the_notebook(tmp_path, started):
    predicted, fallback = started
    measured = predicted[["role", "start", "bucket", "compile_s", "first_run_s", "startup_s"]]
    measured = measured.join(predicted[["prefill_s", "decode_s"]])
    there = parts(kept.what_warmup_costs(keep(tmp_path, "starts", measured), output_tokens=9))
    here = parts(explore.what_warmup_costs(predicted, fallback, output_tokens=9))
    pd.testing.assert_frame_equal(numbers(there), numbers(here))


# --- 06_static_or_continuous ----------------------------------------------------------------------


def test_every_control_of_the_kinds_changes_its_picture():
    requests = load_workload("azure_conv", requests=120, rng=np.random.default_rng(0))
    requests = requests.scaled(0.08).with_arrivals("poisson:1", np.random.default_rng(1))
    engine, model = Engine(4, 256), load_cost()
    chosen = kinds.choose(requests, model, 6, engine, Policy(), Rules())
    shapes = replace(
        chosen.shapes, prefill=model.of_shapes(ShapeSet.parse("64,512 256,512", "4,512")).prefill
    )
    chosen = replace(chosen, shapes=shapes)
    served = kinds.fitting(requests, chosen)
    capacity_rps = float(kinds.queued(served, chosen.kinds)["requests_per_s"].iloc[0])
    panel = parts(explore.static_or_continuous(served, chosen, capacity_rps))
    assert "are simulated" not in panel.note.value, "all of them are"
    seen = {panel.figure.value}
    for name, value in (
        ("rate [requests/s]", 0.3 * capacity_rps),
        ("longest chunk", 64),
        ("decode passes between chunks", 8),
    ):
        panel.controls[name].value = value
        assert panel.message.value == ""
        seen.add(panel.figure.value)
    assert len(seen) == 4
    assert not plt.get_fignums()
