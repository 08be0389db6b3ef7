"""Settings of the engine and the server. Frozen; unknown keys cannot exist; derived values live where they are used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

DType = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """Bounds on media, checked before bytes are read, decoded or turned into arrays."""

    max_bytes: int = 64 << 20
    max_pixels: int = 100_000_000
    max_audio_s: float = 1800.0
    max_video_s: float = 3600.0
    max_video_frames: int = 64
    max_items: int = 64
    fetch_timeout_s: float = 30.0
    connect_timeout_s: float = 5.0
    allowed_domains: tuple[str, ...] = ()
    """Host names that may be fetched from; empty means any public host."""
    allowed_local_path: Path | None = None
    """Directory below which file:// URLs may be read; None refuses them."""
    allow_private_addresses: bool = False


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What one engine loads and how much it may hold. Counts are tokens unless the name says otherwise."""

    model: str = ""
    """A checkpoint folder or a hub name; empty is the packaged model."""
    device: str = "auto"
    dtype: DType = "auto"
    max_model_len: int | None = None
    block_size: int = 16
    kv_cache_bytes: int | None = None
    gpu_memory_utilization: float = 0.9
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_encoder_rows: int = 4096
    """Media embeddings computed in one step."""
    encoder_cache_bytes: int | None = None
    """Media embeddings kept on the device; by default room for 65,536 of the model's."""
    max_waiting: int = 256
    enable_prefix_caching: bool = True
    init_vision: bool = True
    init_audio: bool = True
    init_tts: bool = False
    """Speech output. There is none yet: true is refused."""
    trust_remote_code: bool = False
    """Accepted because callers of other engines pass it. Nothing that comes with a checkpoint is ever executed."""
    media_threads: int = 0
    """Threads that fetch, decode and preprocess; 0 is half the cores, at least one."""
    limits: MediaLimits = field(default_factory=MediaLimits)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The HTTP side."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    served_model_name: str | tuple[str, ...] | None = None
    """The names clients may use; answers carry the first."""
    max_body_bytes: int = 96 << 20
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    """Host names the server answers to besides loopback ones; empty means any when it is not bound to loopback."""
    insecure: bool = False
    """Allow an address that other machines reach without any key."""
    drain_s: float = 30.0
    """How long running requests may go on after SIGTERM."""
    access_log: bool = True
    """One line per request, without its content."""
    log_format: Literal["plain", "json"] = "plain"
    allow_unknown_fields: bool = False
    """Warn about request fields that are not known, instead of refusing the request."""
    trust_request_mm_kwargs: bool = False
    """Let requests set media and processor options that are not on the safe list."""
    trust_request_chat_template: bool = False
    chat_template: str | None = None
    """A Jinja template (its text) instead of the checkpoint's."""
    chat_template_content_format: Literal["auto", "string", "openai"] = "auto"
    interleave_mm_strings: bool | None = None
    """Where media stand in the text that a template takes as one string: None decides by message, see ChatOptions."""
    default_chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    response_role: str = "assistant"
    enable_auto_tool_choice: bool = False
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    exclude_tools_when_tool_choice_none: bool = False
    enable_force_include_usage: bool = False
    return_tokens_as_token_ids: bool = False
    sse_keep_alive_interval: float = 15.0
    """Seconds of silence after which a stream gets a comment line; 0 is never."""
    max_logprobs: int = 20
    """Most log-probabilities per token a request may ask for; -1 is the whole vocabulary."""
    dev_mode: bool = False
    """Add the routes for developers: /server_info, /is_sleeping, and those that empty caches."""
    enable_responses_store: bool = False
    """Keep answers of /v1/responses in memory, for previous_response_id and background."""
    max_audio_filesize_mb: int = 25
    """Largest file that may be transcribed."""
