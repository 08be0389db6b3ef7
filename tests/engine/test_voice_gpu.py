"""Sound on a GPU: the codec works on a stream of its own, beside the backbone and the speech LM."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_voice import say, spoken
from voice_small import ends, run, samples, small_codec, small_model, speaking_engine

from sensorium.engine.protocol import OpenSpeech
from sensorium.types import Event, SpeechOptions, SpeechSampling

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("graphs", [False, True])
def test_many_at_once_sound_as_on_a_cpu(graphs: bool):
    heard: list[dict[str, np.ndarray]] = []
    for device in ("cpu", "cuda"):
        engine = speaking_engine(small_model(device), small_codec(device=device, graphs=graphs), device=device)
        if graphs:
            assert engine.speech is not None
            engine.speech.record_graphs()
        for name in "abc":
            options = SpeechOptions("default", "duplex", SpeechSampling(seed=ord(name)))
            engine.inbox.append(OpenSpeech(name, options))
            engine.inbox += [say(name, call, last=call == 2) for call in range(3)]
        engine.inbox.append(spoken("text"))
        events: list[Event] = run(engine)
        for name in "abc":
            assert [index for index, _ in ends(events, name)] == [0, 1, 2]
        assert len(ends(events, "text")) == 1
        heard.append({name: samples(events, name) for name in "abc"})
    for name, sound in heard[0].items():
        other = heard[1][name]
        assert len(sound) == len(other)
        # Products are rounded otherwise; the vocoder makes of it a small noise.
        error = np.abs(sound.astype(np.float64) - other).mean()
        assert error < 0.05 * np.abs(sound.astype(np.float64)).mean() + 8
