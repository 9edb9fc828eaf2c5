"""What a notebook's record keeps and refuses. How notebooks are executed: test_headless.py."""

import json

import numpy as np
import pandas as pd
import pytest

from spyre_bench.runs import provenance, report
from spyre_bench.runs.records import faults
from spyre_bench.shapes import BucketSet

DECLARED = {
    "threads": int,
    "rate": float,
    "buckets": str,
    "verbose": bool,
    "seed": int,
    "output_directory": str,
}
DEFAULTS = {
    "threads": 2,
    "rate": 1.5,
    "buckets": "4,64,32",
    "verbose": False,
    "seed": 7,
    "output_directory": "",
}


def namespace(**changed):
    return {"__annotations__": DECLARED} | DEFAULTS | changed


def start(rules=None, **changed):
    return report.start("Does it work?", namespace(**changed), **(rules or {}))


def record(folder) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_parameters_come_out_frozen_and_as_their_rules_read_them():
    parameters = start({"buckets": BucketSet.parse}).parameters
    assert parameters.threads == 2
    assert parameters.buckets == BucketSet.parse(["4,64,32"])
    with pytest.raises(AttributeError):
        parameters.threads = 3


def test_a_whole_number_does_for_a_fraction():
    assert start(rate=2).parameters.rate == 2.0


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"threads": "banana"}, "threads = 'banana' is not a whole number"),
        ({"threads": 2.0}, "threads = 2.0 is not a whole number"),
        ({"threads": True}, "threads = True is not a whole number"),
        ({"rate": float("nan")}, "rate = nan is not a finite number"),
        ({"rate": "fast"}, "rate = 'fast' is not a finite number"),
        ({"buckets": 4}, "buckets = 4 is not text"),
        ({"verbose": 1}, "verbose = 1 is not True or False"),
        ({"verbose": None}, "verbose = None is not True or False"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(changed, words):
    with pytest.raises(ValueError, match=words):
        start(**changed)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"threads": report.between(4, 8)}, "threads = 2: use a number from 4 to 8"),
        ({"buckets": report.one_of("a", "b")}, "buckets = '4,64,32': use one of a, b"),
        (
            {"thread": report.between(1, 2)},
            r"rules for \['thread'\], but the parameters are .*rate",
        ),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(rules, words):
    with pytest.raises(ValueError, match=words):
        start(rules)


def test_both_ends_of_a_range_are_in_it():
    assert [report.between(1, 3)(value) for value in (1, 3)] == [1, 3]


def test_several_words_read_as_a_list_and_none_is_refused():
    rule = report.several(report.one_of("a", "b"))
    assert rule("b  a") == ["b", "a"]
    with pytest.raises(ValueError, match="one or more"):
        rule(" ")


def test_a_parameter_that_is_no_plain_value_is_refused():
    with pytest.raises(ValueError, match="some: annotate it as int, float, str or bool"):
        report.start("?", {"__annotations__": {"some": list}, "some": []})


def test_the_same_seed_draws_the_same_numbers():
    assert start().rng.random() == start().rng.random() != start(seed=8).rng.random()


def test_without_a_directory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = start()
    run.table("some", pd.DataFrame({"a": [1]}))
    run.answer("Yes.")
    assert not list(tmp_path.iterdir())


def test_a_file_goes_with_the_run_or_to_a_temporary_place(tmp_path):
    assert start(output_directory=str(tmp_path)).path("log.jsonl") == tmp_path / "log.jsonl"
    run = start()
    place = run.path("log.jsonl")
    assert place.parent.is_dir()
    assert run.path("log.jsonl") == place
    del run
    assert not place.parent.exists()


def test_a_run_leaves_its_record_tables_and_figures(tmp_path):
    from matplotlib.figure import Figure

    run = start(output_directory=str(tmp_path))
    frame = pd.DataFrame(
        {"a": [1, 2], "measured_at": ["2026-01-01T00:00:00", "2026-01-01T00:05:00"]}
    )
    assert run.table("passes", frame) is frame
    axes = Figure().subplots()
    axes.set_title("It grows", loc="left")
    axes.figure.set_label("Seconds over rows.")
    run.figure("growth", axes)
    run.check("sane", np.bool_(True), "1 = 1")
    assert run.result("step_s", np.float64(0.5)) == 0.5
    run.result("rows", np.int64(3))
    run.result("break_even_requests", float("inf"))
    run.result("speedup", float("nan"))
    shown = run.answer("**Yes**")

    assert shown.data == "**Yes**"
    kept = record(tmp_path)
    assert kept["question"] == "Does it work?"
    assert kept["parameters"] == DEFAULTS | {"output_directory": str(tmp_path)}
    assert kept["seed"] == 7
    assert kept["results"] == {
        "step_s": 0.5,
        "rows": 3,
        "break_even_requests": "inf",
        "speedup": None,
    }
    assert kept["checks"] == {"sane": {"ok": True, "evidence": "1 = 1"}}
    assert kept["measurements"]["passes"] == {
        "rows": 2,
        "first_measured_at": "2026-01-01T00:00:00",
        "last_measured_at": "2026-01-01T00:05:00",
    }
    assert kept["figures"] == {"growth": "It grows"}
    assert kept["captions"] == {"growth": "Seconds over rows."}
    assert kept["answer"] == "**Yes**"
    assert kept["finished"] is True
    assert kept["seconds"] > 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "tables/passes.csv"), frame)
    assert (tmp_path / "figures/growth.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "figures/growth.svg").read_text()


def test_a_result_and_a_column_say_which_way_is_better(tmp_path):
    run = start(output_directory=str(tmp_path))
    run.result("wait_s", 1.0, better="lower")
    run.result("over_bound", {"bound": 0.5, "skip": 2.0}, better={"bound": "higher"})
    run.result("buckets", [])
    run.table("curve", pd.DataFrame({"bound_s": [1.0]}), better={"bound_s": "higher"})
    assert record(tmp_path)["better"] == {
        "results/wait_s": "lower",
        "results/over_bound/bound": "higher",
        "results/buckets": None,
        "tables/curve/bound_s": "higher",
    }
    with pytest.raises(ValueError, match="results/x_s: better='smaller': use 'lower', 'higher' or"):
        run.result("x_s", 1.0, better="smaller")


def test_a_failing_check_stops_the_notebook_and_stays_in_the_record(tmp_path):
    run = start(output_directory=str(tmp_path))
    with pytest.raises(AssertionError, match="sane: 2 is not 3"):
        run.check("sane", 2 == 3, "2 is not 3")
    assert record(tmp_path)["checks"] == {"sane": {"ok": False, "evidence": "2 is not 3"}}
    assert record(tmp_path)["finished"] is False


def test_a_missed_aim_stays_in_the_record_and_stops_nothing(tmp_path):
    run = start(output_directory=str(tmp_path))
    for name, met in (("quick", True), ("exact", False), ("on time", None)):
        run.aim(name, met, "seen")
    run.answer("It was.")
    kept = record(tmp_path)
    assert {name: aim["state"] for name, aim in kept["aims"].items()} == {
        "quick": "met",
        "exact": "missed",
        "on time": "disturbed",
    }
    assert faults(kept) == []


def test_the_record_names_machine_versions_and_commit():
    facts = provenance.provenance()
    assert facts["versions"]["numpy"] == np.__version__
    assert facts["threads"] >= 1
    assert facts["host"]
    assert facts["cpu"]
    if facts["commit"]:  # run from a clone, not from an installed package
        assert len(facts["commit"]) == 40
        assert facts["dirty"] in (True, False)


def test_what_would_change_an_answer_is_kept_apart_and_shown_below_it(tmp_path):
    run = start(output_directory=str(tmp_path))
    shown = run.answer("**Yes.**", unless="a price above 3.")
    assert shown.data == "**Yes.**\n\n**What would change it:** a price above 3."
    kept = record(tmp_path)
    assert (kept["answer"], kept["unless"]) == ("**Yes.**", "a price above 3.")
    assert run.answer("**Yes.**").data == "**Yes.**"
