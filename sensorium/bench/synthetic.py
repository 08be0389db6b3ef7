"""Media made up for measurements: files as cameras and microphones write them, each different, from a seed."""

from __future__ import annotations

import io
import wave

import av
import numpy as np
from PIL import Image

RATE = 16_000


def picture(rng: np.random.Generator, width: int, height: int) -> bytes:
    """A JPEG with detail at every scale."""
    return _encoded(_scene(rng, width, height))


def sound(rng: np.random.Generator, seconds: float) -> bytes:
    """A mono WAV of 16 kHz: noise that swells and fades."""
    count = int(seconds * RATE)
    loudness = 2000 * (1.2 + np.sin(np.arange(count) / RATE * 2 * np.pi))
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((rng.standard_normal(count) * loudness).clip(-32768, 32767).astype("<i2").tobytes())
    return out.getvalue()


def video(rng: np.random.Generator, width: int, height: int, seconds: float, fps: int = 10) -> bytes:
    """Motion JPEG in MP4: a scene that moves sideways."""
    scene = _scene(rng, width, height)
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        track = container.add_stream("mjpeg", rate=fps)
        # Its samples are of the full range, and chroma has half the resolution.
        track.width, track.height, track.pix_fmt = width - width % 2, height - height % 2, "yuvj420p"
        for number in range(max(int(seconds * fps), 1)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.roll(scene, 4 * number, axis=1)))
            frame.pts = number
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return out.getvalue()


def _scene(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """[height, width, 3] uint8."""
    rough = rng.integers(0, 256, (max(height // 16, 1), max(width // 16, 1), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(rough).resize((width, height))).astype(np.int16)
    return np.clip(smooth + rng.integers(-12, 13, smooth.shape, dtype=np.int16), 0, 255).astype(np.uint8)


def _encoded(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()
