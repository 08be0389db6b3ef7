"""Decides what one step computes.

There is no prefill phase and no decode phase: every sequence has known and computed tokens, and a step hands out a
budget of tokens to let the computed ones catch up. Order: sessions by deadline, running sequences, waiting ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sensorium.engine.blocks import BlockPool
from sensorium.engine.encoder_cache import EncoderCacheIndex
from sensorium.engine.pace import Pace
from sensorium.engine.resident import Resident, RowMoves
from sensorium.engine.sequence import Sequence, Status
from sensorium.errors import OverloadedError
from sensorium.types import MediaItem


@dataclass(frozen=True, slots=True)
class Work:
    """Compute tokens [start, start + count) of a sequence, and sample the next one: after the last, that is its known
    end, or for a session after the row that decides."""

    seq: Sequence
    start: int
    count: int
    sample: bool


@dataclass(slots=True)
class Batch:
    """One step: media to encode first, then packed work."""

    works: list[Work] = field(default_factory=list[Work])
    encode: list[MediaItem] = field(default_factory=list[MediaItem])
    is_encoded: bool = False
    """Whether that was done when the step was decided, while the one before it ran."""

    @property
    def num_tokens(self) -> int:
        return sum(work.count for work in self.works)


@dataclass(slots=True)
class _Budget:
    tokens: int
    rows: int
    prompts: int
    encode: dict[bytes, MediaItem] = field(default_factory=dict[bytes, MediaItem])
    ahead: bool = False
    """Whether the step before is not over."""
    is_short: bool = False
    """Whether blocks are missing that only the end of the step before can give."""

    @property
    def left(self) -> int:
        """For prompts."""
        return min(self.tokens, self.prompts)


class Scheduler:
    """Owns the queues. Counts in tokens; `row_bytes` is the size of one media embedding on the device."""

    def __init__(
        self,
        pool: BlockPool,
        encoder_cache: EncoderCacheIndex,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_encoder_rows: int,
        row_bytes: int,
        enable_prefix_caching: bool = True,
        enable_chunked_prefill: bool = True,
        split_media: bool = True,
        long_prefill_tokens: int = 0,
        pace: Pace | None = None,
    ) -> None:
        """split_media: whether a step may end inside a media item. long_prefill_tokens: EngineConfig's threshold.
        pace: bounds prompts beside decodes; it needs chunked prefill and media that may be split."""
        self.pool = pool
        self.encoder_cache = encoder_cache
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_encoder_rows = max_encoder_rows
        self.row_bytes = row_bytes
        self.enable_prefix_caching = enable_prefix_caching
        self.enable_chunked_prefill = enable_chunked_prefill
        self.split_media = split_media
        self.long_prefill_tokens = long_prefill_tokens
        self.pace = pace
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.resident: list[Resident] = []
        self.reset_counters()
        self._held: dict[str, set[bytes]] = {}
        self._before: dict[str, Work] = {}
        """While a step is decided before the last one is over: the works of that."""

    def reset_counters(self) -> None:
        self.num_preemptions = 0
        self.prefix_query_tokens = self.prefix_hit_tokens = 0
        self.encoder_cache_queries = self.encoder_cache_hits = 0

    # ---- what the engine tells it ----------------------------------------------------------------------------------

    def add(self, seq: Sequence) -> None:
        """Queue a sequence; higher priority numbers wait behind lower ones, as in vLLM."""
        if isinstance(seq, Resident):
            self._add_resident(seq)
            return
        at = len(self.waiting)
        while at > 0 and self.waiting[at - 1].request.priority > seq.request.priority:
            at -= 1
        self.waiting.insert(at, seq)

    def finish(self, seq: Sequence) -> None:
        """Take a sequence out, wherever it is, and free what it holds. Safe to call twice."""
        if seq.status is Status.FINISHED:
            return
        queues: dict[Status, deque[Sequence] | list[Sequence] | list[Resident]] = {
            Status.WAITING: self.waiting,
            Status.RUNNING: self.running,
            Status.RESIDENT: self.resident,
        }
        queues[seq.status].remove(seq)  # pyright: ignore
        self._free(seq)
        seq.status = Status.FINISHED

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running or any(seq.is_due for seq in self.resident))

    # ---- one step --------------------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> Batch:
        """The next step's batch. Empty only if nothing can run."""
        budget = _Budget(self.max_num_batched_tokens, self.max_encoder_rows, self.max_num_batched_tokens)
        works: list[Work] = []
        for seq in self._due():
            if budget.tokens > 0 and (work := self._resident_work(seq, budget, now_s)) is not None:
                works.append(work)
        self._catch_up(budget, works, self._by_urgency(budget), now_s)
        if not works and len(self.running) > 1:
            # Every running sequence waits for media rows whose place the others hold: the newest steps back.
            self.rewind(self.running[-1])
            return self.schedule(now_s)
        return self._batch(works, budget)

    def follow(self, batch: Batch, ends: Callable[[Sequence], bool], now_s: float) -> Batch:
        """What the next step computes, decided while this one is on the device; no works where that is to be awaited.

        Of a sequence that samples in this step the next token is taken as there, unless it `ends` with it. Sequences
        get blocks and start as they do by `schedule`, but none is preempted. What the batch names is to be encoded
        in any case: places for it are taken.
        """
        works = batch.works
        if any(work.seq.resident for work in works) or any(seq.is_due for seq in self.resident):
            return Batch()
        if self.resident and (self.waiting or len(works) < len(self.running) or any(work.count > 1 for work in works)):
            return Batch()  # the next unit of a session is not to wait for two steps with prompts
        budget = _Budget(self.max_num_batched_tokens, self.max_encoder_rows, self.max_num_batched_tokens, ahead=True)
        self._before = {work.seq.id: work for work in works}
        try:
            found: list[Work] = []
            self._catch_up(budget, found, self._by_urgency(budget, ends), now_s)
            return self._batch([] if budget.is_short else found, budget)
        finally:
            self._before = {}

    def _catch_up(self, budget: _Budget, works: list[Work], seqs: list[Sequence], now_s: float) -> None:
        """Hand the budget out to `seqs`, which run, and to waiting ones."""
        scheduled: set[str] = set()
        for seq in seqs:
            if budget.tokens == 0:
                break
            if seq.status is Status.WAITING:  # preempted by an earlier one in this very step
                continue
            start, left = self._progress(seq)
            count = self._admit(seq, start, left, budget)
            if count and not self._grow(seq, start + count, None if budget.ahead else scheduled):
                budget.is_short = budget.ahead
                count = 0
            if budget.is_short:
                return
            if count:
                works.append(self._work(seq, start, count, left, budget, now_s))
                scheduled.add(seq.id)
        self._start_waiting(budget, works, now_s)

    def _by_urgency(self, budget: _Budget, ends: Callable[[Sequence], bool] | None = None) -> list[Sequence]:
        """Decodes, then unfinished prefills, whose share of the budget is settled here."""
        decodes: list[Sequence] = []
        prefills: list[Sequence] = []
        for seq in self.running:
            if ends is not None and (work := self._before.get(seq.id)) is not None and work.sample and ends(seq):
                continue
            (decodes if self._progress(seq)[1] == 1 else prefills).append(seq)
        if decodes and self.pace is not None:
            waiting = sum(self._progress(seq)[1] for seq in prefills) + sum(len(seq.ids) for seq in self.waiting)
            budget.prompts = self.pace.prompt_tokens(len(decodes), waiting)
        return [*decodes, *prefills]

    def _progress(self, seq: Sequence) -> tuple[int, int]:
        """Where its next work begins, and how many tokens it has from there, that of the step before among them."""
        work = self._before.get(seq.id) if self._before else None
        if work is None:
            return seq.computed, len(seq.ids) - seq.computed
        start = work.start + work.count
        return start, len(seq.ids) + work.sample - start

    def _due(self) -> list[Resident]:
        """Sessions with something to compute, earliest deadline first."""
        due = [seq for seq in self.resident if seq.is_due]
        due.sort(key=lambda seq: seq.deadline_s)
        return due

    def _start_waiting(self, budget: _Budget, works: list[Work], now_s: float) -> None:
        at = 0
        while at < len(self.waiting) and budget.left > 0 and len(self.running) + at < self.max_num_seqs:
            seq = self.waiting[at]
            hit = self._match_prefix(seq)
            if self._soon_cached(seq, len(hit)):
                at += 1
                continue
            needed = self.pool.blocks_for(len(seq.ids)) - len(hit) + self.pool.num_idle(hit)
            # A sequence enters only if all its known tokens fit now: half a prefill would only be preempted again.
            if needed > self.pool.num_free:
                break
            computed = len(hit) * self.pool.block_size
            seq.computed = computed
            left = len(seq.ids) - computed
            count = self._admit(seq, computed, left, budget)
            if count == 0:
                seq.computed = 0
                break
            del self.waiting[at]
            self.pool.take(hit)
            seq.blocks = list(hit)
            seq.num_registered = len(hit)
            if seq.num_generated == 0:
                seq.cached = computed
            if seq.first_scheduled_s is None and self._uses_prefixes(seq):
                self.prefix_query_tokens += len(seq.ids)
                self.prefix_hit_tokens += computed
            seq.status = Status.RUNNING
            self.running.append(seq)
            fits = self._grow(seq, computed + count, set())
            assert fits, "blocks were counted as free a moment ago"
            works.append(self._work(seq, computed, count, left, budget, now_s))

    def took(self, batch: Batch, seconds: float) -> None:
        """How long the batch took, for those who listen to its streams."""
        if self.pace is not None:
            counts = [work.count for work in batch.works if not work.seq.resident]
            decodes, tokens = counts.count(1), sum(counts)
            if tokens == decodes or not batch.encode:
                self.pace.observe(decodes, tokens - decodes, seconds)

    def complete(self, work: Work) -> None:
        """Record that a work's tokens are computed: publish full blocks, let go of media rows that are consumed."""
        seq = work.seq
        if isinstance(seq, Resident):
            seq.computed_to(work.start, work.count)
            full = min(seq.computed // self.pool.block_size, len(seq.hashes))  # those of the opening prompt
        else:
            seq.computed = work.start + work.count
            full = seq.computed // self.pool.block_size
        if self.enable_prefix_caching and full > seq.num_registered:
            hashes = seq.hashes if seq.resident else seq.extend_hashes(self.pool.block_size)
            for index in range(seq.num_registered, full):
                self.pool.register(seq.blocks[index], hashes[index])
            seq.num_registered = full
        if seq.id in self._held:
            self._release_media(seq)
        if isinstance(seq, Resident):
            seq.forget_media()

    def rewind(self, seq: Sequence) -> None:
        """Give back what a sequence holds and queue it before its equals; it recomputes (the prefix cache helps)."""
        assert seq.status is Status.RUNNING
        self.running.remove(seq)
        self._free(seq)
        seq.status = Status.WAITING
        at = 0
        while at < len(self.waiting) and self.waiting[at].request.priority < seq.request.priority:
            at += 1
        self.waiting.insert(at, seq)
        self.num_preemptions += 1
        seq.num_preemptions += 1

    # ---- sessions --------------------------------------------------------------------------------------------------

    def _add_resident(self, seq: Resident) -> None:
        """Its opening prompt may begin as others did; what comes after is its own."""
        self.resident.append(seq)
        hit = self._match_prefix(seq)
        self.pool.take(hit)
        seq.blocks = list(hit)
        seq.num_registered = len(hit)
        seq.computed = seq.cached = len(hit) * self.pool.block_size

    def _resident_work(self, seq: Resident, budget: _Budget, now_s: float) -> Work | None:
        if seq.first_scheduled_s is None:
            seq.first_scheduled_s = now_s
        if seq.holes:
            start, stop = seq.holes[0]
            count = min(stop - start, budget.tokens)
            budget.tokens -= count
            return Work(seq, start, count, False)
        count = self._admit(seq, seq.computed, len(seq.ids) - seq.computed, budget)
        if count == 0 or not self._grow(seq, seq.computed + count, set()):
            return None
        budget.tokens -= count
        return Work(seq, seq.computed, count, seq.computed <= seq.deciding < seq.computed + count)

    def splice(self, seq: Resident, start: int, stop: int, ids: list[int]) -> RowMoves | None:
        """Rows [start, stop) of a session become `ids`, to be computed; what must move for that, None for nothing.

        Blocks that are no longer needed are free at once: the rows must be moved before the next step runs.
        """
        size, last, shift = self.pool.block_size, seq.computed, len(ids) - (stop - start)
        old, first = seq.blocks, start // size
        needed = self.pool.blocks_for(last + shift if last > stop else min(last, start))
        # Blocks from `first` on are written to, now or later: those that others hold too must stay as they are.
        shared = [index for index in range(first, min(needed, len(old))) if self.pool.is_shared(old[index])]
        fresh = self._allocate(len(shared) + max(needed - len(old), 0), seq, set())
        if fresh is None:
            raise OverloadedError("there is no free block to change a session's rows in", reason="kv")
        seq.splice(start, stop, ids)
        seq.blocks = old[:needed]
        for index in shared:
            seq.blocks[index] = fresh.pop()
        for block in seq.blocks[first:]:
            self.pool.forget(block)
        seq.blocks += fresh
        del seq.hashes[first:]
        seq.num_registered = min(seq.num_registered, first)
        self._release_media(seq)
        # What lies before `start` in its block goes along where that is replaced.
        head = np.arange(first * size, min(start, last)) if first in shared else np.arange(0)
        rows = np.concatenate((head, np.arange(stop, max(last, stop))))
        moves = _moves(rows, len(head), shift, old, seq.blocks, size)
        self.pool.release([*old[needed:], *(old[index] for index in shared)])
        return moves

    # ---- parts -----------------------------------------------------------------------------------------------------

    def _batch(self, works: list[Work], budget: _Budget) -> Batch:
        """Without the media of those that were preempted again, whose places others may have taken."""
        return Batch(works, [item for key, item in budget.encode.items() if key in self.encoder_cache])

    def _work(self, seq: Sequence, start: int, count: int, left: int, budget: _Budget, now_s: float) -> Work:
        budget.tokens -= count
        if left > 1:
            budget.prompts -= count
        if seq.first_scheduled_s is None:
            seq.first_scheduled_s = now_s
        return Work(seq, start, count, count == left and seq.request.pooling is None)

    def _release_media(self, seq: Sequence) -> None:
        """Let go of media rows that are not needed any more."""
        if held := self._held.get(seq.id):
            needed = {seq.media[span.media].key for span in seq.spans_in(seq.computed, len(seq.ids))}
            for key in held - needed:
                self.encoder_cache.release(key, seq.id)
            held &= needed

    def _uses_prefixes(self, seq: Sequence) -> bool:
        return self.enable_prefix_caching and not seq.needs_every_row

    def _match_prefix(self, seq: Sequence) -> list[int]:
        """Cached blocks for the start of a sequence; the last known token is always computed, for its logits."""
        if not self._uses_prefixes(seq):
            return []
        usable = (len(seq.ids) - 1) // self.pool.block_size
        return self.pool.match(seq.extend_hashes(self.pool.block_size)[:usable])

    def _soon_cached(self, seq: Sequence, known: int) -> bool:
        """Whether a running sequence computes, beyond `known` cached blocks, half or more of what seq would have to.

        So several answers to one prompt compute it once, and those who come while it is computed wait for it.
        """
        if not self._uses_prefixes(seq):
            return False
        usable = (len(seq.ids) - 1) // self.pool.block_size
        if known >= usable:
            return False
        size = self.pool.block_size
        for other in self.running:
            if other.num_registered <= known < len(other.hashes) and other.hashes[known] == seq.hashes[known]:
                pairs = zip(seq.hashes[known:usable], other.hashes[known:], strict=False)
                shared = sum(1 for mine, theirs in pairs if mine == theirs)
                if 2 * shared * size >= len(seq.ids) - known * size:
                    return True
        return False

    def _admit(self, seq: Sequence, start: int, left: int, budget: _Budget) -> int:
        """Tokens this sequence may compute now: within the budget, and only where media rows are or will be there.

        It has `left` more from `start` on.
        """
        count = min(left, budget.tokens if left == 1 or seq.resident else budget.left)
        if 0 < self.long_prefill_tokens < count and len(self.waiting) + len(self.running) > 1 and not seq.resident:
            count = self.long_prefill_tokens
        if seq.span_starts and count:
            count = self._admit_media(seq, start, count, budget)
        return count if self.enable_chunked_prefill or count == left or seq.resident else 0

    def _admit_media(self, seq: Sequence, start: int, count: int, budget: _Budget) -> int:
        stop = start + count
        for span in seq.spans_in(start, stop):
            cut = span.stop > stop and not self.split_media and not seq.resident
            if cut or not self._encode(seq, seq.media[span.media], budget):
                return max(span.start - start, 0)
        return count

    def _encode(self, seq: Sequence, item: MediaItem, budget: _Budget) -> bool:
        """True if the item's rows are on the device by the time this step's tokens run."""
        held = self._held.setdefault(seq.id, set())
        if item.key in held:
            return True
        if item.key in self.encoder_cache:
            self.encoder_cache.hold(item.key, seq.id)
            self.encoder_cache_hits += 1
        else:
            # An item larger than the whole budget still goes, alone.
            if item.rows > budget.rows and budget.encode:
                return False
            if not self.encoder_cache.reserve(item.key, item.rows * self.row_bytes, seq.id):
                return False
            budget.encode[item.key] = item
            budget.rows -= item.rows
        self.encoder_cache_queries += 1
        held.add(item.key)
        return True

    def _grow(self, seq: Sequence, num_tokens: int, scheduled: set[str] | None) -> bool:
        """Give a sequence blocks for num_tokens, preempting less urgent and newer ones; False if it lost out itself.

        Without `scheduled` nobody is preempted.
        """
        missing = self.pool.blocks_for(num_tokens) - len(seq.blocks)
        if missing <= 0:
            return True
        blocks = self.pool.allocate(missing) if scheduled is None else self._allocate(missing, seq, scheduled)
        if blocks is None:
            return False
        seq.blocks.extend(blocks)
        return True

    def _allocate(self, count: int, seq: Sequence, scheduled: set[str]) -> list[int] | None:
        while (blocks := self.pool.allocate(count)) is None:
            candidates = [s for s in reversed(self.running) if s.id not in scheduled]
            victim = max(candidates, key=lambda s: s.request.priority, default=None)
            if victim is None:
                return None
            self.rewind(victim)
            if victim is seq:
                return None
        return blocks

    def _free(self, seq: Sequence) -> None:
        self.pool.release(seq.blocks)
        seq.blocks = []
        seq.computed = 0
        seq.num_registered = 0
        for key in self._held.pop(seq.id, ()):
            self.encoder_cache.release(key, seq.id)

    def check(self) -> None:
        """Raise AssertionError if blocks or media holds leaked (tests)."""
        self.pool.check()
        holders = [*self.running, *self.resident]
        held = {block for seq in holders for block in seq.blocks}
        assert self.pool.num_blocks - self.pool.num_free == len(held), "a block is held by nobody"
        assert not any(seq.blocks for seq in self.waiting), "a waiting sequence holds blocks"
        assert self.encoder_cache.num_holds == sum(map(len, self._held.values())), "media rows are held by nobody"


def _moves(
    rows: NDArray[np.int64], num_still: int, shift: int, old: list[int], new: list[int], block_size: int
) -> RowMoves | None:
    """rows [n] of block table `old` go to `new`: the first num_still as they are, the others `shift` further on."""
    after = np.where(np.arange(len(rows)) < num_still, rows, rows + shift)
    sources = np.asarray(old, dtype=np.int64)[rows // block_size] * block_size + rows % block_size
    targets = np.asarray(new, dtype=np.int64)[after // block_size] * block_size + after % block_size
    moved = sources != targets
    return RowMoves(sources[moved], targets[moved], rows[moved], after[moved]) if moved.any() else None
