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


def prefill(batch: int, start_s: float, seen_s: list[float], place: list[int], **more) -> dict:
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
        "max_tokens": [1] * len(place),
        "left": [],
    }
    return row | more


def decided(*rows: dict, policy: Policy = POLICY):
    return decisions(pd.DataFrame(rows), policy, COSTS)


def test_the_same_batches_at_their_times_agree_whatever_passes_took():
    slow = prefill(0, 0.002, [0.0], [1], seconds=7.0)
    found = decided(slow, prefill(1, 7.003, [2.0, 5.0], [2, 3]))
    assert found.agree
    assert found.batches == 2
    assert found.latest_s == pytest.approx(0.002)


def test_a_batch_without_somebody_who_was_seen_in_time_is_another_decision():
    found = decided(
        prefill(0, 0.0, [0.0], [1]),
        prefill(1, 1.0, [0.5], [2]),
        prefill(2, 2.0, [0.75], [3]),
    )
    assert (found.same, found.first_other, found.agree) == (False, 1, False)


def test_who_was_seen_a_moment_after_the_decision_is_none():
    found = decided(
        prefill(0, 0.0, [0.0], [1]),
        prefill(1, 1.0, [0.5], [2]),
        prefill(2, 2.0, [1.001], [3]),
    )
    assert found.agree


def test_a_start_that_is_late_is_no_agreement_even_with_the_same_batches():
    found = decided(prefill(0, 0.0, [0.0], [1]), prefill(1, 5.0, [4.5], [2]))
    assert found.same
    assert not found.agree
    assert found.latest_s == pytest.approx(0.5)


def test_who_left_the_queue_was_before_others_in_it_until_then():
    left = [[2, 0.5, 0.5, 0.9, 10, 1]]
    first, next_one = prefill(0, 0.0, [0.0], [1]), prefill(1, 1.0, [0.6, 0.7], [3, 4], left=left)
    assert decided(first, next_one).agree
    late = [[2, 0.5, 0.5, 1.5, 10, 1]]
    assert not decided(first, next_one | {"left": late}).same


def test_a_log_of_an_older_server_is_refused():
    old = prefill(0, 0.0, [0.0], [1]) | {"seen_s": [], "arrival_s": [], "max_tokens": []}
    with pytest.raises(ValueError, match="an older server wrote it"):
        decided(old)


def test_a_hold_ends_with_the_step_of_the_server_that_notices_it():
    held = Policy("fcfs", gather_s=0.5)
    late = prefill(0, 0.503, [0.0, 0.502], [1, 2])  # seen 2 ms after the hold, in the same step
    assert decided(late, policy=held).agree
    too_late = prefill(0, 0.7, [0.0, 0.502], [1, 2])
    assert not decided(too_late, policy=held).agree
