"""Videos sent as a list of JPEG frames: data:video/jpeg;base64,<frame>,<frame>,…"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sensorium.config import MediaLimits
from sensorium.errors import MediaError, RequestError, UnsupportedError
from sensorium.media import image
from sensorium.types import Media

MAGIC = b"\x00frame list\x00"
_OPTIONS = frozenset({"fps", "num_frames", "use_audio", "multiple_of", "min_frames", "stack"})


def join(frames: Sequence[bytes]) -> bytes:
    """One byte string that `split` and `from_bytes` read."""
    return MAGIC + b"".join(len(frame).to_bytes(4, "little") + frame for frame in frames)


def split(data: bytes) -> Iterator[bytes]:
    position = len(MAGIC)
    while position < len(data):
        size = int.from_bytes(data[position : position + 4], "little")
        yield data[position + 4 : position + 4 + size]
        position += 4 + size


def from_bytes(data: bytes, part: str, limits: MediaLimits, options: Mapping[str, Any]) -> Media:
    """The first num_frames pictures, fps (1) of them a second, all scaled to the size of the first.

    stack: they are one second of a camera, of which the first is a frame and the others lie between two.
    """
    if unknown := sorted(set(map(str, options)) - _OPTIONS):
        raise UnsupportedError(f"a list of frames takes no video option {unknown[0][:64]}", param=part or None)
    if options.get("use_audio"):
        raise UnsupportedError("a list of frames has no sound", param=part or None)
    fps, most = options.get("fps") or 1.0, options.get("num_frames") or limits.max_video_frames
    if type(fps) not in (int, float) or not 0 < fps <= 240 or type(most) is not int or most < 1:
        raise RequestError("fps must be a number above 0 and at most 240, num_frames an integer", param=part or None)
    frames: list[np.ndarray] = []
    for number, frame in enumerate(split(data)):
        if number == min(most, limits.max_video_frames):
            break
        pixels = image.from_bytes(frame, f"{part}[{number}]", limits).data
        if frames and pixels.shape != frames[0].shape:
            height, width = frames[0].shape[:2]
            pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
        frames.append(pixels)
    if not frames:
        raise MediaError("the list has no frames", param=part or None)
    digest = hashlib.blake2b(data, digest_size=32, person=b"frames", salt=repr((fps, len(frames))).encode()[:16])
    times = np.arange(len(frames)) / fps
    main = 1 if options.get("stack") else len(frames)
    found = {
        "duration_s": len(frames) / fps,
        "main_frames": tuple(range(main)),
        "main_times_s": tuple(times[:main].tolist()),
    }
    return Media("video", np.stack(frames), digest.digest(), times_s=times, part=part, options=found)
