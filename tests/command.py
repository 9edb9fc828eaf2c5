"""The command in this process: what a user sees, without the seconds that its imports take."""

import contextlib
import io
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from spyre_bench.cli import main


def spyre_bench(folder: Path, *words: object, answer: str = "") -> tuple[int, str]:
    """Exit code and everything printed by `spyre-bench WORDS` in the folder."""
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    with (
        contextlib.chdir(folder),
        patch.object(sys, "argv", ["spyre-bench", *map(str, words)]),
        patch.object(sys, "stdin", io.StringIO(answer)),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        pytest.raises(SystemExit) as ended,
    ):
        main.main()
    return ended.value.code, printed.buffer.getvalue().decode()
