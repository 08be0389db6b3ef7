"""Every flag of the configurations: its help, its group, and its names where those are not the field's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sensorium.cli.values import context_length, mebibytes, media_counts, optional_text
from sensorium.config import EngineConfig, MediaLimits, ServerConfig

MODEL, LOAD, CACHE, SCHEDULER = "ModelConfig", "LoadConfig", "CacheConfig", "SchedulerConfig"
MEDIA, FRONTEND, LOGS = "MultiModalConfig", "Frontend", "ObservabilityConfig"
FOREIGN = "NotSupported"


@dataclass(frozen=True, slots=True)
class Flag:
    """names: all of the flag's, where they are not the field's with dashes; !name sets a boolean to the opposite.

    read: instead of the reader of the field's type. by_name: readers of single names among `names`.
    """

    text: str
    names: tuple[str, ...] = ()
    read: Callable[[str], Any] | None = None
    by_name: tuple[tuple[str, Callable[[str], Any]], ...] = ()


def _flag(text: str, *names: str, read: Callable[[str], Any] | None = None) -> Flag:
    return Flag(text, names, read)


ENGINE: dict[str, dict[str, Flag]] = {
    MODEL: {
        "tokenizer": _flag("folder or hub name of the tokenizer; by default the model's own"),
        "tokenizer_revision": _flag("branch, tag or commit of the tokenizer"),
        "hf_overrides": _flag("JSON merged into the checkpoint's config.json"),
        "generation_config": _flag("whose sampling defaults hold: auto (the checkpoint's), vllm or none, or a folder"),
        "override_generation_config": _flag("JSON of sampling defaults that win; max_new_tokens bounds every answer"),
        "runner": _flag("generate answers, or pooling gives embeddings"),
        "convert": _flag("embed makes a generating model give embeddings"),
        "pooler_config": _flag("JSON: pooling_type, normalize, dimensions"),
        "seed": _flag("of the sampler, for requests without their own"),
        "device": _flag("cpu, cuda, cuda:N, or auto: CUDA where there is one"),
        "dtype": _flag("type of weights and activations; auto is the checkpoint's, float32 on a CPU"),
        "max_model_len": _flag("longest prompt plus answer; auto or -1 is the largest that fits", read=context_length),
        "enforce_eager": _flag("neither CUDA graphs nor compilation"),
        "max_logprobs": _flag("most logprobs a request may ask for; -1 is the vocabulary"),
        "logprobs_mode": _flag("before (raw) or after (processed) penalties and temperature"),
        "structured_outputs_config": _flag("JSON: backend, disable_any_whitespace, enable_in_reasoning"),
        "trust_remote_code": _flag("accepted for compatibility; code of a checkpoint is never executed"),
    },
    LOAD: {
        "revision": _flag("branch, tag or commit on the hub"),
        "download_dir": _flag("where downloads are kept"),
        "hf_token": _flag("hub token; without a value, the one of your login", read=optional_text),
        "load_format": _flag("dummy fills weights with random values"),
        "enable_sleep_mode": _flag("with --dev-mode, POST /sleep gives the device back until POST /wake_up"),
        "use_tqdm_on_load": _flag("a progress bar while loading"),
        "init_vision": _flag("load the vision tower"),
        "init_audio": _flag("load the audio tower"),
        "init_tts": _flag(
            "load the speech LM and the codec too; serve and talk do for the packaged model",
            "--init-tts",
            "--speech-output",
        ),
        "speech_slots": _flag("sessions and requests that may speak at once, with --init-tts"),
        "speech_len": _flag("rows of the speech LM's cache of each; about 30 are a second of a turn"),
        "codec": _flag("folder of the codec; auto is the checkpoint's own, none makes no sound"),
        "codec_config": _flag("JSON: n_timesteps, dtype, trimming, graphs, voices, voice_s"),
    },
    CACHE: {
        "block_size": _flag("tokens in one block of the KV cache"),
        "gpu_memory_utilization": _flag(
            "share of the GPU's memory to use", "--gpu-memory-utilization", "--device-memory-utilization"
        ),
        "kv_cache_bytes": _flag(
            "bytes for the KV cache, such as 2G; by default what is left", "--kv-cache-memory-bytes", "--kv-cache-bytes"
        ),
        "num_gpu_blocks_override": _flag("so many KV blocks, whatever the memory plan says"),
        "enable_prefix_caching": _flag("reuse the KV blocks of equal prompt beginnings"),
        "encoder_cache_bytes": _flag("bytes for embeddings of media seen before"),
        "encoder_cache_tokens": _flag("the same as a number of embeddings; by default 65,536"),
    },
    SCHEDULER: {
        "max_num_seqs": _flag("sequences in one step"),
        "max_sessions": _flag("live sessions open at once; one more is refused"),
        "session_policies": _flag("JSON: name to module:Class of a policy of your own for sessions"),
        "max_num_batched_tokens": _flag("tokens in one step"),
        "enable_chunked_prefill": _flag("split prompts over steps"),
        "long_prefill_token_threshold": _flag("most prompt tokens of one request in a step while others wait"),
        "decode_slowdown": _flag("times as long a step may take that decodes, for prompts beside; 0 is no bound"),
        "disable_chunked_mm_input": _flag("never split the positions of one media item over steps"),
        "scheduling_policy": _flag("fcfs, or priority: the request's number, lower first"),
        "stream_interval": _flag("least tokens of a piece of a stream but the first and the last"),
        "max_encoder_rows": _flag("media embeddings computed in one step"),
        "max_waiting": _flag("requests that may wait; one more is refused"),
        "max_num_queued_reqs": _flag("requests in flight; by default max-num-seqs plus max-waiting"),
        "max_num_queued_tokens": _flag("prompt tokens that may wait to be computed"),
    },
    MEDIA: {
        "limit_mm_per_prompt": _flag("most items of a modality in one prompt: '{\"image\": 2}'", read=media_counts),
        "media_io_kwargs": _flag("JSON: modality to options of loading, such as num_frames"),
        "mm_processor_kwargs": _flag("JSON: options of the processor, such as max_slice_nums"),
        "mm_processor_cache_gb": _flag("GiB of preprocessed media to keep; 0 is none"),
        "enable_mm_embeds": _flag("accept media as embeddings"),
        "language_model_only": _flag("text only: no tower is loaded"),
        "media_threads": _flag(
            "workers that decode and preprocess; 0 is half the cores",
            *("--preprocess-workers", "--renderer-num-workers", "--media-threads"),
        ),
        "video_decode_workers": _flag("most videos decoded at once"),
    },
    LOGS: {
        "disable_log_stats": _flag("no throughput line every 10 s, no numbers of the engine in /metrics"),
        "enable_log_requests": _flag("one line per request with its parameters, never its content"),
        "enable_log_outputs": _flag("with --enable-log-requests, one line per answer with all of its text"),
        "max_log_len": _flag("most characters and token ids of an answer that are logged"),
    },
}

SERVER: dict[str, dict[str, Flag]] = {
    FRONTEND: {
        "host": _flag("address to listen on; 0.0.0.0 is every interface"),
        "port": _flag("port to listen on; 0 picks a free one"),
        "api_keys": _flag("keys that clients may present", "--api-key"),
        "api_key_file": _flag("file with one key a line"),
        "api_key_exempt": _flag("paths that need no key"),
        "insecure": _flag("no key on an address that other machines reach"),
        "served_model_name": _flag("names that clients may use; by default the model as given"),
        "chat_template": _flag("Jinja file, or a template in one line, in place of the checkpoint's"),
        "chat_template_content_format": _flag("content as the template wants it; auto looks at the template"),
        "default_chat_template_kwargs": _flag("JSON of template variables that requests may override"),
        "interleave_mm_strings": _flag("keep media where they stand in the text"),
        "response_role": _flag("role of the messages that are generated"),
        "trust_request_chat_template": _flag("let requests bring a chat template"),
        "trust_request_mm_kwargs": _flag("let requests set media options beyond the safe ones"),
        "allow_unknown_fields": _flag("warn about unknown request fields in place of refusing them"),
        "enable_auto_tool_choice": _flag("let the model choose whether to call a tool; needs --tool-call-parser"),
        "tool_call_parser": _flag("how the model writes tool calls, such as hermes"),
        "reasoning_parser": _flag("how the model writes its reasoning, such as qwen3"),
        "exclude_tools_when_tool_choice_none": _flag("leave tools out of the prompt when tool_choice is none"),
        "enable_prompt_tokens_details": _flag("usage.prompt_tokens_details in answers"),
        "enable_force_include_usage": _flag("usage with every answer and every chunk"),
        "return_tokens_as_token_ids": _flag("write tokens in logprobs as token_id:N"),
        "sse_keep_alive_interval": _flag("seconds of silence before a comment line in a stream; 0 is never"),
        "enable_request_id_headers": _flag("X-Request-Id on every answer"),
        "fingerprint_mode": _flag("what system_fingerprint shows"),
        "fingerprint_value": _flag("it, with --fingerprint-mode custom"),
        "disable_fastapi_docs": _flag("no /openapi.json, /docs and /redoc"),
        "max_body_bytes": Flag(
            "largest request body, in MiB or bytes; 0 is no bound",
            ("--max-request-body-mb", "--max-body-bytes"),
            by_name=(("--max-request-body-mb", mebibytes),),
        ),
        "max_json_bytes": _flag("memory, roughly, that the JSON of a request body may take once decoded"),
        "engine_process": _flag("run the engine in a process of its own, started again when it dies or hangs"),
        "engine_hang_s": _flag("seconds without an ended step after which that process is killed; 0 is never"),
        "drain_s": _flag("seconds that running requests may go on after SIGTERM", "--shutdown-timeout", "--drain-s"),
        "root_path": _flag("path prefix that a proxy in front adds"),
        "ssl_keyfile": _flag("TLS key"),
        "ssl_certfile": _flag("TLS certificate"),
        "ssl_ca_certs": _flag("certificates that clients' own must lead to"),
        "allowed_origins": _flag("web origins whose pages may call the API; * is every one"),
        "allowed_methods": _flag("methods for them"),
        "allowed_headers": _flag("headers for them"),
        "allow_credentials": _flag("cookies and the like from them"),
        "allowed_hosts": _flag("host names to answer to besides loopback ones"),
        "dev_mode": _flag("routes for developers: /server_info, /reset_prefix_cache and the like"),
        "enable_responses_store": _flag("keep answers of /v1/responses in memory"),
        "vad": _flag("what hears turns end: energy, the path of Silero's .onnx file, or module:Class of your own"),
        "max_realtime_sessions": _flag("most WebSockets of /v1/realtime at once"),
        "max_sessions_per_key": _flag("most sessions of one key at once; by default 16 where there are several keys"),
        "live_restart": _flag("what live sessions do when the engine is lost: go on in the next one, or end"),
        "live_max_s": _flag("seconds that a live session may last"),
        "live_max_len": _flag("tokens that a live session holds at most; each keeps so many of the KV cache"),
        "max_live_queue": _flag("live sessions that may wait for one of the --max-sessions places"),
        "max_voices": _flag("recordings that clients may upload as voices"),
        "voice_folder": _flag("folder where those are kept, and whose other WAVE files are voices for everybody"),
        "max_audio_filesize_mb": _flag("largest file that may be transcribed, in MiB"),
    },
    LOGS: {
        "access_log": _flag("one line per request", "--access-log", "!--disable-uvicorn-access-log"),
        "disable_access_log_for_endpoints": _flag("paths without access log lines"),
        "log_error_stack": _flag("tracebacks of refused requests"),
        "log_level": _flag("least severe line to log"),
        "uvicorn_log_level": _flag("the same for the HTTP library"),
        "log_format": _flag("log lines as text or as JSON objects"),
        "enable_per_request_metrics": _flag("in answers of one choice, how long it took"),
        "otlp_traces_endpoint": _flag("send spans there by OTLP over HTTP; needs the extra `tracing`"),
        "metrics_compat": _flag("export metrics under vllm: too"),
        "custom_histogram_buckets": _flag("JSON: histogram name to list of bucket bounds"),
    },
}

LIMITS: dict[str, dict[str, Flag]] = {
    MEDIA: {
        "max_bytes": _flag("largest file", "--max-media-bytes"),
        "max_image_bytes": _flag("largest picture file"),
        "max_audio_bytes": _flag("largest recording's file"),
        "max_request_download_bytes": _flag("all that a request may fetch", "--max-media-request-download-bytes"),
        "max_pixels": _flag("largest picture, before it is decoded", "--max-image-pixels"),
        "max_audio_s": _flag("longest recording in seconds"),
        "max_video_s": _flag("longest video in seconds"),
        "max_video_frames": _flag("frames sampled from one video"),
        "max_items": _flag("media in one request", "--max-media-items"),
        "max_request_bytes": _flag("all media of a request once preprocessed, in bytes", "--max-media-request-bytes"),
        "max_embeds_bytes": _flag("embeddings of one item, in bytes as float32"),
        "decode_timeout_s": _flag("seconds that decoding one item may take", "--media-decode-timeout-s"),
        "video_decode_timeout_s": _flag("the same for a video"),
        "decode_memory_bytes": _flag("memory that decoding one item may take", "--media-decode-memory-bytes"),
        "fetch_timeout_s": _flag("seconds that fetching one URL may take", "--media-fetch-timeout-s"),
        "connect_timeout_s": _flag("seconds that connecting may take", "--media-connect-timeout-s"),
        "allowed_domains": _flag("hosts to fetch media from; by default any public one", "--allowed-media-domains"),
        "allowed_local_path": _flag("folder below which file:// URLs may be read", "--allowed-local-media-path"),
        "allow_private_addresses": _flag(
            "fetch media from private addresses too", "--allow-private-media-addresses", "!--block-private-media-ips"
        ),
    },
}

FLAGS: dict[type, dict[str, dict[str, Flag]]] = {EngineConfig: ENGINE, ServerConfig: SERVER, MediaLimits: LIMITS}

COMMON = (
    "api_keys", "host", "port", "served_model_name", "device", "dtype", "max_model_len", "max_num_seqs",
    "gpu_memory_utilization", "limit_mm_per_prompt", "allowed_local_path", "allowed_domains", "trust_remote_code",
)  # fmt: skip
"""Fields that the short help shows."""

SHORT = {
    "-tp": "--tensor-parallel-size", "-pp": "--pipeline-parallel-size", "-dp": "--data-parallel-size",
    "-ep": "--enable-expert-parallel", "-asc": "--api-server-count", "-q": "--quantization",
    "-cc": "--compilation-config", "-sc": "--speculative-config", "-O": "--optimization-level",
    "-n": "--nnodes", "-r": "--node-rank", "-dcp": "--decode-context-parallel-size",
    "-pcp": "--prefill-context-parallel-size", "-dpn": "--data-parallel-rank", "-dpr": "--data-parallel-start-rank",
    "-dpl": "--data-parallel-size-local", "-dpa": "--data-parallel-address", "-dpp": "--data-parallel-rpc-port",
    "-dpb": "--data-parallel-backend", "-dph": "--data-parallel-hybrid-lb", "-dpe": "--data-parallel-external-lb",
    "-dpm": "--data-parallel-multi-port-external-lb", "-dc": "--diffusion-config", "-ac": "--attention-config",
}  # fmt: skip
"""vLLM's short forms."""
