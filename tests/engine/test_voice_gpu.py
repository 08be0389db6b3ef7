"""Sound on a GPU: the codec works on a stream of its own, beside the backbone and the speech LM."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_voice import say, spoken
from voice_small import alone, codes_of, ends, run, samples, small_codec, small_model, speaking_engine, voice

from sensorium.engine.protocol import Hush, OpenSpeech
from sensorium.types import Event, SpeechOptions, SpeechSampling

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def assert_near(found: np.ndarray, expected: np.ndarray) -> None:
    """Batches of other sizes round products otherwise; the vocoder makes a small noise of it."""
    assert len(found) == len(expected) > 0
    error = np.abs(found.astype(np.float64) - expected).mean()
    assert error < 0.05 * np.abs(expected.astype(np.float64)).mean() + 8


@pytest.mark.parametrize("graphs", [False, True])
def test_many_at_once_sound_as_their_codes_do_alone(graphs: bool):
    codec = small_codec(device="cuda", graphs=graphs)
    engine = speaking_engine(small_model("cuda"), codec, device="cuda")
    assert engine.speech is not None
    assert engine.codec is not None
    if graphs:
        engine.speech.record_graphs()
        engine.codec.record_graphs(4, [engine.voices.find("default")])
    for name in "abc":
        options = SpeechOptions("default", "duplex", SpeechSampling(seed=ord(name)), codes=True)
        engine.inbox += [OpenSpeech(name, options), *(say(name, call, last=call == 2) for call in range(3))]
    engine.inbox.append(spoken("text"))
    events: list[Event] = run(engine)
    for name in "abc":
        calls = [(codes, call == 2) for call, codes in codes_of(events, name).items()]
        assert_near(samples(events, name), alone(codec, voice("default"), "duplex", calls))
        assert [index for index, _ in ends(events, name)] == [0, 1, 2]
    answer = [(codes_of(events, "text")[0], True)]
    assert_near(samples(events, "text"), alone(codec, voice("default"), "half_duplex", answer))
    # And silence at once, with a batch on the device.
    engine.inbox += [say("a", call, last=False, max_new=200) for call in (3, 4)]
    events = []
    while not len(samples(events, "a")):
        events += engine.step()
    engine.inbox.append(Hush("a"))
    after = run(engine)
    assert not len(samples(after, "a"))
    assert {ended for _, ended in ends(after, "a")} == {"cut"}
