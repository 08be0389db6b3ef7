"""Video: the frames a model will see, chosen by their time, with the sound track. Only chosen frames are converted."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.stream import Disposition

from sensorium.config import MediaLimits
from sensorium.errors import MediaError, RequestError, SensoriumError, TooLargeError, UnsupportedError
from sensorium.media import audio, frame_list
from sensorium.media.container import open_container, sniff
from sensorium.media.sampling import (
    MAX_FRAMES,
    Segments,
    between_times,
    frame_audio_segments,
    packed_frames,
    recovered,
    second_times,
    uniform,
)
from sensorium.types import Media

CODECS = frozenset(
    {"av1", "h263", "h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "prores", "vp8", "vp9"}
)
MAX_FRAME_PIXELS = 1 << 20
"""Larger frames are scaled down while they are decoded: a frame is shown to models at a fraction of this."""
MAX_SOURCE_PIXELS = 1 << 25
MAX_PACKETS = 2_000_000
DECODE_BUDGET_S = 60.0
OPTIONS = frozenset(
    {"fps", "num_frames", "stack_frames", "use_audio", "packing", "multiple_of", "min_frames", "frame_recovery"}
)


def from_bytes(data: bytes, part: str, limits: MediaLimits, options: Mapping[str, Any] | None = None) -> Media:
    """Decodes the first video track of an mp4, mov, mkv, webm or avi file.

    options: fps and num_frames choose frames evenly; without them, one a second, or 64 in all.
    stack_frames adds so many minus one frames between two seconds. use_audio=False leaves the sound track out.
    frame_recovery lets a frame between a damaged one and the next wanted stand for it; everything is decoded then.
    multiple_of spreads a multiple of so many frames over the whole video, with fps at least min_frames (Qwen2-VL).
    """
    if data.startswith(frame_list.MAGIC):
        return frame_list.from_bytes(data, part, limits, options or {})
    options = check_options(dict(options or {}), part, limits)
    try:
        timeline = _scan(data, part, limits)
        wanted, main = _choose(timeline, options, limits)
        frames, kept, targets = _decode(
            data, timeline, wanted, part, limits, recover=bool(options.get("frame_recovery"))
        )
    except SensoriumError:
        raise
    except Exception:  # damaged files make the decoders raise nearly anything
        raise MediaError("the video is damaged and cannot be decoded", param=part) from None
    settings = repr(sorted(options.items())) + repr((limits.max_video_frames, MAX_FRAME_PIXELS))
    digest = hashlib.blake2b(data, digest_size=32, person=b"video")
    digest.update(settings.encode())
    shown = [(place, main[index]) for place, index in enumerate(targets) if index in main]
    found = {
        "duration_s": timeline.duration_s,
        # Positions in `data` of the frames that are no fillers, and the moments they were asked for.
        "main_frames": tuple(place for place, _ in shown) or (0,),
        "main_times_s": tuple(moment for _, moment in shown) or (0.0,),
    }
    sound = _sound(data, part, limits) if options.get("use_audio") is not False else None
    if sound is None and options.get("use_audio"):
        raise MediaError(
            "the video has no sound track that can be decoded; leave use_audio_in_video out for it", param=part
        )
    return Media(
        "video",
        np.stack(frames),
        digest.digest(),
        times_s=timeline.times_s[kept],
        audio=sound,
        part=part,
        options=options | found,
    )


def get_video_frame_audio_segments(
    data: bytes,
    limits: MediaLimits | None = None,
    *,
    stack_frames: int = 1,
    last_vad_timestamp: float | None = None,
    adjust_audio_length: bool = False,
    use_audio: bool = True,
    track: np.ndarray | None = None,
) -> Segments:
    """MiniCPM-o's published way to take a video apart, for callers who build the message themselves.

    track: samples at 16 kHz in place of the video's own sound.
    """
    limits = limits or MediaLimits()
    timeline = _scan(data, "video", limits)
    if use_audio and track is None and (sound := _sound(data, "video", limits)) is not None:
        track = sound.data
    return frame_audio_segments(
        lambda indices: _nearest(data, timeline, indices, limits),
        len(timeline.times_s),
        len(timeline.times_s) / timeline.duration_s,
        track if use_audio else None,
        stack_frames=stack_frames,
        last_vad_timestamp=last_vad_timestamp,
        adjust_audio_length=adjust_audio_length,
    )


def get_packed_frames(
    data: bytes, choose_fps: float = 3, force_packing: int | None = None, limits: MediaLimits | None = None
) -> tuple[list[np.ndarray], list[list[int]]]:
    """MiniCPM-V 4.5's published way: frames [H, W, 3] uint8, and their temporal ids grouped as they are packed."""
    limits = limits or MediaLimits()
    timeline = _scan(data, "video", limits)
    count = len(timeline.times_s)
    indices, groups = packed_frames(count, count / timeline.duration_s, choose_fps, force_packing)
    return _nearest(data, timeline, indices, limits), groups


def _nearest(data: bytes, timeline: _Timeline, indices: Sequence[int], limits: MediaLimits) -> list[np.ndarray]:
    """The frames of these numbers; for one that is damaged, that nearest to it."""
    frames, kept, _ = _decode(data, timeline, sorted(set(indices)), "video", limits)
    nearest = np.abs(kept[None, :] - np.asarray(indices)[:, None]).argmin(axis=1)
    return [frames[position] for position in nearest]


@dataclass(frozen=True, slots=True, eq=False)
class _Timeline:
    """When each frame is shown, read from the packets and not from the header.

    times_s [N] from the first frame on; pts [N] in stream units, None when the file has no usable timestamps and frames
    are counted instead; keys: sorted pts of frames that decoding can start from.
    """

    times_s: np.ndarray
    duration_s: float
    pts: np.ndarray | None
    keys: np.ndarray


def _scan(data: bytes, part: str, limits: MediaLimits) -> _Timeline:
    with open_container(data, sniff(data), part) as container:
        stream = _video_stream(container, part, limits)
        stamps: list[int | None] = []
        keys: list[int] = []
        for packet in _packets(container, stream):
            if packet.size and not packet.is_discard:
                stamp = packet.pts if packet.pts is not None else packet.dts
                stamps.append(stamp)
                if packet.is_keyframe and stamp is not None:
                    keys.append(stamp)
            if len(stamps) > MAX_PACKETS:
                raise TooLargeError(f"the video has more than {MAX_PACKETS} frames", param=part)
        if not stamps:
            raise MediaError("the video has no frames", param=part)
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        usable = None not in stamps and len(set(stamps)) == len(stamps)
        pts = np.sort(np.array(stamps, dtype=np.int64)) if usable else None
        if pts is not None:
            times = (pts - pts[0]).astype(np.float64) * float(stream.time_base)
            last = float(np.median(np.diff(times))) if len(times) > 1 else 1.0 / max(rate, 0.1)
        else:
            rate = rate if 0.1 <= rate <= 1000 else 25.0
            times, last = np.arange(len(stamps)) / rate, 1.0 / rate
    duration = float(times[-1]) + last
    if abs(duration - round(duration)) < 2e-3:
        duration = float(round(duration))  # some containers round to milliseconds; a frame less must not add a second
    if not duration <= limits.max_video_s:
        raise TooLargeError(f"the video is longer than {limits.max_video_s:g} seconds", param=part)
    return _Timeline(times, duration, pts, np.sort(np.array(keys, dtype=np.int64)))


def _choose(timeline: _Timeline, options: Mapping[str, Any], limits: MediaLimits) -> tuple[list[int], dict[int, float]]:
    """Sorted indices of the frames to decode, and the moments (s) of those that are not fillers between two seconds."""
    most = min(limits.max_video_frames, options.get("num_frames") or limits.max_video_frames)
    if "multiple_of" in options:
        indices = _spread(timeline, options, most)
        return indices, {index: float(timeline.times_s[index]) for index in indices}
    between: list[int] = []
    if options.get("fps") is not None or options.get("num_frames") is not None:
        moments = timeline.times_s[uniform(len(timeline.times_s), timeline.duration_s, most, options.get("fps"))]
    else:
        most = min(most, MAX_FRAMES)
        moments = np.array(second_times(timeline.duration_s, most))
        stack = options.get("stack_frames", 1)
        between = _shown_at(timeline, np.array(between_times(timeline.duration_s, stack, most)))
    # Where one frame is shown at several moments, it stands for the first.
    main = dict(zip(reversed(_shown_at(timeline, moments)), reversed(moments.tolist()), strict=True))
    return sorted({*main, *between}), main


def _spread(timeline: _Timeline, options: Mapping[str, Any], most: int) -> list[int]:
    """Indices of as many frames as fps asks for, rounded down to the multiple, at equal steps."""
    count, multiple = len(timeline.times_s), options["multiple_of"]
    wanted = timeline.duration_s * options["fps"] if "fps" in options else most
    number = int(min(max(wanted, options.get("min_frames", 1)), most, count))
    number = max(number - number % multiple, 1)
    return (np.arange(number) * (count / number)).astype(int).tolist()


def _shown_at(timeline: _Timeline, moments: np.ndarray) -> list[int]:
    """Index of the frame on screen at each moment; half a millisecond absorbs rounded timestamps."""
    indices = np.searchsorted(timeline.times_s, moments + 5e-4, side="right") - 1
    return np.clip(indices, 0, len(timeline.times_s) - 1).tolist()


def _decode(
    data: bytes, timeline: _Timeline, wanted: Sequence[int], part: str, limits: MediaLimits, *, recover: bool = False
) -> tuple[list[np.ndarray], np.ndarray, list[int]]:
    """The wanted frames [H, W, 3], their indices, and which wanted ones they stand for.

    Frames that damage took are left out, or with `recover` replaced as `recovered` says.
    """
    frames: list[np.ndarray] = []
    kept: list[int] = []
    targets: list[int] = []
    with open_container(data, sniff(data), part) as container:
        stream = _video_stream(container, part, limits)
        stream.thread_type, stream.codec_context.thread_count = "AUTO", 2
        convert = _Converter(len(wanted), stream, part, limits)
        if recover:
            found = recovered(wanted, len(timeline.times_s), _all(container, stream, timeline, part))
        else:
            found = ((index, index, frame) for index, frame in _walk(container, stream, timeline, wanted, part))
        for target, index, frame in found:
            frames.append(convert(frame))
            kept.append(index)
            targets.append(target)
    if not frames:
        raise MediaError("no frame of the video can be decoded", param=part)
    return frames, np.array(kept), targets


def _all(container: Any, stream: Any, timeline: _Timeline, part: str) -> Iterator[tuple[int, av.VideoFrame]]:
    """Every frame that decodes and is not marked as damaged, with its index."""
    deadline = time.monotonic() + DECODE_BUDGET_S
    for count, frame in enumerate(_frames(container, stream)):
        if time.monotonic() > deadline:
            raise MediaError("the video takes too long to decode", param=part)
        if timeline.pts is None:
            yield count, frame
        elif frame.pts is not None and not frame.is_corrupt:
            yield int(np.searchsorted(timeline.pts, frame.pts)), frame


def _walk(
    container: Any, stream: Any, timeline: _Timeline, wanted: Sequence[int], part: str
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decodes forward to each wanted frame, jumping to a later key frame where one lies in between."""
    deadline = time.monotonic() + DECODE_BUDGET_S
    todo = list(reversed(wanted))
    position = _jump(container, stream, timeline, todo[-1], None)
    frames = _frames(container, stream)
    count = -1
    while todo:
        frame = next(frames, None)
        if frame is None:
            return
        if time.monotonic() > deadline:
            raise MediaError("the video takes too long to decode", param=part)
        count += 1
        if timeline.pts is not None:
            if frame.pts is None:
                continue
            count = int(np.searchsorted(timeline.pts, frame.pts))
        while len(todo) > 1 and count > todo[-1]:
            todo.pop()  # damaged and not given out
        if count < todo[-1]:
            continue
        found = todo.pop()
        if count == found:
            yield found, frame
        if todo and (later := _jump(container, stream, timeline, todo[-1], position)) != position:
            position = later
            frames = _frames(container, stream)


def _jump(container: Any, stream: Any, timeline: _Timeline, index: int, position: int | None) -> int | None:
    """Seeks to the last key frame before frame `index` when that is past `position`; returns where decoding stands."""
    if timeline.pts is None or not len(timeline.keys):
        return position
    place = int(np.searchsorted(timeline.keys, timeline.pts[index], side="right")) - 1
    if place < 0 or (position is not None and timeline.keys[place] <= position):
        return position
    key = int(timeline.keys[place])
    if position is not None or place > 0:
        container.seek(key, stream=stream)
    return key


def _frames(container: Any, stream: Any) -> Iterator[av.VideoFrame]:
    for packet in _packets(container, stream):
        try:
            yield from packet.decode()
        except FFmpegError:
            continue  # a damaged packet costs its own frames only


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Packets up to where the file breaks off."""
    try:
        yield from container.demux(stream)
    except FFmpegError:
        return


def _video_stream(container: Any, part: str, limits: MediaLimits) -> Any:
    covers = Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & covers]
    if not streams:
        raise MediaError("the file has no video track", param=part)
    stream = streams[0]
    codec = stream.codec.canonical_name
    if codec not in CODECS:
        raise MediaError(f"video codec {codec} is not supported", param=part)
    _check_pixels(stream.width, stream.height, part, limits)
    return stream


def _check_pixels(width: int, height: int, part: str, limits: MediaLimits) -> None:
    if width * height > min(limits.max_pixels, MAX_SOURCE_PIXELS):
        raise TooLargeError(f"the frames of the video are {width}x{height}", param=part)


class _Converter:
    """Decoded frames to upright RGB arrays of one size, small enough for the number of frames wanted."""

    def __init__(self, count: int, stream: Any, part: str, limits: MediaLimits) -> None:
        self._part, self._limits = part, limits
        aspect = float(stream.sample_aspect_ratio or 1)
        self._aspect = aspect if 0.1 <= aspect <= 10 else 1.0
        self._pixels = min(MAX_FRAME_PIXELS, (256 << 20) // (3 * count))
        self._size: tuple[int, int] | None = None
        self._turns = 0

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        _check_pixels(frame.width, frame.height, self._part, self._limits)
        if self._size is None:
            width, height = frame.width * self._aspect, float(frame.height)
            scale = min(1.0, (self._pixels / (width * height)) ** 0.5)
            self._size = max(1, round(width * scale)), max(1, round(height * scale))
            self._turns = round(frame.rotation / 90) % 4
        pixels = frame.to_ndarray(format="rgb24", width=self._size[0], height=self._size[1])
        return np.rot90(pixels, self._turns)


def _sound(data: bytes, part: str, limits: MediaLimits) -> Media | None:
    """The sound track, or None when there is none that can be decoded."""
    try:
        samples = audio.decode_track(data, sniff(data), part, replace(limits, max_audio_s=limits.max_video_s))
    except MediaError:
        return None
    digest = hashlib.blake2b(data, digest_size=32, person=b"sound").digest()
    return Media("audio", samples, digest, rate=audio.RATE, part=part)


def check_options(options: dict[str, Any], part: str, limits: MediaLimits) -> dict[str, Any]:
    if unknown := sorted(set(map(str, options)) - OPTIONS):
        raise UnsupportedError(f"unknown video option {unknown[0][:64]}", param=part)
    options = {name: value for name, value in options.items() if value is not None}
    if options.get("packing", 1) != 1 and options.get("stack_frames", 1) != 1:
        raise RequestError("packing and stack_frames cannot be combined", param=part)
    if options.get("stack_frames", 1) != 1 and "multiple_of" in options:
        raise RequestError("multiple_of and stack_frames cannot be combined", param=part)
    if "min_frames" in options and not ("fps" in options and "multiple_of" in options):
        raise RequestError("min_frames needs fps and multiple_of", param=part)
    most_frames = limits.max_video_frames
    ranges = {"num_frames": most_frames, "min_frames": 768, "multiple_of": 8, "stack_frames": 10, "packing": 6}
    for name, most in ranges.items():
        value = options.get(name, 1)
        if type(value) is not int or not 1 <= value <= most:
            raise RequestError(f"{name} must be an integer from 1 to {most}", param=part)
    fps = options.get("fps", 1.0)
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps <= 240:
        raise RequestError("fps must be a number above 0 and at most 240", param=part)
    for name in ("use_audio", "frame_recovery"):
        if type(options.get(name, True)) is not bool:
            raise RequestError(f"{name} must be true or false", param=part)
    return options
