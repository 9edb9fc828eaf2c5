"""Half a minute of `make soak`."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("batching", ["static", "continuous"])
def test_half_a_minute_of_mixed_traffic_loses_nobody_and_changes_nothing(tmp_path, batching):
    # A start allocates for a minute or two: memory is only looked at over longer runs.
    command = [sys.executable, "-m", "tests.soak", "--minutes", "0.5", "--most-mb-a-minute", "inf"]
    done = subprocess.run(
        [*command, "--batching", batching, "--directory", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["ok"], report
    assert done.returncode == 0
    assert report["answered"]["vllm bench"] >= 24
    assert report["sent"]["leavers"] >= 3
