"""What a speech stage promises: slots that do not know of each other, calls that end as their rule says."""

from __future__ import annotations

import pytest
import torch
from speech_golden import on_device_rounds
from speech_small import GREEDY, LLM_DIM, SESSIONS, scores_after, small_speech, work

from sensorium.engine.graphs import Likeliest
from sensorium.engine.speech import SpeechStage
from sensorium.engine.speech_rules import RULES, SpeechSampling, SpeechWork
from sensorium.errors import ContextLengthError, EngineError, OverloadedError, RequestError
from sensorium.models.minicpm_speech import SpeechLM


@pytest.fixture(scope="module")
def speech() -> SpeechLM:
    return small_speech()


@pytest.fixture(params=["host", "device"])
def rounds(request: pytest.FixtureRequest):
    """Rounds planned on the host, and rounds that keep to the device."""
    return (lambda stage: stage) if request.param == "host" else on_device_rounds


def drain(stage: SpeechStage, rounds: int = 7) -> dict[int, list[int]]:
    """Advance until nobody speaks; the codes by slot."""
    codes: dict[int, list[int]] = {}
    while spoken := stage.advance(rounds):
        for one in spoken:
            assert one.error is None
            codes.setdefault(one.slot, []).extend(one.codes)
    return codes


# ---- sessions beside each other -----------------------------------------------------------------------------------


def test_sessions_in_one_batch_say_what_they_say_alone(speech, rounds):
    together = rounds(SpeechStage(speech, len(SESSIONS)))
    slots = [together.open(rule, sampling) for rule, sampling, _ in SESSIONS]
    said: dict[int, list[list[int]]] = {slot: [] for slot in slots}
    for turn in range(2):
        # They start at different times, so that each round has another company.
        parts: dict[int, list[int]] = {slot: [] for slot in slots}
        for slot, (_, _, calls) in zip(slots, SESSIONS, strict=True):
            together.start(work(slot, seed=slot, **calls[turn]))
            for one in together.advance(3):
                parts[one.slot] += one.codes
        for slot, codes in drain(together).items():
            parts[slot] += codes
        for slot in slots:
            said[slot].append(parts[slot])
    for slot, (rule, sampling, calls) in zip(slots, SESSIONS, strict=True):
        alone = SpeechStage(speech, 1)
        own = alone.open(rule, sampling)
        expected = [alone.speak([work(own, seed=slot, **call)])[0] for call in calls]
        assert said[slot] == expected
        assert any(expected)


def test_a_seed_makes_codes_repeatable(speech):
    stage = SpeechStage(speech, 4)
    works = [work(stage.open("chat", SpeechSampling(seed=seed)), [1, 2], max_new=30) for seed in (5, 5, 6, None)]
    first, same, other, unseeded = stage.speak(works)
    assert first == same
    assert len({tuple(codes) for codes in (first, other, unseeded)}) == 3
    # The generator goes on: the next turn is not the last one again.
    assert stage.speak([works[0]])[0] not in (first, other)


def test_a_closed_slot_leaves_nothing_to_its_next_owner(speech):
    stage = SpeechStage(speech, 1)
    slot = stage.open("half_duplex", GREEDY)
    expected = stage.speak([work(slot, [3, 4], max_new=12)])
    stage.speak([work(slot, [9] * 20, seed=7, last=False, max_new=50)])
    with pytest.raises(OverloadedError):
        stage.open("chat")
    stage.close(slot)
    assert stage.num_free == 1
    assert stage.speak([work(stage.open("half_duplex", GREEDY), [3, 4], max_new=12)]) == expected


def test_reset_cuts_a_call_off(speech, rounds):
    stage = rounds(SpeechStage(speech, 2))
    cut, other = stage.open("duplex", GREEDY), stage.open("chat", GREEDY)
    expected = stage.speak([work(cut, [3, 4], last=False, min_new=26)])
    stage.reset(cut)
    stage.start(work(cut, [5, 6], last=False))
    stage.start(work(other, [1], max_new=40))
    before = {one.slot: one.codes for one in stage.advance(5)}
    assert len(before[cut]) == len(before[other]) == 5
    stage.reset(cut)
    after = drain(stage)
    assert set(after) == {other}
    assert len(before[other] + after[other]) == 39
    assert stage.speak([work(cut, [3, 4], last=False, min_new=26)]) == expected


# ---- ahead of the host -----------------------------------------------------------------------------------------------


def ahead(stage: SpeechStage) -> SpeechStage:
    """As on a GPU, where rounds are on the device while the host does something else."""
    stage._steps, stage.runs_ahead = stage.make_steps(), True
    return stage


def test_rounds_that_run_ahead_say_the_same(speech):
    said = []
    for stage in (SpeechStage(speech, len(SESSIONS)), ahead(SpeechStage(speech, len(SESSIONS)))):
        slots = [stage.open(rule, sampling) for rule, sampling, _ in SESSIONS]
        for turn in range(2):
            works = [work(slot, seed=slot, **SESSIONS[slot][2][turn]) for slot in slots]
            said.append(stage.speak(works))
    assert said[:2] == said[2:]


def test_what_is_begun_is_told_by_the_next_call(speech):
    stage = ahead(SpeechStage(speech, 1))
    stage.start(work(stage.open("chat", GREEDY), [1, 2], max_new=22, min_new=22))
    told = []
    while stage.is_speaking:
        told.append([(len(one.codes), one.ended) for one in stage.advance(8)])
    assert told == [[], [(8, None)], [(8, None)], [(5, "length")]]


def test_rounds_that_the_device_still_computes_are_waited_for_as_long_as_nobody_else_waits(speech, monkeypatch):
    stage, patience = ahead(SpeechStage(speech, 1)), iter([True, True, False])
    stage.start(work(stage.open("chat", GREEDY), [1, 2], max_new=22, min_new=22))
    stage.advance(8)
    with monkeypatch.context() as device:
        device.setattr(Likeliest, "is_there", False)
        assert stage.advance(8, waits=lambda: next(patience)) == []
        assert next(patience, None) is None
    assert [len(one.codes) for one in stage.advance(8, waits=lambda: False)] == [8]


@pytest.mark.parametrize("closes", [False, True])
def test_rounds_of_a_call_that_was_cut_off_count_for_nobody(speech, closes):
    stage = ahead(SpeechStage(speech, 2))
    cut, other = stage.open("duplex", GREEDY), stage.open("chat", GREEDY)
    wanted = [work(cut, [7, 8], seed=4, last=False, min_new=26), work(other, [1], max_new=40, min_new=40)]
    alone = SpeechStage(speech, 2)
    slots = [alone.open("duplex", GREEDY), alone.open("chat", GREEDY)]
    assert slots == [cut, other]
    expected = alone.speak(wanted)
    stage.start(work(cut, [5, 6], last=False, min_new=26))
    stage.start(wanted[1])
    codes: dict[int, list[int]] = {cut: [], other: []}
    stage.advance(8)
    stage.advance(8)
    if closes:
        stage.close(cut)
        assert stage.open("duplex", GREEDY) == cut
    else:
        stage.reset(cut)
    stage.start(wanted[0])
    said = 8
    while stage.is_speaking:
        for one in stage.advance(8):
            codes[one.slot] += one.codes
    assert codes[cut] == expected[0]
    assert codes[other] == expected[1][said:]


# ---- how calls end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "expected"), [("chat", 8), ("half_duplex", 9), ("duplex", 8)])
def test_the_pick_at_the_limit_is_spoken_in_half_duplex_only(speech, rounds, rule, expected):
    stage = rounds(SpeechStage(speech, 1))
    stage.start(work(stage.open(rule, GREEDY), [1], min_new=9, max_new=9))
    (spoken,) = stage.advance(50)
    assert (len(spoken.codes), spoken.ended) == (expected, "length")


def test_the_end_is_masked_for_as_long_as_the_rule_says(rounds, monkeypatch):
    speech = small_speech()
    logits = speech.logits

    def wants_to_end(hidden: torch.Tensor) -> torch.Tensor:
        out = logits(hidden)
        out[:, speech.eos_code] += 1000.0
        return out

    monkeypatch.setattr(speech, "logits", wants_to_end)
    stage = rounds(SpeechStage(speech, 3))
    chat, half, duplex = (stage.open(rule) for rule in RULES)
    assert len(stage.speak([work(chat, [1])])[0]) == 50
    assert len(stage.speak([work(chat, [1], min_new=3)])[0]) == 3
    assert stage.speak([work(half, [1])]) == [[]]
    # A duplex turn: the first unit may be short, later ones are a second, the last may be short; then it starts anew.
    units = [stage.speak([work(duplex, [1], last=last)])[0] for last in (False, True, False)]
    assert [len(unit) for unit in units] == [0, 0, 0]
    stage.reset(duplex)
    stage.speak([work(duplex, [1], last=False, min_new=26)])
    units = [stage.speak([work(duplex, [1], last=last)])[0] for last in (False, False, True, False)]
    assert [len(unit) for unit in units] == [25, 25, 0, 0]


def test_advance_tells_what_is_new(speech, rounds):
    stage = rounds(SpeechStage(speech, 1))
    slot = stage.open("chat", GREEDY)
    stage.start(work(slot, [1, 2], max_new=70, min_new=70))
    told = []
    while spoken := stage.advance(10):
        told.append((len(spoken[0].codes), spoken[0].ended))
    assert told == [(10, None)] * 6 + [(9, "length")]
    stage.start(work(slot, [1, 2], max_new=70, min_new=70))
    assert len(stage.advance(100)[0].codes) == 69


def test_logits_that_are_not_numbers_end_one_call(rounds):
    speech = small_speech()
    speech.text.weight[7] = torch.nan
    stage = rounds(SpeechStage(speech, 2))
    good, bad = stage.open("chat", GREEDY), stage.open("duplex", GREEDY)
    expected = stage.speak([work(good, [1, 2], max_new=12)])[0]
    stage.start(work(good, [1, 2], max_new=12))
    stage.start(work(bad, [1, 7]))
    spoken = {one.slot: one for one in stage.advance(20)}
    assert spoken[good].codes == expected
    assert (spoken[bad].codes, spoken[bad].ended) == ([], "error")
    assert isinstance(spoken[bad].error, EngineError)
    assert len(stage.speak([work(bad, [1, 2], min_new=26)])[0]) == 25


def test_a_turn_that_outgrows_its_slot_goes_on_from_its_previous_unit(speech, rounds):
    stage = rounds(SpeechStage(speech, 2, max_len=64))
    stage.open("chat")  # so that the slot is not the first in memory
    slot = stage.open("duplex", GREEDY)
    before: list[torch.Tensor] = []
    starts = []
    for unit in range(6):
        one = work(slot, [unit, unit + 1], seed=unit, last=False, min_new=26)
        (codes,) = stage.speak([one])
        assert len(codes) == 25
        assert one.hidden is not None
        begin = speech.marks()[1]
        rows = torch.cat((speech.condition(torch.tensor(one.ids), one.hidden), begin))
        starts.append(stage._slots[slot].length - 28)
        assert starts[-1] in (0, 28)
        assert scores_after(speech, torch.cat([*before, rows]), codes).argmax(-1).tolist() == codes
        before = [rows, speech.embed(torch.tensor(codes))]
    assert starts == [0] + [28] * 5


def test_a_chat_that_fills_its_slot_ends_there(speech, rounds):
    stage = rounds(SpeechStage(speech, 1, max_len=64))
    stage.start(work(stage.open("chat"), [1] * 30, min_new=2048))
    (spoken,) = stage.advance(100)
    # 32 condition rows and 32 fed codes; the 33rd pick is dropped.
    assert (len(spoken.codes), spoken.ended) == (32, "length")


# ---- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"slot": 5}, "slot 5"),
        ({"hidden": None}, "hidden"),
        ({"hidden": torch.zeros(2, LLM_DIM + 1)}, "hidden"),
        ({"hidden": torch.zeros(3, LLM_DIM)}, "hidden"),
        ({"ids": [1, 50]}, "50"),
        ({"ids": [-1, 2]}, "-1"),
        ({"max_new": 0}, "max_new"),
        ({"max_new": 1 << 40}, "max_new"),
        ({"min_new": -1}, "min_new"),
        ({"forced": {3: 60}}, "forced"),
    ],
)
def test_a_work_that_cannot_run_is_refused_by_name(speech, options, named):
    stage = SpeechStage(speech, 1)
    slot = stage.open("half_duplex", GREEDY)
    good = {"slot": slot, "ids": [1, 2], "hidden": torch.zeros(2, LLM_DIM)}
    with pytest.raises(RequestError, match=named):
        stage.speak([SpeechWork(**(good | options))])
    assert not stage.advance()
    assert stage.speak([SpeechWork(**good, max_new=5, min_new=5)])[0]


def test_calls_that_would_get_in_each_others_way_are_refused(speech):
    stage = SpeechStage(speech, 2, max_len=64)
    slot, other = stage.open("chat", GREEDY), stage.open("chat", GREEDY)
    with pytest.raises(RequestError, match="rule"):
        stage.open("monologue")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="two works"):
        stage.speak([work(slot, [1]), work(slot, [2])])
    with pytest.raises(ContextLengthError, match="62"):
        stage.start(work(slot, [1] * 62))
    stage.start(work(slot, [1]))
    with pytest.raises(RequestError, match="still speaking"):
        stage.start(work(slot, [2]))
    with pytest.raises(RequestError, match="other calls"):
        stage.speak([work(other, [2])])


@pytest.mark.parametrize(
    "changes", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": 0}, {"repetition_penalty": 0.0}]
)
def test_sampling_values_out_of_range_are_refused_by_name(changes):
    with pytest.raises(RequestError, match=next(iter(changes))):
        SpeechSampling(**changes)
