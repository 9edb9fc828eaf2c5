"""The card's parameters as people say them: "memory bandwidth, 150 to 113 GB/s"."""

from __future__ import annotations

import math
from typing import NamedTuple

from spyre_bench.cost.card_parameters import SpyreCard


class Said(NamedTuple):
    """A parameter's name, the unit that people use, and how many of these one of its own is."""

    name: str
    unit: str
    scale: float
    inverse: bool = False  # they say a rate where the parameter is a time, in units of 1/scale
    endless: str = ""  # for a number that has no end


SAID = {
    "read_bytes_per_s": Said("memory bandwidth", "GB/s", 1e-9),
    "fp16_flops": Said("fp16 products", "TFLOPS", 1e-12),
    "fp8_flops": Said("fp8 products", "TFLOPS", 1e-12),
    "quantise_bytes_per_s": Said("quantising to fp8", "GB/s", 1e-9),
    "mlp_rows": Said("rows per reading of the MLP's weights", "rows", 1, endless="all"),
    "score_crossings": Said("crossings of the memory by attention's scores", "times", 1),
    "decode_query_rows": Said("rows computed per query in decode", "rows", 1),
    "rest_prefill_s": Said("overhead per layer in prefill", "ms", 1e3),
    "rest_decode_s": Said("overhead per layer in decode", "ms", 1e3),
    "all_reduce_s": Said("latency of an all-reduce", "µs", 1e6),
    "hop_s_per_byte": Said("bandwidth between two cards", "GB/s", 1e-9, inverse=True),
    "compile_s": Said("compile time of a bucket", "s", 1),
    "usable_bytes": Said("memory of a card", "GB", 1e-9),
    "kv_bytes": Said("largest KV cache", "GB", 1e-9),
    "batch_tokens": Said("largest batch × context", "tokens", 1),
    "limited_from_tp": Said("cards from which that holds", "cards", 1),
}
CONFIDENCE = {
    "H": "high",
    "H-M": "high to medium",
    "M": "medium",
    "L-M": "low to medium",
    "L": "low",
}


def name_of(parameter: str) -> str:
    """What people call the parameter."""
    return SAID[parameter].name


def range_of(card: SpyreCard, parameter: str) -> str:
    """From its optimistic to its pessimistic end, such as "50 to 200 µs"."""
    said, known = SAID[parameter], getattr(card, parameter)
    first, last = (_number(said, end) for end in (known.fast, known.slow))
    return f"{first} to {last} {said.unit}"


def _number(said: Said, number: float) -> str:
    if said.inverse:
        number = 1 / number if number else math.inf
    if math.isinf(number):
        return said.endless or "unlimited"
    number *= said.scale
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"
