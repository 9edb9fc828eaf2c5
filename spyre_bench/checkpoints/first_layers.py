"""A model's first layers as a model of their own: what depth costs, without the whole model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from spyre_bench.checkpoints.weight_files import WeightFiles


def shallow_copy(source: Path, layers: int, target: Path) -> Path:
    """Writes the first `layers` decoder layers of a Hugging Face directory, with everything
    around them, as the directory `target`; returns it. ValueError for more than there are."""
    config = json.loads((source / "config.json").read_text())
    depth = config["num_hidden_layers"]
    if not 1 <= layers <= depth:
        raise ValueError(f"{layers} layers of {source}: it has {depth}, use 1 to {depth}")
    target.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*"):
        if path.is_file() and "safetensors" not in path.name:
            shutil.copyfile(path, target / path.name)
    (target / "config.json").write_text(json.dumps(_cut(config, layers)))
    tensors = {}
    for shard in WeightFiles(source).files:
        with safe_open(shard, framework="pt") as file:
            kept = filter(lambda name: _layer(name) < layers, file.keys())
            tensors |= {name: file.get_tensor(name) for name in kept}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def _cut(config: dict, layers: int) -> dict:
    types = config.get("layer_types")  # one per layer
    cut = {"num_hidden_layers": layers} | ({"layer_types": types[:layers]} if types else {})
    return config | cut


def _layer(name: str) -> int:
    """The decoder layer of a tensor, -1 for those around the layers."""
    parts = name.split(".")
    return int(parts[parts.index("layers") + 1]) if "layers" in parts else -1
