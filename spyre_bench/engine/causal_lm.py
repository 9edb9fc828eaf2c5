"""An FMS model as prefill and decode passes over a static KV cache.

Shapes, in all of the engine: B bucket batch (padded), P bucket prompt (padded), N new tokens,
T = P + N cache slots, L layers, H KV heads on this rank, D head dim, V vocabulary.
Prompts are padded on the left, so that every row's next token goes to the same slot.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from spyre_bench.checkpoints.weight_files import WeightFiles
from spyre_bench.engine import fms
from spyre_bench.engine.compile import check_backend, check_scope, compile_pass, no_compile
from spyre_bench.engine.linear import can_pack, pack_linears
from spyre_bench.engine.memory import check_memory, sizes_of
from spyre_bench.engine.parallel import ALONE, Rank, require_joined
from spyre_bench.engine.static_attention import SPYRE_STATIC
from spyre_bench.engine.weights import require_servable
from spyre_bench.model_sizes import ITEM_BYTES
from spyre_bench.shapes import Bucket, BucketSet


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What to load and how to compile it; raises ValueError for what cannot work.

    `artefact_directory` keeps compiled code between runs (None: nothing is kept).
    `memory_bytes` is the device's memory (None: what the machine has free, shared by the ranks).
    Every rank of a tensor parallel engine builds its own with its `rank`, after `parallel.join`,
    and makes the same calls in the same order.
    """

    model_directory: Path
    buckets: BucketSet
    dtype: str = "float32"
    compile_backend: str = "inductor"
    compile_scope: str = "layer"
    artefact_directory: Path | None = None
    artefact_trust: str = "user"  # whose artefacts are run, see shared_files.TRUSTS
    require_precompiled: bool = False
    memory_bytes: int | None = None
    rank: Rank = ALONE
    max_load_processes: int | None = None  # ranks that compile on cards at a time; None: all

    def __post_init__(self):
        check_backend(self.compile_backend)
        check_scope(self.compile_scope)
        if self.dtype not in ITEM_BYTES:
            raise ValueError(f"dtype {self.dtype!r} is unknown: use one of {', '.join(ITEM_BYTES)}")
        if self.compile_backend == "sendnn" and self.dtype != "float16":
            raise ValueError(
                f"dtype {self.dtype!r} does not run on sendnn: use float16, the card's format"
            )
        if self.require_precompiled and self.artefact_directory is None:
            raise ValueError(
                "require_precompiled is set but no artefact_directory to look in: name one"
            )
        if self.require_precompiled and self.compile_backend != "inductor":
            raise ValueError(
                f"require_precompiled knows artefacts of 'inductor' only, not of "
                f"{self.compile_backend!r}: unset it"
            )


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


class SpyreCausalLM:
    """A causal language model that runs compiled buckets, one batch at a time."""

    def __init__(self, config: EngineConfig):
        self.config = config
        self.buckets = config.buckets
        longest = self.buckets.max_context_length
        hf_config = require_servable(config.model_directory, longest)
        files = WeightFiles(config.model_directory)
        self.sizes = sizes_of(hf_config, files)
        self.vocab_size = self.sizes.vocab_size
        self.context_length = self.sizes.context_length
        _check_context(self.buckets, self.context_length)
        tp = config.rank.tp
        self.sizes.require_tp(tp)
        require_joined(config.rank)
        self.dtype = getattr(torch, config.dtype)
        packs = config.compile_backend == "inductor" and can_pack(self.dtype)
        self.memory_bytes = check_memory(
            self.sizes, self.buckets, config.dtype, config.memory_bytes, tp, packs
        )
        self.pad_token = 0  # fills pad slots and dummy rows; no output depends on it
        started = time.perf_counter()
        self._model = fms.load(
            hf_config, self.sizes, files, self.dtype, longest, tp, config.rank.rank
        )
        self.weight_bytes = sum(weight.nbytes for weight in set(self._model.parameters()))
        if packs:
            pack_linears(self._model, self.buckets.max_batch_size)
        self.load_s = time.perf_counter() - started
        self._passes: dict[Bucket, tuple[Callable, Callable]] = {}
        self._warmed: set[Bucket] = set()
        self._layer_pass: Callable = _run_layer
        self._batch: CachedBatch | None = None
        if config.compile_scope == "layer":
            layers = self._model.base_model.layers
            for index, layer in enumerate(layers):
                layers[index] = _SwitchedLayer(layer, self)
        self._caches = self._allocate()

    @torch.no_grad()
    def prefill(self, bucket: Bucket, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Starts a batch: logits [len(prompts), V] in float32 after each prompt.

        Raises RuntimeError for a bucket that was not warmed, ValueError for prompts that do
        not fit it.
        """
        if bucket not in self._passes:
            raise RuntimeError(
                f"bucket {bucket} was not warmed up; warmed buckets: "
                f"{' '.join(map(str, sorted(self._warmed))) or 'none'}. Nothing compiles while "
                f"serving: add it to the engine's buckets and start again"
            )
        _check_prompts(bucket, prompts)
        tokens, positions, starts = self._pad(bucket, prompts)
        batch = CachedBatch(
            bucket, len(prompts), positions[:, -1:].clone(), self._decode_mask(bucket, starts)
        )
        mask = self._prefill_mask(bucket, starts)
        logits = self._run(bucket, tokens, positions, mask, None)
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
        logits = self._run(batch.bucket, column, batch.positions, batch.mask, slot)
        batch.step += 1
        return logits[: batch.rows].float()

    def compile(self, bucket: Bucket) -> None:
        """Readies a bucket's two passes; each compiles when it first runs (see `warmup`)."""
        function = _run_layer if self.config.compile_scope == "layer" else _run_model
        name = str(bucket).replace(",", "_")
        self._warmed.discard(bucket)
        self._passes[bucket] = (
            compile_pass(function, f"prefill_{name}", self.config.compile_backend),
            compile_pass(function, f"decode_{name}", self.config.compile_backend),
        )

    def close_compiling(self, bucket: Bucket) -> None:
        """From here on a pass of this bucket that would compile raises instead."""
        self._warmed.add(bucket)

    def _run(self, bucket, tokens, positions, mask, slot) -> Tensor:
        """One pass in the bucket's compiled code: logits [B, V]."""
        compiled = self._passes[bucket][slot is not None]
        arguments = (tokens, positions, self._caches[bucket], mask, slot)
        if self.config.compile_backend == "sendnn":
            _mark_static(arguments)
        if bucket in self._warmed:
            with no_compile():
                return self._call(compiled, arguments)
        return self._call(compiled, arguments)

    def _call(self, compiled: Callable, arguments: tuple) -> Tensor:
        if self.config.compile_scope == "model":
            return compiled(self._model, *arguments)
        self._layer_pass = compiled
        return _run_model(self._model, *arguments)

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

    def _additive(self, seen: Tensor) -> Tensor:
        return torch.zeros(seen.shape, dtype=self.dtype).masked_fill_(~seen, float("-inf"))


class _SwitchedLayer(nn.Module):
    """A decoder layer that runs in whichever compiled pass the engine is in (scope `layer`)."""

    def __init__(self, layer: nn.Module, engine: SpyreCausalLM):
        super().__init__()
        self.layer = layer
        self.engine = engine

    def forward(self, x, *, position_ids, past_key_value_state, mask, slot, **_):
        x = self.engine._layer_pass(self.layer, x, position_ids, past_key_value_state, mask, slot)
        return x, past_key_value_state


def _run_layer(layer, x, positions, cache, mask, slot):
    """One decoder layer over its (keys, values) cache: hidden states in, hidden states out."""
    x, _ = layer(
        x=x,
        position_ids=positions,
        past_key_value_state=cache,
        use_cache=True,
        attn_name=SPYRE_STATIC,
        mask=mask,
        slot=slot,
    )
    return x


def _run_model(model, tokens, positions, caches, mask, slot):
    """The whole model: tokens [B, Q] in, logits [B, V] of the last column out."""
    logits, _ = model(
        tokens,
        position_ids=positions,
        past_key_value_states=caches,
        use_cache=True,
        last_n_tokens=1,
        attn_name=SPYRE_STATIC,
        mask=mask,
        slot=slot,
    )
    return logits[:, -1]


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


def _mark_static(arguments: tuple) -> None:
    """Tells the card's compiler that no dimension of any input ever changes."""
    tokens, positions, caches, mask, slot = arguments
    for tensor in (tokens, positions, mask, *(part for cache in caches for part in cache)):
        torch._dynamo.mark_static(tensor)
    if slot is not None:
        torch._dynamo.mark_static(slot)
