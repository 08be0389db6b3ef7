"""Sound in the forms that leave the codec: float32 at 24 kHz with full scale 1, 16-bit PCM, a WAV file."""

from __future__ import annotations

import io
import wave

import numpy as np

from sensorium.models.token2wav.config import RATE


def to_pcm16(sound: np.ndarray) -> bytes:
    """[S] float to little-endian int16: clipped to full scale, times 32767, cut towards zero, as the reference."""
    return (np.clip(sound, -1.0, 1.0) * np.float32(32767)).astype("<i2").tobytes()


def to_wav(sound: np.ndarray, rate: int = RATE) -> bytes:
    """[S] float to a WAV file of 16 bits, mono."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(to_pcm16(sound))
    return buffer.getvalue()
