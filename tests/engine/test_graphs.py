"""Recording a step computes it once, in the cache that others' rows are in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sensorium.engine.graphs import ChunkGraphs, DecodeGraphs
from sensorium.kernels.reference import Attends

BLOCK, BLOCKS = 16, 40


class Replays:
    """Stands in for a Recorder: what a graph would compute is computed again."""

    def __init__(self) -> None:
        self.count = 0

    def record(self, compute):
        self.count += 1
        results = compute()

        class Graph:
            def replay(self) -> None:
                for kept, result in zip(results, compute(), strict=True):
                    kept.copy_(result)

        return Graph(), results


class Marks(Attends):
    """A plan that marks the rows of the cache it is told to write, and attends to nothing."""

    ROWS = 64

    def __init__(self, slots: torch.Tensor) -> None:
        self.slots = slots

    def attend_qkv(self, qkv, heads, norms, cos, sin, kv, scale):
        rows = kv.view(2, -1, *kv.shape[3:])
        assert bool((self.slots < rows.shape[1]).all()), "behind the end of the cache"
        rows[:, self.slots[self.slots >= 0].long()] = 1
        return torch.zeros(len(qkv), heads[0] * kv.shape[-1])


class Plans:
    """The kernels' side of graphs, as far as what is written goes."""

    @staticmethod
    def scratch(device):
        return None

    class chunk_plan(Marks):
        def __init__(self, slots, tiles, tables, width) -> None:
            super().__init__(slots)

    @staticmethod
    def decode_plan(lens, tables, width, block_size, scratch):
        last = torch.arange(len(lens)) * width[0] + (lens - 1).clamp(min=0) // block_size
        slots = tables[last.clamp(max=len(tables) - 1).long()] * block_size + (lens - 1) % block_size
        return Marks(torch.where(lens > 0, slots, -1))


def written(kv) -> list[int]:
    return kv[0].view(2, -1, *kv[0].shape[3:])[0].flatten(1).any(1).nonzero().flatten().tolist()


@pytest.fixture
def kv(model):
    return [torch.zeros(2, BLOCKS, BLOCK, model.num_kv_heads, model.head_dim) for _ in range(model.num_layers)]


@torch.inference_mode()
def test_sizes_recorded_at_rest_write_to_nobodys_rows(model, kv) -> None:
    replays = Replays()
    graphs = ChunkGraphs(model, kv, Plans, BLOCK, 8, recorder=replays, later=(576, 640))
    tables, counts = [[7, 3], [30]], [20, 9]
    at = np.concatenate([np.arange(count) for count in counts])
    graphs.run(counts, counts, at[None], tables)
    for layer in kv:
        layer.zero_()
    before = replays.count
    assert len(list(graphs.record_later())) == replays.count - before == 2
    assert written(kv) == []
    graphs.run(counts, counts, at[None], tables)
    assert written(kv) == [*range(48, 52), *range(112, 128), *range(480, 489)]


@torch.inference_mode()
def test_a_size_recorded_when_it_came_often_writes_to_the_rows_of_its_step(model, kv) -> None:
    replays = Replays()
    graphs = DecodeGraphs(model, kv, Plans, BLOCK, 16, 8, recorder=replays)
    recorded = replays.count
    for _ in range(64):
        assert replays.count == recorded
        for layer in kv:
            layer.zero_()
        lens, tables = [20] * 9, [[2 * i + 4, 2 * i + 5] for i in range(9)]
        graphs.run([5] * 9, np.full((1, 9), 19), lens, tables)
    assert replays.count == recorded + 1
    assert written(kv) == [16 * (2 * i + 5) + 3 for i in range(9)]
