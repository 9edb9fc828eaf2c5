"""Of a notebook's code, what its panel needs: the statements that make the values it is given."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from IPython.core.inputtransformer2 import TransformerManager

EXPLORE = "explore"  # the name that notebooks have for the room of the panels


def panel_code(cells: Iterable[str]) -> str:
    """The code that shows the panel: its cell, and of those before it the statements without which
    it could not run, in their order. Empty where there is no panel.

    A statement is needed where it binds a name that a later one reads, or stores into its value
    (`frame["x"] = ...`); one that is only called, to draw or to check, is not. Annotated names are
    the parameters, all of them needed.
    """
    statements = [it for cell in cells for it in ast.parse(_plain(cell)).body]
    panels = [number for number, it in enumerate(statements) if _call(it)]
    if not panels:
        return ""
    last = panels[-1]
    kept, needed = [statements[last]], set(_reads(statements[last]))
    for statement in reversed(statements[:last]):
        made = set(_makes(statement))
        if made & needed or isinstance(statement, ast.AnnAssign):
            kept.append(statement)
            needed |= set(_reads(statement))
    return "\n".join(ast.unparse(it) for it in reversed(kept))


def panel_call(code: str) -> str:
    """The name of the function in `explore` that makes the panel."""
    calls = [_call(it) for it in ast.parse(code).body]
    return next(name for name in reversed(calls) if name)


def _plain(cell: str) -> str:
    """Without magics, which are calls of Jupyter."""
    return TransformerManager().transform_cell(cell)


def _call(statement: ast.stmt) -> str:
    """The panel's function where the statement shows a panel."""
    if not isinstance(statement, ast.Expr):
        return ""
    called = [it.func for it in ast.walk(statement) if isinstance(it, ast.Call)]
    ours = (it for it in called if isinstance(it, ast.Attribute) and _is_explore(it.value))
    return next((it.attr for it in ours), "")


def _is_explore(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == EXPLORE


def _makes(statement: ast.stmt) -> Iterator[str]:
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, (ast.Subscript, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            yield from _reads(node.value)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from ((it.asname or it.name).split(".")[0] for it in node.names)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name


def _reads(node: ast.AST) -> Iterator[str]:
    yield from (it.id for it in ast.walk(node) if isinstance(it, ast.Name))
