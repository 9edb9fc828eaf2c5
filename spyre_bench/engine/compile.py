"""Compile backends and scopes, and the promise that nothing compiles after warmup."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from pickle import PicklingError
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.aot_compile import AOTCompiledFunction
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.guards import CheckFunctionManager
from torch._dynamo.package import InlinedSource
from torch._dynamo.types import GuardFilterEntry

log = logging.getLogger(__name__)

COMPILE_BACKENDS = ("eager", "inductor", "sendnn")
COMPILE_SCOPES = ("layer", "model")


def check_backend(name: str) -> None:
    """Raises ValueError for an unknown backend and for one that is not installed here."""
    if name not in COMPILE_BACKENDS:
        raise ValueError(
            f"compile_backend {name!r} is unknown: use one of {', '.join(COMPILE_BACKENDS)}"
        )
    if name == "inductor":
        # its second of imports belongs to loading, not to the first bucket's compile time
        importlib.import_module("torch._inductor.compile_fx")
    if name == "sendnn":
        try:
            importlib.import_module("torch_sendnn")
        except ImportError as error:
            raise ValueError(
                "compile_backend 'sendnn' needs IBM's package torch_sendnn, which is not "
                "installed here: install it from the Spyre software stack, or use 'inductor' "
                "or 'eager' on a CPU"
            ) from error


def check_scope(name: str) -> None:
    if name not in COMPILE_SCOPES:
        raise ValueError(
            f"compile_scope {name!r} is unknown: use one of {', '.join(COMPILE_SCOPES)}"
        )


def compile_pass(function: Callable, name: str, backend: str, **options: Any) -> Callable:
    """`function` compiled for one static shape under a code object of its own.

    Dynamo keeps its compiled entries by code object, so each bucket's pass needs one of its
    own: it then holds a single entry, found without trying the other buckets' guards.
    """
    own = types.FunctionType(
        function.__code__.replace(co_name=name),
        function.__globals__,
        name,
        function.__defaults__,
        function.__closure__,
    )
    own.__kwdefaults__ = function.__kwdefaults__
    return torch.compile(own, backend=backend, fullgraph=True, dynamic=False, **options)


class CodeNotLoaded(Exception):
    """A saved pass cannot be loaded; says why."""


CANNOT_BE_SAVED = (RuntimeError, PicklingError, TypeError, AttributeError)
"""What torch and pickle raise for a graph, a guard or a value that no file can hold."""


class SavedPass:
    """A pass that Inductor compiles whole when it first runs, and that a later start loads from
    the directory instead (None: nothing is kept), without a trace by Dynamo.

    Every call is held against Dynamo's guards: one that its graph does not hold for, with another
    kind of layer, raises. Once warmup has made each of them, `warmed` is the pass without.
    """

    loaded = 0  # in this process
    traced = 0

    def __init__(self, function: Callable, name: str, directory: Path | None):
        self._function, self._name = function, name
        self._file = None if directory is None else directory / f"{name}.pass"
        self._guarded: Callable | None = None
        self.warmed: Callable = self

    def __call__(self, *args: Any) -> Any:
        if self._guarded is None:
            self._guarded = self._load(args) or self._compile(args)
            self.warmed = getattr(self._guarded, "fn", self._guarded)
        return self._guarded(*args)

    def _compile(self, args: tuple) -> Callable:
        SavedPass.traced += 1
        compiled = compile_pass(
            self._function, self._name, "inductor", options={"guard_filter_fn": _can_be_saved}
        )
        try:
            whole: AOTCompiledFunction = compiled.aot_compile((args, {}))
            if self._file is not None:
                self._keep(AOTCompiledFunction.serialize(whole).serialized_data, self._file)
            return whole
        except BackendCompilerFailed:
            raise
        except CANNOT_BE_SAVED as error:
            log.warning(
                "%s cannot be saved whole, so that every start traces it: %s", self._name, error
            )
            return compile_pass(self._function, self._name, "inductor")

    def _keep(self, whole: bytes, file: Path) -> None:
        """It runs all the same where it cannot be written, and half a file is none."""
        try:
            file.write_bytes(whole)
        except OSError as error:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
            log.warning(
                "%s is not kept, so that the next start traces it: %s. Make room in %s, or name "
                "another place by TMPDIR",
                *(self._name, error.strerror or error, file.parent.parent),
            )

    def _load(self, args: tuple) -> AOTCompiledFunction | None:
        """None where there is none, or one that was traced from other source code or for another
        state of this process."""
        if self._file is None or not self._file.exists():
            return None
        try:
            whole = AOTCompiledFunction.deserialize(
                self._file.read_bytes(), self._function.__globals__
            )
            if any(_has_changed(source) for source in whole.source_info().inlined_sources):
                return None
            if not whole.guard_check(*args):
                return None
        except MemoryError:  # the code is not to blame, and stays
            raise
        except Exception as error:  # whatever damage does to a pickle and to what it loads
            why = str(error) or type(error).__name__
            raise CodeNotLoaded(f"{self._file.name}: {why}") from error
        SavedPass.loaded += 1
        return whole


def _can_be_saved(guards: Sequence[GuardFilterEntry]) -> list[bool]:
    """Leaves out guards over packed weights, whose shapes the model's config says, and those over
    functions and modules, whose source is in the file (see `_has_changed`)."""
    never = set(CheckFunctionManager.UNSUPPORTED_SERIALIZATION_GUARD_TYPES)
    return [
        never.isdisjoint((guard.guard_type, *guard.derived_guard_types))
        and not (isinstance(guard.value, Tensor) and guard.value.is_mkldnn)
        for guard in guards
    ]


def _has_changed(source: InlinedSource) -> bool:
    """Whether a module that Dynamo traced reads otherwise now."""
    return inspect.getsource(importlib.import_module(source.module)) != source.content


@contextlib.contextmanager
def no_compile() -> Iterator[None]:
    """Around our own forward only: the stance is process-wide, and others may still have a
    first compile of theirs to do, such as vLLM's sampler."""
    with torch.compiler.set_stance("fail_on_recompile"):
        yield


@contextlib.contextmanager
def sendnn_warmup(backend: str, turn: contextlib.AbstractContextManager) -> Iterator[None]:
    """The card's compile phase: passes inside are traced, the compile runs on leaving, inside
    `turn`: compiling on all ranks at once may take more memory than the host has."""
    if backend != "sendnn":
        yield
        return
    with contextlib.ExitStack() as phase:
        phase.enter_context(importlib.import_module("torch_sendnn").warmup_mode())
        yield
        with turn:
            phase.close()


def unique_graphs() -> int:
    """Graphs that Dynamo has captured in this process, or that were loaded without it."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"] + SavedPass.loaded


def cache_misses() -> int:
    """Graphs that were compiled instead of loaded, in this process, by whoever's count."""
    counters = torch._dynamo.utils.counters
    return (
        SavedPass.traced
        + counters["inductor"]["fxgraph_cache_miss"]
        + counters["inductor"]["fxgraph_cache_bypass"]
        + counters["aot_autograd"]["autograd_cache_miss"]
        + counters["aot_autograd"]["autograd_cache_bypass"]
    )
