"""Notebooks of a cell or two through the strict runner, by way of the command itself."""

import json
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from spyre_bench.runs.new import write_notebook
from tests.command import spyre_bench

COMMAND = [sys.executable, "-c", "from spyre_bench.cli.main import main; main()"]
PARAMETERS = 'threads: int = 2  # threads\nname: str = "x"\noutput_directory: str = ""'
START = """from spyre_bench.runs import report
run = report.start("Does it run?", globals(), threads=report.between(1, 8))"""


def notebook(
    path: Path, *cells: str, kernel: str | None = "python3", says: dict | None = None
) -> Path:
    """Writes a notebook of a parameters cell, the setup cell, these cells and an answer."""
    if not any("run.answer(" in cell for cell in cells):
        cells = (*cells, 'run.answer("Yes.");')
    parameters = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    document = new_notebook(
        cells=[
            new_markdown_cell("# Does it run?"),
            parameters,
            *map(new_code_cell, (START, *cells)),
        ]
    )
    if says is not None:
        document.metadata.spyre_bench = says
    if kernel:
        document.metadata.kernelspec = {"name": kernel, "display_name": kernel}
        document.metadata.language_info = {"name": "python"}
    nbformat.write(document, path)
    return path


def spyre_bench_run(folder: Path, *words) -> tuple[int, str, Path]:
    """Exit code, everything printed, and the folder with the report."""
    code, said = spyre_bench(folder, "run", "-o", "out", *words)
    return code, said, folder / "out" / "latest"


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_a_good_notebook_leaves_a_report_and_says_where(tmp_path):
    path = notebook(tmp_path / "good.ipynb", 'run.answer(f"**{run.parameters.threads}** threads")')
    code, said, report = spyre_bench_run(tmp_path, path, "-p", "threads", "5", "-p", "name", "-7")
    assert code == 0
    assert f"report: {report.resolve() / 'index.html'}" in said
    kept = results(report / "good")
    assert kept["parameters"] | {"output_directory": ""} == {
        "threads": 5,
        "name": "-7",
        "output_directory": "",
    }
    assert kept["answer"] == "**5** threads"
    assert "<strong>5</strong> threads" in (report / "index.html").read_text()
    assert {path.name for path in (report / "good").iterdir()} == {
        "kernel.log",
        "notebook.ipynb",
        "outcome.json",
        "report.html",
        "results.json",
    }


def test_a_run_says_a_line_per_notebook_and_nothing_of_libraries(tmp_path):
    warns = "import os; os.write(2, b'warning of a library'); print('of a cell')"
    good, other = notebook(tmp_path / "good.ipynb", warns), notebook(tmp_path / "other.ipynb")
    code, said, report = spyre_bench_run(tmp_path, good, other)
    assert code == 0
    index = report.resolve() / "index.html"
    first, address, second, passed, last = said.splitlines()
    assert re.fullmatch(r"1/2 good: passed, \d+ s", first)
    assert address == f"what has finished is in {index}"
    assert re.fullmatch(r"2/2 other: passed, \d+ s", second)
    assert (passed, last) == ("2 of 2 notebooks passed", f"report: {index}")
    assert "warning of a library" in (report / "good" / "kernel.log").read_text()


def test_on_a_terminal_a_bar_moves_and_leaves_one_line(tmp_path):
    path = notebook(tmp_path / "good.ipynb", "import time; time.sleep(0.5)")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 100))  # of no width a bar shows nothing
    with subprocess.Popen(
        [*COMMAND, "run", "-o", "out", str(path)], cwd=tmp_path, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = _until_closed(ours)
    assert process.returncode == 0
    assert "good:" in shown
    assert "cell/s" in shown
    left = [line.rpartition("\r")[2].strip() for line in shown.split("\r\n")]
    assert [line for line in left if "passed" in line or "cell" in line] == [
        next(line for line in left if re.fullmatch(r"1/1 good: passed, \d+ s", line))
    ]


def _until_closed(terminal: int) -> str:
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # of Linux, where the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(terminal)
    return shown.decode()


def test_the_page_asks_the_network_for_nothing(tmp_path):
    path = notebook(tmp_path / "good.ipynb", "import matplotlib.pyplot as plt; plt.plot([1, 2]);")
    _, _, report = spyre_bench_run(tmp_path, path)
    page = (report / "good" / "report.html").read_text()
    assert "data:image/png;base64" in page
    fetched = re.findall(
        r"(?:src|href)\s*=\s*[\"']?(https?:[^\"' >]+)|import\([\"'](http[^\"']+)", page
    )
    assert not fetched
    assert not re.findall(r"cdnjs|unpkg|jsdelivr", page)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-p", "thread", "3"], r"has no parameter 'thread' \(did you mean threads\?\); it has"),
        (["-p", "threads", "banana"], "parameter threads = 'banana' is not of type int"),
        (["-p", "threads", "99"], r"In \[3\] .*parameter threads = 99: use a number from 1 to 8"),
        (["-p", "threads"], "-p takes a name and a value"),
        (["-f", "absent.yaml"], "absent.yaml: No such file"),
    ],
)
def test_a_bad_parameter_fails_in_one_line(tmp_path, words, message):
    code, said, _ = spyre_bench_run(tmp_path, notebook(tmp_path / "good.ipynb"), *words)
    assert code != 0
    assert any(re.search(message, line) for line in said.splitlines()), said
    assert "Traceback" not in said


def test_a_failing_cell_names_notebook_cell_and_error_and_keeps_what_ran(tmp_path):
    path = notebook(tmp_path / "bad.ipynb", 'run.result("found", 1)', "1 / 0", "print('never')")
    code, said, report = spyre_bench_run(tmp_path, path)
    assert code == 1
    assert re.search(
        r"bad.ipynb: cell In \[5\] \(1 / 0\): ZeroDivisionError: division by zero", said
    )
    assert "ZeroDivisionError" in (report / "bad" / "notebook.ipynb").read_text()
    assert "ZeroDivisionError" in (report / "bad" / "report.html").read_text()
    assert results(report / "bad")["results"] == {"found": 1}
    assert results(report / "bad")["finished"] is False


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ('run.result("fill", float("nan"))', "result fill is not a number"),
        ('run.result("fill_by", {"skip": None})', "result fill_by/skip is not a number"),
        ('"run.answer("', "its record ends without an answer"),
    ],
)
def test_a_result_that_is_no_number_and_a_record_without_an_answer_are_named(
    tmp_path, cell, message
):
    path = notebook(tmp_path / "bad.ipynb", cell)
    code, said, report = spyre_bench_run(tmp_path, path)
    assert code == 1
    assert f"bad.ipynb: {message}" in said
    assert results(report / "bad")["question"] == "Does it run?"


def test_a_failing_check_is_named_even_where_its_error_is_caught(tmp_path):
    cell = """try:
    run.check("sane", 1 == 2, "1 is not 2")
except AssertionError:
    pass"""
    code, said, _ = spyre_bench_run(tmp_path, notebook(tmp_path / "bad.ipynb", cell))
    assert code == 1
    assert "bad.ipynb: check 'sane' failed: 1 is not 2" in said


def test_what_a_notebook_says_of_itself_is_checked(tmp_path):
    path = notebook(tmp_path / "bad.ipynb", says={"mesures": False})
    code, said, _ = spyre_bench_run(tmp_path, path)
    assert code == 1
    assert "bad.ipynb: metadata spyre_bench has 'mesures': there are measures" in said


def test_a_dying_kernel_is_an_error_and_keeps_what_ran(tmp_path):
    path = notebook(tmp_path / "bad.ipynb", "import os; os._exit(3)")
    code, said, report = spyre_bench_run(tmp_path, path)
    assert code == 1
    assert re.search(r"bad.ipynb: DeadKernelError", said)
    assert f"what it printed is in {report.resolve() / 'bad' / 'kernel.log'}" in said
    assert (report / "bad" / "report.html").exists()


def test_a_cell_that_hangs_is_named_and_the_next_notebook_runs(tmp_path, caplog):
    slow = "import time\ntime.sleep(60)"
    bad = notebook(tmp_path / "bad.ipynb", slow, says={"cell_timeout_s": 2})
    code, said, report = spyre_bench_run(tmp_path, bad, notebook(tmp_path / "good.ipynb"))
    assert code == 1
    words = r"bad.ipynb: cell In \[4\] \(import time\) has not ended after 2 s and was given up"
    assert re.search(words, said)
    assert "Timeout waiting" not in caplog.text, "papermill's words for it"
    assert (report / "bad" / "report.html").exists()
    assert (report / "good" / "results.json").exists()
    cases = ElementTree.parse(report / "junit.xml").getroot()
    assert cases.get("tests") == "2"
    assert [case.get("name") for case in cases if case.find("failure") is not None] == ["bad"]
    assert "import time" in cases.find("testcase[@name='bad']/failure").get("message")


def test_a_new_notebook_runs_as_it_is_and_takes_nobodys_place(tmp_path):
    path = write_notebook(tmp_path / "06_mine", 'Is "it" fast?')
    assert path.name == "06_mine.ipynb"
    document = nbformat.read(path, as_version=4)
    assert document.cells[0].source.startswith("# Is 'it' fast?")
    assert all(not cell.get("outputs") for cell in document.cells)
    code, said, report = spyre_bench_run(tmp_path, path, "-p", "requests", "60")
    assert code == 0, said
    assert "P95" in results(report / "06_mine")["answer"]
    with pytest.raises(ValueError, match="is there already: name another"):
        write_notebook(path, "Again?")


def test_a_typo_leaves_the_latest_run_alone(tmp_path):
    good = notebook(tmp_path / "03_good.ipynb")
    _, _, report = spyre_bench_run(tmp_path, good)
    latest = report.resolve()
    (tmp_path / "notebooks").mkdir()
    good.rename(tmp_path / "notebooks" / good.name)
    code, said, report = spyre_bench_run(tmp_path, "03")
    assert code == 1
    assert "03: there is no such notebook: did you mean notebooks/03_good.ipynb?" in said
    assert report.resolve() == latest
    path = tmp_path / "notebooks" / good.name
    code, said, report = spyre_bench_run(tmp_path, path, "-p", "thread", "3")
    assert code == 1
    assert "03_good.ipynb: has no parameter 'thread' (did you mean threads?)" in said
    assert report.resolve() == latest
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_what_measures_is_not_begun_without_the_package_that_it_measures_with(tmp_path):
    says = {"measures": "name", "needs": ["no_such_engine"]}
    path = notebook(tmp_path / "engine.ipynb", says=says)
    measured = (path, "-p", "name", "x")
    code, said, report = spyre_bench_run(tmp_path, *measured)
    assert code == 1
    assert f"{path}: needs the package no_such_engine: run make setup in a clone" in said
    assert not report.exists()
    good = notebook(tmp_path / "good.ipynb")
    code, said, report = spyre_bench_run(tmp_path, good, *measured)  # the others run
    assert code == 1
    assert "engine.ipynb: needs the package no_such_engine" in said
    assert (report / "good" / "notebook.ipynb").exists()
    code, said, _ = spyre_bench_run(tmp_path, path)  # and it, where it calculates
    assert code == 0, said


def test_one_failing_notebook_does_not_stop_the_others(tmp_path):
    bad, good = notebook(tmp_path / "bad.ipynb", "1 / 0"), notebook(tmp_path / "good.ipynb")
    code, said, report = spyre_bench_run(tmp_path, bad, tmp_path / "absent.ipynb", good)
    assert code == 1
    assert "absent.ipynb: there is no such notebook" in said
    assert (report / "good" / "notebook.ipynb").exists()
    index = (report / "index.html").read_text()
    assert index.index("bad: failed") < index.index("absent: failed") < index.index("good: passed")


@pytest.mark.parametrize("kernel", ["nosuch", None])
def test_a_missing_kernel_is_named_with_those_there_are(tmp_path, kernel):
    path = notebook(tmp_path / "good.ipynb", kernel=kernel)
    code, said, _ = spyre_bench_run(tmp_path, path)
    assert code == 1
    assert f"good.ipynb: asks for kernel {kernel!r}, which is not installed; there are [" in said


def test_a_file_that_is_no_notebook_is_refused(tmp_path):
    (tmp_path / "some.ipynb").write_text("hello")
    code, said, _ = spyre_bench_run(tmp_path, "some.ipynb")
    assert code == 1
    assert "some.ipynb: not a notebook" in said


def test_a_file_of_parameters_has_a_section_a_notebook_and_the_command_line_wins(tmp_path):
    path = notebook(tmp_path / "good.ipynb")
    (tmp_path / "full.yaml").write_text("good:\n  threads: 3\n  name: '5'\n")
    _, _, report = spyre_bench_run(tmp_path, path, "-f", "full.yaml", "-p", "threads", "4")
    kept = results(report / "good")["parameters"]
    assert (kept["threads"], kept["name"]) == (4, "5")


def test_a_section_of_no_notebook_is_refused_and_one_of_a_notebook_that_does_not_run_is_not(
    tmp_path,
):
    path = notebook(tmp_path / "good.ipynb")
    notebook(tmp_path / "other.ipynb")
    (tmp_path / "full.yaml").write_text("other:\n  threads: 3\ngoood:\n  threads: 3\n")
    code, said, _ = spyre_bench_run(tmp_path, path, "-f", "full.yaml")
    assert code == 1
    assert "full.yaml: section goood is of no notebook here; there are good, other" in said
    (tmp_path / "full.yaml").write_text("other:\n  threads: 3\n")
    assert spyre_bench_run(tmp_path, path, "-f", "full.yaml")[0] == 0


@pytest.mark.parametrize("text", ["a: [", "just words", "good: 3"])
def test_a_broken_file_of_parameters_is_refused_by_name(tmp_path, text):
    path = notebook(tmp_path / "good.ipynb")
    (tmp_path / "full.yaml").write_text(text)
    code, said, _ = spyre_bench_run(tmp_path, path, "-f", "full.yaml")
    assert code == 1
    assert "spyre-bench: full.yaml: " in said
    assert "Traceback" not in said


def test_plain_papermill_checks_types_and_ranges_too(tmp_path):
    path = notebook(tmp_path / "good.ipynb")
    papermill = [sys.executable, "-m", "papermill", path, "out.ipynb"]
    for value, message in (("banana", "is not a whole number"), ("99", "use a number from 1 to 8")):
        done = subprocess.run(
            [*papermill, "-p", "threads", value],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode != 0
        assert message in done.stderr
