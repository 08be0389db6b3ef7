"""Settings of the engine and the server. Frozen; unknown keys cannot exist; derived values live where they are used.

Names and meanings follow vLLM's arguments where it has them. A value out of range raises ConfigError naming its field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sensorium.errors import ConfigError

DType = Literal["auto", "half", "float16", "bfloat16", "float", "float32"]
"""half and float are float16 and float32."""
LogprobsMode = Literal["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"]
LogLevel = Literal["critical", "error", "warning", "info", "debug", "trace"]

FIT = -1
"""max_model_len: the largest that fits."""


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """Bounds on media, checked before bytes are read, decoded or turned into arrays."""

    max_bytes: int = 128 << 20
    """Any one file, encoded; pictures and recordings have lower bounds of their own."""
    max_image_bytes: int = 20 << 20
    max_audio_bytes: int = 32 << 20
    max_request_download_bytes: int = 160 << 20
    """All that a request may fetch from the web."""
    max_pixels: int = 50_000_000
    max_audio_s: float = 600.0
    max_video_s: float = 3600.0
    max_video_frames: int = 768
    max_items: int = 64
    max_request_bytes: int = 512 << 20
    """All media of a request once preprocessed."""
    max_embeds_bytes: int = 512 << 20
    """Embeddings of one item, as float32."""
    decode_timeout_s: float = 10.0
    video_decode_timeout_s: float = 60.0
    decode_memory_bytes: int = 1 << 30
    """What decoding and preprocessing one item may take beside its own bytes."""
    fetch_timeout_s: float | None = None
    """The first attempt to fetch one URL, of any kind; None is what the environment says for its kind."""
    connect_timeout_s: float = 3.0
    allowed_domains: tuple[str, ...] = ()
    """Hosts that may be fetched from; empty means any public one. Names, .suffixes, addresses, networks, or * for any
    public host, each with a :port or without. Those named, but for suffixes, may be private."""
    allowed_local_path: Path | None = None
    """Directory below which file:// URLs may be read; None refuses them."""
    allow_private_addresses: bool = False

    def __post_init__(self) -> None:
        _check_ranges(self, {"max_video_frames": (1, None), "fetch_timeout_s": (0, None)})


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What one engine loads and how much it may hold. Counts are tokens unless the name says otherwise."""

    model: str = ""
    """A checkpoint folder or a hub name; empty is the packaged model."""
    tokenizer: str = ""
    """Folder or hub name the tokenizer is read from; empty is the model's own."""
    tokenizer_revision: str | None = None
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    download_dir: str | None = None
    """Where downloads are kept; None is the hub's own cache."""
    hf_token: str | bool | None = None
    """Hub token; True is the one of the login, None that one where there is one."""
    hf_overrides: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Merged into the checkpoint's config.json, deeply."""
    load_format: Literal["auto", "safetensors", "dummy"] = "auto"
    """dummy fills the weights with random values and reads none."""
    generation_config: str = "auto"
    """Whose sampling defaults hold: auto is the checkpoint's generation_config.json, vllm or none are neutral values,
    anything else is a folder with such a file."""
    override_generation_config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Sampling defaults that win over the file. max_new_tokens also bounds every answer."""
    runner: Literal["auto", "generate", "pooling"] = "auto"
    """pooling answers with embeddings and generates nothing; auto is generate for the families there are."""
    convert: Literal["auto", "none", "embed"] = "auto"
    """How a generating model becomes a pooling one: embed takes its last hidden state; auto is embed with the pooling
    runner, else none."""
    pooler_config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Keys: pooling_type (LAST, MEAN, CLS, ALL), normalize, dimensions."""
    seed: int = 0
    """Of the sampler, for requests without a seed of their own."""
    device: str = "auto"
    dtype: DType = "auto"
    max_model_len: int | None = None
    """Longest prompt plus answer. None is the checkpoint's; FIT (-1) the largest that fits the memory."""
    enforce_eager: bool = False
    """Neither CUDA graphs nor compilation."""
    block_size: int = 16
    kv_cache_bytes: int | None = None
    gpu_memory_utilization: float = 0.92
    num_gpu_blocks_override: int | None = None
    """So many KV blocks, whatever the memory plan says."""
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    enable_chunked_prefill: bool = True
    """Split prompts over steps. Without it max_num_batched_tokens must hold the longest prompt."""
    long_prefill_token_threshold: int = 0
    """Most prompt tokens one request computes in a step while others wait; 0 is no such bound."""
    decode_slowdown: float = 0.0
    """How many times as long a step with decodes may take for the prompts beside them, by measurement; 0 is no bound.

    Without chunked prefill, or with disable_chunked_mm_input, there is none.
    """
    disable_chunked_mm_input: bool = False
    """Compute a media item's positions in one step, never over several."""
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    """priority serves lower Request.priority first; with fcfs a priority other than 0 is refused."""
    stream_interval: int = 1
    """Least tokens of a piece of a stream, but of its first and its last; a request may ask for more."""
    max_encoder_rows: int = 4096
    """Media embeddings computed in one step."""
    encoder_cache_bytes: int | None = None
    """Media embeddings kept on the device; by default room for 65,536 of the model's."""
    encoder_cache_tokens: int | None = None
    """The same as a number of embeddings; give one of the two."""
    max_waiting: int = 256
    max_num_queued_reqs: int | None = None
    """Requests accepted and not ended; one more is refused. None is max_num_seqs + max_waiting."""
    max_num_queued_tokens: int | None = None
    """Prompt tokens waiting to be computed; a request that finds more is refused. None is no bound."""
    max_sessions: int = 16
    """Live sessions open at once; one more is refused. Each keeps its place in the KV cache."""
    session_policies: Mapping[str, str] = field(default_factory=dict[str, str])
    """Name -> module:Class of a SessionPolicy of your own, imported where the engine runs."""
    enable_prefix_caching: bool = True
    max_logprobs: int = 20
    """Most logprobs or prompt_logprobs a request may ask for; -1 is the vocabulary."""
    logprobs_mode: LogprobsMode = "raw_logprobs"
    """Before (raw) or after (processed) penalties, bias and temperature; as log-probabilities or logits."""
    structured_outputs_config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Keys: backend, disable_any_whitespace, disable_additional_properties, enable_in_reasoning."""
    limit_mm_per_prompt: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Modality -> most items in one prompt, or {"count": n} with width, height, num_frames or length of the largest. A
    modality left out has the default; 0 switches it off."""
    media_io_kwargs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, "Mapping[str, Any]"])
    """Modality -> defaults of the loading options; a request's own are merged over them."""
    mm_processor_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Defaults of the processor's options; a request's own are merged over them."""
    mm_processor_cache_gb: float = 4.0
    """GiB of preprocessed media kept for reuse; 0 keeps none."""
    enable_mm_embeds: bool | None = None
    """Accept media as embeddings. None is: in this process yes, over HTTP no."""
    language_model_only: bool = False
    """Text only: all media limits are 0 and no tower is loaded."""
    init_vision: bool = True
    init_audio: bool = True
    init_tts: bool = False
    """Load the speech LM too, and the codec that makes sound of its codes."""
    speech_slots: int = 8
    """Sessions and requests that may speak at once, each with its own KV cache of the speech LM; with init_tts."""
    speech_len: int | None = None
    """Rows of that cache, about 30 a second of a turn; None is the speech LM's own limit."""
    codec: str = "auto"
    """The codec's folder. auto is assets/token2wav of the checkpoint where there is one; none loads none: speech then
    ends in codes."""
    codec_config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Keys: n_timesteps (10), dtype (float32, float16, bfloat16), trimming (reference, voice, packed), graphs, and what
    memory is kept ready for: voices (4) of voice_s (10) seconds."""
    trust_remote_code: bool = False
    """Accepted because callers of other engines pass it. Nothing that comes with a checkpoint is ever executed."""
    media_threads: int = 0
    """Workers that fetch, decode and preprocess; 0 is half the cores, at least one."""
    video_decode_workers: int = 2
    """Most videos decoded at once, so that they never hold up pictures and text."""
    enable_sleep_mode: bool = False
    """The device may be given back for a while: LLM.sleep, and with ServerConfig.dev_mode POST /sleep."""
    use_tqdm_on_load: bool = True
    """A progress bar while loading, on terminals."""
    disable_log_stats: bool = False
    """No throughput line every 10 s, and no numbers of the engine in /metrics."""
    enable_log_requests: bool = False
    enable_log_outputs: bool = False
    """Log what is generated, too: the only setting that puts what was said into the log."""
    max_log_len: int | None = None
    """Characters and token ids of an answer that are logged; None is all of them."""
    """One line per request with its parameters, never its content."""
    limits: MediaLimits = field(default_factory=MediaLimits)

    def __post_init__(self) -> None:
        _check_ranges(self, _ENGINE_RANGES)
        if 0 < self.decode_slowdown < 1:
            raise ConfigError(
                f"decode_slowdown must be 0 for no bound, or at least 1, not {self.decode_slowdown:g}",
                param="decode_slowdown",
            )
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(
                f"gpu_memory_utilization must be above 0 and at most 1, not {self.gpu_memory_utilization:g}",
                param="gpu_memory_utilization",
            )
        if self.max_model_len is not None and self.max_model_len != FIT and self.max_model_len < 1:
            raise ConfigError("max_model_len must be at least 1, or auto", param="max_model_len")
        _check_media_counts(self.limit_mm_per_prompt)
        _check_codec(self.codec_config)
        if self.encoder_cache_bytes is not None and self.encoder_cache_tokens is not None:
            raise ConfigError("encoder_cache_bytes and encoder_cache_tokens exclude each other; give one")
        if not self.enable_chunked_prefill and self.long_prefill_token_threshold:
            raise ConfigError("long_prefill_token_threshold needs enable_chunked_prefill")
        if self.enable_log_outputs and not self.enable_log_requests:
            raise ConfigError("enable_log_outputs needs enable_log_requests", param="enable_log_outputs")
        if self.convert == "embed" and self.runner == "generate":
            raise ConfigError("convert=embed needs runner=pooling")

    def takes(self, *modalities: str) -> bool:
        """Whether one of them may come as media to be encoded."""
        off = [self._count(name) == 0 for name in modalities]
        return not self.language_model_only and not all(off)

    def _count(self, modality: str) -> Any:
        value: Any = self.limit_mm_per_prompt.get(modality)
        return value.get("count") if isinstance(value, Mapping) else value  # pyright: ignore


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The HTTP side."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    api_key_file: Path | None = None
    """One key a line, besides `api_keys`; empty lines and lines that begin with # do not count."""
    api_key_exempt: tuple[str, ...] = ("health", "ping", "version", "metrics")
    """Paths that need no key, without their leading slash."""
    served_model_name: str | tuple[str, ...] | None = None
    """The names clients may use; answers carry the first."""
    max_body_bytes: int = 384 << 20
    max_json_bytes: int = 32 << 20
    """Memory that the JSON of a body may take once decoded, roughly: some 800,000 numbers, or 100,000 objects."""
    root_path: str = ""
    """Path prefix that a proxy in front adds, such as /models."""
    ssl_keyfile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_ca_certs: Path | None = None
    """Certificates that a client's own must lead to; given, clients must present one."""
    allowed_origins: tuple[str, ...] = ()
    allowed_methods: tuple[str, ...] = ("GET", "POST", "DELETE")
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False
    allowed_hosts: tuple[str, ...] = ()
    """Host names the server answers to besides loopback ones; empty means any when it is not bound to loopback."""
    insecure: bool = False
    """Allow an address that other machines reach without any key."""
    drain_s: float = 30.0
    """How long running requests may go on after SIGTERM."""
    engine_process: bool = True
    """Run the engine in a process of its own, which is started again when it dies or hangs."""
    engine_hang_s: float = 60.0
    """An engine process that has work and ends no step for so long is killed; 0 is never."""
    response_role: str = "assistant"
    """Role of answers where the request adds a generation prompt."""
    chat_template: str | None = None
    """A Jinja template (its text) instead of the checkpoint's."""
    chat_template_content_format: Literal["auto", "string", "openai"] = "auto"
    """Whether the template gets message content as one string or as a list of parts; auto looks at the template."""
    default_chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Template variables of requests that do not set them."""
    trust_request_chat_template: bool = False
    """Accept `chat_template` in requests."""
    trust_request_mm_kwargs: bool = False
    """Accept media options in requests beyond the safe list."""
    allow_unknown_fields: bool = False
    """Warn about request fields that are not known, in place of refusing them."""
    enable_auto_tool_choice: bool = False
    tool_call_parser: str | None = None
    exclude_tools_when_tool_choice_none: bool = False
    """Leave tools out of the prompt when tool_choice is none."""
    reasoning_parser: str | None = None
    enable_prompt_tokens_details: bool = True
    """usage.prompt_tokens_details in answers."""
    enable_force_include_usage: bool = False
    """Usage in every stream, asked for or not."""
    return_tokens_as_token_ids: bool = False
    """Tokens in logprobs as token_id:N."""
    sse_keep_alive_interval: float = 15.0
    """Seconds of silence after which a stream gets a comment line; 0 is never."""
    enable_request_id_headers: bool = True
    """X-Request-Id on every answer: the request's own, or a new one."""
    fingerprint_mode: Literal["full", "hash", "custom", "none"] = "full"
    """system_fingerprint: version and model, a hash of them, `fingerprint_value`, or nothing."""
    fingerprint_value: str | None = None
    disable_fastapi_docs: bool = False
    """No /openapi.json, /docs and /redoc."""
    access_log: bool = True
    """One line per request, without its content."""
    disable_access_log_for_endpoints: tuple[str, ...] = ()
    """Paths without access log lines."""
    log_error_stack: bool = False
    """A traceback in the log for refused requests too."""
    log_level: LogLevel = "info"
    uvicorn_log_level: LogLevel = "info"
    log_format: Literal["plain", "json"] = "plain"
    interleave_mm_strings: bool | None = None
    """Where media stand in the text that a template takes as one string: None decides by message, see ChatOptions."""
    dev_mode: bool = False
    """Add the routes for developers: /server_info, /is_sleeping, and those that empty caches."""
    enable_responses_store: bool = False
    """Keep answers of /v1/responses in memory, for previous_response_id and background."""
    max_audio_filesize_mb: int = 25
    """Largest file that may be transcribed."""
    vad: str = "energy"
    """What hears where a turn ends: energy, the path of Silero's .onnx file, or module:Class of your own."""
    max_realtime_sessions: int = 64
    """WebSockets of /v1/realtime at once; more are refused."""
    max_sessions_per_key: int | None = None
    """Sessions of one key at once, of /v1/realtime and live ones; None is 16 where there are several keys, else any."""
    live_max_len: int = 8192
    """Tokens that a live session holds at most, or the model's context; each keeps so many of the KV cache."""
    live_max_s: float = 3600.0
    """How long a live session may last, in seconds."""
    live_restart: Literal["continue", "close"] = "continue"
    """When the engine is lost: live sessions go on in the next one, or end."""
    max_live_queue: int = 32
    """Live sessions that may wait for a place; more are refused."""
    max_voices: int = 32
    """Recordings that clients may have uploaded as voices to speak in; one more is refused."""
    voice_folder: Path | None = None
    """Where they are kept; None is in memory. Other WAVE files in it are voices for everybody."""
    otlp_traces_endpoint: str | None = None
    """URL that spans are sent to by OTLP over HTTP; needs the extra `tracing`."""
    enable_per_request_metrics: bool = False
    """`metrics` in answers of one choice: how long it took, in milliseconds."""
    metrics_compat: bool = True
    """Export metrics under vllm: too."""
    custom_histogram_buckets: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Histogram name without its prefix -> list of bucket bounds."""

    def __post_init__(self) -> None:
        _check_ranges(self, _SERVER_RANGES)
        if self.enable_auto_tool_choice and not self.tool_call_parser:
            raise ConfigError("enable_auto_tool_choice needs tool_call_parser")
        if self.fingerprint_mode == "custom" and not self.fingerprint_value:
            raise ConfigError("fingerprint_mode=custom needs fingerprint_value")
        if bool(self.ssl_keyfile) and not self.ssl_certfile:
            raise ConfigError("ssl_keyfile needs ssl_certfile")
        if self.ssl_ca_certs and not self.ssl_certfile:
            raise ConfigError("ssl_ca_certs needs ssl_certfile")


Range = tuple[float | None, float | None]

_ENGINE_RANGES: dict[str, Range] = {
    "max_log_len": (0, None),
    "block_size": (1, None),
    "kv_cache_bytes": (1, None),
    "num_gpu_blocks_override": (2, None),
    "max_num_seqs": (1, None),
    "max_sessions": (0, None),
    "max_num_batched_tokens": (1, None),
    "long_prefill_token_threshold": (0, None),
    "decode_slowdown": (0, None),
    "stream_interval": (1, None),
    "max_encoder_rows": (1, None),
    "encoder_cache_bytes": (0, None),
    "encoder_cache_tokens": (0, None),
    "max_waiting": (0, None),
    "max_num_queued_reqs": (1, None),
    "max_num_queued_tokens": (1, None),
    "max_logprobs": (-1, None),
    "mm_processor_cache_gb": (0, None),
    "speech_slots": (1, None),
    "speech_len": (64, None),
    "media_threads": (0, None),
    "video_decode_workers": (1, None),
}
_SERVER_RANGES: dict[str, Range] = {
    "port": (0, 65535),
    "max_body_bytes": (0, None),
    "max_json_bytes": (1, None),
    "drain_s": (0, None),
    "engine_hang_s": (0, None),
    "sse_keep_alive_interval": (0, None),
    "max_realtime_sessions": (0, None),
    "max_sessions_per_key": (1, None),
    "live_max_len": (512, None),
    "live_max_s": (1, None),
    "max_live_queue": (0, None),
    "max_voices": (0, None),
}
_CODEC_COUNTS = ("n_timesteps", "voices", "voice_s")
_CODEC_CHOICES: dict[str, tuple[Any, ...]] = {
    "dtype": ("float32", "float16", "bfloat16"),
    "trimming": ("reference", "voice", "packed"),
    "graphs": (True, False),
}
_CODEC_KEYS = (*_CODEC_COUNTS, *_CODEC_CHOICES)
_ITEM_KEYS = ("count", "width", "height", "num_frames", "length")


def _check_ranges(config: object, ranges: Mapping[str, Range]) -> None:
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if value is None:
            continue
        if low is not None and value < low:
            raise ConfigError(f"{name} must be at least {low:g}, not {value}", param=name)
        if high is not None and value > high:
            raise ConfigError(f"{name} must be at most {high:g}, not {value}", param=name)


def _check_media_counts(limits: Mapping[str, Any]) -> None:
    """Counts are whole numbers from 0, alone or in an object with the sizes to plan for."""
    for modality, value in limits.items():
        name = f"limit_mm_per_prompt.{modality}"
        counts: Mapping[str, Any] = value if isinstance(value, Mapping) else {"count": value}  # pyright: ignore
        for key, count in counts.items():
            if key not in _ITEM_KEYS:
                raise ConfigError(f"{name} has no {key!r}; known: {', '.join(_ITEM_KEYS)}", param="limit_mm_per_prompt")
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise ConfigError(f"{name} must be a whole number from 0, not {count!r}", param="limit_mm_per_prompt")


def _check_codec(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name not in _CODEC_KEYS:
            raise ConfigError(f"codec_config has no {name!r}; known: {', '.join(_CODEC_KEYS)}", param="codec_config")
        if name in _CODEC_CHOICES:
            choices = _CODEC_CHOICES[name]
            if value not in choices or isinstance(value, bool) != isinstance(choices[0], bool):
                known = ", ".join(map(str, choices))
                raise ConfigError(f"codec_config: {name} must be one of {known}, not {value!r}", param="codec_config")
            continue
        kinds = (int, float) if name == "voice_s" else int
        if not isinstance(value, kinds) or isinstance(value, bool) or not value > 0:
            wanted = "a number" if name == "voice_s" else "a whole number"
            raise ConfigError(f"codec_config: {name} must be {wanted} above 0, not {value!r}", param="codec_config")
