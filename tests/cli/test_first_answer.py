"""`make first`: what it runs answers in seconds, with a picture, and needs no engine."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spyre_bench.cli.main import app

ROOT = Path(__file__).parent.parent.parent


def recipe() -> list[str]:
    """The words of the command, with the defaults of the Makefile."""
    if not (ROOT / "Makefile").exists():
        pytest.skip("no clone of the project")
    lines = re.search(r"^first:.*?\n((?:\t.*\n| .*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    text = lines[1].replace("\\\n", " ").replace("$(REPORTS)", "reports")
    program, *words = shlex.split(text.strip().removeprefix("@"))
    assert program == "$(BIN)/spyre-bench"
    return words


def test_the_first_answer_has_a_picture_and_a_configuration(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    words = recipe()
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "<- advised" in done.output
    assert "--additional-config" in done.output
    assert done.output.endswith("picture: reports/first.png\n")
    assert (tmp_path / "reports/first.png").read_bytes().startswith(b"\x89PNG")
