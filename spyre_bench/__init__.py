"""A workbench for serving language models from precompiled static shapes (IBM Spyre).

vLLM imports this package in every process, so nothing heavy is imported here: a name of the face is
fetched from its module when it is first asked for.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

FACE = {
    "Bucket": "shapes",
    "BucketSet": "shapes",
    "Limits": "choose.optimize",
    "Policy": "policy.static",
    "Scenario": "simulate.scenario",
    "Workload": "workload.workload",
    "advise": "choose.advise",
    "choose_buckets": "choose.optimize",
    "load_cost": "cost.source",
    "load_workload": "workload.source",
}
"""What a notebook needs, and where it lives."""

__all__ = list(FACE)


def __getattr__(name: str) -> Any:
    if name not in FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{FACE[name]}"), name)


def __dir__() -> list[str]:
    return [*FACE, "__version__"]
