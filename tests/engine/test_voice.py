"""Sound out of the engine: what speeches, requests and sessions say becomes sound while more is generated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import prompt, request
from speech_small import GREEDY
from voice_small import (
    FLAT,
    WIDTH,
    alone,
    assert_alike,
    codes_of,
    ends,
    run,
    samples,
    small_codec,
    small_model,
    speaking_engine,
    text_of,
    voice,
)

from sensorium.engine.codec import CodecStage, Made
from sensorium.engine.engine import Engine
from sensorium.engine.protocol import (
    Abort,
    AppendUnit,
    BargeIn,
    ChangeSpeech,
    CloseSession,
    Hush,
    OpenSession,
    OpenSpeech,
    RemoveVoice,
    Say,
)
from sensorium.engine.speech_chunks import Block, Chunks
from sensorium.models.minicpmo import Model
from sensorium.models.token2wav import Token2Wav
from sensorium.types import (
    Codes,
    Event,
    Failed,
    Finished,
    Prompt,
    Request,
    SamplingParams,
    Sound,
    SpeechOptions,
    SpeechSampling,
    TextDelta,
    Unit,
    UnitDone,
)

SEEDED = SpeechSampling(seed=3, **FLAT)
TEXT = SamplingParams(temperature=0.0, max_tokens=45, ignore_eos=True, allowed_token_ids=tuple(range(256)))


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model()


@pytest.fixture(scope="module")
def codec() -> Token2Wav:
    return small_codec()


@pytest.fixture
def engine(model: Model, codec: Token2Wav) -> Engine:
    return speaking_engine(model, codec)


def states(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


def say(name: str, call: int, *, last: bool, count: int = 3, max_new: int | None = 30) -> Say:
    return Say(name, call, tuple(range(call + 1, call + 1 + count)), states(call, count), last, None, max_new)


# ---- speeches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["chat", "half_duplex", "duplex"])
def test_calls_sound_as_their_codes_do_alone(engine: Engine, codec: Token2Wav, rule):
    """Two turns of two calls, in two voices at once."""
    names = {"a": "default", "b": "other"}
    for name, spoken in names.items():
        options = SpeechOptions(spoken, rule, SpeechSampling(seed=len(spoken)), codes=True)
        engine.inbox.append(OpenSpeech(name, options))
        engine.inbox += [say(name, call, last=rule == "chat" or call % 2 == 1) for call in range(4)]
    events = run(engine)
    for name, spoken in names.items():
        codes = codes_of(events, name)
        calls = [(codes[call], rule == "chat" or call % 2 == 1) for call in range(4)]
        assert_alike(samples(events, name), alone(codec, voice(spoken), rule, calls))
        assert [index for index, _ in ends(events, name)] == [0, 1, 2, 3]
        assert {ended for _, ended in ends(events, name)} <= {"eos", "length"}


def test_many_at_once_sound_as_each_alone(model: Model, codec: Token2Wav):
    def heard(names: list[str]) -> dict[str, np.ndarray]:
        engine = speaking_engine(model, codec)
        for name in names:
            engine.inbox.append(OpenSpeech(name, SpeechOptions("default", "duplex", SpeechSampling(seed=ord(name)))))
            engine.inbox += [say(name, call, last=call == 2, count=2 + ord(name) % 3) for call in range(3)]
        events = run(engine)
        return {name: samples(events, name) for name in names}

    together = heard(["a", "b", "c"])
    for name, sound in together.items():
        assert_alike(sound, heard([name])[name])


def test_a_hush_is_silence_at_once(engine: Engine, codec: Token2Wav):
    options = SpeechOptions("default", "half_duplex", SpeechSampling(seed=1), codes=True)
    engine.inbox.append(OpenSpeech("a", options))
    engine.inbox += [say("a", call, last=False, max_new=200) for call in range(3)]
    events: list[Event] = []
    while not len(samples(events, "a")):
        events += engine.step()
    engine.inbox += [Hush("a"), say("a", 3, last=True)]
    after = run(engine)
    assert ends(after, "a")[:-1] == [(call, "cut") for call in range(3) if (call, "eos") not in ends(events, "a")]
    first_new = next(i for i, event in enumerate(after) if isinstance(event, Sound) and event.index == 3)
    cuts = [i for i, event in enumerate(after) if isinstance(event, Sound) and event.ended == "cut"]
    assert max(cuts) < first_new
    assert not any(isinstance(event, Sound) and event.pcm for event in after[:first_new])
    # And the next turn begins as a first one does.
    assert_alike(
        samples(after, "a", 3), alone(codec, voice("default"), "half_duplex", [(codes_of(after, "a")[3], True)])
    )


def test_a_codec_that_fails_ends_the_calls_in_its_batch_and_no_more(engine: Engine, codec: Token2Wav, monkeypatch):
    engine.inbox += [OpenSpeech("a", SpeechOptions("default", "duplex", GREEDY, codes=True)), say("a", 0, last=True)]
    text = request("text", prompt("Hello"), max_tokens=20)
    engine.inbox.append(text)
    with monkeypatch.context() as broken:
        broken.setattr(codec.flow.estimator, "velocity", None)
        events = run(engine)
    assert ends(events, "a") == [(0, "failed")]
    (failed,) = [event for event in events if isinstance(event, Sound) and event.ended]
    assert failed.code == "engine_error"
    assert "TypeError" in failed.message
    assert len(text_of(events, "text")) == 20
    engine.inbox.append(say("a", 1, last=True))
    events = run(engine)
    assert_alike(samples(events, "a"), alone(codec, voice("default"), "duplex", [(codes_of(events, "a")[1], True)]))


def test_what_cannot_be_said_fails_alone_behind_the_sound_before_it(engine: Engine):
    engine.inbox += [OpenSpeech("a", SpeechOptions("default", "half_duplex", GREEDY)), say("a", 0, last=False)]
    engine.inbox += [Say("a", 1, (1, 5000), states(1, 2), True), say("a", 2, last=True)]
    events = run(engine)
    assert [index for index, _ in ends(events, "a")] == [0, 1, 2]
    assert dict(ends(events, "a"))[1] == "failed"


def test_no_codec_and_no_such_voice(model: Model, engine: Engine):
    engine.inbox.append(OpenSpeech("a", SpeechOptions("nobody", "chat")))
    (failed,) = run(engine)
    assert isinstance(failed, Failed)
    assert (failed.code, failed.param) == ("not_found", "voice")
    mute = speaking_engine(model, None)
    mute.inbox.append(OpenSpeech("a", SpeechOptions("default", "chat")))
    (failed,) = run(mute)
    assert (failed.code, failed.status) == ("unsupported", 400)


def test_a_removed_voice_is_kept_by_those_who_speak_with_it(engine: Engine):
    engine.inbox += [OpenSpeech("a", SpeechOptions("other", "duplex", GREEDY)), RemoveVoice("other")]
    engine.inbox += [say("a", 0, last=True), OpenSpeech("b", SpeechOptions("other", "duplex", GREEDY))]
    events = run(engine)
    assert len(samples(events, "a"))
    assert [event.code for event in events if isinstance(event, Failed)] == ["not_found"]
    assert engine.voices.names == ("default",)


# ---- requests -----------------------------------------------------------------------------------------------------


def spoken(name: str, rule="half_duplex", text: str = "Tell me", sampling: SamplingParams = TEXT, **options) -> Request:
    speech = SpeechOptions("default", rule, SEEDED, codes=True, **options)
    return Request(name, prompt(text), sampling, speech=speech)


@pytest.mark.parametrize("rule", ["half_duplex", "chat"])
def test_an_answer_is_spoken(engine: Engine, codec: Token2Wav, rule):
    engine.inbox.append(Request("plain", prompt("Tell me"), TEXT))
    plain = text_of(run(engine), "plain")
    engine.inbox += [spoken("a", rule), spoken("b", rule, "Say more")]
    events = run(engine)
    assert text_of(events, "a") == plain
    for name in "ab":
        codes = codes_of(events, name)[0]
        assert_alike(samples(events, name), alone(codec, voice("default"), rule, [(codes, True)]))
        assert ends(events, name) == [(0, "eos")] or ends(events, name) == [(0, "length")]
        own = [event for event in events if event.request_id == name]
        assert isinstance(own[-1], Finished)
        assert own[-1].reason == "length"
        sounds, texts = ([i for i, e in enumerate(own) if isinstance(e, kind)] for kind in (Sound, TextDelta))
        # The sound of an answer in groups begins while its text is generated; that of a whole one does not.
        assert (sounds[0] < texts[-1]) == (rule == "half_duplex")
    assert engine.speech is not None
    assert engine.speech.num_free == 4


def test_hidden_rows_of_an_answer_are_those_of_a_prompt(engine: Engine):
    """Said while it is generated, or recited from the prompt: the same codes, as the same rows are behind them."""
    engine.inbox.append(spoken("a", "chat"))
    answer = text_of(events := run(engine), "a")
    # The last token is never fed, so it has no row.
    made = Prompt((*prompt("Tell me").ids, *answer[:-1]))
    speech = SpeechOptions("default", "chat", SEEDED, codes=True, spoken_prompt=len(answer) - 1)
    engine.inbox.append(Request("b", made, SamplingParams(temperature=0.0, max_tokens=1), speech=speech))
    again = run(engine)
    # One text was cut off and the other is whole, so only their ends may differ.
    assert codes_of(again, "b")[0][:50] == codes_of(events, "a")[0][:50]
    assert len(samples(again, "b")) >= 50 * 960
    assert isinstance(again[-1], Finished)


def test_a_preempted_answer_says_the_same(model: Model, codec: Token2Wav):
    heard = []
    for blocks in (512, 7):
        engine = speaking_engine(model, codec, blocks=blocks)
        engine.inbox += [spoken("a"), spoken("b", text="Say more")]
        events = run(engine)
        finished = [event for event in events if isinstance(event, Finished)]
        heard.append({name: codes_of(events, name)[0] for name in "ab"})
        preempted = sum(event.timings.preemptions for event in finished)
    assert preempted
    assert heard[0] == heard[1]


def test_thoughts_and_control_tokens_are_not_spoken():
    from sensorium.engine.answers import Spoken

    class Thinking:
        special_ids = frozenset({7, 9})

        def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
            return [8] if text == "<think>" else [10]

    spoken = Spoken(Thinking())  # type: ignore[arg-type]
    assert [id for id in (1, 7, 8, 2, 9, 3, 10, 4) if spoken.takes(id)] == [1, 4]


def test_an_answer_without_words_is_silent(engine: Engine):
    engine.inbox.append(spoken("a", sampling=SamplingParams(temperature=0.0, max_tokens=1)))
    events = run(engine)
    assert ends(events, "a") == [(0, "eos")]
    assert not len(samples(events, "a"))
    assert isinstance(events[-1], Finished)


def test_an_aborted_answer_is_cut(engine: Engine):
    for wait in ("text", "sound"):
        engine.inbox.append(spoken("a"))
        events: list[Event] = []
        while wait == "text" or not len(samples(events, "a")):
            events += engine.step()
            if wait == "text" and any(isinstance(event, TextDelta) for event in events):
                break
        engine.inbox.append(Abort("a"))
        events = run(engine)
        assert ends(events, "a") == [(0, "cut")]
        assert isinstance(events[-1], Finished)
        assert events[-1].reason == "abort"
        assert not len(samples(events, "a"))
    assert engine.speech is not None
    assert engine.speech.num_free == 4


def test_an_answer_that_is_aborted_before_it_begins_ends_too(engine: Engine):
    engine.inbox += [spoken("a"), Abort("a")]
    sound, finished = run(engine)
    assert (sound.ended, sound.pcm, finished.reason) == ("cut", b"", "abort")


# ---- sessions -----------------------------------------------------------------------------------------------------


def session(name: str, rule="half_duplex", most: int = 30) -> OpenSession:
    sampling = SamplingParams(temperature=0.0, max_tokens=most, ignore_eos=True, seed=1)
    speech = SpeechOptions("default", rule, SEEDED, codes=True)
    return OpenSession(Request(name, Prompt(()), sampling), "turn", {}, 400, 4, 1.0, speech=speech)


def unit(name: str, index: int) -> AppendUnit:
    return AppendUnit(name, Unit(index, prompt(f"number {index}"), 0.0, 1.0))


@pytest.mark.parametrize("rule", ["half_duplex", "chat"])
def test_a_session_speaks_unit_by_unit(engine: Engine, codec: Token2Wav, rule):
    engine.inbox += [session("s", rule), unit("s", 0), unit("s", 1), CloseSession("s")]
    events = run(engine)
    codes = codes_of(events, "s")
    for index in range(2):
        expected = alone(codec, voice("default"), rule, [(codes[index], True)])
        assert_alike(samples(events, "s", index), expected)
    assert [index for index, _ in ends(events, "s")] == [0, 1]
    done = [event for event in events if isinstance(event, UnitDone)]
    assert all(event.speaks and event.hidden is None for event in done)
    assert isinstance(events[-1], Finished)
    if rule == "half_duplex":
        first = next(i for i, event in enumerate(events) if isinstance(event, Codes))
        assert first < events.index(done[0])


def test_what_is_said_beside_steps_is_what_is_said_between_them(model: Model, codec: Token2Wav):
    heard: list[list[Any]] = []
    for beside in (False, True):
        engine = speaking_engine(model, codec)
        assert engine.speech is not None
        if beside:  # as on a GPU
            engine.speech._steps, engine.speech.runs_ahead = engine.speech.make_steps(), True
        engine.inbox += [session("s"), unit("s", 0), unit("s", 1), spoken("text"), CloseSession("s")]
        events = run(engine)
        heard.append(
            [(codes_of(events, name), samples(events, name).tobytes(), ends(events, name)) for name in ("s", "text")]
        )
        assert {type(event) for event in events[-2:]} <= {Finished, Sound}
    assert heard[0] == heard[1]


def test_a_unit_is_late_when_its_sound_is(engine: Engine):
    clock: Any = engine.clock
    engine.inbox += [session("s"), unit("s", 0)]
    while not engine.stats.units_done:
        run(engine, 1)
    assert engine.stats.units_late == 0
    clock.now_s = 1.5
    heard = len(samples(run(engine), "s"))
    assert (engine.stats.units_done, engine.stats.units_late) == (1, 1)
    assert engine.stats.unit_s["sound"].sum == 1.5
    engine.inbox += [AppendUnit("s", Unit(1, prompt("more"), 1.5, 2.5)), CloseSession("s")]
    heard += len(samples(run(engine), "s"))
    assert (engine.stats.units_done, engine.stats.units_late) == (2, 1)
    assert engine.stats.sound_s >= heard / 24_000 > 0


@pytest.mark.parametrize("when", ["text", "sound", "both over"])
def test_a_barge_in_is_silence_at_once(engine: Engine, codec: Token2Wav, when):
    engine.inbox += [session("s"), unit("s", 0)]
    events: list[Event] = []
    while True:
        events += engine.step()
        done = any(isinstance(event, UnitDone) for event in events)
        if (when == "text" and codes_of(events, "s")) or (when == "sound" and done and len(samples(events, "s"))):
            break
        if not engine.has_work:
            break
    engine.inbox += [BargeIn("s", 1), unit("s", 1)]
    after = run(engine)
    assert [end for end in ends(after, "s") if end[0] == 0] == ([] if when == "both over" else [(0, "cut")])
    assert not len(samples(after, "s", 0))
    assert all(event.turn == 1 for event in after if isinstance(event, Sound) and event.ended != "cut")
    assert_alike(
        samples(after, "s", 1), alone(codec, voice("default"), "half_duplex", [(codes_of(after, "s")[1], True)])
    )


def test_a_session_may_change_its_voice(engine: Engine, codec: Token2Wav):
    engine.inbox += [session("s"), unit("s", 0)]
    run(engine)
    engine.inbox += [ChangeSpeech("s", SpeechOptions("other", sampling=SEEDED, codes=True)), unit("s", 1)]
    events = run(engine)
    expected = alone(codec, voice("other"), "half_duplex", [(codes_of(events, "s")[1], True)])
    assert_alike(samples(events, "s", 1), expected)
    engine.inbox.append(ChangeSpeech("s", SpeechOptions("nobody")))
    (failed,) = run(engine)
    assert failed.code == "not_found"


def test_a_session_that_is_aborted_is_cut(engine: Engine):
    engine.inbox += [session("s"), unit("s", 0)]
    events: list[Event] = []
    while not len(samples(events, "s")):
        events += engine.step()
    engine.inbox.append(Abort("s"))
    events = run(engine)
    assert ends(events, "s") == [(0, "cut")]
    assert isinstance(events[-1], Finished)
    assert engine.speech is not None
    assert engine.speech.num_free == 4


# ---- whatever happens ---------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["say", "hush", "abort", "ask", "stop", "unit", "barge"]), st.integers(0, 3)),
        min_size=1,
        max_size=10,
    )
)
def test_every_index_ends_once_and_nothing_follows_it(model: Model, codec: Token2Wav, script):
    engine = speaking_engine(model, codec)
    engine.inbox += [OpenSpeech("speech", SpeechOptions("default", "half_duplex", SEEDED)), session("s", most=12)]
    calls = units = asked = turn = 0
    said: set[tuple[str, int]] = set()
    events: list[Event] = []
    for what, steps in script:
        if what == "say":
            engine.inbox.append(say("speech", calls, last=calls % 2 == 1))
            said.add(("speech", calls))
            calls += 1
        elif what == "hush":
            engine.inbox.append(Hush("speech"))
        elif what == "abort":
            engine.inbox.append(Abort("speech"))
        elif what == "ask" and asked < 2:
            asked += 1
            engine.inbox.append(spoken(f"r{asked}", sampling=SamplingParams(temperature=0.0, max_tokens=14)))
            said.add((f"r{asked}", 0))
        elif what == "stop":
            engine.inbox.append(Abort(f"r{asked}"))
        elif what == "unit":
            engine.inbox.append(unit("s", units))
            units += 1
        elif what == "barge":
            turn += 1
            engine.inbox.append(BargeIn("s", turn))
        events += run(engine, steps)
    engine.inbox.append(CloseSession("s"))
    events += run(engine)
    said |= {("s", event.index) for event in events if isinstance(event, UnitDone) and event.speaks}
    closed = next((i for i, e in enumerate(events) if e.request_id == "speech" and isinstance(e, Finished)), None)
    ended: set[tuple[str, int]] = set()
    for event in events:
        if isinstance(event, Sound):
            key = (event.request_id, event.index)
            assert key not in ended, "nothing follows an end"
            if event.ended:
                ended.add(key)
    # Calls that came when the speech was closed are told by nobody here: the client knows.
    late = {key for key in said - ended if key[0] == "speech"} if closed is not None else set()
    assert ended == said - late
    assert not engine.speakers.has_work


def test_pieces_are_recorded_before_anybody_waits_for_them(model: Model):
    codec = small_codec(graphs=True)
    engine = speaking_engine(model, codec)
    assert engine.codec is not None
    engine.codec.record_graphs(4, [engine.voices.find(name) for name in ("default", "other")])
    graphs = codec.flow._graphs
    assert graphs is not None
    recorded = set(graphs.shapes.keys)
    for name in "abc":
        engine.inbox.append(OpenSpeech(name, SpeechOptions("default", "half_duplex", SEEDED)))
        engine.inbox.append(say(name, 0, last=True, count=ord(name) % 5 + 1, max_new=90))
    events = run(engine)
    assert all(len(samples(events, name)) for name in "abc")
    assert {shape.batch for shape in recorded} == {1, 2, 4}
    assert graphs.shapes.keys == recorded


def test_pieces_of_any_length_are_one_batch_of_at_most_so_many():
    codec = small_codec(graphs=True)
    codec.batch = 3
    stage, spoken = CodecStage(codec, torch.device("cpu")), voice("default")
    pieces = (28, False), (9, False), (3, True), (5, True)
    blocks = [Block(tuple(range(100, 100 + count)), last) for count, last in pieces]
    streams = [stage.open(spoken) for _ in blocks]
    for stream, block in zip(streams, blocks, strict=True):
        stage.push(stream, block)
    made: list[Made] = []
    while stage.has_work:
        made += stage.step(lambda: True)
    assert [one.stream for one in made] == streams
    assert codec.flow._graphs is not None
    assert {shape.batch for shape in codec.flow._graphs.shapes.keys} == {4, 1}
    for one, block in zip(made, blocks, strict=True):
        (sound,) = codec.stream([(codec.open(spoken), block.codes, block.last)])
        assert_alike(np.frombuffer(one.pcm, np.int16), np.frombuffer(codec.pcm(sound), np.int16))


@pytest.mark.parametrize("rule", ["chat", "half_duplex"])
def test_pieces_do_not_depend_on_how_codes_come(rule):
    codes = list(range(100, 180))
    expected = Chunks(rule).take(codes, over=True, ends=True)
    chunks, found = Chunks(rule), []
    for at in range(0, 80, 8):
        found += chunks.take(codes[at : at + 8], over=at == 72, ends=True)
    assert found == expected
    assert [len(block.codes) for block in found] == ([28, 28, 28, 5] if rule == "chat" else [28, 28, 28, 8])
    assert found[0].codes[:3] == ((100, 101, 102) if rule == "chat" else (4218,) * 3)
