"""Failures inside a step: who ends, and that nobody else notices. F-numbers as in the fault catalogue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import drive, image, prompt, request, tokens
from torch.utils._python_dispatch import TorchDispatchMode

from sensorium.engine.detokenizer import Detokenizer
from sensorium.engine.engine import Engine
from sensorium.engine.protocol import Abort, RefuseWaiting
from sensorium.types import Event, Failed, Finished, TextDelta

CANARY = prompt("What is the colour of the small circle on the left?")
BYSTANDERS = {f"bystander-{i}": prompt(f"Number {i}: ", *[image(i)] * (i % 2)) for i in range(5)}
MakeEngine = Callable[..., Engine]


class Injected(Exception):
    pass


def raising_for(wrapped: Callable[..., Any], guilty: Callable[..., bool]) -> Callable[..., Any]:
    """The function, but for calls that are found guilty."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if guilty(*args):
            raise Injected
        return wrapped(*args, **kwargs)

    return call


def solo(make_engine: MakeEngine) -> dict[str, list[int]]:
    return {name: tokens(drive(make_engine(), request(name, made))[name]) for name, made in BYSTANDERS.items()}


def own_detokenizer(engine: Engine) -> Callable[..., bool]:
    return lambda detokenizer, *_: (
        engine._outputs["bad"].detokenizer is detokenizer if "bad" in engine._outputs else False
    )


@pytest.mark.parametrize("step", ["admit", "open", "complete", "scores", "detokenise", "finish"])
def test_f012_a_failure_at_one_request_ends_it_alone(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, step: str
):
    expected = solo(make_engine)
    engine = make_engine()
    readout, scheduler = engine.runner.readout, engine.scheduler
    own = own_detokenizer(engine)
    target, name, guilty = {
        "admit": (engine, "_state", lambda made, *_: made.id == "bad"),
        "open": (readout, "open", lambda seq, *_: seq.id == "bad"),
        "complete": (scheduler, "complete", lambda work: work.seq.id == "bad"),
        "scores": (readout, "take_scores", lambda seq: seq.id == "bad"),
        "detokenise": (Detokenizer, "feed", own),
        "finish": (Detokenizer, "finish", own),
    }[step]
    monkeypatch.setattr(target, name, raising_for(getattr(target, name), guilty))
    events = drive(engine, request("bad", CANARY), *(request(name, made) for name, made in BYSTANDERS.items()))
    assert isinstance(events["bad"][-1], Failed)
    assert (events["bad"][-1].code, events["bad"][-1].status) == ("engine_error", 500)
    assert sum(isinstance(event, Failed | Finished) for event in events["bad"]) == 1
    assert {name: tokens(events[name]) for name in BYSTANDERS} == expected
    engine.scheduler.check()


def test_f013_a_failing_batch_ends_with_a_typed_error_and_the_engine_goes_on(
    make_engine: MakeEngine, model: Any, monkeypatch: pytest.MonkeyPatch
):
    expected = solo(make_engine)
    engine = make_engine()
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", raising_for(model.forward, lambda *_: True))
        failed = drive(engine, *(request(name, made) for name, made in BYSTANDERS.items()))
    assert all([type(event) for event in events] == [Failed] for events in failed.values())
    events = drive(engine, *(request(name, made) for name, made in BYSTANDERS.items()))
    assert {name: tokens(got) for name, got in events.items()} == expected
    assert engine.scheduler.pool.num_free > 0
    engine.scheduler.check()


class OutOfMemoryAt(TorchDispatchMode):
    """Fails the nth operation on tensors as an allocator without memory does."""

    def __init__(self, nth: int) -> None:
        super().__init__()
        self.left = nth

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left == 0:
            raise torch.OutOfMemoryError("injected")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("first", [pytest.param(n, marks=[pytest.mark.slow] if n > 2 else []) for n in range(1, 20)])
def test_f023_memory_that_runs_out_anywhere_leaves_the_engine_whole(make_engine: MakeEngine, first: int):
    """Every 19th operation from `first` on, to the end of the two requests: about ten faults each."""
    pictured = prompt("Look: ", image(1))
    engine = make_engine(enable_prefix_caching=False)
    expected = tokens(drive(engine, request("canary", CANARY))["canary"])
    nth, reached = first, True
    while reached and nth < 400:
        with OutOfMemoryAt(nth) as fault:
            events = drive(engine, request("a", CANARY), request("b", pictured))
        reached = fault.left <= 0
        for got in events.values():
            assert sum(isinstance(event, Failed | Finished) for event in got) == 1
            assert not isinstance(got[-1], Failed) or "memory" in got[-1].message
        assert tokens(drive(engine, request("canary", CANARY))["canary"]) == expected, nth
        engine.scheduler.check()
        nth += 19


def test_f027_a_row_that_is_not_a_number_ends_alone(
    make_engine: MakeEngine, model: Any, monkeypatch: pytest.MonkeyPatch
):
    expected = solo(make_engine)
    engine = make_engine()
    logits = model.logits
    calls = 0

    def broken(hidden: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        out = logits(hidden)
        if calls == 4 and len(out) > 1:
            out[0] = float("nan")
        return out

    monkeypatch.setattr(model, "logits", broken)
    events = drive(engine, *(request(name, made) for name, made in BYSTANDERS.items()))
    failed = [name for name, got in events.items() if isinstance(got[-1], Failed)]
    assert len(failed) == 1
    assert "not a number" in events[failed[0]][-1].message
    assert {name: tokens(got) for name, got in events.items() if name not in failed} == {
        name: ids for name, ids in expected.items() if name not in failed
    }


@pytest.mark.parametrize("after", [0, 1, 3, 11])
def test_f006_an_abort_leaves_shared_blocks_and_pictures_to_the_other(make_engine: MakeEngine, after: int):
    made = prompt("The same long beginning, and the same picture: ", image(3))
    expected = tokens(drive(make_engine(), request("solo", made))["solo"])
    engine = make_engine()
    engine.inbox.extend([request("kept", made), request("left", made)])
    seen: list[Event] = []
    for number in range(40):
        if number == after:
            engine.inbox.append(Abort("left"))
        seen += engine.step()
        engine.scheduler.check()
    assert tokens([event for event in seen if event.request_id == "kept"]) == expected
    assert [event.reason for event in seen if isinstance(event, Finished) and event.request_id == "left"] == ["abort"]


def test_f046_refusing_what_waits_leaves_what_runs(make_engine: MakeEngine):
    engine = make_engine(max_num_seqs=2)
    engine.inbox.extend(request(f"r{i}", prompt(f"Number {i}")) for i in range(5))
    engine.step()
    engine.inbox.append(RefuseWaiting("shutting_down", "ending"))
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    refused = [event for event in events if isinstance(event, Failed)]
    assert {(event.request_id, event.code, event.status) for event in refused} == {
        (f"r{i}", "shutting_down", 503) for i in (2, 3, 4)
    }
    assert {event.request_id for event in events if isinstance(event, Finished)} == {"r0", "r1"}
    assert any(isinstance(event, TextDelta) for event in events)
