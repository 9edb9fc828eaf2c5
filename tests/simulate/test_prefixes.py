"""Which prompts begin alike."""

import numpy as np
import pytest

from spyre_bench.simulate.continuous import simulate
from spyre_bench.simulate.prefixes import prefixes_of
from spyre_bench.workload.workload import Workload
from tests.simulate.test_continuous import costs, workload


def hashed(*ids, prompt_tokens=1000):
    column = np.empty(len(ids), dtype=object)
    for row, cell in enumerate(ids):
        column[row] = cell
    n = len(ids)
    return Workload(
        "t",
        np.zeros(n),
        np.broadcast_to(prompt_tokens, n),
        np.full(n, 2),
        np.full(n, 2),
        extras={"hash_ids": column},
    )


def test_a_hash_id_stands_for_512_tokens_of_eight_blocks():
    first, second = prefixes_of(hashed([7, 8], [7, 9]), "trace")
    assert len(first) == 15  # whole blocks of the 1,000 tokens
    assert len(set(first)) == 15
    assert [ours == theirs for ours, theirs in zip(first, second, strict=True)] == [True] * 8 + [
        False
    ] * 7


@pytest.mark.parametrize("ids", [32, 33])  # the last one, of 9 tokens, may be left out
def test_tokens_per_id_are_those_that_the_lengths_of_the_prompts_say(ids):
    first, second = prefixes_of(
        hashed([*range(ids)], [*range(7), *range(90, 83 + ids)], prompt_tokens=521), "trace"
    )
    assert len(first) == 8
    alike = [ours == theirs for ours, theirs in zip(first, second, strict=True)]
    assert alike == [True] + [False] * 7, "112 tokens are alike, at 16 an id: one whole block"


def test_a_block_after_another_prefix_is_another_block():
    first, second = prefixes_of(
        hashed([*range(10)], [99, *range(1, 10)], prompt_tokens=160), "trace"
    )
    assert not set(first) & set(second)


def test_ids_that_suit_no_number_of_tokens_are_refused_with_the_request():
    with pytest.raises(ValueError, match="request 2: 33 hash_ids for a prompt of 600 tokens"):
        prefixes_of(hashed([*range(33)], [*range(33)], prompt_tokens=[521, 600]), "trace")


@pytest.mark.parametrize("empty", [None, float("nan"), []])
def test_a_request_without_ids_shares_nothing(empty):
    first, second = prefixes_of(hashed([7, 8], empty), "trace")
    assert len(first) == 15
    assert len(second) == 0


@pytest.mark.parametrize("cell", [5, "abc", [[1]], {"a": 1}, [1.5]])
def test_what_is_no_list_of_ids_is_refused_with_the_request(cell):
    with pytest.raises(ValueError, match=r"request 2: hash_ids .* is no list of numbers or texts"):
        prefixes_of(hashed([7, 8], cell), "trace")


def test_a_trace_says_what_the_cache_has():
    load = hashed([7, 8], [7, 9], [7, 8])
    run = simulate(load, costs(rows=4, context=1024), prefixes=prefixes_of(load, "trace"))
    assert run.hit_tokens.tolist() == [
        0,
        512,
        960,
    ]  # whole blocks of 1,000, the last token computed


def test_a_stated_share_is_common_to_all():
    load = workload((0, 200, 2), (0, 200, 2), (0, 100, 2))
    run = simulate(load, costs(rows=3), prefixes=prefixes_of(load, "share:0.7"))
    assert run.hit_tokens.tolist() == [0, 128, 64]


def test_what_says_nothing_of_prefixes_is_refused():
    load = workload((0, 200, 2))
    assert prefixes_of(load, "off") is None
    with pytest.raises(ValueError, match="has no hash_ids"):
        prefixes_of(load, "trace")
    for text in ("on", "share:2", "share:x"):
        with pytest.raises(ValueError, match=f"prefix cache '{text}' is not known"):
            prefixes_of(load, text)
