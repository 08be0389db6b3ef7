"""The functions of minicpmo.utils that users call, under their names: videos taken apart as MiniCPM was trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sensorium.config import MediaLimits
from sensorium.errors import MediaError, RequestError, UnsupportedError
from sensorium.media import audio, stack, video
from sensorium.media.sampling import MAX_PACKING

_LIMITS = MediaLimits(max_audio_s=float("inf"))


def get_video_frame_audio_segments(
    video_path: str | Path | bytes,
    audio_path: str | Path | bytes | None = None,
    last_vad_timestamp: float | None = None,
    stack_frames: int = 1,
    use_ffmpeg: bool = False,
    adjust_audio_length: bool = False,
    use_audio: bool = True,
) -> tuple[list[Image.Image], list[np.ndarray] | None, list[Image.Image | None] | None]:
    """A frame for every second of a video (of long ones 64), the sound of each, and the frames between as one picture.

    Files may be given as bytes. Sounds are float32 at 16 kHz, None where there is no sound; the third list is None
    unless stack_frames is above 1, and has a None for a second without frames between. audio_path: sound from another
    file. last_vad_timestamp: where the video ends, seconds. adjust_audio_length: a second of sound for every frame.
    use_ffmpeg is refused: it picks other frames, and files are decoded by FFmpeg's libraries either way.
    """
    if use_ffmpeg:
        raise UnsupportedError(
            "use_ffmpeg: the frames that the ffmpeg program picks are not those of the default way; leave it out",
            param="use_ffmpeg",
        )
    if stack_frames < 1:
        raise RequestError(f"stack_frames: must be at least 1; got {stack_frames}", param="stack_frames")
    sound = None
    if use_audio and audio_path is not None:
        sound = load_audio(audio_path)
    found = video.get_video_frame_audio_segments(
        _read(video_path, "video_path"),
        _LIMITS,
        stack_frames=stack_frames,
        last_vad_timestamp=last_vad_timestamp,
        adjust_audio_length=adjust_audio_length,
        use_audio=use_audio,
        track=sound,
    )
    stacked = None
    if found.stacked is not None:
        stacked = [None if one is None else Image.fromarray(one) for one in found.stacked]
    return [Image.fromarray(frame) for frame in found.frames], found.sounds, stacked


def concat_images(images: Sequence[Image.Image]) -> Image.Image:
    """Several pictures as one, as get_video_frame_audio_segments shows the frames between two seconds."""
    if not images:
        raise RequestError("images: there are none", param="images")
    return Image.fromarray(stack.concat_images([np.asarray(one.convert("RGB")) for one in images]))


def encode_video(
    video_path: str | Path | bytes, choose_fps: float = 3, force_packing: int | None = None
) -> tuple[list[Image.Image], list[list[int]]]:
    """The recipe of MiniCPM-V 4.5's model card: frames, and temporal_ids for chat(), grouped as they are packed."""
    if force_packing is not None and not 1 <= force_packing <= MAX_PACKING:
        raise RequestError(f"force_packing: must be 1 to {MAX_PACKING}; got {force_packing}", param="force_packing")
    frames, groups = video.get_packed_frames(_read(video_path, "video_path"), choose_fps, force_packing, _LIMITS)
    return [Image.fromarray(frame) for frame in frames], groups


def load_audio(path: str | Path | bytes, max_ms: float | None = None) -> np.ndarray:
    """The sound of a file, float32 [S] at 16 kHz mono, cut to max_ms milliseconds."""
    samples = audio.from_bytes(_read(path, "audio_path"), "audio_path", _LIMITS).data
    return samples if max_ms is None else samples[: int(max_ms * audio.RATE / 1000)]


def _read(path: str | Path | bytes, name: str) -> bytes:
    if isinstance(path, bytes):
        return path
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise MediaError(f"{name}: cannot read {str(path)!r} ({error.strerror})", param=name) from error
