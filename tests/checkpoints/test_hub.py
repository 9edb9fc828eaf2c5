"""A hub id becomes a directory, against a small hub of our own on this machine."""

import errno
import http.server
import json
import socket
import threading
import time
from pathlib import Path

import pytest

from spyre_bench.checkpoints import find

pytestmark = pytest.mark.engine

SHA = "c0ffee" + "0" * 34


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves the files of `Hub.root` as model `us/tiny`; `us/gated` is gated, others unknown."""

    root: Path
    fetched: set[str]

    def do_GET(self, body: bool = True) -> None:
        path = self.path.split("?")[0]
        if "us/gated" in path:
            self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif not path.removeprefix("/api/models").startswith("/us/tiny"):
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in path:
            files = [file for file in self.root.rglob("*") if file.is_file()]
            self.answer_json([self.entry(file) for file in files])
        elif path.startswith("/api/"):
            self.answer_json({"id": "us/tiny", "sha": SHA, "siblings": []})
        else:
            name = path.split(f"/resolve/{SHA}/")[1]
            content = (self.root / name).read_bytes()
            self.fetched.add(name)
            self.answer(200, content, {"ETag": f'"{name}"', "X-Repo-Commit": SHA}, body)

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def entry(self, file: Path) -> dict:
        name = str(file.relative_to(self.root))
        return {"type": "file", "path": name, "size": file.stat().st_size, "oid": name}

    def answer_json(self, content) -> None:
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, content: bytes, headers: dict, body: bool = True) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_) -> None:
        """Quiet."""


@pytest.fixture
def at_endpoint(monkeypatch, tmp_path):
    """A function that points huggingface_hub to a port of this machine, with an empty cache."""

    def point_to(port: int) -> None:
        from huggingface_hub import constants

        hub = f"http://127.0.0.1:{port}"
        files = hub + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    return point_to


@pytest.fixture
def hub(at_endpoint, tmp_path, tiny_llama):
    root = tmp_path / "repository"
    (root / "onnx").mkdir(parents=True)
    for file in tiny_llama.iterdir():
        (root / file.name).symlink_to(file)
    for name in ["pytorch_model.bin", "onnx/config.json", "consolidated.safetensors"]:
        (root / name).write_bytes(b"for others")
    handler = type("ThisHub", (Hub,), {"root": root, "fetched": set()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at_endpoint(server.server_port)
        yield handler
        server.shutdown()


def test_a_hub_id_is_fetched_with_the_files_we_need_and_no_others(hub, tiny_llama):
    directory = find.model_directory("us/tiny")
    assert hub.fetched == {file.name for file in tiny_llama.iterdir()}
    for file in tiny_llama.iterdir():
        assert (directory / file.name).read_bytes() == file.read_bytes()


def test_a_model_that_was_fetched_needs_the_hub_no_more(hub, at_endpoint):
    directory = find.model_directory("us/tiny")
    at_endpoint(closed_port())
    assert find.model_directory("us/tiny") == directory


def test_a_snapshot_with_a_damaged_file_says_how_to_fetch_it_again(hub):
    directory = find.model_directory("us/tiny")
    weights = (directory / "model.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"model.safetensors is damaged .* remove {directory}"):
        find.model_directory("us/tiny")


def test_a_repository_without_safetensors_is_refused(hub):
    (hub.root / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="weights in safetensors are missing"):
        find.model_directory("us/tiny")


def test_an_unknown_model_says_to_check_the_spelling(hub):
    with pytest.raises(ValueError, match="us/tinny is no directory, and the hub knows no such"):
        find.model_directory("us/tinny")


def test_a_gated_model_says_to_accept_its_terms(hub):
    with pytest.raises(OSError, match="us/gated is gated: accept its terms"):
        find.model_directory("us/gated")


@pytest.mark.parametrize("name", ["/no/such/directory", "a/b/c", "a--b", "~nobody/x"])
def test_a_name_that_no_hub_could_know_is_no_matter_of_the_network(name):
    with pytest.raises(ValueError, match="neither a directory that exists, nor a hub id"):
        find.model_directory(name)


def test_without_a_network_the_error_says_so(at_endpoint):
    at_endpoint(closed_port())
    with pytest.raises(OSError, match=r"us/tiny .*Connection refused.*: check the network"):
        find.model_directory("us/tiny")


def test_a_network_that_never_answers_is_given_up(at_endpoint, monkeypatch):
    monkeypatch.setattr(find, "HUB_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at_endpoint(silent.getsockname()[1])
        start = time.monotonic()
        with pytest.raises(OSError, match=r"timed out.*check the network"):
            find.model_directory("us/tiny")
        assert time.monotonic() - start < 2


def test_a_full_disk_of_the_hub_cache_says_how_to_move_it(hub, monkeypatch):
    def full(*_, local_files_only=False, **__):
        from huggingface_hub.errors import LocalEntryNotFoundError

        raise LocalEntryNotFoundError("") if local_files_only else OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(OSError, match=r"full.*make room, or name another place .* HF_HOME"):
        find.model_directory("us/tiny")


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
