"""The app: the panels of notebooks as pages without code, served by Voilà."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import nbformat
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.utils import url_path_join
from mistune import html as rendered
from nbformat import NotebookNode
from tornado import web
from tornado.ioloop import IOLoop
from traitlets.config import Config
from voila.app import Voila

from spyre_bench.runs import pages

TEMPLATES = Path(__file__).with_name("app_pages")
CELL_TIMEOUT_S = 600
IDLE_S = 3600  # of a page that nobody touches, whose kernel then ends
BROKEN = "What is wrong is told where the app was started."


def serve(notebooks: Path, runs: Path, port: int, address: str, open_browser: bool) -> None:
    """Serves the panels of the notebooks in a folder until it is interrupted. Raises ValueError
    where none of them has a panel."""
    if not _listed(notebooks, runs, "/"):
        raise ValueError(f"{notebooks}: no notebook with a panel: name a folder of notebooks")

    def as_page(request: JupyterHandler, notebook: NotebookNode, cwd: str) -> NotebookNode:
        path = notebooks / request.path_kwargs.get("path", request.path_args[0])
        return pages.page(notebook, path, runs, request.base_url)

    config = Config()
    config.Voila.root_dir = str(notebooks.absolute())
    config.Voila.port, config.Voila.ip = port, address
    config.Voila.open_browser = open_browser
    config.Voila.log_level = "WARN"
    config.VoilaConfiguration.prelaunch_hook = as_page
    config.VoilaConfiguration.file_allowlist = []
    config.VoilaExecutor.timeout = CELL_TIMEOUT_S
    config.VoilaExecutor.cell_error_instruction = BROKEN
    config.VoilaExecutor.cell_timeout_instruction = f"It took longer than {CELL_TIMEOUT_S} s."
    config.MappingKernelManager.cull_idle_timeout = IDLE_S
    config.MappingKernelManager.cull_connected = True
    Panels.launch_instance(argv=[], config=config, notebooks=notebooks, runs=runs)


class Panels(Voila):
    """Voilà on a folder, with a list of questions for its first page."""

    def __init__(self, *, notebooks: Path, runs: Path, **settings: Any):
        super().__init__(**settings)
        self._notebooks, self._runs = notebooks, runs

    def setup_template_dirs(self) -> None:
        super().setup_template_dirs()
        self.template_paths = [str(TEMPLATES), *self.template_paths]

    def init_handlers(self) -> list:
        folders = {"notebooks": self._notebooks, "runs": self._runs}
        first = [(self.server_url, Questions, folders)]
        return [*first, *super().init_handlers()]

    def start(self) -> None:
        IOLoop.current().add_callback(self._say_where)  # once it listens, on whichever port is free
        super().start()

    def stop(self) -> None:
        super().stop()
        print("app: ended, and its kernels with it")

    def _say_where(self) -> None:
        print(f"app: {self.display_url} (Ctrl-C ends it)", flush=True)


class Questions(JupyterHandler):
    """The list of pages: each question, and how the last run answered it."""

    def initialize(self, notebooks: Path, runs: Path) -> None:
        self._notebooks, self._runs = notebooks, runs

    @web.authenticated
    def get(self) -> None:
        template = jinja2.Template((TEMPLATES / "questions.html").read_text(), autoescape=True)
        self.finish(template.render(pages=_listed(self._notebooks, self._runs, self.base_url)))


def _listed(notebooks: Path, runs: Path, base_url: str) -> list[dict[str, str]]:
    listed = []
    for path in sorted(notebooks.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if not pages.has_panel(notebook):
            continue
        kept = pages.last_kept(path.stem, runs)
        answer = rendered(kept.in_short).removeprefix("<p>").removesuffix("</p>\n") if kept else ""
        aside = f"Run of {kept.answered_on} UTC" if kept else "No run has answered it yet"
        listed.append(
            {
                "address": url_path_join(base_url, "voila", "render", path.name),
                "question": pages.question(notebook),
                "answer": answer,
                "aside": aside,
            }
        )
    return listed
