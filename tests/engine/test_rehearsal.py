"""What is done before anybody waits: steps that no graph holds."""

from __future__ import annotations

import torch
from voice_small import small_model

from sensorium.engine.rehearsal import steps_by_kernel
from sensorium.kernels.reference import PagedPlan


def test_steps_are_chunks_beside_ever_more_decodes():
    model, seen = small_model(), []

    def plans(counts, lens, tables, block_size, device):
        seen.append((counts.count(1), [length - count for count, length in zip(counts, lens, strict=True)][-2:]))
        return PagedPlan(counts, lens, tables, block_size, device)

    with torch.inference_mode():
        assert len(list(steps_by_kernel(model, plans, 16, 9, torch.zeros(1)))) == 4
    assert seen == [(1, [2, 2]), (2, [2, 2]), (4, [2, 2]), (8, [2, 2])]
