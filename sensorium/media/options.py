"""The server's own loading options, checked at start rather than with the first request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sensorium.config import MediaLimits
from sensorium.errors import ConfigError, RequestError
from sensorium.media import image, video


def check_loading(options: Mapping[str, Mapping[str, Any]], limits: MediaLimits) -> None:
    """options: EngineConfig.media_io_kwargs. Raises ConfigError naming what is wrong."""
    try:
        for modality, given in options.items():
            if modality == "image":
                unknown: Mapping[str, Any] = image.read_options(given)[1]
            elif modality == "video":
                unknown = {}
                video.check_options(dict(given), "", limits)
            elif modality == "audio":
                unknown = given
            else:
                raise RequestError(f"{modality!r} is no modality; use image, video or audio")
            if unknown:
                raise RequestError(f"unknown {modality} option {min(map(str, unknown))[:64]}")
    except RequestError as error:
        raise ConfigError(f"media_io_kwargs: {error.message}", param="media_io_kwargs") from None
