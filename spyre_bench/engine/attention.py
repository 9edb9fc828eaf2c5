"""The attention op registered with FMS: a static KV cache, written in place, read under a mask.

Shapes: B bucket batch (padded), Q query tokens of this pass (P in prefill, 1 in decode),
P bucket prompt, T = P + N cache slots, H KV heads on this rank, G query heads a KV head,
D head dim.
"""

import torch
from fms.modules.attention import register_attention_op
from torch.nn import functional as F

SPYRE_STATIC = "spyre_static"
"""Pass as `attn_name`, with `mask` and `slot`, to an FMS model."""


def _store(keys, values, key_cache, value_cache, **attn_kwargs):
    """Hands cache and new tokens on together.

    The cache is written after attending, in `_prefill` and `_decode`: a graph whose last act
    is the write updates the cache in place, one that reads it again works on a copy.
    """
    return (key_cache, keys), (value_cache, values), key_cache, value_cache


def _prefill(query, keys, values, heads, kv_heads, dropout, scale, *, mask, **attn_kwargs):
    """Attention of the prompt over itself.

    query [B, P, H·G, D]; keys and values: (cache [B, H, T, D], new [B, P, H, D]);
    mask [B, 1, P, P], added. Returns [B, P, H·G, D].
    """
    (key_cache, key), (value_cache, value) = keys, values
    key, value = key.transpose(1, 2), value.transpose(1, 2)
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.repeat_interleave(heads // kv_heads, 1),
        value.repeat_interleave(heads // kv_heads, 1),
        attn_mask=mask,
        scale=scale,
    )
    key_cache[:, :, : key.shape[2]] = key
    value_cache[:, :, : value.shape[2]] = value
    return out.transpose(1, 2).contiguous()


def _decode(query, keys, values, heads, kv_heads, dropout, scale, *, mask, slot, **attn_kwargs):
    """Attention of one new token over the cache and itself.

    query [B, 1, H·G, D]; keys and values: (cache [B, H, T, D], new [B, 1, H, D]);
    mask [B, 1, 1, T], added, which hides the new token's own slot; slot [1], shared by all
    rows. Returns [B, 1, H·G, D].
    """
    (key_cache, key), (value_cache, value) = keys, values
    batch, _, _, head_dim = query.shape
    scale = head_dim**-0.5 if scale is None else scale
    query = query.view(batch, kv_heads, heads // kv_heads, head_dim) * scale
    key, value = key.transpose(1, 2), value.transpose(1, 2)
    past = query @ key_cache.transpose(-1, -2) + mask
    weights = torch.cat([past, query @ key.transpose(-1, -2)], -1).softmax(-1)
    out = weights[..., :-1] @ value_cache + weights[..., -1:] * value
    key_cache.index_copy_(2, slot, key)
    value_cache.index_copy_(2, slot, value)
    return out.view(batch, 1, heads, head_dim)


def _is_prefill(slot=None, **attn_kwargs) -> bool:
    return slot is None


def _stays(**attn_kwargs):
    return attn_kwargs


register_attention_op(
    SPYRE_STATIC,
    _store,
    _prefill,
    is_prefill_op=_is_prefill,
    compute_decode_op=_decode,
    update_attn_kwargs_op=_stays,
)
