"""What a notebook's page may hold, whoever wrote the notebook."""

import re

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, new_raw_cell

from spyre_bench.runs.html import notebook_page

PIXEL = "data:image/png;base64,iVBORw0KGgo="
EVIL = """**bold** and `0 < fill <= 1` and 0 < fill <= 1

<script>alert(1)</script><img src=x onerror=alert(2)><svg onload=alert(3)><iframe src="//evil.org">

![out](https://evil.org/a.png) <img src="//evil.org/b.png"> <img src="\\\\evil.org/c.png">
<img src="HTTPS://evil.org/d.png"> <img srcset="https://evil.org/e.png">
<link rel=stylesheet href="https://evil.org/f.css"><style>@import "https://evil.org/g.css"</style>
<div style="background:url(https://evil.org/h.png)">text</div> <object data="//evil.org/i">

[go](javascript:alert(4)) [page](https://good.org) <a href="data:text/html,x">data</a>

| a | b |
|--:|---|
| 1 | 2 |
"""


@pytest.fixture
def page(tmp_path):
    """A function that makes the page of a notebook of one Markdown cell and one output."""

    def made(text: str, title: str = "some") -> str:
        output = new_output("display_data", {"text/html": text})
        cells = [new_markdown_cell(text), new_raw_cell(text), new_code_cell("1", outputs=[output])]
        cells[0].metadata.tags = ['x"><script>alert(5)</script>']
        document = new_notebook(cells=cells)
        document.metadata.title = "<script>alert(6)</script>"
        nbformat.write(document, tmp_path / "some.ipynb")
        return notebook_page(tmp_path / "some.ipynb", title)

    return made


def test_no_script_and_nothing_from_outside_gets_onto_a_page(page):
    found = page(EVIL)
    assert not re.findall(r"<[^>]*(?:onerror|onload|javascript:|srcset|iframe|<object)", found)
    assert not re.findall(r"<script[^>]*>[^<]*alert", found)
    assert not re.findall(r"<[^>]*evil\.org[^>]*>", found)
    assert "@import" not in found


def test_what_markdown_is_for_stays(page):
    found = page(EVIL)
    assert "<strong>bold</strong>" in found
    assert found.count("0 &lt; fill &lt;= 1") >= 2
    assert re.search(r'<th style="text-align: ?right;?">a', found)
    assert 'href="https://good.org"' in found
    assert PIXEL in page(f'<img src="{PIXEL}" alt="a">')


def page_of(folder, cells, answer=None) -> BeautifulSoup:
    nbformat.write(new_notebook(cells=cells), folder / "some.ipynb")
    page = notebook_page(folder / "some.ipynb", "some", answer)
    return BeautifulSoup(page, "html.parser")


def test_the_answer_stands_below_the_question_and_above_everything_else(tmp_path):
    cells = [new_markdown_cell("# Does it pay?"), new_markdown_cell("## The workload")]
    page = page_of(tmp_path, cells, "**Yes**, 3 times. <script>alert(1)</script>")
    headings = [heading.get_text().strip("¶") for heading in page.find_all(["h1", "h2"])]
    assert headings == ["Does it pay?", "Answer", "The workload"]
    assert page.find("strong", string="Yes")
    assert not [script for script in page.find_all("script") if "alert" in script.get_text()]


def test_without_an_answer_there_is_no_word_of_one(tmp_path):
    page = page_of(tmp_path, [new_markdown_cell("# Does it pay?")])
    assert [heading.get_text().strip("¶") for heading in page.find_all(["h1", "h2"])] == [
        "Does it pay?"
    ]


def test_code_is_folded_and_its_output_is_not_but_for_a_cell_that_failed(tmp_path):
    shown = new_output("stream", text="shown")
    failed = new_output("error", ename="ValueError", evalue="too long", traceback=["too long"])
    cells = [new_code_cell("first = 1", outputs=[shown]), new_code_cell("bad()", outputs=[failed])]
    page = page_of(tmp_path, [new_markdown_cell("# Does it pay?"), *cells])
    first, bad = page.find_all("details")
    assert "first = 1" in first.get_text()
    assert "shown" not in first.get_text()
    assert "shown" in page.get_text()
    assert not first.has_attr("open")
    assert bad.has_attr("open")


def test_a_browser_is_told_to_load_nothing_and_to_run_nothing(page):
    found = page("text")
    assert "default-src 'none'" in found
    assert found.index("Content-Security-Policy") < found.index("<style")
