"""Recordings as the models hear them: one channel at 16 kHz. Nothing here needs more than numpy and a resampler."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import soxr

from sensorium.config import MediaLimits
from sensorium.errors import MediaError, SensoriumError, TooLargeError, UnsupportedError
from sensorium.media.wav import read_wav
from sensorium.types import Media

RATE = 16_000
MIN_RATE, MAX_RATE, MAX_CHANNELS = 4_000, 384_000, 8
BLOCK = 1 << 18
"""Frames that are folded at a time."""


def from_wav(
    data: bytes,
    part: str,
    limits: MediaLimits,
    options: Mapping[str, Any] | None = None,
    digest: bytes | None = None,
) -> Media | None:
    """The recording in a RIFF WAVE file; None where the bytes are no such file, or one that read_wav cannot read.

    digest: file_digest(data), if known.
    """
    wav = read_wav(data)
    if wav is None:
        return None
    options = checked_options(options, part)
    try:
        blocks = (wav.read(start, BLOCK) for start in range(0, wav.frames, BLOCK))
        samples = fold(blocks, wav.rate, wav.channels, part, limits)
    except SensoriumError:
        raise
    except Exception:
        raise damaged(part) from None
    return Media("audio", samples, digest or file_digest(data), rate=RATE, part=part, options=options)


def checked_options(options: Mapping[str, Any] | None, part: str) -> dict[str, Any]:
    """options["format"] is a hint for files without a recognisable start; there are no others."""
    if unknown := sorted(set(map(str, options or {})) - {"format"}):
        raise UnsupportedError(f"unknown audio option {unknown[0][:64]}", param=part)
    return dict(options or {})


def file_digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def damaged(part: str) -> MediaError:
    return MediaError("the audio is damaged and cannot be decoded", param=part)


def fold(blocks: Iterator[np.ndarray], rate: int, channels: int, part: str, limits: MediaLimits) -> np.ndarray:
    """Blocks of frames [B, channels] -> float32 [S], one channel at 16 kHz. Stops at the limit."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise MediaError(f"audio must have {MIN_RATE} to {MAX_RATE} samples per second", param=part)
    if not 1 <= channels <= MAX_CHANNELS:
        raise MediaError(f"audio must have 1 to {MAX_CHANNELS} channels", param=part)
    stream = soxr.ResampleStream(rate, RATE, 1, dtype="float32", quality="HQ") if rate != RATE else None
    heard = 0
    pieces: list[np.ndarray] = []
    for block in blocks:
        heard += len(block)
        if heard > limits.max_audio_s * rate:
            raise TooLargeError(f"the audio is longer than {limits.max_audio_s:g} seconds", param=part)
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
        if not np.isfinite(mono).all():
            raise MediaError("the audio holds values that are not finite numbers", param=part)
        pieces.append(stream.resample_chunk(np.ascontiguousarray(mono)) if stream else mono)
    if not heard:
        raise MediaError("the audio holds no samples", param=part)
    if stream:
        pieces.append(stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True))
    samples = np.ascontiguousarray(np.concatenate(pieces) if len(pieces) > 1 else pieces[0], dtype=np.float32)
    if stream and not (len(samples) and np.isfinite(samples).all()):
        raise MediaError("the audio holds no usable samples", param=part)
    return samples
