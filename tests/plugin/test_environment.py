"""What becomes of the environment names of existing Spyre deployments, in both spellings."""

from pathlib import Path

import pytest

from spyre_bench.plugin.config import SpyreConfig
from spyre_bench.plugin.environment import (
    CARD_LIMITS,
    KNOWN,
    NEW,
    OBEYED,
    OLD,
    REFUSED,
    WITHOUT_EFFECT,
    warnings,
)
from spyre_bench.shapes import BucketSet

OPERATIONS = Path(__file__).parent.parent.parent / "docs" / "OPERATIONS.md"
both_spellings = pytest.mark.parametrize("prefix", [OLD, NEW])


@both_spellings
def test_what_means_the_same_is_obeyed(prefix):
    environment = {
        "WARMUP_PROMPT_LENS": "64,256",
        "WARMUP_NEW_TOKENS": "32,64",
        "WARMUP_BATCH_SIZES": "4,2",
        "DYNAMO_BACKEND": "eager",
        "REQUIRE_PRECOMPILED_DECODERS": "1",
        "MAX_LOAD_PROCESSES": "2",
        "GLOO_TIMEOUT_MINUTES": "5",
    }
    of_static = {name for name, key in OBEYED.items() if key not in ("batching", "rules")}
    assert environment.keys() == of_static  # the others: test_config
    config = SpyreConfig.read({}, {prefix + name: text for name, text in environment.items()})
    assert config == SpyreConfig(
        buckets=BucketSet.parse("4,64,32 2,256,64"),
        compile_backend="eager",
        require_precompiled=True,
        max_load_processes=2,
        join_timeout_s=300,
    )


@both_spellings
def test_no_bound_on_load_processes_is_written_0(prefix):
    assert SpyreConfig.read({}, {f"{prefix}MAX_LOAD_PROCESSES": "0"}).max_load_processes is None


@both_spellings
def test_the_old_name_of_the_cards_backend_is_an_alias(prefix):
    environment = {f"{prefix}DYNAMO_BACKEND": "sendnn_decoder"}
    assert SpyreConfig.read({}, environment).compile_backend == "sendnn"
    assert SpyreConfig.read({"compile_backend": "sendnn_decoder"}, {}).compile_backend == "sendnn"


@both_spellings
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_there_is_refused_by_the_name_that_asked(prefix, name):
    with pytest.raises(ValueError, match=f"does not support {prefix}{name}=1: .*unset it"):
        SpyreConfig.read({}, {prefix + name: "1"})
    SpyreConfig.read({}, {prefix + name: "0"})


@both_spellings
@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_what_changes_nothing_is_warned_of(prefix, name):
    natural, instead = WITHOUT_EFFECT[name]
    (sentence,) = warnings({prefix + name: "inductor"})
    assert sentence == f"{prefix}{name}=inductor has no effect: {instead}."
    assert warnings({prefix + name: natural}) == []


@pytest.mark.parametrize("name", CARD_LIMITS)
def test_limits_of_the_cards_compiler_are_warned_of(name):
    said = f"{name}=512 has no effect: the buckets say what is compiled."
    assert warnings({name: "512"}) == [said]
    assert warnings({name: "512"}, "continuous") == []


@both_spellings
def test_a_rule_of_continuous_batching_is_warned_of_under_static_batching(prefix):
    (sentence,) = warnings({prefix + "PAUSING_ENABLED": "1"})
    assert sentence.endswith(
        "PAUSING_ENABLED=1 has no effect: it is a setting of continuous batching."
    )
    assert warnings({prefix + "PAUSING_ENABLED": "1"}, "continuous") == []


@both_spellings
def test_a_list_of_buckets_is_warned_of_under_continuous_batching(prefix):
    (sentence,) = warnings({prefix + "WARMUP_BATCH_SIZES": "4"}, "continuous")
    assert sentence.endswith(
        "WARMUP_BATCH_SIZES=4 has no effect: it is a setting of static batching."
    )
    assert warnings({prefix + "WARMUP_BATCH_SIZES": "4"}) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("VLLM_SPYRE_WARMUP_PROMPT_LEN", "did you mean VLLM_SPYRE_WARMUP_PROMPT_LENS"),
        ("SENDNN_INFERENCE_USE_CBS", "did you mean SENDNN_INFERENCE_USE_CB"),
        ("VLLM_SPYRE_ZZZZZZZZZZZZZZZZZ", "is unknown and has no effect"),
    ],
)
def test_an_unknown_name_is_warned_of_with_the_nearest_one(name, words):
    (sentence,) = warnings({name: "1", "VLLM_USE_V1": "1"})
    assert name in sentence
    assert words in sentence


def test_two_spellings_that_disagree_are_refused_and_two_that_agree_are_one():
    two = {f"{OLD}DYNAMO_BACKEND": "eager", f"{NEW}DYNAMO_BACKEND": "eager"}
    assert SpyreConfig.read({}, two).compile_backend == "eager"
    with pytest.raises(ValueError, match="are two spellings of one setting: unset one"):
        SpyreConfig.read({}, two | {f"{NEW}DYNAMO_BACKEND": "sendnn"})


def test_a_wrong_list_is_named_as_it_was_spelt():
    with pytest.raises(ValueError, match="SENDNN_INFERENCE_WARMUP_PROMPT_LENS='64;128' is not"):
        SpyreConfig.read({}, {f"{NEW}WARMUP_PROMPT_LENS": "64;128"})


def test_an_empty_value_counts_as_not_set():
    everything = {prefix + name: "" for prefix in (OLD, NEW) for name in KNOWN}
    assert SpyreConfig.read({}, everything) == SpyreConfig.read({}, {})
    assert warnings(everything | dict.fromkeys(CARD_LIMITS, "")) == []


def test_the_page_for_people_says_what_becomes_of_each_name():
    page = OPERATIONS.read_text()
    for name in KNOWN:
        assert f"`{name}`" in page, f"docs/OPERATIONS.md says nothing of {name}"
    for name in CARD_LIMITS:
        assert name.removeprefix("VLLM_DT_") in page
