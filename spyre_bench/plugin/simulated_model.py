"""Models that compute nothing: their passes take the seconds that a cost says, and in the place of
logits come the tokens that each row says next."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.cost.shape_cost import ShapeCosts
from spyre_bench.engine.compiled_model import EngineConfig
from spyre_bench.engine.paged_causal_lm import Chunk, DecodeRow
from spyre_bench.model_sizes import ModelSizes
from spyre_bench.pass_log import ShapeWarmup, Warmup
from spyre_bench.plugin.clock import Clock
from spyre_bench.shape_set import DecodeShape, PrefillShape
from spyre_bench.shapes import Bucket

CERTAIN = 1e6
"""The logit of what is said, beside zeros: no temperature or penalty that vLLM admits makes another
token likely, and a mask leaves others to choose from."""


@dataclass
class Chosen:
    """In the place of logits [rows, V]: the token that each row says. Logits are made where the
    sampler needs them."""

    tokens: list[int]
    vocab_size: int

    def __getitem__(self, rows: Sequence[int]) -> Tensor:
        """Logits [len(rows), V] of some rows."""
        logits = torch.zeros(len(rows), self.vocab_size)
        logits[torch.arange(len(rows)), torch.tensor([self.tokens[row] for row in rows])] = CERTAIN
        return logits


class Voice:
    """Says the same after the same: a word that hangs on the last token and its place."""

    def __init__(self, words: Sequence[int], vocab_size: int):
        self.words, self.vocab_size = words, vocab_size

    def after(self, token: int, position: int) -> int:
        """Behind a token with so many before it; multipliers of Knuth's and a Weyl sequence's."""
        mixed = (token * 2654435761 + position * 40503 + 12345) & 0xFFFFFFFF
        return self.words[(mixed >> 7) % len(self.words)]

    def other_than(self, ends: Collection[int]) -> int:
        """A word that ends nothing, if there is one."""
        return next((word for word in self.words if word not in ends), self.words[0])

    def say(self, places: Sequence[tuple[int, int]]) -> Chosen:
        return Chosen([self.after(*place) for place in places], self.vocab_size)


class SimulatedModel:
    """What the runner and the worker ask of an engine, but for its passes."""

    weight_bytes = 0  # held here; those of the cards are in `memory_bytes`

    def __init__(
        self, config: EngineConfig, sizes: ModelSizes, voice: Voice, clock: Clock, memory_bytes: int
    ):
        self.config, self.sizes, self.voice, self.clock = config, sizes, voice, clock
        self.vocab_size, self.memory_bytes = voice.vocab_size, memory_bytes
        self.dtype = getattr(torch, config.dtype)
        self._free_s: float | None = None  # when the last pass ended, if nobody rested since

    def rest(self) -> None:
        """There is nothing to run: the next pass begins when it is called."""
        self._free_s = None

    def _take(self, seconds: float) -> None:
        """The time of a pass. With work all along it begins where the last one ended: what vLLM's
        loop takes in between is this machine's, not the deployment's. A loop that takes longer than
        the pass is not made up for later."""
        now_s = self.clock.monotonic()
        since_s = now_s if self._free_s is None else self._free_s
        self._free_s = max(now_s, since_s + seconds)
        self.clock.wait_until(self._free_s)


class SimulatedCausalLM(SimulatedModel):
    """In the place of `SpyreCausalLM`."""

    def __init__(self, config, sizes, voice, clock, costs: Sequence[BucketCost]):
        super().__init__(config, sizes, voice, clock, max(cost.memory_bytes for cost in costs))
        self.costs = {cost.bucket: cost for cost in costs}

    def prefill(self, bucket: Bucket, prompts: Sequence[Sequence[int]]) -> Chosen:
        self._cost = self.costs[bucket]
        self._lengths = [len(prompt) for prompt in prompts]
        said = self.voice.say([(prompt[-1], len(prompt) - 1) for prompt in prompts])
        self._take(self._cost.prefill_s)
        return said

    def decode(self, tokens: Sequence[int]) -> Chosen:
        said = self.voice.say(list(zip(tokens, self._lengths, strict=True)))
        self._lengths = [length + 1 for length in self._lengths]
        self._take(self._cost.decode_s)
        return said

    def warm_up(self, shape: Bucket, cold: bool) -> Warmup:
        """Takes the time of a bucket's start. All compile seconds count as prefill's: a cost does
        not say which."""
        cost = self.costs[shape]
        compile_s = cost.compile_s if cold else 0.0
        if cold:
            self._take(cost.warmup_s)
        return Warmup(shape, compile_s, 0.0, cost.prefill_s, cost.decode_s, not cold, 0)


class SimulatedPagedCausalLM(SimulatedModel):
    """In the place of `PagedCausalLM`."""

    def __init__(self, config, sizes, voice, clock, costs: ShapeCosts):
        super().__init__(config, sizes, voice, clock, costs.memory_bytes)
        self.prefill_costs = {cost.shape: cost for cost in costs.prefill}
        self.decode_costs = {cost.shape: cost for cost in costs.decode}

    def prefill(self, shape: PrefillShape, chunk: Chunk) -> Chosen:
        said = self.voice.say([(chunk.tokens[-1], chunk.start + len(chunk.tokens) - 1)])
        self._take(self.prefill_costs[shape].pass_s(chunk.start))
        return said

    def decode(self, shape: DecodeShape, rows: Sequence[DecodeRow]) -> Chosen:
        said = self.voice.say([(row.token, row.position) for row in rows])
        context_tokens = sum(row.position + 1 for row in rows)
        self._take(self.decode_costs[shape].pass_s(len(rows), context_tokens))
        return said

    def warm_up(self, shape: PrefillShape | DecodeShape, cold: bool) -> ShapeWarmup:
        """Takes the time of a shape's start."""
        if isinstance(shape, PrefillShape):
            cost = self.prefill_costs[shape]
            empty_s = cost.pass_s(0)
        else:
            cost = self.decode_costs[shape]
            empty_s = cost.pass_s(1, 1)
        compile_s = cost.compile_s if cold else 0.0
        if cold:
            self._take(compile_s + cost.full_s)
        return ShapeWarmup(shape, compile_s, cost.full_s, empty_s, not cold, 0)
