"""The parameters of a notebook: which there are, and what a text on the command line means for
each."""

from __future__ import annotations

import ast
import difflib
import json
import logging
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import nbformat
import papermill
from IPython.core.inputtransformer2 import TransformerManager

from spyre_bench.files import parse_yaml

# It warns of lines and parameters that its pattern misses, which the syntax tree has, and says of a
# cell that hangs what our own sentence says.
logging.getLogger("papermill").setLevel(logging.CRITICAL)
CONVERT = {
    "int": int,
    "float": float,
    "str": str,
    "bool": {"True": True, "False": False}.__getitem__,
}
NOTHING = ("None", "null")


def declared(notebook: Path, document: nbformat.NotebookNode) -> dict[str, str]:
    """The parameters with their annotations; "None" where they have none."""
    try:
        found = papermill.inspect_notebook(literal(notebook))
    except OSError:
        raise
    except Exception as error:  # papermill looks at nothing before it takes it apart
        raise ValueError(f"papermill cannot read its parameters: {str(error)[:200]}") from error
    types = {name: entry["inferred_type_name"] for name, entry in found.items()}
    return types | {name: kind or types.get(name, "None") for name, kind in _assigned(document)}


def default_texts(document: nbformat.NotebookNode) -> list[str]:
    """The texts of the defaults, which may name files."""
    constants = (it.value for it in ast.walk(_tree(document)) if isinstance(it, ast.Constant))
    return [value for value in constants if isinstance(value, str)]


def _assigned(document: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """Names and annotations by the syntax tree of the cell; papermill goes by a pattern, which
    misses a default that holds `=` and an annotation with brackets."""
    found = []
    for statement in _tree(document).body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            found.append((statement.target.id, ast.unparse(statement.annotation)))
        elif isinstance(statement, ast.Assign):
            names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
            found += [(name, statement.type_comment or "") for name in names]
    return found


def _tree(document: nbformat.NotebookNode) -> ast.Module:
    """Of the cell of parameters; empty where there is none, or none that Python can read."""
    tagged = (cell for cell in document.cells if "parameters" in cell.metadata.get("tags", ()))
    source = next((cell.source for cell in tagged if cell.cell_type == "code"), "")
    try:
        return ast.parse(TransformerManager().transform_cell(source), type_comments=True)
    except (SyntaxError, ValueError, RecursionError):  # the cell itself will say so
        return ast.Module(body=[], type_ignores=[])


def literal(path: Path) -> str:
    """Papermill reads braces in a path as its own placeholders."""
    return str(path).replace("{", "{{").replace("}", "}}")


def refuse_unknown(names: Sequence[str], known: Mapping[str, str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(
                f"has no parameter {name!r}{hint}; it has {', '.join(known) or 'none'}"
            )


def given_value(name: str, value: Any) -> Any:
    """A parameter from a file; YAML's dates as text, since a notebook's record is JSON."""
    try:
        return json.loads(json.dumps(value, default=_date))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"parameter {name} = {value!r:.80} is not a number, a text, a list or a mapping"
        ) from error


def _date(value: Any) -> str:
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(value)


def value_of(name: str, text: str, kind: str) -> Any:
    """A parameter from the command line as its notebook declares it."""
    if kind == "None":
        return _anything(name, text)
    try:
        annotation = ast.parse(kind, mode="eval").body
    except (SyntaxError, ValueError):
        annotation = ast.Constant(None)
    for one in sorted(_alternatives(annotation), key=_is_text):
        try:
            return _converted(name, text, one)
        except (KeyError, ValueError):
            continue
    raise ValueError(f"parameter {name} = {text!r} is not of type {kind}")


def _alternatives(annotation: ast.expr) -> list[ast.expr]:
    """`int | None`, `Optional[int]` and `Union[int, None]` are two each."""
    match annotation:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return [*_alternatives(left), *_alternatives(right)]
        case ast.Subscript(value=of, slice=inner) if _called(of) == "Optional":
            return [*_alternatives(inner), ast.Name("None")]
        case ast.Subscript(value=of, slice=ast.Tuple(elts=parts)) if _called(of) == "Union":
            return [one for part in parts for one in _alternatives(part)]
        case ast.Constant(value=str(quoted)):
            return _alternatives(ast.parse(quoted, mode="eval").body)
        case ast.Constant(value=None):
            return [ast.Name("None")]
    return [annotation]


def _is_text(annotation: ast.expr) -> bool:
    """Anything is a text: it is tried last."""
    return _called(annotation) == "str"


def _called(annotation: ast.expr) -> str:
    """`typing.Literal` is Literal."""
    return ast.unparse(annotation).rpartition(".")[2]


def _converted(name: str, text: str, annotation: ast.expr) -> Any:
    """ValueError or KeyError where the text is none of that kind."""
    called = _called(annotation)
    if called in CONVERT:
        return CONVERT[called](text)
    if called == "None":
        return dict.fromkeys(NOTHING)[text]
    if isinstance(annotation, ast.Subscript) and _called(annotation.value) == "Literal":
        choices = ast.literal_eval(annotation.slice)
        choices = choices if isinstance(choices, tuple) else (choices,)
        return {str(choice): choice for choice in choices}[text]
    return _anything(name, text)


def _anything(name: str, text: str) -> Any:
    value = given_value(name, parse_yaml(text, f"parameter {name}"))
    if value is None:
        raise ValueError(f"parameter {name} = {text!r} has no value")
    return value
