"""MiniCPM prompts in tests: small media, and what every prompt must satisfy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sensorium.media import audio, image
from sensorium.models.minicpm_pixels import slice_sizes
from sensorium.models.minicpm_processor import Processor
from sensorium.types import ChatOptions, Media, MediaRef, Message, Prompt

TEMPLATE = {"enable_thinking", "use_tts_template"}
MEDIA = {"max_slice_nums", "use_image_id", "omni_mode", "stream_input", "temporal_ids"}
RNG = np.random.default_rng(0)
MARKS = ("<image>", "</image>", "<slice>", "</slice>", "<unk>", "<|audio_start|>", "<|audio_end|>", "<image_id>")


def picture(width: int = 448, height: int = 448, **options: Any) -> Media:
    return image.from_array(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8), "p", options=options)


def sound(samples: int = 16_000) -> Media:
    return audio.from_array(RNG.standard_normal(samples).astype(np.float32) * 0.1, part="p")


def film(frames: int = 3, seconds_of_sound: float | None = None, **options: Any) -> Media:
    pixels = RNG.integers(0, 256, (frames, 240, 320, 3), dtype=np.uint8)
    track = None if seconds_of_sound is None else sound(round(16_000 * seconds_of_sound))
    return Media("video", pixels, bytes(32), times_s=np.arange(frames, dtype=float), audio=track, options=options)


def user(*parts: str | Media | MediaRef) -> list[Message]:
    return [Message("user", parts)]


def options(values: Mapping[str, Any]) -> ChatOptions:
    return ChatOptions(
        add_generation_prompt=not values.get("teacher_forcing"),
        template_kwargs={name: value for name, value in values.items() if name in TEMPLATE},
        media_kwargs={name: value for name, value in values.items() if name in MEDIA},
    )


def unrolled(entries: Sequence[int | list[int]]) -> tuple[int, ...]:
    return tuple(i for entry in entries for i in ([entry[0]] * entry[1] if isinstance(entry, list) else [entry]))


def bounds(prompt: Prompt) -> list[list[int]]:
    return [[span.start, span.stop] for span in prompt.spans]


def check(prompt: Prompt, processor: Processor) -> None:
    """Placeholders and rows agree: every span lies on placeholder ids, and no placeholder is without a span."""
    unk = processor.tokenizer.id("<unk>")
    covered = [position for span in prompt.spans for position in range(span.start, span.stop)]
    assert covered == [position for position, token_id in enumerate(prompt.ids) if token_id == unk]
    for span in prompt.spans:
        assert 0 <= span.row < span.row + span.length <= prompt.media[span.media].rows
    for item in prompt.media:
        if item.modality == "audio":
            assert item.arrays["mel"].shape == (80, item.arrays["frames"].sum())
            assert item.rows == sum(
                ((frames - 1) // 2 + 1) // processor.variant.pool for frames in item.arrays["frames"]
            )
        else:
            slices = len(slice_sizes(item.arrays))
            assert item.rows == processor.variant.queries * len(set(item.arrays.get("groups", range(slices))))


def frames_of(prompt: Prompt) -> list[int]:
    return [int(frames) for item in prompt.media if item.modality == "audio" for frames in item.arrays["frames"]]
