"""vLLM's engine options: which are obeyed, which no engine starts with, and which change nothing.

Every field of vLLM's `AsyncEngineArgs` is in one of the tables: a new one fails a test until
somebody has decided.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.engine.arg_utils import EngineArgs


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


OBEYED = _names(
    """
    model served_model_name tokenizer tokenizer_mode tokenizer_revision skip_tokenizer_init
    trust_remote_code hf_token dtype seed max_model_len disable_sliding_window
    tensor_parallel_size enforce_eager worker_extension_cls numa_bind numa_bind_nodes
    numa_bind_cpus enable_shm_tensor_arena _api_process_count _api_process_rank max_logprobs
    logprobs_mode use_fp64_gumbel logits_processors structured_outputs_config reasoning_parser
    reasoning_parser_plugin reasoning_config generation_config override_generation_config
    scheduling_policy stream_interval max_num_queued_reqs max_num_queued_tokens tokens_only
    renderer_num_workers additional_config disable_log_stats aggregate_engine_logging
    enable_log_requests logging_config log_level log_config_file show_hidden_metrics_for_version
    otlp_traces_endpoint custom_histogram_buckets enable_logging_iteration_details
    shutdown_timeout fail_on_environ_validation
    """
)
"""By this backend, or by vLLM's front end."""

BY_VALUE = _names(
    """
    runner load_format kv_cache_dtype revision hf_overrides quantization quantization_config
    pipeline_parallel_size nnodes prefill_context_parallel_size decode_context_parallel_size
    data_parallel_size enable_prompt_embeds return_sampling_mask enable_trace_replay enable_lora
    speculative_config spec_method spec_model spec_tokens watermark_config kv_transfer_config
    ec_transfer_config
    """
)
"""`unsupported.refuse_config` knows which of their values cannot be, from vLLM's configuration."""

REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "scheduler_cls": ((), "leave it out, policy says who runs together"),
    "worker_cls": (("auto",), "leave it out, the backend has its own"),
    "kv_offloading_size": ((), "leave it out, the cache stays with its engine"),
    "kv_events_config": ((), "leave it out, nobody is told of cached blocks"),
    "enable_sleep_mode": ((), "leave it out and stop the server instead"),
    "profiler_config": ((), "leave it out, pass_log has the seconds of each pass"),
    "weight_transfer_config": ((), "leave it out, compiled passes keep their weights"),
    "diffusion_config": ((), "serve a model that generates text token by token"),
    "enable_return_routed_experts": ((), "leave it out, a pass returns logits only"),
    "aux_output_config": ((), "leave it out, a pass returns logits only"),
    "hf_config_path": ((), "put that config.json into the model's directory"),
    "config_format": (("auto", "hf"), "the model's directory holds a config.json: use hf"),
    "convert": (("auto", "none"), "serve a model that generates text"),
}
"""Name -> values that are no wish for it, and what to do. All others are refused."""

BUCKETS_SAY, SHAPES_SAY = "the buckets say it", "the shapes and rules say it"
WITHOUT_EFFECT: dict[str, frozenset[str]] = {
    why: _names(names)
    for why, names in {
        BUCKETS_SAY: """
            max_num_seqs max_num_batched_tokens max_num_scheduled_tokens max_num_active_seqs
            block_size num_gpu_blocks_override gpu_memory_utilization kv_cache_memory_bytes
            enable_prefix_caching prefix_caching_hash_algo prefix_cache_retention_interval
            prefix_match_unit enable_chunked_prefill long_prefill_token_threshold
            long_prefill_token_threshold_adaptive scheduler_reserve_full_isl
            prefill_schedule_interval watermark disable_hybrid_kv_cache_manager async_scheduling
            disable_cascade_attn kv_cache_dtype_skip_layers kv_sharing_fast_prefill
            swa_bounded_replay kv_offloading_backend
            """,
        "the engine loads the weights of the model's directory its own way": """
            model_weights code_revision download_dir safetensors_load_strategy
            safetensors_prefetch_num_threads safetensors_prefetch_block_size
            model_loader_extra_config ignore_patterns use_tqdm_on_load pt_load_map_location
            max_parallel_loading_workers cpu_offload_gb cpu_offload_params offload_backend
            offload_group_size offload_num_in_group offload_prefetch_step offload_params
            allow_deprecated_quantization
            """,
        "the engine has its own model code and compilation": """
            model_impl model_class_overrides attention_backend attention_config kernel_config
            compilation_config optimization_level performance_mode cudagraph_capture_sizes
            max_cudagraph_capture_size ir_op_priority enable_flashinfer_autotune linear_backend
            moe_backend sparse_indexer_topk_backend gdn_prefill_backend kda_prefill_backend
            kda_decode_backend mamba_config mamba_backend mamba_ssu_algorithm mamba_cache_dtype
            mamba_ssm_cache_dtype mamba_block_size mamba_cache_mode
            mamba_cache_philox_rounds enable_mamba_shared_prefix_checkpoint
            enable_mamba_cache_stochastic_rounding replayssm_buffer_len use_replayssm engram_config
            """,
        "the ranks are processes of this host": """
            distributed_executor_backend master_addr master_port node_rank device_ids
            distributed_timeout_seconds cpu_distributed_timeout_seconds dcp_comm_backend
            dcp_q_replicate dcp_kv_cache_interleave_size cp_kv_cache_interleave_size
            data_parallel_rank data_parallel_start_rank data_parallel_size_local
            data_parallel_address data_parallel_rpc_port data_parallel_hybrid_lb
            data_parallel_external_lb data_parallel_multi_port_external_lb data_parallel_backend
            disable_nccl_for_dp_synchronization disable_custom_all_reduce all2all_backend
            enable_hc_sp enable_expert_parallel enable_batch_sharded_sampling
            enable_ep_weight_filter enable_elastic_ep elastic_ep_max_dp_size enable_dbo ubatch_size
            dbo_decode_token_threshold dbo_prefill_token_threshold dp_sync_interval eplb_config
            enable_eplb expert_placement_strategy ray_workers_use_nsight fault_tolerance_config
            enable_fault_tolerance enable_nccl_comm_suspend enable_cumem_allocator
            sleep_mode_offload_cudagraph sleep_preserve_parameter_names
            """,
        "models of text only are served, without adapters": """
            language_model_only limit_mm_per_prompt enable_mm_embeds interleave_mm_strings
            media_io_kwargs mm_processor_kwargs mm_processor_cache_gb mm_processor_cache_type
            mm_hasher_algorithm mm_shm_cache_max_object_size_mb mm_encoder_only mm_encoder_tp_mode
            mm_encoder_attn_backend mm_encoder_attn_dtype mm_encoder_fp8_scale_path
            mm_encoder_fp8_scale_save_path mm_encoder_fp8_scale_save_margin skip_mm_profiling
            video_pruning_rate video_pruning_method mm_tensor_ipc mm_processor_device
            mm_ipc_gpu_memory_gb mm_device_do_normalize enable_mm_processor_stats
            allowed_local_media_path allowed_media_domains disable_chunked_mm_input
            ec_manager_config io_processor_plugin pooler_config max_loras max_lora_rank
            default_mm_loras fully_sharded_loras max_cpu_loras lora_dtype lora_target_modules
            enable_tower_connector_lora specialize_active_lora enable_mixed_moe_lora_format
            enable_moe_shared_loras max_lora_cls_labels
            """,
        "it measures what is not there": """
            collect_detailed_traces per_request_spec_decode_metrics kv_cache_metrics
            kv_cache_metrics_sample cudagraph_metrics enable_layerwise_nvtx_tracing
            enable_mfu_metrics jit_monitor_mode jit_monitor_verbose
            """,
    }.items()
}
"""Why -> names."""

CONTINUOUS = _names(
    """
    max_num_seqs max_num_batched_tokens num_gpu_blocks_override enable_prefix_caching
    prefix_caching_hash_algo enable_chunked_prefill
    """
)
"""Of those without effect the ones that continuous batching obeys."""


def refuse_options(arguments: EngineArgs) -> None:
    """Raises ValueError, with the option and what to do, for what no engine of ours can be."""
    asked = _asked(arguments)
    for name, (harmless, remedy) in REFUSED.items():
        if name in asked and asked[name] not in harmless:
            raise ValueError(f"the spyre backend does not support {name}={asked[name]!r}: {remedy}")


def without_effect(arguments: EngineArgs, batching: str = "static") -> str | None:
    """One sentence that names the options somebody has set and that change nothing."""
    asked = _asked(arguments)
    if batching == "continuous":
        asked = {name: value for name, value in asked.items() if name not in CONTINUOUS}
    reasons = [
        f"{', '.join(f'{name}={asked[name]}' for name in sorted(names & asked.keys()))} ({why})"
        for why, names in WITHOUT_EFFECT.items()
        if names & asked.keys()
    ]
    if not reasons:
        return None
    sentence = f"Without effect on the spyre backend: {'; '.join(reasons)}."
    return sentence.replace(BUCKETS_SAY, SHAPES_SAY) if batching == "continuous" else sentence


def _asked(arguments: EngineArgs) -> dict[str, Any]:
    """The options that are not at vLLM's default; one that is off is as good as none."""
    asked = {}
    for field in fields(arguments):
        factory = field.default_factory
        default = field.default if factory is MISSING else factory()
        value = getattr(arguments, field.name)
        if value is not None and value != default and (value or default):
            asked[field.name] = value
    return asked
