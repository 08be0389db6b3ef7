"""Codec folders: both layouts load and speak with a recorded voice; what is wrong with a folder is named."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_codec import write_codec

from sensorium.errors import CheckpointError, ConfigError, MediaError, RequestError, UnsupportedError
from sensorium.media.wav import read_wav
from sensorium.models.token2wav import Token2Wav, Voice, VoicePrompt, to_wav
from sensorium.models.token2wav.features import tokenizer_mel
from sensorium.models.token2wav.hift_causal import CausalVocoder
from sensorium.models.token2wav.prompt import TOKENIZER_FILE
from sensorium.models.token2wav.s3 import S3Tokenizer, read_onnx_weights
from sensorium.models.token2wav.weights import Weights


@pytest.fixture(scope="module", params=["original", "causal"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_codec(tmp_path_factory.mktemp("codec") / "token2wav", request.param)


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "token2wav"))


def recording(seconds: float, rate: int = 16_000) -> np.ndarray:
    t = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(len(t))
    return (0.3 * np.sin(2 * np.pi * 150 * t) * (1 + np.sin(2 * np.pi * 3 * t)) + 0.02 * noise).astype(np.float32)


def test_speaks_with_a_recorded_voice(folder: Path, tmp_path: Path):
    codec = Token2Wav.load(folder, 2)
    voice = codec.voice(np.stack((recording(1.3, 44_100), recording(1.3, 44_100)), 1), 44_100)
    assert len(voice.prompt.mel) == 2 * len(voice.prompt.codes) == pytest.approx(2.6 * 25, abs=2)
    codes = list(range(100, 130))
    sound = codec(codes, voice)
    assert sound.dtype == np.float32
    assert sound.shape == (30 * 960,)
    assert 0.001 < sound.std() < 0.9
    # A saved voice needs none of the ONNX packages, and sounds the same.
    voice.prompt.save(tmp_path / "voice.safetensors")
    plain = Token2Wav.load(folder, 2, cloning=False)
    kept = Voice(VoicePrompt.load(tmp_path / "voice.safetensors"))
    np.testing.assert_array_equal(plain(codes, kept), sound)
    with pytest.raises(UnsupportedError, match="cloning=False"):
        plain.voice(recording(1.0), 16_000)
    wav = read_wav(to_wav(sound))
    assert wav is not None
    assert (wav.rate, wav.channels, wav.frames) == (24_000, 1, len(sound))
    np.testing.assert_allclose(wav.read(0, wav.frames)[:, 0], sound, atol=2e-4)


def test_saved_voices_are_checked(folder: Path, tmp_path: Path):
    codec = Token2Wav.load(folder, 1, cloning=False)
    for codes, width in ((torch.tensor([1, 2, 6561]), 192), (torch.tensor([1, 2, 3]), 100)):
        VoicePrompt(codes, torch.ones(width), torch.zeros(6, 80)).save(tmp_path / "voice.safetensors")
        other = Voice(VoicePrompt.load(tmp_path / "voice.safetensors"))
        for use in (lambda voice=other: codec([1], voice), lambda voice=other: codec.open(voice)):
            with pytest.raises(RequestError, match="another codec's"):
                use()
    with pytest.raises(CheckpointError, match="codes"):
        VoicePrompt(torch.tensor([1, 2, 3]), torch.ones(192), torch.zeros(5, 80))
    (tmp_path / "voice.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="is not a saved voice"):
        VoicePrompt.load(tmp_path / "voice.safetensors")


def test_layouts_are_told_apart_by_shape(folder: Path):
    streaming = Token2Wav.load(folder, 1, cloning=False)._streaming
    assert isinstance(streaming, CausalVocoder) == (folder / "hift_original.pt").exists()


def test_flow_in_16_bits_is_close(folder: Path):
    voice = Voice(VoicePrompt(torch.arange(20), torch.ones(192), torch.zeros(40, 80) - 3))
    exact, *rough = (
        Token2Wav.load(folder, 2, dtype=dtype, cloning=False).flow.whole(voice.prompt, range(30))
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    )
    for mel in rough:
        assert mel.dtype == torch.float32
        assert (exact - mel).abs().mean() < 0.05 * exact.std()


def test_long_voices_are_heard_in_windows(folder: Path):
    codec = Token2Wav.load(folder, 1)
    tokenizer = codec._prompts._tokenize
    sound = torch.from_numpy(recording(31.0))
    whole = tokenizer(sound)
    assert len(whole) == 31 * 25
    mel = tokenizer_mel(sound)
    first, second = tokenizer._codes(mel[:, :3000]), tokenizer._codes(mel[:, 2600:])
    # Windows overlap by four seconds, of which each keeps the two that are nearer to its middle.
    assert whole.tolist() == [*first[:700].tolist(), *second[50:].tolist()]


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (recording(0.1), 16_000, "at least 0.2 s"),
        (np.full(16_000, np.nan, dtype=np.float32), 16_000, "not finite"),
        (np.zeros((2, 2, 2), dtype=np.float32), 16_000, "must be floats"),
        (np.zeros(16_000, dtype=np.int16), 16_000, "must be floats"),
        (recording(1.0), 100, "samples per second"),
    ],
)
def test_recordings_that_are_no_voice(folder: Path, samples: np.ndarray, rate: int, message: str):
    codec = Token2Wav.load(folder, 1)
    with pytest.raises(MediaError, match=message):
        codec.voice(samples, rate)


def test_missing_files_are_named(broken: Path):
    for file in [path.name for path in broken.iterdir()]:
        (broken / file).rename(broken / "elsewhere")
        with pytest.raises(CheckpointError, match=file.replace(".", r"\.")):
            Token2Wav.load(broken, 1)
        (broken / "elsewhere").rename(broken / file)
    with pytest.raises(CheckpointError, match="no codec folder"):
        Token2Wav.load(broken / "nothing", 1)


@pytest.mark.parametrize(
    ("file", "name", "change", "message"),
    [
        ("flow.pt", "encoder_proj.weight", None, "flow.pt: tensor encoder_proj.weight is missing"),
        (
            "flow.pt",
            "encoder_proj.weight",
            torch.zeros(80, 3),
            r"encoder_proj.weight has shape \[80, 3\], not \[80, 48\]",
        ),
        ("flow.pt", "more", torch.zeros(1), "tensors that this codec does not have: more"),
        ("hift.pt", "ups.1.bias", None, "hift.pt: tensor ups.1.bias is missing"),
        ("hift.pt", "conv_post.parametrizations.weight.original0", None, "conv_post.parametrizations.weight.original0"),
        ("hift.pt", "conv_pre.parametrizations.weight.original1", torch.zeros(32, 80, 9), "conv_pre has 9 taps"),
    ],
)
def test_wrong_tensors_are_named(broken: Path, file: str, name: str, change: torch.Tensor | None, message: str):
    tensors = torch.load(broken / file, weights_only=True)
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change
    torch.save(tensors, broken / file)
    with pytest.raises(CheckpointError, match=message):
        Token2Wav.load(broken, 1, cloning=False)


def test_older_names_of_vocoder_tensors_load(broken: Path, folder: Path):
    voice = Voice(VoicePrompt(torch.arange(20), torch.ones(192), torch.zeros(40, 80) - 3))
    expected = Token2Wav.load(folder, 1, cloning=False)(range(20), voice)
    file = broken / ("hift_original.pt" if (broken / "hift_original.pt").exists() else "hift.pt")
    renamed = {
        "generator."
        + name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in torch.load(file, weights_only=True).items()
    }
    torch.save(renamed, file)
    np.testing.assert_array_equal(Token2Wav.load(broken, 1, cloning=False)(range(20), voice), expected)


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise AssertionError('executed')",))


def test_nothing_in_a_folder_is_executed(broken: Path):
    text = (broken / "flow.yaml").read_text()
    # A constructor tag is a name for what stands below it, whatever it names.
    (broken / "flow.yaml").write_text(text + "more: !apply:os.abort []\n")
    Token2Wav.load(broken, 1, cloning=False)
    (broken / "flow.yaml").write_text(text + "more: !!python/object/apply:os.abort []\n")
    with pytest.raises(CheckpointError, match=r"flow.yaml is not valid YAML"):
        Token2Wav.load(broken, 1, cloning=False)
    (broken / "flow.yaml").write_text(text)
    torch.save({"a": _Bomb()}, broken / "flow.pt")
    with pytest.raises(CheckpointError, match=r"flow.pt cannot be read"):
        Token2Wav.load(broken, 1, cloning=False)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("vocab_size: 6561", "vocab_size: many", "flow.vocab_size must be a positive whole number"),
        ("up_stride: 2", "up_stride: 4", "flow.encoder.up_stride is 4; only 2 is supported"),
        ("      depth: 2\n", "", "field flow.decoder.estimator.depth is missing"),
        ("num_blocks: 2", "num_blocks: 3", "tensor encoder.encoders.2"),
    ],
)
def test_settings_that_do_not_fit_are_named(broken: Path, old: str, new: str, message: str):
    file = broken / "flow.yaml"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(CheckpointError, match=message):
        Token2Wav.load(broken, 1, cloning=False)


def test_settings_of_the_caller_are_checked(folder: Path):
    with pytest.raises(ConfigError, match="n_timesteps must be between 1 and 100"):
        Token2Wav.load(folder, 0, cloning=False)
    with pytest.raises(ConfigError, match="trimming must be one of"):
        Token2Wav.load(folder, 1, cloning=False, trimming="none")  # pyright: ignore


def test_mel_settings_of_the_causal_layout_are_checked(broken: Path):
    if not (broken / "config.yaml").exists():
        pytest.skip("only this layout has a config.yaml")
    text = (broken / "config.yaml").read_text()
    for changed, message in (
        (text.replace("hop_size: 480", "hop_size: 240"), "hop_size is 240; only 480"),
        (text.replace("  fmax: 8000\n", ""), "fmax is missing"),
        ("a: 1\n", "no mel settings"),
    ):
        (broken / "config.yaml").write_text(changed)
        with pytest.raises(CheckpointError, match=message):
            Token2Wav.load(broken, 1, cloning=False)


def test_onnx_weights_have_the_names_of_their_modules(folder: Path):
    tensors = read_onnx_weights(folder / TOKENIZER_FILE)
    assert tensors["encoder.conv2.weight"].shape == (64, 64, 3)
    assert tensors["encoder.blocks.0.mlp.0.weight"].shape == (256, 64)
    assert tensors["quantizer._codebook.project_down.weight"].shape == (8, 64)
    assert len(tensors) == 22
    del tensors["encoder.blocks.0.attn.out.bias"]
    with pytest.raises(CheckpointError, match=r"encoder.blocks.0.attn.out.bias is missing"):
        S3Tokenizer(Weights(tensors, TOKENIZER_FILE))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_the_extra_is_named_where_it_is_missing(folder: Path, package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnsupportedError, match=rf"{package} package: pip install 'sensorium\[speech\]'"):
        Token2Wav.load(folder, 1)
    Token2Wav.load(folder, 1, cloning=False)


def test_damaged_graphs_are_named(broken: Path):
    for file in (TOKENIZER_FILE, "campplus.onnx"):
        kept = (broken / file).read_bytes()
        (broken / file).write_bytes(b"not a graph" * 9)
        with pytest.raises(CheckpointError, match=file):
            Token2Wav.load(broken, 1)
        (broken / file).write_bytes(kept)
