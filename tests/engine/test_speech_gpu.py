"""Recorded rounds of the speech stage on a GPU."""

from __future__ import annotations

import pytest
import torch
from speech_small import GREEDY, SESSIONS, scores_after, small_speech, work

from sensorium.engine.speech import SpeechStage
from sensorium.models import loader
from sensorium.models.minicpm_speech import SpeechLM

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def on_gpu(model: SpeechLM, dtype: torch.dtype) -> SpeechLM:
    copy = loader.build(SpeechLM, model.config, "cuda", dtype)
    copy.load_state_dict(model.state_dict())
    return copy


def test_recorded_rounds_say_what_the_host_plans():
    model = on_gpu(small_speech(), torch.float32)
    said = []
    for recorded in (False, True):
        stage = SpeechStage(model, len(SESSIONS))
        if recorded:
            stage.record_graphs()
        slots = [stage.open(rule, sampling) for rule, sampling, _ in SESSIONS]
        sessions = list(zip(slots, SESSIONS, strict=True))
        for turn in range(2):
            works = [work(slot, seed=slot, **calls[turn]) for slot, (_, _, calls) in sessions]
            said.append(stage.speak(works))
    assert said[:2] == said[2:]


def test_16_bits_pick_what_32_bits_find_as_good():
    model = small_speech()
    stage = SpeechStage(on_gpu(model, torch.bfloat16), 3)
    stage.record_graphs()
    slots = [stage.open("duplex", GREEDY) for _ in range(3)]
    works = [work(slot, [slot, 5, 6], seed=slot, last=False, min_new=26) for slot in slots]
    for one, codes in zip(works, stage.speak(works), strict=True):
        assert one.hidden is not None
        with torch.inference_mode():
            rows = torch.cat((model.condition(torch.tensor(one.ids), one.hidden), model.marks()[1]))
        scores = scores_after(model, rows, codes)
        lost = scores.max(-1).values - scores.gather(1, torch.tensor(codes)[:, None])[:, 0]
        assert len(codes) == 25
        assert lost.max() < 0.05 * scores[scores > -torch.inf].std() + 0.2
