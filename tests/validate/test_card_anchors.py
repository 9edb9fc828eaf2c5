"""The card model against what others measured, and the page in docs that admits each error."""

import math
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from spyre_bench.cost.card_parameters import CONFIDENCES, SpyreCard
from spyre_bench.model_sizes import PRESETS
from spyre_bench.validate.card_anchors import (
    LISTED,
    ONE_HEAD_US,
    Anchor,
    attention_product_anchors,
    crossings,
    document,
    fit_errors,
    fp8_anchors,
    part_anchors,
    product_anchors,
    root_mean_square,
    serving_anchors,
    sources,
    start_anchors,
    whole_anchors,
)


def test_the_25_products_are_met_with_the_stated_errors():
    anchors = product_anchors()
    rms, worst = fit_errors(anchors)
    assert len(anchors) == 25
    assert rms == pytest.approx(0.076, abs=0.001)
    assert worst == pytest.approx(0.14, abs=0.002)


def test_a_root_mean_square_is_what_it_says():
    assert root_mean_square([3, -4]) == pytest.approx(math.sqrt(12.5))


def test_an_anchors_error_is_the_model_over_the_measurement():
    anchor = Anchor("x", "y", "s", measured=2.0, low=1.0, value=3.0, high=4.0)
    assert anchor.error == 0.5
    assert anchor.log_error == pytest.approx(math.log(1.5))
    assert anchor.within
    assert not replace(anchor, measured=5.0).within


def test_granite_on_one_card_comes_within_7_percent_of_what_was_measured():
    prefill, over_4096, decode, long_decode, *_ = whole_anchors()
    assert (prefill.measured, decode.measured) == (335, 177)
    # by hand, ms: 40 · (2·0.3545 + 2·0.1093 + 2·2.634 + 0.3268 + 1.37) + 2.96
    assert prefill.value == pytest.approx(318.6, abs=0.1)
    # 40 · (2·0.2468 + 2·0.0618 + 2.3125 + 0.0175 + 1.18) + 2.96
    assert decode.value == pytest.approx(168.1, abs=0.2)
    for anchor in (prefill, decode, long_decode):
        assert abs(anchor.error) < 0.07
        assert anchor.within
    assert over_4096.value - prefill.value == pytest.approx(40 * (2.187 - 0.327), abs=0.1)


def test_a_long_prompt_on_four_cards_takes_what_ibm_says_at_24k_and_half_as_much_again_at_32k():
    longer, long = whole_anchors()[-2:]
    assert 15 < long.value < 20
    assert longer.error == pytest.approx(0.48, abs=0.01)
    assert longer.within
    assert long.within


def test_the_errors_of_parts_are_what_the_page_admits():
    errors = {anchor.what: anchor.error for anchor in part_anchors()}
    assert all(abs(error) < 0.11 for what, error in errors.items() if what.startswith("MLP"))
    assert errors["attention, prefill 512"] == pytest.approx(-0.65, abs=0.01)
    assert errors["attention, decode at 576"] == pytest.approx(-0.88, abs=0.01)
    assert fit_errors(fp8_anchors())[0] == pytest.approx(0.12, abs=0.005)


def test_attentions_products_are_bound_by_the_memory_as_all_others_are():
    *products, sendnn, torch_spyre = attention_product_anchors()
    assert all(abs(anchor.error) < 0.12 for anchor in products)
    assert all(abs(anchor.error) < 0.02 for anchor in products[2:])
    assert sendnn.low < sendnn.measured < sendnn.value  # fewer crossings than the value has
    assert torch_spyre.value < torch_spyre.measured < torch_spyre.high


def test_how_often_scores_cross_the_memory_is_what_one_head_took_on_either_stack():
    known = SpyreCard().score_crossings
    assert known.fast == pytest.approx(crossings(ONE_HEAD_US["sendnn"]), abs=0.01)
    assert known.slow == pytest.approx(crossings(ONE_HEAD_US["torch-spyre"]), abs=0.01)
    assert known.fast < known.value < known.slow


def test_the_page_in_docs_is_what_the_code_computes():
    path = Path(__file__).parents[2] / "docs" / "SPYRE_CARD.md"
    assert path.read_text() == document(), (
        "docs/SPYRE_CARD.md is stale: "
        "python -m spyre_bench.validate.card_anchors > docs/SPYRE_CARD.md"
    )


def test_the_page_shows_every_anchor_and_every_parameter():
    page = document()
    unconfirmed = (*start_anchors(), *serving_anchors())
    confirmed = (*product_anchors(), *fp8_anchors(), *part_anchors(), *whole_anchors())
    confirmed = (*confirmed, *attention_product_anchors())
    for anchor in (*confirmed, *unconfirmed):
        source = f"[{anchor.source}](#{anchor.source})"
        assert f"| {anchor.what} | {source} | {anchor.measured:.4g} {anchor.unit}" in page
    for field in fields(SpyreCard):
        assert f"| `{field.name}` |" in page
    assert page.count("refused") == 2


def anchors_of_the_page() -> set[str]:
    """The names of its sources, and of its headings as a browser of repositories makes them."""
    page = document()
    headings = re.findall(r"^#+ (.+)$", page, flags=re.MULTILINE)
    slugs = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)"></a>', page))


def test_every_constant_names_a_source_that_the_page_has():
    for field in fields(SpyreCard):
        source = getattr(SpyreCard(), field.name).source
        assert source.startswith("SPYRE_CARD.md#"), field.name
        named = {name.rstrip(".") for name in re.findall(r"#([a-z0-9.-]+)", source)}
        assert named <= anchors_of_the_page(), field.name


def test_every_source_can_be_opened_and_says_what_it_is_worth():
    for source in sources():
        assert re.fullmatch(r"https://\S+", source["url"]), source
        assert source["says"], source
        assert source["confidence"] in CONFIDENCES, source


def test_every_anchor_and_every_listed_configuration_has_a_source():
    measured = (*product_anchors(), *fp8_anchors(), *part_anchors(), *whole_anchors(), *LISTED)
    measured = (*measured, *attention_product_anchors(), *start_anchors(), *serving_anchors())
    assert {one.source for one in measured} <= {source["anchor"] for source in sources()}


def test_the_sizes_of_every_model_have_a_source():
    assert {f"sizes-{name}" for name in PRESETS} <= {source["anchor"] for source in sources()}


@pytest.mark.parametrize("listed", LISTED, ids=lambda it: f"{it.model}-{it.tp}-{it.prompt}")
def test_what_is_listed_as_supported_fits_and_what_failed_does_not(listed):
    assert listed.taken == listed.runs


def test_the_list_holds_both_kinds():
    assert {listed.runs for listed in LISTED} == {True, False}
    assert sum(not listed.runs for listed in LISTED) == 2
