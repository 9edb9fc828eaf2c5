import itertools
import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.policy.ledger import WasteLedger
from spyre_bench.policy.static import POLICIES, Batch, Hold, Policy, next_batch
from spyre_bench.policy.window import LOOK_AHEAD
from spyre_bench.shapes import Bucket, BucketSet
from tests.test_shapes import bucket_sets, buckets


@dataclass(frozen=True)
class Request:
    name: str
    prompt_tokens: int
    max_tokens: int
    arrival_s: float = 0.0


def names(batch: Batch) -> str:
    return "".join(request.name for request in batch.members)


def queue_of(*requests: tuple) -> list[Request]:
    return [Request(*request) for request in requests]


def toy(text: str) -> tuple[BucketCost, ...]:
    """The machine of the literature's figures: 0.02 + 1e-4·B·P seconds a prefill and
    0.02 + 5e-4·B a decode pass."""
    return tuple(
        BucketCost(b, 0.02 + 1e-4 * b.batch_size * b.prompt_length, 0.02 + 5e-4 * b.batch_size)
        for b in BucketSet.parse(text)
    )


TWO = toy("4,64,32 2,256,64")
SMALL, LARGE = Bucket(4, 64, 32), Bucket(2, 256, 64)
HEAD_FIRST = ("fcfs", "skip", "best_fit")


def run(waiting, costs=TWO, name="best_fit", now=math.inf, **chosen):
    return next_batch(waiting, costs, Policy(name, **chosen), now)


@st.composite
def workloads(draw):
    """Buckets with any costs and a queue of requests, in order of arrival, that each fit one."""
    some = draw(bucket_sets)
    seconds = st.floats(1e-3, 10)
    costs = tuple(BucketCost(bucket, draw(seconds), draw(seconds)) for bucket in some)
    queue = []
    for index in range(draw(st.integers(1, 12))):
        bucket = draw(st.sampled_from(some.buckets))
        queue.append(
            Request(
                str(index),
                draw(st.integers(1, bucket.prompt_length)),
                draw(st.integers(1, bucket.new_tokens)),
                float(index),
            )
        )
    return costs, queue


policies = st.sampled_from(sorted(POLICIES))


# --- what each policy chooses ---------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
def test_an_empty_queue_gives_no_batch(name):
    assert run([], name=name) is None


@pytest.mark.parametrize("name", POLICIES)
def test_a_lone_request_runs_in_its_cheapest_bucket_not_in_the_first(name):
    # 4 x 64 slots against 1 x 256: seconds decide, not the order of the buckets
    costs = toy("1,256,32 4,128,32")
    assert run(queue_of(("a", 60, 8)), costs, name).bucket == Bucket(1, 256, 32)
    costs = toy("1,256,32 2,64,32")
    assert run(queue_of(("a", 60, 8)), costs, name).bucket == Bucket(2, 64, 32)


@pytest.mark.parametrize("name", POLICIES)
def test_with_equal_cost_the_smaller_bucket_wins(name):
    costs = toy("2,64,32 2,64,64")
    assert run(queue_of(("a", 10, 8)), costs, name).bucket == Bucket(2, 64, 32)


MIXED = (("a", 10, 8), ("b", 20, 8), ("L", 200, 8), ("c", 30, 8), ("d", 5, 8), ("M", 100, 60))


@pytest.mark.parametrize(
    ("name", "batches"),
    [
        # the first misfit ends it: ab and L share only the larger bucket, which two fill
        ("fcfs", [("ab", SMALL), ("Lc", LARGE), ("dM", LARGE)]),
        # ab may grow to four, L may not join them and keeps its place
        ("skip", [("abcd", SMALL), ("LM", LARGE)]),
        ("best_fit", [("abcd", SMALL), ("LM", LARGE)]),
        ("length_aware", [("abcd", SMALL), ("LM", LARGE)]),
    ],
)
def test_the_batches_of_a_mixed_queue(name, batches):
    left, found = queue_of(*MIXED), []
    while left:
        batch = run(left, name=name)
        found.append((names(batch), batch.bucket))
        left = [request for request in left if request not in batch.members]
    assert found == batches


def test_fcfs_stops_at_a_misfit_that_skip_passes_over():
    waiting = queue_of(("a", 10, 8), ("L", 100, 60), ("b", 20, 8), ("c", 30, 8))
    costs = toy("4,64,32 1,256,64")
    assert names(run(waiting, costs, "fcfs")) == "a"
    assert names(run(waiting, costs, "skip")) == "abc"


def test_skip_is_narrowed_by_a_member_where_best_fit_looks_at_every_bucket():
    # b fits only the long bucket of two; c, d, e would fill the short one of four
    waiting = queue_of(("a", 10, 8), ("b", 200, 8), *((name, 10, 8) for name in "cde"))
    assert names(run(waiting, name="skip")) == "ab"
    assert names(run(waiting, name="best_fit")) == "acde"


def test_best_fit_takes_the_least_seconds_a_member():
    # one short request: alone 0.0264 + 0.0205 x 7; with the long answer it waits 63 passes
    waiting = queue_of(("a", 10, 8), ("b", 10, 64))
    costs = toy("1,64,8 2,64,64")
    short_s = 0.02 + 1e-4 * 64 + 7 * (0.02 + 5e-4)
    both_s = (0.02 + 2e-4 * 64 + 63 * (0.02 + 1e-3)) / 2
    assert short_s < both_s
    assert names(run(waiting, costs)) == "a"
    waiting = queue_of(("a", 10, 8), ("b", 10, 9))
    assert names(run(waiting, costs)) == "ab"


def test_the_head_decides_even_where_another_bucket_could_take_more():
    waiting = queue_of(("L", 200, 8), *((name, 10, 8) for name in "abcd"))
    batch = run(waiting)
    assert (names(batch), batch.bucket) == ("La", LARGE)


def test_length_aware_lets_the_fuller_batch_go_first():
    waiting = queue_of(("L", 200, 8), *((name, 60, 8) for name in "abcd"))
    assert names(run(waiting, name="length_aware")) == "abcd"


def test_length_aware_puts_the_longest_answers_together():
    waiting = queue_of(("a", 60, 2), ("b", 60, 32), ("c", 60, 2), ("d", 60, 32))
    assert names(run(waiting, toy("2,64,32"), "length_aware")) == "bd"


def test_length_aware_serves_a_head_past_its_age_with_those_next_to_it_in_size():
    waiting = queue_of(("a", 60, 2), ("b", 60, 32), ("c", 60, 3), ("d", 60, 32))
    costs = toy("2,64,32")
    young = run(waiting, costs, "length_aware", now=9.9, max_age_s=10)
    old = run(waiting, costs, "length_aware", now=10.0, max_age_s=10)
    assert (names(young), names(old)) == ("bd", "ac")


@pytest.mark.parametrize("name", POLICIES)
def test_a_request_that_fits_nothing_is_an_error_that_says_why(name):
    with pytest.raises(ValueError, match="no bucket fits prompt_tokens=300"):
        run(queue_of(("a", 300, 8)), name=name)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"name": "lifo"}, "policy 'lifo' is not known: use one of best_fit, skip, fcfs"),
        ({"max_wait_s": -1}, "max_wait_s -1 is not a number of seconds >= 0"),
        ({"gather_s": math.nan}, "gather_s nan is not a number of seconds >= 0"),
        ({"max_wait_s": math.inf}, "max_wait_s is infinite: the last batch would wait"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(chosen, words):
    with pytest.raises(ValueError, match=words):
        Policy(**chosen)


# --- how far it reads -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reads"),
    [("fcfs", 4), ("skip", 4), ("best_fit", 4), ("length_aware", 4 * LOOK_AHEAD)],
)
def test_the_queue_is_read_no_further_than_the_policy_needs(name, reads):
    read = []

    def endless():
        for index in itertools.count():
            read.append(index)
            yield Request(str(index), 10, 8)

    assert len(run(endless(), name=name).members) == 4
    assert len(read) == reads


# --- holding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("wait", ["gather_s", "max_wait_s"])
def test_a_batch_that_could_grow_is_held_until_its_oldest_member_has_waited(name, wait):
    waiting = queue_of(("a", 10, 8, 5.0), ("b", 10, 8, 5.5))
    assert run(waiting, name=name, now=5.75, **{wait: 1.0}) == Hold(6.0)
    assert names(run(waiting, name=name, now=6.0, **{wait: 1.0})) == "ab"


@pytest.mark.parametrize("name", POLICIES)
def test_a_batch_that_is_full_in_every_bucket_is_not_held(name):
    waiting = queue_of(*((name, 10, 8, 5.0) for name in "abcd"))
    some = toy("4,64,32")
    assert names(run(waiting, some, name, now=5.0, gather_s=1.0, max_wait_s=1.0)) == "abcd"


def test_a_full_bucket_ends_the_hold_for_company_but_not_the_gathering_of_a_burst():
    # b has one bucket of two filled; the bucket of four, which costs less a member, has room
    costs = (BucketCost(Bucket(2, 64, 32), 1.0, 0.1), BucketCost(Bucket(4, 64, 32), 3.0, 0.1))
    waiting = queue_of(("a", 10, 8, 5.0), ("b", 10, 8, 5.0))
    assert names(run(waiting, costs, now=5.0, max_wait_s=1.0)) == "ab"
    assert run(waiting, costs, now=5.0, gather_s=1.0) == Hold(6.0)


def test_fcfs_does_not_wait_behind_a_misfit_for_company_that_cannot_come():
    waiting = queue_of(("a", 10, 8, 5.0), ("L", 100, 60, 5.0))
    costs = toy("4,64,32 1,512,64")
    assert names(run(waiting, costs, "fcfs", now=5.0, max_wait_s=9.0)) == "a"
    assert run(waiting, costs, "skip", now=5.0, max_wait_s=9.0) == Hold(14.0)


# --- laws -----------------------------------------------------------------------------------------


@given(workloads(), policies, st.floats(0, 20))
def test_draining_the_queue_serves_everyone_once_within_the_buckets(workload, name, now):
    costs, queue = workload
    served, left = [], queue
    while left:
        batch = run(left, costs, name, now=max(now, left[0].arrival_s))
        assert 1 <= len(batch.members) <= batch.bucket.batch_size
        assert all(batch.bucket.fits(r.prompt_tokens, r.max_tokens) for r in batch.members)
        positions = [left.index(r) for r in batch.members]
        assert positions == sorted(positions), "rows keep the order of the queue"
        served += batch.members
        left = [r for r in left if r not in batch.members]
    assert sorted(served, key=lambda r: int(r.name)) == queue


@given(workloads(), st.sampled_from(HEAD_FIRST))
def test_the_head_is_always_served_so_nobody_starves(workload, name):
    costs, queue = workload
    assert run(queue, costs, name).members[0] is queue[0]


@given(workloads(), st.floats(0, 20))
def test_an_aged_head_is_served_by_length_aware_too(workload, max_age_s):
    costs, queue = workload
    batch = run(queue, costs, "length_aware", now=queue[0].arrival_s + 20.0, max_age_s=max_age_s)
    assert batch.members[0] is queue[0]


@given(workloads(), policies)
def test_among_equals_the_earlier_one_is_served_first(workload, name):
    costs, queue = workload
    batch = run(queue, costs, name)
    for place, request in enumerate(queue):
        if request not in batch.members:
            later = queue[place + 1 :]
            size = (request.prompt_tokens, request.max_tokens)
            assert not [
                r for r in later if (r.prompt_tokens, r.max_tokens) == size and r in batch.members
            ]


@given(workloads())
def test_no_bucket_that_fits_the_head_would_have_cost_less_a_member(workload):
    costs, queue = workload
    batch = run(queue, costs)
    chosen_s = batch.cost.batch_s(max(r.max_tokens for r in batch.members)) / len(batch.members)
    for cost in costs:
        if cost.bucket.fits(queue[0].prompt_tokens, queue[0].max_tokens):
            some = [r for r in queue if cost.bucket.fits(r.prompt_tokens, r.max_tokens)]
            some = some[: cost.bucket.batch_size]
            other_s = cost.batch_s(max(r.max_tokens for r in some)) / len(some)
            assert chosen_s <= other_s


@given(workloads(), policies, st.floats(0, 20), st.floats(0, 5), st.floats(0, 5))
def test_holding_only_delays_a_batch_and_ends_by_itself(workload, name, now, gather_s, max_wait_s):
    costs, queue = workload
    waits = {"gather_s": gather_s, "max_wait_s": max_wait_s, "max_age_s": 1e9}
    held = run(queue, costs, name, now=now, **waits)
    if isinstance(held, Hold):
        assert now < held.until_s <= max(r.arrival_s for r in queue) + max(gather_s, max_wait_s)
        held = run(queue, costs, name, now=held.until_s, **waits)
    assert held == run(queue, costs, name, now=now, max_age_s=1e9)


# --- the waste ledger -----------------------------------------------------------------------------


def test_the_ledger_of_a_batch_by_hand():
    # rows a (10 prompt, 3 output), b (20, 5) in 4 x 64; five passes
    ledger = WasteLedger.of_batch(Bucket(4, 64, 32), [10, 20], [3, 5])
    assert ledger == WasteLedger(
        useful=38,
        batch_pad=2 * 64 + 2 * 5,
        prompt_pad=10,
        bucket_pad=2 * 44,
        decode_tail=2,
        cap=0,
    )
    assert ledger.computed == 4 * 64 + 4 * 5
    assert ledger.fill == 38 / 276


def test_without_early_stop_the_rest_is_cap():
    ledger = WasteLedger.of_batch(Bucket(4, 64, 32), [10, 20], [3, 5], passes=32)
    assert ledger.cap == 4 * 27
    assert ledger.computed == 4 * 64 + 4 * 32


@st.composite
def batches(draw):
    bucket = draw(buckets)
    rows = draw(st.integers(1, bucket.batch_size))
    prompts = draw(st.lists(st.integers(1, bucket.prompt_length), min_size=rows, max_size=rows))
    outputs = draw(st.lists(st.integers(1, bucket.new_tokens), min_size=rows, max_size=rows))
    return bucket, prompts, outputs, draw(st.integers(max(outputs), bucket.new_tokens))


@given(batches())
def test_useful_and_wastes_are_the_computed_slots_to_the_token(batch):
    bucket, prompts, outputs, passes = batch
    ledger = WasteLedger.of_batch(bucket, prompts, outputs, passes)
    assert ledger.computed == bucket.batch_size * (bucket.prompt_length + passes)
    assert ledger.useful == sum(prompts) + sum(outputs)
    assert min(ledger.batch_pad, ledger.prompt_pad, ledger.bucket_pad) >= 0
    assert min(ledger.decode_tail, ledger.cap) >= 0


@given(batches(), batches())
def test_ledgers_add_up(one, other):
    one, other = WasteLedger.of_batch(*one), WasteLedger.of_batch(*other)
    assert (one + other).computed == one.computed + other.computed
    assert (one + other).useful == one.useful + other.useful
    assert one + WasteLedger() == one
