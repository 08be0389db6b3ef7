"""The speech stage against MiniCPM's own decoder: conditions, logits, probabilities, codes and KV lengths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from speech_golden import Watch, load_conditions, load_speech, on_device_rounds, read_case

from sensorium.engine.speech import SpeechStage
from sensorium.engine.speech_chunks import Chunks
from sensorium.engine.speech_rules import SpeechSampling, SpeechWork

GREEDY = SpeechSampling(greedy=True)
LOGITS = {"rtol": 0, "atol": 2e-4}
PROBS = {"rtol": 0, "atol": 2e-5}
STREAMS = ("full_attention", "sliding_window", "sliding_recompute", "reindex")


@pytest.fixture(scope="module")
def speech():
    return load_speech()


@pytest.fixture(params=["host", "device"])
def rounds(request: pytest.FixtureRequest):
    """Rounds planned on the host, and rounds that keep to the device."""
    return (lambda stage: stage) if request.param == "host" else on_device_rounds


@torch.inference_mode()
def test_condition_rows_are_text_plus_normalised_states():
    speech = load_conditions()
    case, tensors = read_case("tts_condition")
    rows = speech.condition(torch.tensor(case["text_ids"]), tensors["llm_hidden"])
    torch.testing.assert_close(rows, tensors["merged"], rtol=0, atol=1e-4)
    end, begin = speech.marks()
    torch.testing.assert_close(torch.cat((rows, end, begin)), tensors["chat_condition"], rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.cat((rows, begin)), tensors["duplex_condition"], rtol=0, atol=1e-4)
    torch.testing.assert_close(begin, tensors["empty_duplex_condition"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["tts_generate_chat_greedy", "tts_generate_chat_eos"])
def test_chat(speech, rounds, name, monkeypatch):
    case, tensors = read_case(name)
    text, states = read_case("tts_condition")
    stage, watch = rounds(SpeechStage(speech, 2)), Watch(monkeypatch)
    slot = stage.open("chat", GREEDY)
    work = SpeechWork(
        slot, text["text_ids"], states["llm_hidden"], min_new=case["min_new_token"], max_new=case["max_new_token"],
        forced=steps(case["forced"]),
    )  # fmt: skip
    stage.start(work)
    spoken = stage.advance(100)
    assert [(one.codes, one.ended) for one in spoken] == [(case["returned"], "eos" if case["finished"] else "length")]
    compare(watch, tensors, "")


def test_duplex_units_share_a_turn(speech, rounds, monkeypatch):
    case, tensors = read_case("tts_generate_chunk_duplex")
    stage, watch = rounds(SpeechStage(speech, 2)), Watch(monkeypatch)
    slot = stage.open("duplex", GREEDY)
    for number, call in enumerate(case["calls"]):
        first, stop = call["text_range"]
        hidden = tensors["llm_hidden"][first:stop] if stop > first else None
        work = SpeechWork(
            slot, case["text_ids"][first:stop], hidden, last=False,
            min_new=call["min_new_tokens"], forced=steps(call["forced"]),
        )  # fmt: skip
        assert stage._slots[slot].position == call["text_start_pos"]
        assert stage.speak([work]) == [call["returned"]]
        assert stage._slots[slot].length == call["kv_len_after"]
        compare(watch, tensors, f"call{number}_")


@pytest.mark.parametrize("kind", STREAMS)
def test_half_duplex_attention_types(rounds, kind, monkeypatch):
    case, tensors = read_case(f"tts_stream_{kind}")
    speech = load_speech(attention_type=kind)
    stage, watch = rounds(SpeechStage(speech, 2)), Watch(monkeypatch)
    slot = stage.open("half_duplex", GREEDY)
    for number, call in enumerate(case["calls"]):
        first, stop = call["text_range"]
        forced = dict.fromkeys(call["forced_steps"], case["eos"])
        last = call["text_finished"]
        work = SpeechWork(slot, case["text_ids"][first:stop], tensors["llm_hidden"][first:stop], last, forced=forced)
        assert stage.speak([work]) == [call["picked"][:-1]]
        compare(watch, tensors, f"call{number}_")
        if not last:
            state = stage._slots[slot]
            assert (state.length, state.position) == (call["kv_len_after"], call["text_start_pos_after"])


def test_half_duplex_replies(speech, rounds, monkeypatch):
    """The code side of a session: text chunks of ten tokens in, pieces for the codec out."""
    case, tensors = read_case("half_duplex_session")
    stage = rounds(SpeechStage(speech, 1))
    slot = stage.open("half_duplex", GREEDY)
    replies = [event for event in case["events"] if event["op"] == "generate" and event["codec_calls"]]
    assert len(replies) == 2
    for number, reply in enumerate(replies):
        chunks = Chunks("half_duplex")
        pieces: list[tuple[int, ...]] = []
        for chunk, condition in enumerate(reply["tts_conditions"]):
            # The recorded rows stand in for what the backbone, which is no part of this, would have said.
            rows = tensors[f"gen{number}_condition{chunk}"]
            assert len(rows) == condition["n"]
            monkeypatch.setattr(speech, "condition", lambda ids, hidden, rows=rows: rows)
            end = {reply["tts_eos_steps"][chunk]: speech.eos_code}
            last = condition["text_finished"]
            work = SpeechWork(slot, [0] * len(rows), torch.zeros(len(rows), 64), last, forced=end)
            ends = chunk + 1 == len(reply["tts_conditions"])
            blocks = chunks.take(stage.speak([work])[0], over=True, ends=ends)
            pieces += [block.codes for block in blocks]
        assert pieces == [tuple(call["tokens"]) for call in reply["codec_calls"]]
        stage.reset(slot)


def steps(forced: dict[str, int]) -> dict[int, int]:
    return {int(step): code for step, code in forced.items()}


def compare(watch: Watch, tensors: dict[str, Any], prefix: str) -> None:
    logits, probs = watch.take()
    torch.testing.assert_close(logits, tensors[f"{prefix}raw_logits"], **LOGITS)
    if f"{prefix}probs" in tensors:
        torch.testing.assert_close(probs, tensors[f"{prefix}probs"], **PROBS)
