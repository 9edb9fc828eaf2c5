"""How the engine process starts."""

import os

NAME = "VLLM_WORKER_MULTIPROC_METHOD"
ASKED = os.environ.get(NAME)
"""The user's: `vllm serve` imports the platform before it writes `spawn` there itself."""


def prefer_fork() -> None:
    """Forks, as vLLM does where it is a library: its server spawns, for devices that a fork cannot
    share, and the engine then imports everything again, for eight seconds. A user's own choice
    stays, and vLLM still spawns where it must (Ray, NUMA binding)."""
    if ASKED is None:
        os.environ[NAME] = "fork"
