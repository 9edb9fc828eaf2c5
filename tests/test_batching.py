import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyre_bench.batching import Batch, WasteLedger, next_batch
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


TWO = BucketSet.parse("4,64,32 2,256,64")


@st.composite
def workloads(draw):
    """Buckets and a queue of requests that each fit one of them."""
    some = draw(bucket_sets)
    queue = []
    for index in range(draw(st.integers(1, 12))):
        bucket = draw(st.sampled_from(some.buckets))
        queue.append(
            Request(
                str(index),
                draw(st.integers(1, bucket.prompt_length)),
                draw(st.integers(1, bucket.new_tokens)),
                draw(st.floats(0, 10)),
            )
        )
    return some, queue


def test_an_empty_queue_gives_no_batch():
    assert next_batch([], TWO) is None


def test_the_bucket_with_most_members_wins():
    waiting = queue_of(("a", 10, 8), ("b", 20, 8), ("c", 30, 8))
    assert next_batch(waiting, TWO) == Batch(Bucket(4, 64, 32), tuple(waiting))


def test_with_equal_members_the_fewest_padded_tokens_win():
    waiting = queue_of(("a", 10, 8), ("b", 20, 8))
    # two rows: 4 x (64 + 8) - 46 = 242 padded tokens against 2 x (256 + 8) - 46 = 482
    assert next_batch(waiting, TWO).bucket == Bucket(4, 64, 32)


def test_with_equal_padding_the_smaller_bucket_wins():
    some = BucketSet.parse("2,64,32 2,64,64")
    assert next_batch(queue_of(("a", 10, 8)), some).bucket == Bucket(2, 64, 32)


def test_a_misfit_is_skipped_and_those_behind_it_join():
    waiting = queue_of(("a", 10, 8), ("L", 200, 8), ("b", 20, 8), ("c", 30, 8))
    assert names(next_batch(waiting, TWO)) == "abc"


def test_the_head_decides_even_where_another_bucket_could_take_more():
    waiting = queue_of(("L", 200, 8), *((name, 10, 8) for name in "abcd"))
    batch = next_batch(waiting, TWO)
    assert (names(batch), batch.bucket) == ("La", Bucket(2, 256, 64))


def test_a_head_that_fits_nothing_is_an_error_that_says_why():
    with pytest.raises(ValueError, match="no bucket fits prompt_tokens=300"):
        next_batch(queue_of(("a", 300, 8)), TWO)


def test_the_queue_is_read_no_further_than_until_every_bucket_is_full():
    read = []

    def endless():
        for index in itertools.count():
            read.append(index)
            yield Request(str(index), 10, 8)

    assert len(next_batch(endless(), TWO).members) == 4
    assert read == [0, 1, 2, 3]


def test_a_batch_that_could_grow_is_held_for_the_gather_time_after_the_oldest_arrival():
    waiting = queue_of(("a", 10, 8, 5.01), ("b", 10, 8, 5.0))
    assert next_batch(waiting, TWO, now=5.015, gather_s=0.02) is None
    assert names(next_batch(waiting, TWO, now=5.02, gather_s=0.02)) == "ab"


def test_a_full_batch_is_not_held():
    waiting = queue_of(*((name, 10, 8, 5.0) for name in "abcd"))
    assert names(next_batch(waiting, TWO, now=5.0, gather_s=1.0)) == "abcd"


@given(workloads())
def test_draining_the_queue_serves_everyone_once_within_the_buckets(workload):
    some, queue = workload
    served, left = [], queue
    while left:
        batch = next_batch(left, some)
        assert batch.members[0] is left[0], "the head is served first: nobody starves"
        assert len(batch.members) <= batch.bucket.batch_size
        assert all(batch.bucket.fits(r.prompt_tokens, r.max_tokens) for r in batch.members)
        positions = [left.index(r) for r in batch.members]
        assert positions == sorted(positions), "rows keep the order of the queue"
        served += batch.members
        left = [r for r in left if r not in batch.members]
    assert sorted(served, key=lambda r: int(r.name)) == queue


@given(workloads())
def test_no_bucket_that_fits_the_head_would_have_taken_more(workload):
    some, queue = workload
    chosen = len(next_batch(queue, some).members)
    for bucket in some.fitting(queue[0].prompt_tokens, queue[0].max_tokens):
        fitting = sum(bucket.fits(r.prompt_tokens, r.max_tokens) for r in queue)
        assert min(fitting, bucket.batch_size) <= chosen


@given(workloads(), st.floats(0, 20), st.floats(0, 5))
def test_holding_only_delays_a_batch(workload, now, gather_s):
    some, queue = workload
    held = next_batch(queue, some, now=now, gather_s=gather_s)
    assert held in (None, next_batch(queue, some))
    if now >= max(r.arrival_s for r in queue) + gather_s:
        assert held is not None


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
    assert (one + other).wasted == one.wasted + other.wasted
    assert one + WasteLedger() == one
