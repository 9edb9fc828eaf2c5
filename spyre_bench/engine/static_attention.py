"""The attention op registered with FMS: a static KV cache, written in place, read under a mask.

Shapes: B bucket batch (padded), Q query tokens of this pass (P in prefill, 1 in decode),
P bucket prompt, T = P + N cache slots, H KV heads on this rank, G query heads a KV head,
D head dim.
"""

from fms.modules.attention import register_attention_op
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


def _prefill(query, keys, values, heads, kv_heads, dropout, scale, *, mask, **attn_kwargs):
    """Attention of the prompt over itself: query [B, P, H·G, D], keys and values
    [B, H, P, D], mask [B, 1, P, P], added. Returns [B, P, H·G, D]."""
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        keys.repeat_interleave(heads // kv_heads, 1),
        values.repeat_interleave(heads // kv_heads, 1),
        attn_mask=mask,
        scale=scale,
    )
    return out.transpose(1, 2).contiguous()


def _decode(query, keys, values, heads, kv_heads, dropout, scale, *, mask, **attn_kwargs):
    """Attention of one token over the cache: query [B, 1, H·G, D], keys and values
    [B, H, T, D], mask [B, 1, 1, T], added. Returns [B, 1, H·G, D]."""
    batch, _, _, head_dim = query.shape
    scale = head_dim**-0.5 if scale is None else scale
    query = query.view(batch, kv_heads, heads // kv_heads, head_dim) * scale
    weights = (query @ keys.transpose(-1, -2) + mask).softmax(-1)
    return (weights @ values).view(batch, 1, heads, head_dim)


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
