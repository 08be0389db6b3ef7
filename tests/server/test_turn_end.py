"""Where turns end on /v1/realtime: by meaning (semantic_vad), and a silence that lasts (idle_timeout_ms)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from live_sessions.tools import LiveServer, serve_live
from server.test_realtime import Client, kinds, send_sound, speech, talk

from sensorium.engine.client import EngineClient
from sensorium.server.realtime.schema import SemanticVad, ServerVad
from sensorium.server.realtime.turn_end import WordsAndVoice, longest_ms, pitch_track, wait_ms, weigh_voice, weigh_words
from sensorium.server.realtime.turns import LOOK_MS, Paused, Started, Stopped, Turns
from sensorium.vad import RATE, WINDOW

WINDOW_MS = WINDOW * 1000 // RATE


@pytest.mark.parametrize(
    ("complete", "unfinished"),
    [
        ("Turn on the light.", "Turn on the"),
        ("Where is it?", "Where is it, um"),
        ("I want to go home!", "I want to go home, and"),
        ("That is all.", "That is all, but"),
        ("He lives in Berlin.", "He lives in..."),
        ("我想去北京。", "我想去北京，因为"),
        ("这是我的书。", "这是我的，呃"),
        ("Das ist gut.", "Das ist gut, weil"),
    ],
)
def test_words_that_go_on_are_waited_for(complete: str, unfinished: str):
    judge = WordsAndVoice()
    nothing = np.zeros(RATE, np.float32)
    sure, unsure = judge.completeness(nothing, complete), judge.completeness(nothing, unfinished)
    assert unsure < 0.2 < 0.8 < sure
    for eagerness in ("low", "medium", "high", "auto"):
        assert wait_ms(sure, eagerness) < longest_ms(eagerness) / 4 < longest_ms(eagerness) * 0.6
        assert longest_ms(eagerness) * 0.6 < wait_ms(unsure, eagerness) <= longest_ms(eagerness)


def test_the_longest_waits_are_the_documented_ones():
    assert [longest_ms(name) for name in ("low", "medium", "auto", "high")] == [8000, 4000, 4000, 2000]
    assert weigh_words("") == weigh_words("...") == 0.0


def voice(pitches: np.ndarray, level: float = 0.1) -> np.ndarray:
    """A buzz whose pitch in Hz is given for each sample."""
    phase = 2 * np.pi * np.cumsum(pitches) / RATE
    return np.float32(level) * np.sum([np.sin(phase * n) / n for n in range(1, 12)], axis=0, dtype=np.float32)


def test_pitch_is_measured():
    for wanted in (80.0, 145.0, 310.0):
        pitch, _ = pitch_track(voice(np.full(RATE, wanted)))
        assert np.median(pitch) == pytest.approx(wanted, rel=0.02)
        assert (pitch > 0).mean() > 0.95
    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    assert (pitch_track(noise)[0] > 0).mean() < 0.2


def test_a_fall_ends_a_sentence_and_a_held_vowel_does_not():
    wander = 140 + 15 * np.sin(np.linspace(0, 20, RATE))
    falls = np.concatenate([wander, np.geomspace(140, 95, RATE // 4)])
    held = np.concatenate([wander, np.full(RATE // 2, 140.0)])
    fade = np.concatenate([np.ones(RATE), np.linspace(1, 0.3, RATE // 4)]).astype(np.float32)
    assert weigh_voice(voice(falls) * fade) > 0.8
    assert weigh_voice(voice(held)) < -0.8
    assert weigh_voice(np.zeros(100, np.float32)) == 0.0


class Scripted:
    """Speech where the sound is not zero."""

    def reset(self) -> None:
        pass

    def probability(self, window: np.ndarray) -> float:
        return float(window.any())


def windows(pattern: str) -> np.ndarray:
    return np.concatenate([np.full(WINDOW, float(letter == "x"), np.float32) for letter in pattern])


def heard(turns: Turns, samples: np.ndarray, waits: list[int], step: int) -> list[Any]:
    """What happens in sound that comes in steps; each pause lasts as long as the next of the waits says."""
    found = []
    for start in range(0, len(samples), step):
        turns.feed(samples[start : start + step])
        while event := turns.next():
            found.append(event)
            if isinstance(event, Paused):
                turns.wait(waits.pop(0))
    return found


@pytest.mark.parametrize("step", [160, 1000, 10_000_000])
def test_a_pause_is_judged_and_then_waited_for(step: int):
    look = -(-LOOK_MS // WINDOW_MS)
    sound = windows("....xxx" + "." * 10 + "xx" + "." * 40)
    found = heard(Turns(SemanticVad(eagerness="high"), 0, Scripted()), sound, [1000, 500], step)
    assert [type(event) for event in found] == [Started, Paused, Paused, Stopped]
    assert found[1] == Paused(0, 7 * WINDOW)
    assert found[2] == Paused(0, 19 * WINDOW)
    assert found[3] == Stopped(0, (19 + -(-500 // WINDOW_MS)) * WINDOW)
    assert look < 10, "the first pause was long enough to be judged"


def test_nobody_waits_longer_than_the_eagerness_says():
    sound = windows("x" + "." * 200)
    found = heard(Turns(SemanticVad(eagerness="low"), 0, Scripted()), sound, [8000], 4096)
    assert found[-1] == Stopped(0, (1 + 8000 // WINDOW_MS) * WINDOW)


@pytest.mark.parametrize(
    ("changes", "start", "stop"),
    [
        ({}, 6, 16 + 8),
        ({"prefix_padding_ms": 3 * WINDOW_MS}, 7, 16 + 8),
        ({"prefix_padding_ms": 10_000}, 0, 16 + 8),
        ({"silence_duration_ms": 20 * WINDOW_MS}, 6, 16 + 20),
        ({"threshold": 0.8}, 8, 14 + 8),
    ],
)
def test_every_setting_of_server_vad_counts(changes: dict[str, Any], start: int, stop: int):
    """In windows: 10 that are silent, 2 of weak speech, 2 of strong, 2 of weak and a long silence."""

    class Graded(Scripted):
        def probability(self, window: np.ndarray) -> float:
            return float(window[0])

    sound = np.repeat(np.array([0.0] * 10 + [0.6] * 2 + [0.9] * 2 + [0.6] * 2 + [0.0] * 40, np.float32), WINDOW)
    settings = {"prefix_padding_ms": 4 * WINDOW_MS, "silence_duration_ms": 8 * WINDOW_MS} | changes
    found = heard(Turns(ServerVad(**settings), 0, Graded()), sound, [], 1000)
    assert found == [Started(start * WINDOW), Stopped(start * WINDOW, stop * WINDOW)]


# ---- over the socket ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def still(engine: EngineClient) -> Iterator[LiveServer]:
    """A server whose clock only the tests move."""
    with serve_live(engine, served_model_name="tiny") as server:
        yield server


def listen(client: Client, **detection: Any) -> dict[str, Any]:
    heard_ = {"format": {"type": "audio/pcm", "rate": 16_000}, "turn_detection": detection}
    return client.update(audio={"input": heard_}, max_output_tokens=2)["audio"]["input"]["turn_detection"]


def first(events: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(event for event in events if event["type"] == kind)


def waited_ms(still: LiveServer, said: np.ndarray, **detection: Any) -> int:
    """How long after it was said a turn ended."""
    with talk(still) as client:
        listen(client, type="semantic_vad", **detection)
        send_sound(client, np.concatenate([np.zeros(8000, "<i2"), said, np.zeros(140_000, "<i2")]), 1600)
        events = client.until("response.done")
    order = [kind for kind in kinds(events) if kind.startswith("input_audio_buffer")]
    assert order == [f"input_audio_buffer.{name}" for name in ("speech_started", "speech_stopped", "committed")]
    return first(events, "input_audio_buffer.speech_stopped")["audio_end_ms"] - (8000 + len(said)) // 16


def test_what_sounds_complete_is_answered_sooner_than_what_does_not(still: LiveServer, packaged_model: Any):
    said = speech(16_000)
    held = (voice(np.full(10_000, 140.0)) * 32768 / 2).astype("<i2")  # "window-errr"
    complete, unfinished = waited_ms(still, said), waited_ms(still, np.concatenate([said, held]))
    assert complete < 700
    assert complete + 300 < unfinished < 4300
    assert complete < waited_ms(still, said, eagerness="low") < 8300


def test_what_is_in_force_is_told(still: LiveServer):
    with talk(still) as client:
        told = listen(client, type="semantic_vad", interrupt_response=False)
    assert told == {
        "type": "semantic_vad",
        "eagerness": "auto",
        "create_response": True,
        "interrupt_response": False,
    }


def test_without_answers_a_turn_is_only_an_item(still: LiveServer):
    with talk(still) as client:
        listen(client, type="semantic_vad", eagerness="high", create_response=False)
        send_sound(client, np.concatenate([np.zeros(8000, "<i2"), speech(16_000, silence_s=2.5)]), 8000)
        client.until("conversation.item.done")
        client.say("Nothing was answered meanwhile.")


def test_a_client_may_end_a_turn_that_is_still_judged(still: LiveServer):
    with talk(still) as client:
        listen(client, type="semantic_vad", eagerness="low", create_response=False)
        send_sound(client, np.concatenate([np.zeros(8000, "<i2"), speech(16_000, silence_s=0.4)]), 16_000)
        client.send("input_audio_buffer.commit")
        events = client.until("conversation.item.done")
        assert kinds(events)[:2] == ["input_audio_buffer.speech_started", "input_audio_buffer.committed"]
        assert events[0]["item_id"] == events[1]["item_id"]
        send_sound(client, np.zeros(160_000, "<i2"))
        client.say("Nothing else came of it.")


def test_who_goes_on_after_a_commit_is_heard_at_once(still: LiveServer):
    with talk(still) as client:
        listen(client, type="server_vad", create_response=False)
        hum = (voice(np.full(32_000, 140.0)) * 32768).astype("<i2")
        sound = np.concatenate([np.zeros(16_000, "<i2"), hum])
        send_sound(client, sound[:32_768], 8192)
        client.send("input_audio_buffer.commit")
        client.until("conversation.item.done")
        send_sound(client, np.concatenate([sound[32_768:], np.zeros(16_000, "<i2")]), 8192)
        events = client.until("conversation.item.done")
        assert first(events, "input_audio_buffer.speech_started")["audio_start_ms"] == 2048
        assert first(events, "input_audio_buffer.speech_stopped")


def test_a_long_silence_after_an_answer_is_answered(still: LiveServer):
    with talk(still) as client:
        assert listen(client, type="server_vad", idle_timeout_ms=6000)["idle_timeout_ms"] == 6000
        send_sound(client, np.zeros(16_000, "<i2"))
        client.say("Hello?")
        client.answer(max_output_tokens=2)
        client.say("This is typed, and is no speech.")
        still.clock.advance(5.9)
        send_sound(client, np.zeros(32_000, "<i2"))
        client.say("So was that.")
        still.clock.advance(0.2)
        events = client.until("rate_limits.updated")
        assert kinds(events)[:5] == [
            "input_audio_buffer.timeout_triggered",
            "input_audio_buffer.committed",
            "conversation.item.added",
            "conversation.item.done",
            "response.created",
        ]
        assert len({events[0]["item_id"], events[1]["item_id"], events[2]["item"]["id"]}) == 1
        assert (events[0]["audio_start_ms"], events[0]["audio_end_ms"]) == (1000, 3000)
        client.say("Typed as well.")  # its reply comes when the silence behind the answer has begun
        still.clock.advance(6.1)
        again = client.until("rate_limits.updated")
        assert again[0]["type"] == "input_audio_buffer.timeout_triggered", "the silence after that answer"
        assert again[0]["audio_start_ms"] == again[0]["audio_end_ms"] == 3000, "nothing at all was sent"


def test_whoever_speaks_ends_the_silence(still: LiveServer):
    with talk(still) as client:
        listen(client, type="server_vad", idle_timeout_ms=2000, create_response=False)
        client.say("Hello?")
        client.answer(max_output_tokens=2)
        send_sound(client, np.concatenate([np.zeros(8000, "<i2"), speech(16_000)]))
        client.until("input_audio_buffer.speech_started")
        still.clock.advance(100)
        send_sound(client, np.zeros(16_000, "<i2"))
        assert kinds(client.until("conversation.item.done"))[0] == "input_audio_buffer.speech_stopped"


REFUSED: dict[str, dict[str, Any]] = {
    "silence_duration_ms": {"type": "semantic_vad", "silence_duration_ms": 300},
    "idle_timeout_ms": {"type": "semantic_vad", "idle_timeout_ms": 6000},
    "eagerness": {"type": "server_vad", "eagerness": "low"},
}


@pytest.mark.parametrize(("name", "detection"), REFUSED.items(), ids=REFUSED)
def test_fields_of_the_other_kind_are_refused(still: LiveServer, name: str, detection: dict[str, Any]):
    with talk(still) as client:
        error = client.error("session.update", session={"audio": {"input": {"turn_detection": detection}}})
        assert error["param"] == f"session.audio.input.turn_detection.{name}"
