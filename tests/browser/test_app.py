"""The app in Chromium: the list of questions, and of each kind of page one that is turned by hand.

No code is seen, and nothing is measured: pages of what was measured show what a run has kept.
"""

import json
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="playwright is not installed: `make test-browser` does it")

from playwright.sync_api import expect

from tests.browser.app import App
from tests.browser.lab import MINUTE, Panel
from tests.explore.test_explore import some_passes

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.fixture(scope="module")
def app(tmp_path_factory, browser):
    """On the project's notebooks, after a run of 00_first_look alone."""
    home = tmp_path_factory.mktemp("app")
    kept = home / "runs" / "20260101-100000" / "00_first_look"
    (kept / "tables").mkdir(parents=True)
    some_passes().to_csv(kept / "tables/passes.csv", index=False)
    results = {
        "finished": True,
        "answer": "**Seven prompts ran in 3 batches.** Most waited.",
        "unless": "a 3.",
        "started_at": "2026-01-01T10:00:00+00:00",
    }
    (kept / "results.json").write_text(json.dumps(results))
    (kept / "outcome.json").write_text("{}")
    app = App(NOTEBOOKS, home / "runs", home)
    yield app
    app.clean_up()


def ours(app) -> tuple[str, ...]:
    """How addresses begin that lead to no other host."""
    return (app.url, app.url.replace("http", "ws"), "data:", "blob:")


@pytest.fixture
def asked(app, browser, request, tmp_path):
    """A page of the app, and of what it wanted from elsewhere; kept as a picture at the end."""
    page = browser.new_page(viewport={"width": 1900, "height": 1200})
    elsewhere = []
    page.on(
        "request",
        lambda sent: elsewhere.append(sent.url) if not sent.url.startswith(ours(app)) else None,
    )
    yield page
    folder = Path(request.config.getoption("screenshots") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{request.node.name}.png", full_page=True)
    page.close()
    assert not elsewhere


def open_question(page, app, stem: str, query: str = "") -> Panel:
    page.goto(f"{app.url}/voila/render/{stem}.ipynb{query}", timeout=3 * MINUTE)
    return Panel(page.locator(".spyre-panel"))


def test_the_first_page_asks_every_question_and_says_what_the_last_run_answered(asked, app):
    asked.goto(app.url)
    questions = asked.locator("li")
    assert questions.count() == len(list(NOTEBOOKS.glob("*.ipynb")))
    assert "Seven prompts ran in 3 batches." in questions.first.inner_text()
    assert "No run has answered it yet" in questions.last.inner_text()
    asked.get_by_role("link", name="Does tensor parallel pay?").click()
    asked.locator(".spyre-panel").wait_for(timeout=3 * MINUTE)
    assert asked.title() == "Does tensor parallel pay?"


def test_a_calculating_page_compares_is_taken_along_and_travels_in_its_link(asked, app):
    panel = open_question(asked, app, "04_does_tensor_parallel_pay")
    assert asked.locator(".jp-InputArea-editor, .highlight").count() == 0  # no code
    before = panel.csv
    panel.click("Pin this result")
    panel.choose("dtype", "fp8")
    panel.wait_for_another(before)
    expect(panel.pinned).to_contain_text("dtype: fp16")
    assert panel.pinned.locator("pre").first.text_content() == before
    left, right = (it.bounding_box() for it in asked.locator(".spyre-result img").all())
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    after = panel.csv

    files = panel.take_along()
    assert files["does_tp_pay.png"].startswith(b"\x89PNG")
    assert b"<svg" in files["does_tp_pay.svg"]
    assert json.loads(files["does_tp_pay.json"])["spyre"]["buckets"]

    asked.goto(panel.link, timeout=3 * MINUTE)
    assert Panel(asked.locator(".spyre-panel")).csv == after


def test_a_page_of_what_was_measured_shows_what_a_run_has_kept(asked, app):
    panel = open_question(asked, app, "00_first_look")
    expect(asked.locator("body")).to_contain_text("What would change it: a 3.")
    before = panel.csv
    panel.choose("bucket", "4,64,16")
    panel.wait_for_another(before)
    assert set(panel.numbers()["y"]) == {"batch 0 4,64,16", "batch 2 4,64,16"}


def test_where_no_run_has_measured_the_page_says_how(asked, app):
    asked.goto(f"{app.url}/voila/render/02_what_does_warmup_cost.ipynb", timeout=3 * MINUTE)
    expect(asked.locator("body")).to_contain_text("spyre-bench run", timeout=MINUTE)


def test_a_link_with_a_wrong_setting_is_a_sentence(asked, app):
    asked.goto(f"{app.url}/voila/render/04_does_tensor_parallel_pay.ipynb?tp=3", timeout=3 * MINUTE)
    sentence = "in the link: tp = 3 is not one of 1, 2, 4, 8"
    expect(asked.locator(".spyre-panel")).to_contain_text(sentence, timeout=MINUTE)
