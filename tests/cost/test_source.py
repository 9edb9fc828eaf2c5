"""Costs from text: a file, the table that ships, or the card's model at an end of its range."""

import numpy as np
import pytest

from spyre_bench.cost.card import SpyreCost
from spyre_bench.cost.card_parameters import SpyreCard
from spyre_bench.cost.measured import SHIPPED, SHIPPED_SHAPES, load_cost_table
from spyre_bench.cost.source import load_cost
from spyre_bench.model_sizes import PRESETS, preset
from spyre_bench.shapes import Bucket
from spyre_bench.workload.source import load_workload

BUCKET = Bucket(4, 512, 64)
GRANITE = preset("granite-3.3-8b")


def test_a_file_is_a_table_and_nothing_is_the_one_that_ships():
    assert load_cost() == load_cost("") == load_cost_table()
    assert load_cost("buckets") == load_cost()
    assert load_cost("shapes") == load_cost_table(SHIPPED_SHAPES)
    assert load_cost(str(SHIPPED), extrapolate=True) == load_cost_table(SHIPPED, extrapolate=True)


def test_a_card_is_one_with_the_nominal_values_unless_told_otherwise():
    assert load_cost("card:granite-3.3-8b") == SpyreCost(GRANITE)
    found = load_cost("card:granite-3.3-8b,end=slow,dtype=fp8,tp=4")
    assert found == SpyreCost(GRANITE, 4, "fp8", end="slow")
    assert found.of(BUCKET) == SpyreCost(GRANITE, 4, "fp8").at("slow", BUCKET)
    assert (
        found.label == "granite-3.3-8b in fp8 on 4 cards, at the pessimistic end of the parameters"
    )
    assert load_cost("card:granite-3.3-8b,end=pessimistic,dtype=fp8,tp=4") == found
    assert load_cost("card:granite-3.3-8b,end=nominal") == load_cost("card:granite-3.3-8b")
    known = load_cost("card:granite-3.3-8b,tp=2,all_reduce_us=70")
    assert known.card == SpyreCard().fixed(all_reduce_s=70e-6)


def test_the_range_of_a_card_is_its_pessimistic_and_its_optimistic_end():
    slow, fast = load_cost("card:granite-3.3-8b,tp=2").ends
    assert slow.of(BUCKET) == SpyreCost(GRANITE, 2).range_of(BUCKET).high
    assert fast.of(BUCKET) == SpyreCost(GRANITE, 2).range_of(BUCKET).low


def test_both_sources_say_what_commands_ask_of_them():
    for source in (load_cost(), load_cost("card:smollm2-135m")):
        assert source.of(Bucket(1, 64, 32)).prefill_s > 0
        assert len(source.smallest) == 3
        assert 1 in source.batch_sizes
        assert "smollm2" in source.model_name.lower()
        assert source.span


def test_what_is_not_known_is_refused_with_what_is():
    with pytest.raises(ValueError, match="model 'gpt' is no preset") as error:
        load_cost("card:gpt")
    assert all(name in str(error.value) for name in PRESETS)
    for text, message in (
        ("card:granite-3.3-8b,cards=3", "'cards=3' is not a setting of the card: .* tp, dtype, "),
        ("card:granite-3.3-8b,slow", "'slow' is not a setting of the card"),
        ("card:granite-3.3-8b,tp=2,tp=4", "gives tp twice: keep one"),
        ("card:granite-3.3-8b,tp=four", "tp 'four' is not a number: write, for example, tp=4"),
        ("card:granite-3.3-8b,tp=3", "does not split over tp=3"),
        ("card:granite-3.3-8b,dtype=int4", "dtype 'int4' is unknown to the card model"),
        ("card:granite-3.3-8b,end=best", "end 'best' is unknown: use one of fast, value, slow"),
        ("card:granite-3.3-8b,all_reduce_us=-1", "all-reduce of -1.0 µs is not possible"),
    ):
        with pytest.raises(ValueError, match=message):
            load_cost(text)


def test_a_source_covers_what_a_bucket_of_its_range_takes():
    requests = load_workload("azure_conv", requests=300, rng=np.random.default_rng(0))
    table = load_cost()
    fits = (requests.prompt_tokens <= 2048) & (requests.max_tokens <= 1024)
    assert 0 < fits.sum() < 300
    assert table.covers(requests).tolist() == fits.tolist()
    assert load_cost(extrapolate=True).covers(requests).all()
    assert load_cost("card:granite-3.3-8b").covers(requests).all()


def test_only_what_is_modelled_has_ends_and_no_rows():
    assert load_cost().ends == ()
    card = load_cost("card:granite-3.3-8b")
    assert [at.end for at in card.ends] == ["slow", "fast"]
    with pytest.raises(ValueError, match="nothing was measured; give the file of a cost table"):
        _ = card.rows
