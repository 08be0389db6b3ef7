"""Options of a request for its media, brought to the names that decoders and processors know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sensorium.config import MediaLimits
from sensorium.errors import RequestError
from sensorium.types import ChatOptions, Modality

_HEARS = "use_audio_in_video"


def processor_kwargs(given: Mapping[str, Any]) -> dict[str, Any]:
    """mm_processor_kwargs without what decoders do for the processor."""
    return {name: value for name, value in given.items() if name != _HEARS}


def with_server_defaults(options: ChatOptions, defaults: Mapping[str, Any]) -> ChatOptions:
    """defaults: EngineConfig.mm_processor_kwargs. use_audio_in_video becomes how videos are loaded."""
    given = {**defaults, **options.media_kwargs}
    hears = given.get(_HEARS)
    if hears is None:
        return replace(options, media_kwargs=processor_kwargs(given)) if given else options
    if not isinstance(hears, bool):
        raise RequestError(f"{_HEARS} must be true or false", param=f"mm_processor_kwargs.{_HEARS}")
    loading = dict(options.media_io_kwargs)
    loading["video"] = {"use_audio": hears, **loading.get("video", {})}
    return replace(options, media_kwargs=processor_kwargs(given), media_io_kwargs=loading)


def loading_options(
    modality: Modality, default: Mapping[str, Any], asked: Mapping[str, Any], limits: MediaLimits
) -> dict[str, Any]:
    """What the server sets and a request asks for: of the two ways to choose frames its own clears the other."""
    for name, other, nothing in (("fps", "num_frames", (None, -1)), ("num_frames", "fps", (None,))):
        if asked.get(name) not in nothing and other not in asked:
            default = {key: value for key, value in default.items() if key != other}
    merged = {**default, **asked}
    return settled(merged, limits) if modality == "video" else merged


def settled(options: Mapping[str, Any], limits: MediaLimits) -> dict[str, Any]:
    """num_frames of -1 is all frames, as far as the limits let them through; fps of -1 asks for no rate."""
    found = {name: value for name, value in options.items() if not (name == "fps" and value == -1)}
    if found.get("num_frames") == -1:
        found["num_frames"] = limits.max_video_frames
    return found
