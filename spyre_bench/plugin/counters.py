"""What the front end counts where it decides it: requests refused, and clamped.

Made when first asked for: vLLM says after its imports whether processes share their counts.
"""

from __future__ import annotations

from functools import cache

from prometheus_client import Counter


@cache
def rejected() -> Counter:
    return Counter(
        "spyre:rejected_requests",
        "Requests refused, by reason: prompt_too_long, max_tokens_too_large, "
        "no_bucket_takes_both, unsupported.",
        ["reason"],
    )


@cache
def clamped() -> Counter:
    return Counter(
        "spyre:clamped_requests",
        "Requests whose max_tokens was lowered to what the buckets allow, by reason: the client's "
        "own value (max_tokens), or a default of the server or the model (default).",
        ["reason"],
    )
