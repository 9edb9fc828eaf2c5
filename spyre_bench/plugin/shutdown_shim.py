"""vLLM 0.32 ends every engine that is not on a CPU platform with two calls that raise where there
is no accelerator, and prints a traceback. `tests/plugin/test_shutdown.py` fails once this file can
go."""

import torch


def make_shutdown_quiet() -> None:
    """Turns those two calls into nothing, only where no accelerator could need them."""
    if torch.accelerator.is_available():
        return
    torch.accelerator.empty_cache = _nothing_to_empty
    torch.accelerator.empty_host_cache = _nothing_to_empty


def _nothing_to_empty() -> None:
    """No accelerator: no cache of one."""
