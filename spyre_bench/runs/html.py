"""An executed notebook as one HTML page that asks the network for nothing and runs no script,
whoever wrote the notebook."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import bleach
import mistune
import nbformat
from bleach.css_sanitizer import CSSSanitizer
from bs4 import BeautifulSoup
from markupsafe import Markup
from nbconvert import HTMLExporter

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


def notebook_page(executed: Path, title: str) -> str:
    """The page; scripts, styles and outside images of its Markdown and outputs are left out."""
    exporter = HTMLExporter(sanitize_html=True, **dict.fromkeys(NETWORK_ADDRESSES, ""))
    exporter.register_filter("clean_html", _clean)
    notebook = nbformat.read(executed, as_version=4)
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"/>'
    return page.replace("<head>", f"<head>{policy}", 1)


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
