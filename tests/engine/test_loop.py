"""What the engine's thread waits for, and what not."""

from __future__ import annotations

import threading

import pytest
from small import prompt, request

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
        loop.coming = lambda: coming(loop)
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
