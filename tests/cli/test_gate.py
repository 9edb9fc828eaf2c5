"""The commands `compare` and `pairs` on runs and measurements written by hand."""

import json
import shlex
import sys

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


# --- in pairs -------------------------------------------------------------------------------------

MEASURES = {"measures": True}


@pytest.fixture
def in_turns(tmp_path):
    """A function that writes several runs of both, a second apart, of these results each."""

    def written(was: list[dict], now: list[dict]):
        for turn, pair in enumerate(zip(was, now, strict=True)):
            # base, new, new, base, ...
            for place, (side, found) in enumerate(zip(("base", "new"), pair, strict=True)):
                folder = f"20260102-0304{2 * turn + (place + turn) % 2:02}"
                kept = KEPT | {"results": found, "better": {"results/step_s": "lower"}}
                write(tmp_path / side / folder, kept=kept, traits=MEASURES)
        return tmp_path

    return written


def seconds(*values: float, **more) -> list[dict]:
    return [{"step_s": value} | more for value in values]


def test_seconds_by_pairs_find_what_a_single_run_must_tolerate(in_turns):
    drifting = [1.0, 1.1, 1.3, 1.2, 1.4, 1.6, 1.5, 1.3]
    folder = in_turns(seconds(*drifting), seconds(*(1.1 * it for it in drifting)))
    code, said = compare(folder, "--pairs")
    assert code == 1
    assert "+10.0% to +10.0% in 8 pairs" in " ".join(said.split())
    assert "+10.00%" in said
    assert compare(folder)[0] == 0
    assert compare(folder, "--pairs", "--tolerance", "seconds=0.2")[0] == 0


def test_the_same_seconds_and_too_few_pairs_pass(in_turns):
    code, said = compare(in_turns(seconds(*[1.0] * 8), seconds(*[1.01] * 8)), "--pairs")
    assert (code, "5 same" in said) == (0, True)


def test_two_pairs_are_too_few_whatever_they_say(in_turns):
    code, said = compare(in_turns(seconds(1, 1), seconds(1.4, 1.4)), "--pairs")
    assert (code, "too few pairs to say (1)" in said) == (0, True)


def test_what_is_not_of_a_clock_is_still_held_by_its_own_tolerance(in_turns):
    folder = in_turns(seconds(*[1.0] * 8, n=3), seconds(*[1.0] * 8, n=4))
    code, said = compare(folder, "--pairs")
    assert (code, "some/results/n" in said) == (1, True)


def test_runs_that_were_not_made_in_turns_are_no_pairs(tmp_path):
    for side, times in (("base", (1, 2)), ("new", (3, 4))):
        for at in times:
            write(tmp_path / side / f"20260102-03040{at}")
    code, said = compare(tmp_path, "--pairs")
    assert code == 1
    assert "are no pair: 20260102-030402 began between them. Measure base and new in turns" in said


def test_a_folder_of_a_single_run_has_no_pairs(runs):
    code, said = compare(runs({}, {}), "--pairs")
    assert (code, "no folder of a run by its time" in said) == (1, True)


def says(*figures: str) -> str:
    """A command that gives these lines in turn, one for each that it reads."""
    loop = f"import sys\nfor line, _ in zip({figures!r}, sys.stdin): print(line, flush=True)"
    return shlex.join([sys.executable, "-c", loop])


def test_two_commands_are_measured_in_turns_and_the_slower_one_fails(tmp_path):
    was, now = says(*['{"a_s": 1, "b_s": 1}'] * 13), says(*['{"a_s": 1.1, "b_s": 1}'] * 13)
    code, said = spyre_bench(
        tmp_path, "pairs", was, now, "--starts", 2, "-n", 4, "--out", "pairs.csv"
    )
    assert code == 1
    rows = [line.split() for line in said.splitlines() if line.split()[:1] in (["a_s"], ["b_s"])]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("a_s", "1.100", "slower"),
        ("b_s", "1.000", "same"),
    ]
    assert pd.read_csv(tmp_path / "pairs.csv").groupby("figure")["new"].sum().tolist() == [8.8, 8]
    assert spyre_bench(tmp_path, "pairs", now, was)[0] == 0
    assert spyre_bench(tmp_path, "pairs", was, now, "--least", 0.2)[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["exit 3", "true"], "'exit 3' gave no figures (exit code 3)"),
        (
            ["echo '{\"a\": 1}'", "echo '{\"b\": 1}'"],
            "no figure in common: the base has a, the new",
        ),
        (["echo '{\"a\": 0}'"] * 2, "a was measured as 0: a ratio needs numbers above 0"),
        ([".", "."], "nothing to measure in .: name buckets with --bucket"),
        (["nowhere", "true"], "'nowhere' is neither a folder nor a command: name a checkout"),
        (["", "true"], "'' is neither a folder nor a command"),
        ([".", ".", "--bucket", "1,64"], "bucket '1,64' is not three whole numbers"),
        (["true", "true", "--least", "-1"], "least -1.0 is not a change from 0 on"),
        ([".", ".", "--bucket", "1,64,2"], ". has no spyre_bench/engine: name a checkout"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(tmp_path, words, message):
    code, said = spyre_bench(tmp_path, "pairs", *words, "-n", 1)
    assert code == 1
    assert message in said
    assert "Traceback" not in said


def test_pairs_before_a_failure_are_kept(tmp_path):
    breaks = says(*['{"a_s": 1}'] * 3)  # the answer of a start, and two pairs
    words = ("pairs", f"test -e once || {{ touch once; {breaks}; }}", says(*['{"a_s": 1}'] * 9))
    code, said = spyre_bench(tmp_path, *words, "--starts", 1, "-n", 5, "--out", "pairs.csv")
    assert (code, "gave no figures" in said) == (1, True)
    assert len(pd.read_csv(tmp_path / "pairs.csv")) == 2
