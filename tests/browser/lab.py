"""JupyterLab as `make lab` starts it, and a notebook in it as someone at a browser uses it."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from playwright.sync_api import Locator, Page, expect

from spyre_bench.explore.result import ALONG, TITLES
from tests.plugin.servers import Run

TOKEN = "spyre"
QUIET = {
    # A notebook as it is: cells that are out of sight have their output too.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}
MINUTE = 60_000  # milliseconds, in which Playwright counts


class Lab(Run):
    """JupyterLab on a folder, on a free port, with settings of its own."""

    def __init__(self, folder: Path, home: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"
        for name, settings in QUIET.items():
            path = home / "settings" / f"{name.replace(':', '/')}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(settings))
        super().__init__(
            [
                str(Path(sys.executable).with_name("jupyter")),
                "lab",
                str(folder),
                "--no-browser",
                f"--ServerApp.port={port}",
                f"--IdentityProvider.token={TOKEN}",
                *(["--allow-root"] if os.geteuid() == 0 else []),
            ],
            home / "lab.log",
            JUPYTERLAB_SETTINGS_DIR=str(home / "settings"),
            JUPYTERLAB_WORKSPACES_DIR=str(home / "workspaces"),
            JUPYTER_CONFIG_DIR=str(home / "config"),
            JUPYTER_RUNTIME_DIR=str(home / "runtime"),
            IPYTHONDIR=str(home / "ipython"),
        )
        self.wait_for(lambda: self.get("status"))

    def address(self, path: str = "") -> str:
        """Of a page that opens nothing else: JupyterLab would open what the last one left."""
        return f"{self.url}/lab{path}?reset&token={TOKEN}"

    def end_kernels(self) -> None:
        """They outlive the page that started them."""
        for kernel in self.get("kernels"):
            address = f"{self.url}/api/kernels/{kernel['id']}?token={TOKEN}"
            urllib.request.urlopen(urllib.request.Request(address, method="DELETE"), timeout=60)

    def get(self, path: str) -> Any:
        """What the server's interface answers; nothing while it does not."""
        try:
            with urllib.request.urlopen(f"{self.url}/api/{path}?token={TOKEN}", timeout=5) as reply:
                return json.load(reply)
        except OSError:
            return None

    def put(self, notebook: Path, parameters: Mapping[str, Any]) -> str:
        """A copy of the notebook in the folder, its parameters set as a headless run sets them."""
        copy = parameterize_notebook(load_notebook_node(str(notebook)), dict(parameters))
        nbformat.write(copy, self.folder / notebook.name)
        return self.address(f"/tree/{notebook.name}")


class Opened:
    """A notebook in a browser."""

    def __init__(self, page: Page, address: str):
        self.page = page
        page.goto(address)
        # As long as no kernel is connected, JupyterLab forgets what it is told to run.
        page.get_by_text(re.compile(r"\| Idle$")).wait_for(timeout=2 * MINUTE)

    def run_all(self, minutes: float) -> None:
        """Run → Run All Cells, to its end; AssertionError with the error of a cell."""
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        stderr = self.page.locator('[data-mime-type="application/vnd.jupyter.stderr"]')
        error = stderr.filter(has_text="Traceback (most recent call last)")
        ended = self.page.locator(".jp-CodeCell").last.locator(".jp-OutputArea-output").or_(error)
        ended.first.wait_for(timeout=minutes * MINUTE)
        assert error.count() == 0, error.first.inner_text()

    @property
    def panel(self) -> Panel:
        return Panel(self.page.locator(".spyre-panel"))


class Panel:
    """The widgets of a notebook, found by the words beside them."""

    def __init__(self, box: Locator):
        self.box = box
        self._live("img").wait_for(timeout=MINUTE)

    def choose(self, control: str, option: str) -> None:
        """From a drop-down."""
        self._control("dropdown", control).locator("select").select_option(label=option)

    def press(self, control: str, key: str) -> None:
        """A key on the handle of a slider."""
        self._control("slider", control).locator(".noUi-handle").press(key)

    def click(self, button: str) -> None:
        self.box.get_by_role("button", name=button).click()

    def _live(self, selector: str) -> Locator:
        """In the result that follows the controls: the right one, or the one below."""
        return self.box.locator(f".spyre-result >> nth=1 >> {selector}")

    @property
    def pinned(self) -> Locator:
        """The result beside it."""
        return self.box.locator(".spyre-result").nth(0)

    def take_along(self) -> dict[str, bytes]:
        """The files that it offers, downloaded, by their names."""
        self._live(f"text={TITLES[ALONG]}").click()
        files = {}
        links = self._live("a[download]")
        links.first.wait_for(timeout=MINUTE)
        for link in links.all():
            with self.box.page.expect_download() as download:
                link.click()
            files[download.value.suggested_filename] = Path(download.value.path()).read_bytes()
        return files

    @property
    def link(self) -> str:
        """The address of the page with these settings."""
        return self._live("a:not([download])").evaluate("link => link.href")

    def _control(self, kind: str, words: str) -> Locator:
        return self.box.locator(f".widget-{kind}").filter(has_text=words)

    @property
    def picture(self) -> str:
        """An address that is another one for another picture."""
        return self._live("img").get_attribute("src")

    @property
    def csv(self) -> str:
        return self._live("pre >> nth=0").text_content()

    def numbers(self) -> pd.DataFrame:
        """What the figure shows."""
        return pd.read_csv(io.StringIO(self.csv))

    def wait_for_another(self, csv: str, minutes: float = 1) -> None:
        """Until the figure shows something else than this."""
        expect(self._live("pre >> nth=0")).not_to_have_text(csv, timeout=minutes * MINUTE)

    def wait_for_no_picture(self) -> None:
        expect(self._live("img")).to_be_hidden(timeout=MINUTE)

    def wait_for_another_picture(self, picture: str) -> None:
        expect(self._live("img")).not_to_have_attribute("src", picture, timeout=MINUTE)
