"""Where results came from: versions, commit, machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

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
        **_commit(),
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


def _commit() -> dict[str, Any]:
    """Commit of the clone that this package runs from, and whether it differs from it; None where
    it does not run from a clone."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return ""

    if not git(
        "ls-files", Path(__file__).name
    ):  # installed, perhaps inside another project's clone
        return {"commit": None, "dirty": None}
    return {
        "commit": git("rev-parse", "HEAD").strip(),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
