"""vLLM adapters, thin, with no ideas of their own. vLLM loads this in every process."""

import os

NAME = "spyre"
PLATFORM = "spyre_bench.plugin.platform.SpyrePlatform"
START_METHOD = os.environ.get("VLLM_WORKER_MULTIPROC_METHOD")
"""How processes start, as somebody asked for it; `vllm serve` writes its own answer later."""


def register() -> str | None:
    """vLLM's entry point: the platform's dotted name, or None to leave the device to others.

    Ours where VLLM_PLUGINS names us, or, with that unset, where none of vLLM's own platforms is
    there (its CPU build is one).
    """
    wanted = os.environ.get("VLLM_PLUGINS")
    if wanted is not None:
        return PLATFORM if NAME in wanted.split(",") else None
    return None if _vllm_has_a_platform() else PLATFORM


def _vllm_has_a_platform() -> bool:
    from vllm.platforms import builtin_platform_plugins

    return any(_finds(probe) for probe in builtin_platform_plugins.values())


def _finds(probe) -> bool:
    try:
        return probe() is not None
    except Exception:  # as in vLLM: a probe that fails has found nothing
        return False
