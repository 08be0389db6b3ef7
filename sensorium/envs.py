"""Environment variables: SENSORIUM_X, or VLLM_X where that is not set. Read when asked for, never at import."""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from sensorium.errors import ConfigError

PREFIXES = ("SENSORIUM_", "VLLM_")
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


@dataclass(frozen=True, slots=True)
class Environment:
    """Each field is one variable, named in upper case behind the prefix."""

    image_fetch_timeout: float = 5.0
    """Seconds for one picture's URL; likewise the next two for videos and recordings."""
    video_fetch_timeout: float = 30.0
    audio_fetch_timeout: float = 10.0
    media_url_allow_redirects: bool = True
    media_fetch_max_retries: int = 3
    """Attempts in total."""
    max_media_download_size_mb: int | None = None
    """MiB from one URL; 0 is no bound. None, here and below, is the bound of MediaLimits."""
    max_media_request_download_size_mb: int | None = None
    """MiB for all URLs of a request, those of repeated attempts included; 0 is no bound."""
    max_media_request_decode_bytes: int | None = None
    """Decoded media of one request."""
    max_image_pixels: int | None = None
    """Of a picture or a video frame; 0 is no bound."""
    max_audio_clip_filesize_mb: int | None = None
    max_audio_decode_duration_s: float | None = None
    max_audio_decode_bytes: int | None = None
    max_embed_decode_bytes: int | None = None
    media_loading_thread_count: int | None = None
    """Workers for pictures and sounds where EngineConfig.media_threads does not say."""
    max_audio_preprocess_workers: int | None = None
    """Recordings decoded at once, in workers of their own; None is together with pictures."""
    media_cache: str = ""
    """Folder where downloaded media are kept for every user; empty keeps none."""
    media_cache_max_size_mb: int = 5120
    media_cache_ttl_hours: float = 24.0
    engine_ready_timeout_s: float | None = None
    """Seconds that the server's engine may take to load; None or 0 is no bound."""
    assets_cache: str | None = None
    """Directory of sensorium.assets; None is below the user's cache directory."""
    assets_url: str | None = None
    """Where sensorium.assets downloads from in place of the public hosts."""
    api_key: str | None = None
    server_dev_mode: bool = False
    enable_responses_api_store: bool = False
    http_timeout_keep_alive: float = 15.0
    """Seconds that an idle connection stays open."""
    http_max_request_body_size: int | None = None
    """Bytes; None is ServerConfig.max_body_bytes."""
    max_n_sequences: int = 16
    """Largest `n` of a request."""
    max_completion_prompts: int = 128
    max_stop_strings: int = 16
    """Most texts in `stop` of a request."""
    chat_template_render_timeout: float = 2.0
    """Seconds of processor time."""
    allow_long_max_model_len: bool = False
    skip_model_name_validation: bool = False
    """Answer requests for any model name."""
    logging_level: str = "INFO"


NO_EFFECT = {
    "VIDEO_LOADER_BACKEND": "the model's family chooses frames, or fps and num_frames of media_io_kwargs",
    "ALLOW_RUNTIME_LORA_UPDATING": "adapters are not supported; merge them into the weights",
    "MEDIA_CONNECTOR": "there is one way to fetch media",
    "EXECUTE_MODEL_TIMEOUT_SECONDS": "--engine-hang-s says the same",
    "DEBUG_LOG_API_SERVER_RESPONSE": "--enable-log-outputs says the same",
    "KEEP_ALIVE_ON_ENGINE_DEATH": "an engine that dies is started again",
}
"""Variables of vLLM that change nothing here -> why; the server says so when one is set."""


def read_environment(environ: Mapping[str, str] | None = None) -> Environment:
    """The variables that are set, defaults elsewhere. Raises ConfigError naming the variable that cannot be read."""
    environ = os.environ if environ is None else environ
    hints = typing.get_type_hints(Environment)
    given: dict[str, Any] = {}
    for field in fields(Environment):
        name = find(field.name.upper(), environ)
        if name is not None:
            given[field.name] = _parse(name, environ[name], hints[field.name])
    return Environment(**given)


def find(name: str, environ: Mapping[str, str]) -> str | None:
    """The full name of the variable that is set: ours before the alias."""
    return next((prefix + name for prefix in PREFIXES if prefix + name in environ), None)


def _parse(name: str, text: str, hint: Any) -> Any:
    kinds = typing.get_args(hint) or (hint,)
    if bool in kinds:
        if text.strip().lower() not in _TRUE + _FALSE:
            raise ConfigError(f"{name} must be 1 or 0, not {text!r}", param=name)
        return text.strip().lower() in _TRUE
    if str in kinds:
        return text
    kind = int if int in kinds else float
    try:
        value = kind(text)
    except ValueError:
        raise ConfigError(f"{name} must be a number, not {text!r}", param=name) from None
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{name} must not be negative, not {text!r}", param=name)
    return value
