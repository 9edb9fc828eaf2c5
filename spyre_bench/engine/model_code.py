"""The seam between compiled passes and the code that a model is written in: FMS's (`engine/fms.py`)
or vLLM's own, which this package knows only by what stands here.

Shapes: B rows, Q query tokens of a pass, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from spyre_bench.model_sizes import ModelSizes

if TYPE_CHECKING:
    from spyre_bench.engine.compiled_model import EngineConfig

Cache = tuple[Tensor, Tensor]
"""Keys and values of one layer."""


class ModelCode(Protocol):
    """Whose implementation of a model runs; the same on every rank."""

    name: str

    def versions(self) -> dict[str, str]:
        """Of the packages that the code comes from: other versions make other compiled code."""
        ...

    def sizes(self, config: EngineConfig) -> ModelSizes:
        """Of the model in the engine's directory; loads no weight.

        Raises ValueError, in one sentence, for one that this code does not compute as transformers
        would.
        """
        ...

    def load(self, config: EngineConfig, sizes: ModelSizes, returns_caches: bool) -> LoadedModel:
        """This rank's share of the model, weights in place. `returns_caches`: a pass returns its
        caches instead of writing in place, as the card's own operations do."""
        ...


class LoadedModel(ABC):
    """One rank's model, as compiled passes run it.

    Both passes are plain functions, so that each shape gets a code object of its own (see
    `compile_pass`). Either returns its caches too, where the model was loaded so.
    """

    module: nn.Module
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
