"""Who kept the machine busy: this process and a session of processes, or somebody else."""

import subprocess
import sys
import time

from spyre_bench.validate.others import CpuTimes

SPIN = (sys.executable, "-c", "while True: pass")


def test_a_process_of_the_session_is_ours_and_the_same_one_of_another_session_is_not():
    spinning = subprocess.Popen(SPIN, start_new_session=True)
    try:
        seen, counted = CpuTimes.now(spinning.pid), CpuTimes.now(0)
        time.sleep(1.0)
        seen_later, counted_later = CpuTimes.now(spinning.pid), CpuTimes.now(0)
    finally:
        spinning.kill()
        spinning.wait()
    of_the_session = seen_later.ours_s - seen.ours_s
    assert of_the_session - (counted_later.ours_s - counted.ours_s) > 0.05
    assert counted_later.others_since(counted) > seen_later.others_since(seen)


def test_nothing_is_less_than_idle():
    at = CpuTimes(0.0, 100.0, 50.0)
    assert CpuTimes(10.0, 105.0, 52.0).others_since(at) == 0.3
    assert CpuTimes(10.0, 101.0, 52.0).others_since(at) == 0.0
