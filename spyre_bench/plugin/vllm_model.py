"""vLLM's own model code in the engine's compiled passes (`"model_code": "vllm"`).

vLLM builds, shards and loads the model; its attention and experts are then replaced by forms that
compile into one graph for all layers, and its products by oneDNN's.

Shapes: B rows, Q query tokens of a pass, V vocabulary, h hidden size.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from vllm.config import set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.ir import set_default_torch_wrap
from vllm.model_executor.layers import rotary_embedding
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)

from spyre_bench.engine.linear import pack, packed_linear
from spyre_bench.engine.model_code import Cache, LoadedModel
from spyre_bench.engine.parallel import Rank
from spyre_bench.model_sizes import ModelSizes
from spyre_bench.plugin.shims import leave_compiling_to_the_engine, make_shutdown_quiet
from spyre_bench.plugin.vllm_attention import PassAttention, prepare, replace_attention
from spyre_bench.plugin.vllm_experts import replace_experts
from spyre_bench.plugin.vllm_loading import load_watched
from spyre_bench.plugin.vllm_sizes import sizes_of
from spyre_bench.shape_set import ShapeSet
from spyre_bench.shapes import BucketSet

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class VLLMCode:
    """The classes of vLLM's registry, as one engine's configuration has them."""

    name = "vllm"
    compile_backends = ("eager", "inductor")  # the card's attention is FMS's own operation

    def __init__(self, vllm_config: VllmConfig):
        self.vllm_config = vllm_config

    @classmethod
    def of(
        cls, directory: Path, compiled: BucketSet | ShapeSet, *, dtype: str = "float32", tp: int = 1
    ) -> VLLMCode:
        """For an engine that vLLM does not start itself, such as a measurement's.

        Raises ValueError for a model or shapes that the backend refuses.
        """
        from vllm.engine.arg_utils import EngineArgs  # the platform must be known before

        if isinstance(compiled, BucketSet):
            asked: dict[str, Any] = {"buckets": str(compiled)}
        else:
            asked = {
                "batching": "continuous",
                "prefill_shapes": " ".join(map(str, compiled.prefill)),
                "decode_shapes": " ".join(map(str, compiled.decode)),
                "blocks": compiled.blocks,
            }
        arguments = EngineArgs(
            model=str(directory),
            skip_tokenizer_init=True,
            dtype=dtype,
            tensor_parallel_size=tp,
            additional_config={"spyre": asked | {"model_code": cls.name}},
        )
        return cls(arguments.create_engine_config())

    def versions(self) -> dict[str, str]:
        # some of its models are transformers' own layers
        return {name: version(name) for name in ("vllm", "transformers")}

    def sizes(self, directory: Path, context_length: int) -> ModelSizes:
        return sizes_of(self.vllm_config, directory, context_length)

    def load(
        self,
        directory: Path,
        sizes: ModelSizes,
        dtype: torch.dtype,
        context_length: int,
        rank: Rank,
        returns_caches: bool,
    ) -> VLLMModel:
        assert not returns_caches, "on sendnn alone"
        assert dtype == self.vllm_config.model_config.dtype, "vLLM's configuration is of another"
        set_default_torch_wrap(False)  # norms as plain torch, which Inductor fuses
        make_shutdown_quiet()  # vLLM's loader empties an accelerator's cache
        rotary_embedding._ROPE_DICT.clear()  # kept by parameters, but longrope knows the length too
        self._join_groups(rank)
        with set_current_vllm_config(self.vllm_config):
            self.vllm_config.compilation_config.static_forward_context.clear()
            module = load_watched(self.vllm_config)
        leave_compiling_to_the_engine()  # now that all its modules are loaded
        rejoin = partial(self._join_groups, rank)
        return VLLMModel(module.requires_grad_(False), sizes, rank.tp, rejoin)

    def _join_groups(self, rank: Rank) -> None:
        """vLLM's groups on the process group that the ranks have made already; alone, one of its
        own. Made anew: an earlier engine of dense layers in this process has left none for experts.
        """
        if not dist.is_initialized():
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        with set_current_vllm_config(self.vllm_config):
            parallel_state.init_distributed_environment(
                rank.tp, rank.rank, "env://", rank.rank, backend="gloo"
            )
            parallel_state.destroy_model_parallel()
            parallel_state.ensure_model_parallel_initialized(rank.tp, 1)


class VLLMModel(LoadedModel):
    graphs_per_pass = torch._dynamo.config.recompile_limit  # some models' layers are of two kinds

    def __init__(self, module: nn.Module, sizes: ModelSizes, tp: int, rejoin: Callable[[], None]):
        self.module = module
        self._rejoin = rejoin
        self.attention = replace_attention(module)
        _require_one_cache(self.attention, sizes, tp)
        replace_experts(module)
        self.whole_pass = _run_model
        self.layer_pass = _run_layer

    def inputs(
        self,
        tokens: Tensor,
        positions: Tensor,
        caches: Sequence[Cache],
        attention: Mapping[str, Any],
    ) -> tuple[Tensor, Tensor]:
        if not parallel_state.model_parallel_is_initialized():
            self._rejoin()  # another engine of this process has ended, and taken them with it
        prepare(self.attention, positions, caches, attention)
        return tokens, positions

    def route_layers(self, current: Callable[[], Callable[..., Any]]) -> None:
        layers = _decoder_layers(self.module)
        for index, layer in enumerate(layers):
            layers[index] = _SwitchedLayer(layer, current)

    def pack_linears(self, rows: int) -> None:
        holders = Counter(id(part.weight) for part in self.module.modules() if _has_weight(part))
        for part in [part for part in self.module.modules() if _is_product(part, self.module)]:
            weight = part.weight
            part.quant_method = _Packed(weight, rows)
            if holders[id(weight)] == 1 and not _looks_up(part):
                part.register_parameter("weight", None)  # frees it


def _has_weight(part: nn.Module) -> bool:
    return isinstance(getattr(part, "weight", None), Tensor)


def _is_product(part: nn.Module, module: nn.Module) -> bool:
    """Whether it multiplies by its weight as vLLM's plain layers do: linear layers, but for those
    with a forward of their own, and the head, which may be the embedding itself."""
    method = type(getattr(part, "quant_method", None))
    if isinstance(part, LinearBase):
        return method is UnquantizedLinearMethod and type(part).forward in _PLAIN_FORWARDS
    is_head = isinstance(part, ParallelLMHead) or part is getattr(module, "lm_head", None)
    return is_head and method is UnquantizedEmbeddingMethod


def _looks_up(part: nn.Module) -> bool:
    return isinstance(part, VocabParallelEmbedding) and not isinstance(part, ParallelLMHead)


_PLAIN_FORWARDS = {layer.forward for layer in LinearBase.__subclasses__()}


class _Packed(QuantizeMethodBase):
    """A layer's product on oneDNN's packed weights; a lookup stays on the dense ones."""

    def __init__(self, weight: Tensor, rows: int):
        self.packed = pack(weight, rows)

    def create_weights(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("the weights are there")

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return packed_linear(x, self.packed, bias)

    def embedding(self, layer: nn.Module, tokens: Tensor) -> Tensor:
        return nn.functional.embedding(tokens, layer.weight)


class _SwitchedLayer(nn.Module):
    """A decoder layer that runs in whichever compiled pass the engine is in (scope `layer`)."""

    def __init__(self, layer: nn.Module, current: Callable[[], Callable[..., Any]]):
        super().__init__()
        self.layer = layer
        self.current = current
        self.parameters_of_layer = inspect.signature(layer.forward)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # some models ask a layer what it is
            return getattr(super().__getattr__("layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.parameters_of_layer.bind(*args, **kwargs)
        given = bound.arguments
        if given.get("residual", self) is None and "hidden_states" in given:
            # the first layer has none: with zeros it is a layer like the others, and one graph
            # serves all
            given["residual"] = torch.zeros_like(given["hidden_states"])
        return self.current()(self.layer, bound.args, bound.kwargs)


def _run_layer(layer, args, kwargs):
    """One decoder layer, as the model calls it; its attention was prepared."""
    return layer(*args, **kwargs)


def _run_model(model, tokens, positions):
    """The whole model: tokens and positions [B, Q] in, logits [B, V] of the last column out."""
    hidden = model(tokens.flatten(), positions.flatten())
    return model.compute_logits(hidden.view(*tokens.shape, -1)[:, -1])


def _decoder_layers(module: nn.Module) -> nn.ModuleList:
    """The outermost list whose entries attend."""
    for child in module.modules():
        if isinstance(child, nn.ModuleList) and any(
            isinstance(part, PassAttention) for part in child.modules()
        ):
            return child
    raise ValueError(
        'this model keeps its decoder layers in no list: set "compile_scope" to "model"'
    )


def _require_one_cache(layers: Sequence[PassAttention], sizes: ModelSizes, tp: int) -> None:
    """Raises ValueError where the layers' keys and values do not have the size reckoned with."""
    expected = (sizes.layers, {(sizes.card_kv_heads(tp), sizes.head_dim)})
    found = (len(layers), {(layer.kv_heads, layer.head_dim) for layer in layers})
    if found != expected:
        raise ValueError(
            f"the model has {found[0]} attention layers with (KV heads, head size) "
            f"{sorted(found[1])}, and its configuration says {expected[0]} with "
            f"{sorted(expected[1])}: layers of different sizes are not served"
        )
