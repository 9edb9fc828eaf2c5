"""Attention over a static KV cache, written in place, read under a mask; registered with FMS.

Shapes: B bucket batch (padded), Q query tokens of this pass (P in prefill, 1 in decode),
P bucket prompt, T = P + N cache slots, H KV heads on this rank, G query heads a KV head,
D head dim.
"""

from __future__ import annotations

from fms.modules.attention import register_attention_op
from torch import Tensor
from torch.nn import functional as F

SPYRE_STATIC = "spyre_static"
"""Pass as `attn_name`, with `mask` and `slot`, to an FMS model."""


def _store(keys, values, key_cache, value_cache, *, slot=None, **attn_kwargs):
    """Writes the new tokens [B, Q, H, D] into the caches [B, H, T, D], in place.

    Returns what to attend over, the prompt itself in prefill and the whole cache in decode
    (both [B, H, slots, D]), and the caches.
    """
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    # before anything reads the caches: Inductor then writes in place, else it copies them
    if slot is None:
        key_cache[:, :, : keys.shape[2]] = keys
        value_cache[:, :, : values.shape[2]] = values
        return keys, values, key_cache, value_cache
    key_cache[:, :, slot] = keys
    value_cache[:, :, slot] = values
    return key_cache, value_cache, key_cache, value_cache


def _prefill(
    query, keys, values, heads, kv_heads, dropout, scale, *, mask, soft_cap=None, **attn_kwargs
):
    """Attention of the prompt over itself: query [B, P, H·G, D], keys and values
    [B, H, P, D], mask [B, 1, P, P], added. Returns [B, P, H·G, D]."""
    group = heads // kv_heads
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    return attend_many(query.transpose(1, 2), keys, values, mask, scale, soft_cap)


def attend_many(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    scale: float | None,
    soft_cap: float | None,
) -> Tensor:
    """Many queries a row: query [B, H·G, Q, D], keys and values [B, H·G, slots, D], mask
    [B, 1, Q, slots], added. Returns [B, Q, H·G, D]."""
    if soft_cap is None:
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)
    else:
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        weights = capped(query * scale @ keys.transpose(-1, -2), soft_cap) + mask
        out = weights.softmax(-1) @ values
    return out.transpose(1, 2).contiguous()


def capped(products: Tensor, soft_cap: float | None) -> Tensor:
    """Products of queries and keys within ±soft_cap, as Gemma 2 has them; None leaves them."""
    return products if soft_cap is None else soft_cap * (products / soft_cap).tanh()


def _decode(
    query, keys, values, heads, kv_heads, dropout, scale, *, mask, soft_cap=None, **attn_kwargs
):
    """Attention of one token over the cache: query [B, 1, H·G, D], keys and values
    [B, H, T, D], mask [B, 1, 1, T], added. Returns [B, 1, H·G, D]."""
    batch, _, _, head_dim = query.shape
    scale = head_dim**-0.5 if scale is None else scale
    query = query.view(batch, kv_heads, heads // kv_heads, head_dim) * scale
    weights = (capped(query @ keys.transpose(-1, -2), soft_cap) + mask).softmax(-1)
    return (weights @ values).view(batch, 1, heads, head_dim)


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    cache: tuple[Tensor, Tensor],
    scale: float,
    *,
    mask: Tensor,
    slot: Tensor | None,
    soft_cap: float | None,
) -> Tensor:
    """Stores new tokens and attends, for model code that is not FMS's: query [B, Q, H·G, D], keys
    and values [B, Q, H, D], cache two of [B, H, T, D], mask as in prefill (`slot` None) or decode.
    Returns [B, Q, H·G, D]."""
    heads, kv_heads = query.shape[2], keys.shape[2]
    over_keys, over_values, *_ = _store(keys, values, *cache, slot=slot)
    op = _prefill if slot is None else _decode
    return op(
        query, over_keys, over_values, heads, kv_heads, 0.0, scale, mask=mask, soft_cap=soft_cap
    )


def _is_prefill(slot=None, **attn_kwargs) -> bool:
    return slot is None


register_attention_op(
    SPYRE_STATIC,
    _store,
    _prefill,
    is_prefill_op=_is_prefill,
    compute_decode_op=_decode,
)
