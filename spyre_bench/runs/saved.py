"""What JupyterLab leaves in a notebook that it saves: `make lab` opens the tracked ones, whose
outputs belong into reports."""

from __future__ import annotations

from typing import Any


def without_outputs(model: dict[str, Any], **_: Any) -> None:
    """Jupyter's `pre_save_hook`: what goes to the disk has no outputs; the browser keeps them."""
    if model["type"] != "notebook" or model["content"] is None:
        return
    for cell in model["content"]["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
