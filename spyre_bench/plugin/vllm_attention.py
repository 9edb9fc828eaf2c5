"""Attention of vLLM's own models over the engine's caches.

vLLM's layer finds its cache through a forward context by the layer's name, which would make a
graph a layer. `PassAttention` takes its place once the weights are there: it reads from itself
what `prepare` left there before the pass, so that one graph serves all layers.

Shapes: B rows, Q query tokens of a pass, S slots that a pass attends over (see the engine's
attention), H query heads, K KV heads on this rank, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import AttentionBackend, AttentionImpl, AttentionType

from spyre_bench.engine import paged_attention, static_attention
from spyre_bench.engine.model_code import Cache


class SpyreAttentionImpl(AttentionImpl):
    """What a layer of vLLM's asks of attention, kept until `PassAttention` takes its place. Raises
    ValueError, naming the feature, for what the engine's attention does not compute."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        **others: Any,
    ):
        asked = {
            "ALiBi": alibi_slopes is not None,
            f"attention of type {attn_type!r}": attn_type != AttentionType.DECODER,
            "layers that share another's KV cache": kv_sharing_target_layer_name is not None,
            **{name: value is not None for name, value in others.items()},
        }
        for feature, is_asked in asked.items():
            if is_asked:
                raise ValueError(
                    f"the spyre backend does not compute {feature} in vLLM's model code: serve "
                    f"another model"
                )
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads or num_heads
        self.head_size, self.scale = head_size, float(scale)
        self.sliding_window = sliding_window
        self.soft_cap = logits_soft_cap or None  # 0 is none too

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        raise AssertionError("PassAttention computes")


class SpyreAttentionBackend(AttentionBackend):
    """What vLLM's layers are given by `SpyrePlatform.get_attn_backend_cls`."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float32, torch.bfloat16, torch.float16]

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"  # vLLM's word for a backend that it does not list

    @staticmethod
    def get_impl_cls() -> type[SpyreAttentionImpl]:
        return SpyreAttentionImpl

    @staticmethod
    def get_builder_cls():
        raise ValueError(
            "the spyre backend does not compute attention in chunks, or another form made from "
            "plain attention, in vLLM's model code: serve another model"
        )


class PassAttention(nn.Module):
    """Attention of one layer, in the place of vLLM's `Attention`."""

    def __init__(self, attention: Attention):
        super().__init__()
        impl = attention.impl
        self.heads, self.kv_heads = impl.num_heads, impl.num_kv_heads
        self.head_dim, self.scale = impl.head_size, impl.scale
        self.soft_cap = impl.soft_cap
        self.window: int | None = impl.sliding_window
        # of the pass to come, see `prepare`
        self.rows = 0  # B
        self.cache: Cache
        self.attend: Callable[..., Tensor]
        self.arguments: dict[str, Any]

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, output_shape: Any = None, **_: Any
    ) -> Tensor:
        """Query [B * Q, H * D], key and value [B * Q, K * D] -> [B * Q, H * D]."""
        out = self.attend(
            query.view(self.rows, -1, self.heads, self.head_dim),
            key.view(self.rows, -1, self.kv_heads, self.head_dim),
            value.view(self.rows, -1, self.kv_heads, self.head_dim),
            self.cache,
            self.scale,
            soft_cap=self.soft_cap,
            **self.arguments,
        )
        return out.reshape(-1, self.heads * self.head_dim)


def replace_attention(model: nn.Module) -> list[PassAttention]:
    """Puts `PassAttention` where vLLM's attention is; in the order of the layers."""
    replaced = []
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Attention):
                if child.head_size_v != child.head_size:
                    raise ValueError(
                        f"keys of {child.head_size} and values of {child.head_size_v} numbers a "
                        f"head do not fit one KV cache: serve another model"
                    )
                new = PassAttention(child)
                setattr(module, name, new)
                replaced.append(new)
    return replaced


def prepare(
    layers: Sequence[PassAttention],
    positions: Tensor,
    caches: Sequence[Cache],
    attention: Mapping[str, Any],
) -> None:
    """Leaves with every layer what the next pass needs: positions [B, Q], a cache a layer, and the
    engine's own attention arguments, under a mask [B, 1, Q, S] as the layer's window has it."""
    mask, slot, paged = attention["mask"], attention.get("slot"), "table" in attention
    masks = {None: mask}
    for window in {layer.window for layer in layers} - {None}:
        last = positions if paged else _slots(mask, slot)
        masks[window] = windowed(mask, last, window)
    names = ("prefills", "table", "slots") if paged else ("slot",)
    others = {name: attention[name] for name in names}
    for layer, cache in zip(layers, caches, strict=True):
        layer.rows = positions.shape[0]
        layer.cache = cache
        layer.attend = paged_attention.attend if paged else static_attention.attend
        layer.arguments = others | {"mask": masks[layer.window]}


def windowed(mask: Tensor, last: Tensor, window: int) -> Tensor:
    """The mask [B, 1, Q, S] of queries that stand at slots `last` [B or 1, Q] and see no more than
    `window` slots, their own included."""
    slots = torch.arange(mask.shape[-1])
    too_far = slots <= last[..., None] - window
    return mask.masked_fill(too_far[:, None], float("-inf"))


def _slots(mask: Tensor, slot: Tensor | None) -> Tensor:
    """[1, Q]: where the tokens of a static pass stand, prefill's at its first slots. Prompts are
    padded on the left, so slots are as far apart as positions."""
    return torch.arange(mask.shape[-2])[None] if slot is None else slot[None]
