"""Spoken answers of chat(): the sound is that of the parts, computed on their own."""

from __future__ import annotations

import logging
import wave

import numpy as np
import pytest
import torch
from minicpm.speaking import speaking_checkpoint
from models.minicpm_golden import run_packed

from sensorium.engine.speech import SpeechStage
from sensorium.engine.speech_rules import SpeechSampling, SpeechWork
from sensorium.errors import CheckpointError, RequestError, UnsupportedError
from sensorium.minicpm import AutoModel
from sensorium.minicpm.answering import Question, ask
from sensorium.minicpm.generation import omni_generation
from sensorium.minicpm.messages import read_conversations
from sensorium.minicpm.speech import hidden_states, spoken_part
from sensorium.types import Prompt

KWARGS = {"do_sample": False, "num_beams": 1, "max_new_tokens": 6, "generate_audio": True}
GREEDY = SpeechSampling(greedy=True)


@pytest.fixture(scope="module")
def model(golden_tiny, tmp_path_factory):
    folder = speaking_checkpoint(golden_tiny, tmp_path_factory.mktemp("speaking") / "model")
    with AutoModel.from_pretrained(folder, device_map="cpu") as made:
        made.init_tts(n_timesteps=2)
        yield made


@pytest.fixture(scope="module")
def msgs(model):
    voice = (np.sin(np.arange(16_000) / 15) / 3).astype(np.float32)
    return [model.get_sys_prompt(voice, "omni"), {"role": "user", "content": ["Say hello"]}]


def sound(path):
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), np.int16)


def test_hidden_states_are_those_of_a_forward_pass(model):
    ids, said = tuple(range(20, 50)), [60, 61, 300, 62]
    found = hidden_states(model.client, Prompt(ids), said)
    loaded = model.client.loaded.model
    expected = run_packed(loaded, loaded.embed(torch.tensor([*ids, *said])))[len(ids) :]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_an_answer_is_spoken(model, msgs, tmp_path, beams):
    path, embeds = tmp_path / "out.wav", tmp_path / "rows.pt"
    kwargs = KWARGS | {"num_beams": beams, "tts_sampling_params": GREEDY, "use_tts_template": True}
    answer = model.chat(msgs=msgs, output_audio_path=str(path), output_tts_inputs_embeds_path=embeds, **kwargs)
    assert answer == model.chat(msgs=msgs, **{**kwargs, "generate_audio": False})
    found = sound(path)
    # The same from what the answer was made of.
    (written,) = ask(model, question(model, msgs, beams))
    assert model.tokenizer.decode(written.ids) == answer
    loaded = model.client.loaded.model
    rows = torch.load(embeds)
    assert rows.shape[0] == 1
    assert rows.shape[2] == loaded.speech.hidden_size
    stage = SpeechStage(loaded.speech, 1)
    slot = stage.open("chat", GREEDY)
    marks = map(model.tokenizer.convert_tokens_to_ids, ("<|tts_bos|>", "<|tts_eos|>"))
    before, said = spoken_part(written.prompt, written.ids, *marks)
    hidden = torch.from_numpy(hidden_states(model.client, before, said))
    (codes,) = stage.speak([SpeechWork(slot, said, hidden)])
    assert len(codes) >= 50
    expected = model.codec(codes, model.read_voice(msgs[0]["content"][1]))
    np.testing.assert_allclose(found / 32767, np.clip(expected, -1, 1), atol=1e-3)
    torch.testing.assert_close(rows[0, : len(said)], loaded.speech.condition(torch.tensor(said), hidden))


def question(model, msgs, beams):
    messages, _ = read_conversations(msgs, None, ("system", "user"), model.checkpoint.engine.limits)
    how = omni_generation(False, False, {"num_beams": beams}, (6, 0))
    return Question(messages, False, how, 8192, {"use_tts_template": True})


def test_torch_seeds_what_is_spoken(model, msgs, tmp_path):
    def spoken(seed, name):
        torch.manual_seed(seed)
        model.chat(msgs=msgs, output_audio_path=tmp_path / name, **KWARGS)
        return sound(tmp_path / name)

    first = spoken(1, "a.wav")
    assert np.array_equal(first, spoken(1, "b.wav"))
    assert not np.array_equal(first, spoken(2, "c.wav"))


def test_a_given_text_is_spoken(model, msgs, tmp_path):
    given = [*msgs, {"role": "assistant", "content": "<|tts_bos|>Hello there<|tts_eos|>"}]
    kwargs = KWARGS | {"tts_sampling_params": {"top_k": 5, "min_p": 0.01}, "teacher_forcing": True}
    text, prompt = model.chat(msgs=given, output_audio_path=tmp_path / "a.wav", return_prompt=True, **kwargs)
    assert text == "Hello there"
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n<|tts_bos|>")
    assert len(sound(tmp_path / "a.wav")) >= 50 * 960
    with pytest.raises(RequestError, match="the last message must be the assistant's"):
        model.chat(msgs=msgs, output_audio_path=tmp_path / "b.wav", **kwargs)


def test_what_is_spoken():
    prompt = Prompt((1, 8, 2, 8, 3))
    before, said = spoken_part(prompt, [4, 9, 5], 8, 9)
    assert (before.ids, said) == ((1, 8, 2, 8), [3, 4])
    assert spoken_part(prompt, [4, 8], 8, 9)[1] == []
    assert spoken_part(Prompt((1,)), [4, 5], 8, 9)[1] == [4, 5]


def test_a_failure_costs_the_sound_and_not_the_text(model, msgs, tmp_path, caplog):
    text = model.chat(msgs=msgs, output_audio_path=tmp_path, **KWARGS)  # a folder cannot be written
    assert isinstance(text, str)
    assert "could not be spoken" in caplog.text


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"msgs": [{"role": "user", "content": "x"}]}, RequestError, "generate_audio: there is no voice"),
        ({"stream": True}, UnsupportedError, "generate_audio: a stream"),
        ({"tts_proj_layer": 3}, UnsupportedError, "tts_proj_layer"),
        ({"output_audio_path": "nowhere/out.wav"}, RequestError, "output_audio_path: there is no folder 'nowhere'"),
        ({"tts_sampling_params": {"topp": 1}}, UnsupportedError, "tts_sampling_params: unknown topp"),
        ({"tts_sampling_params": {"top_k": 0}}, RequestError, "top_k"),
        ({"generate_audio": False, "teacher_forcing": True}, RequestError, "teacher_forcing"),
    ],
)
def test_what_cannot_be_spoken_is_refused_before(model, msgs, kwargs, error, words):
    with pytest.raises(error, match=words):
        model.chat(**{"msgs": msgs, "output_audio_path": "out.wav", **KWARGS, **kwargs})


def test_no_file_no_sound(model, msgs, caplog):
    caplog.set_level(logging.WARNING)
    assert isinstance(model.chat(msgs=msgs, **KWARGS), str)
    assert "no sound without output_audio_path" in caplog.text


def test_speech_has_to_be_asked_for(model, golden, msgs, tmp_path):
    folder = model.checkpoint.folder
    with AutoModel.from_pretrained(folder, device_map="cpu") as other:
        with pytest.raises(RequestError, match=r"call init_tts\(\) first"):
            other.chat(msgs=msgs, output_audio_path="out.wav", **KWARGS)
        with pytest.raises(RequestError, match=r"call init_tts\(\) first"):
            _ = other.speech
        assert other.client.loaded.model.speech is None
        other.init_tts(streaming=True)
        assert other.speech is other.client.loaded.model.speech
    with pytest.raises(RequestError, match="init_tts=False"):
        AutoModel.from_pretrained(folder, init_tts=False).init_tts()
    with pytest.raises(CheckpointError, match="no codec folder"):
        AutoModel.from_pretrained(golden / "minicpmo45" / "tiny").init_tts()
    with pytest.raises(CheckpointError, match="no codec folder"):
        AutoModel.from_pretrained(folder).init_tts(model_dir=tmp_path / "absent")


@pytest.mark.slow
def test_the_packaged_model_speaks_in_its_own_voice(tmp_path, caplog):
    """Its codec makes no voices of recordings."""
    with AutoModel.from_pretrained("sensorium-tiny", local_files_only=True) as model:
        model.init_tts()
        path = tmp_path / "said.wav"
        how = {"num_beams": 1, "max_new_tokens": 12, "use_tts_template": True, "generate_audio": True}
        assert model.chat(msgs=[{"role": "user", "content": "Hi"}], output_audio_path=path, **how)
        assert np.abs(sound(path)).max() > 1000
        model.init_token2wav_cache(np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32))
        assert "speaks in its own" in caplog.text
        model.streaming_prefill("talk", [{"role": "user", "content": ["Hello."]}], is_last_chunk=True)
        waves = [piece for piece, _ in model.streaming_generate("talk", max_new_tokens=10)]
        assert sum(piece.shape[-1] for piece in waves) > 0
