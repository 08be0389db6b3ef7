"""The packaged model's voice: what it reads aloud it understands itself; and live talks, asked and answered aloud."""

from __future__ import annotations

import base64
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sensorium.config import EngineConfig, MediaLimits
from sensorium.demo import ASSETS
from sensorium.engine.client import EngineClient
from sensorium.errors import UnsupportedError
from sensorium.media import audio
from sensorium.messages import read_messages
from sensorium.models.token2wav import to_wav
from sensorium.params import LiveSettings, SpeechSampling
from sensorium.server.speech.spoken import reading, reading_messages, with_reply
from sensorium.server.speech.voices import Picked
from sensorium.types import Media, SamplingParams, Sound

RATE = 24_000
TEXT = "The small bird is near the window."


@pytest.fixture(scope="module")
def client(packaged_model):
    with EngineClient(EngineConfig(model=str(packaged_model), init_tts=True)) as client:
        yield client


def read_aloud(client: EngineClient, text: str, **choice) -> bytes:
    """16-bit samples. choice: of SpeechOptions."""
    voice = Picked("default")
    messages, options = reading_messages(client, text, voice, None)
    prompt, num_ids = with_reply(client, client.prepare_chat(messages, options), text)
    sampling, speech = reading(num_ids, voice)
    stream = client.submit(prompt, sampling, speech=replace(speech, **choice))
    return b"".join(event.pcm for event in stream if isinstance(event, Sound))


def written_down(client: EngineClient, pcm: bytes) -> str:
    file = base64.b64encode(to_wav(np.frombuffer(pcm, "<i2").astype(np.float32) / 32768)).decode()
    recording = {"type": "input_audio", "input_audio": {"data": file, "format": "wav"}}
    content = [recording, {"type": "text", "text": "Transcribe the speech."}]
    prompt = client.prepare_chat(read_messages([{"role": "user", "content": content}]))
    stream = client.submit(prompt, SamplingParams(temperature=0, max_tokens=32))
    return "".join(getattr(event, "text", "") for event in stream)


def test_it_understands_what_it_says(client):
    said = read_aloud(client, TEXT, seed=7)
    assert 1.0 < len(said) / 2 / RATE < 4.0
    # Sums of another machine may lead to other codes, which now and then cost a word.
    heard = written_down(client, said).split()
    assert sum(a == b for a, b in zip(TEXT.split(), heard, strict=False)) >= 6


def test_a_seed_draws_as_the_checkpoint_says(client):
    said = read_aloud(client, TEXT, seed=7)
    assert said == read_aloud(client, TEXT, sampling=SpeechSampling(temperature=0.3, seed=7))
    assert said != read_aloud(client, TEXT, sampling=SpeechSampling(seed=7))


def test_it_has_one_voice(client):
    assert set(client.voices) == {"default"}
    with pytest.raises(UnsupportedError, match="makes no voices of recordings"):
        client.add_voice("anna", np.zeros(5 * RATE, np.float32), RATE)


def test_it_is_not_told_how_to_speak(client):
    with pytest.raises(UnsupportedError, match="instructions"):
        reading_messages(client, TEXT, Picked("default"), "In a whisper.")


# ---- live -----------------------------------------------------------------------------------------------------------

SEEN = "A blue star, a red circle, a green triangle and a purple heart."


def decided(client: EngineClient, name: str, track: np.ndarray) -> list[str | None]:
    """What a live session that is shown the demo's scene says in each second of sound; None: it listens."""
    live, settings = client.live(name), LiveSettings(seed=3)
    prompt, policy = live.opening(settings, 2048)
    session = client.open_session(prompt, live.policy, policy, max_len=2048, session_id=name)
    session.opened()
    shown = Media("image", np.asarray(Image.open(ASSETS / "scene.png").convert("RGB")), b"scene")
    frame = client.processor.prepare(shown, live.frame_options(1))
    options = live.unit_options(settings, force_listen=False, force_speak=False)
    said: list[str | None] = []
    for second in track.reshape(-1, 16_000):
        unit, deciding = live.unit(second, [frame], [])
        done = session.run(unit, deciding=deciding, options=options)
        said.append(None if done.info["is_listen"] else done.text)
    session.close()
    return said


def track(seconds: int, *starts: float) -> np.ndarray:
    """The demo's question, begun at these seconds."""
    sound = np.zeros(seconds * 16_000, np.float32)
    question = audio.from_bytes((ASSETS / "question.wav").read_bytes(), "question", MediaLimits()).data
    for start in starts:
        at = int(16_000 * start)
        sound[at : at + len(question)] += question
    return sound


def test_live_it_answers_what_it_is_asked_aloud(client):
    said = decided(client, "asked", track(9, 1.2))
    assert said[:2] == [None, None]
    assert said[2]  # the question ends at 2.1 s
    assert "".join(text or "" for text in said) == SEEN
    assert said[-1] is None


def test_live_it_keeps_silent_in_noise_and_stops_for_who_interrupts(client):
    noise = np.random.default_rng(0).normal(0, 0.02, 4 * 16_000).astype(np.float32)
    assert decided(client, "noise", noise) == [None] * 4
    said = decided(client, "interrupted", track(8, 0.2, 3.1))
    begun = next(number for number, text in enumerate(said) if text)
    assert begun <= 2
    assert said[3] is None
    assert said[4]  # it was a question, which it answers
