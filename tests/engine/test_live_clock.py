"""Many full-duplex sessions on a clock that only the test moves: they hear and speak, come and go, are interrupted.

A step takes simulated time by a simple rule, so that lateness says something about the order of things and nothing
about the machine that the test runs on.
"""

from __future__ import annotations

import gc
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from small import CONFIG, ManualClock
from speech_small import SMALL as SPEECH
from voice_small import small_codec, voice

from sensorium.config import EngineConfig
from sensorium.engine.checkpoint import resolve_folder
from sensorium.engine.codec import CodecStage
from sensorium.engine.engine import Engine
from sensorium.engine.loading import build_engine, encoder_cache_bytes
from sensorium.engine.protocol import Abort, AppendUnit, BargeIn, CloseSession, MemoryPlan, OpenSession
from sensorium.models import loader
from sensorium.models.minicpm_duplex_tokens import DuplexTokens
from sensorium.models.minicpmo import Config, Model
from sensorium.models.tokenizer import Tokenizer
from sensorium.types import (
    Event,
    Failed,
    Finished,
    MediaItem,
    Prompt,
    Request,
    SamplingParams,
    SessionOpened,
    Sound,
    Span,
    SpeechOptions,
    SpeechSampling,
    Unit,
    UnitDone,
    UnitFailed,
)

STEP_S, TOKEN_S = 0.012, 20e-6
"""What a step and a token of it take, about as on a GPU."""
MEL = np.random.default_rng(0).standard_normal((80, 104), dtype=np.float32)
CONTEXT = np.array([2, 2], np.int32)
ROWS = 10
WORDS = {"max_new_speak_tokens_per_chunk": 4, "listen_scale": 300.0}
WINDOW = {"sliding_window_mode": "basic", "basic_window_high_tokens": 80, "basic_window_low_tokens": 50}
MOST_UNITS = 4


@dataclass(slots=True)
class Talk:
    """One session as its caller sees it."""

    name: str
    appended: int = 0
    turn: int = 0
    is_open: bool = False
    finished: int = 0
    ended: set[int] = field(default_factory=set)
    speaking: set[int] = field(default_factory=set)
    """Units that are spoken and whose sound has not ended."""
    total_s: list[float] = field(default_factory=list)


class Hum:
    """A codec that is done at once: for runs so long that they are about everything else."""

    num_codes, can_clone, batch = 6561, False, 32

    def kind(self, num_codes: int, last: bool) -> None:
        return None

    def prepare(self, voice: Any) -> Any:
        yield from ()

    def is_prepared(self, voice: Any) -> bool:
        return True

    def release(self, voice: Any) -> None:
        pass

    def open(self, voice: Any) -> object:
        return object()

    def pieces(self, works: Any) -> Any:
        yield None
        return [np.zeros(960 * (len(codes) - 3 * (not last)), np.float32) for _, codes, last in works]

    def pcm(self, sound: np.ndarray) -> bytes:
        return sound.astype(np.int16).tobytes()


class World:
    """An engine with sessions that are fed by the clock, and all that is asserted of what they say.

    phases: in so many groups units come each second.
    """

    def __init__(self, num_sessions: int, phases: int = 2, codec: Any = None, seed: int = 0) -> None:
        self.phases = phases
        tokenizer = Tokenizer(resolve_folder(""))
        self.tokens, self.placeholder = DuplexTokens.of(tokenizer), tokenizer.id("<unk>")
        self.model, self.codec = _model(tokenizer.vocab_size), CodecStage(codec or small_codec(), torch.device("cpu"))
        config = EngineConfig(max_sessions=num_sessions, speech_slots=num_sessions, encoder_cache_tokens=1000)
        cache = encoder_cache_bytes(config, self.model.hidden_size * 4)
        plan = MemoryPlan(0, 0, 0, cache, 12 * config.block_size * (num_sessions + 2))

        class Processor:
            pass

        processor: Any = Processor()
        processor.tokenizer = tokenizer
        cpu = torch.device("cpu")
        voices = {"default": voice("default")}
        self.engine: Engine = build_engine(
            self.model, processor, config, cpu, torch.float32, plan, codec=self.codec, voices=voices
        )
        self.clock = self.engine.clock = ManualClock()
        self.random = random.Random(seed)
        self.talks: dict[str, Talk] = {}
        self.leaving: Talk | None = None
        self.lateness: list[float] = []
        self.sound_s = 0.0
        self.num_spoken = self.num_barged = self.num_answers = self.num_asked = 0
        self._names = iter(range(10**9))
        self._media = iter(range(10**9))
        for _ in range(num_sessions):
            self.open()

    # ---- callers ----

    def open(self) -> Talk:
        talk = Talk(f"s{next(self._names)}")
        self.talks[talk.name] = talk
        seed = int(talk.name[1:])
        request = Request(talk.name, Prompt(tuple(range(300, 320))), SamplingParams(seed=seed), arrival_s=self.clock())
        speech = SpeechOptions("default", "duplex", SpeechSampling(seed=seed))
        message = OpenSession(request, "duplex", WINDOW, 160, MOST_UNITS, self.clock() + 1.0, speech=speech)
        self.engine.inbox.append(message)
        return talk

    def append(self, talk: Talk, **options: Any) -> None:
        number = next(self._media)
        item = MediaItem("audio", b"%d" % number, ROWS, {"mel": MEL, "context": CONTEXT}, talk.name)
        ids = (self.tokens.unit, *[self.placeholder] * ROWS)
        made = Prompt(ids, (Span(1, ROWS, 0),), (item,))
        now = self.clock()
        unit = Unit(talk.appended, made, now, now + 1.0, -1, WORDS | options)
        self.engine.inbox.append(AppendUnit(talk.name, unit))
        talk.appended += 1

    def ask(self) -> None:
        self.num_asked += 1
        request = Request(f"r{self.num_asked}", Prompt(tuple(range(400, 430))), SamplingParams(max_tokens=6))
        self.engine.inbox.append(request)

    def barge_in(self, talk: Talk) -> None:
        talk.turn += 1
        self.num_barged += bool(talk.speaking)
        self.engine.inbox.append(BargeIn(talk.name, talk.turn))
        talk.speaking.clear()

    def close(self, talk: Talk) -> None:
        self.engine.inbox.append(self.random.choice((CloseSession, Abort))(talk.name))

    # ---- time ----

    def run_for(self, seconds: float, *, churn: bool = True) -> None:
        """Whole seconds of units of every session, each group at its own moment of them."""
        first = self.clock.now_s
        for tick in range(int(seconds * self.phases)):
            self._pass_to(first + tick / self.phases)
            for number, talk in enumerate([*self.talks.values()]):
                if number % self.phases == tick % self.phases and talk.is_open:
                    self.append(talk, force_listen=self.random.random() < 0.15)
            if tick % self.phases == 0:
                self.ask()
                if churn and tick % (3 * self.phases) == 0:
                    # Another one comes when it has gone.
                    self.leaving = self.random.choice([talk for talk in self.talks.values() if talk.is_open])
                    self.close(self.leaving)
        self._pass_to(first + seconds)

    def _pass_to(self, until_s: float) -> None:
        while self.clock.now_s < until_s and self.engine.has_work:
            self.step()
            speaking = [talk for talk in self.talks.values() if talk.speaking]
            if speaking and self.random.random() < 0.1:
                self.barge_in(self.random.choice(speaking))
        self.clock.now_s = max(self.clock.now_s, until_s)

    def rest(self) -> None:
        while self.engine.has_work:
            self.step()

    def step(self) -> None:
        batch: list[int] = []
        run = self.engine.runner.run
        self.engine.runner.run = lambda made, *then: batch.append(made.num_tokens) or run(made, *then)
        try:
            events = self.engine.step()
        finally:
            self.engine.runner.run = run
        self.clock.now_s += STEP_S + TOKEN_S * sum(batch)
        for event in events:
            self._take(event)

    # ---- what is asserted of every event ----

    def _take(self, event: Event) -> None:
        talk = self.talks.get(event.request_id)
        if talk is None:
            assert event.request_id.startswith("r"), event
            assert not isinstance(event, Failed)
            self.num_answers += isinstance(event, Finished)
        elif isinstance(event, SessionOpened):
            talk.is_open = True
        elif isinstance(event, UnitDone):
            assert event.index not in talk.ended, "a unit ends once"
            talk.ended.add(event.index)
            talk.total_s.append(event.timings.total_s)
            self.lateness.append(event.timings.lateness_s)
            if event.speaks and event.turn == talk.turn:
                talk.speaking.add(event.index)
        elif isinstance(event, Sound):
            self.sound_s += len(event.pcm) / 48_000
            if event.pcm:
                assert event.turn == talk.turn, "sound of a turn that was interrupted"
                self.num_spoken += 1
            if event.ended is not None:
                assert event.ended != "failed", event
                talk.speaking.discard(event.index)
        elif isinstance(event, Finished):
            talk.finished += 1
            assert not talk.speaking, "a session ends behind its last sound"
            del self.talks[talk.name]
            if talk is self.leaving:
                self.open()
        else:
            assert not isinstance(event, Failed | UnitFailed), event


def _model(vocab_size: int) -> Model:
    """It hears and speaks, and sees nothing."""
    speech = SPEECH | {"llm_dim": CONFIG["hidden_size"], "num_text_tokens": vocab_size, "num_audio_tokens": 400}
    speech |= {"audio_bos_token_id": vocab_size - 2, "text_eos_token_id": vocab_size - 1}
    speech |= {"max_position_embeddings": 512}
    config = CONFIG | {"vocab_size": vocab_size, "tts_config": speech}
    made = loader.build(Model, Config.from_hf(config, init_vision=False, init_tts=True), "cpu", torch.float32)
    loader.init_random_(made, seed=3, std=0.2)
    return made


def objects() -> Counter[str]:
    """How many of each of our own classes there are."""
    gc.collect()
    kinds = (type(one) for one in gc.get_objects())
    return Counter(kind.__name__ for kind in kinds if str(kind.__module__).startswith("sensorium."))


def check(world: World, seconds: float) -> None:
    """Half of the time and the other half: nothing is late, slower or more; then all is given back."""
    engine, num_sessions = world.engine, len(world.talks)
    world.rest()
    world.run_for(seconds / 2)
    before, steps, middle = objects(), engine.stats.steps, len(world.lateness)
    world.run_for(seconds / 2)
    after = objects()
    late = [lateness > 0 for lateness in world.lateness]
    assert sum(late) < 0.01 * len(late)
    assert len(late) > 0.9 * seconds * num_sessions
    assert abs(sum(late[middle:]) - sum(late[:middle])) < 0.01 * len(late), "the second half is like the first"
    assert abs((engine.stats.steps - steps) / steps - 1) < 0.25, "and no more work"
    grown = {name: (before[name], count) for name, count in after.items() if count > 1.2 * before[name] + 40}
    assert not grown
    assert world.num_spoken > 0.2 * seconds * num_sessions
    assert world.num_barged
    stats = engine.stats
    assert abs(stats.sound_s - world.sound_s) < 1e-6
    assert stats.units_late <= 0.01 * stats.units_done
    assert 0 < sum(stats.unit_s["first_sound"].counts) <= world.num_spoken
    assert 0 < sum(stats.unit_s["sound"].counts) <= stats.units_done
    assert world.num_answers > seconds - 3
    talks, world.leaving = [*world.talks.values()], None
    for talk in talks:
        world.close(talk)
    world.rest()
    assert {talk.finished for talk in talks} == {1}
    assert engine.stats.sessions == engine.stats.units_waiting == 0
    assert engine.speech is not None
    assert engine.speech.num_free == num_sessions
    assert not engine.runner.readout.deciders
    assert not engine.sessions.counted._spoken
    assert not world.model._streams
    engine.scheduler.check()
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks
    assert engine.scheduler.encoder_cache.num_holds == 0


@pytest.mark.slow
def test_32_sessions_are_on_time_and_leave_nothing_behind():
    check(World(32), seconds=6)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_32_sessions_for_half_an_hour():
    world = World(32, phases=1, codec=Hum(), seed=1)
    check(world, seconds=1800)
    assert world.num_barged > 300


def test_a_stall_is_made_up_for_and_what_was_too_much_is_refused():
    """Nothing is computed for 6 seconds. Each session has room for its unit and MOST_UNITS that wait."""
    world = World(6)
    world.rest()
    engine, failed = world.engine, defaultdict(list)
    take = world._take
    world._take = lambda event: failed[event.code].append(event) if isinstance(event, UnitFailed) else take(event)  # type: ignore[method-assign]
    for _ in range(6):
        for talk in world.talks.values():
            world.append(talk)
        world.clock.now_s += 1.0
    world.step()
    assert {code: len(events) for code, events in failed.items()} == {"overloaded": 6}
    assert 6 * (MOST_UNITS - 1) <= engine.stats.units_waiting <= 6 * MOST_UNITS
    world.rest()
    assert engine.stats.units_done == 6 * 5
    assert sum(lateness > 0 for lateness in world.lateness) > 10
    world.lateness.clear()
    world.run_for(3, churn=False)
    assert len(world.lateness) == 18
    assert not any(world.lateness)


def test_silence_comes_at_once_when_a_speaking_session_is_interrupted():
    world = World(4)
    world.rest()
    talks = [*world.talks.values()]
    silenced = 0
    for _ in range(8):
        for talk in talks:
            world.append(talk, listen_scale=0.0)
        while world.engine.has_work and not all(talk.speaking for talk in talks):
            world.step()
        for talk in talks[:2]:
            silenced += bool(talk.speaking)
            world.barge_in(talk)  # World refuses every sound of the turn that was
        world.rest()
        assert not any(talk.speaking for talk in talks)
    assert silenced >= 8
    assert world.num_spoken >= 8
