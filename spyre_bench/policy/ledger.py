"""How much of what ran is waste, by kind: of computed token slots, and of seconds paid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

from spyre_bench.shape_set import DecodeShape, PrefillShape
from spyre_bench.shapes import Bucket


@dataclass(frozen=True, slots=True)
class Ledger:
    """Token slots: useful + wastes = computed, exactly."""

    useful: int = 0

    @property
    def computed(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def fill(self) -> float:
        """Useful share of what was computed; 0 for an empty ledger."""
        return self.useful / self.computed if self.computed else 0.0

    def __add__(self, other: Self) -> Self:
        sums = [getattr(self, it.name) + getattr(other, it.name) for it in fields(self)]
        return type(self)(*sums)


@dataclass(frozen=True, slots=True)
class WasteLedger(Ledger):
    """Of one batch, or the sum over many.

    A batch computes B·P prompt slots and B·S output slots, S being the passes it ran (prefill
    included: it yields the first token).
    """

    batch_pad: int = 0  # rows without a request, prompt and output
    prompt_pad: int = 0  # up to the longest prompt of the batch
    bucket_pad: int = 0  # from there to the bucket's prompt length
    decode_tail: int = 0  # rows finished before the longest output
    cap: int = 0  # passes after the longest output

    @classmethod
    def of_batch(
        cls,
        bucket: Bucket,
        prompt_tokens: Sequence[int],
        output_tokens: Sequence[int],
        passes: int | None = None,
    ) -> WasteLedger:
        """The ledger of a batch by its rows; `passes` where it did not end with its longest
        output, at most `new_tokens`."""
        rows = len(prompt_tokens)
        longest_prompt, longest_output = max(prompt_tokens), max(output_tokens)
        passes = longest_output if passes is None else passes
        assert len(output_tokens) == rows <= bucket.batch_size
        assert longest_prompt <= bucket.prompt_length
        assert longest_output <= passes <= bucket.new_tokens
        return cls(
            useful=sum(prompt_tokens) + sum(output_tokens),
            batch_pad=(bucket.batch_size - rows) * (bucket.prompt_length + longest_output),
            prompt_pad=sum(longest_prompt - tokens for tokens in prompt_tokens),
            bucket_pad=rows * (bucket.prompt_length - longest_prompt),
            decode_tail=sum(longest_output - tokens for tokens in output_tokens),
            cap=bucket.batch_size * (passes - longest_output),
        )


@dataclass(frozen=True, slots=True)
class StepLedger(Ledger):
    """Of passes of continuous batching: a chunk computes its compiled tokens, a decode pass a token
    for each of its compiled rows. What a prefix cache had is in no slot."""

    chunk_pad: int = 0  # of a chunk, beyond what was left of the prompt
    again: int = 0  # computed before: after a preemption, or where a prefix hit ends in a chunk
    row_pad: int = 0  # rows without a request

    @classmethod
    def of_chunk(cls, shape: PrefillShape, tokens: int, again: int = 0) -> StepLedger:
        """A chunk of `tokens`, of which `again` had been computed before."""
        computed, _ = shape.padded(tokens, shape.context_length)
        assert again <= tokens <= computed <= shape.chunk_length
        return cls(useful=tokens - again, chunk_pad=computed - tokens, again=again)

    @classmethod
    def of_decode(cls, shape: DecodeShape, rows: int, passes: int = 1) -> StepLedger:
        """Passes of so many rows."""
        computed, _ = shape.padded(rows, shape.context_length)
        assert rows <= computed <= shape.rows
        return cls(useful=rows * passes, row_pad=(computed - rows) * passes)


@dataclass(frozen=True, slots=True)
class PaidLedger:
    """Seconds that passes took, by what they were paid for: useful + wastes = busy.

    A row that is padding is paid as its part of what a pass of nothing but padding takes; what a
    live row and its context cost on top is useful. Padding that costs nothing is no waste.
    """

    useful_s: float = 0.0
    chunk_pad_s: float = 0.0
    again_s: float = 0.0
    row_pad_s: float = 0.0
    shape_pad_s: float = 0.0  # of live rows, more than in the shape where a row's part is least

    @property
    def busy_s(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))
