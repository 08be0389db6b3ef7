"""Speeches through the engine and its clients: beside requests, in order, each call with exactly one end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small import CONFIG, OnlyTokenizer, prompt, request, tokens
from speech_small import GREEDY, SMALL

from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient
from sensorium.engine.engine import Engine
from sensorium.engine.loading import build_engine
from sensorium.engine.protocol import Abort, Hush, MemoryPlan, OpenSpeech, Say
from sensorium.engine.speech import SpeechStage
from sensorium.engine.speech_client import MAX_CALLS
from sensorium.engine.speech_rules import SpeechSampling, SpeechWork
from sensorium.errors import BusyError, EngineError, OverloadedError, RequestError, UnsupportedError
from sensorium.models import loader
from sensorium.models.minicpmo import Config, Model
from sensorium.types import CallFailed, Codes, Event, Failed, Finished, SpeechOptions

WIDTH = CONFIG["hidden_size"]
DUPLEX = SpeechOptions(None, "duplex", GREEDY)


@pytest.fixture(scope="module")
def model() -> Model:
    config = CONFIG | {"tts_config": SMALL | {"llm_dim": WIDTH}}
    parsed = Config.from_hf(config, init_vision=False, init_audio=False, init_tts=True)
    made = loader.build(Model, parsed, "cpu", torch.float32)
    loader.init_random_(made, seed=3, std=0.2)
    return made


@pytest.fixture
def engine(model: Model) -> Engine:
    config = EngineConfig(speech_slots=2)
    plan = MemoryPlan(0, 0, 0, 0, 256 * config.block_size)
    return build_engine(model, OnlyTokenizer(), config, torch.device("cpu"), torch.float32, plan)  # pyright: ignore


def states(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


def say(name: str, call: int, ids: tuple[int, ...], last: bool = False, max_new: int = 26) -> Say:
    return Say(name, call, ids, states(call, len(ids)), last, max_new, max_new)


def alone(model: Model, calls: list[Say]) -> list[list[int]]:
    """What the calls of one duplex speech say on a stage of their own."""
    assert model.speech is not None
    stage = SpeechStage(model.speech, 1)
    slot = stage.open("duplex", GREEDY)
    said = []
    for one in calls:
        work = SpeechWork(slot, one.ids, torch.tensor(one.hidden), one.last, one.min_new, one.max_new)
        said += stage.speak([work])
    return said


def run(engine: Engine) -> list[Event]:
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    return events


def said(events: list[Event], name: str) -> dict[int, list[int]]:
    codes: dict[int, list[int]] = {}
    for event in events:
        if isinstance(event, Codes) and event.request_id == name:
            codes.setdefault(event.call, []).extend(event.codes)
    return codes


def test_calls_follow_each_other_and_run_beside_requests(engine: Engine, model: Model):
    calls = {name: [say(name, i, (i + at, 2)) for i in range(3)] for at, name in enumerate(("a", "b"))}
    text = request("text", prompt("Hello"), max_tokens=40)
    engine.inbox.append(text)
    expected = tokens(run(engine))
    engine.inbox.append(text)
    for name, own in calls.items():
        engine.inbox += [OpenSpeech(name, DUPLEX), *own]
    events = run(engine)
    for name, own in calls.items():
        assert said(events, name) == dict(enumerate(alone(model, own)))
        ends = [event.call for event in events if isinstance(event, Codes) and event.request_id == name and event.ended]
        assert ends == [0, 1, 2]
    assert tokens(events) == expected
    # They shared steps: both had begun before either was over.
    order = [event.request_id for event in events if isinstance(event, Codes)]
    assert set(order[:2]) == {"a", "b"}


def test_a_hush_ends_what_was_sent_before_it(engine: Engine, model: Model):
    calls = [say("a", i, (i + 1, 2)) for i in range(4)]
    engine.inbox += [OpenSpeech("a", DUPLEX), *calls[:3]]
    events = engine.step()
    assert len(said(events, "a")[0]) == 8
    engine.inbox += [Hush("a"), calls[3]]
    events = run(engine)
    cut = [event for event in events if isinstance(event, Codes) and event.ended == "cut"]
    assert [(event.call, event.codes) for event in cut] == [(i, ()) for i in range(3)]
    # The turn is gone: the next call says what a first one says.
    assert said(events, "a")[3] == alone(model, [calls[3]])[0]
    engine.inbox.append(Hush("a"))
    assert run(engine) == []


def test_slots_come_back_and_more_than_there_are_is_refused(engine: Engine):
    assert engine.speech is not None
    engine.inbox += [OpenSpeech(name, SpeechOptions(None, "chat")) for name in "abc"]
    (failed,) = run(engine)
    assert (failed.request_id, failed.code) == ("c", "overloaded")
    engine.inbox += [say("a", 0, (1,)), Abort("a")]
    (ended,) = run(engine)
    assert isinstance(ended, Finished)
    assert (ended.request_id, ended.reason, ended.usage.prompt_tokens) == ("a", "abort", 1)
    assert engine.speech.num_free == 1
    engine.inbox += [say("a", 1, (1,)), Hush("a")]  # too late: nobody is told twice
    assert run(engine) == []
    assert [event.request_id for event in engine.fail_all("over")] == ["b"]
    assert engine.speech.num_free == 2


def test_a_call_that_cannot_run_fails_alone(engine: Engine, model: Model):
    good = say("a", 1, (3, 4))
    engine.inbox += [OpenSpeech("a", DUPLEX), say("a", 0, (1, 5000)), good]
    failed, *events = run(engine)
    assert isinstance(failed, CallFailed)
    assert (failed.call, failed.code, failed.param, failed.status) == (0, "invalid_request", "ids", 400)
    assert said(events, "a") == {1: alone(model, [good])[0]}


def test_a_step_that_breaks_ends_the_calls_in_it_and_no_more(engine: Engine, model: Model, monkeypatch):
    engine.inbox += [OpenSpeech(name, DUPLEX) for name in "ab"]
    engine.inbox += [say("a", 0, (1,)), say("b", 0, (2,))]
    good = say("a", 1, (3, 4))
    with monkeypatch.context() as broken:
        broken.setattr(model.speech, "logits", None)
        events = engine.step()
    assert {(e.request_id, e.code) for e in events if isinstance(e, CallFailed)} == {
        ("a", "engine_error"),
        ("b", "engine_error"),
    }
    engine.inbox.append(good)
    assert said(run(engine), "a") == {1: alone(model, [good])[0]}


# ---- clients ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["thread", pytest.param("process", marks=pytest.mark.slow)])
def client(request: pytest.FixtureRequest, golden: Path) -> Iterator[EngineClient]:
    folder = str(golden / "minicpmo45" / "tiny")
    config = EngineConfig(model=folder, init_tts=True, speech_slots=2, max_model_len=256, kv_cache_bytes=16 << 20)
    with EngineClient(config, kind=request.param) as made:
        yield made
        assert made.num_requests == 0


def hidden(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 256)).astype(np.float32)


def test_a_speech_speaks(client: EngineClient):
    seeded = SpeechSampling(seed=4)
    with_seed = []
    for _ in range(2):
        speech = client.open_speech("duplex", seeded)
        units = [speech.speak([5, 6], hidden(0, 2), last=False, min_new=26), speech.speak([], last=False)]
        assert [len(unit) for unit in units] == [25, 25]
        with_seed.append(units)
        speech.close()
        *_, end = speech
        assert isinstance(end, Finished)
        assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (2, 50)
    assert with_seed[0] == with_seed[1]


def test_refusals_and_ends_reach_the_caller(client: EngineClient):
    with pytest.raises(RequestError, match="rule"):
        client.open_speech("song")  # type: ignore[arg-type]
    speech, other = client.open_speech("chat"), client.open_speech("chat")
    with pytest.raises(BusyError, match="speech_slots"):
        client.open_speech("chat")
    other.close()
    assert isinstance(list(other)[-1], Finished)
    with pytest.raises(EngineError, match="ended"):
        other.say([1], hidden(0, 1))
    with pytest.raises(EngineError, match="hidden") as caught:
        speech.speak([1, 2], hidden(0, 1))
    assert caught.value.status == 400
    with pytest.raises(RequestError, match="ids"):
        speech.say(["one"], hidden(0, 1))  # type: ignore[list-item]
    for _ in range(MAX_CALLS):
        call = speech.say([1], hidden(0, 1), max_new=2000)
    with pytest.raises(OverloadedError, match="not read"):
        speech.say([1], hidden(0, 1))
    speech.hush()
    for event in speech:
        if isinstance(event, Codes) and event.call == call and event.ended:
            break
    assert event == Codes(speech.request_id, call, (), "cut")
    assert speech.speak([1], hidden(0, 1), max_new=9, min_new=9)
    left = speech.say([1], hidden(0, 1), max_new=2000)
    speech.close()
    *_, failed, end = speech
    assert isinstance(end, Finished)
    assert (failed.call, failed.code) == (left, "speech_closed")


async def test_speeches_belong_to_event_loops_too(client: EngineClient):
    speeches = [client.open_speech("duplex", GREEDY) for _ in range(2)]
    said = await asyncio.gather(*(one.aspeak([3, 4], hidden(1, 2), min_new=26) for one in speeches))
    assert said[0] == said[1]
    for one in speeches:
        one.close()
        assert isinstance([event async for event in one][-1], Finished)


def test_a_speech_ends_with_its_engine(golden: Path):
    folder = str(golden / "minicpmo45" / "tiny")
    config = EngineConfig(model=folder, init_tts=True, max_model_len=256, kv_cache_bytes=16 << 20)
    with EngineClient(config) as client:
        speech = client.open_speech("chat")
        call = speech.say([1], hidden(0, 1), max_new=2000)
    failed, end = list(speech)[-2:]
    assert isinstance(end, Failed)
    assert (failed.call, failed.code, end.code) == (call, "engine_dead", "engine_dead")


def test_an_engine_that_cannot_speak_says_so(any_model: Path):
    with (
        EngineClient(EngineConfig(model=str(any_model), max_model_len=256, kv_cache_bytes=16 << 20)) as client,
        pytest.raises(UnsupportedError, match="init_tts"),
    ):
        client.open_speech("chat")
