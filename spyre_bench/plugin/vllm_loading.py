"""vLLM's loader, watched: every tensor of a checkpoint must go somewhere and every parameter must
come from one.

vLLM's models pass over tensors that they have no place for, such as the biases of a layer that they
build without, and leave alone what no tensor fills. Either would give other tokens than
transformers without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from vllm.model_executor.model_loader import DefaultModelLoader

from spyre_bench.checkpoints.weight_files import listed
from spyre_bench.engine.weights import parameter_shapes

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

ASKED = ("__get__", "size", "dim", "numel", "element_size", "is_floating_point")
"""What is read of a tensor that nothing is taken from."""


def load_watched(vllm_config: VllmConfig) -> nn.Module:
    """The model with its weights, under vLLM's current configuration.

    Raises ValueError, naming them, for tensors that are a parameter in transformers and that vLLM's
    model passes over, and for parameters that no tensor fills or that are not finite.
    """
    model = vllm_config.model_config
    loader = _WatchedLoader(vllm_config.load_config)
    module = loader.load_model(vllm_config=vllm_config, model_config=model)
    if passed_over := sorted(loader.passed_over & parameter_shapes(model.hf_config).keys()):
        raise ValueError(
            f"{model.architecture} in vLLM has no place for {len(passed_over)} tensors of this "
            f"checkpoint, which transformers computes with{listed(passed_over, ': ')}: vLLM's code "
            f"would give other tokens, serve another model"
        )
    _require_finite(module)
    return module


class _WatchedLoader(DefaultModelLoader):
    passed_over: set[str]  # names of tensors that nothing has been taken from

    def get_all_weights(
        self, model_config: ModelConfig, model: nn.Module
    ) -> Iterator[tuple[str, Tensor]]:
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data.fill_(torch.nan)  # what nothing fills will show
        self.passed_over = set()
        for name, tensor in super().get_all_weights(model_config, model):
            self.passed_over.add(name)
            yield name, _Watched.of(tensor, lambda name=name: self.passed_over.discard(name))


class _Watched(Tensor):
    """A tensor that tells when something is taken from it."""

    used: Callable[[], None]

    @classmethod
    def of(cls, tensor: Tensor, used: Callable[[], None]) -> _Watched:
        watched = tensor.as_subclass(cls)
        watched.used = used
        return watched

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ not in ASKED:
            for part in torch.utils._pytree.tree_leaves((args, kwargs or {})):
                if isinstance(part, cls):
                    part.used()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def _require_finite(module: nn.Module) -> None:
    damaged = [
        name
        for name, weight in module.named_parameters()
        if weight.is_floating_point() and not weight.sum(dtype=torch.float64).isfinite()
    ]
    if damaged:
        raise ValueError(
            f"{len(damaged)} weights are not in the checkpoint, or not finite in this type"
            f"{listed(damaged, ': ')}: the files are damaged, or not those of this config.json"
        )
