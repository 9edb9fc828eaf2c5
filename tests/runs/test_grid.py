"""One notebook over a grid of parameters."""

import json
import math

import pandas as pd
import pytest

from spyre_bench.runs.grid import panels, parse_grid
from tests.runs.test_execute import notebook, spyre_bench_run

CELL = """p = run.parameters
if (p.threads, p.name) == (3, "b"):
    raise ValueError("three is one too many")
run.result("twice", 2 * p.threads)
run.result("by", {"half": p.threads / 2})
run.result("name", p.name)"""


def test_values_are_separated_by_commas_or_a_list_of_yaml():
    assert parse_grid(["rate=1, 2,4", "buckets=['4,64,32', '8,64,32']"]) == {
        "rate": ["1", "2", "4"],
        "buckets": ["4,64,32", "8,64,32"],
    }


@pytest.mark.parametrize(
    "texts", [["rate"], ["=1"], ["rate="], ["rate=1,,2"], ["rate=['1"], ["rate=[]"]]
)
def test_a_grid_without_values_is_refused(texts):
    with pytest.raises(ValueError, match="write, for example, rate=1,2,4"):
        parse_grid(texts)


@pytest.mark.parametrize("texts", [["a=1", "a=2"], ["a=1,1"]])
def test_a_parameter_or_value_named_twice_is_refused(texts):
    with pytest.raises(ValueError, match="named once each"):
        parse_grid(texts)


def test_every_combination_is_a_row_the_failing_ones_too_and_none_runs_twice(tmp_path):
    path = notebook(tmp_path / "good.ipynb", CELL, says={"measures": False})
    words = (path, "--grid", "threads=2,3", "--grid", "name=a,b")
    code, said, _ = spyre_bench_run(tmp_path, *words)
    assert code == 1
    assert "three is one too many" in said
    out = tmp_path / "out"
    frame = pd.read_csv(out / "grid.csv", keep_default_na=False, na_values={"twice": [""]})
    assert list(frame) == ["threads", "name", "twice", "by/half", "seconds", "error"]
    assert frame["threads"].tolist() == [2, 2, 3, 3]
    assert frame["name"].tolist() == ["a", "b", "a", "b"]
    assert frame["twice"][:3].tolist() == [4, 4, 6]
    assert math.isnan(frame["twice"][3])
    assert ["too many" in error for error in frame["error"]] == [False, False, False, True]
    assert (out / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((out / "index.json").read_text())) == 4

    _, said, _ = spyre_bench_run(tmp_path, *words[:-1], "name=a,b,c")
    assert said.count("there already, nothing has changed") == 3
    assert "again: it had failed" in said
    assert len(pd.read_csv(out / "grid.csv")) == 6


def test_an_unknown_parameter_and_one_that_is_set_twice_are_refused(tmp_path):
    path = notebook(tmp_path / "good.ipynb", says={"measures": False})
    code, said, _ = spyre_bench_run(tmp_path, path, "--grid", "thread=2,3")
    assert code == 1
    assert "has no parameter 'thread' (did you mean threads?)" in said
    code, said, _ = spyre_bench_run(tmp_path, path, "--grid", "threads=2,3", "-p", "threads", "4")
    assert code == 1
    assert "parameter threads has a value and a grid" in said


def test_panels_are_the_numeric_results_over_the_first_parameter():
    frame = pd.DataFrame(
        {
            "rate": ["1", "2", "4"],
            "policy": ["skip", "skip", "fcfs"],
            "fill": [0.5, 0.6, None],
            "steady": [True, False, None],
            "set": ["a", "b", "c"],
            "seconds": [1.0, 1.0, 1.0],
            "error": ["", "", "failed"],
        }
    )
    found = panels(frame, ["rate", "policy"])
    assert found["panel"].tolist() == ["fill", "fill"]
    assert found["x"].tolist() == [1, 2]
    assert found["series"].tolist() == ["policy=skip", "policy=skip"]
    assert found["value"].tolist() == [0.5, 0.6]
