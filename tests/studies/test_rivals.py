"""The two sets of shapes that a clock is to judge."""

import numpy as np
import pytest

from spyre_bench.choose.advise_shapes import Engine
from spyre_bench.cost.source import SHAPES, load_cost
from spyre_bench.policy.continuous import RULES
from spyre_bench.studies.rivals import ADVISED, BASELINE, rivals
from spyre_bench.workload.source import load_workload


@pytest.fixture(scope="module")
def requests():
    drawn = load_workload("azure_conv", requests=200, rng=np.random.default_rng(0))
    return drawn.scaled(lengths=0.06).with_arrivals("poisson:1", np.random.default_rng(1))


def test_the_advised_set_has_no_more_graphs_than_powers_of_two_and_as_many_blocks(requests):
    found = rivals(requests, load_cost(SHAPES), Engine(4, 128), RULES)
    assert list(found.sets) == [BASELINE, ADVISED]
    powers, ours = found.sets.values()
    assert {shape.rows for shape in powers.decode} == {1, 2, 4}
    assert {shape.chunk_length for shape in powers.prefill} == {64, 128}
    assert len(ours) <= len(powers)
    assert ours.blocks == powers.blocks
    assert ours != powers
    assert "than powers of two" in found.verdict


def test_powers_of_two_that_are_one_shape_of_each_are_nothing_to_hold_against(requests):
    short = requests.scaled(lengths=0.04)
    with pytest.raises(ValueError, match=r"powers of two are nothing .* and 1 rows, since"):
        rivals(short, load_cost(SHAPES), Engine(1, 64), RULES)
