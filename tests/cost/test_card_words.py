"""The card's parameters in words: every one has a name, and numbers as people say them."""

import re

import pytest

from spyre_bench.cost.card_parameters import CONFIDENCES, PARAMETERS, SpyreCard
from spyre_bench.cost.card_words import CONFIDENCE, SAID, name_of, range_of

RANGES = {
    "read_bytes_per_s": "150 to 113 GB/s",
    "fp16_flops": "98.3 to 72 TFLOPS",
    "mlp_rows": "all to 256 rows",
    "rest_decode_s": "0 to 3.6 ms",
    "all_reduce_s": "50 to 200 µs",
    "hop_s_per_byte": "15.7 to 7.86 GB/s",  # 512 KiB over 3 hops in 200 µs, and twice that
}


def test_every_parameter_and_every_confidence_has_words():
    assert set(SAID) == PARAMETERS
    assert set(CONFIDENCE) == set(CONFIDENCES)
    assert len({name_of(parameter) for parameter in PARAMETERS}) == len(PARAMETERS)


@pytest.mark.parametrize("parameter", RANGES)
def test_a_range_is_in_the_units_that_people_use(parameter):
    assert range_of(SpyreCard(), parameter) == RANGES[parameter]


@pytest.mark.parametrize("parameter", sorted(PARAMETERS))
def test_no_range_has_powers_of_ten_or_infinities(parameter):
    said = range_of(SpyreCard(), parameter)
    assert "inf" not in said
    assert not re.search(r"\de[+-]?\d", said), said


def test_links_without_any_delay_have_no_limit():
    assert range_of(SpyreCard().fixed(hop_s_per_byte=0.0), "hop_s_per_byte").startswith("unlimited")
