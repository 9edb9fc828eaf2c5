"""Static batching: prefill and decode passes of a bucket over a static KV cache.

Shapes, in all of the engine: B bucket batch (padded), P bucket prompt (padded), N new tokens,
T = P + N cache slots, L layers, H KV heads on this rank, D head dim, V vocabulary.
Prompts are padded on the left, so that every row's next token goes to the same slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spyre_bench.engine.compiled_model import CompiledModel, EngineConfig
from spyre_bench.engine.memory import check_memory
from spyre_bench.engine.static_attention import SPYRE_STATIC
from spyre_bench.shapes import Bucket, BucketSet


@dataclass
class CachedBatch:
    """Where the batch in the cache stands."""

    bucket: Bucket
    rows: int  # real prompts; the other rows up to B are dummies
    positions: Tensor  # [B, 1] of each row's last token
    mask: Tensor  # [B, 1, 1, T], added: 0 for slots to attend, -inf for others
    step: int = 0  # decode passes done

    @property
    def slot(self) -> int:
        """Cache slot of the next decode pass's token."""
        return self.bucket.prompt_length + self.step


class SpyreCausalLM(CompiledModel):
    """A causal language model that runs compiled buckets, one batch at a time."""

    def __init__(self, config: EngineConfig):
        assert config.buckets is not None, "an engine of shapes is a PagedCausalLM"
        self.buckets = config.buckets
        super().__init__(config)
        self._batch: CachedBatch | None = None
        self._caches = self._allocate()

    def _check_memory(self) -> int:
        config = self.config
        _check_context(self.buckets, self.context_length)
        return check_memory(
            self.sizes,
            self.buckets,
            config.dtype,
            config.memory_bytes,
            config.rank.tp,
            self.packs,
        )

    @torch.no_grad()
    def prefill(self, bucket: Bucket, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Starts a batch: logits [len(prompts), V] in float32 after each prompt.

        Raises RuntimeError for a bucket that was not warmed, ValueError for prompts that do
        not fit it.
        """
        self._require_warmed("bucket", bucket, (bucket, "prefill"))
        _check_prompts(bucket, prompts)
        tokens, positions, starts = self._pad(bucket, prompts)
        batch = CachedBatch(
            bucket, len(prompts), positions[:, -1:].clone(), self._decode_mask(bucket, starts)
        )
        mask = self._prefill_mask(bucket, starts)
        logits = self._pass(bucket, tokens, positions, mask, None)
        self._batch = batch
        return logits[: batch.rows].float()

    @torch.no_grad()
    def decode(self, tokens: Sequence[int]) -> Tensor:
        """One step of the running batch: the next token of each row in, logits
        [len(tokens), V] in float32 out. Finished rows may be given any token.

        Raises RuntimeError where no batch runs or the bucket's cache is full, ValueError for
        another number of tokens than the batch has rows.
        """
        batch = self._batch
        if batch is None:
            raise RuntimeError("no batch is running: prefill one first")
        if batch.step >= batch.bucket.new_tokens - 1:
            raise RuntimeError(
                f"bucket {batch.bucket} has given its {batch.bucket.new_tokens} new tokens: "
                f"start a new batch"
            )
        if len(tokens) != batch.rows:
            raise ValueError(f"{len(tokens)} tokens for a batch of {batch.rows} rows: one each")
        column = torch.full((batch.bucket.batch_size, 1), self.pad_token)
        column[: batch.rows, 0] = torch.tensor(tokens)
        batch.positions += 1
        batch.mask[..., batch.slot] = 0
        slot = torch.tensor([batch.slot])
        logits = self._pass(batch.bucket, column, batch.positions, batch.mask, slot)
        batch.step += 1
        return logits[: batch.rows].float()

    def compile(self, bucket: Bucket, directory: Path | None = None) -> None:
        """Readies a bucket's two passes; each compiles when it first runs (see `warmup`)."""
        self._warmed.discard(bucket)
        for kind in ("prefill", "decode"):
            self._compile((bucket, kind), f"{kind}_{str(bucket).replace(',', '_')}", directory)

    def _pass(self, bucket: Bucket, tokens, positions, mask, slot) -> Tensor:
        """One pass in the bucket's compiled code: logits [B, V]."""
        return self._run(
            (bucket, "prefill" if slot is None else "decode"),
            bucket in self._warmed,
            tokens,
            positions,
            self._caches[bucket],
            {"attn_name": SPYRE_STATIC, "mask": mask, "slot": slot},
        )

    def _allocate(self) -> dict[Bucket, list[tuple[Tensor, Tensor]]]:
        """Key and value caches [B, H, T, D] a layer, as views of storage that the buckets
        share: only one batch runs at a time."""

        def size(bucket: Bucket) -> tuple[int, ...]:
            heads = self.sizes.card_kv_heads(self.config.rank.tp)
            return bucket.batch_size, heads, bucket.context_length, self.sizes.head_dim

        longest = max(torch.Size(size(bucket)).numel() for bucket in self.buckets)
        storage = [
            (torch.zeros(longest, dtype=self.dtype), torch.zeros(longest, dtype=self.dtype))
            for _ in range(self.sizes.layers)
        ]

        def view(flat: Tensor, bucket: Bucket) -> Tensor:
            wanted = size(bucket)
            return flat[: torch.Size(wanted).numel()].view(wanted)

        return {
            bucket: [(view(keys, bucket), view(values, bucket)) for keys, values in storage]
            for bucket in self.buckets
        }

    def _pad(self, bucket: Bucket, prompts) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and positions [B, P], first real slot [B]; a dummy row is one pad token."""
        length = bucket.prompt_length
        tokens = torch.full((bucket.batch_size, length), self.pad_token)
        starts = torch.full((bucket.batch_size,), length - 1)
        for row, prompt in enumerate(prompts):
            starts[row] = length - len(prompt)
            tokens[row, starts[row] :] = torch.tensor(prompt)
        positions = (torch.arange(length) - starts[:, None]).clamp(min=0)
        return tokens, positions, starts

    def _prefill_mask(self, bucket: Bucket, starts: Tensor) -> Tensor:
        """[B, 1, P, P]: causal over real slots; pad slots see themselves, to stay finite."""
        slots = torch.arange(bucket.prompt_length)
        causal = slots[:, None] >= slots
        real = slots >= starts[:, None]
        seen = (causal & real[:, None, :]) | torch.eye(bucket.prompt_length, dtype=torch.bool)
        return self._additive(seen[:, None])

    def _decode_mask(self, bucket: Bucket, starts: Tensor) -> Tensor:
        """[B, 1, 1, T]: the prompt's real slots."""
        slots = torch.arange(bucket.context_length)
        seen = (slots >= starts[:, None]) & (slots < bucket.prompt_length)
        return self._additive(seen[:, None, None])


def _check_context(buckets: BucketSet, context_length: int) -> None:
    for bucket in buckets:
        if bucket.context_length > context_length:
            raise ValueError(
                f"bucket {bucket} spans {bucket.context_length} tokens (prompt_length + "
                f"new_tokens), beyond the model's context of {context_length}: lower one of them"
            )


def _check_prompts(bucket: Bucket, prompts) -> None:
    if not 1 <= len(prompts) <= bucket.batch_size:
        raise ValueError(f"{len(prompts)} prompts for bucket {bucket}: 1 to {bucket.batch_size}")
    for row, prompt in enumerate(prompts):
        if not 1 <= len(prompt) <= bucket.prompt_length:
            raise ValueError(
                f"prompt {row} has {len(prompt)} tokens, bucket {bucket} takes 1 to "
                f"{bucket.prompt_length}"
            )
