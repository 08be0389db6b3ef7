"""Sessions that speak: the reference's tiny checkpoint with a little codec of random weights."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from minicpm.speaking import speaking_checkpoint

from sensorium.errors import RequestError, UnsupportedError
from sensorium.minicpm import AutoModel

RATE = 24_000


@pytest.fixture(scope="module")
def speaking(golden_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = speaking_checkpoint(golden_tiny, tmp_path_factory.mktemp("speaking") / "model")
    with AutoModel.from_pretrained(folder, device_map="cpu") as model:
        model.init_tts(n_timesteps=2)
        yield model


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("voice") / "voice.wav"
    tone = (np.sin(np.arange(32_000) / 15) * 8000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(tone.tobytes())
    return path


def second(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, 16_000).astype(np.float32)


def test_a_session_speaks(speaking, voice):
    duplex = speaking.as_duplex(seed=4)
    duplex.prepare(prompt_wav_path=voice, ref_audio=voice)
    heard = []
    for index in range(5):
        assert duplex.streaming_prefill(second(index))["success"]
        heard.append(duplex.streaming_generate(max_new_speak_tokens_per_chunk=5, listen_scale=0.0))
    for first, result in zip([True, *[False] * 4], heard, strict=True):
        assert not result["is_listen"]
        wave = result["audio_waveform"]
        if not result["end_of_turn"]:
            assert first or result["n_tts_tokens"] == 25
            assert wave is None or (wave.dtype == np.float32 and len(wave) >= RATE)
        assert wave is None or np.isfinite(wave).all()
    assert any(result["audio_waveform"] is not None for result in heard)
    duplex.streaming_prefill(second())
    silent = duplex.streaming_generate(force_listen_override=True)
    assert silent["is_listen"]
    assert not silent["audio_waveform"].any()
    duplex.as_simplex()
    assert not speaking.client.voices


def talk(model: Any, session: str, **how: Any) -> list[Any]:
    """One turn of two pieces of sound, and the reply."""
    for index in range(2):
        msgs = [{"role": "user", "content": [second(index)]}]
        model.streaming_prefill(session, msgs, is_last_chunk=index == 1)
    return list(model.streaming_generate(session, **how))


def test_a_turn_is_answered_in_text_and_sound(speaking):
    speaking.reset_session()
    system = {"role": "system", "content": ["Talk with ", second(8), "this voice."]}
    with pytest.raises(RequestError, match="session"):
        speaking.streaming_generate("a")
    prompt = speaking.streaming_prefill("a", [system])
    assert prompt.startswith("<|im_start|>system\nTalk with <audio>./</audio>this voice.<|im_end|>")
    first = speaking.streaming_prefill("a", [{"role": "user", "content": [second()]}])
    assert first == "<|im_start|>user\n<audio>./</audio>"
    more = speaking.streaming_prefill("a", [{"role": "user", "content": [second(), "Well?"]}], is_last_chunk=True)
    assert more == "<audio>./</audio>Well?"
    with pytest.raises(RequestError, match="init_token2wav_cache"):
        speaking.streaming_generate("a")
    speaking.init_token2wav_cache(np.sin(np.arange(32_000) / 15).astype(np.float32) * 0.2)
    reply = list(speaking.streaming_generate("a", max_new_tokens=20))
    assert all(wave.dtype == torch.float32 and wave.shape[0] == 1 for wave, _ in reply)
    text = "".join(piece for _, piece in reply)
    again = speaking.streaming_prefill("a", [{"role": "user", "content": ["And now?"]}])
    assert again == "<|tts_eos|><|im_end|>\n<|im_start|>user\nAnd now?"
    written = list(speaking.streaming_generate("a", generate_audio=False, max_new_tokens=5))
    assert [finished for _, finished in written] == [*[False] * (len(written) - 1), True]
    assert text
    assert "".join(piece for piece, _ in written)


def test_a_text_is_said_as_it_is_given(speaking):
    speaking.reset_session()
    speaking.init_token2wav_cache(np.sin(np.arange(32_000) / 15).astype(np.float32) * 0.2)
    reply = talk(speaking, "b", teacher_forcing=True, teacher_forcing_text="hello there, all of you")
    assert "".join(text for _, text in reply) == "hello there, all of you"
    assert sum(wave.shape[1] for wave, _ in reply) > 0
    pieces = talk(speaking, "b", generate_audio=False, teacher_forcing=True, teacher_forcing_text="hello there é")
    assert "".join(text for text, _ in pieces) == "hello there é"


def test_a_reply_can_be_taken_back(speaking):
    speaking.reset_session()
    assert speaking.restore_speculative_snapshot() is False
    once = talk(speaking, "c", generate_audio=False, max_new_tokens=10, enable_speculative_snapshot=True)
    assert speaking.restore_speculative_snapshot() is True
    assert speaking.restore_speculative_snapshot() is False
    again = list(speaking.streaming_generate("c", generate_audio=False, max_new_tokens=10))
    assert "".join(text for text, _ in again) == "".join(text for text, _ in once)
    # More may be said first, as if there had been no reply.
    talk(speaking, "c", generate_audio=False, max_new_tokens=10, enable_speculative_snapshot=True)
    speaking.restore_speculative_snapshot()
    assert speaking.streaming_prefill("c", [{"role": "user", "content": ["wait"]}]) == "wait"


def test_leaving_a_reply_ends_it(speaking):
    speaking.reset_session()
    speaking.streaming_prefill("d", [{"role": "user", "content": ["hello"]}])
    reply = speaking.streaming_generate("d", generate_audio=False, max_new_tokens=2000)
    next(reply)
    with pytest.raises(RequestError, match="being read"):
        speaking.streaming_prefill("d", [{"role": "user", "content": ["and?"]}])
    reply.close()
    following = speaking.streaming_prefill("d", [{"role": "user", "content": ["and?"]}])
    assert following.startswith("<|tts_eos|><|im_end|>\n")


def test_wrong_arguments_of_turns_are_named(speaking):
    speaking.reset_session()
    user = {"role": "user", "content": ["hello"]}
    for msgs, name in (([user, user], "one message"), ([{"role": "user", "content": 3}], "content")):
        with pytest.raises(RequestError, match=name):
            speaking.streaming_prefill("e", msgs)
    speaking.streaming_prefill("e", [user])
    with pytest.raises(RequestError, match="system"):
        speaking.streaming_prefill("e", [{"role": "system", "content": ["later"]}])
    for wrong, error in (
        ({"audio_token_chunk_size": 50}, UnsupportedError),
        ({"temperature": 0.0, "generate_audio": False}, RequestError),
        ({"tts_sampling_params": {"loudness": 3}}, RequestError),
    ):
        with pytest.raises(error, match=next(iter(wrong))):
            list(speaking.streaming_generate("e", **wrong))


def test_a_turn_that_is_cut_off_leaves_nothing_to_the_next(speaking, voice):
    """The reference keeps the speech LM's cache of a turn that a forced listen ends."""
    duplex = speaking.as_duplex(seed=4)
    duplex.prepare(prompt_wav_path=voice)
    engine = speaking.client.loaded.engine
    (slot,) = engine.speech._slots.values()
    (speaker,) = engine.speakers._by_slot.values()
    reached = []
    for _ in range(3):
        duplex.streaming_prefill(second())
        duplex.streaming_generate(max_new_speak_tokens_per_chunk=4, listen_scale=0.0)
        assert (slot.position == 0) == speaker.chunks.is_first
        reached.append(slot.position)
    assert any(reached)
    for _ in range(2):
        duplex.streaming_prefill(second())
        assert not duplex.streaming_generate(force_listen_override=True)["audio_waveform"].any()
    assert slot.position == 0
    assert speaker.chunks.codes == [4218] * 3
    duplex.as_simplex()
    assert not engine.speech._slots


def test_a_voice_may_come_later(speaking, voice):
    duplex = speaking.as_duplex(seed=4)
    duplex.prepare()
    duplex.streaming_prefill(second())
    mute = duplex.streaming_generate(listen_scale=0.0)
    assert mute["audio_waveform"] is None
    heard = []
    for _ in range(3):
        duplex.streaming_prefill(second())
        heard.append(duplex.streaming_generate(voice, listen_scale=0.0)["audio_waveform"])
    assert any(wave is not None and wave.any() for wave in heard)
    duplex.as_simplex()


def test_leaving_a_spoken_reply_ends_it_too(speaking):
    speaking.reset_session()
    speaking.init_token2wav_cache(np.sin(np.arange(32_000) / 15).astype(np.float32) * 0.2)
    speaking.streaming_prefill("f", [{"role": "user", "content": ["hello"]}])
    reply = speaking.streaming_generate("f", max_new_tokens=200)
    next(reply)
    reply.close()
    assert speaking.streaming_prefill("f", [{"role": "user", "content": ["and?"]}])
    assert not speaking.client.loaded.engine.speech._slots
    assert list(speaking.streaming_generate("f", max_new_tokens=5))
