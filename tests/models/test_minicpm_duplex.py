"""What is decided in full duplex, against the traces of the released code and of its demo."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
import torch

from sensorium.engine.speech_chunks import Chunks
from sensorium.errors import RequestError
from sensorium.models.minicpm_draw import Uniforms, candidates
from sensorium.models.minicpm_duplex import DuplexPolicy
from sensorium.models.minicpm_duplex_record import SessionRecord
from sensorium.models.minicpm_duplex_sampler import TextSampler, TextSampling, adjusted, decode_all
from sensorium.types import Outcome, Prompt, SamplingParams, Unit
from tests.models.speech_golden import (
    DEMO,
    TRACES,
    LittleTokenizer,
    Trace,
    TraceUnit,
    little_tokens,
    read_case,
    read_case_tensors,
)


class Scripted(Uniforms):
    def __init__(self, *numbers: float) -> None:
        super().__init__(0)
        self.numbers = numbers

    def __call__(self) -> float:
        self.position += 1
        return self.numbers[self.position - 1]


# ---- the sampler --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", range(14))
def test_the_sampler_draws_from_the_distributions_of_the_reference(row):
    case, tensors, tokens = read_case("duplex_decode_step"), read_case_tensors("duplex_decode_step"), little_tokens()
    stored = case["rows"][row]
    sampling = TextSampling(**{**case["defaults"], **stored["params"]})
    logits = tensors[f"logits_{row}"][None]
    assert sorted(tokens.forbidden) == sorted(case["forbidden"])
    ends = stored["draws"][0] == tokens.chunk_eos
    # 0 takes the likeliest of the candidates, and chunk_eos in the first draw; almost 1 never takes it there.
    sampler = TextSampler(tokens)
    sampler.uniforms = Scripted(0.0 if ends else 0.9999999, 0.0)
    sampler.history.extend(stored["history_before"])
    if f"probs_final_{row}" in tensors:
        ids, shares = candidates(
            adjusted([sampler], [sampling], logits), [sampling.temperature], [sampling.top_k], [sampling.top_p]
        )
        found = torch.zeros(logits.shape[1]).scatter(0, ids[0], shares[0])
        torch.testing.assert_close(found, tensors[f"probs_final_{row}"], atol=2e-5, rtol=0)
    assert decode_all([sampler], [sampling], logits) == [stored["returned"]]
    assert sampler.history.tolist() == stored["history_after"]


def test_sessions_sampled_together_draw_what_each_draws_alone():
    case, tensors, tokens = read_case("duplex_decode_step"), read_case_tensors("duplex_decode_step"), little_tokens()
    samplings = [TextSampling(**{**case["defaults"], **row["params"]}) for row in case["rows"]]
    samplings += [TextSampling(decode_mode="greedy"), TextSampling(listen_scale=0.0), TextSampling(listen_scale=3.0)]
    logits = torch.stack([tensors[f"logits_{row % 14}"] for row in range(len(samplings))])

    def fresh() -> list[TextSampler]:
        samplers = [TextSampler(tokens, seed) for seed in range(len(samplings))]
        for sampler in samplers:
            sampler.history.extend(case["rows"][0]["history_before"])
        return samplers

    together = decode_all(fresh(), samplings, logits)
    alone = [
        decode_all([sampler], [sampling], row[None])[0]
        for sampler, sampling, row in zip(fresh(), samplings, logits, strict=True)
    ]
    assert together == alone
    assert len(set(together)) > 5


def test_what_was_said_takes_eight_bytes_a_token():
    tokens = little_tokens()
    sampler, logits = TextSampler(tokens, 0), torch.full((1, 512), -20.0)
    logits[0, 300] = 20.0
    decode_all([sampler], [TextSampling()], logits)
    tracemalloc.start()
    for _ in range(400):
        decode_all([sampler], [TextSampling()], logits)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sampler.history[-1] == 300
    assert held < 400 * 24


def test_draws_have_the_frequencies_of_the_distribution():
    tokens = little_tokens()
    logits = torch.full((512,), -20.0)
    logits[13], logits[14], logits[tokens.chunk_eos] = 1.0, 0.0, 0.0
    sampling = TextSampling(temperature=1.0, top_p=1.0, text_repetition_penalty=1.0)
    samplers = [TextSampler(tokens, seed) for seed in range(4000)]
    got = decode_all(samplers, [sampling] * 4000, logits.expand(4000, -1))
    share = logits.softmax(0)
    ended = share[tokens.chunk_eos].item()
    first = (1 - ended) * (share[13] / (share[13] + share[14])).item()
    assert abs(got.count(tokens.chunk_eos) / 4000 - ended) < 0.03
    assert abs(got.count(13) / 4000 - first) < 0.03


def test_our_own_scale_changes_the_odds_of_listening():
    tokens = little_tokens()
    logits = torch.randn(1, 512, generator=torch.Generator().manual_seed(1))

    def odds(scale: float) -> float:
        sampler = TextSampler(tokens)
        share = adjusted([sampler], [TextSampling(listen_scale=scale)], logits).softmax(1)[0, tokens.listen].item()
        return share / (1 - share)

    assert odds(3.0) == pytest.approx(3 * odds(1.0), rel=1e-4)
    assert odds(0.0) == 0.0


# ---- whole sessions -----------------------------------------------------------------------------------------------


class Replay:
    """A stored session, unit by unit, through a policy, a record and the state of its speech."""

    def __init__(self, name: str) -> None:
        self.trace, self.tokenizer = Trace(name), LittleTokenizer()
        self.policy = DuplexPolicy(self.tokenizer, SamplingParams(), self.trace.session_options)  # type: ignore[arg-type]
        self.record = SessionRecord(lambda ids: self.tokenizer.decode(ids, skip_special=False))
        self.speech, self.position = Chunks("duplex", eager=self.trace.demo), 0
        self.length = len(self.trace.opening().ids)
        self.said: list[int] = []
        self.policy.opened(self.length)

    def unit(self, unit: TraceUnit) -> dict[str, Any]:
        """Runs one unit: everything that was fed, dropped, spoken and told must be as stored. Its info."""
        self.policy.begin(Unit(unit.result["unit"], unit.prompt, 0, 0, options=unit.options), self.length)
        self.record.begin()
        self.record.fed(unit.prompt)
        self.length += len(unit.prompt.ids)
        fed: list[int] = []
        for name, override in unit.rows:
            logits = self.trace.tensors[name].clone()
            if override is not None:
                logits[override] = logits.max() + 50
            decision = self.policy.decide(logits)
            fed += decision.feed
            if decision.end:
                break
        else:
            raise AssertionError("the unit did not end")
        assert tuple(fed) == unit.fed[: len(fed)]
        assert len(fed) == len(unit.fed) or self.policy.options.window.sliding_window_mode == "context"
        self.length += len(fed)
        self.record.said(fed)
        outcome = self.policy.end(self.length)
        for splice in outcome.splices:
            assert splice.stop is not None
            self.length += len(splice.ids) - (splice.stop - splice.start)
        self.said += outcome.info["said"]
        self.check_state(unit)
        self.check_speech(unit, outcome)
        return dict(outcome.info)

    def check_state(self, unit: TraceUnit) -> None:
        window = self.policy.window
        assert self.length == window.length == unit.state["cache_len"]
        units = [
            {
                "id": one.id,
                "length": one.length,
                "type": one.type,
                "is_listen": one.is_listen,
                "generated_tokens": [] if one.is_listen else list(one.ids),
                "text": "" if one.is_listen else one.text,
            }
            for one in window.units
        ]
        stored = [dict(one) for one in unit.state["units"]]
        for one in stored:  # what a listening unit said before is not asked for
            if one["is_listen"]:
                one.update(generated_tokens=[], text="")
        assert units == stored
        assert self.policy.sampler.history.tolist() == unit.state["generated_tokens_for_penalty"]

    def check_speech(self, unit: TraceUnit, outcome: Outcome) -> None:
        ids, result, info = self.policy.words.ids, unit.result, outcome.info
        for name in ("is_listen", "end_of_turn"):
            assert info[name] == result[name]
        assert len(ids) == result["n_tokens"]
        assert result["text"] == ("" if info["is_listen"] else self.tokenizer.decode(ids))
        assert info["turn_open"] is not result["current_turn_ended"]
        tts = [op for op in unit.ops if op["op"] == "tts"]
        streamed = [(tuple(op["tokens"]), op["last_chunk"]) for op in unit.ops if op["op"] == "codec_stream"]
        if info["is_listen"]:
            assert not tts
            assert outcome.speech == ("drop" if info["speech_ends"] else None)
            if info["speech_ends"]:
                self.speech.reset()
                self.position = 0
            return
        assert len(tts) == 1
        ends = outcome.speech == "end"
        assert outcome.speech == ("end" if info["end_of_turn"] else "more")
        if self.position == tts[0]["text_start_pos"]:
            assert (self.position == 0) == self.speech.is_first
            assert tts[0]["min_new_tokens"] == (0 if ends or self.speech.is_first else 26)
        else:
            assert self.trace.demo, "only where the demo carries a dropped turn's cache on, ours starts afresh"
        assert tts[0]["condition_len"] == len(ids) + 1
        blocks = self.speech.take(tts[0]["returned"], over=True, ends=ends)
        self.position = 0 if ends else self.position + len(ids) + 1 + len(tts[0]["returned"])
        assert [(block.codes, block.last) for block in blocks] == streamed
        assert self.speech.codes == result["codec_buffer"]


@pytest.mark.parametrize("name", [*TRACES, DEMO])
def test_sessions_feed_say_and_drop_what_the_reference_does(name):
    replay = Replay(name)
    assert replay.policy.window.protected_len == replay.trace.prepared["preserve_len"]
    for unit in replay.trace.units():
        info = replay.unit(unit)
        dropped = [op for op in unit.ops if op["op"] == "window_context_drop"]
        if dropped:
            assert info["window"]["preserve_length"] == dropped[-1]["preserve_len"]
            assert list(replay.policy.window.previous_ids) == dropped[-1]["previous_token_ids"]
            assert info["window"]["previous_text"] == dropped[-1]["previous_text"]
    assert replay.said == replay.trace.case["res_ids"]
    assert replay.record.session_schema() == replay.trace.case["session_schema"]


# ---- what no trace shows ------------------------------------------------------------------------------------------


class Talk:
    """A session whose tokens are drawn from random logits, or said by a script."""

    def __init__(self, **options: Any) -> None:
        self.tokenizer = LittleTokenizer()
        self.policy = DuplexPolicy(self.tokenizer, SamplingParams(seed=7), options)  # type: ignore[arg-type]
        self.policy.opened(17)
        self.length, self.index = 17, -1
        self.noise = torch.Generator().manual_seed(5)

    def begin(self, **options: Any) -> None:
        self.index += 1
        self.policy.begin(Unit(self.index, Prompt((488, *[510] * 4)), 0, 0, options=options), self.length)
        self.length += 5

    def step(self, token: int | None = None) -> tuple[int, ...]:
        logits = torch.randn(512, generator=self.noise) * 3
        if token is not None:
            logits[token] = 99.0
        decision = self.policy.decide(logits)
        self.length += len(decision.feed)
        return decision.feed

    def end(self) -> dict[str, Any]:
        self.outcome = self.policy.end(self.length)
        for splice in self.outcome.splices:
            assert splice.stop is not None
            self.length += len(splice.ids) - (splice.stop - splice.start)
        return dict(self.outcome.info)

    def say(self, *tokens: int, **options: Any) -> dict[str, Any]:
        self.begin(decode_mode="greedy", **options)
        for token in tokens:
            self.step(token)
        return self.end()


def test_a_barge_in_inside_a_unit_closes_its_turn():
    talk = Talk()
    talk.begin(decode_mode="greedy")
    for token in (499, 13, 14):
        talk.step(token)
    assert talk.policy.interrupt({}) == (502, 498, 489)
    talk.length += 3
    info = talk.end()
    assert (info["is_listen"], info["speech_ends"], info["turn_open"]) == (True, True, False)
    assert info["fed"] == (499, 13, 14, 502, 498, 489)


def test_a_barge_in_between_units_makes_the_next_one_listen():
    talk = Talk()
    assert talk.say(499, 13, 503)["turn_open"]
    assert talk.policy.interrupt({}) == ()
    talk.begin(decode_mode="greedy")
    assert talk.step(499) == (502, 498, 489)
    assert talk.end()["speech_ends"]
    # Once only, and not where nothing was being said.
    assert talk.say(499, 13, 502, 503)["end_of_turn"]
    assert talk.policy.interrupt({}) == ()
    assert not talk.say(499, 13, 503)["is_listen"]
    with pytest.raises(RequestError, match="loudly"):
        talk.policy.interrupt({"loudly": True})


def test_a_forced_listen_drops_the_speech_of_an_open_turn():
    """In the reference the next turn's speech goes on where the dropped one stopped."""
    talk = Talk()
    talk.say(499, 13, 14, 503)
    assert talk.outcome.speech == "more"
    assert talk.say(499, force_listen=True)["speech_ends"]
    assert talk.outcome.speech == "drop"
    talk.say(498)
    assert talk.outcome.speech is None


def test_going_back_draws_the_same_again():
    talk = Talk()
    talk.say(499, 13, 503)
    drawn = []
    for _ in range(2):
        length, noise = talk.length, talk.noise.get_state()
        talk.begin(temperature=2.0, max_new_speak_tokens_per_chunk=6)
        drawn.append([talk.step() for _ in range(6)][:3])
        talk.end()
        talk.policy.rewind(0)
        talk.length, talk.index = length, 0
        talk.noise.set_state(noise)
        assert talk.policy.turn_open
        assert talk.policy.window.length == talk.length
    assert drawn[0] == drawn[1]


def test_what_the_window_dropped_does_not_come_back():
    talk = Talk(sliding_window_mode="context", context_max_units=2)
    for _ in range(4):
        talk.say(499, 13, 503)
    with pytest.raises(RequestError, match="dropped"):
        talk.policy.rewind(0)


@pytest.mark.parametrize("mode", ["off", "basic", "context"])
def test_lengths_over_two_hundred_units(mode):
    talk = Talk(
        sliding_window_mode=mode,
        basic_window_high_tokens=200,
        basic_window_low_tokens=120,
        context_max_units=5,
        context_previous_max_tokens=12,
        suffix_ids=[492, 483],
    )
    longest, rows = 0, 17
    for index in range(200):
        ends = (502, 503) if index % 3 == 1 else (503,)
        talk.say(*((498,) if index % 3 == 2 else (499, 13 + index % 50, 14, *ends)))
        rows += {0: 10, 1: 11, 2: 7}[index % 3]
        window = talk.policy.window
        assert window.length == talk.length
        longest = max(longest, talk.length)
        if mode == "context":
            assert len(window.units) <= 5
            assert len(window.previous_ids) <= 4 + 12
    assert (talk.length == rows) is (mode == "off")
    assert longest <= {"off": rows, "basic": 200, "context": 17 + 16 + 5 * 11}[mode]
    assert talk.policy.window.stats()["num_units_dropped"] == (0 if mode == "off" else 200 - len(window.units))


@pytest.mark.parametrize("mode", ["explicit", "implicit"])
def test_the_implicit_mode_feeds_no_terminators_and_has_no_budget(mode):
    talk = Talk(ls_mode=mode)
    explicit = mode == "explicit"
    assert talk.say(498)["fed"] == ((498, 489) if explicit else (489,))
    talk.begin(decode_mode="greedy", max_new_speak_tokens_per_chunk=3)
    fed = [talk.step(token) for token in (499, 13, 14)]
    assert fed == ([(499,), (13,), (503, 489)] if explicit else [(499,), (13,), (14,)])
    if not explicit:
        assert talk.step(15) == (489,)


@pytest.mark.parametrize("name", ["listen_scal", "top_p", "max_new_speak_tokens_per_chunk", "decode_mode"])
def test_wrong_options_are_named(name):
    with pytest.raises(RequestError, match=name):
        Talk().begin(**{name: -1})
    with pytest.raises(RequestError, match="force_listen_count"):
        Talk(force_listen_count=-1)
