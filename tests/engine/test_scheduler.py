"""Scheduler invariants: pure CPU, no model, the clock is a number."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sensorium.engine.blocks import BlockPool
from sensorium.engine.encoder_cache import EncoderCacheIndex
from sensorium.engine.resident import Resident
from sensorium.engine.scheduler import Batch, Scheduler
from sensorium.engine.sequence import Sequence, Status
from sensorium.types import MediaItem, Prompt, Request, SamplingParams, Span

BLOCK = 4


def make_scheduler(blocks: int = 32, **changes) -> Scheduler:
    settings_ = {"max_num_seqs": 4, "max_num_batched_tokens": 16, "max_encoder_rows": 8, "row_bytes": 1} | changes
    cache_bytes = settings_.pop("cache_bytes", 24)
    return Scheduler(BlockPool(blocks, BLOCK), EncoderCacheIndex(cache_bytes), **settings_)


def make_seq(name: str, ids: list[int], spans: list[tuple[int, int, bytes]] = (), **kwargs) -> Sequence:
    """spans: (start, length, media key)."""
    media = tuple(MediaItem("image", key, length, {}) for _, length, key in spans)
    placed = tuple(Span(start, length, index) for index, (start, length, _) in enumerate(spans))
    resident = kwargs.pop("resident", False)
    request = Request(name, Prompt(tuple(ids), placed, media), SamplingParams(), **kwargs)
    return Resident(request, 10_000, 0.0) if resident else Sequence(request, 10_000)


def run(scheduler: Scheduler, batch: Batch, token: int = 7) -> list[str]:
    """Pretend the batch was computed; every sampling sequence gets `token`. Returns who sampled."""
    scheduler.encoder_cache.take_evicted()
    sampled = []
    for work in batch.works:
        scheduler.complete(work)
        if work.sample:
            work.seq.ids.append(token)
            sampled.append(work.seq.id)
            if isinstance(work.seq, Resident):
                work.seq.deciding = len(work.seq.ids) - 1
    return sampled


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_seq("a", list(range(40))))
    counts = []
    for _ in range(3):
        batch = scheduler.schedule(0.0)
        counts.append([(work.start, work.count, work.sample) for work in batch.works])
        run(scheduler, batch)
    assert counts == [[(0, 16, False)], [(16, 16, False)], [(32, 8, True)]]


def test_decodes_come_before_unfinished_prefills() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_seq("short", [1, 2]))
    scheduler.add(make_seq("long", list(range(60))))
    run(scheduler, scheduler.schedule(0.0))
    scheduler.running.reverse()  # the order must not depend on who came first
    batch = scheduler.schedule(0.0)
    assert [(work.seq.id, work.count) for work in batch.works] == [("short", 1), ("long", 15)]


def test_a_shared_prefix_is_computed_once() -> None:
    scheduler = make_scheduler()
    prompt = list(range(10))
    first, second = make_seq("a", prompt), make_seq("b", prompt)
    scheduler.add(first)
    run(scheduler, scheduler.schedule(0.0))
    scheduler.add(second)
    batch = scheduler.schedule(0.0)
    assert [(work.seq.id, work.start) for work in batch.works] == [("a", 10), ("b", 8)]
    assert second.blocks[:2] == first.blocks[:2]
    assert second.cached == 8


@pytest.mark.parametrize("other", [{"namespace": "other"}, {"adapter": "other"}])
def test_namespaces_and_adapters_share_nothing(other: dict) -> None:
    scheduler = make_scheduler()
    scheduler.add(make_seq("a", list(range(10))))
    run(scheduler, scheduler.schedule(0.0))
    second = make_seq("b", list(range(10)), **other)
    scheduler.add(second)
    scheduler.schedule(0.0)
    assert second.cached == 0


@pytest.mark.parametrize(("key", "start", "cached"), [(b"cat", 2, 8), (b"dog", 2, 0), (b"cat", 3, 0)])
def test_equal_ids_with_other_media_are_another_prefix(key: bytes, start: int, cached: int) -> None:
    scheduler = make_scheduler()
    scheduler.add(make_seq("a", [9] * 10, [(2, 4, b"cat")]))
    run(scheduler, scheduler.schedule(0.0))
    second = make_seq("b", [9] * 10, [(start, 4, key)])
    scheduler.add(second)
    scheduler.schedule(0.0)
    assert second.cached == cached


def test_a_chunk_stops_before_media_whose_rows_do_not_fit() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=64, cache_bytes=8)
    scheduler.add(make_seq("a", [9] * 24, [(4, 6, b"one"), (14, 6, b"two")]))
    seen = []
    while not seen or not seen[-1][-1]:
        batch = scheduler.schedule(0.0)
        work = batch.works[0]
        seen.append((work.start, work.count, [item.key for item in batch.encode], work.sample))
        run(scheduler, batch)
    assert seen == [(0, 14, [b"one"], False), (14, 10, [b"two"], True)]


def test_media_already_encoded_is_not_encoded_again() -> None:
    scheduler = make_scheduler(enable_prefix_caching=False)
    for name in ("a", "b"):
        scheduler.add(make_seq(name, [9] * 8, [(1, 4, b"cat")]))
    assert [item.key for item in scheduler.schedule(0.0).encode] == [b"cat"]


def test_media_of_a_step_decided_ahead_is_named_also_where_blocks_are_missing_for_the_step() -> None:
    """Its place is taken: whoever schedules next counts on its rows."""
    scheduler = make_scheduler(blocks=7, long_prefill_tokens=8)
    scheduler.add(make_seq("a", list(range(24)), [(10, 4, b"picture")]))
    scheduler.add(make_seq("b", list(range(50, 70))))
    batch = scheduler.schedule(0.0)
    assert [(work.seq.id, work.count) for work in batch.works] == [("a", 8), ("b", 8)]
    ahead = scheduler.follow(batch, lambda seq: False, 0.0)
    assert not ahead.works
    assert [item.key for item in ahead.encode] == [b"picture"]
    run(scheduler, batch)
    batch = scheduler.schedule(0.0)
    assert ("a", 8, 8) in [(work.seq.id, work.start, work.count) for work in batch.works]
    assert not batch.encode
    scheduler.check()


def test_the_newest_sequence_gives_way_and_recomputes() -> None:
    scheduler = make_scheduler(blocks=5, enable_prefix_caching=False)
    old, new = make_seq("old", [1] * 8), make_seq("new", [2] * 8)
    scheduler.add(old)
    scheduler.add(new)
    for _ in range(3):
        run(scheduler, scheduler.schedule(0.0))
    scheduler.check()
    for _ in range(6):
        run(scheduler, scheduler.schedule(0.0))
    assert new.status is Status.WAITING
    assert old.status is Status.RUNNING
    assert scheduler.num_preemptions >= 1
    assert new.blocks == []
    scheduler.finish(old)
    batch = scheduler.schedule(0.0)
    assert [(work.seq.id, work.start, work.count) for work in batch.works] == [("new", 0, len(new.ids))]


def test_sessions_are_served_by_deadline_and_before_requests() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=4)
    late, soon = make_seq("late", [], resident=True), make_seq("soon", [], resident=True)
    for seq, deadline in ((late, 2.0), (soon, 1.0)):
        scheduler.add(seq)
        seq.append(Prompt((1, 2, 3)), -1, deadline)
    scheduler.add(make_seq("request", [1, 2, 3]))
    batch = scheduler.schedule(0.0)
    assert [(work.seq.id, work.count) for work in batch.works] == [("soon", 3), ("late", 1)]


def test_a_session_is_never_preempted() -> None:
    scheduler = make_scheduler(blocks=4, enable_prefix_caching=False)
    session = make_seq("session", [], resident=True)
    scheduler.add(session)
    session.append(Prompt(tuple(range(8))), -1, 1.0)
    run(scheduler, scheduler.schedule(0.0))
    scheduler.add(make_seq("request", [1] * 7))
    for _ in range(4):
        run(scheduler, scheduler.schedule(0.0))
        assert session.status is Status.RESIDENT
        assert len(session.blocks) >= 2


def test_priority_orders_the_queue() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    for name, priority in (("normal", 0), ("urgent", -1), ("later", 5), ("second", 0)):
        scheduler.add(make_seq(name, [1], priority=priority))
    assert [seq.id for seq in scheduler.waiting] == ["urgent", "normal", "second", "later"]


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of add, append, step, abort, preempt and finish: nothing leaks, everybody can finish."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = make_scheduler(blocks=12, cache_bytes=24)
        self.alive: dict[str, Sequence] = {}
        self.count = 0

    @rule(length=st.integers(1, 20), media=st.integers(0, 2), shared=st.booleans(), resident=st.booleans())
    def add(self, length: int, media: int, shared: bool, resident: bool) -> None:
        if resident and any(seq.resident for seq in self.alive.values()):
            return
        self.count += 1
        spans, at = [], 0
        for index in range(media):
            if at + 4 <= length:
                spans.append((at, 4, b"shared" if shared else b"%d-%d" % (self.count, index)))
                at += 5
        token = 1 if shared else self.count + 1
        ids = [] if resident else [token] * length
        seq = make_seq(f"s{self.count}", ids, [] if resident else spans, resident=resident)
        self.alive[seq.id] = seq
        self.scheduler.add(seq)

    @precondition(lambda self: any(s.resident and len(s.ids) < 16 for s in self.alive.values()))
    @rule(length=st.integers(1, 4), deadline=st.floats(0, 10))
    def append(self, length: int, deadline: float) -> None:
        seq = next(s for s in self.alive.values() if s.resident and len(s.ids) < 16)
        seq.append(Prompt((3,) * length), -1, deadline)

    @rule()
    def step(self) -> None:
        batch = self.scheduler.schedule(0.0)
        assert batch.num_tokens <= self.scheduler.max_num_batched_tokens
        assert (
            batch.works
            or not (self.scheduler.running or self.scheduler.waiting)
            or any(seq.resident and seq.blocks for seq in self.alive.values())
        ), "work is queued and nothing runs"
        encoded = {item.key for item in batch.encode}
        assert all(key in self.scheduler.encoder_cache for key in encoded)
        ends = []
        for work in batch.works:
            for span in work.seq.spans_in(work.start, work.start + work.count):
                assert work.seq.media[span.media].key in self.scheduler.encoder_cache, "a span runs without its rows"
            assert len(work.seq.blocks) * BLOCK >= work.start + work.count
            self.scheduler.complete(work)
            if work.sample and not work.seq.resident:
                work.seq.ids.append(7)
                if work.seq.num_generated >= 5:
                    ends.append(work.seq)
        for seq in ends:
            self._end(seq)
        self.scheduler.encoder_cache.take_evicted()

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self._end(self.alive[data.draw(st.sampled_from(sorted(self.alive)))])

    @precondition(lambda self: self.scheduler.running)
    @rule()
    def preempt(self) -> None:
        self.scheduler.rewind(self.scheduler.running[-1])

    def _end(self, seq: Sequence) -> None:
        self.scheduler.finish(seq)
        del self.alive[seq.id]

    @invariant()
    def nothing_leaks(self) -> None:
        self.scheduler.check()
        queued = [*self.scheduler.waiting, *self.scheduler.running, *self.scheduler.resident]
        assert sorted(seq.id for seq in queued) == sorted(self.alive), "a request is lost"

    def teardown(self) -> None:
        for seq in [s for s in self.alive.values() if s.resident]:
            self._end(seq)
        for _ in range(1000):
            if not self.alive:
                break
            self.step()
        assert not self.alive, "a request never ends"
        self.scheduler.check()
        assert self.scheduler.pool.num_free == self.scheduler.pool.num_blocks


# 200 runs of 50 operations: 10,000 operations.
SchedulerMachine.TestCase.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
test_random_operations_leak_nothing = SchedulerMachine.TestCase


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_blocks_are_conserved(seed: int) -> None:
    rng = random.Random(seed)
    pool = BlockPool(16, BLOCK)
    held: list[list[int]] = []
    for _ in range(100):
        action = rng.random()
        if action < 0.5:
            blocks = pool.allocate(rng.randint(0, 5))
            if blocks:
                held.append(blocks)
                pool.register(blocks[0], bytes([rng.randrange(8)]))
        elif action < 0.7:
            found = pool.match([bytes([rng.randrange(8)])])
            pool.take(found)
            held.append(found)
        elif held:
            pool.release(held.pop(rng.randrange(len(held))))
        pool.check()
    for blocks in held:
        pool.release(blocks)
    assert pool.num_free == 16


def test_media_of_another_model_version_is_another_block() -> None:
    one = make_seq("a", [9] * 8, [(0, 4, b"key-1")])
    two = make_seq("b", [9] * 8, [(0, 4, b"key-2")])
    assert one.extend_hashes(BLOCK)[0] != two.extend_hashes(BLOCK)[0]
    assert np.unique([h.hex() for h in one.hashes]).size == 2
