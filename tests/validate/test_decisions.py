"""Decisions held against a pass log, by hand; `tests/plugin/test_one_policy_two_hosts` does it for
hundreds of random runs of vLLM's own scheduler."""

import pandas as pd
import pytest

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import Bucket
from spyre_bench.validate.decisions import decisions

COSTS = (BucketCost(Bucket(2, 64, 8), 1.0, 0.5),)
POLICY = Policy("fcfs")


def prefill(
    batch: int,
    start_s: float,
    seen_s: list[float],
    place: list[int],
    before_s: float = -1.0,  # the last look at the queue that started nothing
    **more,
) -> dict:
    """A batch of one-token answers, a second long unless it says otherwise."""
    row = {
        "kind": "prefill",
        "batch": batch,
        "bucket": "2,64,8",
        "start_s": start_s,
        "seconds": 1.0,
        "prompt_tokens": [10] * len(place),
        "running": len(place),
        "place": place,
        "arrival_s": seen_s,
        "seen_s": seen_s,
        "looked_s": [before_s, start_s],
        "max_tokens": [1] * len(place),
        "left": [],
    }
    return row | more


def decided(*rows: dict, policy: Policy = POLICY):
    return decisions(pd.DataFrame(rows), policy, COSTS)


def test_the_same_batches_at_their_times_agree_whatever_passes_took():
    slow = prefill(0, 0.002, [0.0], [1], seconds=7.0)
    found = decided(slow, prefill(1, 7.003, [2.0, 5.0], [2, 3], before_s=0.002))
    assert found.agree
    assert found.batches == 2
    assert found.latest_s == pytest.approx(0.002)


def test_a_batch_without_somebody_who_was_seen_in_time_is_another_decision():
    found = decided(
        prefill(0, 0.0, [0.0], [1]),
        prefill(1, 1.0, [0.5], [2], before_s=0.0),
        prefill(2, 2.0, [0.75], [3], before_s=1.0),
    )
    assert (found.same, found.first_other, found.agree) == (False, 1, False)
    assert str(found) == (
        "batch 1 of 3 (counted from 0) differs: the server's 2,64,8 with requests 2 at 1.000000 s; "
        "the simulator's 2,64,8 with requests 2, 3 at 0.999999 s; before it starts at most 0.0 ms "
        "apart"
    )


def test_who_was_seen_a_moment_after_the_decision_is_none():
    found = decided(
        prefill(0, 0.0, [0.0], [1]),
        prefill(1, 1.0, [0.5], [2], before_s=0.0),
        prefill(2, 2.0, [1.001], [3], before_s=1.0),
    )
    assert found.agree


def test_a_start_that_is_late_is_no_agreement_even_with_the_same_batches():
    found = decided(prefill(0, 0.0, [0.0], [1]), prefill(1, 5.0, [4.5], [2], before_s=0.0))
    assert found.same
    assert not found.agree
    assert found.latest_s == pytest.approx(0.5)


def test_who_left_the_queue_was_before_others_in_it_until_then():
    left = [[2, 0.5, 0.5, 0.0, 0.9, 10, 1]]
    first = prefill(0, 0.0, [0.0], [1])
    next_one = prefill(1, 1.0, [0.6, 0.7], [3, 4], before_s=0.0, left=left)
    assert decided(first, next_one).agree
    late = [[2, 0.5, 0.5, 1.0, 1.5, 10, 1]]
    assert not decided(first, next_one | {"left": late}).same


def test_a_log_of_an_older_server_is_refused():
    new = [prefill(0, 0.0, [0.0], [1]), prefill(1, 1.0, [0.5], [2], before_s=0.0)]
    for name in ("seen_s", "looked_s"):
        with pytest.raises(ValueError, match="an older server wrote it"):
            decided(*(row | {name: []} for row in new))


HELD = Policy("fcfs", gather_s=0.5)


def test_a_hold_ends_with_the_step_of_the_server_that_notices_it():
    late = prefill(0, 0.503, [0.0, 0.502], [1, 2], before_s=0.499)  # seen in the same step
    assert decided(late, policy=HELD).agree
    looked = prefill(0, 0.503, [0.0, 0.502], [1, 2], before_s=0.501)
    assert not decided(looked, policy=HELD).same


def test_a_loop_that_was_long_elsewhere_decides_the_same_but_late():
    held = decided(prefill(0, 0.7, [0.0, 0.502], [1, 2], before_s=0.499), policy=HELD)
    assert (held.same, held.agree, held.latest_s) == (True, False, pytest.approx(0.2))
    running = [prefill(0, 0.0, [0.0], [1]), prefill(1, 1.2, [0.5, 1.1], [2, 3], before_s=0.0)]
    assert (decided(*running).same, decided(*running).agree) == (True, False)


def test_who_hangs_up_before_the_step_that_notices_the_end_of_its_hold_never_runs():
    left = [[1, 0.0, 0.0, 0.499, 0.501, 10, 1]]
    after = prefill(0, 1.5, [1.0], [2], before_s=1.4999, left=left)
    assert decided(after, policy=HELD).agree
    looked = [[1, 0.0, 0.0, 0.5005, 0.501, 10, 1]]
    assert not decided(after | {"left": looked}, policy=HELD).same
