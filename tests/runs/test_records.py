"""Reading what a run left, and what a notebook says of itself."""

import json
import math

import pandas as pd
import pytest

from spyre_bench.runs.records import Traits, faults, leaves, read_run

KEPT = {
    "parameters": {"k": 3, "output_directory": "/here", "interactive": False},
    "results": {"fill": 0.5, "over": {"skip": 2.0}},
    "checks": {"sane": {"ok": True, "evidence": "1 = 1"}},
    "figures": {"waste": "Most is lost"},
    "finished": True,
}


def write(folder, stem="some", kept=KEPT, traits=None, error=None, **tables):
    """A notebook's folder in a run."""
    place = folder / stem
    (place / "tables").mkdir(parents=True)
    outcome = {"notebook": stem, "error": error, "traits": traits or {"measures": False}}
    (place / "outcome.json").write_text(json.dumps(outcome))
    if kept:
        (place / "results.json").write_text(json.dumps(kept))
    for name, frame in tables.items():
        frame.to_csv(place / "tables" / f"{name}.csv", index=False)
    return folder


def test_a_run_reads_as_records_with_an_item_for_everything(tmp_path):
    write(tmp_path, t=pd.DataFrame({"a": [1, 2], "measured_at": ["now", "then"]}))
    record = read_run(tmp_path)["some"]
    items = record.items()
    assert items.pop("tables/t/a").tolist() == [1, 2]
    assert items == {
        "parameters/k": 3,
        "results/fill": 0.5,
        "results/over/skip": 2.0,
        "checks/sane": True,
        "figures/waste": "waste",
        "tables/t": 2,
    }


def test_a_notebook_that_broke_before_its_record_is_read_too(tmp_path):
    record = read_run(write(tmp_path, kept=None, error="no kernel"))["some"]
    assert record.error == "no kernel"
    assert not record.items()


def test_an_empty_table_is_a_table(tmp_path):
    write(tmp_path, t=pd.DataFrame())
    assert read_run(tmp_path)["some"].items()["tables/t"] == 0


def test_columns_of_earlier_versions_are_read_under_their_names_of_today(tmp_path):
    write(tmp_path, old=pd.DataFrame({"believed_decode_s": [1.5]}))
    assert list(read_run(tmp_path)["some"].tables["old"].columns) == ["estimated_decode_s"]


def test_a_folder_without_a_run_and_a_broken_file_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="no notebook was run there"):
        read_run(tmp_path)
    write(tmp_path)
    (tmp_path / "some" / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results.json: not JSON"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (3, {"": 3}),
        ({"a": {"b": 1.0}}, {"a/b": 1.0}),
        ([1.0, 2.0], {"0": 1.0, "1": 2.0}),
        ([[2, 64, 32], [4, 64, 32]], {"": [[2, 64, 32], [4, 64, 32]]}),
        ({"a": "inf", "b": "-inf"}, {"a": math.inf, "b": -math.inf}),
        ([[None]], {"0/0": None}),
        ({}, {}),
    ],
)
def test_a_result_comes_apart_into_its_figures(value, found):
    assert dict(leaves(value)) == found


def test_a_record_names_what_is_wrong_with_it():
    assert faults(KEPT) == []
    kept = {
        "results": {"fill": None, "over": {"skip": None, "fcfs": 1.0}},
        "checks": {"sane": {"ok": False, "evidence": "1 is not 2"}},
        "finished": False,
    }
    assert faults(kept) == [
        "result fill is not a number",
        "result over/skip is not a number",
        "check 'sane' failed: 1 is not 2",
        "its record ends without an answer",
    ]


def test_a_notebook_that_says_nothing_is_taken_to_measure():
    assert Traits.of({}).measures
    assert not Traits.of({"measures": False}).measures


def test_one_may_measure_only_where_a_parameter_is_given():
    traits = Traits.of({"measures": "model"})
    assert traits.of_run({"model": "smollm2"}).measures is True
    assert traits.of_run({"model": ""}).measures is False
    assert traits.of_run({}).measures is False
    with pytest.raises(ValueError, match="measures 'model' is not true, false or a parameter of"):
        traits.of_run({}, known=["requests"])


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"mesures": True}, "'mesures': there are measures, needs, calculated, cell_timeout_s, "),
        ({"measures": 0}, "measures 0 is not true, false or the name of a parameter"),
        ({"chance": "results/x"}, "chance 'results/x' is not a list"),
        ({"ties": [{"choice": "a"}]}, "a tie has choice, objective, gap, settles"),
    ],
)
def test_what_a_notebook_cannot_mean_is_refused(metadata, message):
    with pytest.raises(ValueError, match=message):
        Traits.of(metadata)


def test_of_a_folder_that_takes_a_folder_a_run_the_last_one_is_read(tmp_path):
    write(tmp_path / "20260101-000000", kept=KEPT | {"results": {"fill": 0.25}})
    (tmp_path / "latest").symlink_to("20260101-000000")
    assert read_run(tmp_path)["some"].results == {"fill": 0.25}
    write(tmp_path, "other")
    assert list(read_run(tmp_path)) == ["other"], "its own come first"


def test_where_a_folder_of_somebodys_is_called_latest_the_last_run_by_its_name_is_read(tmp_path):
    (tmp_path / "latest/mine").mkdir(parents=True)
    write(tmp_path / "20260101-000000", "old")
    write(tmp_path / "20260102-000000", "new")
    write(tmp_path / "a-run-that-was-copied-here", "copied")
    assert list(read_run(tmp_path)) == ["new"]


def test_a_last_run_that_left_nothing_is_not_passed_over_for_an_earlier_one(tmp_path):
    write(tmp_path / "20260101-000000", "old")
    (tmp_path / "20260102-000000").mkdir()
    (tmp_path / "latest").symlink_to("20260102-000000")
    with pytest.raises(ValueError, match="no notebook was run there"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("outcome", "[]"),
        ("outcome", "{}"),
        ("results", '{"checks": {"a": 1}}'),
        ("results", "3"),
        ("results", '{"figures": 5}'),
        ("outcome", '{"notebook": "a", "error": "", "traits": 1}'),
    ],
)
def test_a_record_that_no_run_left_is_refused_by_its_place(tmp_path, name, text):
    write(tmp_path)
    (tmp_path / "some" / f"{name}.json").write_text(text)
    with pytest.raises(ValueError, match=r"some|metadata"):
        read_run(tmp_path)


def test_the_figure_that_a_review_shows_is_named_by_a_text():
    assert Traits.of({"figure": "waste"}).figure == "waste"
    with pytest.raises(ValueError, match="figure 3 is not the name of a figure"):
        Traits.of({"figure": 3})
