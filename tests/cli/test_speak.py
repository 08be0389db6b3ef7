"""`sensorium speak`: a file of sound from a text, in a voice of the model or of a recording."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import av
import pytest
from minicpm.speaking import speaking_checkpoint
from server.samples import sound

from sensorium.cli import main


@pytest.fixture(scope="module")
def model(golden_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = speaking_checkpoint(golden_tiny, tmp_path_factory.mktemp("speaking") / "model")
    (folder / "assets" / "HT_ref_audio.wav").write_bytes(sound(3.0))
    return str(folder)


def speak(model: str, *words: str) -> int:
    return main(["speak", *words, "--model", model, "--codec-config", '{"n_timesteps": 2}', "--max-model-len", "512"])


def test_a_text_becomes_a_file_in_the_voice_of_a_recording(model: str, tmp_path: Path):
    voice, out = tmp_path / "ref.wav", tmp_path / "out.wav"
    voice.write_bytes(sound(20.0))
    assert speak(model, "Hello.", "-o", str(out), "--voice", str(voice)) == 0
    with wave.open(str(out)) as file:
        assert file.getframerate() == 24_000
        assert len(file.readframes(file.getnframes())) == 2 * file.getnframes() > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.wav", "ref.wav"]


def test_a_text_on_stdin_in_the_model_s_own_voice(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello.\n"))
    out = tmp_path / "out.mp3"
    assert speak(model, "-o", str(out), "--speed", "1.5") == 0
    with av.open(str(out)) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) > 1000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["Hi.", "-o", "out.doc"], "must end in"),
        (["Hi.", "-o", "nowhere/out.wav"], "there is no folder nowhere"),
        (["  "], "nothing to read"),
        (["Hi.", "--voice", "nobody"], "neither a file nor a voice"),
        (["Hi.", "--speed", "9"], "speed"),
    ],
)
def test_what_is_not_possible_is_said(
    model: str,
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert speak(model, *words) == 1
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_that_makes_no_sound_says_what_to_do(model: str, capsys: pytest.CaptureFixture[str]):
    assert main(["speak", "Hi.", "--model", model, "--codec", "none", "--max-model-len", "512"]) == 1
    assert f"{model} does not speak; name a model that does with --model" in capsys.readouterr().err
