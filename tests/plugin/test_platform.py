"""What becomes of vLLM's settings, and what is refused before anything is loaded."""

import json
import os
import shutil
from pathlib import Path

import pytest

from spyre_bench.plugin.platform import SpyrePlatform
from tests.plugin.conftest import platform_as_before

TWO = {"buckets": [[4, 64, 32], [2, 256, 64]]}


@pytest.fixture
def configure(tiny_llama, tiny_granite):
    """vLLM's configuration for the tiny model, as its engines build it."""
    from vllm.engine.arg_utils import EngineArgs

    def build(spyre=TWO, **arguments):
        arguments = {"model": str(tiny_llama)} | arguments
        if arguments["model"] == "granite":
            arguments["model"] = str(tiny_granite)
        return EngineArgs(additional_config={"spyre": spyre}, **arguments).create_engine_config()

    with platform_as_before():
        yield build


def token_prompt(tokens: int) -> dict:
    return {"type": "token", "prompt_token_ids": [5] * tokens}


def test_vllms_scheduler_and_cache_follow_the_buckets(configure):
    config = configure()
    assert config.model_config.max_model_len == 320
    assert config.scheduler_config.max_num_seqs == 4
    assert config.scheduler_config.max_num_batched_tokens == 4 * 320
    assert config.scheduler_config.max_num_scheduled_tokens == 4 * 320
    assert config.cache_config.block_size == 320


CONTINUOUS = {"batching": "continuous"}


@pytest.mark.parametrize("simulated", [False, True])
def test_shapes_have_steps_only_where_nothing_is_computed(configure, without_weights, simulated):
    stepped = {"prefill_shapes": "128/64,256", "decode_shapes": "4/2,256/64"}
    device = {"device": "simulated:card:smollm2-135m"} if simulated else {}
    model = {"model": str(without_weights)} if simulated else {}
    config = configure(spyre=CONTINUOUS | stepped | device, **model)
    wanted = stepped if simulated else {"prefill_shapes": "128,256", "decode_shapes": "4,256"}
    there = config.additional_config["spyre"]
    assert {name: there[name] for name in wanted} == wanted


@pytest.mark.parametrize("spyre", [TWO, CONTINUOUS])
def test_options_called_without_effect_do_not_reach_vllms_scheduler(configure, spyre):
    """It would cut prompts, admit fewer than the policy chose, or refuse to start."""
    named = {
        "long_prefill_token_threshold": 16,
        "long_prefill_token_threshold_adaptive": True,
        "max_num_active_seqs": 2,
        "watermark": 0.5,
        "prefix_match_unit": 16,
        "prefix_cache_retention_interval": 64,
    }
    config, usual = configure(spyre=spyre, **named), configure(spyre=spyre)
    for part in ("scheduler_config", "cache_config"):
        for name in named:
            ours, default = (getattr(getattr(c, part), name, None) for c in (config, usual))
            assert ours == default, name


def test_vllms_scheduler_and_cache_follow_the_shapes(configure):
    shapes = {"prefill_shapes": "64,256 128,512", "decode_shapes": [[4, 256], [2, 384]]}
    config = configure(spyre=CONTINUOUS | shapes | {"blocks": 30})
    assert config.model_config.max_model_len == 384
    assert config.scheduler_config.max_num_seqs == 4
    assert config.scheduler_config.enable_chunked_prefill
    assert not config.scheduler_config.async_scheduling
    assert config.cache_config.block_size == 64
    assert config.cache_config.num_gpu_blocks_override == 30
    assert config.cache_config.enable_prefix_caching


def test_vllms_own_options_make_the_shapes_where_none_are_named(configure):
    config = configure(
        spyre=CONTINUOUS,
        max_model_len=400,
        max_num_seqs=4,
        max_num_batched_tokens=128,
        num_gpu_blocks_override=20,
        enable_prefix_caching=False,
    )
    made = config.additional_config["spyre"]
    assert made["decode_shapes"] == "1,128 1,384 2,128 2,384 4,128 4,384"
    assert made["prefill_shapes"] == "64,128 64,384 128,128 128,384"
    assert (made["blocks"], made["rules"]["chunk_tokens"]) == (20, 128)
    assert config.model_config.max_model_len == 384
    assert not config.cache_config.enable_prefix_caching


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"max_batch_context_tokens": 384}, "384 .* is below the longest context, 512 tokens"),
        ({"layout": "rectangular", "chunk_tokens": 512}, "no prefill shape takes 512 tokens"),
    ],
)
def test_rules_that_would_end_the_server_at_some_request_are_refused_at_start(
    configure, rules, words
):
    with pytest.raises(ValueError, match=words):
        configure(spyre=CONTINUOUS | {"rules": rules}, max_model_len=512)


def test_a_pass_log_that_cannot_be_written_is_refused_before_anything_is_loaded(
    configure, tmp_path
):
    with pytest.raises(ValueError, match="is a folder: name a file in it"):
        configure(spyre=TWO | {"pass_log": str(tmp_path)})


@pytest.mark.parametrize(
    ("backend", "ranks", "asked", "method"),
    [
        ("eager", 1, None, "fork"),
        ("inductor", 1, None, "fork"),
        ("eager", 2, None, "spawn"),
        ("eager", 1, "spawn", "spawn"),  # the user's
        ("sendnn", 1, None, "spawn"),
    ],
)
def test_an_engine_of_one_rank_is_forked_unless_the_user_or_the_card_has_a_say(
    configure, monkeypatch, backend, ranks, asked, method
):
    from spyre_bench.plugin import start_method

    monkeypatch.setattr(start_method, "ASKED", asked)
    monkeypatch.setenv(start_method.NAME, "spawn")  # as `vllm serve` does
    configure(spyre=TWO | {"compile_backend": backend}, tensor_parallel_size=ranks)
    assert os.environ[start_method.NAME] == method


@pytest.mark.parametrize("named", [False, True])
def test_a_cache_of_unnamed_size_is_what_the_memory_holds(configure, tiny_llama, named):
    from spyre_bench.engine.memory import pool_bytes
    from spyre_bench.model_sizes import ModelSizes
    from spyre_bench.shape_set import ShapeSet

    shapes = {"prefill_shapes": "64,256", "decode_shapes": "4,256"}
    config = json.loads((tiny_llama / "config.json").read_text())
    sizes = ModelSizes.of(config, "tiny")
    block, passes = pool_bytes(sizes, ShapeSet.parse(*shapes.values()), "float32")
    memory = {"memory_bytes": sizes.weight_bytes("float32") + passes + 9 * block}
    blocks = {"blocks": 17} if named else {}
    cache = configure(spyre=CONTINUOUS | shapes | memory | blocks).cache_config
    assert cache.num_gpu_blocks_override == (17 if named else 9)


def test_a_shape_beyond_the_models_context_is_refused(configure):
    spyre = CONTINUOUS | {"decode_shapes": "4,512"}
    with pytest.raises(ValueError, match=r"shape 4,512 needs a context of 512 .* allows 256"):
        configure(spyre=spyre, max_model_len=256)


def test_prompts_in_one_piece_need_a_chunk_that_takes_them(configure):
    whole = CONTINUOUS | {"prefill_shapes": "512,512"}
    one_piece = {"enable_chunked_prefill": False, "max_num_batched_tokens": 512}
    assert configure(spyre=whole, **one_piece).model_config.max_model_len == 512
    with pytest.raises(ValueError, match=r"longest chunk has 128 of 512 .*prefill shape 512,512"):
        configure(spyre=CONTINUOUS | {"prefill_shapes": "128,512"}, **one_piece)


@pytest.mark.parametrize(
    ("tp", "executor"), [(1, "SpyreExecutor"), (2, "MultiprocessingSpyreExecutor")]
)
def test_the_number_of_ranks_decides_the_executor(configure, tp, executor):
    parallel = configure(tensor_parallel_size=tp).parallel_config
    assert parallel.distributed_executor_backend == f"spyre_bench.plugin.executor.{executor}"


def test_dtype_auto_is_float32_whatever_the_checkpoint_says(configure, tiny_llama, tmp_path):
    import torch

    directory = changed_copy(tiny_llama, tmp_path / "bfloat16", {"dtype": "bfloat16"})
    assert configure(model=str(directory)).model_config.dtype == torch.float32


def test_what_vllm_has_on_by_default_and_static_shapes_cannot_do_is_off(configure, caplog):
    with caplog.at_level("INFO", logger="vllm.spyre_bench.platform"):
        config = configure()
    assert not config.cache_config.enable_prefix_caching
    assert not config.scheduler_config.enable_chunked_prefill
    assert not config.scheduler_config.async_scheduling
    (line,) = [line for line in caplog.messages if "Prefix caching" in line]
    assert line == "Prefix caching and chunked prefill are off: a bucket takes whole prompts."


def test_enforce_eager_means_the_eager_backend(configure):
    config = configure(enforce_eager=True)
    assert config.additional_config["spyre"]["compile_backend"] == "eager"


def test_the_environment_is_read_once_and_travels_with_the_configuration(configure, monkeypatch):
    monkeypatch.setenv("VLLM_SPYRE_WARMUP_PROMPT_LENS", "128")
    config = configure(spyre={}, fail_on_environ_validation=True)
    assert config.additional_config["spyre"]["buckets"] == [[1, 128, 20]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"spyre": {"buckets": [[1, 512, 64]]}}, "needs a context of 576 tokens.*allows 512"),
        ({"max_model_len": 256}, "bucket 2,256,64 needs a context of 320.*allows 256"),
        ({"spyre": {"bucket": []}}, "did you mean 'buckets'"),
        ({"tensor_parallel_size": 5}, r"heads \(12\) must be divisible by .* size \(5\)"),  # vLLM's
        (
            {"tensor_parallel_size": 8, "model": "granite"},
            r"over tp=8 \(24 heads, 12 KV heads, MLP width 384\): use one of 1, 2, 3, 4, 6",
        ),
        ({"tensor_parallel_size": 12}, "tensor_parallel_size=12: use 8 at most, the cards of one"),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size=2: leave it at 1"),
        ({"data_parallel_size": 2}, "data_parallel_size=2: leave it at 1 and start one server"),
        ({"enable_lora": True}, "not support LoRA: leave out --enable-lora"),
        ({"enable_prompt_embeds": True}, "prompt embeds: leave out --enable-prompt-embeds"),
        ({"runner": "pooling"}, "runner 'pooling': serve a model that generates"),
        ({"hf_overrides": {"rope_theta": 1.0}}, "hf_overrides: write the values into"),
        ({"load_format": "dummy"}, "load_format 'dummy'"),
        ({"revision": "v2"}, "revision 'v2': download that revision"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype 'fp8': leave it at auto"),
        ({"quantization": "fp8"}, "quantization 'fp8': serve an unquantised checkpoint"),
        ({"prefill_context_parallel_size": 2}, "context parallelism: leave it at 1"),
        (
            {
                "ec_transfer_config": {
                    "ec_connector": "ECExampleConnector",
                    "ec_role": "ec_consumer",
                }
            },
            "encoder cache connectors: leave out --ec-transfer-config",
        ),
        ({"watermark_config": {"key": 1}}, "watermarking: leave out --watermark-config"),
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
            "speculative decoding: leave out --speculative-config",
        ),
        (
            {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
            "KV connectors: leave out --kv-transfer-config",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_backend_cannot_do_is_refused_at_start(configure, arguments, words):
    with pytest.raises(ValueError, match=words):
        configure(**arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"return_sampling_mask": True, "logprobs_mode": "processed_logprobs"},
            "sampling masks in the output: leave out --return-sampling-mask",
        ),
        ({"enable_trace_replay": True}, "trace replay: leave out --enable-trace-replay"),
    ],
)
def test_what_only_vllms_second_runner_can_do_is_refused_where_vllm_would_let_it_pass(
    configure, monkeypatch, arguments, words
):
    from vllm.config import VllmConfig

    monkeypatch.setattr(VllmConfig, "use_v2_model_runner", True)  # as where Triton is installed
    with pytest.raises(ValueError, match=words):
        configure(**arguments)


def test_vllms_second_runner_is_refused_where_somebody_asks_for_it(configure, monkeypatch):
    from vllm import envs

    monkeypatch.setitem(vars(envs), "VLLM_USE_V2_MODEL_RUNNER", True)  # vLLM keeps what it has read
    with pytest.raises(ValueError, match=r"VLLM_USE_V2_MODEL_RUNNER=1.: unset it, the backend has"):
        configure()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper"},
            "multimodal and encoder-decoder models: serve a text-only decoder model",
        ),
        (
            {
                "quantization_config": {
                    "quant_method": "gptq",
                    "bits": 4,
                    "group_size": 128,
                    "desc_act": False,
                    "sym": True,
                }
            },
            "quantization '.*gptq.*': serve an unquantised checkpoint",
        ),
    ],
    ids=["whisper", "gptq"],
)
def test_a_checkpoint_that_the_backend_cannot_serve_is_refused_at_start(
    configure, tiny_llama, tmp_path, changes, words
):
    with pytest.raises(ValueError, match=words):
        configure(model=str(changed_copy(tiny_llama, tmp_path / "changed", changes)))


def changed_copy(model: Path, directory: Path, changes: dict) -> Path:
    shutil.copytree(model, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))
    return directory


@pytest.mark.parametrize(
    ("prompt", "parameters", "words"),
    [
        (token_prompt(300), {}, "prompt_tokens=300 with max_tokens=16; the nearest buckets"),
        (token_prompt(65), {"max_tokens": 65}, r"prompt_tokens=65 with max_tokens=65.*\[1, 128"),
        (token_prompt(5), {"max_tokens": None, "min_tokens": 65}, "max_tokens=65"),
        (token_prompt(5), {"prompt_logprobs": 1}, "prompt_logprobs=1 .*: leave it out"),
        (
            token_prompt(5),
            {"prompt_logprob_token_ids": [[7]]},
            "prompt_logprob_token_ids=.*leave it",
        ),
        ({"type": "embeds"}, {}, "prompts of type 'embeds': send text or token ids"),
        ({"type": "multimodal"}, {}, "prompts of type 'multimodal'"),
        ({"type": "enc_dec"}, {}, "prompts of type 'enc_dec'"),
    ],
)
def test_what_no_bucket_takes_is_refused_per_request(configure, prompt, parameters, words):
    from vllm import SamplingParams

    configure()
    with pytest.raises(ValueError, match=words):
        SpyrePlatform.validate_request(prompt, SamplingParams(**parameters))


@pytest.mark.parametrize("parameters", [{"max_tokens": 64}, {"max_tokens": None}])
def test_what_a_bucket_takes_is_accepted(configure, parameters):
    from vllm import SamplingParams

    configure()
    SpyrePlatform.validate_request(token_prompt(256), SamplingParams(**parameters))


def test_pooling_is_refused_per_request(configure):
    from vllm import PoolingParams

    configure()
    with pytest.raises(ValueError, match="pooling: ask for generated text"):
        SpyrePlatform.validate_request(token_prompt(5), PoolingParams())


@pytest.mark.parametrize(("prompt_tokens", "allowed"), [(1, 64), (256, 64), (257, 1)])
def test_the_front_end_hears_how_long_an_answer_may_be(configure, prompt_tokens, allowed):
    configure()
    assert SpyrePlatform.get_max_output_tokens(prompt_tokens) == allowed


def test_the_card_computes_in_float16(configure):
    import torch

    config = configure(spyre=TWO | {"compile_backend": "sendnn"})
    assert config.model_config.dtype == torch.float16
