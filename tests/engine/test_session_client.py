"""Sessions as callers see them: from threads and event loops, with bounds, to exactly one end of everything."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient
from sensorium.engine.session_client import Session
from sensorium.errors import BusyError, ContextLengthError, EngineError, OverloadedError, RequestError
from sensorium.types import (
    Event,
    Failed,
    Finished,
    MediaItem,
    Prompt,
    SamplingParams,
    SessionOpened,
    Span,
    UnitDone,
    UnitFailed,
)

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
LONG = SamplingParams(temperature=0.0, max_tokens=500, ignore_eos=True)


@pytest.fixture(scope="module")
def client(any_model: Path) -> Iterator[EngineClient]:
    config = EngineConfig(model=str(any_model), max_model_len=1024, kv_cache_bytes=64 << 20, max_sessions=2)
    with EngineClient(config) as made:
        yield made
        assert made.num_sessions == 0
        made.loaded.engine.scheduler.check()


def prompt(client: EngineClient, text: str) -> Prompt:
    return Prompt(tuple(client.tokenizer.encode(text)))


def finish(session: Session) -> list[Event]:
    session.close()
    return list(session)


def test_units_are_answered_in_order(client: EngineClient) -> None:
    session = client.open_session(prompt(client, "You are a guide."), sampling=GREEDY, return_hidden=True)
    opened = session.opened()
    assert opened == SessionOpened(session.request_id, len(prompt(client, "You are a guide.").ids))
    done = session.run(prompt(client, "Go left."))
    assert (done.index, len(done.ids), done.hidden.shape) == (0, 6, (6, client.facts.hidden_size))
    assert done.hidden.dtype == np.float32
    assert session.append(prompt(client, "Go right.")) == 1
    *_, second, end = finish(session)
    assert isinstance(second, UnitDone)
    assert (second.index, end.reason) == (1, "stop")
    # What was said is the continuation of one prompt.
    ids = (*prompt(client, "You are a guide.").ids, *prompt(client, "Go left.").ids)
    plain = client.submit(Prompt(ids), GREEDY)
    assert [token for event in plain if hasattr(event, "token_ids") for token in event.token_ids] == list(done.ids)


def test_media_reach_the_model(client: EngineClient) -> None:
    rows = np.ones((4, client.facts.hidden_size), np.float32)
    item = MediaItem("image", b"given", 4, {"embeds": rows})
    made = Prompt((1, 2, 2, 2, 2, 3), (Span(1, 4, 0),), (item,))
    session = client.open_session(Prompt(()), sampling=GREEDY)
    session.opened()
    assert len(session.run(made).ids) == 6
    with pytest.raises(RequestError, match="outside"):
        session.append(Prompt((client.facts.vocab_size,)))
    finish(session)


def test_sessions_are_counted_and_one_too_many_is_refused(client: EngineClient) -> None:
    sessions = [client.open_session(prompt(client, "hello")) for _ in range(2)]
    with pytest.raises(BusyError, match="max_sessions") as refused:
        client.open_session(prompt(client, "hello"))
    assert (refused.value.code, refused.value.retryable) == ("busy", True)
    assert (client.num_sessions, client.num_requests) == (2, 0)
    finish(sessions[0])
    finish(client.open_session(prompt(client, "hello")))
    sessions[1].abort()
    assert list(sessions[1])[-1].reason == "abort"


def test_a_session_leaves_room_for_the_longest_request(any_model: Path) -> None:
    config = EngineConfig(model=str(any_model), max_model_len=256, num_gpu_blocks_override=24)
    with EngineClient(config) as small:
        with pytest.raises(BusyError, match="128 are left"):
            small.open_session(Prompt((1,)))
        session = small.open_session(Prompt((1,)), max_len=64, sampling=GREEDY)
        stream = small.submit(Prompt(tuple(range(1, 200))), GREEDY)
        assert isinstance(list(stream)[-1], Finished)
        with pytest.raises(ContextLengthError):
            small.open_session(Prompt((1,) * 64), max_len=64)
        finish(session)


def test_a_reader_that_does_not_read_is_held_up(client: EngineClient) -> None:
    session = client.open_session(prompt(client, "hello"), sampling=GREEDY, max_units=2)
    for _ in range(2):
        session.append(prompt(client, "more"))
    with pytest.raises(OverloadedError, match="2 units that are not read"):
        session.append(prompt(client, "more"))
    assert session.room == 0
    for event in session:
        if isinstance(event, UnitDone):
            break
    session.append(prompt(client, "more"))
    ends = [event for event in finish(session) if isinstance(event, UnitDone | UnitFailed)]
    assert [(type(end), end.index) for end in ends] == [(UnitDone, 1), (UnitDone, 2)]
    with pytest.raises(EngineError, match="has ended"):
        session.append(prompt(client, "more"))


def test_units_that_are_there_at_the_end_end_with_it(client: EngineClient) -> None:
    session = client.open_session(prompt(client, "hello"), sampling=LONG)
    for _ in range(3):
        session.append(prompt(client, "more"))
    session.abort()
    events = list(session)
    failed = [(event.index, event.code) for event in events if isinstance(event, UnitFailed)]
    assert failed == [(index, "session_closed") for index in range(3)]
    assert isinstance(events[-1], Finished)


def test_a_barge_in_numbers_turns(client: EngineClient) -> None:
    session = client.open_session(prompt(client, "hello"), sampling=LONG)
    session.opened()
    session.append(prompt(client, "talk"))
    next(iter(session))
    assert session.barge_in() == session.turn == 1
    done = next(event for event in session if isinstance(event, UnitDone))
    assert (done.turn, done.interrupted) == (0, True)
    session.pause()
    session.append(prompt(client, "talk"))
    session.resume()
    session.barge_in()
    assert {event.turn for event in finish(session) if isinstance(event, UnitDone)} <= {1, 2}


def test_wrong_arguments_are_refused_before_anything_is_sent(client: EngineClient) -> None:
    session = client.open_session(prompt(client, "hello"))
    for kwargs, param in (({"deciding": 7}, "deciding"), ({"options": {"array": np.zeros(2)}}, "options")):
        with pytest.raises(RequestError) as refused:
            session.append(prompt(client, "hi"), **kwargs)
        assert refused.value.param == param
    with pytest.raises(RequestError, match="at least one token"):
        session.append(Prompt(()))
    finish(session)
    for kwargs, param in (({"max_units": 0}, "max_units"), ({"max_len": 5000}, "max_len")):
        with pytest.raises(RequestError) as refused:
            client.open_session(prompt(client, "hello"), **kwargs)
        assert refused.value.param == param
    with pytest.raises(EngineError, match="nonsense"):
        client.open_session(prompt(client, "hello"), "nonsense").opened()


def test_a_session_in_an_event_loop(client: EngineClient) -> None:
    async def talk() -> list[Event]:
        session = client.open_session(prompt(client, "hello"), sampling=GREEDY)
        await session.aopened()
        done = await session.arun(prompt(client, "one"))
        assert len(done.ids) == 6
        session.append(prompt(client, "two"))
        session.close()
        return [event async for event in session]

    events = asyncio.run(talk())
    assert [type(event) for event in events[-2:]] == [UnitDone, Finished]


def test_a_client_that_closes_fails_its_sessions_once(any_model: Path) -> None:
    made = EngineClient(EngineConfig(model=str(any_model), max_model_len=1024, kv_cache_bytes=64 << 20))
    session = made.open_session(Prompt((1, 2, 3)), sampling=LONG)
    session.append(Prompt((4, 5)))
    next(iter(session))
    made.close()
    events = [event for event in session if isinstance(event, UnitFailed | Failed | Finished)]
    assert [(type(event), event.code) for event in events] == [(UnitFailed, "engine_dead"), (Failed, "engine_dead")]
    with pytest.raises(EngineError):
        session.append(Prompt((4, 5)))
