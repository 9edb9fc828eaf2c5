"""Processes that are started here end with whoever started them."""

import contextlib
import ctypes
import signal

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def ends_with_us() -> None:
    """In a process that is about to become another program: it gets a Ctrl-C when the thread that
    started it is no more, as when a notebook is killed, and heeds it though this process may ignore
    it, as a shell's background job does. Linux only; elsewhere it outlives a killed notebook."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)
