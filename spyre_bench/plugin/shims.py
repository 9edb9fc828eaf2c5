"""Two faults of vLLM 0.32 at start and end that no hook reaches, mended in place.

Each test of `tests/plugin/test_shims.py` fails once vLLM does without, and names what can go.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def make_shutdown_quiet() -> None:
    """Every engine that is not on vLLM's CPU platform ends with two calls that raise where there
    is no accelerator, and prints a traceback: nothing is to be emptied there."""
    if torch.accelerator.is_available():
        return
    torch.accelerator.empty_cache = _nothing_to_empty
    torch.accelerator.empty_host_cache = _nothing_to_empty


def _nothing_to_empty() -> None:
    """No accelerator: no cache of one."""


def let_ctrl_c_through() -> None:
    """A Ctrl-C while the engine process starts is swallowed by the socket that waits for it: the
    front end then waits ten minutes more for an engine that it has ended."""
    from vllm.utils.network_utils import zmq_socket_ctx
    from vllm.v1.engine import utils

    @contextmanager
    def attentive(*args, **kwargs) -> Iterator:
        interrupt = None
        with zmq_socket_ctx(*args, **kwargs) as socket:
            try:
                yield socket
            except KeyboardInterrupt as error:
                interrupt = error
                raise
        if interrupt is not None:
            raise interrupt

    utils.zmq_socket_ctx = attentive
