"""The pages say what is so: their examples run, the errors and names they quote exist.

A fenced block is told by its first words: `python` is run, `console` runs its lines after `$` and
holds what they print against what stands beneath (`...` stands for anything), `csv trace.csv` is a
file of that name. Blocks of a page run in order, in one temporary folder and one namespace.
`console needs engine` is run where torch is; `console by hand: WHY` is not run.
"""

import ast
import doctest
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
from markdown_it import MarkdownIt

import spyre_bench
from spyre_bench.policy.static import POLICIES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = ("python", "console")
NEEDS = {"engine": "torch", "vllm": "vllm", "notebooks": "papermill"}
LOOSE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    language: str
    note: str
    text: str
    line: int

    @property
    def runs(self) -> bool:
        if self.language not in RUN or self.note.startswith("by hand: "):
            return False
        library = NEEDS[self.note.removeprefix("needs ")] if self.note else ""
        return not library or importlib.util.find_spec(library) is not None


def blocks(page: Path) -> Iterator[Block]:
    for token in MarkdownIt().parse(page.read_text()):
        if token.type == "fence":
            language, _, note = token.info.partition(" ")
            yield Block(language, note, token.content, token.map[0] + 1)


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Each command, its continued lines joined, and what stands beneath it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command = re.match(r"(?:.*\\\n)*.*\n?", part).group()
        yield command, part[len(command) :]


def run_commands(block: Block) -> None:
    for command, expected in commands(block.text):
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, env=os.environ, check=False
        )
        said = done.stdout + done.stderr
        if expected:
            assert doctest.OutputChecker().check_output(expected, said, LOOSE), f"{command}{said}"
        else:
            assert done.returncode == 0, f"{command}{said}"


def run_python(block: Block, page: Path, names: dict) -> None:
    exec(compile("\n" * block.line + block.text, str(page), "exec"), names)


def with_examples() -> Iterator:
    for page in PAGES:
        if examples := [block for block in blocks(page) if block.language in RUN]:
            # an example that needs torch or vLLM runs only where that is
            more = any(block.note.startswith("needs ") for block in examples)
            yield pytest.param(page, id=page.stem, marks=[pytest.mark.both] if more else [])


@pytest.mark.parametrize("page", with_examples())
def test_the_examples_of_a_page_do_what_it_says(page, tmp_path, monkeypatch, request):
    if any(block.language == "python" and "plots." in block.text for block in blocks(page)):
        figures = pytest.importorskip("matplotlib.pyplot")
        request.addfinalizer(lambda: figures.close("all"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("COLUMNS", "80")
    names: dict = {}
    with patch.dict(POLICIES):  # a page adds one
        for block in blocks(page):
            if block.runs and block.language == "python":
                run_python(block, page, names)
            elif block.runs:
                run_commands(block)
            elif re.fullmatch(r"\w+\.\w+", block.note):
                Path(block.note).write_text(block.text)


def test_a_changed_output_is_noticed():
    with pytest.raises(AssertionError):
        run_commands(Block("console", "", "$ echo 12 seconds\n13 seconds\n", 1))


def anchors(page: Path) -> set[str]:
    """Where a link can lead within a page: headings, as GitHub names them, and ids."""
    text = page.read_text()
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)"></a>', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_links_of_a_page_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
        there = page.parent / target if target else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


def test_the_readme_is_short_and_has_a_line_for_every_package():
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) < 8000
    folders = {path.parent.name for path in (ROOT / "spyre_bench").glob("*/*.py")}
    listed = re.findall(r"^      (\w+)/ +\w", text, flags=re.MULTILINE)
    assert folders <= set(listed)
    assert len(listed) == len(set(listed))


def test_the_readme_names_every_page():
    text = (ROOT / "README.md").read_text()
    assert not [page for page in PAGES[1:] if f"(docs/{page.name})" not in text]


def test_the_architecture_is_read_in_one_sitting():
    assert len((ROOT / "docs" / "ARCHITECTURE.md").read_text().splitlines()) < 100


# --- sentences and names that the package must still have -----------------------------------------


def sentences() -> list[str]:
    """Every text of the package's code, what it fills in as …; f-strings in pieces are one."""
    found = []
    for path in (ROOT / "spyre_bench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
                found.append("".join(parts))
    return found


def quoted(page: str) -> list[str]:
    """The messages that a page explains: its headings in backticks."""
    return re.findall(r"^### `(.+)`$", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)


def says(template: str, message: str) -> bool:
    """Whether the fixed words of the message stand in the template, in their order."""
    return bool(re.search(".*".join(map(re.escape, message.split("…"))), template, re.DOTALL))


def test_every_message_that_troubleshooting_explains_is_still_raised():
    messages, known = quoted("TROUBLESHOOTING.md"), sentences()
    assert len(messages) >= 25
    lost = [message for message in messages if not any(says(text, message) for text in known)]
    assert not lost


def test_a_message_that_nobody_raises_is_noticed():
    assert not any(says(text, "no bucket fits the moon=…") for text in sentences())


def test_every_name_in_the_glossary_is_in_the_module_that_it_names():
    text = (ROOT / "docs" / "GLOSSARY.md").read_text()
    package = Path(spyre_bench.__file__).parent
    files = (path.relative_to(package).with_suffix("") for path in package.rglob("*.py"))
    rooms = {".".join(path.parts) for path in files}
    names = {
        (room, name)
        for room, name in re.findall(r"`([a-z_.]+)\.([A-Z][A-Za-z_.]*|[a-z_]+)`", text)
        if room in rooms
    }
    assert len(names) >= 25
    for room, name in sorted(names):
        thing = importlib.import_module(f"spyre_bench.{room}")
        for part in name.split("."):
            fields = getattr(thing, "__dataclass_fields__", {})
            assert part in fields or hasattr(thing, part), f"{room}.{name}"
            thing = getattr(thing, part, None)
