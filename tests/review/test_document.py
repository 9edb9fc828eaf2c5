"""What a design review says of a run: which of its files, in which order, against what."""

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from spyre_bench.review.document import SHOWN_ROWS, distances, gather
from spyre_bench.runs.records import read_run
from tests.runs.test_records import KEPT, write

WASTE = pd.DataFrame({"batch": [0, 1], "pad": [5, 3]})


def story(folder, *cells, stem="some"):
    """Writes the executed notebook of a run: code of one line, anything longer is Markdown."""
    code = ("run.", "k: int", "1 /")
    made = [(new_code_cell if c.startswith(code) else new_markdown_cell)(c) for c in cells]
    nbformat.write(new_notebook(cells=made), folder / stem / "notebook.ipynb")
    return folder


def parts(chapter) -> list[str]:
    names = {"prose": "markdown", "figure": "title", "table": "name"}
    return [getattr(part, names[part.kind]) for part in chapter.story]


def of_items(frame) -> dict[str, float]:
    return {f"{row.of}/{row.item}": round(row.median, 9) for row in frame.itertuples()}


def test_figures_and_tables_stand_where_their_cells_do_under_the_notebooks_words(tmp_path):
    run = write(tmp_path, waste=WASTE, late=WASTE)
    story(run, "# Why?\nBecause.", 'run.table("waste", w)', "## Loss", 'run.figure("waste", w)')
    (chapter,) = gather(run).chapters
    assert parts(chapter) == ["Because.", "waste", "## Loss", "Most is lost", "late"]


def test_parameters_have_the_meaning_that_the_notebook_gives_them(tmp_path):
    run = story(write(tmp_path), 'k: int = 9  # buckets, at most; "#" or 0: no limit')
    assert gather(run).chapters[0].parameters == [("k", 3, 'buckets, at most; "#" or 0: no limit')]


def test_a_notebook_that_broke_before_its_record_is_there_with_its_error(tmp_path):
    (chapter,) = gather(write(tmp_path, kept=None, error="no kernel")).chapters
    assert (chapter.name, chapter.error, chapter.answer) == ("some", "no kernel", None)


def test_checks_are_counted(tmp_path):
    checks = {"a": {"ok": True, "evidence": ""}, "b": {"ok": False, "evidence": "1 > 2"}}
    (chapter,) = gather(write(tmp_path, kept=KEPT | {"checks": checks}, error="b")).chapters
    assert (chapter.passed, len(chapter.checks)) == (1, 2)


def test_of_a_long_table_the_first_rows_are_shown_and_of_a_wide_one_what_differs(tmp_path):
    wide = pd.DataFrame({f"c{i}": [i] * 20 for i in range(20)} | {"load": range(20)})
    run = write(tmp_path, wide=wide, long=wide[["c0", "load"]])
    shown = {part.name: part.shown for part in gather(run).chapters[0].story[:2]}
    assert shown["wide"].columns.tolist() == ["load"]
    assert shown["wide"]["load"].tolist() == list(range(SHOWN_ROWS))
    assert shown["long"].columns.tolist() == ["c0", "load"]


def test_distances_are_found_by_name_in_results_and_tables(tmp_path):
    ratios = {"over_shape_bound": {"skip": 2.5, "best_fit": 1.5}, "fill": 0.5}
    curve = pd.DataFrame({"k": [1, 2, 3], "device_s": [3.0, 2.0, 1.1], "bound_s": [3.0, 2.0, 1.0]})
    held = {"held_out_busy_s": [2.0, 3.0], "held_out_bound_s": [1.0, 2.0]}
    held = pd.DataFrame({"name": ["ours", "theirs"], **held})
    loads = {"policy": ["skip", "skip", "skip", "fcfs"], "busy_over_shape_bound": [1, 2, 4, 3.0]}
    run = write(
        tmp_path,
        kept=KEPT | {"results": ratios},
        k_curve=curve,
        held=held,
        loads=pd.DataFrame(loads),
    )
    found = distances(read_run(run))
    assert of_items(found) == {
        "busy seconds over the shape bound/skip": 1.5,
        "busy seconds over the shape bound/best_fit": 0.5,
        "k curve: device seconds over the bound/k 1 to 3": 0.0,
        "held: held out, busy seconds over the least bound/ours": 1.0,
        "held: held out, busy seconds over the least bound/theirs": 2.0,
        "loads: busy seconds over the shape bound/skip": 1.0,
        "loads: busy seconds over the shape bound/fcfs": 2.0,
    }
    skip = found[found["of"].str.startswith("loads") & (found["item"] == "skip")].iloc[0]
    assert (skip["least"], skip["largest"]) == (0, 3)
    assert found.loc[found["of"].str.startswith("k curve"), "largest"].item() == pytest.approx(0.1)


def test_a_distance_has_words_and_no_name_of_a_column(tmp_path):
    waits = pd.DataFrame({"max_wait_s": [0, 2], "fitted_busy_s": [2.0, 3], "fitted_bound_s": 1.0})
    ratios = {"decode_over_shape_bound": 2.5}
    found = distances(read_run(write(tmp_path, kept=KEPT | {"results": ratios}, hold=waits)))
    assert found["of"].tolist() == [
        "decode, busy seconds over the shape bound",
        "hold: fitted, busy seconds over the bound",
    ]
    assert found["item"].tolist()[1] == "max wait [s] 0 to 2"


def test_a_set_with_a_poor_bound_of_its_own_does_not_look_better_than_a_faster_one(tmp_path):
    sets = {"set": ["advised", "one shape"], "busy_s": [2.6, 7.1], "shape_bound_s": [1.7, 6.2]}
    sets |= {"busy_over_shape_bound": [2.6 / 1.7, 7.1 / 6.2]}
    found = of_items(distances(read_run(write(tmp_path, sets=pd.DataFrame(sets)))))
    assert found == {
        "sets: busy seconds over the least shape bound/advised": pytest.approx(2.6 / 1.7 - 1),
        "sets: busy seconds over the least shape bound/one shape": pytest.approx(7.1 / 1.7 - 1),
    }


def test_a_result_is_not_repeated_by_the_table_that_it_came_from(tmp_path):
    stages = pd.DataFrame({"stage": ["skip"], "over_shape_bound": [2.5]})
    kept = KEPT | {"results": {"over_shape_bound": {"skip": 2.5}}}
    found = distances(read_run(write(tmp_path, kept=kept, waterfall=stages)))
    assert of_items(found) == {"busy seconds over the shape bound/skip": 1.5}


def test_accuracy_is_that_of_a_notebook_that_measured_and_simulated(tmp_path):
    errors = pd.DataFrame(
        [
            ("fill", "bias", "queued", 0.1, "optimistic"),
            ("fill", "bias", "load 1", -0.2, "pessimistic"),
            ("TTFT", "bias", "load 1", -0.2, "optimistic"),
            ("TTFT of a request", "absolute", "load 1", 0.3, ""),
        ],
        columns=["quantity", "kind", "run", "error", "direction"],
    )
    kept = KEPT | {"results": {"e2el_median_error": {"queued": 0.03}, "terror": 1.0}}
    review = gather(write(tmp_path, kept=kept, errors=errors))
    found = review.accuracy["some"]
    assert found.bias.loc["fill"].to_dict() == {"queued": 0.1, "load 1": -0.2}
    assert found.absolute.loc["TTFT of a request"].to_dict() == {"load 1": 0.3}
    assert (found.optimistic, found.pessimistic) == (2, 1)
    assert review.errors == [("some", "e2el_median_error/queued", 0.03)]
    other = gather(write(tmp_path / "other", errors=WASTE))
    assert (other.accuracy, other.errors) == ({}, [])


def test_accuracy_of_a_run_that_did_not_tell_bias_from_absolute_error_is_read_too(tmp_path):
    errors = pd.DataFrame(
        [
            ("fill", 0.5, 0.55, 0.1, "queued"),
            ("TTFT of a request, median error", np.nan, np.nan, 0.3, "queued"),
        ],
        columns=["quantity", "measured", "simulated", "error", "run"],
    )
    review = gather(write(tmp_path, errors=errors))
    found = review.accuracy["some"]
    assert found.bias.loc["fill", "queued"] == 0.1
    assert found.absolute.loc["TTFT of a request, median error", "queued"] == 0.3
    assert len(found.bias) == len(found.absolute) == 1
    assert not found.has_directions
    assert not review.unread


def test_a_table_of_errors_that_cannot_be_read_is_named(tmp_path):
    review = gather(write(tmp_path, errors=WASTE))
    assert (review.accuracy, review.unread) == ({}, ("some",))


def test_changes_are_those_since_the_base(tmp_path):
    base = write(tmp_path / "base", kept=KEPT | {"results": {"fill": 0.5}})
    run = write(tmp_path / "run", kept=KEPT | {"results": {"fill": 0.4}})
    write(run, "fresh")
    changes = gather(run, base, baseline=run).changes
    assert changes.base == str(base)
    assert list(changes.counts) == ["worse", "new", "same"]
    assert changes.of("worse")["item"].tolist() == ["results/fill"]


def test_of_the_baseline_only_the_notebooks_of_the_run_count(tmp_path):
    run, baseline = write(tmp_path / "run"), write(tmp_path / "baseline")
    write(run, "measures")
    write(baseline, "not_run")
    changes = gather(run, baseline=baseline).changes
    assert list(changes.counts) == ["same"]
    assert changes.left_out == ("measures",)


def test_without_a_base_there_is_nothing_to_compare_with(tmp_path):
    changes = gather(write(tmp_path)).changes
    assert (changes.frame, changes.counts) == (None, {})


def test_a_folder_of_runs_means_the_last_one(tmp_path):
    write(tmp_path / "reports/20260101", "some")
    (tmp_path / "reports/latest").symlink_to("20260101")
    assert gather(tmp_path / "reports").folder == tmp_path / "reports/20260101"


def test_provenance_names_the_notebooks_of_each_value(tmp_path):
    facts = {"host": "a", "commit": "c0ffee", "versions": {"numpy": "2"}, "load": [1, 2, 3]}
    run = write(tmp_path, "one", kept=KEPT | facts | {"dirty": True})
    write(run, "two", kept=KEPT | facts | {"host": "b", "dirty": False})
    found = gather(run).provenance
    assert found["host"] == {"a": ["one"], "b": ["two"]}
    assert found["commit"] == {"c0ffee, and changes to it": ["one"], "c0ffee": ["two"]}
    assert found["versions"] == {"numpy 2": ["one", "two"]}


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_of_no_run_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"{name}: no notebook was run there .* name a folder"):
        gather(tmp_path / name)
