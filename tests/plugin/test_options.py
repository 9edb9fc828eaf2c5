"""Every engine option of vLLM is obeyed, refused, or named as without effect."""

from collections import Counter
from dataclasses import fields

import pytest

from spyre_bench.plugin.options import (
    BY_VALUE,
    OBEYED,
    REFUSED,
    WITHOUT_EFFECT,
    refuse_options,
    without_effect,
)

SETS = {
    "scheduler_cls": "x.S",
    "worker_cls": "x.W",
    "kv_offloading_size": 4.0,
    "kv_events_config": {"enable_kv_cache_events": True},
    "enable_sleep_mode": True,
    "profiler_config": {"profiler": "torch"},
    "weight_transfer_config": {"backend": "nccl"},
    "diffusion_config": {"method": "x"},
    "enable_return_routed_experts": True,
    "aux_output_config": {"enable_return_routed_experts": True},
    "hf_config_path": "/elsewhere",
    "config_format": "mistral",
    "convert": "embed",
}


def arguments(**options):
    from vllm.engine.arg_utils import AsyncEngineArgs

    made = AsyncEngineArgs()
    for name, value in options.items():  # whatever vLLM itself would make of it
        setattr(made, name, value)
    return made


def test_every_option_of_vllm_is_in_one_of_the_tables():
    from vllm.engine.arg_utils import AsyncEngineArgs

    without = [name for names in WITHOUT_EFFECT.values() for name in names]
    classified = Counter([*OBEYED, *BY_VALUE, *REFUSED, *without])
    assert classified.keys() == {field.name for field in fields(AsyncEngineArgs)}
    assert set(classified.values()) == {1}


@pytest.mark.parametrize("name", REFUSED)
def test_an_option_that_no_engine_starts_with_is_refused_by_name(name):
    refuse_options(arguments())
    with pytest.raises(ValueError, match=f"does not support {name}=.*: "):
        refuse_options(arguments(**{name: SETS[name]}))


def test_options_without_effect_are_named_in_one_sentence():
    sentence = without_effect(
        arguments(
            cpu_offload_gb=4,
            download_dir="/models",
            ignore_patterns="*.bin",
            model_impl="vllm",
            attention_backend="TRITON_ATTN",
            max_num_batched_tokens=2048,
            model_loader_extra_config={"a": 1},
            dtype="float32",
        )
    )
    for words in (
        "cpu_offload_gb=4",
        "download_dir=/models",
        "ignore_patterns=*.bin",
        "model_impl=vllm",
        "attention_backend=TRITON_ATTN",
        "{'a': 1}",
        "max_num_batched_tokens=2048 (the buckets say it)",
    ):
        assert words in sentence
    assert "dtype" not in sentence


def test_continuous_batching_obeys_some_of_them_and_blames_shapes_for_the_others():
    given = arguments(max_num_batched_tokens=2048, num_gpu_blocks_override=40, block_size=32)
    expected = "block_size=32 (the shapes and rules say it)"
    assert without_effect(given, "continuous") == (
        f"Without effect on the spyre backend: {expected}."
    )


def test_the_defaults_of_the_command_line_and_of_a_script_are_no_wishes():
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    of_command_line = AsyncEngineArgs.from_cli_args(parser.parse_args([]))
    for given in (arguments(), of_command_line):
        refuse_options(given)
        assert without_effect(given) is None


def test_what_is_switched_off_is_no_wish():
    assert without_effect(arguments(enable_prefix_caching=False, async_scheduling=False)) is None
    assert "async_scheduling=True" in without_effect(arguments(async_scheduling=True))


def test_an_engine_says_once_what_is_without_effect(tiny_llama, monkeypatch):
    from vllm.engine.arg_utils import EngineArgs

    from spyre_bench.plugin import platform

    lines = []
    monkeypatch.setattr(platform.SpyrePlatform, "_config", None)
    monkeypatch.setattr(
        platform.logger, "warning", lambda text, *values: lines.append(text % values)
    )
    given = EngineArgs(str(tiny_llama), max_num_batched_tokens=4096)
    given.create_engine_config()
    given.create_engine_config()  # max_num_seqs is now filled in, by vLLM and not by the user
    expected = "max_num_batched_tokens=4096 (the buckets say it)"
    assert lines == [f"Without effect on the spyre backend: {expected}."]


def test_a_refused_option_ends_the_start(tiny_llama):
    from vllm.engine.arg_utils import EngineArgs

    with pytest.raises(ValueError, match=r"kv_offloading_size=4\.0: leave it out, the cache"):
        EngineArgs(str(tiny_llama), kv_offloading_size=4.0).create_engine_config()
