"""What goes into the graphs of steps, and what comes out.

On a CPU, with plain attention in place of their kernels, and a recorder that computes again what a graph would.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import drive, image, prompt, request, tokens

from sensorium.engine import graphs as graphs_module
from sensorium.engine.graphs import LATER_TOKENS, ChunkGraphs, DecodeGraphs
from sensorium.kernels.reference import Attends, PagedPlan
from sensorium.types import Failed

BLOCK, BLOCKS = 16, 40


class Replays:
    """Stands in for a Recorder."""

    def __init__(self) -> None:
        self.count = 0

    def record(self, compute):
        self.count += 1
        results = compute()

        class Graph:
            num_replays = 0

            def replay(self) -> None:
                Graph.num_replays += 1
                again = compute()
                for kept, result in zip(_several(results), _several(again), strict=True):
                    kept.copy_(result)

        return Graph(), results


def _several(results):
    return results if isinstance(results, tuple) else (results,)


def _seen(rows, table, stop, heads):
    """Keys or values [H, stop, D] of a sequence, from the cache's rows [R, K, D]."""
    at = torch.arange(stop)
    there = rows[table[at // BLOCK].long() * BLOCK + at % BLOCK]
    return there.repeat_interleave(heads // there.shape[1], 1).transpose(0, 1)


class Chunks(Attends):
    """As ChunkPlan of the kernels."""

    ROWS = 64

    def __init__(self, slots, tiles, tables, width) -> None:
        self.slots, self.tiles, self.tables, self.width, self.decodes = slots, tiles, tables, width, None

    def attend_qkv(self, qkv, heads, norms, cos, sin, kv, scale):
        out = super().attend_qkv(qkv, heads, norms, cos, sin, kv, scale)
        if self.decodes is not None:
            count = len(self.decodes.lens)
            mine = self.decodes.attend_qkv(qkv[:count], heads, norms, cos[:count], sin[:count], kv, scale)
            there = self.decodes.lens > 0
            out[:count][there] = mine[there]
        return out

    def attend(self, q, k, v, kv, scale):
        keys, values = kv.flatten(1, 2)
        assert bool((self.slots < len(keys)).all()), "behind the end of the cache"
        held = self.slots >= 0
        keys[self.slots[held].long()], values[self.slots[held].long()] = k[held], v[held]
        out = torch.zeros_like(q)
        for row, count, start, seq in self.tiles.tolist():
            if count:
                table, stop = self.tables[seq * int(self.width[0]) :], start + count
                mask = torch.arange(stop) <= torch.arange(start, stop)[:, None]
                new = slice(row, row + count)
                seen = (_seen(rows, table, stop, q.shape[1]) for rows in (keys, values))
                mixed = F.scaled_dot_product_attention(q[new].transpose(0, 1), *seen, attn_mask=mask, scale=scale)
                out[new] = mixed.transpose(0, 1)
        return out


class Decodes(Chunks):
    """As DecodePlan of the kernels."""

    def __init__(self, lens, tables, width, block_size, scratch) -> None:
        # A row of length 0 is padding.
        last = (torch.arange(len(lens)) * width[0] + (lens - 1).clamp(min=0) // BLOCK).clamp(max=len(tables) - 1)
        slots = torch.where(lens > 0, tables[last.long()] * BLOCK + (lens - 1) % BLOCK, -1)
        tiles = torch.stack((torch.arange(len(lens)), (lens > 0).int(), lens - 1, torch.arange(len(lens))), 1)
        super().__init__(slots, tiles, tables, width)
        self.lens = lens


class Plans(PagedPlan):
    decode_plan, chunk_plan = Decodes, Chunks

    @staticmethod
    def scratch(device):
        return None


@pytest.fixture
def kv(model):
    return [torch.zeros(2, BLOCKS, BLOCK, model.num_kv_heads, model.head_dim) for _ in range(model.num_layers)]


def written(kv) -> list[int]:
    return kv[0].flatten(1, 2)[0].flatten(1).any(1).nonzero().flatten().tolist()


@torch.inference_mode()
def test_sizes_recorded_at_rest_write_to_nobodys_rows(model, kv) -> None:
    replays = Replays()
    graphs = ChunkGraphs(model, kv, Plans, BLOCK, 8, recorder=replays, later=(576, 640))
    tables, counts = [[7, 3], [30]], [20, 9]
    at = np.concatenate([np.arange(count) for count in counts])
    graphs.x.normal_()
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


@pytest.fixture
def make_recorded(make_engine, monkeypatch):
    """An engine whose steps are graphs."""
    monkeypatch.setattr(graphs_module, "Recorder", Replays)

    def make(mixed: bool = False, **changes):
        engine = make_engine(**changes)
        engine.runner._plan_class = Plans
        engine.runner.record_graphs(engine.scheduler.max_num_seqs, 1024, mixed)
        return engine

    return make


@pytest.mark.parametrize("mixed", [False, True])
def test_an_engine_whose_steps_are_graphs_answers_as_one_without(make_engine, make_recorded, mixed: bool) -> None:
    """Prompts and pictures that come one after another and together, while larger sizes are recorded in between."""
    long = "what one graph has room for, " * 21
    rounds = [
        [request("a", prompt(long[:300]), max_tokens=20), request("b", prompt(long[:200], image(1)), max_tokens=4)],
        [request(f"c{n}", prompt(f"{n} {long}"[: 40 * n + 9]), max_tokens=6 + n) for n in range(1, 14)],
        [request("d", prompt(long[:300] + "!"), max_tokens=9), request("e", prompt(long, image(1), image(2)))],
        [request(f"f{n}", prompt(f"{long[:100]} {n}"), max_tokens=3) for n in range(40 if mixed else 9)],
        [request("g", prompt("another text, as long as the longest graph, " * 21), max_tokens=9)],
        [request("h", prompt("one more, " * 60), max_tokens=9), request("i", prompt(long[:300], image(3)))],
    ]
    plain = make_engine(num_blocks=640, max_num_seqs=48)
    engine = make_recorded(mixed, num_blocks=640, max_num_seqs=48)
    runner = engine.runner
    assert (runner._mixed is not None) is mixed
    for requests in rounds:
        want = {name: tokens(events) for name, events in drive(plain, *requests).items()}
        assert {name: tokens(events) for name, events in drive(engine, *requests).items()} == want
        for _ in range(3):
            runner.rehearse()
    used = {size for size, (graph, _) in runner._chunks._graphs.items() if graph.num_replays}
    assert {704, 960} <= used, "recorded later"
    assert set(LATER_TOKENS) <= set(runner._chunks._graphs)
    engine.scheduler.check()


def test_rows_of_media_are_seen_in_chunks_of_one_token(make_engine, make_recorded) -> None:
    """A step of one token each is not always one of decodes."""
    asked = request("a", prompt("Look: ", image(1)))
    want = tokens(drive(make_engine(), asked)["a"])
    assert tokens(drive(make_recorded(max_num_batched_tokens=1, max_num_seqs=4), asked)["a"]) == want


def test_a_row_that_is_not_a_number_ends_alone(make_engine, make_recorded, model, monkeypatch) -> None:
    """Though the next step, which was begun before it was known, continues it too."""
    requests = [request(f"{n}", prompt(f"number {n}"), max_tokens=12) for n in range(3)]
    want = {name: tokens(events) for name, events in drive(make_engine(), *requests).items()}
    engine, logits, calls = make_recorded(max_num_seqs=4), model.logits, []

    def broken(hidden):
        calls.append(len(hidden))
        out = logits(hidden)
        if len(calls) == 5:
            out[1] = torch.nan
        return out

    monkeypatch.setattr(model, "logits", broken)
    events = drive(engine, *requests)
    failed = [name for name, got in events.items() if isinstance(got[-1], Failed)]
    assert failed == ["1"]
    assert "not a number" in events["1"][-1].message
    assert all(tokens(events[name]) == want[name] for name in ("0", "2"))
