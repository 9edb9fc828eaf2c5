"""Every notebook in JupyterLab: all cells run, and its panel follows a slider and a drop-down.

What the figure then shows is held, number by number, against the same panel in this process with
the same values: pictures may differ by a font, numbers may not.
"""

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from papermill import inspect_notebook

pytest.importorskip("playwright", reason="playwright is not installed: `make test-browser` does it")

from spyre_bench import explore
from spyre_bench.cost.bucket_cost import price
from spyre_bench.cost.source import load_cost
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import Bucket, BucketSet
from spyre_bench.studies import startup, under_load
from spyre_bench.workload.source import load_workload
from tests.browser.lab import Opened
from tests.explore.test_explore import numbers, parts

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.fixture
def opened(lab, page, tmp_path):
    """Opens a notebook with some parameters and runs all of it; returns its panel, the folder of
    its tables and all of its parameters."""

    def open_and_run(stem: str, minutes: float, **parameters):
        notebook = NOTEBOOKS / f"{stem}.ipynb"
        parameters["output_directory"] = str(tmp_path / "out")
        address = lab.put(notebook, parameters)
        opened = Opened(page, address)
        opened.run_all(minutes)
        declared = inspect_notebook(str(notebook)).items()
        defaults = {name: ast.literal_eval(entry["default"]) for name, entry in declared}
        settings = SimpleNamespace(**(defaults | parameters))
        return opened.panel, tmp_path / "out/tables", settings

    return open_and_run


def moved(here, **values):
    """The panel of this process with some values set, by the words beside them."""
    for words, value in values.items():
        here.controls[words].value = value
    assert here.message.value == ""
    return numbers(here)


def same(there: pd.DataFrame, here: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(there, here, rtol=1e-5)


def test_the_launcher_offers_the_kernel_of_the_house(lab, page):
    assert "spyre-bench" in lab.get("kernelspecs")["kernelspecs"]
    page.goto(lab.address())
    page.locator(".jp-LauncherCard", has_text="spyre_bench").first.wait_for(timeout=60_000)


def test_a_cell_that_fails_is_named_and_not_waited_for(lab, page):
    cells = [new_code_cell("raise ValueError('as meant')"), new_code_cell("'the last'")]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)"}}
    nbformat.write(new_notebook(cells=cells, metadata=metadata), lab.folder / "failing.ipynb")
    with pytest.raises(AssertionError, match="as meant"):
        Opened(page, lab.address("/tree/failing.ipynb")).run_all(minutes=1)


def test_00_the_passes_of_a_bucket_are_picked_out(opened, tiny_llama):
    panel, tables, _ = opened(
        "00_first_look",
        3,
        model=str(tiny_llama),
        compile_backend="eager",
        buckets="4,64,16 2,384,16",
        max_tokens=4,
    )
    passes = pd.read_csv(tables / "passes.csv", converters={"prompt_tokens": ast.literal_eval})
    here = parts(explore.first_look(passes))
    same(panel.numbers(), numbers(here))

    before, picture = panel.csv, panel.picture
    panel.choose("bucket", "4,64,16")
    panel.wait_for_another(before)
    assert panel.picture != picture
    same(panel.numbers(), moved(here, bucket="4,64,16"))

    before = panel.csv
    panel.press("first batches", "Home")
    panel.wait_for_another(before)
    same(panel.numbers(), moved(here, **{"first batches": 1}))


def test_01_a_choice_follows_and_the_long_one_shows_progress_and_is_cancelled(opened):
    panel, tables, p = opened("01_which_buckets", 5, requests=1500, largest_k=4)
    results = json.loads((tables.parent / "results.json").read_text())["results"]
    here = parts(explore.which_buckets(p, results["knee_buckets"]))
    same(panel.numbers(), numbers(here))

    before, picture = panel.csv, panel.picture
    panel.choose("workload", "sharegpt")
    panel.wait_for_another(before)
    assert panel.picture != picture
    same(panel.numbers(), moved(here, workload="sharegpt"))

    before = panel.csv
    panel.press("k", "Home")
    panel.wait_for_another(before)
    same(panel.numbers(), moved(here, k=1))

    before = panel.csv
    panel.click("Choose for the whole workload")
    panel.box.locator(".progress, .widget-hprogress").first.wait_for()
    panel.click("Cancel")
    panel.box.get_by_text("cancelled").wait_for(timeout=20_000)
    assert panel.csv == before

    panel.click("Choose for the whole workload")
    panel.wait_for_another(before)
    assert len(panel.numbers()) > 2 * len(numbers(here))  # a dot a request


def test_02_as_many_buckets_are_started_as_asked(opened, tiny_llama):
    panel, tables, p = opened(
        "02_what_does_warmup_cost",
        6,
        model=str(tiny_llama),
        compile_backend="eager",
        base="1,64,4",
        compared="eager,layer",
        compared_layers=1,
    )
    fitted, _ = startup.corners(Bucket.parse(p.base), p.factor)
    predicted = startup.predict(pd.read_csv(tables / "starts.csv"))
    here = parts(explore.what_warmup_costs(predicted, max(fitted)))
    same(panel.numbers(), numbers(here))

    before, picture = panel.csv, panel.picture
    panel.press(f"buckets beside {max(fitted)}", "Home")
    panel.wait_for_another(before)
    assert panel.picture != picture
    same(panel.numbers(), moved(here, **{f"buckets beside {max(fitted)}": 1}))

    before = panel.csv
    panel.press(f"buckets beside {max(fitted)}", "End")
    panel.wait_for_another(before)
    picture = panel.picture
    panel.choose("start", "warm")
    panel.wait_for_another_picture(picture)  # of the same numbers, where they rank alike
    everything = {f"buckets beside {max(fitted)}": 7, "start": "warm"}
    same(panel.numbers(), moved(here, **everything))


def test_03_the_waste_follows_policy_and_rate(opened):
    panel, _, p = opened(
        "03_how_full_are_batches", 5, requests=400, load_shares="0.2 0.5", max_waits_s="0 60"
    )
    costs, rules = price(BucketSet.parse(p.buckets), load_cost()), Policy(p.policy, max_age_s=300.0)
    asked = load_workload(
        p.workload,
        rng=np.random.default_rng(p.seed),
        requests=p.requests,
        arrivals=p.arrivals,
        max_tokens=p.max_tokens,
    ).scaled(lengths=p.length_scale)
    workload = under_load.fitting(asked, costs)
    capacity_rps = under_load.capacity_rps(workload, costs, rules)
    here = parts(explore.how_full(workload, costs, rules, capacity_rps))
    same(panel.numbers(), numbers(here))

    before, picture = panel.csv, panel.picture
    panel.choose("policy", "fcfs")
    panel.wait_for_another(before)
    assert panel.picture != picture
    same(panel.numbers(), moved(here, policy="fcfs"))

    before = panel.csv
    panel.press("max_wait", "End")
    panel.wait_for_another(before)
    same(panel.numbers(), moved(here, **{"max_wait [s]": 60.0}))


def test_04_the_division_follows_dtype_and_all_reduce(opened):
    panel, _, p = opened(
        "04_does_tensor_parallel_pay",
        10,
        cards="1 2",
        requests_a_card=40,
        k=3,
        workload="fmperf_ibm",
        ttft_ms=10_000.0,
        ranks="1",
    )
    p.cards = [1, 2]
    here = parts(explore.does_tp_pay(p))
    same(panel.numbers(), numbers(here))

    before, picture = panel.csv, panel.picture
    panel.choose("dtype", "fp8")
    panel.wait_for_another(before)
    assert panel.picture != picture
    same(panel.numbers(), moved(here, dtype="fp8"))

    before = panel.csv
    panel.press("all-reduce", "End")
    panel.wait_for_another(before)
    same(panel.numbers(), moved(here, **{"all-reduce at least [µs], 0: the card's range": 1000.0}))


def test_05_requests_are_compared_by_quantity_and_an_error_is_a_sentence(opened, tiny_llama):
    panel, tables, _ = opened(
        "05_can_we_trust_the_simulator",
        8,
        model=str(tiny_llama),
        compile_backend="eager",
        requests=8,
        load_shares="0.5",
        gather_s=0.2,
    )
    requests = pd.read_csv(tables / "requests.csv")
    here = parts(explore.trust_the_simulator(requests))
    same(panel.numbers(), numbers(here))

    before, picture = panel.csv, panel.picture
    panel.choose("quantity", "TTFT")
    panel.wait_for_another(before)
    assert panel.picture != picture
    same(panel.numbers(), moved(here, quantity="ttft"))

    # on a busy machine single requests may be off by more than 100 %
    nearest = requests["error_ttft"].abs().groupby(requests["run"]).max().idxmin()
    before = panel.csv
    panel.choose("run", nearest)
    panel.wait_for_another(before)
    same(panel.numbers(), moved(here, run=nearest))

    panel.press("off by at least", "End")
    panel.box.get_by_text(f"no request of {nearest} is off by 100 % or more").wait_for(
        timeout=60_000
    )
    panel.wait_for_no_picture()  # of the settings before


def test_06_what_seconds_are_paid_for_follows_the_rate(opened):
    panel, tables, _ = opened(
        "06_static_or_continuous", 3, requests=200, load_shares="0.3 0.9", graphs=4
    )
    assert (tables / "queued.csv").exists()
    before, picture = panel.csv, panel.picture
    panel.press("decode passes between chunks", "End")
    panel.wait_for_another(before)
    assert panel.picture != picture
