"""Pages of the app: of a notebook's code only what its panel needs; the answer of the last run."""

import ast
import json
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from spyre_bench.runs import pages
from spyre_bench.runs.panel_code import panel_call, panel_code

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
TITLE = "# Is it?\n\nIt matters.\n\n- **Held fixed:** all.\n- **Ignored:** nothing."


# --- the code -------------------------------------------------------------------------------------


def test_only_what_the_panel_reads_is_kept_and_in_its_order():
    code = panel_code(
        [
            "a: int = 1  # a parameter",
            "from spyre_bench import explore, plots\nimport pandas as pd",
            "%env A=1\nframe, other = pd.DataFrame(), 2",
            "frame['x'] = a\ndraw(frame)\nrest = other + 1",
            "explore.first_look(frame) if a else None",
            "answer = measure(rest)",
        ]
    )
    assert code.splitlines() == [
        "a: int = 1",
        "from spyre_bench import explore, plots",
        "import pandas as pd",
        "frame, other = (pd.DataFrame(), 2)",
        "frame['x'] = a",
        "explore.first_look(frame) if a else None",
    ]
    assert panel_call(code) == "first_look"


def test_what_a_loop_or_a_block_makes_is_kept_whole():
    loop = "for name in names:\n    found[name] = len(name)"
    block = "with open('a') as file:\n    text = file.read()"
    code = panel_code(["names, found = ['a'], {}", loop, block, "explore.f(found, text)"])
    for kept in (loop, block, "names, found = (['a'], {})"):
        assert kept in code


def test_without_a_panel_there_is_no_code():
    assert panel_code(["import explore", "x = explore.f"]) == ""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_has_a_page_that_measures_nothing(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    page = pages.page(notebook, path, tmp_path, "/")
    nbformat.validate(page)
    assert page.metadata["title"] == pages.question(notebook)
    code = "\n".join(cell.source for cell in page.cells if cell.cell_type == "code")
    for measuring in ("LLM(", "measure_starts(", "serve(", "serve_by_tp(", "starts_by_tp("):
        assert measuring not in code
    if not code:
        assert "`spyre-bench run" in page.cells[1].source


# --- the answer -----------------------------------------------------------------------------------


def notebook(traits: dict, *code: str):
    cells = [new_markdown_cell(TITLE), *map(new_code_cell, code)]
    return new_notebook(cells=cells, metadata={"spyre_bench": traits})


def keep(runs: Path, run: str, *, finished: bool = True, answer: str = "**Yes.** It is.") -> Path:
    """A run of the notebook `mine`."""
    folder = runs / run / "mine"
    folder.mkdir(parents=True)
    started = f"2026-01-0{run[7]}T10:00:00+00:00"
    kept = {"finished": finished, "answer": answer, "unless": "a 3.", "started_at": started}
    (folder / "results.json").write_text(json.dumps(kept))
    (folder / "outcome.json").write_text("{}")
    return folder


PANEL = "from spyre_bench import explore\nframe = measure()\nexplore.first_look(frame)"


def test_a_page_asks_answers_and_shows_the_panel_and_then_what_was_assumed(tmp_path):
    keep(tmp_path, "20260101-100000")
    page = pages.page(notebook({}, PANEL), Path("mine.ipynb"), tmp_path, "/home/")
    asked, answered, panel, assumed = (cell.source for cell in page.cells)
    assert asked == "[All questions](/home/)\n\n# Is it?\n\nIt matters.\n"
    assert answered.startswith("**Yes.** It is.\n\n**What would change it:** a 3.")
    assert "2026-01-01 10:00" in answered
    assert ast.unparse(ast.parse(panel)) == ast.unparse(ast.parse(PANEL))
    assert assumed == "\n- **Held fixed:** all.\n- **Ignored:** nothing."


def test_a_panel_of_what_was_measured_is_that_of_the_last_finished_run(tmp_path):
    measured = notebook({"measures": True, "panel_of_run": True}, PANEL)
    unmeasured = pages.page(measured, Path("mine.ipynb"), tmp_path, "/")
    assert "`spyre-bench run mine.ipynb`" in unmeasured.cells[1].source
    keep(tmp_path, "20260101-100000")
    newest = keep(tmp_path, "20260102-100000")
    keep(tmp_path, "20260103-100000", finished=False)
    page = pages.page(measured, Path("mine.ipynb"), tmp_path, "/")
    code = [cell.source for cell in page.cells if cell.cell_type == "code"]
    assert code == [f"from spyre_bench import explore\nexplore.kept.first_look({str(newest)!r})"]


def test_the_last_run_is_the_one_that_started_last_whatever_its_folder_is_called(tmp_path):
    for day, name in ((1, "zero_before"), (3, "after_all"), (2, "between")):
        folder = keep(tmp_path, f"2026010{day}-100000")
        folder.parent.rename(tmp_path / name)
    kept = pages.last_kept("mine", tmp_path)
    assert kept.folder == tmp_path / "after_all" / "mine"


def test_a_record_that_cannot_be_read_hides_no_other(tmp_path):
    good = keep(tmp_path, "20260102-100000")
    for name in ("20260101-100000", "20260103-100000"):
        (keep(tmp_path, name) / "results.json").write_text("{")
    assert pages.last_kept("mine", tmp_path).folder == good


@pytest.mark.parametrize(
    ("answer", "short"),
    [
        ("**Yes, 3.5 times.** It is.", "Yes, 3.5 times."),
        ("It is 3.5 times. So it is.", "It is 3.5 times."),
        ("It is", "It is"),
    ],
)
def test_in_short_an_answer_is_what_is_bold_or_its_first_sentence(answer, short, tmp_path):
    keep(tmp_path, "20260101-100000", answer=answer)
    assert pages.last_kept("mine", tmp_path).in_short == short


def test_a_notebook_without_a_panel_says_so_and_runs_nothing(tmp_path):
    page = pages.page(notebook({}, "measure()"), Path("mine.ipynb"), tmp_path, "/")
    assert page.cells[1].source == pages.NO_PANEL
    assert not [cell for cell in page.cells if cell.cell_type == "code"]


def test_a_folder_without_a_panel_is_refused_in_a_sentence(tmp_path):
    from spyre_bench.runs.app import serve

    nbformat.write(notebook({}, "measure()"), tmp_path / "mine.ipynb")
    with pytest.raises(ValueError, match="no notebook with a panel"):
        serve(tmp_path, tmp_path, 8866, "localhost", open_browser=False)
