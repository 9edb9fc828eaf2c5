"""Which parameters a notebook has, and what a text means for each."""

from typing import Literal

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from spyre_bench.runs import report
from spyre_bench.runs.parameters import declared, given_value, refuse_unknown, value_of

CELL = """%matplotlib inline
import typing
from typing import Literal, Optional
a: int = 2
url: str = "x=y"  # with a sign
size: int | None = None
way: Literal["in", "out", 3] = "in"
old: Optional[float] = None
any = [1]
late: typing.Dict[str, int] = dict(a=1)
b = 1  # type: int
later: int"""


@pytest.fixture
def known(tmp_path) -> dict[str, str]:
    cell = new_code_cell(CELL, metadata={"tags": ["parameters"]})
    document = new_notebook(cells=[cell])
    document.metadata = {
        "kernelspec": {"name": "python3", "display_name": "p"},
        "language_info": {"name": "python"},
    }
    nbformat.write(document, tmp_path / "n{1}.ipynb")
    return declared(tmp_path / "n{1}.ipynb", document)


def test_every_name_of_the_cell_is_known_with_its_annotation(known):
    assert known == {
        "a": "int",
        "url": "str",
        "size": "int | None",
        "old": "Optional[float]",
        "any": "None",
        "way": "Literal['in', 'out', 3]",
        "late": "typing.Dict[str, int]",
        "b": "int",
        "later": "int",
    }
    with pytest.raises(ValueError, match=r"no parameter 'urll' \(did you mean url\?\); it has"):
        refuse_unknown(["urll"], known)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("int", "3", 3),
        ("str", "3", "3"),
        ("int | None", "3", 3),
        ("int | None", "None", None),
        ("str | None", "None", None),
        ("str | int", "3", 3),
        ("str | int", "x", "x"),
        ("Optional[float]", "2.5", 2.5),
        ("Union[bool, None]", "True", True),
        ("'int | None'", "null", None),
        ("Literal['a', 3]", "3", 3),
        ("typing.Literal['a=b']", "a=b", "a=b"),
        ("list[int]", "[1, 2]", [1, 2]),
        ("None", "2024-01-01", "2024-01-01"),
        ("None", "x: 1", {"x": 1}),
    ],
)
def test_a_text_is_read_as_its_parameter_is_annotated(kind, text, value):
    assert value_of("p", text, kind) == value
    assert type(value_of("p", text, kind)) is type(value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [("int", "2.5"), ("bool", "yes"), ("int | None", "x"), ("Literal['a']", "b"), ("list", "[")],
)
def test_a_text_of_another_kind_is_refused_with_the_annotation(kind, text):
    with pytest.raises(ValueError, match=r"parameter p = '.+' is not of type"):
        value_of("p", text, kind)


def test_a_value_from_a_file_that_no_record_could_hold_is_refused():
    with pytest.raises(ValueError, match=r"parameter p = \{1\} is not a number, a text"):
        given_value("p", {1})


def test_a_record_takes_the_same_annotations():
    kinds = {"size": int | None, "way": Literal["in", 3], "seed": int}
    rules = {"size": report.between(1, 8)}
    good = {"__annotations__": kinds, "size": None, "way": 3, "seed": 1}
    assert report.start("?", good, **rules).parameters.size is None
    for bad, words in (
        ({"size": "x"}, "size = 'x' is not a whole number"),
        ({"size": 9}, "size = 9: use a number from 1 to 8"),
        ({"way": "out"}, "way = 'out' is not one of 'in', 3"),
        ({"seed": -1}, "seed = -1: use 0 or more"),
    ):
        with pytest.raises(ValueError, match=words):
            report.start("?", good | bad, **rules)
