"""What is done before anybody waits: steps that no graph holds."""

from __future__ import annotations

import torch
from voice_small import small_model

from sensorium.engine.graphs import ShapeGraphs
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


class Replays:
    """Stands in for a Recorder: what a graph would compute is computed again."""

    def __init__(self):
        self.recorded = []

    def record(self, compute):
        result = compute()
        self.recorded.append(tuple(result.shape))

        class Graph:
            def replay(self):
                result.copy_(compute())

        return Graph(), result


def ask(graphs, rows):
    x = torch.rand(rows, 3)
    torch.testing.assert_close(graphs(x, 2.0), x * 2.0)


def test_shapes_that_come_again_are_recorded_when_there_is_time():
    replays = Replays()
    graphs = ShapeGraphs(torch.mul, at_rest=True, recorder=replays)
    for rows in (4, 4, 7, 4, 4):
        ask(graphs, rows)
    assert not replays.recorded
    assert graphs.record_wanted()
    assert not graphs.record_wanted()
    assert replays.recorded == [(4, 3)]
    ask(graphs, 4)
    for _ in range(70):
        ask(graphs, 7)
    assert replays.recorded == [(4, 3), (7, 3)], "one that comes too often is not left for later"
    assert not graphs.record_wanted()


def test_an_encoder_that_remembers_is_recorded_with_what_it_is_given():
    replays = Replays()
    graphs = ShapeGraphs(torch.mul, recorder=replays)
    ask(graphs, 4)
    ask(graphs, 4)
    assert replays.recorded == [(4, 3)]
    assert not graphs.record_wanted()
