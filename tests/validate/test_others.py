"""Who kept the machine busy: this process and a session of processes, or somebody else."""

import subprocess
import sys
import time

from spyre_bench.validate.others import CpuTimes

SPIN = (sys.executable, "-c", "while True: pass")
SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")


def test_a_process_of_the_session_is_ours_and_the_same_one_of_another_session_is_not():
    spinning = subprocess.Popen(SPIN, start_new_session=True)
    asleep = subprocess.Popen(SLEEP, start_new_session=True)
    try:
        of_its_session, of_another = CpuTimes.now(spinning.pid), CpuTimes.now(asleep.pid)
        time.sleep(1.0)
        of_its_session_later, of_another_later = (
            CpuTimes.now(spinning.pid),
            CpuTimes.now(asleep.pid),
        )
    finally:
        for process in (spinning, asleep):
            process.kill()
            process.wait()
    spun_s = of_its_session_later.ours_s - of_its_session.ours_s
    assert spun_s - (of_another_later.ours_s - of_another.ours_s) > 0.05
    others = of_its_session_later.others_since(of_its_session)
    assert of_another_later.others_since(of_another) > others


def test_several_sessions_are_ours_together():
    processes = [subprocess.Popen(SPIN, start_new_session=True) for _ in range(2)]
    try:
        time.sleep(0.3)
        apart = [CpuTimes.now(process.pid).ours_s - CpuTimes.now().ours_s for process in processes]
        together_s = CpuTimes.now(*(process.pid for process in processes)).ours_s
        assert together_s - CpuTimes.now().ours_s >= sum(apart) - 0.05 > 0
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_nothing_is_less_than_idle():
    at = CpuTimes(0.0, 100.0, 50.0)
    assert CpuTimes(10.0, 105.0, 52.0).others_since(at) == 0.3
    assert CpuTimes(10.0, 101.0, 52.0).others_since(at) == 0.0
