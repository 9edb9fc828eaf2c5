"""A model's sizes, checked against published parameter counts and sums done by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyre_bench.model_sizes import (
    ARCHITECTURES,
    PRESETS,
    ModelSizes,
    preset,
)

LLAMA_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}

# 2 layers of 4 heads over 2 KV heads of 8: every sum fits on paper
TINY = ModelSizes(
    name="tiny",
    hidden_size=32,
    intermediate_size=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    vocab_size=100,
    context_length=512,
)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-3.1-8b", 8_030_261_248),
        ("smollm2-135m", 134_515_008),
        ("mistral-small-24b", 23_572_403_200),
        ("qwen3-8b", 8_190_735_360),
        # 40 · (2·4096² + 2·4096·1024 + 3·4096·12800 + 2·4096) + 49159·4096 + 4096
        ("granite-3.3-8b", 8_170_864_640),
        ("granite-4-8b-dense", 8_380_551_168),
    ],
)
def test_a_preset_has_as_many_parameters_as_the_published_model(name, parameters):
    assert preset(name).parameters == parameters


def test_a_hugging_face_configuration_gives_the_preset():
    assert ModelSizes.of(LLAMA_CONFIG, "llama-3.1-8b") == preset("llama-3.1-8b")


def test_a_configuration_inside_one_for_images_is_found():
    text = {k: v for k, v in LLAMA_CONFIG.items() if k != "architectures"} | {"head_dim": 160}
    config = {"architectures": ["Mistral3ForConditionalGeneration"], "text_config": text}
    assert ModelSizes.of(config).head_dim == 160
    assert not ModelSizes.of(config).tied_head
    assert ModelSizes.of(config | {"tie_word_embeddings": True}, "x").name == "x"


def test_qwen3_has_a_norm_over_each_head_and_granite_has_not():
    qwen = ModelSizes.of(LLAMA_CONFIG | {"architectures": ["Qwen3ForCausalLM"]})
    granite = ModelSizes.of(LLAMA_CONFIG | {"architectures": ["GraniteForCausalLM"]})
    assert qwen.parameters - granite.parameters == 32 * 2 * 128


def test_a_dense_granite_4_says_its_width_by_another_name_and_one_with_mamba_is_refused():
    config = LLAMA_CONFIG | {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "num_local_experts": 0,
        "shared_intermediate_size": 12800,
        "layer_types": ["attention"] * 32,
    }
    assert ModelSizes.of(config).intermediate_size == 12800
    with pytest.raises(ValueError, match="layers of type mamba is not modelled"):
        ModelSizes.of(config | {"layer_types": ["mamba", "attention"]})
    with pytest.raises(ValueError, match="with 64 experts is not modelled"):
        ModelSizes.of(config | {"num_local_experts": 64})


def test_layers_that_slide_a_window_attend_to_all_of_it_up_to_its_length():
    slides = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4096}
    assert ModelSizes.of(LLAMA_CONFIG | slides).context_length == 4096
    assert ModelSizes.of(LLAMA_CONFIG | {"sliding_window": 4096}).context_length == 131072
    with pytest.raises(ValueError, match="no 'sliding_window'"):
        ModelSizes.of(LLAMA_CONFIG | slides | {"sliding_window": None})


def test_an_unknown_architecture_is_refused_with_those_known():
    with pytest.raises(ValueError, match="'BambaForCausalLM' is unknown") as error:
        ModelSizes.of(LLAMA_CONFIG | {"architectures": ["BambaForCausalLM"]})
    assert all(name in str(error.value) for name in ARCHITECTURES)
    with pytest.raises(ValueError, match="'none' is unknown"):
        ModelSizes.of({})


def test_a_missing_field_is_named():
    with pytest.raises(ValueError, match="no 'vocab_size'"):
        ModelSizes.of({k: v for k, v in LLAMA_CONFIG.items() if k != "vocab_size"})


@pytest.mark.parametrize("heads", [0, -4, "4", 4.0, True])
def test_a_field_that_is_no_whole_number_above_0_is_named(heads):
    with pytest.raises(ValueError, match=f"'num_attention_heads' {heads!r}: give a number above 0"):
        ModelSizes.of(LLAMA_CONFIG | {"num_attention_heads": heads})


def test_a_size_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="tiny: layers is 0"):
        replace(TINY, layers=0)
    with pytest.raises(ValueError, match="4 heads do not divide over 3 KV heads"):
        replace(TINY, kv_heads=3)


def test_an_unknown_preset_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'gpt-2' is no preset: use one of granite-3\.3-8b, "):
        preset("gpt-2")


def test_parameters_are_the_sum_by_hand():
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64 + 2 * 32
    assert TINY.parameters == 2 * layer + 2 * 100 * 32 + 32
    assert replace(TINY, tied_head=True).parameters == TINY.parameters - 3200
    biased = replace(TINY, attention_bias=True, mlp_bias=True)
    assert biased.parameters - TINY.parameters == 2 * (32 + 16 + 16 + 32 + 64 + 64 + 32)


def test_eight_bits_halve_the_layers_products_and_nothing_else():
    products = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    assert TINY.weight_bytes("fp16") == 2 * TINY.parameters
    assert TINY.weight_bytes("fp16") - TINY.weight_bytes("fp8") == products
    with pytest.raises(ValueError, match="dtype 'int4' is unknown to the card model: use fp16 or"):
        TINY.weight_bytes("int4")


def test_the_kv_cache_of_granite_8b_takes_160_kib_a_token_and_40_on_each_of_four_cards():
    granite = preset("granite-3.3-8b")
    assert granite.kv_bytes_per_token() == 160 * 1024
    assert granite.kv_bytes_per_token(tp=4) == 40 * 1024
    assert preset("llama-3.1-8b").kv_bytes_per_token() == 128 * 1024


def test_a_card_holds_its_share_of_the_layers_and_all_of_embedding_head_and_norms():
    layer = 2 * 32 * 16 + 2 * 32 * 8 + 3 * 32 * 32  # half of every product
    assert TINY.weight_bytes("fp16", tp=2) == 2 * (2 * (layer + 2 * 32) + 2 * 100 * 32 + 32)
    biased = replace(TINY, attention_bias=True, mlp_bias=True)
    # query, key, value, gate and up hold half of their biases; output and down hold all of theirs
    biases = 2 * (16 + 8 + 8 + 32 + 32 + 32 + 32)
    assert biased.weight_bytes("fp16", tp=2) - TINY.weight_bytes("fp16", tp=2) == 2 * biases


def test_operations_are_the_sum_by_hand():
    assert TINY.attention_operations(3, 64, 64) == 2 * 3 * 4 * 64 * 64 * 8
    assert TINY.attention_operations(3, 1, 70, tp=2) == 2 * 3 * 2 * 70 * 8
    assert [linear.weights for linear in TINY.mlp_linears(tp=2)] == [32 * 32] * 3
    assert TINY.head_linear().weights == 32 * 100


def test_a_32k_prompt_of_granite_costs_what_the_facts_reckon():
    # by hand: 535 TF in linear layers and 703 TF in attention
    granite = preset("granite-3.3-8b")
    attention = 2 * granite.layers * granite.attention_operations(1, 32768, 32768)
    assert attention == pytest.approx(703e12, rel=0.005)
    weights = sum(it.weights for it in (*granite.attention_linears(), *granite.mlp_linears()))
    assert 2 * 32768 * granite.layers * weights == pytest.approx(535e12, rel=0.03)


def test_a_model_splits_over_as_many_cards_as_its_heads_do():
    preset("smollm2-135m").require_tp(3)
    with pytest.raises(ValueError, match=r"9 heads, 3 KV heads, .*: use one of 1, 3$"):
        preset("smollm2-135m").require_tp(2)
    with pytest.raises(ValueError, match=r"over tp=4 \(12 heads, 3 KV heads, MLP width 96\): use"):
        replace(TINY, heads=12, kv_heads=3, intermediate_size=96).require_tp(4)
    for wrong in (0, -1, True, 2.0):
        with pytest.raises(ValueError, match="does not split"):
            TINY.require_tp(wrong)


def test_more_cards_than_kv_heads_hold_a_copy_of_one_each():
    assert replace(TINY, kv_heads=1).kv_bytes_per_token(tp=4) == 2 * 2 * 1 * 8 * 2
    replace(TINY, kv_heads=1).require_tp(4)


MODELS = st.sampled_from(sorted(PRESETS)).map(preset)


@given(MODELS, st.sampled_from([1, 2, 3, 4, 8]), st.sampled_from(["fp16", "fp8"]))
def test_cards_together_hold_the_whole_model_and_each_no_more_than_one_card_alone(model, tp, dtype):
    try:
        model.require_tp(tp)
    except ValueError:
        return
    whole, one = model.weight_bytes(dtype), model.weight_bytes(dtype, tp)
    tables = 2 * (1 if model.tied_head else 2) * model.vocab_size * model.hidden_size
    copies = (tp - 1) * tables  # embedding and head are whole on every card, and so are norms
    assert whole + copies <= tp * one <= whole * 1.001 + copies
    assert tp * model.kv_bytes_per_token(tp) == model.kv_bytes_per_token()
