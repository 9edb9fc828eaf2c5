"""The app as `make app` starts it, on a free port, without a browser of its own."""

from __future__ import annotations

import socket
import sys
import urllib.request
from pathlib import Path

from tests.plugin.servers import Run


class App(Run):
    def __init__(self, notebooks: Path, runs: Path, home: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://localhost:{port}"
        command = [str(Path(sys.executable).with_name("spyre-bench")), "app", str(notebooks)]
        super().__init__(
            [*command, "--runs", str(runs), "--port", str(port), "--no-browser"],
            home / "app.log",
            JUPYTER_RUNTIME_DIR=str(home / "runtime"),
            IPYTHONDIR=str(home / "ipython"),
        )
        self.wait_for(self._answers)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=5) as reply:
                return reply.status == 200
        except OSError:
            return False
