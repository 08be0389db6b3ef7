"""Sessions on a GPU, where steps are graphs: prompts that nothing is chosen after, several sessions, rows that move."""

from __future__ import annotations

import pytest
import torch

from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient
from sensorium.types import Prompt, SamplingParams

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
QUESTIONS = ("<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n", "<|im_start|>user\nAnd you?<|im_end|>\n")


def test_sessions_say_together_what_they_say_alone():
    config = EngineConfig(device="cuda", dtype="bfloat16", max_model_len=1024, kv_cache_bytes=64 << 20)
    with EngineClient(config, kind="thread") as client:
        prompts = [Prompt(tuple(client.tokenizer.encode(text))) for text in QUESTIONS]
        sampling = SamplingParams(temperature=0.0, max_tokens=8)
        heard = []
        for together in (1, 3):
            sessions = [client.open_session(prompts[1], sampling=sampling, max_len=256) for _ in range(together)]
            for session in sessions:
                session.opened()
            units = [[session.append(prompt) for prompt in prompts] for session in sessions]
            for session, indexes in zip(sessions, units, strict=True):
                heard.append([session.run(prompts[0]).text, len(indexes)])
                session.close()
        assert all(said == heard[0] for said in heard)
        assert heard[0][0]
