"""What a baseline keeps of a run."""

import math

import pandas as pd
import pytest

from spyre_bench.review.baseline import write_baseline
from spyre_bench.review.regression import compare
from spyre_bench.runs.records import Record, Tie, Traits, read_run

TIE = Tie("results/buckets", "results/fill", 1e-3, ("tables/*",))


def a_record(name="some", measures=False, error=None, fill=1 / 3) -> Record:
    return Record(
        name,
        Traits(measures=measures, ties=(TIE,)),
        error,
        parameters={"k": 3, "rate": 0.1},
        results={"fill": fill, "buckets": [[2, 64, 32]], "never": math.inf, "by": {"a": [0.5]}},
        checks={"sane": True},
        figures=("waste",),
        better={"results/fill": "higher"},
        tables={"t": pd.DataFrame({"a_s": [1 / 7, None], "n": [1, 2], "set": ["x, y", None]})},
    )


def test_a_baseline_reads_as_the_run_it_is_of(tmp_path):
    run = {"some": a_record()}
    write_baseline(tmp_path / "baseline", run)
    kept = read_run(tmp_path / "baseline")
    assert set(compare(kept, run)["state"]) == {"same"}
    assert set(compare(run, kept)["state"]) == {"same"}
    assert kept["some"].traits == run["some"].traits
    assert kept["some"].better == run["some"].better


def test_what_measures_is_left_out_and_what_was_there_before_goes(tmp_path):
    write_baseline(tmp_path / "baseline", {"old": a_record("old")})
    run = {"some": a_record(), "slow": a_record("slow", measures=True)}
    write_baseline(tmp_path / "baseline", run)
    assert set(read_run(tmp_path / "baseline")) == {"some"}


def test_a_failed_notebook_is_no_baseline_and_the_old_one_stays(tmp_path):
    write_baseline(tmp_path / "baseline", {"some": a_record()})
    with pytest.raises(ValueError, match=r"cell 3: boom: a baseline is of notebooks that passed"):
        write_baseline(tmp_path / "baseline", {"some": a_record(error="cell 3: boom")})
    assert "some" in read_run(tmp_path / "baseline")


def test_numbers_are_kept_to_a_billionth_so_that_reviews_stay_quiet(tmp_path):
    for place, fill in (("a", 1 / 3), ("b", 1 / 3 + 1e-13)):
        write_baseline(tmp_path / place, {"some": a_record(fill=fill)})
    texts = [(tmp_path / place / "some/results.json").read_text() for place in "ab"]
    assert texts[0] == texts[1]
