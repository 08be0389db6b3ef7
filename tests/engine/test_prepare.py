"""From media as callers give them to prompts: who chooses frames, limits, uuids and what the cache answers."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import av
import numpy as np
import pytest
from small import ByteTokenizer

from sensorium.config import MediaLimits
from sensorium.engine.media_worker import decode_item
from sensorium.types import Media, MediaRef, Prepared


class FrameCounter:
    """A processor that says how many frames it was given."""

    tokenizer = ByteTokenizer()

    def prepare(self, media: Media, options: Mapping[str, Any]) -> Prepared:
        return Prepared("video", len(media.data))


class Picky(FrameCounter):
    def video_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"num_frames": 6, **given}


@pytest.fixture(scope="module")
def film() -> bytes:
    """Two seconds, ten frames each."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for index in range(20):
            pixels = np.full((32, 32, 3), 10 * index, dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))
    return out.getvalue()


@pytest.mark.parametrize(
    ("processor", "options", "frames"),
    [(FrameCounter(), {}, 2), (Picky(), {}, 6), (Picky(), {"num_frames": 3}, 3)],
    ids=["one a second", "the family's", "the request's"],
)
def test_who_chooses_the_frames(film: bytes, processor: Any, options: dict[str, int], frames: int):
    ref = MediaRef("video", film, "video", options)
    media = decode_item(processor, ref, MediaLimits())
    assert processor.prepare(media, {}).content == frames
