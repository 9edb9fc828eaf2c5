"""The seam between compiled passes and the code that a model is written in: FMS's (`engine/fms.py`)
or vLLM's own, which this package knows only by what stands here.

Shapes: B rows, Q query tokens of a pass, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spyre_bench.engine.parallel import Rank
from spyre_bench.model_sizes import ModelSizes

Cache = tuple[Tensor, Tensor]
"""Keys and values of one layer."""


class ModelCode(Protocol):
    """Whose implementation of a model runs; the same on every rank."""

    name: str
    compile_backends: tuple[str, ...]  # that it compiles for

    def versions(self) -> dict[str, str]:
        """Of the packages that the code comes from: other versions make other compiled code."""
        ...

    def sizes(self, directory: Path, context_length: int) -> ModelSizes:
        """Of the model in a directory, for contexts of so many tokens; loads no weight.

        Raises ValueError, in one sentence, for one that this code does not compute as transformers
        would.
        """
        ...

    def load(
        self,
        directory: Path,
        sizes: ModelSizes,
        dtype: torch.dtype,
        context_length: int,
        rank: Rank,
        returns_caches: bool,
    ) -> LoadedModel:
        """This rank's share of a model that `sizes` accepted, weights in place. `returns_caches`: a
        pass returns its caches instead of writing in place, as the card's own operations do."""
        ...


class LoadedModel(ABC):
    """One rank's model, as compiled passes run it.

    Both passes are plain functions, so that each shape gets a code object of its own (see
    `compile_pass`). Either returns its caches too, where the model was loaded so.
    """

    module: nn.Module
    graphs_per_pass = 1
    """At most, in scope `layer`: one for each kind of layer."""
    layers_are_alike = False
    """Whether one graph surely holds for all layers, without a look at each."""
    whole_pass: Callable[..., Any]
    """(module, *inputs) -> logits [B, V] of the last column; compiled in scope `model`."""
    layer_pass: Callable[..., Any]
    """(layer, *what the model hands to a layer) -> hidden states; compiled in scope `layer`."""

    @abstractmethod
    def inputs(
        self,
        tokens: Tensor,
        positions: Tensor,
        caches: Sequence[Cache],
        attention: Mapping[str, Any],
    ) -> tuple[Any, ...]:
        """What `whole_pass` takes after the module. Tokens and positions [B, Q]; the masks and
        places of `attention` are those of the engine's own attention."""

    @abstractmethod
    def route_layers(self, current: Callable[[], Callable[..., Any]]) -> None:
        """From here on every decoder layer runs through `current()`, a form of `layer_pass`."""

    @abstractmethod
    def pack_linears(self, rows: int) -> None:
        """Lays weights out for products with about so many rows; see `engine/linear.py`."""

    @property
    def weight_bytes(self) -> int:
        """That this rank holds; a weight that two layers share counts once."""
        return sum(weight.nbytes for weight in set(self.module.parameters()))
