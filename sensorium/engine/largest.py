"""The largest media that a configuration admits: what memory is planned for, and what caches and steps must hold."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sensorium.config import EngineConfig
from sensorium.engine.media_limits import with_environment
from sensorium.engine.media_options import processor_kwargs
from sensorium.envs import read_environment
from sensorium.errors import CheckpointError, SensoriumError, UnsupportedError
from sensorium.models.base import Model, Processor
from sensorium.types import ChatOptions, Media, MediaItem, Message, Modality, Prompt

log = logging.getLogger(__name__)

_FRAMES = ((448, 448), (480, 640), (720, 1280))
_ALONE = "{{ messages[0].content }}"
_SMALLER = (
    "say with limit_mm_per_prompt that items are smaller (width, height, num_frames, length) or that none come (0)"
)


def largest_media(
    processor: Processor, modalities: Sequence[Modality], config: EngineConfig, longest: int
) -> dict[Modality, Prompt]:
    """A prompt with nothing but the largest item, for every modality that may come; longest: tokens of the context.

    Sizes in limit_mm_per_prompt say what to plan for in place of the largest.
    """
    found: dict[Modality, Prompt] = {}
    wishes = processor_kwargs(config.mm_processor_kwargs)
    for modality in modalities:
        if config.takes(modality):
            try:
                media = processor.largest(modality, longest, wishes)
                options = ChatOptions(media_kwargs=wishes, template=_ALONE, content_format="string")
                found[modality] = processor.chat([Message("user", (_bounded(media, config),))], options)
            except SensoriumError as error:
                raise CheckpointError(f"mm_processor_kwargs: {error.message}", param="mm_processor_kwargs") from error
    return found


def live_frames(processor: Processor) -> list[MediaItem]:
    """Black pictures as sessions bring them: square, and of the two shapes of most cameras."""
    live = getattr(processor, "live", None)
    try:
        wishes = live("").frame_options(1) if live is not None else None
    except UnsupportedError:
        wishes = None
    if wishes is None:
        return []
    options = ChatOptions(media_kwargs=wishes, template=_ALONE, content_format="string")
    found: list[MediaItem] = []
    for height, width in _FRAMES:
        picture = Media("image", np.zeros((height, width, 3), np.uint8), b"frame")
        found += processor.chat([Message("user", (picture,))], options).media
    return found


def largest_item(prompt: Prompt) -> MediaItem:
    return max(prompt.media, key=lambda item: item.rows)


def check_sizes(largest: Mapping[Modality, Prompt], config: EngineConfig, longest: int, cache_rows: int) -> None:
    """Raises CheckpointError where an item that is admitted could never be computed."""
    for modality, prompt in largest.items():
        rows, span = largest_item(prompt).rows, max(span.length for span in prompt.spans)
        if rows > longest:
            log.warning("no %s fits a context of %d tokens: the smallest takes %d", modality, longest, rows)
        elif rows > cache_rows:
            raise CheckpointError(
                f"the largest {modality} has {rows} embeddings and the encoder cache holds {cache_rows}: raise "
                f"encoder_cache_tokens to {rows}, lower max_model_len, or {_SMALLER}",
                param="encoder_cache_tokens",
            )
        elif config.disable_chunked_mm_input and span > config.max_num_batched_tokens:
            raise CheckpointError(
                f"the largest {modality} takes {span} tokens, which disable_chunked_mm_input keeps together: raise "
                f"max_num_batched_tokens ({config.max_num_batched_tokens}) to {span}, or {_SMALLER}",
                param="max_num_batched_tokens",
            )


def sample_media(
    processor: Processor, modalities: Sequence[Modality], config: EngineConfig, longest: int
) -> dict[Modality, Prompt]:
    """What encoders are measured with. Of a picture they see all at once, of long sounds and videos a part."""
    some = min(longest, config.max_encoder_rows)
    found: dict[Modality, Prompt] = {}
    for name in modalities:
        found |= largest_media(processor, (name,), config, longest if name == "image" else some)
    return found


def encode_samples(model: Model, samples: Mapping[Modality, Prompt], config: EngineConfig, longest: int) -> int:
    """Run the encoders on as much as one step may bring them of each modality. Returns how many rows came of it."""
    rows = 0
    for prompt in samples.values():
        item = largest_item(prompt)
        if item.rows <= longest:
            item = replace(item, arrays={name: np.array(array) for name, array in item.arrays.items()})
            together = max(config.max_encoder_rows // item.rows, 1)
            rows += sum(map(len, model.encode(item.modality, [item] * together)))
    return rows


def _bounded(media: Media, config: EngineConfig) -> Media:
    """Of the sizes that the operator names, and inside the limits of media."""
    limits = with_environment(config.limits, read_environment())
    given: Any = config.limit_mm_per_prompt.get(media.modality)
    sizes: Mapping[str, int] = given if isinstance(given, Mapping) else {}  # pyright: ignore
    if media.modality == "audio":
        samples = sizes.get("length", len(media.data))
        return replace(media, data=np.zeros(min(samples, int(limits.max_audio_s * (media.rate or 1))), np.float32))
    *frames, height, width, channels = media.data.shape
    height, width = sizes.get("height") or height, sizes.get("width") or width
    shrink = min(1.0, math.sqrt(limits.max_pixels / (height * width)))
    size = (max(int(height * shrink), 1), max(int(width * shrink), 1), channels)
    if not frames:
        return replace(media, data=np.broadcast_to(np.uint8(0), size))
    count = min(sizes.get("num_frames") or frames[0], limits.max_video_frames)
    return replace(media, data=np.broadcast_to(np.uint8(0), (count, *size)), times_s=np.arange(count, dtype=float))
