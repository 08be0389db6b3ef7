"""Sound as files, made piece by piece: every format plays, in time and without seams."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from sensorium.errors import RequestError
from sensorium.media.encode import RATE, SoundEncoder, Tempo, Wire, encode, media_type, to_alaw, to_mulaw
from sensorium.media.wav import WavFile, read_wav

FORMATS = ("wav", "pcm", "mp3", "opus", "aac", "flac")


def tone(seconds: float = 1.0, hertz: float = 440.0) -> bytes:
    return (np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE) * 8000).astype("<i2").tobytes()


def pieces(pcm: bytes, step: int = 7000) -> list[bytes]:
    return [pcm[start : start + step] for start in range(0, len(pcm), step)]


def decoded(data: bytes, form: str) -> tuple[np.ndarray, int]:
    """float [n] and the rate, as FFmpeg plays the file."""
    if form == "pcm":
        return np.frombuffer(data, "<i2") / 32768, RATE
    with av.open(io.BytesIO(data)) as container:
        to_float = av.AudioResampler(format="flt", layout="mono")
        frames = [made for frame in container.decode(audio=0) for made in to_float.resample(frame)]
        return np.concatenate([frame.to_ndarray()[0] for frame in frames]), frames[0].sample_rate


def pitch(samples: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return int(np.argmax(spectrum)) * rate / len(samples)


@pytest.mark.parametrize("form", FORMATS)
def test_pieces_become_one_sound(form):
    encoder = SoundEncoder(form)
    parts = [encoder.write(piece) for piece in pieces(tone())] + [encoder.finish()]
    assert sum(bool(part) for part in parts) > 3  # it leaves while it is made
    samples, rate = decoded(b"".join(parts), form)
    assert len(samples) / rate == pytest.approx(1.0, abs=0.1)
    middle = samples[len(samples) // 4 : -len(samples) // 4]
    assert pitch(middle, rate) == pytest.approx(440, abs=3)
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(8000 / 32768 / 2**0.5, rel=0.1)
    assert media_type(form).startswith("audio/")


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_is_a_file_too(form):
    data = encode(b"", form)
    assert bool(data) == (form in ("wav", "flac"))  # the others begin with their first sound


def test_a_whole_wave_file_says_how_long_it_is():
    whole = read_wav(encode(tone(0.5), "wav"))
    assert whole is not None
    assert (whole.rate, whole.channels, whole.frames) == (RATE, 1, RATE // 2)
    encoder = SoundEncoder("wav")
    begun = read_wav(encoder.write(tone(0.5)) + encoder.finish())  # one that was sent before its end was known
    assert begun is not None
    assert begun.frames == RATE // 2


@pytest.mark.parametrize("speed", [0.25, 0.4, 1.5, 4.0])
def test_speed_leaves_the_pitch(speed):
    encoder = SoundEncoder("pcm", speed)
    data = b"".join([encoder.write(piece) for piece in pieces(tone(2.0))] + [encoder.finish()])
    samples = np.frombuffer(data, "<i2").astype(float)
    assert len(samples) / RATE == pytest.approx(2.0 / speed, rel=0.07)
    assert pitch(samples, RATE) == pytest.approx(440, abs=8)


@pytest.mark.parametrize("speed", [0.2, 4.5, float("nan")])
def test_other_speeds_are_refused(speed):
    with pytest.raises(RequestError, match="speed"):
        Tempo(speed)


@pytest.mark.parametrize("rate", [8000, 16_000, 24_000, 48_000])
def test_a_wire_has_no_seams(rate):
    wire = Wire("pcm", rate)
    data = b"".join([wire.write(piece) for piece in pieces(tone())] + [wire.finish()])
    samples = np.frombuffer(data, "<i2").astype(float)
    assert len(samples) == pytest.approx(rate, abs=2)
    middle = samples[rate // 10 : -rate // 10]
    assert pitch(middle, rate) == pytest.approx(440, abs=3)
    assert np.abs(np.diff(middle)).max() <= 8000 * 2 * np.pi * 440 / rate * 1.05


@pytest.mark.parametrize(("law", "code", "worst"), [(to_mulaw, 7, 0.02), (to_alaw, 6, 0.016)])
def test_g711_is_as_near_as_the_standard_allows(law, code, worst):
    samples = np.arange(-32768, 32768).astype("<i2")
    codes = law(samples)
    back = WavFile(8000, 1, code, 8, memoryview(codes.tobytes())).read(0, len(codes))[:, 0]
    assert np.abs(back - samples / 32768).max() <= worst
    assert np.abs(back - samples / 32768)[np.abs(samples.astype(int)) < 256].max() <= 8 / 32768
    assert len(np.unique(codes)) >= 255
    assert (np.diff(back) >= 0).all()
