"""Who holds a block, what it keeps, and which is taken next."""

import pytest

from spyre_bench.policy.blocks import BlockPool


def test_blocks_are_taken_in_order_and_the_dummy_never():
    pool = BlockPool(5)
    assert pool.free_blocks == 4
    assert pool.take(3) == [1, 2, 3]
    assert pool.take(0) == []
    assert pool.take(1) == [4]
    assert pool.free_blocks == 0


def test_more_than_are_free_are_refused_and_none_is_taken():
    pool = BlockPool(3)
    with pytest.raises(ValueError, match="3 blocks are asked for and 2 are free"):
        pool.take(3)
    assert pool.free_blocks == 2


def test_blocks_without_a_prefix_are_taken_first_and_the_last_of_a_table_before_its_first():
    pool = BlockPool(7)
    table = pool.take(4)
    pool.keep(table[0], "a")
    pool.keep(table[1], "ab")
    pool.give_back(table)
    assert pool.take(6) == [4, 3, 5, 6, 2, 1]


def test_a_later_table_without_prefixes_is_taken_before_an_earlier_one():
    pool = BlockPool(5)
    first, second = pool.take(2), pool.take(2)
    pool.give_back(first)
    pool.give_back(second)
    assert pool.take(4) == [4, 3, 2, 1]


def test_a_hit_is_the_longest_cached_run_and_ends_at_the_first_gap():
    pool = BlockPool(5)
    table = pool.take(3)
    for block, prefix in zip(table, ("a", "ab", "abcd"), strict=True):
        pool.keep(block, prefix)
    assert pool.hit(["a", "ab", "abc", "abcd"]) == [1, 2]
    assert pool.hit(["b"]) == []
    assert pool.cached_blocks == 3


def test_of_two_blocks_with_one_prefix_the_first_is_hit_until_it_is_forgotten():
    pool = BlockPool(3)
    one, two = pool.take(2)
    pool.keep(one, "a")
    pool.keep(two, "a")
    assert pool.cached_blocks == 2
    assert pool.hit(["a"]) == [one]
    pool.give_back([one])
    assert pool.take(1) == [one]
    assert pool.hit(["a"]) == [two]
    pool.give_back([two])
    pool.take(1)
    assert pool.hit(["a"]) == []
    assert pool.cached_blocks == 0


def test_a_shared_block_is_free_when_its_last_holder_leaves():
    pool = BlockPool(4)
    table = pool.take(2)
    pool.keep(table[0], "a")
    pool.hold(table[:1])
    assert pool.held([1, 2, 3]) == 2
    pool.give_back(table)
    assert (pool.free_blocks, pool.held([1, 2, 3])) == (2, 1)
    pool.give_back(table[:1])
    assert (pool.free_blocks, pool.held([1, 2, 3])) == (3, 0)


def test_a_free_block_that_is_hit_again_is_nobody_elses():
    pool = BlockPool(3)
    table = pool.take(2)
    pool.keep(table[0], "a")
    pool.give_back(table)
    pool.hold(pool.hit(["a"]))
    assert pool.take(1) == [2]
    assert pool.free_blocks == 0


def test_a_block_is_given_back_once():
    pool = BlockPool(2)
    table = pool.take(1)
    pool.give_back(table)
    with pytest.raises(AssertionError, match="block 1 was given back twice"):
        pool.give_back(table)
