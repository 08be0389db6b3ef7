"""Sounds and videos made on the spot, by hand or with FFmpeg's encoders."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np


def tone(seconds: float, rate: int = 16_000, pitch: float = 440.0) -> np.ndarray:
    """[S] float32 at half of full scale."""
    return (np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate) * 0.5).astype(np.float32)


def wav(
    body: bytes, rate: int = 16_000, channels: int = 1, bits: int = 16, codec: int = 1, size: int | None = None
) -> bytes:
    """A RIFF file whose header says what it is told to; size: the length it claims for the samples."""
    width = channels * bits // 8
    layout = struct.pack("<HHIIHH", codec, channels, rate, rate * width % 2**32, width, bits)
    claimed = len(body) if size is None else size
    return (
        b"RIFF\xff\xff\xff\x7fWAVEfmt " + struct.pack("<I", 16) + layout + b"data" + struct.pack("<I", claimed) + body
    )


def pcm(samples: np.ndarray) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


def sound_file(container: str, codec: str, samples: np.ndarray, rate: int = 48_000) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        _write_sound(file, file.add_stream(codec, rate=rate, layout="mono"), samples)
    return out.getvalue()


def video_file(
    container: str = "mp4",
    codec: str = "libx264",
    *,
    fps: int = 25,
    frames: int = 75,
    size: tuple[int, int] = (64, 48),
    sound: str | None = "aac",
    rotation: int = 0,
    pts_ms: Callable[[int], int] | None = None,
) -> bytes:
    """Grey frames growing lighter, 16 to 216, with a red upper left quarter; sound as long as the pictures."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = 12
        track = file.add_stream(sound, rate=48_000, layout="mono") if sound else None
        if rotation:
            stream.set_display_rotation(rotation)
        for index in range(frames):
            pixels = np.full((size[1], size[0], 3), 16 + index * 200 // max(frames - 1, 1), dtype=np.uint8)
            pixels[: size[1] // 2, : size[0] // 2] = (255, 0, 0)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if pts_ms is not None:
                frame.pts, frame.time_base = pts_ms(index), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        if track is not None:
            _write_sound(file, track, tone(frames / fps, 48_000))
    return out.getvalue()


def _write_sound(file: av.container.OutputContainer, track: av.AudioStream, samples: np.ndarray) -> None:
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.rate = track.rate
    cut = av.AudioResampler(track.format.name, "mono", track.rate, frame_size=track.codec_context.frame_size or 0)
    for piece in [*cut.resample(frame), *cut.resample(None)]:
        file.mux(track.encode(piece))
    file.mux(track.encode(None))
