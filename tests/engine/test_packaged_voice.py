"""The packaged model's voice: what it reads aloud it understands itself."""

from __future__ import annotations

import base64
from dataclasses import replace

import numpy as np
import pytest

from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient
from sensorium.messages import read_messages
from sensorium.models.token2wav import to_wav
from sensorium.params import SpeechSampling
from sensorium.server.speech.spoken import reading, reading_messages, with_reply
from sensorium.server.speech.voices import Picked
from sensorium.types import SamplingParams, Sound

RATE = 24_000
TEXT = "The small bird is near the window."


@pytest.fixture(scope="module")
def client(packaged_model):
    with EngineClient(EngineConfig(model=str(packaged_model), init_tts=True)) as client:
        yield client


def read_aloud(client: EngineClient, text: str, seed: int) -> bytes:
    """16-bit samples."""
    voice = Picked("default")
    messages, options = reading_messages(client, text, voice, None)
    prompt, num_ids = with_reply(client, client.prepare_chat(messages, options), text)
    sampling, speech = reading(num_ids, voice)
    stream = client.submit(prompt, sampling, speech=replace(speech, sampling=SpeechSampling(seed=seed)))
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


def test_it_has_one_voice(client):
    assert set(client.voices) == {"default"}
