"""Sounds that nobody means: hiss, hum, beeps, clicks, and tones that come and go."""

from __future__ import annotations

from random import Random

import numpy as np

RATE = 16_000


def noise(random: Random, length: int) -> np.ndarray:
    """float32 [length], of the loudness of speech or less, in units of int16."""
    kind = random.choice(("white", "brown", "hum", "beeps", "clicks", "tune"))
    source = np.random.default_rng(random.getrandbits(32))
    time = np.arange(length) / RATE
    if kind == "white":
        wave = source.normal(0, 0.3, length)
    elif kind == "brown":
        wave = np.convolve(source.normal(0, 1.0, length + 63), np.hanning(64) / 16, "valid")
    elif kind == "hum":
        base = random.choice((50, 60, 100, 120))
        wave = sum(np.sin(2 * np.pi * base * k * time) / k for k in (1, 2, 3, 5)) * 0.4
    elif kind == "beeps":
        wave = np.sin(2 * np.pi * random.uniform(300, 3000) * time) * (time * random.uniform(1, 6) % 1 < 0.4)
    elif kind == "clicks":
        wave = np.zeros(length)
        for at in source.integers(0, length, max(1, length // 4000)):
            tail = min(400, length - at)
            wave[at : at + tail] += source.normal(0, 1, tail) * np.exp(-np.arange(tail) / 60)
    else:
        steps = source.choice((262, 294, 330, 392, 440, 523), 1 + length // 4000)
        tone = np.repeat(steps, 4000)[:length]
        wave = np.sin(2 * np.pi * np.cumsum(tone) / RATE) * np.exp(-(np.arange(length) % 4000) / 2500)
    peak = np.abs(wave).max() or 1.0
    return (wave / peak * 32767 * 10 ** (random.uniform(-36, -5) / 20)).astype(np.float32)
