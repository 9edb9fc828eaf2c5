"""A model whose passes are compiled, one code object for each shape, and never after warmup.

Shapes: B rows, Q query tokens of a pass, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spyre_bench.engine.compile import (
    SavedPass,
    check_backend,
    check_scope,
    compile_pass,
    no_compile,
)
from spyre_bench.engine.fms import FMSCode
from spyre_bench.engine.linear import can_pack
from spyre_bench.engine.model_code import ModelCode
from spyre_bench.engine.parallel import ALONE, Rank, require_joined
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
    model_code: ModelCode = field(default_factory=FMSCode)
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
        if self.compile_backend not in (known := self.model_code.compile_backends):
            raise ValueError(
                f"model_code {self.model_code.name!r} does not run on {self.compile_backend!r}: "
                f"use compile_backend {' or '.join(known)}, or another model_code"
            )
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
        self.sizes = config.model_code.sizes(config.model_directory, longest)
        self.vocab_size = self.sizes.vocab_size
        self.context_length = self.sizes.context_length
        self.dtype = getattr(torch, config.dtype)
        self.sizes.require_tp(config.rank.tp)
        require_joined(config.rank)
        self.packs = config.compile_backend == "inductor" and can_pack(self.dtype)
        self.memory_bytes = self._check_memory()
        self.pad_token = 0  # fills pad slots and dummy rows; no output depends on it
        started = time.perf_counter()
        self._model = config.model_code.load(
            config.model_directory,
            self.sizes,
            self.dtype,
            longest,
            config.rank,
            self.returns_caches,
        )
        self.weight_bytes = self._model.weight_bytes
        if self.packs:
            self._model.pack_linears(config.rows)
        self.load_s = time.perf_counter() - started
        self._passes: dict[Hashable, Callable] = {}
        self._warmed: set[Hashable] = set()
        self._layer_pass = self._model.layer_pass  # of the compiled pass that the engine is in
        if config.compile_scope == "layer":
            self._model.route_layers(lambda: self._layer_pass)

    def _check_memory(self) -> int:
        """Bytes that this rank will hold; raises ValueError where there are not as many."""
        raise NotImplementedError

    @property
    def graphs_per_pass(self) -> int:
        """At most: one, or one for each kind of layer."""
        return self._model.graphs_per_pass if self.config.compile_scope == "layer" else 1

    def close_compiling(self, shape: Hashable) -> None:
        """From here on a pass of this shape that would compile raises instead."""
        self._warmed.add(shape)

    def _compile(self, shape: Hashable, name: str, directory: Path | None) -> None:
        """Readies a pass under a name; it compiles when it first runs (see `warmup`), or is loaded
        from what an earlier start has left in the directory."""
        by_layer = self.config.compile_scope == "layer"
        function = self._model.layer_pass if by_layer else self._model.whole_pass
        if self.saves_passes:
            self._passes[shape] = SavedPass(function, name, directory)
        else:
            self._passes[shape] = compile_pass(function, name, self.config.compile_backend)

    @property
    def saves_passes(self) -> bool:
        """Whether a pass is one graph that a later start may load. Where layers are of several
        kinds it is several, and a graph of several ranks holds their connections."""
        return (
            self.config.compile_backend == "inductor"
            and self.config.rank.tp == 1
            and self._model.layers_are_alike
            and not torch._inductor.config.force_disable_caches
        )

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
        if self.config.compile_backend == "sendnn":
            _mark_static(tokens, positions, caches, attention)
        inputs = self._model.inputs(tokens, positions, caches, attention)
        run = self._passes[compiled]
        if not closed:
            return self._call(run, inputs)
        with no_compile():
            return self._call(run.warmed if isinstance(run, SavedPass) else run, inputs)

    def _call(self, compiled: Callable, inputs: tuple) -> Any:
        if self.config.compile_scope == "model":
            return compiled(self._model.module, *inputs)
        self._layer_pass = compiled
        return self._model.whole_pass(self._model.module, *inputs)

    def _additive(self, seen: Tensor) -> Tensor:
        """A mask to be added to attention weights: 0 where something is seen, else -inf."""
        return torch.zeros(seen.shape, dtype=self.dtype).masked_fill_(~seen, float("-inf"))


def _mark_static(tokens, positions, caches, attention) -> None:
    """Tells the card's compiler that no dimension of any input ever changes."""
    inputs = (tokens, positions, *attention.values())
    for tensor in (*inputs, *(part for cache in caches for part in cache)):
        if isinstance(tensor, Tensor):
            torch._dynamo.mark_static(tensor)
