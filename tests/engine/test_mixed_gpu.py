"""On a GPU: steps of many decodes beside chunks of prompts are graphs, and compute what their kernels do one by one."""

from __future__ import annotations

import pytest
import torch
from small import request

from sensorium.config import EngineConfig
from sensorium.engine.loading import load
from sensorium.types import Finished, Prompt

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_mixed_steps_as_graphs_give_the_same_logits():
    config = EngineConfig(
        device="cuda", dtype="bfloat16", max_model_len=1024, kv_cache_bytes=64 << 20, max_num_seqs=48,
        decode_slowdown=1.4,
    )  # fmt: skip
    engine = load(config).engine
    runner, replay, errors = engine.runner, engine.runner._replay, []

    def both(works, before):
        flight = replay(works, before)
        if flight is not None and len(works) > 32 and any(work.count > 1 for work in works):
            apart = runner._compute(works, before)
            ours = flight.logits[[flight.rows[name] for name in apart.rows]].float()
            errors.append(float((ours - apart.logits.float()).norm() / apart.logits.float().norm()))
        return flight

    runner._replay = both
    for i in range(46):
        ids = tuple((7 * i + 3 * n) % 200 for n in range(5 + i if i < 40 else 60 + 20 * i))
        engine.inbox.append(request(f"{i}", Prompt(ids), max_tokens=60))
    ended = 0
    while engine.has_work:
        ended += sum(isinstance(event, Finished) for event in engine.step())
    assert ended == 46
    assert len(errors) > 5
    assert max(errors) < 2e-2
    engine.scheduler.check()
