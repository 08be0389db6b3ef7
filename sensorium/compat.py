"""vLLM's arguments that are no settings of sensorium: those refused, those without effect, those that have moved.

One table for the command line and for LLM(...). Source of names and defaults: vLLM 0.33, `engine/arg_utils.py` and
`entrypoints/cli_args.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sensorium.config import FIT
from sensorium.errors import ConfigError

Kind = Literal["bool", "int", "float", "str", "json", "graphs", "list", "int_list"]


@dataclass(frozen=True, slots=True)
class Foreign:
    """An argument without a setting. `why` says what to do in its place; empty is for one that changes nothing."""

    kind: Kind
    default: Any = None
    why: str = ""
    same: tuple[Any, ...] = ()
    """Further values that ask for what sensorium does anyway."""


_ONE_DEVICE = "this version runs a model on one device; start one server per device behind a load balancer"
_NO_LORA = "adapters are not supported; merge the adapter into the weights before serving"
_TRAINED = "weights are served in 16 or 32 bits; use a checkpoint that is not quantised"

REFUSED: dict[str, Foreign] = {
    "tensor_parallel_size": Foreign("int", 1, _ONE_DEVICE),
    "pipeline_parallel_size": Foreign("int", 1, _ONE_DEVICE),
    "data_parallel_size": Foreign("int", 1, _ONE_DEVICE),
    "enable_expert_parallel": Foreign("bool", False, _ONE_DEVICE),
    "distributed_executor_backend": Foreign("str", None, _ONE_DEVICE, ("uni", "mp")),
    "api_server_count": Foreign("int", None, "one process takes the requests; leave it out", (1,)),
    "quantization": Foreign("str", None, _TRAINED, ("none", "None")),
    "kv_cache_dtype": Foreign("str", "auto", "the KV cache has the model's own type; leave it at auto"),
    "enable_lora": Foreign("bool", False, _NO_LORA),
    "lora_modules": Foreign("list", None, _NO_LORA),
    "default_mm_loras": Foreign("json", None, _NO_LORA),
    "speculative_config": Foreign("json", None, "speculative decoding is not supported; leave it out"),
    "enable_prompt_embeds": Foreign("bool", False, "prompts as embeddings are not supported; send text or media"),
    "skip_tokenizer_init": Foreign("bool", False, "the tokenizer is always loaded; leave it out"),
    "tokenizer_mode": Foreign("str", "auto", "only tokenizer.json files are read; leave it at auto", ("hf",)),
    "cpu_offload_gb": Foreign("float", 0, "weights stay on the device; use a larger one, or a smaller model"),
    "profiler_config": Foreign("json", None, "profile with `sensorium bench` or a profiler of your own"),
    "video_pruning_rate": Foreign("float", None, "video tokens are not pruned; lower num_frames or fps", (0, 0.0)),
    "mm_processor_device": Foreign("str", "auto", "media is preprocessed on the CPU; leave it at auto", ("cpu",)),
    "mm_processor_cache_type": Foreign("str", "lru", "there is one cache, of type lru"),
    "attention_backend": Foreign(
        "str", None, "the fastest that the device supports is taken; `sensorium doctor` tells"
    ),
    "mm_encoder_attn_backend": Foreign("str", None, "the towers choose their kernels themselves; leave it out"),
    "enable_logging_iteration_details": Foreign("bool", False, "steps are not logged; /metrics counts them"),
    "middleware": Foreign("list", None, "no foreign code is loaded; put a proxy in front", ((),)),
    "uds": Foreign("str", None, "the server listens on TCP; bind it to 127.0.0.1"),
    "ssl_cert_reqs": Foreign("int", 0, "give ssl_ca_certs: clients must then present a certificate"),
    "ssl_ciphers": Foreign("str", None, "the ciphers are those of Python's default context; put a proxy in front"),
}
"""Set to anything but its default or what is the same, each of these stops the start."""

NO_EFFECT: dict[str, Foreign] = {
    # How fast, not what: the answers are the same.
    "async_scheduling": Foreign("bool"),
    "cudagraph_capture_sizes": Foreign("int_list"),
    "mm_encoder_tp_mode": Foreign("str", "weights"),
    "mm_hasher_algorithm": Foreign("str", "blake3"),
    "mm_tensor_ipc": Foreign("str", "direct_rpc"),
    "prefix_caching_hash_algo": Foreign("str", "sha256"),
    # What they ask for is always so.
    "enable_server_load_tracking": Foreign("bool", False),
    "skip_mm_profiling": Foreign("bool", False),
    "max_loras": Foreign("int", 1),
    "max_lora_rank": Foreign("int", 16),
    "max_cpu_loras": Foreign("int"),
}


def _add(kind: Kind, names: str, **defaults: Any) -> None:
    empty: Any = {"bool": False, "json": {}, "list": ()}.get(kind)
    NO_EFFECT.update({name: Foreign(kind, empty) for name in names.split()})
    NO_EFFECT.update({name: Foreign(kind, default) for name, default in defaults.items()})


_add(
    "bool",
    "allow_deprecated_quantization enable_return_routed_experts return_sampling_mask use_fp64_gumbel "
    "enable_trace_replay disable_sliding_window disable_cascade_attn sleep_mode_offload_cudagraph "
    "enable_cumem_allocator enable_nccl_comm_suspend enable_mamba_cache_stochastic_rounding numa_bind dcp_q_replicate "
    "data_parallel_hybrid_lb data_parallel_external_lb data_parallel_multi_port_external_lb enable_hc_sp "
    "enable_batch_sharded_sampling enable_ep_weight_filter enable_dbo enable_shm_tensor_arena enable_elastic_ep "
    "disable_nccl_for_dp_synchronization enable_eplb ray_workers_use_nsight disable_custom_all_reduce "
    "enable_fault_tolerance kv_sharing_fast_prefill enable_mamba_shared_prefix_checkpoint use_replayssm "
    "mm_encoder_only mm_device_do_normalize enable_tower_connector_lora fully_sharded_loras specialize_active_lora "
    "enable_mixed_moe_lora_format enable_moe_shared_loras kv_cache_metrics cudagraph_metrics "
    "enable_layerwise_nvtx_tracing enable_mfu_metrics jit_monitor_verbose long_prefill_token_threshold_adaptive "
    "disable_hybrid_kv_cache_manager enable_flashinfer_autotune monokernel aggregate_engine_logging "
    "fail_on_environ_validation enable_tokenizer_info_endpoint tokens_only enable_scale_out enable_ssl_refresh "
    "enable_offline_docs headless grpc",
    swa_bounded_replay=True,
    scheduler_reserve_full_isl=True,
    enable_log_deltas=True,
    cohere_is_reasoning_model=True,
    enable_flash_late_interaction=True,
)
_add(
    "json",
    "quantization_config model_class_overrides model_loader_extra_config eplb_config fault_tolerance_config "
    "ir_op_priority watermark_config diffusion_config kv_transfer_config kv_events_config ec_transfer_config "
    "ec_manager_config attention_config engram_config reasoning_config kernel_config additional_config "
    "aux_output_config watchdog_config weight_transfer_config reasoning_effort_map",
)
_add(
    "list",
    "sleep_preserve_parameter_names logits_processors numa_bind_nodes numa_bind_cpus kv_cache_dtype_skip_layers "
    "cpu_offload_params offload_params lora_target_modules collect_detailed_traces",
    ignore_patterns=("original/**/*",),
)
_add(
    "int",
    "safetensors_prefetch_num_threads safetensors_prefetch_block_size distributed_timeout_seconds "
    "cpu_distributed_timeout_seconds cp_kv_cache_interleave_size data_parallel_rank data_parallel_start_rank "
    "data_parallel_size_local data_parallel_rpc_port elastic_ep_max_dp_size max_parallel_loading_workers "
    "mamba_block_size prefix_match_unit max_lora_cls_labels max_num_scheduled_tokens max_num_active_seqs "
    "max_cudagraph_capture_size spec_tokens grpc_port",
    mamba_cache_philox_rounds=0, master_port=29501, nnodes=1, node_rank=0, decode_context_parallel_size=1,
    dcp_kv_cache_interleave_size=1, prefill_context_parallel_size=1, ubatch_size=0, dbo_decode_token_threshold=32,
    dp_sync_interval=16, dbo_prefill_token_threshold=512, prefix_cache_retention_interval=0, replayssm_buffer_len=16,
    offload_group_size=0, offload_num_in_group=1, offload_prefetch_step=1, mm_shm_cache_max_object_size_mb=128,
    prefill_schedule_interval=1, data_parallel_supervisor_port=9256, dp_supervisor_probe_failure_threshold=3,
    h11_max_incomplete_event_size=4194304, h11_max_header_count=256,
)  # fmt: skip
_add(
    "float",
    "kv_offloading_size",
    mm_encoder_fp8_scale_save_margin=1.5,
    mm_ipc_gpu_memory_gb=0,
    kv_cache_metrics_sample=0.01,
    watermark=0.0,
    dp_supervisor_probe_interval_s=5.0,
    dp_supervisor_probe_timeout_s=5.0,
)
_add(
    "str",
    "hf_config_path code_revision io_processor_plugin safetensors_load_strategy mamba_ssu_algorithm "
    "reasoning_parser_plugin dcp_comm_backend data_parallel_address worker_extension_cls mamba_cache_mode "
    "mm_encoder_attn_dtype mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_path logging_config log_config_file "
    "show_hidden_metrics_for_version scheduler_cls moe_backend linear_backend sparse_indexer_topk_backend spec_method "
    "spec_model gdn_prefill_backend kda_prefill_backend kda_decode_backend tool_parser_plugin tool_strict_level "
    "tool_server guided_decoding_backend",
    config_format="auto", sleep_mode_backend="cumem", model_impl="auto", pt_load_map_location="cpu",
    mamba_backend="triton", master_addr="127.0.0.1", data_parallel_backend="mp",
    all2all_backend="allgather_reducescatter", expert_placement_strategy="linear", worker_cls="auto",
    mamba_cache_dtype="auto", mamba_ssm_cache_dtype="auto", kv_offloading_backend="native", offload_backend="auto",
    video_pruning_method="evs", lora_dtype="auto", per_request_spec_decode_metrics="none", jit_monitor_mode="warn",
    performance_mode="balanced", cohere_format="cmd4", anthropic_disabled_thinking_effort="auto",
)  # fmt: skip

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
TASKS = {"generate": "generate", "embed": "pooling", "classify": "pooling", "score": "pooling", "reward": "pooling"}

Warn = Callable[[str], None]


def translate(given: Mapping[str, Any], warn: Warn) -> dict[str, Any]:
    """Arguments as their callers name them -> fields of the configurations; names that are settings pass unchanged.

    Raises ConfigError for what is refused, naming it. warn is told what is retired or has no effect.
    """
    fields: dict[str, Any] = {}
    for name, value in given.items():
        if name in REFUSED:
            _refuse(name, value)
        elif name in NO_EFFECT:
            _pass_over(name, value, warn)
        elif name in MOVED:
            fields.update(MOVED[name](value, warn))
        else:
            fields[name] = value
    return fields


def _refuse(name: str, value: Any) -> None:
    foreign = REFUSED[name]
    if not _is_default(foreign, value):
        raise ConfigError(f"{name}={value!r} is not supported: {foreign.why}", param=name)


def _pass_over(name: str, value: Any, warn: Warn) -> None:
    if name == "max_lora_rank" and value not in LORA_RANKS:
        raise ConfigError(f"max_lora_rank must be one of {', '.join(map(str, LORA_RANKS))}, not {value}", param=name)
    if not _is_default(NO_EFFECT[name], value):
        warn(f"{name} is accepted, no effect in sensorium")


def _is_default(foreign: Foreign, value: Any) -> bool:
    value = tuple(value) if isinstance(value, list) else value  # pyright: ignore[reportUnknownArgumentType]
    return value is None or value == foreign.default or value in foreign.same


def _no_processor_cache(value: Any, warn: Warn) -> dict[str, Any]:
    warn("disable_mm_preprocessor_cache is retired; mm_processor_cache_gb=0 says the same")
    return {"mm_processor_cache_gb": 0.0} if value else {}


def _task(value: Any, warn: Warn) -> dict[str, Any]:
    if value in (None, "auto"):
        return {}
    if value not in TASKS:
        raise ConfigError(f"task must be one of {', '.join(TASKS)}, not {value!r}", param="task")
    warn(f"task is retired; runner={TASKS[value]} says the same")
    return {"runner": TASKS[value]}


def _device_ids(value: Any, warn: Warn) -> dict[str, Any]:
    ids = [part for part in str(value).split(",") if part.strip()]
    if len(ids) != 1 or not ids[0].strip().isdigit():
        raise ConfigError(f"device_ids={value!r} is not supported: {_ONE_DEVICE}", param="device_ids")
    return {"device": f"cuda:{int(ids[0])}"}


def _context(value: Any, warn: Warn) -> dict[str, Any]:
    return {"max_model_len": FIT if value == "auto" else value}


def _optimization(value: Any, warn: Warn) -> dict[str, Any]:
    level = str(value).removeprefix("O")
    if level not in ("0", "1", "2", "3"):
        raise ConfigError(f"optimization_level must be 0 to 3, not {value!r}", param="optimization_level")
    if level in ("1", "3"):
        warn(f"optimization_level={level} is accepted, no effect in sensorium: it is 0 (enforce_eager) or 2")
    return {"enforce_eager": True} if level == "0" else {}


_NO_GRAPHS = {"mode": (0, "NONE"), "level": (0,), "cudagraph_mode": (0, "NONE"), "use_cudagraph": (False,)}
"""Keys of compilation_config, and their values that mean enforce_eager."""


def _compilation(value: Any, warn: Warn) -> dict[str, Any]:
    given: Mapping[str, Any] = value if isinstance(value, Mapping) else {"mode": value}  # pyright: ignore
    eager = [key for key, level in given.items() if key in _NO_GRAPHS and level in _NO_GRAPHS[key]]
    idle = [key for key in given if key not in eager]
    if idle:
        warn(f"compilation_config.{min(map(str, idle))} is accepted, no effect in sensorium")
    return {"enforce_eager": True} if eager else {}


MOVED: dict[str, Callable[[Any, Warn], dict[str, Any]]] = {
    "disable_mm_preprocessor_cache": _no_processor_cache,
    "disable_mm_processor_cache": _no_processor_cache,
    "task": _task,
    "device_ids": _device_ids,
    "optimization_level": _optimization,
    "compilation_config": _compilation,
    "max_model_len": _context,
    "kv_cache_memory_bytes": lambda value, warn: {"kv_cache_bytes": value},
    "device_memory_utilization": lambda value, warn: {"gpu_memory_utilization": value},
    "speech_output": lambda value, warn: {"init_tts": bool(value)},
    "renderer_num_workers": lambda value, warn: {"media_threads": value},
    "preprocess_workers": lambda value, warn: {"media_threads": value},
}
"""Argument -> the fields it sets."""
