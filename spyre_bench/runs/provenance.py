"""Where results came from: versions, commit, machine."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from spyre_bench.files import commit

PACKAGES = (
    "spyre-bench",
    "torch",
    "vllm",
    "ibm-fms",
    "transformers",
    "numpy",
    "scipy",
    "pandas",
    "matplotlib",
    "papermill",
)


def provenance() -> dict[str, Any]:
    """The machine, the versions and the commit that figures of this process come from."""
    return {
        "versions": versions(),
        **commit(),
        "host": platform.node(),
        "cpu": _cpu(),
        "threads": len(os.sched_getaffinity(0)),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    """Of Python and of those of our packages that are installed."""
    return {"python": platform.python_version()} | {
        name: version for name in PACKAGES if (version := _version(name))
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
