"""The kernel of a notebook: one that an interrupt finds, and that prints into a file."""

from __future__ import annotations

import os
import signal
import weakref
from pathlib import Path
from typing import Any, ClassVar

from jupyter_client import AsyncKernelManager

LOG = "kernel.log"


class Output:
    """What a kernel and the processes that it starts print past their cells, such as the warnings
    of libraries: in `kernel.log` in a folder, and nowhere else."""

    def __init__(self, directory: Path):
        self.path = directory / LOG

    def kernel(self) -> type[Kernel]:
        """A kind of kernel that prints here."""
        return type("PrintingKernel", (Kernel,), {"output": self})

    @property
    def mention(self) -> str:
        """Where to read on, for the end of a sentence; empty where nothing was printed."""
        printed = self.path.exists() and self.path.stat().st_size
        return f"; what it printed is in {self.path}" if printed else ""


class Kernel(AsyncKernelManager):
    """A kernel that `interrupt_kernels` finds."""

    running: ClassVar[weakref.WeakSet[Kernel]] = weakref.WeakSet()
    output: ClassVar[Output]  # not `log`, which is the logger of every kernel manager

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.running.add(self)

    async def start_kernel(self, **kwargs: Any) -> None:
        """Starts the process, which keeps the file open after we have closed it."""
        with self.output.path.open("ab") as file:
            await super().start_kernel(stdout=file, stderr=file, **kwargs)


def interrupt_kernels(number: int = signal.SIGINT) -> None:
    """Sends the signal to every kernel of this process and to what the kernel has started."""
    for kernel in list(Kernel.running):
        if kernel.has_kernel and (group := getattr(kernel.provisioner, "pgid", None)):
            try:
                os.killpg(group, number)
            except ProcessLookupError:
                continue
