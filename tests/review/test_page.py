"""The page of a design review and its PDF, made of runs written by hand."""

import base64
import io
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from PIL import Image
from pypdf import PdfReader

from spyre_bench.cli.main import main
from spyre_bench.review import page as pages
from spyre_bench.review.document import Chapter, Figure, gather
from tests.review.test_document import WASTE, story
from tests.runs.test_records import KEPT, write

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="10"><rect width="9" height="9"/>'
HOSTILE = """<script>alert("&'1")</script><img src=http://example.org/x onerror='boom'>"""
CHROMIUM = next(filter(None, map(shutil.which, pages.BROWSERS)), None)


def picture(folder, name="waste", stem="some", svg=f"{SVG}</svg>"):
    (folder / stem / "figures").mkdir(exist_ok=True)
    (folder / stem / f"figures/{name}.svg").write_text(svg)
    (folder / stem / f"figures/{name}.png").write_bytes(b"a png")
    return folder


def page_of(run, **more) -> BeautifulSoup:
    return BeautifulSoup(pages.render(gather(run, **more)), "html.parser")


def section(page, name: str) -> str:
    """Its words, with one space between any two."""
    return " ".join(page.find(id=name).get_text(" ").split())


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """A function that gives these words to the command; its exit code, and everything printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["spyre-bench", "report", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out + printed.err

    return run


@pytest.fixture
def hostile(tmp_path):
    """A run in which everything that can hold a text holds a hostile one."""
    kept = {
        "question": HOSTILE,
        "answer": f"{HOSTILE}\n\n[link](http://example.org) ![shot](http://example.org/y.png)",
        "parameters": {"k": HOSTILE, HOSTILE: 1},
        "results": {f"{HOSTILE}_error": 0.5, "over_shape_bound": {HOSTILE: 2.0}},
        "checks": {HOSTILE: {"ok": False, "evidence": HOSTILE}},
        "figures": {"waste": HOSTILE},
        "captions": {"waste": HOSTILE},
        "finished": True,
        "host": HOSTILE,
        "versions": {"numpy": HOSTILE},
    }
    table = pd.DataFrame({HOSTILE: [HOSTILE, "x"], "busy_over_shape_bound": [1.5, 2.0]})
    run = picture(write(tmp_path / "run", kept=kept, error=HOSTILE, t=table))
    base = write(tmp_path / "base", kept=kept | {"answer": "", "results": {HOSTILE: HOSTILE}})
    return story(run, f"# t\n{HOSTILE} <b onclick=x>b</b>\n\n{HOSTILE}"), base


def test_a_hostile_text_stays_a_text_wherever_it_stands(hostile):
    run, base = hostile
    page = page_of(run, base=base)
    assert not page.find_all(["script", "iframe", "object", "embed", "link", "base", "form"])
    tags = page.find_all(True)
    assert not [tag for tag in tags if any(name.startswith("on") for name in tag.attrs)]
    assert not page.find_all("b", string="b")
    for place in ("h1", "pre.error", ".answer", ".prose", "figcaption", "th", "td", "article"):
        assert any(HOSTILE[:29] in tag.get_text() for tag in page.select(place)), place
    assert page.find("img")["alt"] == HOSTILE


def test_the_page_fetches_nothing(hostile):
    run, base = hostile
    page = page_of(run, base=base)
    for tag in page.find_all(True):
        for name in ("src", "href", "srcset", "data", "poster", "action", "xlink:href"):
            assert tag.get(name, "#").startswith(("#", "data:image/")), tag
        assert "url(" not in tag.get("style", "")
    styles = " ".join(style.string for style in page.find_all("style"))
    assert not re.search(r"url\(|@import|http", styles)


def test_all_figures_and_tables_are_on_it_with_title_and_file(tmp_path):
    kept = KEPT | {"figures": {"waste": "Most is lost", "fill": "It is full"}}
    kept |= {"captions": {"fill": "Rows by load."}}
    run = picture(picture(write(tmp_path, kept=kept, waste=WASTE, other=WASTE)), "fill")
    page = page_of(run)
    captions = page.find(id="some").find_all("figcaption")
    captions = [" ".join(tag.get_text(" ").split()) for tag in captions]
    assert captions == [
        "Figure 1.1 Most is lost some-waste.svg",
        "Figure 1.2 It is full. Rows by load. some-fill.svg",
    ]
    kind, _, content = page.find("img")["src"].partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(content).decode() == f"{SVG}</svg>"
    said = section(page, "some")
    for name in ("waste", "other"):
        assert f"{name}: 2 rows; all of it in some/tables/{name}.csv" in said


def test_a_figure_of_very_many_dots_is_on_it_as_png(tmp_path):
    run = picture(write(tmp_path), svg=f"{SVG}{'<rect/>' * 200_000}</svg>")
    assert page_of(run).find("img")["src"].startswith("data:image/png;base64,")


def test_a_figure_without_its_file_is_said_to_be_missing(tmp_path):
    assert "Its files are not in the run." in section(page_of(write(tmp_path)), "deck-some")


def test_of_a_long_table_it_says_how_many_rows_there_are(tmp_path):
    long = pd.DataFrame({"fill": [i / 7 for i in range(200)], "n": range(1000, 1200)})
    page = page_of(write(tmp_path, long=long))
    assert "long: the first 6 of 200 rows; all of it" in section(page, "some")
    rows = page.select("#some .table tbody tr")
    assert [[cell.get_text() for cell in row.find_all("td")] for row in rows[:2]] == [
        ["0", "1,000"],
        ["0.1429", "1,001"],
    ]
    assert len(rows) == 6
    assert page.select("#some .table thead th")


def test_the_summary_has_each_answer_and_the_counts_of_checks(tmp_path):
    run = write(tmp_path, "a", kept=KEPT | {"answer": "**Yes**, it is", "question": "Is it?"})
    checks = {"x": {"ok": True, "evidence": ""}, "y": {"ok": False, "evidence": "1 > 2"}}
    write(run, "b", kept=KEPT | {"checks": checks}, error="check 'y' failed: 1 > 2")
    said = section(page_of(run), "summary")
    for text in (
        "1 of 2 notebooks passed",
        "2 of 3 checks passed",
        "1 notebook failed",
        "1 check failed",
        "Is it? passed a · 1 of 1 checks passed Yes",
        "b failed b · 1 of 2 checks passed, 1 failed check 'y' failed: 1 > 2",
    ):
        assert text in said


def test_the_deck_has_question_answer_one_figure_and_the_number_that_would_change_it(tmp_path):
    kept = {"question": "Is it?", "answer": "**Yes**, it is.", "unless": "a price above **3**."}
    kept = KEPT | kept | {"figures": {"fill": "It is full", "waste": "Most is lost"}}
    run = picture(picture(write(tmp_path, kept=kept)), "fill")
    told = json.loads((run / "some/outcome.json").read_text())
    told["traits"]["figure"] = "waste"
    (run / "some/outcome.json").write_text(json.dumps(told))
    page = page_of(run)
    slide = "some passed · all of it Is it? Yes , it is. What would change it: a price above 3 ."
    assert section(page, "deck-some") == slide  # its title is in the picture
    assert len(page.find(id="deck-some").find_all("img")) == 1
    ids = [part["id"] for part in page.find_all(id=True)]
    assert ids.index("summary") < ids.index("deck-some") < ids.index("appendix") < ids.index("some")
    pictures = [img["alt"] for img in page.find_all("img")]
    assert sorted(pictures) == ["It is full", "Most is lost"], "none twice, for a small PDF"


def test_the_summary_has_of_an_answer_what_it_begins_with():
    chapter = {"name": "a", "question": "Is it?", "error": None, "checks": {}, "aims": {}}
    chapter |= {"parameters": [], "results": [], "provenance": {}}
    said = {
        "**It pays,\nmostly.** The rest": "It pays,\nmostly.",
        "It pays. So much for that.": "It pays.",
        "": "",
    }
    for answer, headline in said.items():
        assert Chapter(**chapter, answer=answer).headline == headline


def test_a_hatched_figure_is_a_png_which_prints_smaller(tmp_path):
    run = picture(write(tmp_path), svg=f"{SVG}<pattern/></svg>")
    (shown,) = page_of(run).find_all("img")
    assert shown["src"].startswith("data:image/png")


def test_a_failed_notebook_has_its_error_on_the_summary_and_in_its_chapter(tmp_path):
    page = page_of(write(tmp_path, kept=None, error="cell In [3]: ZeroDivisionError"))
    for place in ("summary", "deck-some", "some"):
        assert "failed" in section(page, place)
        assert "cell In [3]: ZeroDivisionError" in section(page, place)


def test_parameters_and_results_are_in_the_chapter_and_provenance_once_for_all(tmp_path):
    kept = KEPT | {"host": "vm", "cpu": "EPYC", "threads": 2, "started_at": "2026-11-24"}
    run = story(write(tmp_path, kept=kept | {"seconds": 3.2}), "k: int = 1  # how many")
    page = page_of(run)
    for text in ("k 3 how many", "over/skip 2"):
        assert text in section(page, "some")
    for text in ("host vm", "cpu EPYC", "threads 2", "2026-11-24 3"):
        assert text in section(page, "provenance")
        assert text not in section(page, "some")


def test_a_picture_on_the_page_has_few_colours_and_one_that_none_can_read_stays(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    address = pages.picture(Figure("Noise", tmp_path / "noise"))
    drawn = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert len(drawn.getcolors()) == pages.COLOURS
    assert drawn.size == (64, 64)
    (tmp_path / "torn.png").write_bytes(b"torn")
    address = pages.picture(Figure("Torn", tmp_path / "torn"))
    assert base64.b64decode(address.partition(",")[2]) == b"torn"


def test_what_is_not_there_is_said(tmp_path):
    page = page_of(write(tmp_path))
    assert "No notebook of this run has a result or a table with a bound" in section(page, "bounds")
    assert "Not in this run" in section(page, "accuracy")
    assert "There is nothing to compare with" in section(page, "changes")


def test_a_run_of_an_earlier_version_says_what_it_does_not_tell(tmp_path):
    older = {"quantity": ["fill"], "measured": 0.5, "simulated": 0.55, "run": "load 1"}
    page = page_of(write(tmp_path, errors=pd.DataFrame(older | {"error": 0.1})))
    accuracy = section(page, "accuracy")
    assert "fill +10.0%" in accuracy
    assert "made by an earlier version, which did not count" in accuracy
    assert "optimistic in" not in accuracy


def test_errors_that_cannot_be_read_are_said_to_be(tmp_path):
    page = page_of(write(tmp_path, errors=pd.DataFrame({"batch": [1]})))
    accuracy = section(page, "accuracy")
    assert "has a table errors that this version cannot read" in accuracy
    assert "Not in this run" not in accuracy


def test_bounds_accuracy_and_changes_are_on_it(tmp_path):
    errors = {"quantity": ["fill", "TTFT of a request"], "kind": ["bias", "absolute"]}
    errors |= {"run": "load 1", "error": [-0.1, 0.2], "direction": ["pessimistic", ""]}
    errors = pd.DataFrame(errors)
    results = {"over_shape_bound": {"skip": 2.5}, "fill": 0.4}
    run = write(tmp_path / "run", kept=KEPT | {"results": results}, errors=errors)
    base = write(tmp_path / "base", kept=KEPT | {"results": results | {"fill": 0.5}}, errors=errors)
    page = page_of(run, base=base)
    assert "skip +150.0%" in section(page, "bounds")
    accuracy = section(page, "accuracy")
    assert "Bias: the simulator is optimistic in 0 figures, pessimistic in 1" in accuracy
    assert "fill −10.0%" in accuracy
    assert "TTFT of a request 20.0%" in accuracy.split("Absolute error")[1]
    assert "some/results/ fill 0.5 0.4 −20.00%" in section(page, "changes").replace("/f", "/ f")


def test_the_command_leaves_page_and_figures_and_names_them(tmp_path, command):
    run = picture(write(tmp_path / "run"))
    code, said = command(run)
    assert (code, said) == (0, f"page: {run / 'design-review.html'}\n")
    figures = sorted(path.name for path in (run / "design-review-figures").iterdir())
    assert figures == ["some-waste.png", "some-waste.svg"]


def test_the_projects_baseline_is_what_it_is_held_against(tmp_path, command):
    write(tmp_path / "notebooks/baseline", kept=KEPT | {"results": {"fill": 0.6}})
    write(tmp_path / "run")
    assert command("run", "-o", "new/page.html")[0] == 0
    page = BeautifulSoup((tmp_path / "new/page.html").read_text(), "html.parser")
    assert f"Held against {tmp_path / 'notebooks/baseline'}" in section(page, "changes")
    assert "worse" in section(page, "changes")


@pytest.mark.parametrize("words", [["nowhere"], ["run", "--base", "nowhere"]])
def test_a_folder_of_no_run_is_one_sentence(tmp_path, command, words):
    write(tmp_path / "run")
    code, said = command(*words)
    assert code == 1
    assert said.startswith("spyre-bench: nowhere: no notebook was run there")
    assert said.count("\n") == 1


@pytest.mark.skipif(not CHROMIUM, reason=f"none of {', '.join(pages.BROWSERS)} is on the PATH")
def test_the_pdf_has_every_chapter_on_a_page_of_its_own(tmp_path, command):
    run = picture(write(tmp_path, "a", kept=KEPT | {"answer": "It pays."}), stem="a")
    write(run, "b", kept=KEPT | {"question": "Does it last?"})
    code, said = command(run, "-o", "out.html", "--pdf")
    assert (code, said) == (0, "page: out.html\nPDF: out.pdf\n")
    texts = [page.extract_text() for page in PdfReader(tmp_path / "out.pdf").pages]
    assert "It pays." in texts[0]
    assert "Does it last?" in texts[2]
    assert "Distance to the bounds" in texts[3]
    assert "Figure 1.1" in texts[4]
    assert "Does it last?" in texts[-1]


def test_without_a_browser_the_page_stays_and_a_sentence_says_what_to_do(
    tmp_path, command, monkeypatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    write(tmp_path / "run")
    code, said = command("run", "-o", "out.html", "--pdf")
    assert code == 1
    assert "no PDF: none of chromium, " in said
    assert "install Chromium, or print out.html from any browser" in said
    assert (tmp_path / "out.html").exists()


def test_a_page_that_would_be_its_own_pdf_is_refused_before_anything_is_written(tmp_path, command):
    write(tmp_path / "run")
    code, said = command("run", "-o", "review.pdf", "--pdf")
    assert code == 1
    assert said.startswith("spyre-bench: review.pdf is no page: name a file in .html")
    assert not (tmp_path / "review.pdf").exists()


def test_a_browser_that_fails_is_quoted_and_an_earlier_pdf_stays(tmp_path, monkeypatch):
    broken = tmp_path / "chromium"
    broken.write_text("#!/bin/sh\necho 'out of memory' >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    pdf = Path(tmp_path / "out.pdf")
    pdf.write_text("of an earlier run")
    with pytest.raises(ValueError, match="left none and said: out of memory"):
        pages.print_pdf(tmp_path / "out.html", pdf)
    assert pdf.read_text() == "of an earlier run"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chromium", "out.pdf"]


# --- aims -----------------------------------------------------------------------------------------


def test_a_missed_aim_is_on_the_first_page_in_the_colour_of_a_warning(tmp_path):
    aims = {
        "quick": {"state": "met", "evidence": "1 s"},
        "on time": {"state": "disturbed", "evidence": "a neighbour"},
        "exact": {"state": "missed", "evidence": "off by 23 %"},
    }
    page = page_of(write(tmp_path, kept=KEPT | {"aims": aims}))
    summary = page.find(id="summary")
    rows = [[cell.get_text() for cell in row.find_all("td")] for row in summary.find_all("tr")[1:]]
    assert rows == [
        ["missed", "exact", "off by 23 %", "some"],
        ["disturbed", "on time", "a neighbour", "some"],
    ]
    assert summary.find("li", class_="warn").get_text() == "1 aim missed"
    assert summary.find("span", string="missed")["class"] == ["pill", "warn"]
    assert "1 of 1 checks passed" in section(page, "summary"), "an aim is no check"


def test_aims_that_were_all_met_warn_of_nothing_and_without_aims_there_is_no_word_of_them(tmp_path):
    aims = {"quick": {"state": "met", "evidence": "1 s"}}
    page = page_of(write(tmp_path / "a", kept=KEPT | {"aims": aims}))
    assert "0 aims missed" in section(page, "summary")
    assert not page.find("li", class_="warn")
    assert not page.find("span", class_="warn")
    assert "missed" not in section(page_of(write(tmp_path / "b")), "summary")


def test_predictions_are_shown_with_their_interval_and_what_came(tmp_path):
    predictions = pd.DataFrame(
        [("load 1", "p95_e2el_ms", 900.0, 950.0, 1000.0, 1200.0, "outside", "a.json")],
        columns=["run", "figure", "low", "point", "high", "measured", "state", "registered"],
    )
    page = page_of(write(tmp_path, predictions=predictions))
    assert "outside load 1 p95_ e2el_ ms 900 950 1,000 1,200" in section(page, "accuracy")
    assert page.find(id="accuracy").find("span", string="outside")["class"] == ["pill", "warn"]
