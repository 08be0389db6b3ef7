"""Which options of media a request may set: those that cost no more than the server's own limits allow."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sensorium.config import ServerConfig
from sensorium.errors import RequestError, UnsupportedError

MAX_FRAMES, MAX_FPS = 4096, 60

SAFE_LOADING: Mapping[str, Collection[str]] = {
    "image": ("rgba_background_color",),
    "video": ("num_frames", "fps"),
    "audio": (),
}
SAFE_PROCESSING = frozenset(
    {
        "do_sample_frames", "fps", "max_inp_length", "max_pixels", "max_slice_nums", "merge_audio_from_same_content",
        "min_pixels", "omni_mode", "scale_resolution", "size", "stream_input", "temporal_ids", "use_audio_in_video",
        "use_image_id",
    }
)  # fmt: skip
"""All other options need --trust-request-mm-kwargs."""


def check_media_options(
    loading: Mapping[Any, Mapping[str, Any]] | None, processing: Mapping[str, Any] | None, config: ServerConfig
) -> None:
    """Of a request's media_io_kwargs and mm_processor_kwargs. Raises RequestError naming the option."""
    video = (loading or {}).get("video", {})
    for name, kinds, most in (("num_frames", int, MAX_FRAMES), ("fps", (int, float), MAX_FPS)):
        value = video.get(name)
        if value is None or (value == -1 and type(value) is int):
            continue
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value <= most:
            place = f"media_io_kwargs.video.{name}"
            raise RequestError(f"{place}: must be a number above 0 and at most {most}, or -1", param=place)
    if config.trust_request_mm_kwargs:
        return
    given = [
        (f"media_io_kwargs.{modality}.{name}", name in SAFE_LOADING[modality])
        for modality, options in (loading or {}).items()
        for name in options
    ]
    given += [(f"mm_processor_kwargs.{name}", name in SAFE_PROCESSING) for name in processing or ()]
    for place, is_safe in given:
        if not is_safe:
            reason = f"{place[:200]}: needs a server started with --trust-request-mm-kwargs"
            raise UnsupportedError(reason, param=place)


def check_template(template: str | None, config: ServerConfig) -> None:
    """Of a request's own chat_template. Raises UnsupportedError where the server does not take any."""
    if template is not None and not config.trust_request_chat_template:
        reason = "chat_template: needs a server started with --trust-request-chat-template"
        raise UnsupportedError(reason, param="chat_template")
