"""The server that a notebook starts, and what its client is asked for."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from spyre_bench.validate import bench_client, server
from spyre_bench.workload.workload import Workload
from tests.processes import runs

READY = """#!{python}
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Ready(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Ready).serve_forever()
"""


@pytest.mark.parametrize("replays", [True, False])
def test_a_server_that_replays_starts_its_client_and_ends_with_it(tmp_path, monkeypatch, replays):
    command = tmp_path / "vllm"
    command.write_text(READY.format(python=sys.executable))
    command.chmod(0o755)
    monkeypatch.setattr(server, "VLLM", command)
    monkeypatch.setattr(bench_client, "PROGRAM", ("cat",))
    with server.serve(tmp_path, "1,8,8", tmp_path, replays=replays) as running:
        sessions = running.sessions
        assert all(map(runs, sessions))
    assert len(sessions) == 1 + replays
    assert not any(map(runs, sessions))


class Answering:
    """A client whose every request succeeds."""

    def run(self, options: list[str]) -> None:
        given = dict(pairwise(options))
        result = Path(given["--result-dir"]) / given["--result-filename"]
        result.write_text(json.dumps({"failed": 0}))


def test_no_prompt_of_a_run_begins_as_one_of_another_run(tmp_path):
    """They are drawn by their names, and the client's process may be the same."""
    lengths = np.array([5, 5, 7])
    workload = Workload("three", np.zeros(3), lengths, lengths, lengths)
    to = server.Server("http://nowhere", tmp_path, tmp_path / "passes.jsonl", 0, Answering())
    for name in ("first", "second"):
        server.replay(to, workload, tmp_path, name)
    traces = [tmp_path / "first.jsonl", tmp_path / "second.jsonl"]
    lines = [json.loads(line) for path in traces for line in path.read_text().splitlines()]
    assert len({name for line in lines for name in line["hash_ids"]}) == 2 * len(workload)
