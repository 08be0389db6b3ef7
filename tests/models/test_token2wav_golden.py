"""The codec against the reference's stored numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from codec_golden import (
    MEL,
    WAVE,
    causal,
    facts,
    flow,
    original,
    prompt,
    streaming_codec,
    tensors,
    weights,
)
from safetensors.torch import load_file

from sensorium.models.token2wav.features import prompt_mel, speaker_features, tokenizer_mel
from sensorium.models.token2wav.pcm import to_pcm16
from sensorium.models.token2wav.resample import resample
from sensorium.models.token2wav.s3 import S3Tokenizer
from sensorium.models.token2wav.steps import finish
from sensorium.models.token2wav.token2wav import Voice
from sensorium.models.token2wav.weights import Weights
from tests.golden_speech import place_of


def close(ours: torch.Tensor | np.ndarray, theirs: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(torch.as_tensor(ours), theirs, atol=tolerance, rtol=0)


def test_resampling():
    t = tensors("resample_16k_24k")
    close(resample(t["wave_16k"], 16_000, 24_000), t["wave_24k"], 1e-6)
    close(resample(t["wave_24k_in"], 24_000, 16_000), t["wave_16k_out"], 1e-6)


def test_mel_of_a_prompt():
    t = tensors("prompt_mel_24k")
    close(prompt_mel(t["wave"]), t["log_mel"], 1e-5)


def test_features_of_a_speaker():
    t = tensors("speaker_fbank")
    close(speaker_features(t["wave"]), t["fbank_centered"], 1e-3)


def test_speech_tokenizer():
    t = tensors("speech_tokenizer")
    tokenizer = S3Tokenizer(Weights(load_file(place_of("assets/speech_tokenizer.safetensors")), "tokenizer"))
    close(tokenizer_mel(t["wave"]), t["log_mel"], 1e-5)
    close(tokenizer.encode(t["log_mel"]), t["project_down"], 1e-4)
    assert tokenizer(t["wave"]).tolist() == t["codes"].tolist()


def test_transforms_of_the_vocoder():
    t, hift = tensors("istft_16_4"), original(torch.zeros(1, 9)).hift
    real, imaginary = hift.spectrum(t["wave"][None])[0].chunk(2)
    close(real, t["stft_real"], 1e-5)
    close(imaginary, t["stft_imag"], 1e-5)
    close(hift.from_spectrum(t["magnitude"][None], t["phase"][None])[0], t["istft"], 1e-5)


def test_whole_utterance_step_by_step():
    t = tensors("token2wav_full")
    made = flow(t, facts("token2wav_full")["n_timesteps"], silent_ahead=True)
    voice, codes = prompt(t), t["token"][0].tolist()
    mu, _ = made.encoder(torch.cat((t["prompt_token"], t["token"]), 1).long(), last=True)
    close(mu[0], t["mu"], MEL)
    close(made.speaker(voice)[0], t["spk_proj"], MEL)
    close(torch.tensor(made.estimator.times), t["t_span"], 1e-6)
    known = made.known(voice, mu.shape[1])
    given = made.estimator.condition(mu, made.speaker(voice), known)
    velocity, _ = made.estimator.velocity(0, t["flow_noise"].T[None], given, None)
    close(velocity[0, :, 0].T, t["estimator_step0_cond"], MEL)
    close(velocity[0, :, 1].T, t["estimator_step0_uncond"], MEL)
    close(made.whole(voice, codes).T, t["mel"], MEL)


def test_original_vocoder_step_by_step():
    t = tensors("token2wav_full")
    vocoder = original(t["source_noise_i8"][0].float() / 32)
    mel = t["mel"][None]
    close(vocoder.hift.f0(mel)[0], t["f0"], 1e-3)
    close(vocoder._source(mel, [0])[0], t["source"], WAVE)
    close(vocoder.whole(mel.transpose(1, 2))[0], t["wav"], WAVE)


@pytest.mark.parametrize("kind", ["causal", "crossfade"])
def test_streams(kind: str):
    case = f"token2wav_stream_{kind}"
    t, codec = tensors(case), streaming_codec(kind)
    chunks = facts(case)["chunks"]
    stream = codec.open(Voice(prompt(t)))
    for i, chunk in enumerate(chunks):
        assert len(stream.flow.estimator) == chunk["noise_offset"]
        (sound,) = codec.stream([(stream, chunk["tokens"], chunk["last_chunk"])])
        assert len(sound) == chunk["samples"]
        close(sound, t[f"wav_{i}"], WAVE)
        assert len(stream.flow.estimator) == chunk["estimator_cache_len"]
        assert len(stream.flow.frames) == chunk["conformer_cache_len"]
    # Keys and values of the first step, layer and guidance row, and of its first head.
    state = codec.flow.state.estimator.data[0][0][:, stream.flow.estimator]
    heads = state.view(2, -1, 2, 2, 16)[:, :, 0]
    close(torch.cat((heads[0], heads[1]), -1).transpose(0, 1), t["final_estimator_att_t0_l0"][0], MEL)
    # 16-bit samples are cut, not rounded, so ours may differ by one where the floats differ at all.
    pcm = np.frombuffer(to_pcm16(t[f"wav_{len(chunks) - 1}"].numpy()), dtype="<i2")
    assert pcm.tolist() == t["last_pcm_i16"].tolist()


@pytest.mark.parametrize("kind", ["causal", "crossfade"])
def test_mel_of_streams(kind: str):
    case = f"token2wav_stream_{kind}"
    t, made = tensors(case), streaming_codec(kind).flow
    voice = finish(made.voice(prompt(t)))
    close(made.state.encoder_columns.data[0][voice.rows.slot[0]].T, t["setup_conformer_cnn"], MEL)
    stream = made.open(voice)
    for i, chunk in enumerate(facts(case)["chunks"]):
        close(finish(made.chunk([stream], [chunk["tokens"]], chunk["last_chunk"]))[0].T, t[f"mel_{i}"], MEL)


@pytest.mark.parametrize("pieces", [(5, 11, 30, 7), (53,), (1, 2, 3, 40, 7), (16, 16, 16, 5)])
def test_blocks_of_the_causal_vocoder(pieces: tuple[int, ...]):
    t, vocoder = tensors("causal_vocoder_blocks"), causal()
    state, mel = vocoder.open(), t["mel"].T[None]
    sounds = [vocoder.stream([state], part, last=False)[0] for part in mel.split(pieces, 1)]
    if pieces == (5, 11, 30, 7):
        assert [len(sound) for sound in sounds] == facts("causal_vocoder_blocks")["samples"][:4]
    sounds.append(vocoder.stream([state], mel[:, :0], last=True)[0])
    theirs = torch.cat([t[f"wav_{i}"] for i in (0, 1, 2, 3, "final")])
    close(torch.cat(sounds), theirs, WAVE)


def test_weights_without_their_normalisation_are_refused_by_name():
    tensors_ = {"a.parametrizations.weight.original1": torch.ones(2, 3)}
    with pytest.raises(Exception, match="original0 is missing"):
        Weights(tensors_, "x")
    assert weights("token2wav/hift.pt").shape("conv_pre.weight") == (32, 80, 7)
