"""`vllm bench serve` as often as wanted, in one process.

vLLM's own command would spend nine seconds on imports before each run, while the machine drifts
away from the constants of the run before.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROGRAM = (sys.executable, "-m", "spyre_bench.plugin.bench_client")
LAST_WORDS = 1000  # characters of the log that an error quotes


@dataclass
class BenchClient:
    """The process, and where it prints. `prefix` is the words before Python's own of its command,
    `on_start` runs in it before that."""

    log: Path
    prefix: Sequence[str] = ()
    on_start: Callable[[], None] | None = None
    _process: subprocess.Popen[str] | None = field(default=None, init=False)

    @property
    def session(self) -> int | None:
        """Of its processes; None before it has started."""
        return None if self._process is None else self._process.pid

    def run(self, options: Sequence[str]) -> None:
        """One run; ValueError with the end of the log where it fails."""
        process = self.start()
        assert process.stdin is not None, "a pipe"
        assert process.stdout is not None, "a pipe"
        try:
            process.stdin.write(json.dumps(list(options)) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        except BaseException:  # Ctrl-C: nobody will read the answer
            self.close()
            raise
        if not answer:
            self.close()
        if answer.strip() != "true":
            last_words = self.log.read_text().strip()[-LAST_WORDS:]
            raise ValueError(f"vllm bench serve failed: {last_words}")

    def close(self) -> None:
        """Ends the process, in the middle of a run too; the next run starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def start(self) -> subprocess.Popen[str]:
        """The process; it imports on while its caller does something else. `run` starts it too."""
        if self._process is None:
            with self.log.open("w") as sink:
                self._process = subprocess.Popen(
                    [*self.prefix, *PROGRAM],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=sink,
                    text=True,
                    start_new_session=True,
                    preexec_fn=self.on_start,
                )
        return self._process
