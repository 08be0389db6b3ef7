"""Decoding audio: every format to 16 kHz mono, lengths bounded while decoding, headers not believed."""

from __future__ import annotations

import struct
import timeit
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from clips import pcm, sound_file, tone, video_file, wav

from sensorium.config import MediaLimits
from sensorium.errors import MediaError, RequestError, TooLargeError
from sensorium.media import audio
from sensorium.media.container import sniff
from sensorium.media.wav import read_wav

LIMITS = MediaLimits(max_audio_s=60.0)


def decode(data: bytes, limits: MediaLimits = LIMITS, **options: object) -> np.ndarray:
    media = audio.from_bytes(data, "messages[0].content[1]", limits, options)
    assert media.data.dtype == np.float32
    assert media.data.ndim == 1
    assert media.rate == 16_000
    return media.data


def loudness(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples.astype(np.float64) ** 2)))


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp3", "mp3"), ("ogg", "libopus"), ("flac", "flac"), ("mp4", "aac"), ("webm", "libopus"), ("matroska", "libopus"),
     ("adts", "aac"), ("aiff", "pcm_s16be"), ("wav", "adpcm_ms"), ("wav", "pcm_s16le"), ("wav", "pcm_u8"),
     ("wav", "pcm_s24le"), ("wav", "pcm_s32le"), ("wav", "pcm_f32le"), ("wav", "pcm_f64le"), ("wav", "pcm_mulaw"),
     ("wav", "pcm_alaw"), ("caf", "pcm_s16le"), ("au", "pcm_s16be")],
)  # fmt: skip
def test_formats(container: str, codec: str):
    samples = decode(sound_file(container, codec, tone(1.5, 48_000)))
    assert abs(len(samples) - 24_000) < 1500  # lossy encoders add silence at the ends
    assert loudness(samples) == pytest.approx(0.5 / 2**0.5, rel=0.06)


def test_a_wav_at_our_rate_is_read_exactly():
    samples = np.random.default_rng(0).integers(-32768, 32768, 5000).astype("<i2")
    np.testing.assert_array_equal(decode(wav(samples.tobytes())), samples.astype(np.float32) / 32768)


def test_channels_are_averaged_and_rates_converted():
    left, right = tone(1.0, 44_100), tone(1.0, 44_100, pitch=880.0)
    decoded = decode(wav(pcm(np.stack([left, right], axis=1)), rate=44_100, channels=2))
    expected = (tone(1.0) + tone(1.0, pitch=880.0)) / 2
    assert len(decoded) == 16_000
    assert np.abs(decoded - expected)[100:-100].max() < 2e-3


def test_extensible_headers_and_odd_chunks():
    layout = (
        struct.pack("<HHIIHH", 0xFFFE, 1, 16_000, 32_000, 2, 16)
        + struct.pack("<HHI", 22, 16, 4)
        + b"\x01\0"
        + bytes(14)
    )
    chunks = b"LIST\x03\0\0\0abc\0" + b"fmt " + struct.pack("<I", 40) + layout + b"data\x04\0\0\0\0\0\0@"
    np.testing.assert_array_equal(decode(b"RIFF\0\0\0\0WAVE" + chunks), [0, 0.5])


LYING = {
    "H-141 claims 4 GB": wav(pcm(tone(0.5)), size=0xFFFFFFF0),
    "H-141 claims nothing": wav(pcm(tone(0.5)), size=0),
    "H-141 still recording": wav(pcm(tone(0.5)), size=0xFFFFFFFF),
}


@pytest.mark.parametrize("case", LYING)
def test_lying_headers_give_what_is_really_there(case: str):
    assert len(decode(LYING[case])) == 8000


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        pytest.param(b"", MediaError, id="nothing"),
        pytest.param(b"RIFF", MediaError, id="four bytes"),
        pytest.param(wav(b""), MediaError, id="H-142 no samples"),
        pytest.param(
            wav(np.array([np.nan] * 2000, dtype="<f4").tobytes(), bits=32, codec=3), MediaError, id="H-143 NaN"
        ),
        pytest.param(
            wav(np.array([np.inf] * 2000, dtype="<f4").tobytes(), bits=32, codec=3), MediaError, id="H-143 inf"
        ),
        pytest.param(wav(np.array([1e300] * 9, dtype="<f8").tobytes(), bits=64, codec=3), MediaError, id="H-143 1e300"),
        pytest.param(wav(pcm(tone(1)), rate=0), MediaError, id="H-144 0 Hz"),
        pytest.param(wav(pcm(tone(1)), rate=1), MediaError, id="H-144 1 Hz"),
        pytest.param(wav(pcm(tone(1)), rate=2**32 - 1), MediaError, id="H-144 4 GHz"),
        pytest.param(wav(bytes(4000), channels=100), MediaError, id="H-144 100 channels"),
        pytest.param(wav(bytes(4000), channels=0), MediaError, id="no channels"),
        pytest.param(b"ID3\x04\0\0\0\0\x0f\x7f" + bytes(2000), MediaError, id="H-146 tags without sound"),
        pytest.param(b"MThd\0\0\0\x06" + bytes(50), MediaError, id="H-149 MIDI"),
        pytest.param(b"Extended Module: x" + bytes(50), MediaError, id="H-149 tracker"),
        pytest.param(b"#EXTM3U\nhttp://127.0.0.1/x.ts\n", MediaError, id="H-132 playlist"),
        pytest.param(video_file(sound=None), MediaError, id="H-150 video without sound"),
        pytest.param(wav(pcm(tone(61))), TooLargeError, id="H-140 too long"),
    ],
)
def test_refusals(data: bytes, problem: type[RequestError]):
    with pytest.raises(problem) as caught:
        decode(data)
    assert type(caught.value) is problem
    assert caught.value.param == "messages[0].content[1]"
    assert "av." not in caught.value.message


def test_h140_h145_long_sounds_stop_at_the_limit_without_being_held():
    data = sound_file("flac", "flac", np.zeros(48_000 * 120, dtype=np.float32))
    assert len(data) < 200_000
    tracemalloc.start()
    with pytest.raises(TooLargeError, match="longer than 60 seconds"):
        decode(data)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("rate", [8000, 16_000])
@pytest.mark.parametrize("value", [1e38, 1e-42, 0.0, 1.0])
def test_h143_h151_extreme_values_stay_finite_or_are_refused(value: float, rate: int):
    body = np.full(8000, value, dtype="<f4").tobytes()
    try:
        assert np.isfinite(decode(wav(body, rate=rate, bits=32, codec=3))).all()
    except MediaError:
        assert value > 1


@pytest.mark.parametrize("samples", [1, 399, 400, 401, 15_999, 16_001])
def test_h142_h156_short_and_odd_lengths_are_kept(samples: int):
    assert len(decode(wav(bytes(2 * samples)))) == samples


def test_h146_tags_are_skipped():
    tag = b"ID3\x04\0\0" + bytes([0, 64, 0, 0]) + b"APIC" + bytes(2**20 - 4)
    assert loudness(decode(tag + sound_file("mp3", "mp3", tone(1.0, 48_000)))) > 0.3


def test_h150_a_video_gives_its_sound():
    assert len(decode(video_file())) == pytest.approx(48_000, abs=1500)


def test_damaged_files_keep_what_precedes_the_damage():
    data = sound_file("ogg", "libopus", tone(2.0, 48_000))
    for eighth in range(1, 9):
        try:
            assert len(decode(data[: len(data) * eighth // 8])) <= 32_000
        except MediaError:
            assert eighth < 4


def test_the_format_field_is_only_a_hint():
    data = sound_file("mp3", "mp3", tone(1.0, 48_000))
    np.testing.assert_array_equal(decode(data, format="wav"), decode(data, format="mp3"))
    assert len(decode(b"\0\0\0\0" + data, format="mp3")) > 10_000  # an mp3 that does not begin with a frame
    with pytest.raises(MediaError):
        decode(b"\0\0\0\0" + data)


def test_arrays():
    np.testing.assert_array_equal(audio.from_array(tone(0.1)).data, tone(0.1))
    stereo = np.stack([tone(0.1), np.zeros(1600)], axis=1).astype(np.float64)
    np.testing.assert_allclose(audio.from_array(stereo).data, tone(0.1) / 2, atol=1e-7)
    integers = np.array([-32768, 0, 16384], dtype=np.int16)
    np.testing.assert_array_equal(audio.from_array(integers).data, [-1, 0, 0.5])
    assert len(audio.from_array(tone(1.0, 8000), 8000).data) == 16_000
    for wrong in (np.zeros(0), np.zeros((2, 2, 2)), np.array(["a"]), np.array([np.nan]), np.zeros(9, dtype=bool)):
        with pytest.raises(MediaError):
            audio.from_array(wrong, part="p")
    with pytest.raises(TooLargeError):
        audio.from_array(np.zeros(16_001), limits=replace(LIMITS, max_audio_s=1.0))


def test_digests_depend_on_content_rate_and_shape():
    samples = tone(0.2)
    digests = {
        audio.from_array(samples).digest,
        audio.from_array(samples, 8000).digest,
        audio.from_array(samples.reshape(-1, 2)).digest,
        audio.from_array(samples * 2).digest,
        audio.from_bytes(wav(pcm(samples)), "", LIMITS).digest,
    }
    assert len(digests) == 5
    assert audio.from_array(samples).digest in digests


def test_reading_a_wav_takes_no_time():
    data = wav(pcm(tone(60)))
    assert read_wav(data) is not None
    assert min(timeit.repeat(lambda: read_wav(data), number=1, repeat=20)) < 0.01


def test_sniffing_never_asks_ffmpeg():
    assert sniff(b"RIFF\0\0\0\0WEBP") is None
    assert sniff(b"\xff\xd8\xff\xe0") is None
    assert sniff(b"ffconcat version 1.0\nfile '/etc/passwd'") is None
    assert sniff(b"v=0\r\no=- 0 0 IN IP4 127.0.0.1") is None
