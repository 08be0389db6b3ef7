"""Sound through a client, the engine in this process and in one of its own: voices, refusals, ends."""

from __future__ import annotations

import asyncio
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from minicpm.speaking import speaking_checkpoint
from test_process import eventually

from sensorium.bench.codec import SMALL, random_voice
from sensorium.config import ConfigError, EngineConfig
from sensorium.engine.client import EngineClient
from sensorium.errors import BusyError, MediaError, NotFoundError, RequestError, UnsupportedError
from sensorium.types import (
    Event,
    Failed,
    Finished,
    Prompt,
    SamplingParams,
    Sound,
    SpeechOptions,
    SpeechSampling,
    TextDelta,
    UnitDone,
)

TEXT = SamplingParams(temperature=0.0, max_tokens=14, ignore_eos=True)
SEEDED = SpeechSampling(seed=4, temperature=8.0, top_k=None, top_p=None)
TONE = (np.sin(np.arange(16_000) / 15) / 3).astype(np.float32)


@pytest.fixture(scope="module")
def folder(golden_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that speaks, with a saved voice and a recording beside it."""
    made = speaking_checkpoint(golden_tiny, tmp_path_factory.mktemp("speaking") / "model")
    voices = made / "assets" / "token2wav" / "voices"
    voices.mkdir()
    random_voice(SMALL, 0.6).save(voices / "saved.safetensors")
    with wave.open(str(made / "assets" / "HT_ref_audio.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((TONE * 32767).astype("<i2").tobytes())
    return made


def config(folder: Path, **changes: object) -> EngineConfig:
    settings = {"codec_config": {"n_timesteps": 1}, "speech_slots": 2, "max_model_len": 256, "kv_cache_bytes": 16 << 20}
    return EngineConfig(model=str(folder), init_tts=True, **{**settings, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["thread", pytest.param("process", marks=pytest.mark.slow)])
def client(request: pytest.FixtureRequest, folder: Path) -> Iterator[EngineClient]:
    with EngineClient(config(folder), kind=request.param) as made:
        yield made
        assert made.num_requests == made.num_sessions == 0


def ask(client: EngineClient, voice: str = "default", name: str | None = None):
    prompt = Prompt(tuple(client.tokenizer.encode("Say hello")))
    return client.submit(prompt, TEXT, speech=SpeechOptions(voice, sampling=SEEDED), request_id=name)


def check_ends(events: list[Event], index: int = 0) -> bytes:
    """The sound of an index that ends once, and nothing follows."""
    sounds = [event for event in events if isinstance(event, Sound) and event.index == index]
    assert [sound.ended is not None for sound in sounds] == [False] * (len(sounds) - 1) + [True]
    assert sounds[-1].ended in ("eos", "length")
    return b"".join(sound.pcm for sound in sounds)


def test_an_answer_is_heard_in_two_voices(client: EngineClient):
    assert client.can_sound
    assert set(client.voices) >= {"default", "saved"}
    heard = []
    for stream in [ask(client), ask(client, "saved")]:
        events = list(stream)
        assert isinstance(events[-1], Finished)
        heard.append(check_ends(events))
        assert sum(len(event.token_ids) for event in events if isinstance(event, TextDelta)) == 14
    # The same codes, so the same length.
    assert len(heard[0]) == len(heard[1]) > 0
    assert heard[0] != heard[1]


async def test_a_voice_comes_and_goes(client: EngineClient):
    with pytest.raises(NotFoundError, match="no voice 'anna'"):
        ask(client, "anna")
    with pytest.raises(MediaError, match=r"0\.2 s"):
        await client.aadd_voice("anna", TONE[:1000], 16_000)
    with pytest.raises(RequestError, match="floats"):
        await client.aadd_voice("anna", np.zeros(9000, np.int16), 16_000)
    # Beside an answer that goes on.
    stream = ask(client)
    _, events = await asyncio.gather(client.aadd_voice("anna", TONE, 16_000), read(stream))
    check_ends(events)
    assert "anna" in client.voices
    assert check_ends(await read(ask(client, "anna")))
    client.remove_voice("anna")
    with pytest.raises(NotFoundError):
        client.remove_voice("anna")
    assert "anna" not in client.voices


async def read(stream) -> list[Event]:
    return [event async for event in stream]


def test_places_are_counted_over_all_who_speak(client: EngineClient):
    speech = client.open_speech("chat", SEEDED, sound=True, voice="saved")
    session = client.open_session(Prompt(()), sampling=TEXT, max_len=128, speech=SpeechOptions("saved"))
    with pytest.raises(BusyError, match="speech_slots"):
        ask(client)
    assert client.num_requests == 0
    hidden = np.random.default_rng(0).normal(size=(3, 256)).astype(np.float32)
    assert len(speech.sound([5, 6, 7], hidden, max_new=60)) > 2 * 40 * 960
    call = speech.say([5, 6, 7], hidden, max_new=2000)
    speech.close()
    *_, last, end = speech
    assert isinstance(last, Sound)
    assert (last.index, last.ended) == (call, "cut")
    assert isinstance(end, Finished)
    check_ends(list(ask(client)))
    session.abort()
    assert isinstance(list(session)[-1], Finished)
    with pytest.raises(RequestError, match="duplex is for sessions"):
        client.submit(Prompt((1,)), TEXT, speech=SpeechOptions(rule="duplex"))
    with pytest.raises(RequestError, match="spoken_prompt"):
        client.submit(Prompt((1,)), TEXT, speech=SpeechOptions(spoken_prompt=2))


def test_a_session_is_interrupted(client: EngineClient):
    speech = SpeechOptions("saved", sampling=SpeechSampling(greedy=True))
    session = client.open_session(Prompt(()), sampling=TEXT, max_len=200, speech=speech)
    session.opened()
    units = [session.append(Prompt((40, 41, 42)))]
    events: list[Event] = []
    for event in session:
        events.append(event)
        if isinstance(event, Sound) and len(units) == 1:
            session.barge_in()
            units.append(session.append(Prompt((50, 51))))
            session.close()
    first, second = ([e for e in events if isinstance(e, Sound) and e.index == index] for index in units)
    # Whether it was still speaking is a race, which test_voice.py runs without one.
    assert [sound.ended for sound in first if sound.ended] in (["cut"], ["eos"])
    assert {sound.turn for sound in first} == {0}
    assert {sound.turn for sound in second} == {1}
    assert second[-1].ended in ("eos", "length")
    assert events.index(first[-1]) < events.index(second[0])
    assert [event.speaks for event in events if isinstance(event, UnitDone)] == [True, True]


def test_without_a_codec_speech_ends_in_codes(folder: Path):
    with EngineClient(config(folder, codec="none")) as client:
        assert not client.can_sound
        assert client.voices == ()
        with pytest.raises(UnsupportedError, match="codec"):
            ask(client)
        with pytest.raises(UnsupportedError, match="codec"):
            client.add_voice("anna", TONE, 16_000)
        speech = client.open_speech("chat", SEEDED)
        assert speech.speak([5], np.zeros((1, 256), np.float32), min_new=5, max_new=9)
    with pytest.raises(ConfigError, match="codec_config has no 'steps'"):
        config(folder, codec_config={"steps": 3})
    with pytest.raises(ConfigError, match="voice_s must be a number above 0"):
        config(folder, codec_config={"voice_s": "long"})
    for name, value in {"n_timesteps": 2.5, "voices": True, "trimming": "most", "dtype": "int8", "graphs": 1}.items():
        with pytest.raises(ConfigError, match=f"codec_config: {name} must be"):
            config(folder, codec_config={name: value})


@pytest.mark.slow
def test_an_engine_that_starts_again_knows_the_voices(folder: Path):
    with EngineClient(config(folder), kind="process") as client:
        client.add_voice("anna", TONE, 16_000)
        check_ends(list(ask(client, "anna")))
        speech = client.open_speech("chat", SEEDED, sound=True)
        client.kill()
        assert [event.code for event in speech if isinstance(event, Failed)] == ["engine_restarted"]
        assert eventually(lambda: client.state == "ready")
        check_ends(list(ask(client, "anna")))
