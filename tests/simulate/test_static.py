"""The simulator against event logs worked out by hand, and its laws."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.policy.static import POLICIES, Policy, next_batch
from spyre_bench.shapes import REJECTIONS, Bucket, BucketSet
from spyre_bench.simulate.result import KINDS, UNSERVED, SimulatedRun
from spyre_bench.simulate.static import simulate
from spyre_bench.workload.workload import Workload

# prefill 1 s and decode 0.5 s in the small bucket, 4 s and 1 s in the large one
SMALL, LARGE = Bucket(2, 64, 8), Bucket(2, 256, 8)
COSTS = (BucketCost(SMALL, 1.0, 0.5), BucketCost(LARGE, 4.0, 1.0))
HEAD_FIRST = ("fcfs", "skip", "best_fit")


def workload(*requests: tuple) -> Workload:
    """Requests as (arrival_s, prompt_tokens, output_tokens) and, where it differs, max_tokens."""
    rows = [(*row, row[2])[:4] for row in requests]
    columns = (np.array(column) for column in zip(*rows, strict=True))
    return Workload("by hand", *columns)


def log(run: SimulatedRun) -> list[tuple]:
    """(start, replica, bucket, members, seconds) of each batch."""
    passes = run.passes
    return [
        (
            float(passes.start_s[row]),
            int(passes.replica[row]),
            run.costs[passes.shape[row]].bucket,
            passes.of_row(row)[0].tolist(),
            float(passes.batch_seconds[batch]),
        )
        for batch, row in enumerate(passes.first_of_batch)
    ]


def test_a_batch_runs_one_prefill_and_a_decode_for_every_further_token_of_its_longest_answer():
    run = simulate(workload((0.0, 10, 3), (0.0, 20, 5)), COSTS)
    assert log(run) == [(0.0, 0, SMALL, [0, 1], 1.0 + 4 * 0.5)]
    assert run.requests.first_token_s.tolist() == [1.0, 1.0]
    assert run.requests.finish_s.tolist() == [2.0, 3.0], "each ends with its own last token"


def test_a_batch_is_a_row_for_its_prefill_and_one_for_all_its_decode_passes():
    run = simulate(workload((0.0, 10, 1), (0.0, 20, 5), (9.0, 200, 1)), COSTS)
    passes = run.passes
    names = ("kind", "batch", "start_s", "seconds", "count", "rows", "slots", "useful")
    columns = (getattr(passes, name) for name in names)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == [
        (KINDS.index("prefill"), 0, 0.0, 1.0, 1, 2, 2 * (64 + 1), 10 + 20 + 2),
        (KINDS.index("decode"), 0, 1.0, 0.5, 4, 2, 2, 4),
        (KINDS.index("prefill"), 1, 9.0, 4.0, 1, 1, 2 * (256 + 1), 201),
    ]
    assert [[column.tolist() for column in passes.of_row(row)] for row in range(3)] == [
        [[0, 1], [1, 1], [0.0, 0.0]],
        [[0, 1], [0, 4], [0.0, 0.0]],
        [[2], [1], [0.0]],
    ]


def test_a_run_prints_what_was_asked_what_was_served_and_how_well():
    run = simulate(workload((0.0, 10, 3), (0.0, 20, 5), (9.0, 999, 1)), COSTS)
    assert repr(run) == (
        "StaticRun(requests: 3, served: 2, span: 3 s, P50/P95 TTFT: 1 / 1 s, "
        "P50/P95 E2EL: 2.5 / 2.95 s, fill: 28%)"
    )
    assert "<th>by hand</th>" in run._repr_html_()
    assert "28%" in run._repr_html_()
    nothing = simulate(workload((0.0, 999, 1)), COSTS)
    assert repr(nothing) == "StaticRun(requests: 1, served: 0)"


def test_an_answer_of_one_token_needs_no_decode_pass():
    run = simulate(workload((0.0, 10, 1)), COSTS)
    assert log(run) == [(0.0, 0, SMALL, [0], 1.0)]
    assert run.requests.finish_s.tolist() == [1.0]


def test_nothing_joins_a_running_batch_even_if_a_row_is_free():
    run = simulate(workload((0.0, 10, 5), (0.5, 10, 1), (2.0, 10, 1)), COSTS)
    assert log(run) == [(0.0, 0, SMALL, [0], 3.0), (3.0, 0, SMALL, [1, 2], 1.0)]
    assert run.requests.start_s.tolist() == [0.0, 3.0, 3.0]


def test_an_idle_engine_starts_at_the_arrival():
    run = simulate(workload((0.0, 10, 1), (7.25, 10, 1)), COSTS)
    assert [start for start, *_ in log(run)] == [0.0, 7.25]


def test_an_arrival_at_the_very_end_of_a_batch_is_in_the_next_one():
    run = simulate(workload((0.0, 10, 1), (0.5, 10, 1), (1.0, 10, 1)), COSTS)
    assert log(run)[1] == (1.0, 0, SMALL, [1, 2], 1.0)


@pytest.mark.parametrize(
    ("name", "batches"),
    [
        ("fcfs", [(0.0, [0]), (4.0, [1, 2]), (8.0, [3])]),
        ("skip", [(0.0, [0]), (4.0, [1, 2]), (8.0, [3])]),
        # 1 and 3 in the small bucket cost 0.5 s each, 1 and 2 in the large one 2 s each
        ("best_fit", [(0.0, [0]), (4.0, [1, 3]), (5.0, [2])]),
        ("length_aware", [(0.0, [0]), (4.0, [1, 3]), (5.0, [2])]),
    ],
)
def test_the_same_arrivals_under_each_policy(name, batches):
    requests = workload((0.0, 200, 1), (1.0, 10, 1), (2.0, 200, 1), (3.0, 10, 1))
    found = [(start, rows) for start, _, _, rows, _ in log(simulate(requests, COSTS, Policy(name)))]
    assert found == batches


def test_the_policy_sees_what_the_client_asked_for_and_the_batch_ends_with_the_real_answer():
    # by max_tokens the large bucket (1 s prefill, 0.1 s a pass) is cheaper: 1.7 against 2 s
    costs = (BucketCost(SMALL, 0.6, 0.2), BucketCost(LARGE, 1.0, 0.1))
    asked = workload((0.0, 10, 2, 8))
    assert log(simulate(asked, costs)) == [(0.0, 0, LARGE, [0], 1.1)]
    exact = workload((0.0, 10, 2, 2))
    assert log(simulate(exact, costs)) == [(0.0, 0, SMALL, [0], 0.8)]


def test_warmup_comes_before_the_first_batch():
    run = simulate(workload((0.0, 10, 1), (5.0, 10, 1)), COSTS, ready_s=30.0)
    assert log(run) == [(30.0, 0, SMALL, [0, 1], 1.0)]
    assert run.requests.start_s.tolist() == [30.0, 30.0]


def test_a_hold_ends_with_its_time_or_with_a_full_bucket():
    hold = Policy(max_wait_s=2.0)
    alone = simulate(workload((0.0, 10, 1), (9.0, 10, 1)), COSTS[:1], hold)
    assert log(alone) == [(2.0, 0, SMALL, [0], 1.0), (11.0, 0, SMALL, [1], 1.0)]
    joined = simulate(workload((0.0, 10, 1), (1.25, 10, 1)), COSTS[:1], hold)
    assert log(joined) == [(1.25, 0, SMALL, [0, 1], 1.0)]


def test_simultaneous_arrivals_share_a_batch_when_an_idle_engine_gathers():
    requests = workload((0.0, 10, 1), (0.01, 10, 1))
    costs = (BucketCost(Bucket(4, 64, 8), 1.0, 0.5),)
    assert len(log(simulate(requests, costs))) == 2
    gathered = simulate(requests, costs, Policy(gather_s=0.02))
    assert log(gathered) == [(0.02, 0, costs[0].bucket, [0, 1], 1.0)]


def test_what_fits_no_bucket_is_rejected_with_its_reason_and_delays_nobody():
    costs = (BucketCost(Bucket(2, 64, 64), 1.0, 0.5), COSTS[1])
    requests = workload((0.0, 300, 1), (0.0, 10, 100), (0.0, 200, 9), (0.0, 10, 1))
    run = simulate(requests, costs)
    assert [REJECTIONS[reason - 1] if reason else "" for reason in run.requests.rejected] == [
        "prompt_too_long",
        "max_tokens_too_large",
        "no_bucket_takes_both",
        "",
    ]
    assert log(run) == [(0.0, 0, costs[0].bucket, [3], 1.0)]
    assert np.isnan(run.requests.finish_s[:3]).all()


def test_if_everything_is_rejected_nothing_runs():
    run = simulate(workload((0.0, 300, 1)), COSTS)
    assert log(run) == []
    assert run.requests.batch.tolist() == [-1]


def test_round_robin_deals_the_requests_out_in_turn():
    requests = workload(*((0.0, 10, 1) for _ in range(5)))
    assert log(simulate(requests, COSTS[:1], replicas=2)) == [
        (0.0, 0, SMALL, [0, 2], 1.0),
        (0.0, 1, SMALL, [1, 3], 1.0),
        (1.0, 0, SMALL, [4], 1.0),
    ]


def test_least_loaded_sends_to_the_replica_with_fewest_unfinished_requests():
    # 0 runs 3 s on the first; 1 and 2 run on the second until 2 s; at 2.5 s only 0 is unfinished
    requests = workload((0.0, 10, 5), (0.1, 10, 1), (0.2, 10, 1), (2.5, 10, 1))
    found = log(simulate(requests, COSTS[:1], replicas=2, router="least_loaded"))
    assert found == [
        (0.0, 0, SMALL, [0], 3.0),
        (0.1, 1, SMALL, [1], 1.0),
        (2.5, 1, SMALL, [3], 1.0),
        (3.0, 0, SMALL, [2], 1.0),
    ]


def test_least_loaded_counts_rows_that_have_ended_as_done():
    # the first replica's batch runs until 4 s, but one of its two rows has ended by 1.5 s
    requests = workload((0.0, 10, 7), (0.0, 10, 7), (0.0, 10, 1), (0.0, 10, 7), (1.5, 10, 1))
    run = simulate(requests, COSTS[:1], replicas=2, router="least_loaded")
    assert log(run)[:2] == [(0.0, 0, SMALL, [0, 2], 4.0), (0.0, 1, SMALL, [1, 3], 4.0)]
    assert log(run)[2] == (4.0, 0, SMALL, [4], 1.0)


def test_a_hold_of_an_unrouted_replica_is_cut_short_by_a_push():
    requests = workload((0.0, 10, 1), (0.5, 10, 1), (1.0, 10, 1), (1.5, 10, 1))
    hold = Policy(max_wait_s=5.0)
    found = log(simulate(requests, COSTS[:1], hold, replicas=2, router="least_loaded"))
    assert found == [(1.0, 0, SMALL, [0, 2], 1.0), (1.5, 1, SMALL, [1, 3], 1.0)]


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"replicas": 0}, "replicas 0 is below 1"),
        ({"router": "random"}, "router 'random' is not known: use one of round_robin"),
        ({"ready_s": -1.0}, "ready_s -1.0 is negative"),
        ({"costs": ()}, "costs is empty"),
        ({"client_overhead_s": -1.0}, "client_overhead_s -1.0 is negative"),
        ({"estimated": COSTS[:1]}, "estimated costs are of other buckets than costs"),
    ],
)
def test_what_makes_no_sense_is_refused(chosen, words):
    costs = chosen.pop("costs", COSTS)
    with pytest.raises(ValueError, match=words):
        simulate(workload((0.0, 10, 1)), costs, **chosen)


def test_a_pace_scales_the_passes_of_each_batch_by_when_it_starts():
    asked = {0.0: (2.0, 3.0), 5.0: (0.5, 1.0), 20.0: (1.0, 1.0)}
    some = workload((0.0, 10, 3), (0.0, 200, 2), (20.0, 10, 2))
    run = simulate(some, COSTS, pace=asked.pop)
    assert not asked
    assert log(run) == [
        (0.0, 0, SMALL, [0], 2.0 + 2 * 1.5),
        (5.0, 0, LARGE, [1], 2.0 + 1.0),
        (20.0, 0, SMALL, [2], 1.0 + 0.5),
    ]
    assert run.requests.first_token_s.tolist() == [2.0, 7.0, 21.0]
    assert run.requests.finish_s.tolist() == [5.0, 8.0, 21.5]
    assert run.requests.tpot_s.tolist() == [1.5, 1.0, 0.5]


def test_an_engine_serves_what_it_has_read_and_counts_the_age_from_the_arrival():
    some = workload((0.0, 10, 3), (0.5, 20, 3))
    together = simulate(some, COSTS, Policy(gather_s=1.0), seen_s=np.array([0.9, 0.95]))
    assert [batch[0::3] for batch in log(together)] == [(0.95, [0, 1])]  # full
    apart = simulate(some, COSTS, Policy(gather_s=1.0), seen_s=np.array([0.9, 1.05]))
    assert [batch[0::3] for batch in log(apart)] == [(1.0, [0]), (3.0, [1])]  # 1 s old


def test_who_gives_up_in_the_queue_is_gone_by_then_and_is_not_served():
    # the first batch runs until 1.5, and the third would have shared the next one
    some = workload((0.0, 10, 2), (0.5, 200, 2), (0.6, 20, 2), (0.7, 200, 2))
    run = simulate(some, COSTS, leaves_s=np.array([0.1, math.inf, 1.5, math.inf]))
    assert log(run) == [(0.0, 0, SMALL, [0], 1.5), (1.5, 0, LARGE, [1, 3], 5.0)]
    assert [UNSERVED[reason - 1] if reason else "" for reason in run.requests.rejected] == [
        *("", "", "left", "")
    ]
    assert run.served.tolist() == [True, True, False, True]


def test_a_hold_for_somebody_who_leaves_ends_with_the_next_in_line():
    some = workload((0.0, 10, 2), (0.4, 20, 2))
    run = simulate(some, COSTS, Policy(gather_s=1.0), leaves_s=np.array([0.2, math.inf]))
    assert log(run) == [(1.4, 0, SMALL, [1], 1.5)]
    everybody = simulate(some, COSTS, Policy(gather_s=1.0), leaves_s=np.array([0.2, 0.5]))
    assert log(everybody) == []


def test_a_policy_decides_by_its_estimate_while_passes_take_what_they_take():
    estimated = (BucketCost(SMALL, 9.0, 9.0), BucketCost(LARGE, 0.1, 0.1))
    run = simulate(workload((0.0, 10, 3)), COSTS, estimated=estimated)
    assert log(run) == [(0.0, 0, LARGE, [0], 4.0 + 2 * 1.0)]


# --- laws -----------------------------------------------------------------------------------------


@st.composite
def runs(draw):
    """Any workload, some of it too large, on any buckets, policy and number of replicas."""
    buckets = BucketSet(
        tuple(
            Bucket(draw(st.integers(1, 4)), 64 * draw(st.integers(1, 3)), draw(st.integers(2, 9)))
            for _ in range(draw(st.integers(1, 3)))
        )
    )
    seconds = st.floats(0.01, 2)
    costs = tuple(BucketCost(bucket, draw(seconds), draw(seconds)) for bucket in buckets)
    rows = draw(
        st.lists(
            st.tuples(st.floats(0, 20), st.integers(1, 200), st.integers(1, 10)),
            min_size=1,
            max_size=40,
        )
    )
    rows = [(*row, row[2] + draw(st.integers(0, 2))) for row in sorted(rows)]
    policy = Policy(
        draw(st.sampled_from(sorted(POLICIES))),
        max_wait_s=draw(st.sampled_from([0.0, 0.5])),
        gather_s=draw(st.sampled_from([0.0, 0.1])),
        max_age_s=draw(st.sampled_from([0.0, 1.0, 60.0])),
    )
    replicas = {
        "replicas": draw(st.integers(1, 3)),
        "router": draw(st.sampled_from(["round_robin", "least_loaded"])),
    }
    return workload(*rows), costs, policy, replicas


@given(runs())
def test_every_request_is_served_exactly_once_or_rejected_and_batches_obey_their_bucket(run):
    requests, costs, policy, replicas = run
    simulated = simulate(requests, costs, policy, **replicas)
    assert ((simulated.requests.batch >= 0) == (simulated.requests.rejected == 0)).all()
    prefills = simulated.passes.rows[simulated.passes.first_of_batch]
    assert prefills.sum() == simulated.served.sum()
    passes = simulated.passes.sum_over_batches(simulated.passes.count)
    for index, (_, _, bucket, rows, _) in enumerate(log(simulated)):
        assert len(rows) == prefills[index]
        assert 1 <= len(rows) <= bucket.batch_size
        assert all(
            bucket.fits(requests.prompt_tokens[row], requests.max_tokens[row]) for row in rows
        )
        assert passes[index] == requests.output_tokens[rows].max()


@given(runs())
def test_passes_give_each_request_its_tokens_and_compute_no_fewer_slots_than_are_useful(run):
    requests, costs, policy, replicas = run
    found = simulate(requests, costs, policy, **replicas)
    passes = found.passes
    got = np.bincount(passes.members, weights=passes.tokens, minlength=len(requests))
    assert (got == np.where(found.served, requests.output_tokens, 0)).all()
    assert (passes.useful <= passes.slots * passes.count).all()
    assert passes.rows.sum() == len(passes.members) == len(passes.waited_s)
    end_s = passes.start_s + passes.seconds * passes.count
    for replica in range(found.replicas):
        own = passes.replica == replica
        assert (passes.start_s[own][1:] >= end_s[own][:-1] - 1e-9).all()


@given(runs())
def test_a_replica_runs_one_batch_at_a_time_and_none_before_its_members_are_there(run):
    requests, costs, policy, replicas = run
    simulated = simulate(requests, costs, policy, ready_s=1.5, **replicas)
    first = simulated.passes.first_of_batch
    start_s, replica_of = simulated.passes.start_s[first], simulated.passes.replica[first]
    assert (np.diff(start_s) >= 0).all()
    served = simulated.served
    assert (simulated.requests.start_s[served] >= requests.arrival_s[served]).all()
    assert (start_s >= 1.5).all()
    for replica in range(simulated.replicas):
        own = replica_of == replica
        end_s = start_s[own] + simulated.passes.batch_seconds[own]
        assert (start_s[own][1:] >= end_s[:-1] - 1e-9).all()


@given(runs())
def test_the_same_run_twice_is_the_same_to_the_last_bit(run):
    requests, costs, policy, replicas = run
    one, two = (simulate(requests, costs, policy, **replicas) for _ in range(2))
    for of in ("requests", "passes"):
        before, after = vars(getattr(one, of)), vars(getattr(two, of))
        assert all(np.array_equal(before[name], after[name], equal_nan=True) for name in before)


@settings(deadline=None)
@given(runs())
def test_it_does_what_next_batch_says_on_the_whole_queue(run):
    """A second simulator, as plain as can be, for one replica without holding."""
    requests, costs, policy, _ = run
    policy = Policy(policy.name, max_age_s=policy.max_age_s)
    simulated = simulate(requests, costs, policy)
    waiting = [
        Plain(row, *values)
        for row, values in enumerate(
            zip(
                requests.arrival_s.tolist(),
                requests.prompt_tokens.tolist(),
                requests.max_tokens.tolist(),
                requests.output_tokens.tolist(),
                strict=True,
            )
        )
        if not simulated.requests.rejected[row]
    ]
    now, found = 0.0, []
    while waiting:
        now = max(now, waiting[0].arrival_s)
        batch = next_batch([r for r in waiting if r.arrival_s <= now], costs, policy, now)
        found.append((now, batch.bucket, [r.row for r in batch.members]))
        passes = max(r.output_tokens for r in batch.members)
        now = now + batch.cost.prefill_s + (passes - 1) * batch.cost.decode_s
        waiting = [r for r in waiting if r not in batch.members]
    assert [(start, bucket, rows) for start, _, bucket, rows, _ in log(simulated)] == found


def reads(requests, costs, policy) -> int:
    """How often the policy looked at a waiting request in the whole run."""
    read = 0

    def counted(waiting):
        nonlocal read
        for request in waiting:
            read += 1
            yield request

    with pytest.MonkeyPatch.context() as patch:
        decide = lambda waiting, *rest: next_batch(counted(waiting), *rest)  # noqa: E731
        patch.setattr("spyre_bench.simulate.static.next_batch", decide)
        simulate(requests, costs, policy)
    return read


@given(runs(), st.sampled_from(HEAD_FIRST))
def test_no_request_is_looked_at_more_often_than_there_are_rows_however_long_the_queue(run, name):
    """The work of a run grows with its requests, not with their square (see
    `policy.static.Policy`)."""
    requests, costs, *_ = run
    rows = 1 + sum(cost.bucket.batch_size - 1 for cost in costs)
    assert reads(requests, costs, Policy(name)) <= rows * len(requests)


def test_a_bucket_that_is_filled_in_vain_costs_a_constant_number_of_looks():
    # one short request in a hundred; the bucket for eight of them is never worth its prefill
    requests = workload(*((0.0, 200, 2) if row % 100 else (0.0, 10, 1) for row in range(6000)))
    costs = (BucketCost(Bucket(8, 64, 4), 99.0, 1.0), BucketCost(Bucket(2, 256, 4), 1.0, 0.1))
    assert 4 * len(requests) < reads(requests, costs, Policy("best_fit")) <= 9 * len(requests)


class Plain:
    def __init__(self, row, arrival_s, prompt_tokens, max_tokens, output_tokens):
        self.row, self.arrival_s, self.prompt_tokens = row, arrival_s, prompt_tokens
        self.max_tokens, self.output_tokens = max_tokens, output_tokens
