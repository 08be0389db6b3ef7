"""Turn-based sessions of MiniCPM-o against the stored one, and what the reference gets wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sensorium.engine.speech_chunks import Chunks
from sensorium.models.minicpm_half_duplex import Groups, HalfDuplexPolicy, not_spoken, terminators
from sensorium.types import Decision, Prompt, SamplingParams, Unit
from tests.models.speech_golden import LittleTokenizer, read_case


def policy(**options: Any) -> HalfDuplexPolicy:
    return HalfDuplexPolicy(LittleTokenizer(), SamplingParams(seed=1), options)  # type: ignore[arg-type]


def piece(index: int, count: int) -> Unit:
    return Unit(index, Prompt((0,) * count), 0, 0, deciding=None, options={"reply": False})


def answer(index: int, count: int, **options: Any) -> Unit:
    return Unit(index, Prompt((0,) * count), 0, 0, options=options)


def logits(token: int) -> torch.Tensor:
    scores = torch.zeros(512)
    scores[token] = 99.0
    return scores


def run(session: HalfDuplexPolicy, script: list[int]) -> list[Decision]:
    decisions: list[Decision] = []
    for token in script:
        decisions.append(session.decide(logits(token)))
        if decisions[-1].end:
            return decisions
    raise AssertionError("the reply did not end")


def test_replies_are_those_of_the_stored_session():
    case = read_case("half_duplex_session")
    session, length, index = policy(window_high_tokens=10**6), 0, 0
    for event in case["events"]:
        if event["op"] == "prefill" and event["role"] == "system":
            length = event["cache_len"]
            session.opened(length)
            continue
        index += 1
        first = event["llm_forwards"][0]["n"]
        start, length = length, length + first
        if event["op"] == "prefill":
            session.begin(piece(index, first), start)
            session.end(length)
            continue
        session.begin(answer(index, first, max_new_tokens=event["args"]["max_new_tokens"]), start)
        decisions = run(session, event["llm_picked"])
        assert len(decisions) == len(event["llm_picked"])
        fed = [token for decision in decisions for token in decision.feed]
        # The last pick is neither spoken nor kept.
        assert fed == event["llm_picked"][:-1]
        assert len(fed) == len(event["llm_forwards"]) - 1
        length += len(fed)
        info = session.end(length).info
        assert info["finished"] is (event["llm_picked"][-1] in terminators(LittleTokenizer()))  # type: ignore[arg-type]
        if event["args"]["generate_audio"]:
            check_speech(event, decisions, info["finished"])


def check_speech(event: dict[str, Any], decisions: list[Decision], finished: bool) -> None:
    """Groups leave when they are flushed; as many codes as the stored speech LM made are cut into the same blocks."""
    groups: Groups[int] = Groups()
    sizes: list[int] = []
    for decision in decisions:
        complete = groups.push(decision.feed)
        assert bool(complete) is decision.flush
        sizes += map(len, complete)
    conditions = [(size, False) for size in sizes] + [(len(groups.finish()), finished)]
    assert conditions == [(stored["n"], stored["text_finished"]) for stored in event["tts_conditions"]]
    calls = [(tuple(call["tokens"]), call["last_chunk"]) for call in event["codec_calls"]]
    codes = [code for number, (block, _) in enumerate(calls) for code in block[3:]]
    chunks, blocks, at = Chunks("half_duplex"), [], 0
    for number, count in enumerate(event["tts_eos_steps"][: len(conditions)]):
        blocks += chunks.take(codes[at : at + count], over=True, ends=number == len(conditions) - 1)
        at += count
    assert [(block.codes, block.last) for block in blocks] == calls


def test_a_reply_may_be_empty():
    """The reference raises here."""
    session = policy()
    session.opened(16)
    session.begin(answer(1, 10), 16)
    assert run(session, [497]) == [Decision(end=True)]
    assert session.end(26).info["finished"]


def test_a_given_text_is_said_instead_of_the_models_own():
    session = policy()
    session.opened(16)
    session.begin(answer(1, 10, forced_ids=[13, 14]), 16)
    assert [decision.feed for decision in run(session, [20, 20, 20])] == [(13,), (14,), ()]
    assert session.end(28).info["finished"]


def test_marks_that_cannot_be_read_out_are_never_drawn():
    banned = not_spoken(LittleTokenizer())  # type: ignore[arg-type]
    assert {402, 403, 510} <= set(banned)
    session = policy()
    session.opened(16)
    session.begin(answer(1, 10, do_sample=False), 16)
    scores = torch.zeros(512)
    scores[banned], scores[77] = 50.0, 1.0
    assert session.decide(scores).feed == (77,)


def test_the_window_drops_whole_rounds_and_counts_every_row():
    """The reference counts no opening of a reply, never drops the first round, and can drop what was just heard."""
    session = policy(window_high_tokens=110, window_low_tokens=80)
    session.opened(16)
    length = 16
    rows = [(9, 0), (6, 0), (10, 23), (12, 0), (10, 20), (12, 0)]
    for index, (prompt, said) in enumerate(rows, 1):
        is_reply = bool(said)
        session.begin(answer(index, prompt, max_new_tokens=said) if is_reply else piece(index, prompt), length)
        length += prompt + said
        outcome = session.end(length)
        if index < len(rows):
            assert not outcome.splices
    (splice,) = outcome.splices
    assert (splice.start, splice.stop, splice.ids) == (16, 16 + 9 + 6 + 10 + 23, ())
    assert session.length == length - 48 == 70


def test_a_session_goes_back_to_where_it_was():
    session = policy()
    session.opened(16)
    session.begin(piece(0, 9), 16)
    session.end(25)
    drawn: list[list[tuple[int, ...]]] = []
    for _ in range(2):
        session.begin(answer(1, 10, temperature=2.0, top_k=0, top_p=1.0), 25)
        drawn.append([session.decide(torch.zeros(512)).feed for _ in range(5)])
        session.end(40)
        session.rewind(0)
        assert session.length == 25
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("name", ["temperatur", "top_k"])
def test_wrong_options_are_named(name):
    session = policy()
    session.opened(16)
    with pytest.raises(Exception, match=name):
        session.begin(answer(1, 10, **{name: -1}), 16)
