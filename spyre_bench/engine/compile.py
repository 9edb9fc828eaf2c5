"""Compile backends and scopes, and the promise that nothing compiles after warmup."""

from __future__ import annotations

import contextlib
import importlib
import types
from collections.abc import Callable, Iterator

import torch

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


def compile_pass(function: Callable, name: str, backend: str) -> Callable:
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
    return torch.compile(own, backend=backend, fullgraph=True, dynamic=False)


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
    """Graphs that Dynamo has captured in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def cache_misses() -> int:
    """Graphs that Inductor or AOTAutograd compiled instead of loading, in this process."""
    counters = torch._dynamo.utils.counters
    return (
        counters["inductor"]["fxgraph_cache_miss"]
        + counters["inductor"]["fxgraph_cache_bypass"]
        + counters["aot_autograd"]["autograd_cache_miss"]
        + counters["aot_autograd"]["autograd_cache_bypass"]
    )
