"""Shared by all tests. Engine and plugin tests are left out where only the core is installed."""

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).parent.parent.parent / "shared"

collect_ignore = (
    ["engine", "plugin", "notebooks", "test_report.py", "test_plots.py"]
    if os.environ.get("SPYRE_BENCH_CORE_ONLY")
    else []
)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The team's shared folder: must be there in CI, may be missing in a user's clone."""
    if not SHARED.exists():
        if os.environ.get("CI"):
            pytest.fail(f"CI is set but {SHARED} is missing")
        pytest.skip(f"{SHARED} is not here")
    return SHARED
