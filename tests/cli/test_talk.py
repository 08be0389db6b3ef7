"""`sensorium talk` with files, and with a sound card that is a script."""

from __future__ import annotations

import sys
import types
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server.live import Live, serve

from sensorium.cli import main
from sensorium.cli.talk_sound import SoundCard, WaveFile
from sensorium.config import EngineConfig
from sensorium.demo import ASSETS
from sensorium.engine.client import EngineClient
from sensorium.errors import UnsupportedError


@pytest.fixture(scope="module")
def live(golden_tiny: Path | None) -> Iterator[Live]:
    if golden_tiny is None:
        pytest.skip("the random checkpoint of the reference data is not there")
    config = EngineConfig(model=str(golden_tiny), max_model_len=1024, kv_cache_bytes=64 << 20, max_sessions=2)
    with EngineClient(config) as engine, serve(engine, live_max_len=512) as server:
        yield server


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "question.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(np.random.default_rng(1).normal(0, 3000, 40_000).astype("<i2").tobytes())
    return path


def test_a_recording_is_heard_to_its_end(live: Live, recording: Path, tmp_path: Path, capsys: Any):
    answer = tmp_path / "answer.wav"
    words = ["talk", "--url", f"{live.url}/v1", "--input", str(recording), "--output", str(answer)]
    assert main(words) == 0
    assert "does not speak" in capsys.readouterr().err
    with wave.open(str(answer)) as file:
        assert file.getframerate() == 24_000
    assert live.engine.num_sessions == 0


def test_a_server_of_its_own(golden_tiny: Path, recording: Path, capsys: Any):
    words = ["talk", str(golden_tiny), "--input", str(recording), "--max-model-len", "1024", "--max-sessions", "1"]
    assert main(words) == 0
    assert "does not speak" in capsys.readouterr().err


def test_the_packaged_model_answers_aloud(tmp_path: Path, capsys: Any):
    answer = tmp_path / "answer.wav"
    shown, asked = (str(ASSETS / name) for name in ("scene.png", "question.wav"))
    assert main(["talk", "--input", asked, "--image", shown, "--output", str(answer)]) == 0
    assert "star" in capsys.readouterr().out
    with wave.open(str(answer)) as file:
        assert file.getnframes() > 24_000


def test_what_cannot_be_is_said(live: Live, recording: Path, tmp_path: Path, capsys: Any):
    assert main(["talk", "--url", "http://127.0.0.1:9", "--input", str(recording)]) == 1
    assert "no server answers at ws://127.0.0.1:9/v1/duplex" in capsys.readouterr().err
    assert main(["talk", "--url", live.url, "--output", "x.wav"]) == 1
    assert "--output needs --input" in capsys.readouterr().err
    assert main(["talk", "--url", live.url, "--input", str(recording), "--image", str(recording)]) == 1
    assert "JPEG, WebP or PNG" in capsys.readouterr().err
    long = ["talk", "--url", live.url, "--input", str(recording), "--instructions", "word " * 3000]
    assert main(long) == 1
    assert "instructions" in capsys.readouterr().err


def test_sound_is_written_when_it_would_be_heard(tmp_path: Path):
    file = WaveFile()
    file.play(0, b"\1\0" * 24_000)
    file.play(32_000, b"\2\0" * 12_000)
    file.play(32_000, b"\3\0")
    file.save(tmp_path / "out.wav")
    with wave.open(str(tmp_path / "out.wav")) as written:
        samples = np.frombuffer(written.readframes(written.getnframes()), "<i2")
    assert np.flatnonzero(samples == 1)[[0, -1]].tolist() == [24_000, 47_999]
    assert np.flatnonzero(samples == 2)[0] == 72_000
    assert samples[-1] == 3


class Stream:
    made: list[Stream] = []  # noqa: RUF012

    def __init__(self, callback: Any, **settings: Any) -> None:
        self.callback, self.settings, self.is_open = callback, settings, False
        Stream.made.append(self)

    def start(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.is_open = False


def test_the_sound_card(monkeypatch: pytest.MonkeyPatch):
    module = types.ModuleType("sounddevice")
    module.__dict__.update(RawInputStream=Stream, RawOutputStream=Stream, PortAudioError=OSError)
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    with SoundCard() as card:
        microphone, loudspeaker = Stream.made
        assert (microphone.settings["samplerate"], loudspeaker.settings["samplerate"]) == (16_000, 24_000)
        microphone.callback(b"\5\0" * 1600, 1600, None, None)
        assert next(card.heard()) == b"\5\0" * 1600
        card.play(0, b"\7\0" * 3)
        data = bytearray(8)
        loudspeaker.callback(memoryview(data), 4, None, None)
        assert bytes(data) == b"\7\0" * 3 + b"\0\0"
        card.play(0, b"\7\0" * 3)
        card.flush()
        loudspeaker.callback(memoryview(data), 4, None, None)
        assert not any(data)
    assert not microphone.is_open
    assert not loudspeaker.is_open


def test_without_a_sound_card_the_reason_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(UnsupportedError, match="--input FILE"):
        SoundCard()


def test_a_model_without_live_sessions_says_so(golden: Path, recording: Path, capsys: Any):
    model = str(golden / "models" / "llava")
    said = "sensorium: this model holds no live sessions"
    assert main(["talk", model, "--input", str(recording), "--max-model-len", "256", "--no-use-tqdm-on-load"]) == 1
    assert capsys.readouterr().err.splitlines() == [said]
    config = EngineConfig(model=model, max_model_len=256, kv_cache_bytes=8 << 20)
    with EngineClient(config) as engine, serve(engine) as server:
        assert main(["talk", "--url", server.url, "--input", str(recording)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == said
