"""The Spyre card and its software as numbers, each with unit, source and confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

WORDS = {"fast": "optimistic", "value": "nominal", "slow": "pessimistic"}
ENDS = tuple(WORDS)
CONFIDENCES = ("H", "H-M", "M", "L-M", "L")  # vendor or code; one lab; inferred


@dataclass(frozen=True)
class Parameter:
    """A number, and what it could be: `fast` gives the least seconds, `slow` the most."""

    value: float
    fast: float
    slow: float
    unit: str
    confidence: str
    source: str

    def __post_init__(self) -> None:
        if not min(self.fast, self.slow) <= self.value <= max(self.fast, self.slow):
            raise ValueError(
                f"parameter {self.value} {self.unit} is outside of its range {self.fast} to "
                f"{self.slow}: widen the range"
            )
        if min(self.fast, self.slow) < 0:
            raise ValueError(f"parameter range {self.fast} to {self.slow} {self.unit} is below 0")
        if self.confidence not in CONFIDENCES:
            raise ValueError(
                f"confidence {self.confidence!r} is unknown: use one of {', '.join(CONFIDENCES)}"
            )


CONTESTED = ("score_crossings", "decode_query_rows")
"""Parameters that public facts contradict each other about: answers are given at both ends."""
LIMITS = ("usable_bytes", "kv_bytes", "batch_tokens", "limited_from_tp")
HOP = 200e-6 / 3 / 2**19  # seconds per byte, 512 KiB over 3 hops


@dataclass(frozen=True)
class SpyreCard:
    """The card and its software as numbers. Another card: `dataclasses.replace(SpyreCard(), ...)`.

    Sources are rows of docs/SPYRE_CARD.md, which has their addresses. Of the parameters of time
    the low and the high take the ends; `LIMITS` are taken at their value.
    """

    # fmt: off
    read_bytes_per_s: Parameter = Parameter(136e9, 150e9, 113e9, "byte/s", "M",
        "SPYRE_CARD.md#the-25-products: fitted to them; fast: #cost-model; slow: reads and writes "
        "#mixed")
    fp16_flops: Parameter = Parameter(98.304e12, 98.304e12, 72e12, "operation/s", "H-M",
        "SPYRE_CARD.md#peak: nominal at 1.5 GHz; slow: at the 1.1 GHz inferred from #cost-model")
    fp8_flops: Parameter = Parameter(196.608e12, 196.608e12, 144e12, "operation/s", "H-M",
        "SPYRE_CARD.md#sweep: twice fp16, two products per lane")
    quantise_bytes_per_s: Parameter = Parameter(105e9, 204.8e9, 71e9, "byte/s", "L",
        "SPYRE_CARD.md#cost-model: its rate for reading and writing alike; fp8 only, assumed: "
        "inputs read at 2 bytes and written at 1; fast: #peak; slow: 42 ps per element, M = 64 of "
        "#sweep")
    mlp_rows: Parameter = Parameter(256, math.inf, 256, "row", "M",
        "SPYRE_CARD.md#mlp: the fused MLP reads its weights anew every 256 rows; fast: never")
    score_crossings: Parameter = Parameter(2, 1.45, 8.15, "crossing", "L-M",
        "SPYRE_CARD.md#attention-products: times that attention's scores cross the memory: written "
        "by one product, read by the other; fast: one head, 512 × 4096, on sendnn, #suite; slow: "
        "the same on torch-spyre, #suite")
    decode_query_rows: Parameter = Parameter(1, 1, 64, "row", "L",
        "SPYRE_CARD.md#end-to-end: in decode only reading the cache counts; slow: each query "
        "padded to 64 rows, as in the harness of #isolated")
    rest_prefill_s: Parameter = Parameter(1.37e-3, 0.0, 5.4e-3, "s/layer", "L-M",
        "SPYRE_CARD.md#end-to-end: (335 − 267 ms of summed kernels)/40, less this model's 0.33 ms "
        "of attention over 512 slots: at 512 tokens of Granite-8B and below, then proportional to "
        "tokens × hidden size (assumed); fast: kernels alone; slow: the planner before, 495 ms")
    rest_decode_s: Parameter = Parameter(1.18e-3, 0.0, 3.6e-3, "s/layer", "L-M",
        "SPYRE_CARD.md#end-to-end: (177 − 124 ms of summed kernels)/40, less 0.145 ms of attention "
        "(#isolated), whatever batch and model (assumed); fast: kernels alone; slow: the planner "
        "before, 274 ms")
    all_reduce_s: Parameter = Parameter(100e-6, 50e-6, 200e-6, "s", "L",
        "SPYRE_CARD.md#all-reduce has no small message: the least is assumed to be 50 to 200 µs; "
        "the value is their geometric mean and has no other basis")
    hop_s_per_byte: Parameter = Parameter(HOP, HOP / 2, HOP, "s/byte", "L-M",
        "SPYRE_CARD.md#all-reduce: 512 KiB over 4 cards in about 200 µs, a chain of 3 hops, at an "
        "early 560 MHz; fast: twice that clock")
    compile_s: Parameter = Parameter(171.0, 60.0, 488.4, "s/bucket", "L",
        "SPYRE_CARD.md#start-up publishes no time per shape: assumed. Fast: two graphs at the 30 s "
        "of #layer-compile; slow: the longest start of #container-starts, which compiles two "
        "graphs and more; value: geometric mean")
    usable_bytes: Parameter = Parameter(112e9, 112e9, 112e9, "byte/card", "H",
        "SPYRE_CARD.md#card: 128 GB, 16 of them for error correction")
    kv_bytes: Parameter = Parameter(20 * 2**30, 34e9, 20 * 2**30, "byte/card", "L-M",
        "SPYRE_CARD.md#configured: the largest cache, 524,288 tokens of Granite-8B over 4 cards; "
        "34 GB failed, #kv-failures")
    batch_tokens: Parameter = Parameter(131072, 131072, 131072, "token", "H",
        "SPYRE_CARD.md#configured: batch × context; for 8B on 4 cards, taken for all (assumed)")
    limited_from_tp: Parameter = Parameter(4, 4, 4, "card", "L",
        "SPYRE_CARD.md#configured: 262,144 tokens are listed for 2 cards, so it is not theirs")
    # fmt: on

    def __post_init__(self) -> None:
        for field in fields(self):
            it = getattr(self, field.name)
            rate = it.unit.endswith("/s") or field.name == "mlp_rows"
            first, last = (it.slow, it.fast) if rate else (it.fast, it.slow)
            if field.name not in LIMITS and (first > last or (rate and first == 0)):
                raise ValueError(
                    f"{field.name} would be fast at {it.fast} and slow at {it.slow} {it.unit}: "
                    f"{'a rate is above 0 and larger' if rate else 'it is smaller'} when fast"
                )

    def fixed(self, **numbers: float) -> SpyreCard:
        """The same card with one number, in its own unit, in place of a parameter's range.
        Raises ValueError for a name that is no parameter."""
        known = [field.name for field in fields(self)]
        if unknown := sorted(set(numbers) - set(known)):
            raise ValueError(
                f"the card has no parameter {unknown[0]!r}: use one of {', '.join(known)}"
            )
        return replace(
            self,
            **{
                name: replace(getattr(self, name), value=number, fast=number, slow=number)
                for name, number in numbers.items()
            },
        )

    def at(self, end: str) -> CardAt:
        """Every parameter as a number at one of its ends."""
        if end not in ENDS:
            known = ", ".join([*ENDS, *WORDS.values()])
            raise ValueError(f"end {end!r} is unknown: use one of {known}")
        return CardAt(self, end)


@dataclass(frozen=True)
class CardAt:
    """The card's parameters as numbers, by their names."""

    card: SpyreCard
    end: str

    def __getattr__(self, name: str) -> Any:  # rows and tokens are whole, the rest is not
        if name not in PARAMETERS:
            raise AttributeError(name)
        return getattr(getattr(self.card, name), self.end)


PARAMETERS = frozenset(field.name for field in fields(SpyreCard))


def with_all_reduce(microseconds: float) -> SpyreCard:
    """The card where an all-reduce takes at least so long; 0: as its own range has it. Raises
    ValueError for less."""
    if not 0 <= microseconds < math.inf:
        raise ValueError(f"an all-reduce of {microseconds} µs is not possible: 0 takes the range")
    return SpyreCard().fixed(all_reduce_s=microseconds / 1e6) if microseconds else SpyreCard()
