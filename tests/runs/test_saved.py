"""A notebook that JupyterLab saves in the checkout."""

import copy

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


def test_other_files_are_saved_as_they_are():
    model = {"type": "file", "content": "text"}
    without_outputs(model, path="x.txt", contents_manager=None)
    assert model == {"type": "file", "content": "text"}
