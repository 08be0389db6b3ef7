"""The codec on a GPU: the reference's streams, and graphs beside plain computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from codec_golden import facts, prompt, streaming_codec, tensors

from sensorium.bench.codec import SMALL, random_parts, random_voice
from sensorium.models.token2wav import Token2Wav, Voice

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
# Products of long sums come in another order there, and the phase of the source adds up.
TOLERANCE = 5e-3


@pytest.fixture(autouse=True)
def exact_convolutions():
    """torch rounds their operands to tf32 by default, 1e-2 in a wave."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.parametrize("kind", ["causal", "crossfade"])
def test_streams_as_recorded(kind: str):
    case = f"token2wav_stream_{kind}"
    t, codec = tensors(case), streaming_codec(kind, "cuda")
    stream = codec.open(Voice(prompt(t)))
    for i, chunk in enumerate(facts(case)["chunks"]):
        (sound,) = codec.stream([(stream, chunk["tokens"], chunk["last_chunk"])])
        np.testing.assert_allclose(sound, t[f"wav_{i}"].numpy(), atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["original", "causal"])
def test_graphs_change_nothing(kind: str):
    heard = []
    for device, graphs in (("cpu", False), ("cuda", False), ("cuda", True)):
        codec = Token2Wav(random_parts(SMALL, kind, 2, device, graphs=graphs))
        voices = [Voice(random_voice(SMALL, seconds)) for seconds in (0.6, 1.4)]
        # The third stream comes when the graphs of two are there; pools grow meanwhile.
        streams, sounds = [codec.open(voices[0]), codec.open(voices[1])], []
        rng = np.random.default_rng(0)
        for tick in range(5):
            if tick == 2:
                streams.append(codec.open(voices[1]))
            works = [(stream, rng.integers(0, 6561, 28).tolist(), False) for stream in streams]
            sounds += codec.stream(works)
        heard.append(np.concatenate(sounds))
    for other in heard[1:]:
        # The phase of a loud harmonic may drift a little between devices.
        assert np.corrcoef(heard[0], other)[0, 1] > 0.99
    np.testing.assert_allclose(heard[1], heard[2], atol=TOLERANCE)
