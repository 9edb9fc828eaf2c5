"""An executed notebook as one HTML page: the answer below the question, code folded. It asks the
network for nothing and runs no script, whoever wrote the notebook."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import bleach
import mistune
import nbformat
from bleach.css_sanitizer import CSSSanitizer
from bs4 import BeautifulSoup
from jinja2 import DictLoader
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbformat.v4 import new_markdown_cell

# What nbconvert's pages would fetch from content networks.
NETWORK_ADDRESSES = (
    "mathjax_url",
    "require_js_url",
    "jquery_url",
    "mermaid_js_url",
    "mermaid_layout_elk_js_url",
    "widget_renderer_url",
)
# Beside the sanitizer: a browser then loads nothing from outside, whatever got through.
POLICY = "default-src 'none'; img-src data: 'self'; font-src data:; style-src 'unsafe-inline'"
TAGS = {
    *bleach.ALLOWED_TAGS,
    "br",
    "caption",
    "dd",
    "del",
    "details",
    "div",
    "dl",
    "dt",
    "hr",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "img",
    "p",
    "pre",
    "span",
    "sub",
    "summary",
    "sup",
    "table",
    "tbody",
    "td",
    "tfoot",
    "th",
    "thead",
    "tr",
}
ATTRIBUTES = {
    "alt",
    "border",
    "class",
    "colspan",
    "height",
    "id",
    "rowspan",
    "style",
    "title",
    "width",
}
INSIDE = re.compile(r"data:image/[\w.+-]+;base64,|[\w.-]+(/[\w.-]+)*$")


# A cell's code opens with a click, and stands open where the cell failed.
FOLDED = """
{%- extends "lab/index.html.j2" -%}
{%- block input_group -%}
{%- set failed = cell.outputs | selectattr("output_type", "equalto", "error") | list -%}
<details{% if failed %} open{% endif %}>
<summary>code [{{ cell.execution_count or " " }}]</summary>
{{ super() }}
</details>
{%- endblock input_group -%}
{%- block header -%}
{{ super() }}
<style>.jp-CodeCell summary { color: #5b6875; cursor: pointer; font-size: 80%; }</style>
{%- endblock header -%}
"""


def notebook_page(executed: Path, title: str, answer: str | None = None) -> str:
    """The page, with the answer (Markdown) where there is one; scripts, styles and outside images
    of its Markdown and outputs are left out."""
    exporter = HTMLExporter(
        sanitize_html=True,
        extra_loaders=[DictLoader({"folded.html.j2": FOLDED})],
        template_file="folded.html.j2",
        **dict.fromkeys(NETWORK_ADDRESSES, ""),
    )
    exporter.register_filter("clean_html", _clean)
    notebook = nbformat.read(executed, as_version=4)
    if answer:
        cell = new_markdown_cell(f"## Answer\n\n{answer}")
        notebook.cells.insert(_after_question(notebook), cell)
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"/>'
    return page.replace("<head>", f"<head>{policy}", 1)


def _after_question(notebook: nbformat.NotebookNode) -> int:
    """Behind the first Markdown cell, which asks it."""
    kinds = [cell.cell_type for cell in notebook.cells]
    return kinds.index("markdown") + 1 if "markdown" in kinds else 0


def _clean(html: object) -> str:
    text = html.decode() if isinstance(html, bytes) else str(html)
    soup = BeautifulSoup(text, "html.parser")
    for unread in soup(["script", "style"]):  # bleach would show their text
        unread.decompose()
    return bleach.clean(
        str(soup),
        tags=TAGS,
        attributes=_allowed,
        strip=True,
        protocols={"http", "https", "mailto", "data"},
        css_sanitizer=CSSSanitizer(allowed_css_properties=["text-align"]),
    )


def _allowed(tag: str, name: str, value: str) -> bool:
    if tag == "img" and name == "src":
        return bool(INSIDE.match(value))
    if tag == "a" and name == "href":
        return not value.strip().lower().startswith("data:")
    return name in ATTRIBUTES


class Words(mistune.HTMLRenderer):
    """Markdown without the network: HTML in it is text, a link its words, a picture its name."""

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return text

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return text

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        # Below the chapter's own.
        return super().heading(text, min(level + 1, 6))


_to_html = mistune.create_markdown(renderer=Words(escape=True), plugins=["table"])


def markdown(text: str) -> Markup:
    """As HTML that is safe to show, whoever wrote the text."""
    return Markup(_to_html(text))
