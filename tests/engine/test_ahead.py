"""Starting a step before the last one's tokens are read changes no token. On a GPU graphs do it; here a stand-in that
computes at once what a graph would, from the same numbers."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from small import drive, image, prompt, request, tokens

from sensorium.engine.protocol import Abort
from sensorium.kernels.reference import PagedPlan
from sensorium.types import Finished, ModelInputs


class EagerDecodes:
    """The part of DecodeGraphs that the runner uses."""

    most = 64

    def __init__(self, runner) -> None:
        self.runner = runner
        self.unread = 0

    @torch.inference_mode()
    def run(self, ids, positions, lens, tables, source=None):
        self.unread += source is not None
        model, counts = self.runner.model, [1] * len(lens)
        plan = PagedPlan(counts, lens, tables, self.runner.block_size, torch.device("cpu"))
        at = torch.from_numpy(np.array(positions[0]))
        x = model.embed(torch.tensor(ids) if source is None else source[ids])
        hidden = model.forward(x, ModelInputs(at, plan, self.runner.kv))
        logits = model.logits(hidden)
        return logits, logits.argmax(-1), hidden


class NoChunks:
    def fits(self, counts) -> bool:
        return False


def let_run_ahead(engine) -> EagerDecodes:
    engine.runner._decodes, engine.runner._chunks = EagerDecodes(engine.runner), NoChunks()
    return engine.runner._decodes


TEXTS = {f"r{n}": prompt("a text of its own " + "xyz" * n) for n in range(9)}


@pytest.mark.parametrize("sampling", [{}, {"ignore_eos": False}, {"stop_token_ids": tuple(range(0, 256, 3))}])
def test_running_ahead_changes_no_token(make_engine, sampling) -> None:
    requests = [request(name, made, max_tokens=5 + 7 * i, **sampling) for i, (name, made) in enumerate(TEXTS.items())]
    want = {r.id: tokens(drive(make_engine(), r)[r.id]) for r in requests}
    engine = make_engine()
    decodes = let_run_ahead(engine)
    got = drive(engine, *requests)
    assert {name: tokens(events) for name, events in got.items()} == want
    assert sum(isinstance(event, Finished) for events in got.values() for event in events) == len(requests)
    assert decodes.unread > 5
    engine.scheduler.check()
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("num_blocks", [40, 400])
def test_arrivals_aborts_and_few_blocks(make_engine, seed: int, num_blocks: int) -> None:
    rng = random.Random(seed)
    made = {name: request(name, p, max_tokens=rng.randrange(1, 60)) for name, p in TEXTS.items()}
    made["picture"] = request("picture", prompt("Look: ", image(1)), max_tokens=20)
    made["drawn"] = request("drawn", prompt("chance"), max_tokens=30, temperature=1.0, seed=seed)
    want = {name: tokens(drive(make_engine(), r)[name]) for name, r in made.items()}
    engine = make_engine(num_blocks=num_blocks)
    let_run_ahead(engine)
    left, got, aborted = list(made.values()), {name: [] for name in made}, {"r1", "r4"}
    while left or engine.has_work:
        if left and rng.random() < 0.2:
            engine.inbox.append(left.pop())
        for name in aborted:
            if len(got[name]) == 3:
                engine.inbox.append(Abort(name))
        for event in engine.step():
            got[event.request_id].append(event)
    for name, events in got.items():
        found = tokens(events)
        assert found == want[name] or (name in aborted and found == want[name][: len(found)]), name
        assert isinstance(events[-1], Finished)
    engine.scheduler.check()
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks


def test_an_error_of_the_next_step_ends_those_in_it(make_engine) -> None:
    engine = make_engine()
    decodes = let_run_ahead(engine)
    run = decodes.run

    def fail_once(*args):
        if args[-1] is not None and decodes.unread == 3:
            decodes.unread += 1
            raise RuntimeError("out of luck")
        return run(*args)

    decodes.run = fail_once
    got = drive(engine, request("a", TEXTS["r1"], max_tokens=40))
    assert got["a"][-1].code == "engine_error"
    again = drive(engine, request("b", TEXTS["r1"], max_tokens=40))["b"]
    assert tokens(again) == tokens(drive(make_engine(), request("c", TEXTS["r1"], max_tokens=40))["c"])
