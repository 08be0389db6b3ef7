"""A video with sound, made here."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def write_clip(path: Path) -> Path:
    """Three seconds of ten frames each, from black to white, with a tone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("aac", rate=16000, layout="mono")
        for index in range(30):
            pixels = np.full((48, 64, 3), 8 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        tone = (np.sin(np.arange(48_000) / 20) / 4).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(sound.encode(frame))
        for one in (stream, sound):
            container.mux(one.encode(None))
    return path
