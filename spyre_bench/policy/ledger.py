"""How much of a batch is waste: computed token slots that were not useful, by kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from spyre_bench.shapes import Bucket


@dataclass(frozen=True, slots=True)
class WasteLedger:
    """Token slots of one batch, or the sum over many: useful + wastes = computed, exactly.

    A batch computes B·P prompt slots and B·S output slots, S being the passes it ran (prefill
    included: it yields the first token).
    """

    useful: int = 0
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

    @property
    def computed(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def fill(self) -> float:
        """Useful share of what was computed; 0 for an empty ledger."""
        return self.useful / self.computed if self.computed else 0.0

    def __add__(self, other: WasteLedger) -> WasteLedger:
        return WasteLedger(
            *(getattr(self, f.name) + getattr(other, f.name) for f in fields(WasteLedger))
        )
