"""Audio: any usual file, or an array of samples, to 16 kHz mono. The length limit holds while decoding, not after."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from sensorium.config import MediaLimits
from sensorium.errors import MediaError, SensoriumError
from sensorium.media.container import open_container, sniff
from sensorium.media.mono import BLOCK, RATE, checked_options, damaged, file_digest, fold, from_wav
from sensorium.types import Media

CODECS = frozenset(
    {
        "aac",
        "ac3",
        "adpcm_ima_wav",
        "adpcm_ms",
        "alac",
        "amr_nb",
        "amr_wb",
        "eac3",
        "flac",
        "gsm_ms",
        "mp2",
        "mp3",
        "opus",
        "speex",
        "vorbis",
    }
)
# What the `format` field of OpenAI's input_audio may say, for files that do not say what they are.
_HINTS = {"mp3": "mp3", "aac": "aac", "flac": "flac"}


def from_bytes(data: bytes, part: str, limits: MediaLimits, options: Mapping[str, Any] | None = None) -> Media:
    """Decodes the first audio track. options["format"] is a hint for files without a recognisable start."""
    options = checked_options(options, part)
    if (media := from_wav(data, part, limits, options)) is not None:
        return media
    try:
        samples = decode_track(data, sniff(data) or _HINTS.get(str(options.get("format"))), part, limits)
    except SensoriumError:
        raise
    except Exception:  # damaged files make the decoders raise nearly anything
        raise damaged(part) from None
    return Media("audio", samples, file_digest(data), rate=RATE, part=part, options=options)


def from_array(
    samples: np.ndarray,
    rate: int = RATE,
    part: str = "",
    limits: MediaLimits | None = None,
    options: Mapping[str, Any] | None = None,
) -> Media:
    """[S] or [S, channels] samples; floats have full scale 1, integers that of their type."""
    if samples.ndim not in (1, 2) or not (
        np.issubdtype(samples.dtype, np.floating) or np.issubdtype(samples.dtype, np.signedinteger)
    ):
        raise MediaError("an audio array must hold floats or signed integers, [S] or [S, channels]", param=part)
    if not samples.size:
        raise MediaError("the audio holds no samples", param=part)
    digest = hashlib.blake2b(
        np.ascontiguousarray(samples).data,
        digest_size=32,
        person=b"audio",
        key=f"{samples.shape}{samples.dtype}{rate}".encode(),
    ).digest()
    if np.issubdtype(samples.dtype, np.signedinteger):
        samples = samples.astype(np.float32) / float(2 ** (samples.dtype.itemsize * 8 - 1))
    frames = samples.reshape(len(samples), -1)
    blocks = (frames[start : start + BLOCK].astype(np.float32) for start in range(0, len(frames), BLOCK))
    samples = fold(blocks, rate, frames.shape[1], part, limits or MediaLimits())
    return Media("audio", samples, digest, rate=RATE, part=part, options=dict(options or {}))


def decode_track(data: bytes, format_name: str | None, part: str, limits: MediaLimits) -> np.ndarray:
    """[S] float32 at 16 kHz: the first audio track of a container. What precedes damage is kept."""
    with open_container(data, format_name, part) as container:
        if not container.streams.audio:
            raise MediaError("the file has no audio track", param=part)
        stream = container.streams.audio[0]
        codec = stream.codec.canonical_name
        if codec not in CODECS and not codec.startswith("pcm_"):
            raise MediaError(f"audio codec {codec} is not supported", param=part)
        return fold(_frames(container, stream, part), stream.rate, stream.channels, part, limits)


def _frames(container: Any, stream: Any, part: str) -> Iterator[np.ndarray]:
    """Decoded frames as float32 [S, channels]."""
    rate, channels = stream.rate, stream.channels
    to_float = av.AudioResampler(format="fltp")
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            frames = packet.decode() if packet is not None else []
        except FFmpegError:
            return
        if packet is None:
            return
        for frame in frames:
            if frame.sample_rate != rate or len(frame.layout.channels) != channels:
                raise MediaError("the audio changes its rate or channels half-way", param=part)
            frame.pts = None  # damaged timestamps must not make the converter insert silence
            for converted in to_float.resample(frame):
                yield converted.to_ndarray().T
