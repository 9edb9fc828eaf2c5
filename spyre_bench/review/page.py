"""A review as one page that needs no network, its figures as files, and its PDF by Chromium."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
from base64 import b64encode
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateError
from markupsafe import Markup, escape
from PIL import Image

from spyre_bench.files import replace_text, replacing
from spyre_bench.review.document import Figure, Review
from spyre_bench.runs.html import markdown

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PRINTING_S = 300  # before a browser is given up
LARGEST_SVG = 2**18  # bytes; a figure of more dots than that goes onto the page as PNG
COLOURS = 64  # of a PNG on the page: enough for ours, and a quarter less of a PDF's pictures
LONGEST_TEXT = 100  # characters of a table's cell; its CSV file has all


def write_page(review: Review, page: Path) -> None:
    """Writes the page, and the figures as SVG and PNG into the folder `figures_of(page)`."""
    replace_text(page, render(review))
    _copy_figures(review, figures_of(page))


def require_html(page: Path) -> None:
    """ValueError for a name of something else: the PDF has the page's, and would take its place."""
    if page.suffix != ".html":
        raise ValueError(
            f"{page} is no page: name a file in .html; its PDF (--pdf) has the same name in .pdf"
        )


def figures_of(page: Path) -> Path:
    """The folder beside the page."""
    return page.with_name(f"{page.stem}-figures")


def render(review: Review) -> str:
    """The page as HTML: everything that is not the template's own is escaped."""
    environment = Environment(
        loader=PackageLoader("spyre_bench.review"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "markdown": markdown,
        "value": value,
        "percent": percent,
        "picture": picture,
        "breakable": breakable,
        "number": pd.api.types.is_number,
    }
    try:
        return environment.get_template("review.html").render(review=review)
    except (TemplateError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"{review.folder}: a results.json there is not as a run leaves it "
            f"({type(error).__name__}: {error}): run the notebook again"
        ) from error


def print_pdf(page: Path, pdf: Path) -> None:
    """Prints the page, over an earlier PDF only once it is there; ValueError where there is no
    browser for it, or where it fails."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not browser:
        raise ValueError(
            f"no PDF: none of {', '.join(BROWSERS)} is on the PATH: install Chromium, or print "
            f"{page} from any browser"
        )
    with (
        replacing(pdf) as printed,
        tempfile.TemporaryDirectory(prefix="spyre_bench-") as profile,
    ):
        command = [
            browser,
            "--headless",
            "--disable-gpu",
            f"--user-data-dir={profile}",
            # Chromium's sandbox refuses to work for root.
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            "--no-pdf-header-footer",
            "--generate-pdf-document-outline",
            f"--print-to-pdf={printed.resolve()}",
            page.resolve().as_uri(),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PRINTING_S)
        except subprocess.TimeoutExpired as error:
            raise ValueError(
                f"no PDF: {browser} did not end within {PRINTING_S} s: print {page} from a browser"
            ) from error
        if not printed.exists():
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            raise ValueError(f"no PDF: {browser} left none and said: {said}")


def _copy_figures(review: Review, folder: Path) -> None:
    for chapter in review.chapters:
        for figure in (part for part in chapter.story if part.kind == "figure"):
            for path in figure.path.parent.glob(f"{figure.path.name}.*"):
                folder.mkdir(exist_ok=True)
                shutil.copyfile(path, folder / f"{chapter.name}-{path.name}")


# --- filters of the template --------------------------------------------------------------------


def value(content: Any) -> str:
    """A table's cell, a parameter or a result as a reader wants it: four digits of a fraction."""
    if isinstance(content, float):
        if content != content:
            return ""
        return f"{content:,.0f}" if 1e3 <= abs(content) < 1e15 else f"{content:.4g}"
    if isinstance(content, int) and not isinstance(content, bool):
        return f"{content:,}"
    text = str(content)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} …"


def percent(share: float, digits: int = 1) -> str:
    """With its sign; empty for nan."""
    return "" if share != share else f"{share:+.{digits}%}".replace("-", "−")


def breakable(name: str) -> Markup:
    """A name that may go on in the next line after an underscore."""
    return Markup(escape(name).replace("_", Markup("_<wbr>")))


def picture(figure: Figure) -> str:
    """The figure as the address of an image that is its own content; "" where no file is there.

    As an image and not as elements of the page: an SVG's names meet those of no other figure."""
    svg, png = (figure.path.with_name(f"{figure.path.name}.{end}") for end in ("svg", "png"))
    drawn = svg.read_bytes() if svg.exists() else b""
    if drawn and not (png.exists() and _prints_large(drawn)):
        return f"data:image/svg+xml;base64,{b64encode(drawn).decode()}"
    return f"data:image/png;base64,{b64encode(_few_colours(png)).decode()}" if png.exists() else ""


def _few_colours(path: Path) -> bytes:
    """The PNG with `COLOURS` colours; as it is where nothing can read it."""
    try:
        with Image.open(path) as picture:
            few = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    except OSError:
        return path.read_bytes()
    content = io.BytesIO()
    few.save(content, "PNG", optimize=True)
    return content.getvalue()


def _prints_large(svg: bytes) -> bool:
    """Whether a PNG is the smaller in a PDF: of many dots, or of hatches, each of which Chromium
    prints as a picture of the whole."""
    return len(svg) > LARGEST_SVG or b"<pattern" in svg
