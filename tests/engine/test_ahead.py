"""Starting a step before the last one's tokens are read changes no token. On a GPU graphs do it; here a stand-in that
computes at once what a graph would, from the same numbers."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from small import drive, image, prompt, request, tokens

from sensorium.engine.protocol import Abort
from sensorium.engine.scheduler import Work
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


def watch_starts(engine) -> list[list[tuple[str, int, int]]]:
    """Works (sequence id, start, count) of each step that was started before the one before it was read."""
    started, start = [], engine.runner._start

    def watched(works, before):
        if before is not None:
            started.append([(work.seq.id, work.start, work.count) for work in works])
        return start(works, before)

    engine.runner._start = watched
    return started


def at_rest(engine) -> bool:
    engine.scheduler.check()
    return engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks


LONG = "a long text, much longer than what one step computes. " * 5
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


def test_chunks_of_prompts_run_ahead(make_engine) -> None:
    """The device has the next chunks, and those of prompts that wait, before it has yielded the last tokens."""
    requests = [request(f"p{i}", prompt(f"{i} {LONG}"), max_tokens=3 + i) for i in range(4)]
    want = {r.id: tokens(drive(make_engine(), r)[r.id]) for r in requests}
    engine = make_engine(max_num_batched_tokens=96)
    let_run_ahead(engine)
    ahead = watch_starts(engine)
    got = drive(engine, *requests)
    assert {name: tokens(events) for name, events in got.items()} == want
    assert ahead[0] == [("p0", 96, 96)]
    length = len(requests[0].prompt.ids)
    mixed = [works for works in ahead if ("p0", length, 1) in works]
    assert len(mixed) == 1
    assert len(mixed[0]) > 1, "the first token of p0 and a chunk of p1 run in one step that is started unread"
    assert sum(count for works in ahead for _, _, count in works) > 0.8 * sum(len(r.prompt.ids) for r in requests)
    assert at_rest(engine)


def test_a_long_step_waits_until_the_tokens_of_a_short_one_are_read(make_engine, monkeypatch) -> None:
    """Beginning it takes the host longer than the short one takes the device. Behind a long one it is begun ahead."""
    monkeypatch.setattr("sensorium.engine.runner._LONG_STEP", 64)
    requests = [request("one", prompt("say something"), max_tokens=30), request("two", prompt(LONG), max_tokens=5)]
    want = {r.id: tokens(drive(make_engine(), r)[r.id]) for r in requests}
    engine = make_engine(max_num_batched_tokens=96)
    let_run_ahead(engine)
    ahead = watch_starts(engine)
    engine.inbox.append(requests[0])
    events = [event for _ in range(5) for event in engine.step()]
    engine.inbox.append(requests[1])
    while engine.has_work:
        events += engine.step()
    assert {r.id: tokens([e for e in events if e.request_id == r.id]) for r in requests} == want
    chunks = [sum(count for name, _, count in works if name == "two") for works in ahead]
    assert [chunk for chunk in chunks if chunk >= 64] == [95, 85], "the first, also of 95, came behind a decode"
    assert at_rest(engine)


def test_answers_of_one_token_leave_their_places_to_prompts(make_engine) -> None:
    """A sequence that is known to end takes none of the next step's tokens."""
    requests = [request(f"p{i}", prompt("x" * 59), max_tokens=1) for i in range(6)]
    engine = make_engine(max_num_batched_tokens=64, enable_prefix_caching=False)
    let_run_ahead(engine)
    ahead = watch_starts(engine)
    drive(engine, *requests)
    assert [sum(count for _, _, count in works) for works in ahead] == [64, 64, 64, 64, 64]


@pytest.mark.parametrize("begun", [1, 2, 3, 4])
def test_a_prompt_aborted_while_its_next_chunk_is_on_the_device(make_engine, begun: int) -> None:
    engine = make_engine(max_num_batched_tokens=96, num_blocks=60)
    let_run_ahead(engine)
    other = request("other", prompt("say something"), max_tokens=20)
    want = tokens(drive(make_engine(), other)["other"])
    got: dict[str, list] = {"gone": [], "other": [], "again": []}
    engine.inbox.extend([other, request("gone", prompt(LONG), max_tokens=20)])
    for count in range(200):
        if count == begun:
            engine.inbox.append(Abort("gone"))
            engine.inbox.append(request("again", prompt(LONG), max_tokens=8))
        for event in engine.step():
            got[event.request_id].append(event)
        if not engine.has_work:
            break
    assert tokens(got["other"]) == want
    assert tokens(got["again"]) == tokens(drive(make_engine(), request("again", prompt(LONG), max_tokens=8))["again"])
    assert [event.reason for event in got["gone"] if isinstance(event, Finished)] == ["abort"]
    assert at_rest(engine)


def test_a_first_token_that_stops_while_the_second_is_on_the_device(make_engine) -> None:
    made = [request(f"p{i}", prompt(f"{i} {LONG}"), max_tokens=9) for i in range(3)]
    first = tokens(drive(make_engine(), made[0])["p0"])[0]
    stops = request("p0", made[0].prompt, max_tokens=9, stop_token_ids=(first,))
    want = {r.id: tokens(drive(make_engine(), r)[r.id]) for r in made[1:]}
    engine = make_engine(max_num_batched_tokens=96)
    let_run_ahead(engine)
    ahead = watch_starts(engine)
    got = drive(engine, stops, *made[1:])
    assert any(("p0", len(stops.prompt.ids), 1) in works for works in ahead)
    assert tokens(got["p0"]) == [first]
    assert got["p0"][-1].stop_reason == first
    assert {name: tokens(got[name]) for name in want} == want
    assert at_rest(engine)


def test_a_prefix_is_found_only_once_the_step_that_writes_it_was_read(make_engine) -> None:
    engine = make_engine(max_num_batched_tokens=96)
    let_run_ahead(engine)
    ahead = watch_starts(engine)
    first = request("first", prompt(LONG + "one"), max_tokens=6)
    second = request("second", prompt(LONG + "two"), max_tokens=6)
    got: dict[str, list] = {"first": [], "second": []}
    engine.inbox.append(first)
    engine.step()
    assert ahead == [[("first", 96, 96)]]
    engine.inbox.append(second)
    while engine.has_work:
        for event in engine.step():
            got[event.request_id].append(event)
    starts = [start for works in ahead for name, start, _ in works if name == "second"]
    shared = len(LONG) // engine.scheduler.pool.block_size * engine.scheduler.pool.block_size
    assert min(starts) == shared
    assert got["second"][-1].usage.cached_tokens == shared
    for name, made in (("first", first), ("second", second)):
        assert tokens(got[name]) == tokens(drive(make_engine(), made)[name])


def test_known_and_unread_tokens_in_one_step(make_engine) -> None:
    """A preempted sequence that has one token left to compute joins those whose tokens the host has not read."""
    engine = make_engine()
    runner = engine.runner
    let_run_ahead(engine)
    seqs = {}
    for name in ("a", "b"):
        engine.inbox.append(request(name, prompt(f"{name} text")))
    engine.step()
    seqs = {seq.id: seq for seq in engine.scheduler.running}
    flight = runner._ahead
    unread = Work(seqs["a"], len(seqs["a"].ids), 1, True)
    known = Work(seqs["b"], 3, 2, False)
    numbers, source = runner._numbers([unread, known], flight)
    assert source[torch.tensor(numbers)].tolist() == [flight.greedy[flight.rows["a"]], *seqs["b"].ids[3:5]]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("num_blocks", "budget"), [(40, 2048), (400, 80)])
def test_arrivals_aborts_and_few_blocks(make_engine, seed: int, num_blocks: int, budget: int) -> None:
    rng = random.Random(seed)
    made = {name: request(name, p, max_tokens=rng.randrange(1, 60)) for name, p in TEXTS.items()}
    made["picture"] = request("picture", prompt("Look: ", image(1)), max_tokens=20)
    made["drawn"] = request("drawn", prompt("chance"), max_tokens=30, temperature=1.0, seed=seed)
    made["fined"] = request("fined", prompt("again and again"), max_tokens=20, frequency_penalty=0.4)
    made["long"] = request("long", prompt(LONG), max_tokens=20)
    made["twin"] = request("twin", prompt(LONG + "!"), max_tokens=20)
    made["scored"] = request("scored", prompt(LONG[:90]), max_tokens=6, prompt_logprobs=1)
    want = {name: tokens(drive(make_engine(), r)[name]) for name, r in made.items()}
    engine = make_engine(num_blocks=num_blocks, max_num_batched_tokens=budget)
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
    assert at_rest(engine)


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
