"""Decoding video: frames by time, reference sampling, geometry, and files that lie or break off."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from clips import sound_file, tone, video_file, wav
from PIL import Image

from sensorium.config import MediaLimits
from sensorium.errors import MediaError, RequestError, TooLargeError
from sensorium.media import frame_list, video
from sensorium.media.local import read_local
from sensorium.media.sampling import frame_audio_segments, packed_frames, recovered, uniform
from sensorium.media.stack import concat_images
from sensorium.types import Media, MediaRef

LIMITS = MediaLimits()


def decode(data: bytes, limits: MediaLimits = LIMITS, **options: object) -> Media:
    media = video.from_bytes(data, "messages[0].content[1]", limits, options)
    assert media.data.dtype == np.uint8
    assert media.data.ndim == 4
    assert media.times_s is not None
    assert len(media.times_s) == len(media.data)
    return media


def greys(media: Media) -> list[int]:
    """The grey of each frame, which tells its place in the clip."""
    return [int(frame[-4:, -4:].mean()) for frame in media.data]


@pytest.fixture(scope="module")
def clip() -> bytes:
    """Three seconds at 25 frames a second, with sound."""
    return video_file()


@pytest.mark.parametrize(
    ("container", "codec", "sound"),
    [("mp4", "libx264", "aac"), ("mov", "libx264", "aac"), ("matroska", "libx264", "libopus"),
     ("webm", "libvpx", "libopus"),
     ("webm", "libvpx-vp9", "libopus"), ("avi", "mpeg4", "mp3"), ("avi", "mjpeg", "mp3")],
)  # fmt: skip
def test_formats(container: str, codec: str, sound: str):
    media = decode(video_file(container, codec, sound=sound))
    np.testing.assert_allclose(media.times_s, [0, 1, 2], atol=1e-6)
    np.testing.assert_allclose(greys(media), [16, 83, 151], atol=4)
    assert media.audio is not None
    assert len(media.audio.data) == pytest.approx(48_000, abs=1500)


def test_default_is_a_frame_a_second_up_to_the_limit():
    long = video_file(fps=10, frames=300, sound=None)
    assert len(decode(long).data) == 30
    some = decode(long, replace(LIMITS, max_video_frames=8))
    assert len(some.data) == 8
    assert some.audio is None
    np.testing.assert_allclose(some.times_s[[0, -1]], [0, 29.9], atol=0.01)


def test_options(clip: bytes):
    np.testing.assert_allclose(decode(clip, fps=2).times_s, np.linspace(0, 2.96, 6), atol=0.04)
    assert len(decode(clip, num_frames=5).data) == 5
    assert len(decode(clip, num_frames=5, fps=10).data) == 5
    assert decode(clip, use_audio=False).audio is None
    stacked = decode(clip, stack_frames=5)
    assert len(stacked.data) == 15
    assert stacked.options["main_frames"] == (0, 5, 10)
    assert decode(clip, fps=2).digest != decode(clip).digest == decode(clip).digest


@pytest.mark.parametrize(
    "options",
    [{"fps": 10**9}, {"fps": 0}, {"fps": -1}, {"fps": float("nan")}, {"fps": "1"}, {"fps": True}, {"num_frames": 10**9},
     {"num_frames": -1}, {"num_frames": 0}, {"num_frames": 2.0}, {"num_frames": "8"}, {"stack_frames": 99},
     {"packing": 7}, {"multiple_of": 9}, {"min_frames": 0, "fps": 2, "multiple_of": 2}, {"min_frames": 4},
     {"multiple_of": 2, "stack_frames": 2},
     {"use_audio": 1}, {"frame_rate": 1}, {"packing": 2, "stack_frames": 2}],
)  # fmt: skip
def test_h125_options_out_of_range_are_refused(clip: bytes, options: dict):
    with pytest.raises(RequestError) as caught:
        decode(clip, **options)
    assert caught.value.param == "messages[0].content[1]"


@pytest.mark.parametrize(("rotation", "corner"), [(90, (2, 0)), (180, (2, 2)), (-90, (0, 2)), (0, (0, 0))])
def test_h127_rotation(rotation: int, corner: tuple[int, int]):
    """The red corner turns with the display matrix."""
    if not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write a rotation")
    frame = decode(video_file(rotation=rotation, frames=3)).data[0]
    assert frame.shape == ((64, 48, 3) if rotation in (90, -90) else (48, 64, 3))
    thirds = [
        [frame[y : y + 4, x : x + 4].mean((0, 1)) for x in (4, 0, frame.shape[1] - 8)]
        for y in (4, 0, frame.shape[0] - 8)
    ]
    red = thirds[corner[0]][corner[1]]
    assert red[0] > 200
    assert red[1] < 60


def test_large_frames_are_scaled_down_and_huge_ones_refused():
    media = decode(video_file(size=(1920, 1080), frames=2, sound=None))
    height, width = media.data.shape[1:3]
    assert width * height <= video.MAX_FRAME_PIXELS + width
    assert width / height == pytest.approx(16 / 9, rel=0.01)
    with pytest.raises(TooLargeError):
        decode(video_file(size=(320, 240), frames=2, sound=None), replace(LIMITS, max_pixels=50_000))


def test_a_multiple_of_frames_spread_evenly():
    wanted = {"fps": 2, "min_frames": 4, "multiple_of": 2}
    long = video_file(fps=10, frames=95, sound=None)
    np.testing.assert_allclose(decode(long, **wanted).times_s, np.arange(0, 95, 95 / 18).astype(int) / 10, atol=0.01)
    assert len(decode(long, num_frames=7, multiple_of=2).data) == 6
    assert len(decode(long, replace(LIMITS, max_video_frames=2), **wanted).data) == 2
    assert len(decode(video_file(fps=10, frames=8, sound=None), **wanted).data) == 4
    assert len(decode(video_file(fps=10, frames=3, sound=None), **wanted).data) == 2
    assert len(decode(video_file(fps=10, frames=1, sound=None), **wanted).data) == 1


@pytest.mark.parametrize("frames", [1, 2])
def test_h123_very_short_videos(frames: int):
    assert len(decode(video_file(frames=frames, sound=None)).data) == 1


def test_h124_an_hour_without_frames_is_sampled_by_time():
    data = video_file("matroska", sound=None, pts_ms=lambda i: i * 40 if i < 40 else i * 40 + 3_000_000)
    media = decode(data)
    assert 2 <= len(media.data) <= 5
    assert media.times_s[-1] == pytest.approx(3002, abs=1)


def test_h119_the_headers_duration_is_not_believed(clip: bytes):
    """Ten hours in the movie header, three seconds of frames."""
    data = bytearray(clip)
    for name in (b"mvhd", b"tkhd", b"mdhd"):
        at = data.find(name)
        offset = {b"mvhd": 20, b"tkhd": 24, b"mdhd": 20}[name]
        data[at + offset : at + offset + 4] = struct.pack(">I", 2**31 - 1)
    begun = time.monotonic()
    with suppress(MediaError):
        assert decode(bytes(data)).times_s[-1] < 3
    assert time.monotonic() - begun < 60


def test_length_limit():
    data = video_file("matroska", fps=1, frames=100, sound=None)
    with pytest.raises(TooLargeError, match="longer than 60 seconds"):
        decode(data, replace(LIMITS, max_video_s=60.0))


def test_h130_h139_truncated_files_keep_their_good_frames():
    data = video_file("matroska", frames=75, sound="libopus")
    lengths = []
    for eighth in range(1, 9):
        part = data[: len(data) * eighth // 8]
        media = decode(part)
        lengths.append(len(media.data))
        np.testing.assert_array_equal(media.data, decode(part).data)
    assert lengths == sorted(lengths)
    assert lengths[-1] == 3


def test_h139_damage_in_the_middle_costs_frames_only(clip: bytes):
    for eighth in range(2, 8):
        data = bytearray(clip)
        at = len(data) * eighth // 8
        data[at : at + 64] = bytes(64)
        with suppress(MediaError):  # where the index was hit
            assert 1 <= len(decode(bytes(data)).data) <= 3


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="H-122 nothing"),
        pytest.param(sound_file("mp4", "aac", tone(1.0, 48_000)), id="H-122 only sound"),
        pytest.param(wav(bytes(2000)), id="a wav"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(99), id="H-079 an image"),
        pytest.param(b"\0\0\0\x18ftypisom" + bytes(500), id="H-130 no index"),
        pytest.param(b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/x.ts\n", id="H-132 HLS"),
        pytest.param(b"ffconcat version 1.0\nfile '/etc/passwd'\n", id="H-132 concat"),
        pytest.param(b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nm=video 9 RTP/AVP 96\r\n", id="H-132 SDP"),
        pytest.param(b"<?xml version='1.0'?><MPD></MPD>", id="H-132 DASH"),
        pytest.param(b"\x1aE\xdf\xa3" + bytes(300), id="broken matroska"),
        pytest.param(b"G" + bytes(187) + b"G" + bytes(187), id="H-136 transport stream"),
        pytest.param(b"FLV\x01\x05" + bytes(100), id="H-136 flv"),
    ],
)
def test_what_is_no_video_is_refused(data: bytes):
    with pytest.raises(MediaError) as caught:
        decode(data)
    assert caught.value.param == "messages[0].content[1]"


def test_h137_codecs_not_on_the_list_are_refused():
    with pytest.raises(MediaError, match="codec"):
        decode(video_file("avi", "msmpeg4v2", sound=None))


def test_h134_one_key_frame_and_a_late_target_stay_within_the_budget(monkeypatch: pytest.MonkeyPatch, clip: bytes):
    monkeypatch.setattr(video, "DECODE_BUDGET_S", -1.0)
    with pytest.raises(MediaError, match="too long to decode"):
        decode(clip)


# ---- published recipes --------------------------------------------------------------------------------------------


def test_seconds_and_their_sound_equal_the_reference(golden: Path):
    cases = json.loads((golden / "minicpmo45" / "video" / "frame_audio_segments.json").read_text())["cases"]
    for case in cases:
        asked: list[list[int]] = []

        def give(indices: Sequence[int], asked: list[list[int]] = asked) -> list[np.ndarray]:
            asked.append(list(indices))
            return [np.zeros((36, 64, 3), dtype=np.uint8)] * len(indices)

        found = frame_audio_segments(
            give, case["num_video_frames"], case["fps"], np.arange(case["audio_samples"], dtype=np.float64),
            stack_frames=case["stack_frames"], adjust_audio_length=case["adjust_audio_length"],
        )  # fmt: skip
        assert asked[0] == case["frame_indices"]
        assert (asked[1] if len(asked) > 1 else None) == case["stack_indices"]
        assert [[int(sound[0]), len(sound)] for sound in found.sounds or ()] == case["audio_segments"]
        sizes = found.stacked and [
            frame if frame is None else [frame.shape[1], frame.shape[0]] for frame in found.stacked
        ]
        assert sizes == case["stacked_sizes"]


def test_packing_equals_the_reference(golden: Path):
    for case in json.loads((golden / "minicpmo45" / "video" / "encode_video.json").read_text())["cases"]:
        indices, groups = packed_frames(
            case["num_video_frames"], case["fps"], case["choose_fps"], case["force_packing"]
        )
        assert indices == case["frame_indices"]
        assert groups == case["temporal_groups"]


def test_stacked_pictures_equal_the_reference(golden: Path):
    for case in json.loads((golden / "minicpmo45" / "video" / "concat" / "concat.json").read_text())["cases"]:
        stacked = concat_images(
            [synthetic(*size, seed) for size, seed in zip(case["frame_sizes"], case["seeds"], strict=True)]
        )
        assert [stacked.shape[1], stacked.shape[0]] == case["out_size"]
        assert hashlib.sha256(stacked.tobytes()).hexdigest() == case["sha256_uint8_hwc"]


def synthetic(w: int, h: int, s: int) -> np.ndarray:
    """The reference data's pictures, by their integer formula."""
    y, x = np.mgrid[0:h, 0:w]
    check = ((x // 24 + y // 20) % 2) * 64
    red = ((x * 255 // max(w - 1, 1) + 13 * s) % 256 + check) % 256
    return np.stack(
        [red, (y * 255 // max(h - 1, 1) + 29 * s) % 256, ((x * x + y * y) // (97 + s) + 7 * s) % 256], -1
    ).astype(np.uint8)


def test_taking_a_real_file_apart(clip: bytes):
    found = video.get_video_frame_audio_segments(clip, stack_frames=5)
    assert [int(frame[-4:, -4:].mean()) for frame in found.frames] == pytest.approx([16, 83, 151], abs=4)
    assert [len(sound) for sound in found.sounds or ()] == [16_000] * 3
    assert [frame.shape for frame in found.stacked or () if frame is not None] == [(102, 134, 3)] * 3
    assert video.get_video_frame_audio_segments(clip, use_audio=False).sounds is None


@pytest.mark.parametrize(
    ("total", "duration", "options", "expected"),
    [
        (100, 4.0, {"num_frames": 32}, [0, 3, 6, 9, 12, 15, 19, 22, 25, 28, 31, 35, 38, 41, 44, 47, 51, 54, 57, 60, 63,
                                        67, 70, 73, 76, 79, 83, 86, 89, 92, 95, 99]),
        (100, 4.0, {"fps": 2}, [0, 14, 28, 42, 56, 70, 84, 99]),
        (300, 10.0, {"num_frames": 8}, [0, 42, 85, 128, 170, 213, 256, 299]),
        (100, 4.0, {"fps": 0.1}, [0]),
    ],
)  # fmt: skip
def test_frames_spread_from_first_to_last(total: int, duration: float, options: dict, expected: list[int]):
    assert uniform(total, duration, **options) == expected


@pytest.mark.parametrize(
    ("damaged", "sources"),
    [
        ({6}, [0, 7, 12, 18]),
        ({6, 7, 8}, [0, 9, 12, 18]),
        (set(range(6, 13)), [0, 13, 18]),
        ({18}, [0, 6, 12, 19]),
        (set(range(15, 20)), [0, 6, 12]),
        (set(), [0, 6, 12, 18]),
    ],
)
def test_who_stands_for_a_damaged_frame(damaged: set[int], sources: list[int]):
    decoded = ((index, None) for index in range(20) if index not in damaged)
    assert [index for _, index, _ in recovered([0, 6, 12, 18], 20, decoded)] == sources


def test_a_damaged_frame_is_left_out_or_stood_for():
    """S003-24: every frame of this file stands for itself; the bytes of the seventh are gone."""
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as file:
        stream = file.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for shade in range(20):
            pixels = np.full((48, 64, 3), 12 * shade, dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))
    data = bytearray(out.getvalue())
    with av.open(io.BytesIO(data), format="matroska") as file:
        packets = [bytes(packet) for packet in file.demux(video=0) if packet.size]
    start = data.index(packets[6])
    data[start : start + len(packets[6])] = bytes(len(packets[6]))
    seen = {}
    for recovery in (False, True):
        media = decode(bytes(data), num_frames=4, frame_recovery=recovery)
        assert media.times_s is not None
        seen[recovery] = np.round(media.times_s * 10).astype(int).tolist()
    assert seen == {False: [0, 12, 19], True: [0, 7, 12, 19]}


def frames_url(*shades: int, size: tuple[int, int] = (32, 24)) -> str:
    frames = []
    for shade in shades:
        out = io.BytesIO()
        Image.new("RGB", size, (shade, shade, shade)).save(out, "JPEG")
        frames.append(base64.b64encode(out.getvalue()).decode())
    return "data:video/jpeg;base64," + ",".join(frames)


def test_a_list_of_frames_is_a_video():
    data = read_local(MediaRef("video", frames_url(10, 100, 200)), LIMITS)
    media = decode(data)
    assert media.data.shape == (3, 24, 32, 3)
    assert np.abs(media.data[:, 0, 0, 0].astype(int) - [10, 100, 200]).max() <= 2
    assert media.times_s is not None
    assert media.times_s.tolist() == [0, 1, 2]
    assert len(decode(data, num_frames=2, fps=4).data) == 2
    assert decode(data, fps=2).digest != media.digest


@pytest.mark.parametrize("url", ["data:video/jpeg;base64,", "data:video/jpeg;base64,!!", frames_url(1) + ",AAAA"])
def test_lists_of_something_else(url: str):
    with pytest.raises(MediaError):
        decode(read_local(MediaRef("video", url, "p"), LIMITS))


def test_h126_too_many_frames_are_counted_before_one_is_decoded():
    """A frame that is decoded would be refused for what it holds."""
    with pytest.raises(MediaError, match="5000 frames"):
        read_local(MediaRef("video", "data:video/jpeg;base64," + ",".join(["AAAA"] * 5000), "p"), LIMITS)


def test_frames_of_one_second_are_a_frame_and_what_lies_between():
    pictures = [np.full((8, 8, 3), value, dtype=np.uint8) for value in (0, 100, 200)]
    files = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        files.append(file.getvalue())
    media = decode(frame_list.join(files), fps=3, stack=True)
    np.testing.assert_array_equal(media.data, np.stack(pictures))
    assert (media.options["main_frames"], media.options["main_times_s"]) == ((0,), (0.0,))
    assert decode(frame_list.join(files), fps=3).options["main_frames"] == (0, 1, 2)
