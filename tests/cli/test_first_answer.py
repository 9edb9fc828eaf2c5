"""`make first`: what it runs answers in seconds, with a picture, and needs no engine."""

import re
import shlex
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spyre_bench.cli.main import app

ROOT = Path(__file__).parent.parent.parent
MINUTE_S = 60.0


def recipe() -> list[str]:
    """The words of the command, with the defaults of the Makefile."""
    if not (ROOT / "Makefile").exists():
        pytest.skip("no clone of the project")
    lines = re.search(r"^first:.*?\n((?:\t.*\n| .*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    text = lines[1].replace("\\\n", " ").replace("$(REPORTS)", "reports")
    program, *words = shlex.split(text.strip().removeprefix("@"))
    assert program == "$(BIN)/spyre-bench"
    return words


def test_the_first_answer_is_there_within_a_minute_with_a_picture(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    words = recipe()
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert time.monotonic() - began < MINUTE_S
    assert "<- advised" in done.output
    assert "--additional-config" in done.output
    assert (tmp_path / "reports/first.png").read_bytes().startswith(b"\x89PNG")
