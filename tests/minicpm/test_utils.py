"""Videos taken apart by the functions of sensorium.minicpm.utils. The recipes themselves: tests/media/test_video.py."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sensorium.errors import MediaError, RequestError, UnsupportedError
from sensorium.minicpm.utils import concat_images, encode_video, get_video_frame_audio_segments, load_audio


def grey(picture):
    return int(np.asarray(picture).mean())


def test_a_frame_and_its_sound_for_every_second(video):
    frames, sounds, stacked = get_video_frame_audio_segments(str(video))
    assert [grey(frame) for frame in frames] == pytest.approx([0, 80, 160], abs=4)
    assert [len(sound) for sound in sounds] == [16_000, 16_000, pytest.approx(16_000, abs=800)]
    assert stacked is None
    assert get_video_frame_audio_segments(video, use_audio=False)[1] is None
    assert len(get_video_frame_audio_segments(video, last_vad_timestamp=1.5)[0]) == 2


def test_frames_between_as_one_picture(video):
    frames, sounds, stacked = get_video_frame_audio_segments(video, stack_frames=5, adjust_audio_length=True)
    assert len(frames) == len(sounds) == len(stacked) == 3
    assert stacked[0].size == (2 * 64 + 6, 2 * 48 + 6)
    assert {sound.shape for sound in sounds} == {(16_000,)}


def test_sound_of_another_file(video, tmp_path):
    silent = np.zeros(8000, np.int16).tobytes()
    header = (
        b"RIFF"
        + (36 + len(silent)).to_bytes(4, "little")
        + b"WAVEfmt \x10\0\0\0\1\0\1\0\x80\x3e\0\0\0\x7d\0\0\2\0\x10\0"
    )
    path = tmp_path / "other.wav"
    path.write_bytes(header + b"data" + len(silent).to_bytes(4, "little") + silent)
    assert len(load_audio(path)) == 8000
    _, sounds, _ = get_video_frame_audio_segments(video, audio_path=path)
    assert [len(sound) for sound in sounds] == [8000, 1600, 1600]
    assert not any(sound.any() for sound in sounds)


def test_frames_packed_for_v45(video):
    frames, groups = encode_video(video, 5)
    assert len(frames) == 15
    assert groups == [[time] for (time,) in groups]
    assert encode_video(video, 5, force_packing=3)[1][0] == [time for (time,) in groups[:3]]


def test_pictures_beside_each_other():
    assert concat_images([Image.new("RGB", (30, 20))] * 2).size == (30, 46)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda video: get_video_frame_audio_segments(video, use_ffmpeg=True), UnsupportedError, "use_ffmpeg"),
        (lambda video: get_video_frame_audio_segments(video, stack_frames=0), RequestError, "stack_frames"),
        (
            lambda video: get_video_frame_audio_segments("absent.mp4"),
            MediaError,
            "video_path: cannot read 'absent.mp4'",
        ),
        (lambda video: get_video_frame_audio_segments(b"nothing"), MediaError, "video"),
        (lambda video: encode_video(video, force_packing=7), RequestError, "force_packing"),
        (lambda video: concat_images([]), RequestError, "images"),
    ],
)
def test_refusals(video, call, error, words):
    with pytest.raises(error, match=words):
        call(video)
