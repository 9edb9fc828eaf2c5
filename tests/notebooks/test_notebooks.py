"""The notebooks of the house: their form, and each of them run through on a tiny model."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import nbformat
import pandas as pd
import papermill
import pytest
import yaml

NOTEBOOKS = sorted((Path(__file__).parent.parent.parent / "notebooks").glob("*.ipynb"))
FULL = NOTEBOOKS[0].parent / "full.yaml"
COMMAND = (sys.executable, "-c", "from spyre_bench.cli import main; main()", "run")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook) -> list[str]:
    """The code of each cell as Python sees it: line magics are Jupyter's."""
    return [
        "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def code_lines(cell: str) -> int:
    return sum(1 for line in cell.splitlines() if line.strip())


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_no_output_and_no_trace_of_a_run_is_kept(notebook):
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert "papermill" not in cell.metadata
    assert "papermill" not in notebook.metadata


def test_the_kernel_is_the_one_that_every_environment_has(notebook):
    assert notebook.metadata.kernelspec.name == "python3"


def test_it_begins_with_a_question_and_ends_with_the_answer(notebook):
    title = notebook.cells[0]
    assert title.cell_type == "markdown"
    assert title.source.splitlines()[0].endswith("?")
    for word in ("**Held fixed:**", "**Ignored:**"):
        assert word in title.source
    assert "run.answer(" in notebook.cells[-1].source


def test_parameters_are_typed_literals_with_a_comment_each(notebook):
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    for line, statement in zip(
        tagged[0].source.splitlines(), ast.parse(tagged[0].source).body, strict=True
    ):
        assert isinstance(statement, ast.AnnAssign), line
        assert isinstance(ast.literal_eval(statement.value), str | int | float | bool), line
        assert "  # " in line


def test_only_the_parameters_are_annotated(notebook):
    """`report.start` takes the annotated names for the parameters."""
    annotated = sum(
        isinstance(node, ast.AnnAssign)
        for cell in code_cells(notebook)
        for node in ast.walk(ast.parse(cell))
    )
    assert annotated == len(ast.parse(code_cells(notebook)[0]).body)


def test_it_is_thin(notebook):
    cells = code_cells(notebook)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.While)
    nodes = [node for cell in cells for node in ast.walk(ast.parse(cell))]
    assert not [node for node in nodes if isinstance(node, kinds)]
    assert 12 <= len(notebook.cells) <= 20
    assert sum(map(code_lines, cells)) <= 120
    assert median(map(code_lines, cells)) <= 8


def test_an_answer_has_no_typed_in_number(notebook):
    """Every digit of the last cell is in a format, a subscript or an argument, none in the text."""
    last = ast.parse(code_cells(notebook)[-1])
    formats = [node.format_spec for node in ast.walk(last) if isinstance(node, ast.FormattedValue)]
    texts = [
        part.value
        for node in ast.walk(last)
        if isinstance(node, ast.JoinedStr) and node not in formats
        for part in node.values
        if isinstance(part, ast.Constant)
    ]
    assert texts
    assert not [text for text in texts if any(letter.isdigit() for letter in text)]


def test_the_larger_settings_are_of_known_notebooks_and_parameters():
    sections = yaml.safe_load(FULL.read_text())
    assert set(sections) <= {path.stem for path in NOTEBOOKS}
    for path in NOTEBOOKS:
        known = papermill.inspect_notebook(path)
        for name, value in sections[path.stem].items():
            assert type(value).__name__ == known[name]["inferred_type_name"], name


def run(folder: Path, stem: str, model: Path, *words: str) -> dict:
    """The record of a run on the tiny model, without a compiler, from another directory."""
    (path,) = [path for path in NOTEBOOKS if path.stem == stem]
    done = subprocess.run(
        [*COMMAND, str(path), "-o", "out", "-p", "model", str(model),
         "-p", "compile_backend", "eager", *words],
        cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((folder / "out/latest" / stem / "results.json").read_text())
    assert record["finished"]
    assert record["answer"]
    assert all(check["ok"] for check in record["checks"].values())
    for name in record["figures"]:
        for suffix in ("png", "svg"):
            assert (folder / "out/latest" / stem / "figures" / f"{name}.{suffix}").exists()
    return record


@pytest.mark.slow
@pytest.mark.vllm
def test_a_first_look_answers_eight_prompts_on_two_buckets(tmp_path, tiny_llama):
    words = ("-p", "buckets", "4,64,16 2,384,16", "-p", "max_tokens", "4")
    record = run(tmp_path, "00_first_look", tiny_llama, *words)
    assert set(record["figures"]) == {"timeline", "waste"}
    tables = tmp_path / "out/latest/00_first_look/tables"
    assert len(pd.read_csv(tables / "requests.csv")) == 8
    assert set(pd.read_csv(tables / "waste.csv")["bucket"]) == {"4,64,16", "2,384,16"}
    assert 0 < record["results"]["fill"] < 1


@pytest.mark.slow
@pytest.mark.engine
def test_the_cost_of_warmup_is_measured_in_that_very_run(tmp_path, tiny_llama):
    words = ("-p", "base", "1,64,4", "-p", "compared", "eager,layer", "-p", "compared_layers", "1")
    record = run(tmp_path, "02_what_does_warmup_cost", tiny_llama, *words)
    starts = pd.read_csv(tmp_path / "out/latest/02_what_does_warmup_cost/tables/starts.csv")
    assert len(starts) == 16
    assert (starts["measured_at"] >= record["started_at"]).all()
    assert record["results"]["bucket_cold_s"] > 0
