"""Which prompts begin alike."""

import numpy as np
import pytest

from spyre_bench.simulate.continuous import simulate
from spyre_bench.simulate.prefixes import prefixes_of
from spyre_bench.workload.workload import Workload
from tests.simulate.test_continuous import costs, workload


def hashed(*ids):
    column = np.empty(len(ids), dtype=object)
    column[:] = ids
    n = len(ids)
    return Workload(
        "t",
        np.zeros(n),
        np.full(n, 1000),
        np.full(n, 2),
        np.full(n, 2),
        extras={"hash_ids": column},
    )


def test_a_hash_id_stands_for_512_tokens_of_eight_blocks():
    first, second = prefixes_of(hashed([7, 8], [7, 9]), "trace")
    assert len(first) == 15  # whole blocks of the 1,000 tokens
    assert first[:3] == [(7, 0), (7, 1), (7, 2)]
    assert [ours == theirs for ours, theirs in zip(first, second, strict=True)] == [True] * 8 + [
        False
    ] * 7


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
