"""A real JupyterLab and a real browser; where there is no browser, its tests are skipped."""

import shutil
from pathlib import Path

import pytest

DRAWN = """Promise.all(Array.from(document.images)
    .filter(image => image.checkVisibility()).map(image => image.decode()))"""
"""An empty place for a pinned result has a picture of nothing, which cannot be decoded."""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: `make test-browser` does it"
    )
    if not CHROMIUM:
        pytest.skip("Chromium is not installed: `make test-browser` says how")
    # Chromium refuses its own sandbox to root; it shows nothing here but our own pages.
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory, browser):
    from tests.browser.lab import Lab

    home = tmp_path_factory.mktemp("lab")
    (home / "notebooks").mkdir()
    lab = Lab(home / "notebooks", home)
    yield lab
    lab.clean_up()


@pytest.fixture
def page(browser, lab, request, tmp_path):
    """A fresh page. What it showed at the end is kept as a picture, the panel in its middle; its
    kernels end with it."""
    page = browser.new_page(viewport={"width": 1400, "height": 1500})
    yield page
    for panel in page.locator(".spyre-panel").all():
        panel.scroll_into_view_if_needed()
    page.evaluate(DRAWN)
    folder = Path(request.config.getoption("screenshots") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{request.node.name}.png")
    page.close()
    lab.end_kernels()
