"""Limits as the environment changes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sensorium.config import MediaLimits
from sensorium.envs import Environment

_NO_BOUND = 4 << 30
"""What 0 stands for: more does not cross to a media worker."""


def with_environment(limits: MediaLimits, env: Environment) -> MediaLimits:
    """The variables that are set win over MediaLimits, so that vLLM's names do here what they do there."""
    changes: dict[str, Any] = {}
    if (size := env.max_media_download_size_mb) is not None:
        most = (size << 20) or _NO_BOUND
        changes |= {"max_bytes": most, "max_image_bytes": most, "max_audio_bytes": most}
    if (size := env.max_audio_clip_filesize_mb) is not None:
        changes["max_audio_bytes"] = (size << 20) or _NO_BOUND
    if (size := env.max_media_request_download_size_mb) is not None:
        changes["max_request_download_bytes"] = (size << 20) or _NO_BOUND
    if env.max_image_pixels is not None:
        changes["max_pixels"] = env.max_image_pixels or _NO_BOUND
    if env.max_media_request_decode_bytes is not None:
        changes["max_request_bytes"] = env.max_media_request_decode_bytes or _NO_BOUND
    if env.max_embed_decode_bytes is not None:
        changes["max_embeds_bytes"] = env.max_embed_decode_bytes or _NO_BOUND
    if env.max_audio_decode_duration_s is not None:
        changes["max_audio_s"] = env.max_audio_decode_duration_s or float(_NO_BOUND)
    if env.max_audio_decode_bytes:
        seconds = env.max_audio_decode_bytes / (4 * 16_000)
        changes["max_audio_s"] = min(changes.get("max_audio_s", limits.max_audio_s), seconds)
    return replace(limits, **changes)
