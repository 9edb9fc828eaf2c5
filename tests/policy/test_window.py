"""What `length_aware` chooses, held against a plain scan of all who wait."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.policy import window
from spyre_bench.policy.static import Policy, next_batch
from spyre_bench.policy.window import Window
from spyre_bench.shapes import Bucket
from spyre_bench.simulate.static import _Engine, simulate
from spyre_bench.workload.workload import Workload
from tests.policy.test_static import Request

LENGTHS = [(64, 8), (64, 32), (256, 8), (256, 32)]
COSTS = st.lists(
    st.builds(
        lambda size, lengths, prefill_s, decode_s: BucketCost(
            Bucket(size, *lengths), prefill_s, decode_s
        ),
        st.integers(1, 4),
        st.sampled_from(LENGTHS),
        st.sampled_from([0.1, 0.3, 1.0, 2.7]),  # few, so that batches are equally good
        st.sampled_from([0.01, 0.1, 0.25]),
    ),
    min_size=1,
    max_size=5,
).map(lambda some: (*some, BucketCost(Bucket(2, 256, 32), 1.0, 0.1)))
SIZES = st.tuples(st.sampled_from([1, 60, 64, 65, 200]), st.sampled_from([1, 2, 8, 9, 32]))


def scanned(queue, costs, with_head):
    """The batch of `length_aware`, every request and every choice looked at anew."""
    queue = queue[: window.LOOK_AHEAD * max(cost.bucket.batch_size for cost in costs)]

    def fits(cost, request):
        return cost.bucket.fits(request.prompt_tokens, request.max_tokens)

    def bound_s(request):
        return min(
            cost.prefill_s / cost.bucket.batch_size
            + (request.max_tokens - 1) * (cost.decode_s / cost.bucket.batch_size)
            for cost in costs
            if fits(cost, request)
        )

    choices = []
    for cost in costs:
        size = cost.bucket.batch_size
        rows = [place for place, request in enumerate(queue) if fits(cost, request)]
        rows.sort(key=lambda at: (-bound_s(queue[at]), -queue[at].prompt_tokens, at))
        runs = [rows[at : at + size] for at in range(max(1, len(rows) - size + 1))]
        choices += [(cost, run) for run in (runs if with_head else runs[:1]) if run]

    def efficiency(choice):
        cost, run = choice
        expected_s = cost.batch_s(max(queue[at].max_tokens for at in run))
        return sum(bound_s(queue[at]) for at in run) / expected_s

    if with_head:
        choices = [choice for choice in choices if 0 in choice[1]]
    cost, run = max(choices, key=efficiency)
    return cost, [queue[at] for at in sorted(run)]


@given(COSTS, st.lists(SIZES, min_size=1, max_size=20), st.booleans(), st.sampled_from([1, 2, 64]))
def test_the_choice_is_that_of_a_plain_scan(costs, sizes, is_old, look_ahead):
    queue = [Request(str(row), *size) for row, size in enumerate(sizes)]
    now = 60.0 if is_old else 59.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window, "LOOK_AHEAD", look_ahead)
        batch = next_batch(queue, costs, Policy("length_aware"), now)
        cost, members = scanned(queue, costs, is_old)
    assert batch.cost is cost
    assert list(batch.members) == members


@given(COSTS, st.lists(SIZES, min_size=1, max_size=30), st.data())
def test_a_window_that_is_kept_chooses_as_one_that_is_filled_anew(costs, sizes, data):
    kept, queue = Window(costs), []
    for row, size in enumerate(sizes):
        queue.append(Request(str(row), *size))
        kept.add(queue[-1])
        if data.draw(st.booleans()):
            with_head = data.draw(st.booleans())
            cost, members = kept.choose(with_head)
            assert (cost, members) == scanned(queue, costs, with_head)
            assert (cost, members) == Window(costs, queue).choose(with_head)
            left = data.draw(st.sampled_from([members, queue[:1], queue[1:4]]))  # or some give up
            kept.remove(left)
            queue = [request for request in queue if request not in left]
        assert list(kept) == queue
        if not queue:
            break


@given(
    COSTS,
    st.lists(st.tuples(st.integers(0, 30), SIZES, st.sampled_from([0.5, 3.0, 1e9])), min_size=1),
    st.sampled_from([0.0, 2.0, 60.0]),
    st.sampled_from([0.0, 1.5]),
    st.sampled_from([1, 2, 64]),
)
def test_a_simulator_that_keeps_its_window_does_what_one_without_does(
    costs, arriving, max_age_s, hold_s, look_ahead
):
    arriving.sort()
    arrival_s = np.array([float(at) for at, *_ in arriving])
    prompts, tokens = np.array([size for _, size, _ in arriving]).T
    load = Workload("made", arrival_s, prompts, tokens, tokens)
    policy = Policy("length_aware", max_age_s=max_age_s, max_wait_s=hold_s)
    leaves_s = arrival_s + [stay_s for *_, stay_s in arriving]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window, "LOOK_AHEAD", look_ahead)
        kept = simulate(load, costs, policy, leaves_s=leaves_s)
        patch.setattr(_Engine, "_in_window", _Engine._waiting)  # as for the other policies
        without = simulate(load, costs, policy, leaves_s=leaves_s)
    for name in ("start_s", "shape", "members"):
        assert getattr(kept.passes, name).tolist() == getattr(without.passes, name).tolist()
