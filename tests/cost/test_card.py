"""The card model against sums done by hand, its limits and the laws that it keeps."""

import math
from dataclasses import fields, replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from spyre_bench.cost.bucket_cost import price
from spyre_bench.cost.card import SpyreCost
from spyre_bench.cost.card_parameters import (
    CONFIDENCES,
    ENDS,
    LIMITS,
    Parameter,
    SpyreCard,
    with_all_reduce,
)
from spyre_bench.model_sizes import PRESETS, Linear, preset
from spyre_bench.shapes import Bucket

GRANITE = preset("granite-3.3-8b")
LLAMA = preset("llama-3.1-8b")


# --- parameters -----------------------------------------------------------------------------------


def test_every_parameter_says_its_unit_its_source_and_its_confidence():
    for field in fields(SpyreCard):
        parameter = getattr(SpyreCard(), field.name)
        assert parameter.unit, field.name
        assert parameter.confidence in CONFIDENCES, field.name
        assert parameter.source, field.name
        if parameter.confidence == "L":
            low, high = sorted((parameter.fast, parameter.slow))
            assert low < high or field.name in LIMITS, f"{field.name} is inferred but has no range"


def test_a_parameter_outside_of_its_own_range_is_refused():
    with pytest.raises(ValueError, match="parameter 3 s is outside of its range 1 to 2: widen"):
        Parameter(3, 1, 2, "s", "M", "x")
    with pytest.raises(ValueError, match="range -1 to 2 s is below 0"):
        Parameter(1, -1, 2, "s", "M", "x")
    with pytest.raises(ValueError, match="confidence 'sure' is unknown: use one of H, H-M"):
        Parameter(1, 1, 2, "s", "sure", "x")


def test_a_range_the_wrong_way_round_is_refused():
    with pytest.raises(
        ValueError, match=r"read_bytes_per_s would be fast at 1 .* a rate is above 0"
    ):
        SpyreCard(read_bytes_per_s=Parameter(1, 1, 2, "byte/s", "M", "x"))
    with pytest.raises(ValueError, match=r"compile_s would be fast at 3 .* smaller when fast"):
        SpyreCard(compile_s=Parameter(2, 3, 1, "s/bucket", "M", "x"))
    with pytest.raises(ValueError, match="fp16_flops"):
        SpyreCard(fp16_flops=Parameter(0, 1, 0, "operation/s", "M", "x"))


def test_a_parameter_that_is_known_has_no_range_left_and_the_others_keep_theirs():
    card = SpyreCard().fixed(all_reduce_s=70e-6)
    assert [card.at(end).all_reduce_s for end in ENDS] == [70e-6] * 3
    assert replace(card, all_reduce_s=SpyreCard().all_reduce_s) == SpyreCard()
    with pytest.raises(ValueError, match="no parameter 'latency': use one of read_bytes_per_s, "):
        SpyreCard().fixed(latency=1)


def test_an_all_reduce_can_be_given_in_microseconds_and_zero_leaves_the_range():
    assert with_all_reduce(0) == SpyreCard()
    known = SpyreCost(GRANITE, tp=4, card=with_all_reduce(300)).passes("fast")
    assert known.all_reduce_s(1) == pytest.approx(300e-6)
    with pytest.raises(ValueError, match=r"all-reduce of -1 µs is not possible: 0 takes the range"):
        with_all_reduce(-1)


# --- seconds, by hand -----------------------------------------------------------------------------


def test_a_product_takes_the_root_of_the_squares_of_moving_and_multiplying():
    # 2 · (512·4096 + 4096·1024 + 512·1024) bytes and 2 · 512·4096·1024 operations
    seconds = math.hypot(13_631_488 / 136e9, 4_294_967_296 / 98.304e12)
    found = SpyreCost(GRANITE).passes().linear_s(Linear("x", 4096, 1024), 512)
    assert found == pytest.approx(seconds)
    assert found == pytest.approx(109.3e-6, rel=1e-3)


def test_in_eight_bits_the_weights_halve_and_the_inputs_are_quantised_first():
    moved = 512 * 4096 + 4096 * 1024 + 2 * 512 * 1024
    product = math.hypot(moved / 136e9, 4_294_967_296 / 196.608e12)
    quantised = 3 * 512 * 4096 / 105e9
    found = SpyreCost(GRANITE, dtype="fp8").passes().linear_s(Linear("x", 4096, 1024), 512)
    assert found == pytest.approx(product + quantised)


def test_eight_bits_halve_the_time_of_few_rows_and_gain_nothing_for_many():
    weight = Linear("x", 4096, 1024)
    fp16, fp8 = SpyreCost(GRANITE).passes(), SpyreCost(GRANITE, dtype="fp8").passes()
    assert fp8.linear_s(weight, 1) == pytest.approx(fp16.linear_s(weight, 1) / 2, rel=0.01)
    assert fp8.linear_s(weight, 512) > fp16.linear_s(weight, 512)


def test_the_output_head_stays_in_16_bits_and_whole_on_every_card():
    fp16, fp8 = SpyreCost(LLAMA).passes(), SpyreCost(LLAMA, dtype="fp8").passes()
    assert fp8.head_s(4) == fp16.head_s(4)
    assert SpyreCost(LLAMA, tp=8).passes().head_s(4) == fp16.head_s(4)


def test_the_mlp_reads_its_weights_again_for_every_256_rows():
    passes = SpyreCost(GRANITE).passes()
    assert passes.mlp_s(512) == pytest.approx(2 * passes.mlp_s(256))
    assert passes.mlp_s(257) == pytest.approx(2 * passes.mlp_s(128.5))
    once = SpyreCost(GRANITE).passes("fast")
    assert once.mlp_s(512) < 1.5 * once.mlp_s(256)


def test_a_prefill_is_its_parts():
    cost, bucket = SpyreCost(GRANITE), Bucket(2, 512, 64)
    passes = cost.passes()
    # two rows: queries and outputs of 32 heads, keys and values of 8, the scores twice
    moved = 2 * 2 * (2 * 32 * 512 * 128 + 2 * 8 * 512 * 128 + 2 * 32 * 512 * 512)
    attention = math.hypot(moved / 136e9, 2 * 2 * 2 * 32 * 512 * 512 * 128 / 98.304e12)
    rest = 1.37e-3 * 2  # twice the 512 tokens it was found at
    head = math.hypot(
        2 * (2 * 4096 + 4096 * 49159 + 2 * 49159) / 136e9, 2 * 2 * 4096 * 49159 / 98.304e12
    )
    layers = 40 * (passes.linears_s(1024) + attention + rest)
    assert cost.of(bucket).prefill_s == pytest.approx(layers + head)


def test_the_rest_of_a_layer_is_not_less_for_a_short_prompt():
    card = replace(SpyreCard(), rest_prefill_s=Parameter(1.0, 1.0, 1.0, "s/layer", "M", "x"))
    cost, free = SpyreCost(GRANITE, card=card), SpyreCost(GRANITE)
    difference = cost.of(Bucket(1, 64, 2)).prefill_s - free.of(Bucket(1, 64, 2)).prefill_s
    assert difference == pytest.approx(40 * (1 - 1.37e-3))


def test_a_full_cache_of_131072_tokens_adds_40_ms_to_a_step_on_four_cards():
    # 5.4 GB per card at 134 GB/s
    passes = SpyreCost(GRANITE, tp=4).passes()
    assert 40 * passes.decode_attention_s(32, 4096) == pytest.approx(40e-3, rel=0.03)


def test_attention_over_a_long_context_is_bound_by_its_scores_and_padded_queries_are_not_free():
    passes = SpyreCost(GRANITE).passes()
    scores_s = 2 * 2 * 32 * 32768**2 / 136e9
    assert passes.attention_s(1, 32768, 32768) == pytest.approx(scores_s, rel=0.04)
    padded = SpyreCost(GRANITE, card=SpyreCard().fixed(decode_query_rows=64)).passes()
    assert padded.decode_attention_s(1, 576) > 3 * passes.decode_attention_s(1, 576)


def test_what_is_contested_is_priced_at_each_end_and_everything_else_stays():
    contested, bucket = SpyreCost(GRANITE).contested, Bucket(1, 512, 64)
    few, many = (
        contested[f"crossings of the memory by attention's scores: {n}"] for n in ("1.45", "8.15")
    )
    plain = SpyreCost(GRANITE).of(bucket)
    assert few.of(bucket).prefill_s < plain.prefill_s < many.of(bucket).prefill_s
    padded = contested["rows computed per query in decode: 64"].of(bucket)
    assert padded.decode_s > plain.decode_s
    assert padded.prefill_s == plain.prefill_s


def test_an_all_reduce_has_a_floor_and_grows_with_the_chain():
    four, two, one = (SpyreCost(GRANITE, tp=tp).passes() for tp in (4, 2, 1))
    assert one.all_reduce_s(2**19) == 0
    assert four.all_reduce_s(8192) == pytest.approx(100e-6)
    assert four.all_reduce_s(2**19) == pytest.approx(200e-6)
    assert four.all_reduce_s(2**22) == pytest.approx(1600e-6)
    assert two.all_reduce_s(2**22) == pytest.approx(1600e-6 / 3)


def test_all_reduces_of_a_granite_step_on_four_cards_take_4_to_16_ms():
    cost = SpyreCost(GRANITE, tp=4)
    low, high = (40 * cost.passes(end).reduces_s(1) for end in ("fast", "slow"))
    assert low == pytest.approx(4e-3)
    assert high == pytest.approx(16e-3)


def test_no_step_is_below_reading_the_weights_at_the_peak_of_the_memory():
    for dtype, tp in (("fp16", 1), ("fp16", 4), ("fp8", 1), ("fp8", 4)):
        low = SpyreCost(GRANITE, tp, dtype).range_of(Bucket(1, 64, 2)).low
        read = GRANITE.weight_bytes(dtype, tp)  # the head's are the embedding's: all are read
        assert low.decode_s > read / 204.8e9


# --- bytes and limits -----------------------------------------------------------------------------


def test_bytes_are_the_sum_by_hand():
    cost, bucket = SpyreCost(GRANITE, tp=4), Bucket(2, 128, 64)
    cache = 2 * 192 * 40 * 1024
    bare = GRANITE.weight_bytes("fp16", 4) + cache
    mask, logits = 2 * 128 * 128 * 2, 2 * 49159 * 2  # the head is whole on every card
    activations = 2 * 128 * (4 * 4096 + 3 * 3200) * 2
    scores = 2 * 8 * 128 * 128 * 2
    found = cost.range_of(bucket)
    assert found.low.memory_bytes == bare
    assert found.value.memory_bytes == bare + mask + logits + activations
    assert found.high.memory_bytes == bare + mask + logits + activations + scores


def test_batch_times_context_is_limited_on_four_cards():
    four, two = SpyreCost(GRANITE, tp=4), SpyreCost(GRANITE, tp=2)
    assert four.of(Bucket(16, 8128, 64)).bucket == Bucket(16, 8128, 64)  # 131,072 exactly
    over = Bucket(16, 8128, 65)
    with pytest.raises(
        ValueError, match=r"131,088 slots .* 4 cards take 131,072: use batch_size 15 or less"
    ):
        four.of(over)
    assert two.of(over).bucket == over


def test_a_cache_beyond_the_cap_is_refused_with_the_batch_that_fits():
    cost = SpyreCost(LLAMA)
    fits = 20 * 2**30 // (128 * 1024)  # 163,840 slots
    cost.require_slots(fits)
    with pytest.raises(
        ValueError, match=r"1 cards for 163,841 slots, .* \(163,840 slots\): use fewer, or"
    ):
        cost.require_slots(fits + 1)
    with pytest.raises(ValueError, match=r"bucket 32,8128,64 needs .* use batch_size 20 or less"):
        cost.of(Bucket(32, 8128, 64))


def test_a_model_that_fills_the_memory_leaves_the_cache_only_what_is_left():
    card = replace(SpyreCard(), usable_bytes=Parameter(*[18e9] * 3, "byte/card", "H", "x"))
    with pytest.raises(ValueError, match="KV cache"):
        SpyreCost(GRANITE, card=card).of(Bucket(16, 1024, 1024))
    with pytest.raises(ValueError, match=r"needs .* 18,000,000,000 are usable: lower batch_size"):
        SpyreCost(GRANITE, card=card).of(Bucket(8, 1024, 2))


def test_a_bucket_beyond_the_models_context_is_refused():
    with pytest.raises(ValueError, match=r"spans 8194 tokens .* beyond the 8192 of smollm2-135m"):
        SpyreCost(preset("smollm2-135m")).of(Bucket(1, 8192, 2))


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="dtype 'bf16' is unknown to the card model"):
        SpyreCost(GRANITE, dtype="bf16")
    with pytest.raises(ValueError, match="does not split over tp=3 "):
        SpyreCost(GRANITE, tp=3)
    with pytest.raises(ValueError, match="tp=16 is beyond a cluster's 8 cards"):
        SpyreCost(GRANITE, tp=16)
    with pytest.raises(ValueError, match="end 'best' is unknown: use one of fast, value, slow"):
        SpyreCost(GRANITE).at("best", Bucket(1, 64, 2))


# --- as a cost model ------------------------------------------------------------------------------


def test_it_prices_buckets_like_any_cost_model_and_calls_every_price_extrapolated():
    model = SpyreCost(GRANITE)
    first, second = price([Bucket(2, 256, 64), Bucket(1, 64, 2)], model)
    assert first.bucket == Bucket(1, 64, 2)
    assert first.bucket.batch_size >= model.smallest[0]
    assert first.extrapolated
    assert second.extrapolated
    assert second.compile_s == 171
    assert model.range_of(second.bucket).value == second
    compile_range = model.range_of(second.bucket)
    assert (compile_range.low.compile_s, compile_range.high.compile_s) == (60, 488.4)


MODELS = st.sampled_from(sorted(PRESETS)).map(preset)
SETTINGS = st.builds(
    lambda model, tp, dtype: (model, tp, dtype),
    MODELS,
    st.sampled_from([1, 2, 3, 4, 8]),
    st.sampled_from(["fp16", "fp8"]),
)
BUCKETS = st.builds(
    lambda b, sticks, n: Bucket(b, 64 * sticks, n),
    st.integers(1, 16),
    st.integers(1, 24),
    st.integers(2, 256),
)


def cost_of(setting) -> SpyreCost:
    try:
        return SpyreCost(*setting)
    except ValueError:
        assume(False)


@given(SETTINGS, BUCKETS)
def test_low_is_never_above_the_value_nor_the_value_above_high(setting, bucket):
    found = cost_of(setting).range_of(bucket)
    for name in ("prefill_s", "decode_s", "compile_s", "memory_bytes"):
        low, value, high = (getattr(cost, name) for cost in (found.low, found.value, found.high))
        assert 0 < low <= value <= high, name


@given(SETTINGS, BUCKETS, st.sampled_from(ENDS))
def test_a_larger_bucket_is_never_cheaper(setting, bucket, end):
    cost, (b, p, n) = cost_of(setting), (bucket.batch_size, bucket.prompt_length, bucket.new_tokens)
    here = cost.at(end, bucket)
    for larger in (Bucket(b + 1, p, n), Bucket(b, p + 64, n), Bucket(b, p, n + 1)):
        there = cost.at(end, larger)
        assert there.prefill_s >= here.prefill_s
        assert there.decode_s >= here.decode_s
        assert there.memory_bytes >= here.memory_bytes


@given(MODELS, BUCKETS, st.sampled_from(["fp16", "fp8"]))
def test_more_cards_hold_less_each_and_together_at_least_the_whole(model, bucket, dtype):
    one = SpyreCost(model, 1, dtype).memory_bytes(bucket, "fast")
    held, tables = one, (1 if model.tied_head else 2) * model.vocab_size * model.hidden_size
    for tp in (2, 4, 8):
        try:
            each = SpyreCost(model, tp, dtype).memory_bytes(bucket, "fast")
        except ValueError:
            continue
        assert each < held
        copies = 2 * (tp - 1) * tables  # bytes of the embedding and the head of the other cards
        assert one + copies <= tp * each <= 1.001 * one + copies
        held = each


@given(MODELS, BUCKETS)
def test_a_step_in_eight_bits_is_faster_while_rows_are_few(model, bucket):
    assume(bucket.batch_size <= 16)
    fp16, fp8 = SpyreCost(model), SpyreCost(model, dtype="fp8")
    assert fp8.of(bucket).decode_s < fp16.of(bucket).decode_s
    assert fp8.of(bucket).memory_bytes < fp16.of(bucket).memory_bytes
