"""Sessions in the engine: tiny models, a clock that only tests move, exact traces."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import replace

import numpy as np
import pytest
import torch
from scripted import SEEN, append, open_session, settle
from small import drive, image, prompt, request, sound, tokens

from sensorium.engine.blocks import BlockPool
from sensorium.engine.encoder_cache import EncoderCacheIndex
from sensorium.engine.protocol import Abort, BargeIn, CloseSession, PauseSession, RewindSession
from sensorium.engine.resident import Resident
from sensorium.engine.scheduler import Scheduler
from sensorium.kernels import reference
from sensorium.layers.rope import Rope
from sensorium.layers.rope_config import RopeConfig
from sensorium.types import (
    Failed,
    Finished,
    Prompt,
    Request,
    SamplingParams,
    SessionOpened,
    Span,
    TextDelta,
    UnitDone,
    UnitFailed,
    UnitPart,
)


def joined(*parts: Prompt) -> Prompt:
    ids, spans, media = [], [], []
    for part in parts:
        spans += [replace(span, start=span.start + len(ids), media=span.media + len(media)) for span in part.spans]
        ids += part.ids
        media += part.media
    return Prompt(tuple(ids), tuple(spans), tuple(media))


def plain(*ids: int) -> Prompt:
    return Prompt(ids)


def alone(engine, made: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [V] and hidden [E] of the last row of a prompt that nothing else is computed with."""
    kept = []
    choose = engine.runner.readout.choose

    def spy(seqs, logits, hidden, likeliest=None):
        kept.append((logits[0].clone(), hidden[0].clone()))
        return choose(seqs, logits, hidden, likeliest)

    engine.runner.readout.choose = spy
    drive(engine, request("alone", made, max_tokens=1))
    return kept[-1]


def ends(events) -> list[UnitDone]:
    return [event for event in events if isinstance(event, UnitDone)]


OPENING, FIRST, SECOND = prompt("You are a guide."), prompt("one ", image(1)), prompt("two ", sound(2))


# ---- a unit is the same rows as in one plain prompt ------------------------------------------------------------------


def test_every_decision_sees_the_logits_of_the_same_rows_in_one_prompt(make_engine) -> None:
    engine = make_engine()
    open_session(engine, request("s", OPENING), name="same", return_hidden=True)
    append(engine, "s", 0, FIRST, say=[70, 71, 72], close=[73, 74])
    append(engine, "s", 1, SECOND, say=[75], close=[76])
    first, second = ends(settle(engine))
    rows = [OPENING, FIRST, plain(70), plain(71), plain(72)]
    later = [*rows, plain(73, 74), SECOND, plain(75)]
    wholes = [joined(*rows[:n]) for n in (2, 3, 4, 5)] + [joined(*later[:n]) for n in (7, 8)]
    assert len(SEEN["same"]) == len(wholes)
    for seen, whole in zip(SEEN["same"], wholes, strict=True):
        logits, _ = alone(make_engine(), whole)
        torch.testing.assert_close(seen, logits, atol=2e-5, rtol=2e-5)
    assert (first.ids, first.text, first.info) == ((71, 72), "GH", {"fed": 3})
    assert (second.ids, second.num_tokens) == ((), len(joined(*later).ids) + 1)
    hidden = torch.stack([alone(make_engine(), joined(*rows[:n]))[1] for n in (4, 5)])
    torch.testing.assert_close(torch.from_numpy(first.hidden), hidden, atol=2e-5, rtol=2e-5)
    assert second.hidden.shape == (0, hidden.shape[1])


def test_parts_of_a_unit_are_told_when_the_policy_flushes(make_engine) -> None:
    engine = make_engine()
    open_session(engine, request("s", OPENING), return_hidden=True)
    append(engine, "s", 0, FIRST, say=[70, 71, 72, 73, 74, 75], flush=[3, 5])
    events = settle(engine)
    parts, (done,) = [event for event in events if isinstance(event, UnitPart)], ends(events)
    assert [part.ids for part in parts] == [(71, 72), (73, 74)]
    np.testing.assert_array_equal(np.concatenate([part.hidden for part in parts]), done.hidden[:4])
    assert done.ids == (71, 72, 73, 74, 75)
    append(engine, "s", 1, SECOND, say=[80, 81], flush=[1])
    assert [event.ids for event in settle(engine) if isinstance(event, UnitPart | UnitDone)] == [(), (81,)]


def test_rows_behind_the_deciding_one_are_fed_before_what_it_decides(make_engine) -> None:
    engine = make_engine(max_num_batched_tokens=16)
    unit = joined(FIRST, prompt("text"))
    open_session(engine, request("s", OPENING), name="behind")
    append(engine, "s", 0, unit, say=[70], deciding=len(FIRST.ids) - 1)
    settle(engine)
    asked, followed = SEEN["behind"]
    torch.testing.assert_close(asked, alone(make_engine(), joined(OPENING, FIRST))[0], atol=2e-5, rtol=2e-5)
    whole = joined(OPENING, unit, plain(70))
    torch.testing.assert_close(followed, alone(make_engine(), whole)[0], atol=2e-5, rtol=2e-5)


def test_a_unit_in_which_nothing_is_decided_only_adds_rows(make_engine) -> None:
    engine = make_engine()
    open_session(engine, request("s", plain()), name="fed")
    append(engine, "s", 0, FIRST, deciding=None)
    opened, done = settle(engine)
    assert opened == SessionOpened("s", 0)
    assert (done.ids, done.num_tokens, done.timings.decided_s) == ((), len(FIRST.ids), None)
    append(engine, "s", 1, SECOND)
    settle(engine)
    torch.testing.assert_close(SEEN["fed"][-1], alone(make_engine(), joined(FIRST, SECOND))[0], atol=2e-5, rtol=2e-5)


def test_closing_ids_wait_for_the_next_unit_unless_they_are_wanted_at_once(make_engine) -> None:
    engine = make_engine()
    for defer, computed in ((True, -2), (False, 0)):
        open_session(engine, request(f"s{defer}", OPENING))
        append(engine, f"s{defer}", 0, FIRST, close=[73, 74], defer=defer)
        settle(engine)
        seq = engine.scheduler.resident[-1]
        assert seq.computed - len(seq.ids) == computed


def test_the_policy_turn_says_what_a_request_says(make_engine) -> None:
    sampling = {"temperature": 0.9, "top_p": 0.9, "seed": 5, "max_tokens": 6}
    expected = tokens(drive(make_engine(), request("r", joined(OPENING, FIRST), **sampling))["r"])
    engine = make_engine()
    open_session(engine, request("s", OPENING, **sampling), policy="turn")
    append(engine, "s", 0, FIRST)
    events = settle(engine)
    (done,) = ends(events)
    assert list(done.ids) == tokens(events) == expected
    assert done.info == {"reason": "length"}
    assert done.text == "".join(event.text for event in events if isinstance(event, TextDelta))


# ---- together --------------------------------------------------------------------------------------------------------


def test_sessions_and_requests_in_one_engine_say_what_each_says_alone(make_engine) -> None:
    def session(engine, n: int) -> None:
        name = f"s{n}"
        open_session(engine, request(name, prompt(f"guide {n}")), name=name)
        for index in range(3):
            made = prompt(f"unit {index} ", *((image(n),) if (n + index) % 3 == 0 else ()))
            append(engine, name, index, made, deadline_s=1.0 + (n * 7 % 5), greedy=1 + (n + index) % 4, close=[300])

    def said(events, name: str) -> list:
        own = [event for event in events if event.request_id == name]
        return [(event.index, event.ids, event.num_tokens) for event in ends(own)]

    together = make_engine(max_num_batched_tokens=96)
    requests = [request(f"r{n}", prompt(f"question {n}", sound(n)), max_tokens=9) for n in range(4)]
    together.inbox.extend(requests)
    for n in range(8):
        session(together, n)
    events = settle(together)
    logits = {name: list(rows) for name, rows in SEEN.items()}
    for n in range(8):
        own = make_engine()
        session(own, n)
        assert said(settle(own), f"s{n}") == said(events, f"s{n}")
        torch.testing.assert_close(logits[f"s{n}"], SEEN[f"s{n}"], atol=5e-5, rtol=5e-5)
    for one in requests:
        own = tokens(drive(make_engine(), one)[one.id])
        assert own == tokens(event for event in events if event.request_id == one.id)
    together.scheduler.check()


def test_decodes_of_sessions_and_requests_share_steps(make_engine) -> None:
    engine = make_engine()
    for n in range(3):
        open_session(engine, request(f"s{n}", OPENING))
        append(engine, f"s{n}", 0, prompt("talk"), greedy=8)
    engine.inbox.append(request("r", prompt("question"), max_tokens=8))
    batches = []
    run = engine.runner.run
    engine.runner.run = lambda batch, *then: batches.append(len(batch.works)) or run(batch, *then)
    settle(engine)
    assert batches.count(4) >= 6
    assert len(batches) < 15


def test_the_earliest_deadline_is_served_first(make_engine) -> None:
    engine = make_engine(max_num_batched_tokens=24)
    for name in ("late", "soon"):
        open_session(engine, request(name, plain()))
    settle(engine)
    append(engine, "late", 0, plain(*range(20)), deadline_s=2.0)
    append(engine, "soon", 0, plain(*range(20)), deadline_s=1.0)
    engine.inbox.append(request("r", plain(*range(20)), max_tokens=1))
    order = []
    while engine.has_work:
        engine.clock.now_s += 0.25
        order += [event for event in engine.step() if isinstance(event, UnitDone | Finished)]
    assert [event.request_id for event in order] == ["soon", "late", "r"]
    assert [event.timings.lateness_s for event in order[:2]] == [0.0, 0.0]


def test_a_request_gives_way_to_a_session_and_never_the_other_way(make_engine) -> None:
    engine = make_engine(num_blocks=20, enable_prefix_caching=False, max_model_len=160)
    open_session(engine, request("s", OPENING))
    for name in ("q", "r"):
        engine.inbox.append(request(name, plain(*range(1, 100)), max_tokens=40))
    for index in range(4):
        append(engine, "s", index, plain(*range(1, 25)), greedy=1)
    events = settle(engine)
    assert len(ends(events)) == 4
    assert engine.scheduler.num_preemptions > 0
    for name in ("q", "r"):
        assert len(tokens(event for event in events if event.request_id == name)) == 40
    engine.scheduler.check()


# ---- time ------------------------------------------------------------------------------------------------------------


def test_lateness_and_times_are_measured_from_arrival_and_deadline(make_engine) -> None:
    engine = make_engine()
    open_session(engine, request("s", plain()))
    settle(engine)
    append(engine, "s", 0, prompt("go"), deadline_s=2.0, say=[70, 71])
    events = []
    while engine.has_work:
        engine.clock.now_s += 1.5
        events += engine.step()
    timings = ends(events)[0].timings
    assert (timings.queue_s, timings.decided_s, timings.total_s, timings.lateness_s) == (1.5, 1.5, 4.5, 2.5)


def test_a_paused_session_computes_nothing_and_goes_on_where_it_was(make_engine) -> None:
    engine = make_engine()
    open_session(engine, request("s", OPENING))
    append(engine, "s", 0, FIRST, greedy=6)
    for _ in range(4):
        engine.step()
    engine.inbox.append(PauseSession("s", True))
    append(engine, "s", 1, SECOND, greedy=2)
    assert settle(engine) == []
    held = engine.scheduler.pool.num_free
    engine.inbox.append(PauseSession("s", False))
    done = ends(settle(engine))
    assert [one.index for one in done] == [0, 1]
    assert engine.scheduler.pool.num_free <= held
    free = make_engine()
    open_session(free, request("s", OPENING))
    append(free, "s", 0, FIRST, greedy=6)
    append(free, "s", 1, SECOND, greedy=2)
    assert [one.ids for one in ends(settle(free))] == [one.ids for one in done]


def test_units_are_counted_by_how_they_end_and_where_their_time_went(make_engine) -> None:
    engine = make_engine()
    open_session(engine, request("s", plain()), max_units=2)
    settle(engine)
    assert (engine.stats.sessions, engine.stats.units_done) == (1, 0)
    append(engine, "s", 0, prompt("go"), deadline_s=2.0, say=[70, 71])
    append(engine, "s", 1, prompt("on"), deadline_s=9.0, say=[70])
    append(engine, "s", 2, prompt("on"), deadline_s=9.0, refuse=True)
    append(engine, "s", 3, prompt("too many"))
    engine.clock.now_s += 1.5
    engine.step()
    assert (engine.stats.units_waiting, engine.stats.units_failed) == (2, 1)
    while engine.has_work:
        engine.clock.now_s += 1.5
        engine.step()
    stats = engine.stats
    assert (stats.units_done, stats.units_late, stats.units_failed, stats.units_waiting) == (2, 1, 2, 0)
    assert {stage: sum(buckets.counts) for stage, buckets in stats.unit_s.items()} == dict.fromkeys(
        ("queue", "prefill", "decode", "total"), 2
    )
    assert sum(stats.unit_s[stage].sum for stage in ("queue", "prefill", "decode")) == stats.unit_s["total"].sum
    assert stats.step_s.keys() >= {"control", "schedule", "encode", "run", "advance", "count"}
    assert stats.device_s.keys() >= {"prefill", "decode", "choose"}
    append(engine, "s", 4, prompt("talk"), greedy=50)
    for _ in range(3):
        engine.step()
    engine.inbox.append(BargeIn("s", 1))
    engine.inbox.append(BargeIn("s", 1))
    engine.inbox.append(Abort("s"))
    settle(engine)
    assert (engine.stats.barge_ins, engine.stats.sessions, engine.stats.units_done) == (1, 0, 3)


def test_rows_of_sessions_that_change_together_move_together(make_engine) -> None:
    def talk(engine, name: str) -> None:
        open_session(engine, request(name, prompt(f"You are {name}, a guide.")), name=name)
        append(engine, name, 0, prompt("one two three"), say=[70], defer=False, close=[71], splices=[(9, 20, [])])
        append(engine, name, 1, prompt("four"), say=[72], splices=[(4, 9, [1, 2])], defer=False)
        append(engine, name, 2, prompt("five"), greedy=3)

    alone = {}
    for n in range(5):
        engine = make_engine(enable_prefix_caching=False)
        talk(engine, f"s{n}")
        alone[f"s{n}"] = ends(settle(engine))[-1].ids
    engine, moved = make_engine(enable_prefix_caching=False), []
    move = engine.runner.move_rows
    engine.runner.move_rows = lambda moves: moved.append(len(moves.sources)) or move(moves)
    for name in alone:
        talk(engine, name)
    together = {done.request_id: done.ids for done in ends(settle(engine)) if done.index == 2}
    assert together == alone
    assert len(moved) == 2
    engine.scheduler.check()


# ---- endings ---------------------------------------------------------------------------------------------------------


def test_a_barge_in_ends_the_unit_and_begins_a_turn(make_engine) -> None:
    engine = make_engine()
    open_session(engine, request("s", OPENING), name="barged", return_hidden=True)
    append(engine, "s", 0, prompt("talk"), greedy=50)
    events = [event for _ in range(6) for event in engine.step()]
    said = tokens(events)
    engine.inbox.append(BargeIn("s", 1, {"close": [77]}))
    (done,) = settle(engine)
    assert (done.interrupted, done.turn, list(done.ids)) == (True, 0, said)
    assert len(done.hidden) == len(said) - 1
    engine.inbox.append(BargeIn("s", 1))  # the same once more is no other turn
    append(engine, "s", 1, prompt("again"), say=[70, 71])
    events = settle(engine)
    assert {event.turn for event in events} == {1}
    fed = tuple(engine.scheduler.resident[0].ids)
    torch.testing.assert_close(SEEN["barged"][-1], alone(make_engine(), Prompt(fed))[0], atol=2e-5, rtol=2e-5)
    assert fed[len(OPENING.ids) + len(prompt("talk").ids) + 1 + len(said)] == 77


def test_a_closed_session_ends_after_its_units_and_an_aborted_one_now(make_engine) -> None:
    for message, reason, count in ((CloseSession("s"), "stop", 2), (Abort("s"), "abort", 0)):
        engine = make_engine()
        open_session(engine, request("s", OPENING))
        append(engine, "s", 0, FIRST, greedy=3)
        append(engine, "s", 1, SECOND, greedy=3)
        engine.inbox.append(message)
        events = settle(engine)
        assert (events[-1].reason, len(ends(events))) == (reason, count)
        assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks
        assert engine.scheduler.encoder_cache.num_holds == 0
        assert not engine.sessions
        engine.scheduler.check()


def test_a_unit_too_many_fails_alone(make_engine) -> None:
    engine = make_engine()
    open_session(engine, request("s", OPENING), max_units=2)
    for index in range(4):
        append(engine, "s", index, prompt("more"), greedy=1)
    events = settle(engine)
    assert [(e.index, e.code) for e in events if isinstance(e, UnitFailed)] == [(2, "overloaded"), (3, "overloaded")]
    assert [one.index for one in ends(events)] == [0, 1]


@pytest.mark.parametrize(
    ("made", "options", "code"),
    [
        (replace(prompt("more"), positions=np.zeros((3, 9), dtype=np.int64)), {}, "unsupported"),
        (plain(*[1] * 400), {}, "context_length_exceeded"),
        (prompt("more"), {"refuse": True}, "invalid_request"),
        (prompt("broken", replace(image(3), arrays={})), {}, "engine_error"),
    ],
)
def test_a_unit_that_cannot_be_carried_out_leaves_the_session_as_it_was(make_engine, made, options, code) -> None:
    def run(bad: bool) -> tuple:
        engine = make_engine()
        open_session(engine, request("s", OPENING), max_len=300, name="refused")
        append(engine, "s", 0, FIRST, say=[70, 71], close=[72])
        if bad:
            append(engine, "s", 1, made, **options)
        append(engine, "s", 2, SECOND, say=[73])
        events = settle(engine)
        engine.scheduler.check()
        return [e.code for e in events if isinstance(e, UnitFailed)], ends(events)[-1], SEEN["refused"][-1]

    codes, done, logits = run(True)
    _, other, expected = run(False)
    assert codes == [code]
    assert done.num_tokens == other.num_tokens
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=2e-5)


def test_a_policy_that_fails_ends_its_session_and_no_other(make_engine) -> None:
    engine = make_engine()
    for name in ("good", "bad"):
        open_session(engine, request(name, OPENING))
    append(engine, "good", 0, FIRST, greedy=3)
    append(engine, "bad", 0, FIRST, **{"raise": True})
    events = settle(engine)
    assert [(e.request_id, e.code) for e in events if isinstance(e, Failed)] == [("bad", "engine_error")]
    assert [e.request_id for e in ends(events)] == ["good"]
    engine.scheduler.check()


def test_an_unknown_policy_or_option_is_refused_by_name(make_engine) -> None:
    engine = make_engine()
    open_session(engine, request("a", OPENING), policy="nonsense")
    open_session(engine, request("b", OPENING), options={"wings": 2})
    open_session(engine, request("c", OPENING, stop=("x",)), policy="turn")
    failed = settle(engine)
    assert [(e.code, e.param) for e in failed] == [
        ("invalid_request", "policy"),
        ("invalid_request", "wings"),
        ("unsupported", "stop"),
    ]
    assert not engine.sessions


def test_an_engine_that_ends_fails_each_session_once(make_engine) -> None:
    engine = make_engine()
    open_session(engine, request("s", OPENING))
    append(engine, "s", 0, FIRST, greedy=20)
    for _ in range(4):
        engine.step()
    open_session(engine, request("t", OPENING))
    failed = engine.fail_all("gone")
    assert sorted((event.request_id, event.code) for event in failed) == [("s", "engine_dead"), ("t", "engine_dead")]
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks


# ---- rows that change ------------------------------------------------------------------------------------------------


def test_a_rewound_session_is_as_if_the_later_units_had_not_been(make_engine) -> None:
    engine = make_engine()
    open_session(engine, request("s", OPENING), name="rewound")
    append(engine, "s", 0, FIRST, say=[70, 71])
    append(engine, "s", 1, prompt("a guess", image(5)), say=[72] * 20)
    engine.inbox.append(RewindSession("s", 0))
    append(engine, "s", 2, SECOND)
    settle(engine)
    whole = joined(OPENING, FIRST, plain(70, 71), SECOND)
    torch.testing.assert_close(SEEN["rewound"][-1], alone(make_engine(), whole)[0], atol=2e-5, rtol=2e-5)
    engine.scheduler.check()
    engine.inbox.append(RewindSession("s", 1))
    (failed,) = settle(engine)
    assert (failed.code, "unit 1" in failed.message) == ("invalid_request", True)


def keys_and_values(engine, layer: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[count, K, D] each, of the only session."""
    (seq,) = engine.scheduler.resident
    size = engine.runner.block_size
    slots = torch.tensor([seq.blocks[row // size] * size + row % size for row in range(count)])
    keys, values = engine.runner.kv[layer].view(2, -1, *engine.runner.kv[layer].shape[3:])
    return keys[slots], values[slots]


@pytest.mark.parametrize(("start", "stop"), [(16, 32), (18, 21), (5, 70), (17, 33)])
@pytest.mark.parametrize("ids", [[], [90, 91, 92, 93, 94]])
def test_rows_behind_a_splice_keep_their_values_and_turn_their_keys(make_engine, start, stop, ids) -> None:
    # In the first layer keys and values depend on their own row alone: what moved must equal what is computed anew.
    engine = make_engine(max_num_batched_tokens=24)
    open_session(engine, request("s", OPENING))
    append(engine, "s", 0, FIRST, say=[70, 71], splices=[[start, stop, ids]])
    settle(engine)
    (seq,) = engine.scheduler.resident
    whole = joined(OPENING, FIRST, plain(70, 71))
    assert seq.ids == [*whole.ids[:start], *ids, *whole.ids[stop:]]
    spans = [Span(s.start + len(ids) - (stop - start), s.length, s.media) for s in whole.spans if s.start >= stop]
    if any(s.start < stop and s.stop > start for s in whole.spans):
        spans = None
    else:
        spans += [s for s in whole.spans if s.stop <= start]
    moved = keys_and_values(engine, 0, seq.computed)
    other = make_engine()
    open_session(other, request("s", Prompt(tuple(seq.ids), tuple(spans or ()), whole.media if spans else ())))
    settle(other)
    fresh = keys_and_values(other, 0, seq.computed)
    for ours, theirs in zip(moved, fresh, strict=True):
        if spans is not None:
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)
        else:  # part of a picture was cut out: its rows are no tokens that a prompt could hold
            kept = slice(seq.computed - 5, None)
            torch.testing.assert_close(ours[kept], theirs[kept], atol=2e-5, rtol=2e-5)
    engine.scheduler.check()


def test_rows_computed_anew_see_what_lies_before_and_nothing_behind(make_engine) -> None:
    engine = make_engine(max_num_batched_tokens=4)
    open_session(engine, request("s", OPENING))
    append(engine, "s", 0, prompt("some words"), say=[70], splices=[[10, 14, [90, 91, 92, 93, 94, 95]]])
    settle(engine)
    (seq,) = engine.scheduler.resident
    other = make_engine()
    open_session(other, request("s", Prompt(tuple(seq.ids))))
    settle(other)
    for layer in (0, 1):
        for ours, theirs in zip(keys_and_values(engine, layer, 16), keys_and_values(other, layer, 16), strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)


def test_a_splice_leaves_the_blocks_of_others_alone(make_engine) -> None:
    engine = make_engine()
    opening = prompt("You are a guide through a long and winding opening.")
    expected = tokens(drive(make_engine(), request("r", opening))["r"])
    for name in ("one", "two"):
        open_session(engine, request(name, opening))
        settle(engine)
    first, second = engine.scheduler.resident
    assert first.blocks[:2] == second.blocks[:2]
    for name, cut in (("one", [3, 20, []]), ("two", [20, 30, [1, 2]])):
        append(engine, name, 0, prompt("go"), splices=[cut])
        settle(engine)
        engine.scheduler.check()
    assert tokens(drive(engine, request("r", opening))["r"]) == expected
    assert tokens(drive(engine, request("q", opening))["q"]) == expected


def test_keys_in_half_precision_turn_as_exactly_as_they_are_kept() -> None:
    rope = Rope(RopeConfig(64, 1_000_000.0, {}, 40_960))
    raw = torch.randn(400, 2, 64, generator=torch.Generator().manual_seed(1))
    before, after = torch.arange(39_000, 39_400), torch.arange(120, 520)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        cos, sin = rope(before, torch.float32)
        kept = reference.rope(raw, cos, sin).to(dtype)
        cos, sin = rope(after, torch.float32)
        turned = rope.turn(before, after)(kept)
        assert turned.dtype == dtype
        torch.testing.assert_close(turned.float(), reference.rope(raw, cos, sin), atol=tolerance, rtol=tolerance)


def test_many_units_leave_nothing_behind(make_engine) -> None:
    engine = make_engine()
    open_session(engine, request("s", OPENING), max_len=400)
    start, lengths = len(OPENING.ids), deque()
    for index in range(120):
        made = prompt(f"{index} ", *((image(index),) if index % 10 == 0 else ()))
        splices = [[start, start + lengths.popleft(), []]] if len(lengths) > 2 else []
        append(engine, "s", index, made, say=[70, 71], close=[72], splices=splices, defer=index % 2 == 0)
        assert isinstance(settle(engine)[-1], UnitDone)
        lengths.append(len(made.ids) + 3)
        (seq,) = engine.scheduler.resident
        assert len(seq.ids) == start + sum(lengths)
        assert len(seq.blocks) <= engine.scheduler.pool.blocks_for(len(seq.ids))
        assert (seq.spans, seq.media, seq.holes) == ([], [], [])
        engine.scheduler.check()
    engine.inbox.append(Abort("s"))
    settle(engine)
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks


class Slots:
    """What each slot of a KV cache holds, as (token, position), for schedules without a model."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.held: dict[int, tuple[int, int]] = {}

    def slot(self, seq: Resident, row: int) -> int:
        size = self.scheduler.pool.block_size
        return seq.blocks[row // size] * size + row % size

    def compute(self) -> None:
        for _ in range(100):
            batch = self.scheduler.schedule(0.0)
            if not batch.works:
                return
            for work in batch.works:
                for row in range(work.start, work.start + work.count):
                    self.held[self.slot(work.seq, row)] = (work.seq.ids[row], row)
                self.scheduler.complete(work)
        raise AssertionError("there is always something to compute")

    def splice(self, seq: Resident, start: int, stop: int, ids: list[int]) -> None:
        moves = self.scheduler.splice(seq, start, stop, ids)
        if moves is None:
            return
        # Rows that are to be computed anew move too, whatever their slots hold.
        read = [self.held.get(slot, (-1, -1)) for slot in moves.sources.tolist()]
        by = (moves.after - moves.before).tolist()
        for (token, row), target, distance in zip(read, moves.targets.tolist(), by, strict=True):
            self.held[target] = (token, row + distance)


@pytest.mark.parametrize("seed", range(20))
def test_any_splices_keep_each_row_with_its_token(seed: int) -> None:
    rng = random.Random(seed)
    pool = BlockPool(60, 4)
    scheduler = Scheduler(
        pool, EncoderCacheIndex(100), max_num_seqs=4, max_num_batched_tokens=9, max_encoder_rows=8, row_bytes=1
    )
    slots = Slots(scheduler)
    seqs = [Resident(Request(f"s{n}", Prompt(tuple(range(18))), SamplingParams()), 1000, 0.0) for n in range(3)]
    for seq in seqs:
        scheduler.add(seq)
        slots.compute()
    for number in range(60):
        seq = rng.choice(seqs)
        length = len(seq.ids)
        if length < 40 and rng.random() < 0.6:
            seq.append(Prompt(tuple(range(100 + number, 100 + number + rng.randrange(1, 9)))), None, 1.0)
            seq.is_idle = rng.random() < 0.3
        else:
            start = rng.randrange(length + 1)
            stop = rng.randrange(start, length + 1)
            slots.splice(seq, start, stop, [rng.randrange(1000) for _ in range(rng.randrange(6))])
        if rng.random() < 0.7:
            slots.compute()
        scheduler.check()
        for one in seqs:
            open_rows = {row for start, stop in one.holes for row in range(start, stop)}
            for row in set(range(one.computed)) - open_rows:
                assert slots.held[slots.slot(one, row)] == (one.ids[row], row)
    for seq in seqs:
        scheduler.finish(seq)
    scheduler.check()
    assert pool.num_free == pool.num_blocks
