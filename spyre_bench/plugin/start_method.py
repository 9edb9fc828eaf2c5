"""How the engine process starts."""

import ctypes
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

NAME = "VLLM_WORKER_MULTIPROC_METHOD"
ASKED = os.environ.get(NAME)
"""The user's: `vllm serve` imports the platform before it writes `spawn` there itself."""

OPENMP = ("libgomp", "libiomp", "libomp")
PAUSE = "omp_pause_resource_all"
HARD = 2  # of OpenMP's omp_pause_resource_t: threads end, and start again when they are wanted


def prefer_fork() -> None:
    """Forks, as vLLM does where it is a library: its server spawns, for devices that a fork cannot
    share, and the engine then imports everything again, for eight seconds. A user's own choice
    stays, and vLLM still spawns where it must (Ray, NUMA binding), as we do where a process cannot
    let go of its threads."""
    if ASKED is None:
        can_let_go = all(hasattr(one, PAUSE) for one in _openmp_runtimes())
        os.environ[NAME] = "fork" if can_let_go else "spawn"


@cache
def let_forks_compute() -> None:
    """A process that has computed with several threads (transformers' answers, to compare) has a
    pool of them, which a fork inherits without the threads: its first parallel region would wait
    for them for ever. From here on who forks ends its pool before, and both start their own."""
    os.register_at_fork(before=_end_pools)


def _end_pools() -> None:
    for runtime in _openmp_runtimes():
        if hasattr(runtime, PAUSE):
            getattr(runtime, PAUSE)(HARD)


def _openmp_runtimes() -> Iterator[ctypes.CDLL]:
    """Those that this process has loaded: torch's, and beside it a library's own."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    paths = {Path(line[line.index("/") :]) for line in lines if "/" in line}
    return (ctypes.CDLL(str(path)) for path in paths if path.name.startswith(OPENMP))
