"""What JupyterLab leaves in a notebook that it saves: `make lab` opens the tracked ones, whose
outputs belong into reports."""

from __future__ import annotations

from typing import Any

OF_A_RUN = ("execution", "scrolled", "collapsed")  # metadata of a cell: when it ran, how it looked


def without_outputs(model: dict[str, Any], **_: Any) -> None:
    """Jupyter's `pre_save_hook`: what goes to the disk has no outputs, and nothing else by which a
    run would be a change: the kernel's version, widgets, times. The browser keeps them."""
    if model["type"] != "notebook" or model["content"] is None:
        return
    about = model["content"]["metadata"]
    about.pop("widgets", None)
    if language := about.get("language_info"):
        about["language_info"] = {"name": language["name"]} if "name" in language else {}
    for cell in model["content"]["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
            for name in OF_A_RUN:
                cell["metadata"].pop(name, None)
