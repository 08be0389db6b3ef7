"""What the engine's thread waits for, and what not."""

from __future__ import annotations

import threading

import pytest
from small import prompt, request
from test_ahead import let_run_ahead, watch_starts

from sensorium.engine.loop import EngineLoop
from sensorium.engine.turns import Turns
from sensorium.types import Event, Finished


@pytest.fixture
def run(make_engine):
    """Puts one request into a loop, whose count of callers about to come is `coming` -> the steps' events."""
    loops = []

    def run(coming, expected, **config):
        steps: list[list[Event]] = []
        over = threading.Event()

        def deliver(events):
            steps.append(events)
            if sum(isinstance(event, Finished) for step in steps for event in step) == expected:
                over.set()

        loop = EngineLoop(make_engine(**config), deliver, lambda reason: None)
        loops.append(loop)
        loop.engine.turns.coming = lambda: coming(loop)
        loop.put(request("a", prompt("one"), max_tokens=1))
        assert over.wait(60)
        return [step for step in steps if step]

    yield run
    for loop in loops:
        loop.close()


@pytest.mark.parametrize("count", [1, 4])
def test_requests_that_were_about_to_come_share_the_first_step(run, count):
    asked = []

    def coming(loop):
        asked.append(1)
        if len(asked) == 1:
            loop.put(request("b", prompt("two"), max_tokens=1))
        return count if len(asked) == 1 else 0

    (step,) = run(coming, 2)
    assert {event.request_id for event in step} == {"a", "b"}


@pytest.mark.parametrize(("count", "config"), [(0, {}), (64, {"max_num_batched_tokens": 2, "max_model_len": 64})])
def test_a_first_step_waits_for_nobody_where_none_come_or_where_it_is_full(run, count, config):
    asked = []
    run(lambda loop: asked.append(1) or count, 1, **config)
    assert len(asked) == 1


def test_whoever_never_comes_is_waited_for_only_for_a_while(run):
    assert run(lambda loop: 64, 1)


def test_a_device_begins_when_there_is_enough_for_it_and_who_comes_later_follows(make_engine):
    """Others prepare all the time: the first step does not wait for them, the next one is launched while it runs."""
    engine, over, got = make_engine(), threading.Event(), []
    let_run_ahead(engine)
    ahead = watch_starts(engine)
    asked = []

    def coming():
        asked.append(1)
        if len(asked) == 2:
            engine.inbox.append(request("b", prompt("x" * 700), max_tokens=1))
        return 64 if len(asked) <= 2 else 0

    def deliver(events):
        got.extend(event.request_id for event in events if isinstance(event, Finished))
        if len(got) == 2:
            over.set()

    engine.turns.coming = coming
    engine.turns.hold()  # as a step before would have
    loop = EngineLoop(engine, deliver, lambda reason: None)
    engine.runner.run = _on_a_device(engine.runner.run)
    loop.put(request("a", prompt("y" * 400), max_tokens=1))
    assert over.wait(60)
    loop.close()
    assert got == ["a", "b"]
    assert [[name for name, _, _ in works] for works in ahead] == [["b"]]


def _on_a_device(run):
    """As if steps took time: until the next one is known, none is over."""

    def patient(batch, follow, meanwhile):
        return run(batch, lambda is_over: follow(lambda: False), meanwhile)

    return patient


def test_nobody_begins_while_turns_are_held(monkeypatch):
    monkeypatch.setattr("sensorium.engine.turns._LONGEST_HOLD_S", 60)
    turns, entered = Turns(1), threading.Event()

    def work():
        with turns:
            entered.set()

    turns.hold()
    other = threading.Thread(target=work)
    other.start()
    while not turns.coming():
        pass
    assert not entered.is_set()
    turns.gather(entered.is_set)
    assert not turns._goes_on.is_set(), "held again"
    turns.let_go()
    other.join(60)
    assert entered.is_set()


def test_turns_are_held_as_soon_as_enough_have_come():
    """Not only when the thread that gathers them has got the interpreter again."""
    turns, begun, awake, come = Turns(1), threading.Event(), threading.Event(), []

    def has_enough():
        if threading.current_thread() is gatherer and begun.is_set():
            assert awake.wait(60)
        begun.set()
        return bool(come)

    turns.came()
    assert turns._goes_on.is_set(), "nobody is gathered"
    with turns:
        gatherer = threading.Thread(target=turns.gather, args=(has_enough,))
        gatherer.start()
        assert begun.wait(60)
        turns.came()
        assert turns._goes_on.is_set(), "there are not enough"
        come.append(1)
        turns.came()
        assert not turns._goes_on.is_set()
        awake.set()
        gatherer.join()


def test_turns_are_held_for_a_while_at_most():
    turns = Turns(1)
    turns.hold()
    with turns:
        assert turns.coming() == 1


def test_turns_count_those_that_wait_and_those_that_are_away():
    turns, inside, leave, gone = Turns(1), threading.Event(), threading.Event(), threading.Event()

    def work():
        with turns:
            inside.set()
            assert leave.wait(60)
        gone.set()

    with turns:
        other = threading.Thread(target=work)
        other.start()
        with turns.left():
            assert inside.wait(60)
            assert turns.coming() == 2
            leave.set()
            assert gone.wait(60)
        assert turns.coming() == 1
    other.join()
    assert turns.coming() == 0
