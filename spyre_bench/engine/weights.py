"""The weights of a model, held against it one by one and read when they are asked for.

transformers' own class for the checkpoint, built without memory, says which tensors of which shapes
there must be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from spyre_bench.checkpoints.weight_files import WeightFiles, header, listed
from spyre_bench.engine.carried import read_config, require_carried

if TYPE_CHECKING:
    from transformers import PretrainedConfig

COMPUTED = re.compile(r"\.rotary_emb\.inv_freq$")
"""Tensors of old checkpoints that follow from the config."""
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def require_servable(directory: Path, context_length: int) -> PretrainedConfig:
    """The config of a directory that the engine serves as transformers would, with contexts of
    `context_length` tokens; ValueError in one sentence for any other. Loads no weight."""
    config = read_config(directory)
    require_carried(config, context_length)
    require_complete(WeightFiles(directory), config)
    return config


def require_complete(files: WeightFiles, config: PretrainedConfig) -> None:
    """Raises ValueError, naming and counting them, for tensors that the model needs and are
    not there, that are there and the model has no place for, or that have another shape."""
    wanted = parameter_shapes(config)
    there = {name: shape for name, shape in files.shapes.items() if not COMPUTED.search(name)}
    if config.tie_word_embeddings:
        there.pop(HEAD, None)  # held against the embedding when both are read
    missing, unused = wanted.keys() - there.keys(), there.keys() - wanted.keys()
    if missing or unused:
        raise ValueError(
            f"{files.directory}: the weights are not those of its config.json: "
            f"{len(missing)} missing{listed(missing, ': ')}; {len(unused)} unused"
            f"{listed(unused, ': ')}{_prefix_hint(missing, unused)}"
        )
    for name, shape in wanted.items():
        if there[name] != shape:
            raise ValueError(
                f"{files.directory}: {name} has shape {list(there[name])}, its config.json "
                f"asks for {list(shape)}"
            )


def finite_tensors(
    files: WeightFiles, config: PretrainedConfig, dtype: torch.dtype
) -> FiniteTensors:
    """What is to be loaded, read when asked for. Raises ValueError where a tied head is there
    and is not the embedding."""
    names = [name for name in files.shapes if not COMPUTED.search(name)]
    tensors = FiniteTensors(files, names, dtype)
    if config.tie_word_embeddings and HEAD in tensors:
        if not torch.equal(tensors[HEAD], tensors[EMBEDDING]):
            raise ValueError(
                f"{files.directory}: tie_word_embeddings is true, but {HEAD} is not "
                f"{EMBEDDING}: set it to false, or take the tensor out"
            )
        del tensors[HEAD]
    return tensors


class FiniteTensors(dict[str, Any]):
    """Tensors by name, in the engine's dtype, read from their files when asked for; ValueError for
    one that is not finite. Holds nothing: a value is read anew each time."""

    def __init__(self, files: WeightFiles, names: Iterable[str], dtype: torch.dtype):
        places = {name: path for path in files.files for name in header(path)}
        super().__init__({name: places[name] for name in names})
        self.dtype = dtype

    def __getitem__(self, name: str) -> Tensor:
        path = super().__getitem__(name)
        with safe_open(path, framework="pt") as file:
            stored = file.get_tensor(name)
        if not stored.is_floating_point():
            raise ValueError(
                f"{path}: {name} holds {str(stored.dtype).removeprefix('torch.')}, of a quantised "
                f"checkpoint: serve an unquantised one"
            )
        tensor = stored.to(self.dtype)
        # a sum is finite only if all parts are: one pass over memory instead of two
        if not tensor.sum(dtype=torch.float64).isfinite():
            count = int((~tensor.isfinite()).sum())
            raise ValueError(
                f"{path}: {name} has {count} values that are not finite in "
                f"{str(self.dtype).removeprefix('torch.')}: the checkpoint is damaged, or its "
                f"values exceed that type"
            )
        return tensor


def parameter_shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of transformers' model, tied ones once."""
    model = skeleton(config)
    return {name: tuple(value.shape) for name, value in model.named_parameters()}


def skeleton(config: PretrainedConfig) -> torch.nn.Module:
    """transformers' model of a config, without memory. Raises ValueError for sizes that it
    refuses."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except Exception as error:  # whatever a model's own code raises at impossible sizes
        raise ValueError(
            f"transformers cannot build a model from this config.json: {error}"
        ) from error


def _prefix_hint(missing: Iterable[str], unused: Iterable[str]) -> str:
    """Where all names would fit without a prefix, or with one, what wrapped the model."""
    for name in sorted(unused):
        for wanted in missing:
            if name.endswith(f".{wanted}"):
                prefix = name.removesuffix(wanted)
                return (
                    f". The names begin with {prefix!r}, as of a wrapped model: save the model "
                    f"that is inside (PEFT: merge_and_unload; torch.compile: _orig_mod)"
                )
            if wanted.endswith(f".{name}"):
                prefix = wanted.removesuffix(name)
                return f". The names lack {prefix!r}: save the model with its head"
    return ""
