"""The engine in a process of its own: what crosses, and what happens when it dies, hangs or does not start."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sensorium.config import EngineConfig
from sensorium.engine import process_link
from sensorium.engine.client import EngineClient
from sensorium.engine.link import Supervision
from sensorium.engine.stream import Stream
from sensorium.errors import CheckpointError, EngineDeadError, EngineError, RequestError
from sensorium.types import (
    ChatOptions,
    Event,
    Failed,
    Finished,
    Media,
    MediaItem,
    Message,
    Prompt,
    SamplingParams,
    Span,
    TextDelta,
    UnitDone,
    UnitFailed,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="engine processes need socket pairs that can be inherited")
QUICK = Supervision(stall_s=1.0, kill_s=60.0, first_delay_s=0.05, longest_delay_s=0.1, failed_starts=3)
ENDLESS = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True)


def config(model: Path) -> EngineConfig:
    return EngineConfig(model=str(model), max_model_len=2048, kv_cache_bytes=64 << 20, max_num_seqs=2)


@pytest.fixture(scope="module")
def phases() -> dict[str, float]:
    """How far the client's engine came in each phase of its start."""
    return {}


@pytest.fixture(scope="module")
def client(any_model: Path, phases: dict[str, float]) -> Iterator[EngineClient]:
    with EngineClient(config(any_model), phases.__setitem__, kind="process", supervision=QUICK) as made:
        yield made
    assert not running(made.engine_pid)


@pytest.fixture
def ready(client: EngineClient) -> EngineClient:
    """The client once its engine is there: an earlier test may have killed it."""
    assert eventually(lambda: client.state == "ready" and client.num_requests == 0)
    return client


def eventually(condition: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def prompt(client: EngineClient, text: str) -> Prompt:
    return Prompt(tuple(client.tokenizer.encode(text)))


def tokens(events: list[Event]) -> list[int]:
    return [token for event in events if isinstance(event, TextDelta) for token in event.token_ids]


def begun(client: EngineClient, text: str) -> Stream:
    """A request that runs until the context is full, and has its first token."""
    stream = client.submit(prompt(client, text), ENDLESS)
    assert isinstance(next(iter(stream)), TextDelta)
    return stream


def picture() -> Media:
    pixels = np.random.default_rng(5).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    return Media("image", pixels, b"a picture")


# ---- what crosses ----


def test_it_answers_as_an_engine_in_a_thread_does(any_model: Path, ready: EngineClient):
    message = Message("user", (picture(), "What is this?"))
    sampling = SamplingParams(temperature=0.0, max_tokens=12, logprobs=2)
    with EngineClient(config(any_model)) as other:
        seen, expected = (
            list(client.submit(client.prepare_chat([message], ChatOptions()), sampling)) for client in (ready, other)
        )
        facts = other.facts
    assert tokens(seen) == tokens(expected)
    assert [event.logprobs for event in seen if isinstance(event, TextDelta)] == [
        event.logprobs for event in expected if isinstance(event, TextDelta)
    ]
    assert isinstance(seen[-1], Finished)
    assert seen[-1].usage.media_tokens == expected[-1].usage.media_tokens
    assert ready.facts.plan == facts.plan
    assert ready.facts.default_sampling == facts.default_sampling
    assert ready.facts.modalities == facts.modalities


def test_f010_the_callers_process_imports_no_torch_and_its_engine_ends_with_it(any_model: Path):
    script = """
import sys, time
from sensorium.config import EngineConfig, ServerConfig
from sensorium.engine.client import EngineClient
from sensorium.server.app import build_app
from sensorium.types import Message, SamplingParams

config = EngineConfig(model=sys.argv[1], max_model_len=512, kv_cache_bytes=16 << 20)
with EngineClient(config, kind="process") as client:
    build_app(client, ServerConfig())
    events = list(client.submit(client.prepare_chat([Message("user", ("Hi",))]), SamplingParams(max_tokens=2)))
    print(len(events) > 0, "torch" in sys.modules, client.engine_pid, flush=True)
    time.sleep(600)
"""
    command = [sys.executable, "-c", script, str(any_model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        assert caller.stderr is not None
        answered, with_torch, pid = caller.stdout.readline().split()
        assert (answered, with_torch, running(int(pid))) == ("True", "False", True)
        caller.kill()
        assert caller.stderr.read() == ""
    assert eventually(lambda: not running(int(pid)))


def test_progress_and_log_lines_cross(ready: EngineClient, phases: dict[str, float], caplog: pytest.LogCaptureFixture):
    assert phases == {"weights": 1.0, "warm-up": 1.0}
    broken = MediaItem("image", b"broken", 4, {"nothing": np.zeros(3)})
    stream = ready.submit(Prompt((5, 6, 7, 8, 9), (Span(0, 4, 0),), (broken,)), ENDLESS)
    with caplog.at_level(logging.INFO):
        assert [type(event) for event in stream] == [Failed]
        assert eventually(lambda: "encoding a media item failed" in caplog.text)
    assert "KeyError" in caplog.text


def test_what_cannot_cross_fails_alone(ready: EngineClient):
    fine = begun(ready, "Go on.")
    odd = ready.submit(Prompt((5, 6, 7), text=object()), ENDLESS)
    assert [type(event) for event in odd] == [Failed]
    fine.abort()
    assert list(fine)[-1].reason == "abort"


# ---- death ----


def test_f009_a_killed_engine_ends_what_had_begun_and_does_the_rest_but_what_is_given_up(ready: EngineClient):
    one, two = begun(ready, "One."), begun(ready, "Two.")
    queued = ready.submit(prompt(ready, "Three."), SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True))
    unwanted = ready.submit(prompt(ready, "Unwanted."), ENDLESS)
    before, restarts = ready.engine_pid, ready.stats().restarts
    killed = time.monotonic()
    os.kill(before, signal.SIGKILL)
    unwanted.abort()  # nobody may be there to hear of it
    assert [event.reason for event in unwanted] == ["abort"]
    for stream in (one, two):
        events = list(stream)
        assert [event.code for event in events if isinstance(event, Failed)] == ["engine_restarted"]
        assert events[-1].status == 503
    assert time.monotonic() - killed < QUICK.kill_s, "noticed, rather than waited out"
    assert ready.state == "restarting"
    with pytest.raises(EngineDeadError, match="starting again"):
        ready.submit(prompt(ready, "Four."), ENDLESS)
    events = list(queued)
    assert len(tokens(events)) == 5
    assert isinstance(events[-1], Finished)
    assert ready.state == "ready"
    assert ready.engine_pid != before
    assert not running(before)
    assert ready.stats().restarts == restarts + 1
    assert len(tokens(list(ready.submit(prompt(ready, "Five."), SamplingParams(max_tokens=3, ignore_eos=True))))) == 3


@pytest.mark.slow
def test_f016_a_request_present_at_two_deaths_is_refused(ready: EngineClient):
    for _ in range(2):
        stream = begun(ready, "A request that kills.")
        os.kill(ready.engine_pid, signal.SIGKILL)
        assert isinstance(list(stream)[-1], Failed)
        assert eventually(lambda: ready.state == "ready")
    with pytest.raises(RequestError, match="died twice"):
        ready.submit(prompt(ready, "A request that kills."), ENDLESS)
    other = begun(ready, "A request that does not.")
    other.abort()
    assert list(other)[-1].reason == "abort"


@pytest.mark.slow
def test_f011_a_pause_is_told_and_survived_a_hang_is_ended(ready: EngineClient, monkeypatch: pytest.MonkeyPatch):
    pid = ready.engine_pid
    stream = begun(ready, "Slow down.")
    os.kill(pid, signal.SIGSTOP)
    assert eventually(lambda: ready.state == "stalled")
    os.kill(pid, signal.SIGCONT)
    assert eventually(lambda: ready.state == "ready")
    os.kill(pid, signal.SIGSTOP)
    # Only now: a slow machine's engine is not to be killed for its first step.
    monkeypatch.setattr(ready._link, "_supervision", replace(QUICK, kill_s=3.0))
    events = list(stream)
    assert (events[-1].code, ready.engine_pid == pid) == ("engine_restarted", True)
    assert eventually(lambda: ready.state == "ready")
    assert ready.engine_pid != pid
    assert not running(pid)


def test_f011_an_idle_engine_is_not_taken_for_a_hung_one(ready: EngineClient):
    pid = ready.engine_pid
    os.kill(pid, signal.SIGSTOP)
    time.sleep(QUICK.stall_s * 2)
    assert ready.state == "ready"
    stream = ready.submit(prompt(ready, "Awake?"), SamplingParams(max_tokens=2, ignore_eos=True))
    assert ready.state == "ready"
    os.kill(pid, signal.SIGCONT)
    assert len(tokens(list(stream))) == 2


# ---- starts that fail, and the end ----


def test_f015_an_engine_that_never_starts_is_given_up(
    any_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(process_link, "host_command", lambda descriptor: [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(EngineDeadError, match=r"did not start 3 times in a row.*exit code 3"):
        EngineClient(config(any_model), kind="process", supervision=QUICK)
    assert caplog.text.count("starting again") == 2


def test_f015_an_engine_that_does_not_come_back_fails_what_waits(any_model: Path, monkeypatch: pytest.MonkeyPatch):
    with EngineClient(config(any_model), kind="process", supervision=QUICK) as client:
        streams = [begun(client, "One."), begun(client, "Two.")]
        queued = client.submit(prompt(client, "Three."), ENDLESS)
        monkeypatch.setattr(process_link, "host_command", lambda descriptor: [sys.executable, "-c", "exit(3)"])
        os.kill(client.engine_pid, signal.SIGKILL)
        assert [list(stream)[-1].code for stream in (*streams, queued)] == [
            *["engine_restarted"] * 2,
            "engine_dead",
        ]
        assert client.state == "failed"
        assert "did not start" in client.reason


def test_an_engine_that_loads_for_too_long_is_given_up(any_model: Path):
    threads = threading.active_count()
    with pytest.raises(EngineError, match="SENSORIUM_ENGINE_READY_TIMEOUT_S"):
        EngineClient(config(any_model), kind="process", supervision=Supervision(ready_s=0.001))
    assert threading.active_count() == threads


def test_a_model_that_cannot_be_loaded_is_said_at_once(any_model: Path):
    with pytest.raises(CheckpointError, match="no codec folder"):
        EngineClient(EngineConfig(init_tts=True, codec="./none"), kind="process")
    with pytest.raises(CheckpointError, match="no model folder"):
        EngineClient(EngineConfig(model="./none"), kind="process")


def test_closing_leaves_nothing_behind(any_model: Path):
    files = len(os.listdir("/dev/fd"))
    threads = threading.active_count()
    client = EngineClient(config(any_model), kind="process", supervision=QUICK)
    stream = begun(client, "Go on.")
    pid = client.engine_pid
    client.close()
    client.close()
    assert list(stream)[-1].code == "engine_dead"
    assert client.state == "closed"
    assert not running(pid)
    assert threading.active_count() == threads
    assert len(os.listdir("/dev/fd")) == files
    with pytest.raises(EngineDeadError):
        client.submit(Prompt((1, 2)), ENDLESS)


# ---- sessions ------------------------------------------------------------------------------------------------------


def test_a_session_crosses_to_the_process(ready: EngineClient) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
    session = ready.open_session(prompt(ready, "You are a guide."), sampling=sampling, return_hidden=True)
    assert session.opened().num_tokens == len(prompt(ready, "You are a guide.").ids)
    done = session.run(prompt(ready, "Where to?"))
    assert (len(done.ids), done.hidden.shape, done.info) == (5, (5, ready.facts.hidden_size), {"reason": "length"})
    session.close()
    assert isinstance(list(session)[-1], Finished)


def test_sessions_end_with_their_process_and_new_ones_open_in_the_next(ready: EngineClient) -> None:
    session = ready.open_session(prompt(ready, "hello"), sampling=ENDLESS)
    session.append(prompt(ready, "talk"))
    session.opened()
    next(iter(session))
    os.kill(ready.engine_pid, signal.SIGKILL)
    ends = [event for event in session if isinstance(event, UnitFailed | UnitDone | Finished | Failed)]
    assert [(type(end), end.code) for end in ends] == [(UnitFailed, "engine_restarted"), (Failed, "engine_restarted")]
    assert ready.num_sessions == 0
    assert eventually(lambda: ready.state == "ready")
    again = ready.open_session(prompt(ready, "hello"), sampling=SamplingParams(max_tokens=2, ignore_eos=True))
    again.opened()
    assert len(again.run(prompt(ready, "talk")).ids) == 2
    again.abort()
    assert list(again)[-1].reason == "abort"
