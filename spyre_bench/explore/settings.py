"""The settings of a panel as they travel: in a line of code, in the link of a page, and back."""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

if TYPE_CHECKING:
    from ipywidgets import Widget

QUERY = "QUERY_STRING"  # Voilà's, of the page that is open
KINDS = {int: "a whole number", float: "a number"}
VOILAS = {"template", "theme", "token"}  # what else may be in it


def apply(controls: Mapping[str, Widget], settings: Mapping[str, Any]) -> None:
    """Moves controls to these values, or to what these texts say. Raises ValueError for a name that
    is none of theirs and for a value that a control does not have."""
    if unknown := sorted(set(settings) - set(controls)):
        raise ValueError(f"{unknown[0]} is no setting of this panel: it has {', '.join(controls)}")
    read = {name: _read(name, controls[name], value) for name, value in settings.items()}
    for name, value in read.items():
        controls[name].value = value


def _read(name: str, control: Widget, value: Any) -> Any:
    if hasattr(control, "options"):
        pairs = [it if isinstance(it, tuple) else (it, it) for it in control.options]
        values = {str(it): it for _, it in pairs}
        if str(value) not in values:
            raise ValueError(f"{name} = {value} is not one of {', '.join(values)}")
        return values[str(value)]
    try:
        number = type(control.value)(value)
    except ValueError as error:
        raise ValueError(f"{name} = {value} is not {KINDS[type(control.value)]}") from error
    if not control.min <= number <= control.max:
        raise ValueError(f"{name} = {value} is not from {control.min:g} to {control.max:g}")
    return number


# --- as a line of code ----------------------------------------------------------------------------


def as_code(name: str, values: Mapping[str, Any], cell: str) -> str:
    """The call of the panel `name` in a notebook's cell, with these settings: to paste there."""
    for node in _nodes(cell):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name:
            others = [word for word in node.keywords if word.arg not in values]
            ours = [ast.keyword(word, ast.Constant(value)) for word, value in values.items()]
            return ast.unparse(ast.Call(node.func, node.args, others + ours))
    words = ", ".join(f"{word}={value!r}" for word, value in values.items())
    return f"explore.{name}(..., {words})"


def _nodes(cell: str) -> list[ast.AST]:
    try:
        return list(ast.walk(ast.parse(cell)))
    except SyntaxError:  # a cell with a magic
        return []


def running_cell() -> str:
    """The code of the cell that runs; empty outside a notebook."""
    from IPython import get_ipython

    shell = get_ipython()
    parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
    return parent.get("content", {}).get("code", "")


# --- as a link ------------------------------------------------------------------------------------


def in_a_page() -> bool:
    """Whether this runs behind a page of `spyre-bench app`, which has an address."""
    return QUERY in os.environ


def of_link() -> dict[str, str]:
    """The settings in the address of the page."""
    query = parse_qsl(os.environ.get(QUERY, ""), keep_blank_values=True)
    return {name: text for name, text in query if name not in VOILAS}


def as_link(values: Mapping[str, Any]) -> str:
    """The address of the page with these settings, relative to itself."""
    return f"?{urlencode(values)}"
