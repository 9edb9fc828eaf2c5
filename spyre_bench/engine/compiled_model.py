"""A model whose passes are compiled, one code object for each shape, and never after warmup.

Shapes: B rows, Q query tokens of a pass, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spyre_bench.checkpoints.weight_files import WeightFiles
from spyre_bench.engine import fms
from spyre_bench.engine.compile import check_backend, check_scope, compile_pass, no_compile
from spyre_bench.engine.linear import can_pack, pack_linears
from spyre_bench.engine.memory import sizes_of
from spyre_bench.engine.parallel import ALONE, Rank, require_joined
from spyre_bench.engine.weights import require_servable
from spyre_bench.model_sizes import ITEM_BYTES
from spyre_bench.shape_set import ShapeSet
from spyre_bench.shapes import BucketSet


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What to load and how to compile it; raises ValueError for what cannot work.

    `artefact_directory` keeps compiled code between runs (None: nothing is kept).
    `memory_bytes` is the device's memory (None: what the machine has free, shared by the ranks).
    Every rank of a tensor parallel engine builds its own with its `rank`, after `parallel.join`,
    and makes the same calls in the same order.
    """

    model_directory: Path
    buckets: BucketSet | None = None  # static batching
    shapes: ShapeSet | None = None  # continuous batching
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
        if (self.buckets is None) == (self.shapes is None):
            raise ValueError(
                "an engine compiles either buckets (static batching) or shapes (continuous "
                "batching): give one of the two"
            )
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

    @property
    def compiled(self) -> BucketSet | ShapeSet:
        """What is compiled at init: buckets, or shapes."""
        compiled = self.buckets if self.shapes is None else self.shapes
        assert compiled is not None
        return compiled

    @property
    def rows(self) -> int:
        """Of the widest decode pass."""
        if self.shapes is not None:
            return self.shapes.max_rows
        assert self.buckets is not None
        return self.buckets.max_batch_size


class CompiledModel:
    """A language model that runs compiled passes; what they share of attention and cache is its
    subclasses' business."""

    returns_caches = False  # a pass returns its caches instead of writing in place

    def __init__(self, config: EngineConfig):
        self.config = config
        longest = config.compiled.max_context_length
        hf_config = require_servable(config.model_directory, longest)
        files = WeightFiles(config.model_directory)
        self.sizes = sizes_of(hf_config, files)
        self.vocab_size = self.sizes.vocab_size
        self.context_length = self.sizes.context_length
        self.dtype = getattr(torch, config.dtype)
        tp = config.rank.tp
        self.sizes.require_tp(tp)
        require_joined(config.rank)
        self.packs = config.compile_backend == "inductor" and can_pack(self.dtype)
        self.memory_bytes = self._check_memory()
        self.pad_token = 0  # fills pad slots and dummy rows; no output depends on it
        started = time.perf_counter()
        self._model = fms.load(
            hf_config, self.sizes, files, self.dtype, longest, tp, config.rank.rank
        )
        self.weight_bytes = sum(weight.nbytes for weight in set(self._model.parameters()))
        if self.packs:
            pack_linears(self._model, config.rows)
        self.load_s = time.perf_counter() - started
        self._passes: dict[Hashable, Callable] = {}
        self._warmed: set[Hashable] = set()
        self._layer_pass: Callable = _run_layer  # of the compiled pass that the engine is in
        if config.compile_scope == "layer":
            layers = self._model.base_model.layers
            for index, layer in enumerate(layers):
                layers[index] = _SwitchedLayer(layer, self)

    def _check_memory(self) -> int:
        """Bytes that this rank will hold; raises ValueError where there are not as many."""
        raise NotImplementedError

    def close_compiling(self, shape: Hashable) -> None:
        """From here on a pass of this shape that would compile raises instead."""
        self._warmed.add(shape)

    def _compile(self, shape: Hashable, name: str) -> None:
        """Readies a pass under a name; it compiles when it first runs (see `warmup`)."""
        by_layer = self.config.compile_scope == "layer"
        function = self._one_layer if by_layer else self._whole_model
        self._passes[shape] = compile_pass(function, name, self.config.compile_backend)

    def _require_warmed(self, kind: str, shape: Hashable, compiled: Hashable) -> None:
        if compiled not in self._passes:
            raise RuntimeError(
                f"the {kind} {shape} was not warmed up; warmed: "
                f"{' '.join(sorted(map(str, self._warmed))) or 'none'}. Nothing compiles while "
                f"serving: add it to the engine's {kind}s and start again"
            )

    def _run(
        self,
        compiled: Hashable,
        closed: bool,
        tokens: Tensor,
        positions: Tensor,
        caches: Sequence[tuple[Tensor, Tensor]],
        attention: Mapping[str, Any],
    ) -> Any:
        """One compiled pass: tokens and positions [B, Q] in, logits [B, V] of the last out; and the
        caches with them where passes return those."""
        arguments = (tokens, positions, caches, attention)
        if self.config.compile_backend == "sendnn":
            _mark_static(arguments)
        if closed:
            with no_compile():
                return self._call(self._passes[compiled], arguments)
        return self._call(self._passes[compiled], arguments)

    def _call(self, compiled: Callable, arguments: tuple) -> Any:
        if self.config.compile_scope == "model":
            return compiled(self._model, *arguments)
        self._layer_pass = compiled
        return self._whole_model(self._model, *arguments)

    @property
    def _one_layer(self) -> Callable:
        return _run_layer_and_cache if self.returns_caches else _run_layer

    @property
    def _whole_model(self) -> Callable:
        return _run_model_and_caches if self.returns_caches else _run_model

    def _additive(self, seen: Tensor) -> Tensor:
        """A mask to be added to attention weights: 0 where something is seen, else -inf."""
        return torch.zeros(seen.shape, dtype=self.dtype).masked_fill_(~seen, float("-inf"))


class _SwitchedLayer(nn.Module):
    """A decoder layer that runs in whichever compiled pass the engine is in (scope `layer`)."""

    def __init__(self, layer: nn.Module, engine: CompiledModel):
        super().__init__()
        self.layer = layer
        self.engine = engine

    def forward(self, x, *, position_ids, past_key_value_state, use_cache, **attention):
        out = self.engine._layer_pass(self.layer, x, position_ids, past_key_value_state, attention)
        return out if self.engine.returns_caches else (out, past_key_value_state)


def _run_layer(layer, x, positions, cache, attention):
    """One decoder layer over its (keys, values) cache: hidden states in, hidden states out."""
    return _run_layer_and_cache(layer, x, positions, cache, attention)[0]


def _run_layer_and_cache(layer, x, positions, cache, attention):
    return layer(
        x=x, position_ids=positions, past_key_value_state=cache, use_cache=True, **attention
    )


def _run_model(model, tokens, positions, caches, attention):
    """The whole model: tokens [B, Q] in, logits [B, V] of the last column out."""
    return _run_model_and_caches(model, tokens, positions, caches, attention)[0]


def _run_model_and_caches(model, tokens, positions, caches, attention):
    logits, caches = model(
        tokens,
        position_ids=positions,
        past_key_value_states=caches,
        use_cache=True,
        last_n_tokens=1,
        **attention,
    )
    return logits[:, -1], caches


def _mark_static(arguments: tuple) -> None:
    """Tells the card's compiler that no dimension of any input ever changes."""
    tokens, positions, caches, attention = arguments
    inputs = (tokens, positions, *attention.values())
    for tensor in (*inputs, *(part for cache in caches for part in cache)):
        if isinstance(tensor, Tensor):
            torch._dynamo.mark_static(tensor)
