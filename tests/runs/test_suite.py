"""Several notebooks at a time, by way of the command: who runs beside whom, what is not run again,
and what Ctrl-C leaves."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from spyre_bench.files import in_use
from spyre_bench.runs import suite
from spyre_bench.runs.execute import Outcome, Task, execute
from spyre_bench.runs.records import Traits
from tests.command import spyre_bench
from tests.runs.test_execute import notebook, results, spyre_bench_run

CALCULATES, MEASURES = {"measures": False}, {"measures": True}
SPAN = """import time
start = time.time()
time.sleep(1)
run.result("span", [start, time.time()])"""


def project(folder, **notebooks):
    """A project of notebooks, each of cells and what it says of itself; returns its folder."""
    (folder / "notebooks").mkdir()
    for stem, (cell, says) in notebooks.items():
        notebook(folder / "notebooks" / f"{stem}.ipynb", cell, says=says)
    return folder


def outcome(folder, stem) -> dict:
    return json.loads((folder / "out" / stem / "outcome.json").read_text())


def meet(one, other) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def test_what_measures_runs_beside_nothing_and_what_calculates_side_by_side(tmp_path):
    names = {"a": CALCULATES, "b": MEASURES, "c": CALCULATES, "d": None}
    project(tmp_path, **{stem: (SPAN, says) for stem, says in names.items()})
    code, said, _ = spyre_bench_run(tmp_path, "--all")
    assert code == 0, said
    spans = {stem: results(tmp_path / "out" / stem)["results"]["span"] for stem in names}
    assert not any(meet(spans[a], spans[b]) for a, b in ("ab", "bc", "bd", "ad", "cd"))
    if len(os.sched_getaffinity(0)) > 1:
        assert meet(spans["a"], spans["c"])


def test_the_whole_suite_is_found_from_within_the_project_and_has_one_index(tmp_path):
    project(tmp_path, good=('run.answer("**Yes**")', CALCULATES), bad=("1 / 0", CALCULATES))
    (tmp_path / "deeper").mkdir()
    code, said, _ = spyre_bench_run(tmp_path / "deeper", "--all")
    assert code == 1
    out = tmp_path / "deeper" / "out"
    assert f"report: {out / 'index.html'}" in said
    page = (out / "index.html").read_text()
    assert page.index("bad: failed") < page.index("good: passed") < page.index("<strong>Yes")
    bad, good = json.loads((out / "index.json").read_text())
    assert (bad["notebook"], bad["state"], good["notebook"], good["state"]) == (
        "bad",
        "failed",
        "good",
        "passed",
    )
    assert "division by zero" in bad["error"]
    assert (good["answer"], good["measures"]) == ("**Yes**", False)


def test_the_index_takes_no_markup_from_an_answer(tmp_path):
    from spyre_bench.runs.suite import _index

    answer = {"answer": "**Yes** <script>alert(1)</script>"}
    (tmp_path / "results.json").write_text(json.dumps(answer))
    page = _index([Outcome(tmp_path / "a.ipynb", tmp_path, 1.0, None, Traits(), {})])
    assert "<strong>Yes</strong>" in page
    assert "<script>" not in page


def test_a_folder_without_notebooks_is_refused(tmp_path):
    code, said, _ = spyre_bench_run(tmp_path, "--all")
    assert code == 1
    assert "no notebooks/*.ipynb in" in said


@pytest.mark.parametrize("words", [[], ["--all", "some.ipynb"], ["--all", "--grid", "a=1"]])
def test_notebooks_are_named_or_all_of_them(tmp_path, words):
    code, said, _ = spyre_bench_run(tmp_path, *words)
    assert code == 1
    assert "name notebooks, or say --all; for a --grid name one notebook" in said


def test_a_notebook_that_passed_is_not_run_again_until_something_changes(tmp_path):
    project(tmp_path, good=('run.result("a", 1)', CALCULATES))
    spyre_bench_run(tmp_path, "--all")
    first = results(tmp_path / "out/good")
    _, said, _ = spyre_bench_run(tmp_path, "--all")
    assert "good: there already, nothing has changed" in said
    assert results(tmp_path / "out/good") == first

    notebook(tmp_path / "notebooks/good.ipynb", 'run.result("b", 2)', says=CALCULATES)
    _, said, _ = spyre_bench_run(tmp_path, "--all", "-p", "threads", "3")
    assert "(again: other notebook and parameters)" in said
    assert results(tmp_path / "out/good")["results"] == {"b": 2}

    _, said, _ = spyre_bench_run(tmp_path, "--all", "-p", "threads", "banana")
    assert "'banana' is not of type int" in said
    assert [path.name for path in (tmp_path / "out/good").iterdir()] == ["outcome.json"]


def test_a_file_that_changed_under_its_name_is_another_parameter(tmp_path):
    project(tmp_path, good=("open(run.parameters.name).read()", CALCULATES))
    (tmp_path / "cost.csv").write_text("1")
    spyre_bench_run(tmp_path, "--all", "-p", "name", "cost.csv")
    (tmp_path / "cost.csv").write_text("2")
    _, said, _ = spyre_bench_run(tmp_path, "--all", "-p", "name", "cost.csv")
    assert "(again: other parameters)" in said


def test_so_is_a_file_that_is_named_inside_a_parameter(tmp_path):
    project(tmp_path, good=("1", CALCULATES))
    (tmp_path / "result.json").write_text("1")
    spyre_bench_run(tmp_path, "--all", "-p", "name", "4:result.json")
    (tmp_path / "result.json").write_text("2")
    _, said, _ = spyre_bench_run(tmp_path, "--all", "-p", "name", "4:result.json")
    assert "(again: other parameters)" in said


def test_so_is_a_file_that_only_a_default_names_and_a_folder_whose_files_are_others(tmp_path):
    project(tmp_path, good=("1", CALCULATES))
    path = tmp_path / "notebooks/good.ipynb"
    path.write_text(path.read_text().replace('str = \\"x\\"', 'str = \\"mine.csv\\"'))
    assert "mine.csv" in path.read_text()
    (tmp_path / "mine.csv").write_text("1")
    spyre_bench_run(tmp_path, "--all")
    (tmp_path / "mine.csv").write_text("2")
    _, said, _ = spyre_bench_run(tmp_path, "--all")
    assert "(again: other parameters)" in said

    (tmp_path / "mine.csv").unlink()
    (tmp_path / "mine.csv").mkdir()
    (tmp_path / "mine.csv/weights").write_text("1")
    spyre_bench_run(tmp_path, "--all")
    (tmp_path / "mine.csv/weights").write_text("22")
    _, said, _ = spyre_bench_run(tmp_path, "--all")
    assert "(again: other parameters)" in said
    _, said, _ = spyre_bench_run(tmp_path, "--all")
    assert "there already" in said


def test_other_code_or_a_half_finished_run_is_not_taken_for_finished(tmp_path):
    project(tmp_path, good=("1", CALCULATES))
    spyre_bench_run(tmp_path, "--all")
    path = tmp_path / "out/good/outcome.json"
    kept = json.loads(path.read_text())
    for change, words in (
        ({"basis": kept["basis"] | {"code": "other"}}, "again: other code"),
        ({"error": "did not end", "files": None}, "again: it did not end"),
    ):
        path.write_text(json.dumps(kept | {"files": ["stale.csv", *kept["files"]]} | change))
        (tmp_path / "out/good/stale.csv").touch()
        _, said, _ = spyre_bench_run(tmp_path, "--all")
        assert words in said
        assert not (tmp_path / "out/good/stale.csv").exists()


def test_a_folder_that_is_of_no_run_is_left_alone(tmp_path):
    project(tmp_path, good=("1", CALCULATES))
    (tmp_path / "out/good").mkdir(parents=True)
    (tmp_path / "out/good/thesis.txt").write_text("years of work")
    code, said, _ = spyre_bench_run(tmp_path, "--all")
    assert code == 1
    assert "holds thesis.txt, which is of no run: move it away, or name another folder" in said
    assert [path.name for path in (tmp_path / "out/good").iterdir()] == ["thesis.txt"]


def test_what_somebody_adds_to_a_finished_run_is_not_taken_away(tmp_path):
    path = notebook(tmp_path / "good.ipynb")
    task = Task(path, tmp_path / "out")
    assert execute(task, progress=False).error is None
    (tmp_path / "out/notes.md").write_text("mine")
    (tmp_path / "out/.ipynb_checkpoints").mkdir()
    assert "out holds notes.md, which is of no run" in execute(task, progress=False).error
    assert (tmp_path / "out/notes.md").read_text() == "mine"
    assert json.loads((tmp_path / "out/outcome.json").read_text())["error"] is None


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_whatever_is_called_latest_and_is_not_our_link_stays(tmp_path, kind, capsys):
    latest = tmp_path / "latest"
    if kind == "file":
        latest.write_text("mine")
    elif kind == "folder":
        latest.mkdir()
    else:
        latest.symlink_to("elsewhere")
    folder = suite._report_folder(tmp_path)
    assert folder.is_dir()
    assert f"no link to this run, which is in {folder}: " in capsys.readouterr().err
    assert {"file": latest.is_file, "folder": latest.is_dir, "link": latest.is_symlink}[kind]()
    assert kind != "link" or os.readlink(latest) == "elsewhere"


def test_our_link_moves_on(tmp_path, capsys):
    for _ in range(2):
        folder = suite._report_folder(tmp_path)
        assert (tmp_path / "latest").resolve() == folder
    assert capsys.readouterr().err == ""


def test_a_folder_that_another_run_fills_is_refused_with_its_process(tmp_path):
    (tmp_path / "out").mkdir()
    with in_use(tmp_path / "out"), pytest.raises(ValueError, match=f"process {os.getpid()} on"):
        suite.run_suite([notebook(tmp_path / "a.ipynb")], tmp_path / "out", {})
    assert list((tmp_path / "out").iterdir()) == []


def test_brackets_in_names_are_printed_as_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("rq[gpu]", "rq[/bold]"):
        task = Task(tmp_path / "absent.ipynb", tmp_path / name)
        suite.run_tasks([task], tmp_path)
        assert f"1/1 {task.directory.name}: failed" in capsys.readouterr().err
        suite.conclude([], tmp_path / name.replace("/", ""))
        assert f"report: {tmp_path / name.replace('/', '')}" in capsys.readouterr().out


def test_the_index_is_there_from_the_first_notebook_on_and_says_what_is_to_come(tmp_path):
    peek = """from pathlib import Path
run.result("index", Path("out/index.html").read_text())"""
    project(tmp_path, a=(peek, MEASURES), z=('run.answer("**Yes**")', CALCULATES))
    code, said, _ = spyre_bench_run(tmp_path, "--all")
    assert code == 0, said
    page = results(tmp_path / "out/a")["results"]["index"]
    assert "z: passed" in page
    assert "<strong>Yes</strong>" in page
    assert "1 of 2 notebooks are still to come" in page
    assert "http-equiv=refresh" in page
    assert said.index("1/2 z") < said.index("what has finished is in") < said.index("2/2 a")
    finished = (tmp_path / "out/index.html").read_text()
    assert "still to come" not in finished
    assert "refresh" not in finished


def test_ctrl_c_leaves_what_has_finished_and_ends_what_runs(tmp_path):
    wait = "import os, time; run.result('pid', os.getpid()); time.sleep(60 if {} else 0)"
    cell = wait.format("os.path.exists('wait')")
    project(tmp_path, a=("1", CALCULATES), b=(cell, MEASURES), c=("1", MEASURES))
    (tmp_path / "wait").touch()
    with subprocess.Popen(
        [sys.executable, "-m", "spyre_bench.cli.main", "run", "-o", "out", "--all"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        pid = _when_there(tmp_path / "out/b/results.json", "pid")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    stays = f"interrupted; what has finished stays in {tmp_path / 'out'}"
    assert f"{stays}; the same command goes on from there" in said
    assert outcome(tmp_path, "a")["error"] is None
    assert "KeyboardInterrupt" in outcome(tmp_path, "b")["error"]
    assert not (tmp_path / "out/c").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert [entry["state"] for entry in index] == ["passed", "failed", "failed"]

    (tmp_path / "wait").unlink()
    code, said, _ = spyre_bench_run(tmp_path, "--all")
    assert code == 0
    assert "a: there already" in said


def baseline_update(folder, *words, answer="") -> tuple[int, str]:
    return spyre_bench(folder, "baseline", "update", *words, answer=answer)


def test_a_baseline_is_shown_before_it_is_written_and_holds_what_calculates(tmp_path):
    project(tmp_path, good=('run.result("fill", 0.5)', CALCULATES), slow=("1", MEASURES))
    kept = tmp_path / "notebooks/baseline"
    code, said = baseline_update(tmp_path, answer="n\n")
    assert code == 1
    assert "good/outcome" in said
    assert not kept.exists()

    code, said = baseline_update(tmp_path, "--yes")
    assert code == 0
    assert "there already" in said  # what was reviewed is what is written
    assert [path.name for path in kept.iterdir()] == ["good"]
    assert results(kept / "good")["results"] == {"fill": 0.5}

    notebook(tmp_path / "notebooks/good.ipynb", 'run.result("fill", 0.4)', says=CALCULATES)
    code, said = baseline_update(tmp_path, answer="n\n")
    assert "good/results/fill" in said
    assert "-20.00%" in said
    assert results(kept / "good")["results"] == {"fill": 0.5}


def _when_there(path, name: str):
    """The result as soon as the record has it."""
    for _ in range(300):
        if path.exists() and name in (found := json.loads(path.read_text())["results"]):
            return found[name]
        time.sleep(0.1)
    pytest.fail(f"{path} never had {name}")
