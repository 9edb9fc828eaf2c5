"""What this backend does not do, refused at start or when asked for: never silently ignored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm import envs

from spyre_bench.model_sizes import LARGEST_TP

if TYPE_CHECKING:
    from vllm.config import VllmConfig

WHOLE = "a bucket computes whole sequences on one device"


CALLS = {
    name: instead
    for instead, names in {
        # vLLM pauses before it asks
        "stop the server instead; wake_up ends the pause": "sleep discard",
        "pass_log has the seconds of each pass": "profile",
        "serve a model that was merged with its adapter": """
            add_lora remove_lora pin_lora list_loras
            """,
        "compiled passes keep the weights they were loaded with: start another server": """
            reload_weights reset_weights update_weights start_weight_update
            start_draft_weight_update finish_weight_update init_weight_transfer_engine
            shutdown_weight_transfer_engine checkpoint_prepare checkpoint_restore
            """,
        "weights are packed at load: look at the files of the model's directory": """
            compute_weight_checksums save_sharded_state apply_model get_model_inspection
            """,
    }.items()
    for name in names.split()
}
"""What vLLM asks of its workers while it serves and ours do not do -> what to do instead."""


def refuse_call(method: Any) -> None:
    """Raises ValueError for such a call."""
    if isinstance(method, str) and method in CALLS:
        raise ValueError(f"the spyre backend does not support {method}: {CALLS[method]}")


def refuse_config(vllm_config: VllmConfig) -> None:
    """Raises ValueError, with the setting and what to do, for an engine we cannot be."""
    for asked, feature, remedy in _of_engine(vllm_config):
        if asked:
            raise ValueError(f"the spyre backend does not support {feature}: {remedy}")


def _of_engine(vllm_config: VllmConfig) -> list[tuple[bool, str, str]]:
    """(is it asked for, its name, what to do)"""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    return [
        (
            parallel.tensor_parallel_size > LARGEST_TP,
            f"tensor_parallel_size={parallel.tensor_parallel_size}",
            f"use {LARGEST_TP} at most, the cards of one cluster",
        ),
        (
            parallel.nnodes > 1,
            f"nnodes={parallel.nnodes}",
            "leave it at 1, the ranks meet in a file of one host",
        ),
        (
            parallel.pipeline_parallel_size > 1,
            f"pipeline_parallel_size={parallel.pipeline_parallel_size}",
            f"leave it at 1, {WHOLE}",
        ),
        (
            parallel.data_parallel_size > 1,
            f"data_parallel_size={parallel.data_parallel_size}",
            "leave it at 1 and start one server for each replica",
        ),
        (
            parallel.prefill_context_parallel_size > 1 or parallel.decode_context_parallel_size > 1,
            "context parallelism",
            f"leave it at 1, {WHOLE}",
        ),
        (
            model.runner_type != "generate",
            f"runner {model.runner_type!r}",
            "serve a model that generates text",
        ),
        (
            model.is_multimodal_model or model.is_encoder_decoder,
            "multimodal and encoder-decoder models",
            "serve a text-only decoder model",
        ),
        (
            vllm_config.cache_config.cache_dtype
            not in ("auto", str(model.dtype).removeprefix("torch.")),
            f"kv_cache_dtype {vllm_config.cache_config.cache_dtype!r}",
            "leave it at auto, the cache has the model's type",
        ),
        (model.enable_prompt_embeds, "prompt embeds", "leave out --enable-prompt-embeds"),
        (
            model.revision is not None,
            f"revision {model.revision!r}",
            "download that revision and name its directory",
        ),
        (
            bool(model.hf_overrides),
            "hf_overrides",
            "write the values into the config.json of a local directory",
        ),
        (
            vllm_config.load_config.load_format not in ("auto", "hf", "safetensors"),
            f"load_format {vllm_config.load_config.load_format!r}",
            "use a directory with safetensors files and load_format auto",
        ),
        (vllm_config.lora_config is not None, "LoRA", "leave out --enable-lora, merge it instead"),
        (
            vllm_config.speculative_config is not None,
            "speculative decoding",
            "leave out --speculative-config, a decode graph computes one token per row",
        ),
        (
            vllm_config.kv_transfer_config is not None,
            "KV connectors",
            "leave out --kv-transfer-config, the cache stays with its engine",
        ),
        (
            vllm_config.ec_transfer_config is not None,
            "encoder cache connectors",
            "leave out --ec-transfer-config",
        ),
        (
            model.return_sampling_mask,
            "sampling masks in the output",
            "leave out --return-sampling-mask",
        ),
        (
            model.enable_trace_replay,
            "trace replay",
            "leave out --enable-trace-replay, each token is sampled",
        ),
        (
            vllm_config.watermark_config is not None,
            "watermarking",
            "leave out --watermark-config",
        ),
        (
            bool(envs.VLLM_USE_V2_MODEL_RUNNER),
            "vLLM's second model runner (VLLM_USE_V2_MODEL_RUNNER=1)",
            "unset it, the backend has a runner of its own",
        ),
    ]


def refuse_quantization(quantization: str) -> None:
    """Apart from the others: vLLM would blame the dtype before it asks about the rest."""
    raise ValueError(
        f"the spyre backend does not support quantization {quantization!r}: serve an unquantised "
        f"checkpoint"
    )
