"""What becomes of the ranks of a tensor parallel engine: each says why it ends, and the executor
finds out which one was the cause."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import psutil

from spyre_bench.engine.parallel import Rank

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from vllm.config import VllmConfig

LAST_WORDS = "spyre_last_words"
"""Key of the directory in vLLM's `additional_config`, which reaches every rank."""


def open_last_words(vllm_config: VllmConfig) -> TemporaryDirectory:
    """A directory for what ranks say when they end; for as long as the executor keeps it."""
    directory = TemporaryDirectory(prefix="spyre-bench-ranks-")
    vllm_config.additional_config[LAST_WORDS] = directory.name
    return directory


@contextmanager
def last_words(vllm_config: VllmConfig, rank: Rank) -> Iterator[None]:
    """Writes an error down before it goes on. A rank that answers nobody ends with it: the others
    wait for it in a collective, and only its end wakes them."""
    try:
        yield
    except Exception as error:
        directory = vllm_config.additional_config.get(LAST_WORDS)
        if directory is None:  # one rank, whose errors reach everybody
            raise
        with suppress(OSError):  # the executor may be gone
            partial = Path(directory, f"{rank.rank}.partial")
            partial.write_text(
                f"{rank} (process {os.getpid()}) failed: {type(error).__name__}: {error}"
            )
            os.replace(partial, _words(Path(directory), rank))
        if rank.rank:
            raise SystemExit(1) from error
        raise


@dataclass(frozen=True)
class RankProcess:
    """A rank's process as its parent sees it."""

    rank: Rank
    process: BaseProcess

    def is_stopped(self) -> bool:
        with suppress(psutil.Error):
            return psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED
        return False

    def __str__(self) -> str:
        return f"{self.rank} (process {self.process.pid})"


def diagnose(ranks: Sequence[RankProcess], directory: Path, told_for_s: float = 0.0) -> str | None:
    """Which ranks failed and why, the cause only; None while all of them run. During the start,
    before the processes are known, `ranks` may be empty.

    A rank that died without a word or is stopped is a cause; the errors of others, whose
    connection it broke, then are not. Among errors the first one is, once it is `told_for_s`
    seconds old: the death that broke a connection may show a little later than its end.
    """
    silent = []
    for one in ranks:
        code = one.process.exitcode
        if code is not None and not _words(directory, one.rank).exists():
            silent.append(f"{one} {_end(code)}")
        elif code is None and one.is_stopped():
            silent.append(f"{one} is stopped (SIGSTOP)")
    if silent:
        return "; ".join(silent)
    told = sorted(directory.glob("*.words"), key=lambda path: path.stat().st_mtime_ns)
    if not told or time.time() - told[0].stat().st_mtime < told_for_s:
        return None
    return told[0].read_text()


def _words(directory: Path, rank: Rank) -> Path:
    return directory / f"{rank.rank}.words"


def _end(exitcode: int) -> str:
    if exitcode == -signal.SIGKILL:
        return "was killed by SIGKILL (by the kernel, where memory ran out: see its log)"
    if exitcode < 0:
        return f"was ended by {signal.Signals(-exitcode).name}"
    return f"ended with exit code {exitcode}"
