"""A notebook that JupyterLab saves in the checkout."""

import copy
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from spyre_bench.runs.saved import without_outputs


def test_outputs_stay_in_the_browser_and_everything_else_is_saved():
    cell = new_code_cell("1 + 1", execution_count=3, outputs=[new_output("stream", text="2")])
    content = new_notebook(cells=[new_markdown_cell("# Two?"), cell])
    model = {"type": "notebook", "content": copy.deepcopy(content)}
    without_outputs(model, path="x.ipynb", contents_manager=None)
    title, saved = model["content"]["cells"]
    assert title == content.cells[0]
    assert saved == dict(cell, outputs=[], execution_count=None)


def test_a_run_of_a_tracked_notebook_changes_nothing_on_the_disk():
    """JupyterLab writes the kernel's version as soon as one is connected, and times and widgets
    where it is set so."""
    cell = new_code_cell("1 + 1", metadata={"tags": ["parameters"]})
    about = {"language_info": {"name": "python"}, "spyre_bench": {"measures": False}}
    tracked = new_notebook(cells=[cell], metadata=about)
    ran = copy.deepcopy(tracked)
    ran.metadata.language_info |= {"version": "3.11.7", "codemirror_mode": {"version": 3}}
    ran.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    ran.cells[0].metadata |= {"execution": {"iopub.status.busy": "now"}, "scrolled": True}
    ran.cells[0].execution_count = 1
    model = {"type": "notebook", "content": ran}
    without_outputs(model, path="x.ipynb", contents_manager=None)
    assert model["content"] == tracked


def test_the_tracked_notebooks_are_as_jupyter_writes_them():
    """It names the kernel in its own words, and sorts what is in the metadata."""
    folder = Path(__file__).parents[2] / "notebooks"
    for path in folder.glob("*.ipynb"):
        document = nbformat.read(path, as_version=4)
        assert document.metadata.kernelspec.display_name == "Python 3 (ipykernel)", path
        assert path.read_text() == nbformat.writes(document) + "\n", path


def test_other_files_are_saved_as_they_are():
    model = {"type": "file", "content": "text"}
    without_outputs(model, path="x.txt", contents_manager=None)
    assert model == {"type": "file", "content": "text"}
