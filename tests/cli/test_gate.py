"""The command `compare` on runs written by hand."""

import json

import pandas as pd
import pytest

from tests.command import spyre_bench
from tests.runs.test_records import KEPT, write


def compare(folder, *words) -> tuple[int, str]:
    return spyre_bench(folder, "compare", "base", "new", *words)


@pytest.fixture
def runs(tmp_path):
    """A function that writes two runs, of these results each."""

    def written(was: dict, now: dict, traits=None, **tables):
        for name, found in (("base", was), ("new", now)):
            some = {key: frames[name] for key, frames in tables.items()}
            write(tmp_path / name, kept=KEPT | {"results": found}, traits=traits, **some)
        return tmp_path

    return written


def test_two_alike_pass_in_one_line(runs):
    code, said = compare(runs({"fill": 0.5}, {"fill": 0.5}))
    assert code == 0
    assert said.strip().endswith("5 items: 5 same")


def test_what_got_worse_better_lost_and_new_is_listed_and_fails(runs):
    was = {"fill": 0.5, "start_s": 2.0, "lost": 1}
    now = {"fill": 0.4, "start_s": 1.0, "found": 1}
    code, said = compare(runs(was, now))
    assert code == 1
    places = [said.index(word) for word in ("vanished:", "worse (1)", "better (1)", "new (1)")]
    assert places == sorted(places)
    for line in ("some/results/fill", "-20.00%", "some/results/start_s", "-50.00%"):
        assert line in said


def test_what_only_got_better_passes(runs):
    code, said = compare(runs({"start_s": 2.0}, {"start_s": 1.0}))
    assert code == 0
    assert "better (1)" in said


def test_tolerances_come_from_a_file_and_the_command_line_wins(runs):
    folder = runs({"fill": 0.5}, {"fill": 0.4}, traits={"measures": True})
    (folder / "some.yaml").write_text("ratio: 0.3\n")
    assert compare(folder)[0] == 1
    assert compare(folder, "--tolerances", "some.yaml")[0] == 0
    assert compare(folder, "--tolerances", "some.yaml", "--tolerance", "ratio=0.1")[0] == 1
    assert compare(folder, "--tolerance", "results/fill=0.3")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tolerance", "ration=1"], "did you mean ratio?"),
        (["--tolerance", "ratio"], "a tolerance is a name and a number"),
        (["--tolerances", "absent.yaml"], "absent.yaml"),
    ],
)
def test_a_tolerance_that_is_none_is_refused_in_one_line(runs, words, message):
    code, said = compare(runs({}, {}), *words)
    assert code == 1
    assert message in said
    assert "Traceback" not in said


def test_json_has_every_difference_and_nothing_else(runs):
    code, said = compare(runs({"fill": 0.5, "n": 1}, {"fill": 0.4, "n": 1}), "--json")
    assert code == 1
    (row,) = json.loads(said)
    assert (row["item"], row["state"], row["fails"]) == ("results/fill", "worse", True)
    assert row["change"] == pytest.approx(-0.2)


def test_differing_tables_are_drawn_over_each_other(runs):
    pytest.importorskip("matplotlib")
    frames = {
        "base": pd.DataFrame({"a": [1.0, 2.0]}),
        "new": pd.DataFrame({"a": [1.0, 3.0]}),
    }
    alike = dict.fromkeys(("base", "new"), pd.DataFrame({"a": [1.0]}))
    folder = runs({}, {}, t=frames, alike=alike)
    compare(folder, "-o", "pictures")
    assert [path.name for path in (folder / "pictures").iterdir()] == ["some-t.png"]
    assert (folder / "pictures/some-t.png").read_bytes().startswith(b"\x89PNG")
