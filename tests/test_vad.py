"""Voice activity: the rules against stored events, and the detector that needs no network."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from sensorium.errors import ConfigError, RequestError, SensoriumError
from sensorium.vad import (
    RATE,
    WINDOW,
    EnergyDetector,
    SileroDetector,
    VadOptions,
    VoiceActivity,
    detectors,
    find_speech,
)
from tests.golden_speech import place_of


class Scripted:
    """Gives out stored probabilities."""

    def __init__(self, probabilities: Sequence[float]) -> None:
        self.probabilities, self.at = probabilities, 0

    def reset(self) -> None:
        self.at = 0

    def probability(self, window: np.ndarray) -> float:
        assert window.shape == (WINDOW,)
        self.at += 1
        return self.probabilities[self.at - 1]


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return json.loads(place_of("cases/vad/case.json").read_text("utf-8"))["rows"]


def ramp(start: int, count: int) -> np.ndarray:
    return (np.arange(start, start + count) % 32768).astype(np.float32)


def test_live_speech_begins_and_ends_where_the_reference_says(rows):
    live = [row for row in rows if row["kind"] == "streaming"]
    assert live
    for row in live:
        voice = VoiceActivity(Scripted(row["probs"]), VadOptions(**row["options"]))
        at = 0
        for event in row["events"]:
            speech = voice.feed(ramp(at, event["chunk"]))
            at += event["chunk"]
            assert voice.is_speaking is event["speaking"]
            assert _told(speech, event["segment"]) == event["segment"]
        assert _told(voice.flush(), row["flush"]) == row["flush"]


def _told(speech: np.ndarray | None, stored: dict | None) -> dict | None:
    if speech is None:
        return None
    told = {"samples": len(speech), "first": float(speech[0]), "last": float(speech[-1])}
    return told if stored is None else {name: told[name] for name in stored}


def test_speech_in_recordings_is_found_where_the_reference_says(rows):
    stored = [row for row in rows if row["kind"] == "batch"]
    assert stored
    for row in stored:
        options = VadOptions(**{"threshold": 0.7, "min_silence_duration_ms": 500, **row["options"]})
        found = find_speech(np.zeros(row["audio_samples"], np.float32), Scripted(row["probs"]), options)
        assert [{"start": start, "end": stop} for start, stop in found] == row["segments"]


def voice(seconds: float, seed: int = 0) -> np.ndarray:
    """Something like a voice: harmonics of a wavering pitch, in syllables of 0.2 s."""
    t = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(140 + 20 * np.sin(2 * np.pi * 3 * t + seed)) / RATE
    tone = sum(np.sin(phase * n) / n for n in range(1, 15))
    return (0.1 * tone * (0.6 + 0.4 * np.sin(2 * np.pi * 5 * t))).astype(np.float32)


@pytest.mark.parametrize("noise", [0.0, 0.001, 0.01])
def test_the_energy_detector_hears_a_voice_in_noise(noise):
    rng = np.random.default_rng(1)
    sound = rng.normal(0, noise, 8 * RATE).astype(np.float32) if noise else np.zeros(8 * RATE, np.float32)
    sound[2 * RATE : 4 * RATE] += voice(2.0)
    sound[6 * RATE : 7 * RATE] += voice(1.0, 1)
    found = find_speech(sound, EnergyDetector())
    assert len(found) == 2
    for (start, stop), (first, last) in zip(found, [(2, 4), (6, 7)], strict=True):
        assert abs(start / RATE - first) < 0.15
        assert abs(stop / RATE - last) < 0.3


def test_the_energy_detector_takes_no_steady_noise_for_a_voice():
    rng = np.random.default_rng(2)
    assert find_speech(rng.normal(0, 0.05, 10 * RATE).astype(np.float32), EnergyDetector()) == []
    quiet = np.sin(2 * np.pi * 500 * np.arange(3 * RATE) / RATE) * 0.0005
    assert find_speech(quiet.astype(np.float32), EnergyDetector()) == []


def test_a_detector_starts_afresh():
    vad = VoiceActivity(EnergyDetector())
    vad.feed(voice(1.0))
    first = vad.is_speaking
    vad.reset()
    assert not vad.is_speaking
    vad.feed(voice(1.0))
    assert vad.is_speaking is first


def test_bad_options_and_files_are_named(tmp_path):
    with pytest.raises(RequestError, match="threshold"):
        VadOptions(threshold=1.5)
    with pytest.raises(RequestError, match="min_silence_duration_ms"):
        VadOptions(min_silence_duration_ms=-1)
    (tmp_path / "silero.onnx").write_bytes(b"nothing")
    with pytest.raises(SensoriumError, match=r"onnxruntime|silero\.onnx"):
        SileroDetector(tmp_path / "silero.onnx")


def test_a_silero_network_keeps_its_state_until_it_is_reset(tmp_path):
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto
    state = [2, 1, 64]
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["input"], ["level"], axes=[1], keepdims=0),
            helper.make_node("ReduceMean", ["h"], ["heard"], axes=[0, 1, 2], keepdims=0),
            helper.make_node("Add", ["level", "heard"], ["output"]),
            helper.make_node("Add", ["h", "one"], ["hn"]),
            helper.make_node("Identity", ["c"], ["cn"]),
        ],
        "silero",
        [
            helper.make_tensor_value_info("input", kind.FLOAT, [1, WINDOW]),
            helper.make_tensor_value_info("h", kind.FLOAT, state),
            helper.make_tensor_value_info("c", kind.FLOAT, state),
            helper.make_tensor_value_info("sr", kind.INT64, []),
        ],
        [
            helper.make_tensor_value_info("output", kind.FLOAT, [1]),
            helper.make_tensor_value_info("hn", kind.FLOAT, state),
            helper.make_tensor_value_info("cn", kind.FLOAT, state),
        ],
        [helper.make_tensor("one", kind.FLOAT, [1], [1.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = tmp_path / "silero.onnx"
    path.write_bytes(model.SerializeToString())
    detector = SileroDetector(path)
    window = np.full(WINDOW, 0.25, np.float32)
    assert [detector.probability(window) for _ in range(3)] == [0.25, 1.25, 2.25]
    detector.reset()
    assert detector.probability(window) == 0.25


class Mine:
    """A detector that an operator brings."""

    def reset(self) -> None:
        pass

    def probability(self, window: np.ndarray) -> float:
        return float(len(window) == WINDOW)


def test_servers_are_told_what_hears_where_turns_end(tmp_path):
    assert isinstance(detectors("energy")(), EnergyDetector)
    assert isinstance(detectors(f"{__name__}:Mine")(), Mine)
    (tmp_path / "silero.onnx").write_bytes(b"nothing")
    for wrong in ("nothing.here:Mine", f"{__name__}:Nobody", f"{__name__}:RATE", str(tmp_path / "silero.onnx")):
        with pytest.raises(ConfigError, match="vad: "):
            detectors(wrong)
