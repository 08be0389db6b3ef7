"""Steps of many decodes beside chunks of prompts are graphs on a GPU, and compute what their kernels do one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small import request

from sensorium.config import EngineConfig
from sensorium.engine.graphs import agrees
from sensorium.engine.loading import load
from sensorium.kernels.reference import PagedPlan
from sensorium.types import Finished, ModelInputs, Prompt

BLOCK = 16


class Recorded:
    """The part of ChunkGraphs that is checked; `spoil` changes what comes out."""

    def __init__(self, model, kv, spoil=lambda rows: rows) -> None:
        self.x = torch.zeros(512, model.hidden_size)
        self._model, self._kv, self._spoil = model, kv, spoil

    def run(self, counts, lens, positions, tables):
        total, plan = sum(counts), PagedPlan(counts, lens, tables, BLOCK, torch.device("cpu"))
        inputs = ModelInputs(torch.tensor(positions[0]), plan, self._kv)
        hidden = self._model.forward(self.x[:total].clone(), inputs)[np.cumsum(counts) - 1]
        return hidden, hidden, self._spoil(hidden)


def a_row_is_nan(rows):
    rows[3] = torch.nan
    return rows


@pytest.mark.parametrize(
    ("spoil", "right"), [(lambda rows: rows, True), (lambda rows: rows.roll(1, 0), False), (a_row_is_nan, False)]
)
@torch.inference_mode()
def test_recorded_steps_are_used_only_if_they_agree(model, spoil, right: bool) -> None:
    kv = [torch.zeros(2, 200, BLOCK, model.num_kv_heads, model.head_dim) for _ in range(model.num_layers)]
    assert agrees(Recorded(model, kv, spoil), model, kv, PagedPlan, BLOCK) is right
    assert not right or not any(layer.any() for layer in kv), "what was written is wiped"


@torch.inference_mode()
def test_a_cache_too_small_to_check_in_has_no_such_steps(model) -> None:
    kv = [torch.zeros(2, 20, BLOCK, model.num_kv_heads, model.head_dim) for _ in range(model.num_layers)]
    assert not agrees(Recorded(model, kv), model, kv, PagedPlan, BLOCK)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_mixed_steps_as_graphs_give_the_same_logits():
    config = EngineConfig(
        device="cuda", dtype="bfloat16", max_model_len=1024, kv_cache_bytes=64 << 20, max_num_seqs=48,
        decode_slowdown=1.4,
    )  # fmt: skip
    engine = load(config).engine
    runner, replay, errors = engine.runner, engine.runner._replay, []
    assert runner._mixed is not None

    def both(works, before):
        # First: a graph writes its tokens where those of the graph before are, which these works may continue.
        mixed = len(works) > 32 and any(work.count > 1 for work in works)
        apart = runner._compute(works, before) if mixed else None
        flight = replay(works, before)
        if apart is not None and flight is not None:
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
