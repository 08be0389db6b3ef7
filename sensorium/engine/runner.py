"""Turns a Batch into tensors, runs the encoders and the model, samples."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from sensorium.engine.graphs import (
    CHUNK_SEQUENCES,
    LATER_TOKENS,
    ChunkGraphs,
    DecodeGraphs,
    Likeliest,
    ShapeGraphs,
    agrees,
    pick,
)
from sensorium.engine.histogram import MEDIA_S, Histograms
from sensorium.engine.readout import Readout
from sensorium.engine.rehearsal import steps_by_kernel
from sensorium.engine.resident import Resident, RowMoves
from sensorium.engine.sampler import Sampled, Unsampled
from sensorium.engine.scheduler import Batch, Work
from sensorium.engine.sequence import Status
from sensorium.engine.stopwatch import Stopwatch
from sensorium.kernels.ahead import compiling
from sensorium.kernels.select import paged_attention
from sensorium.kernels.upload import upload
from sensorium.models.base import Model
from sensorium.types import Decision, MediaItem, ModelInputs

log = logging.getLogger(__name__)
Chosen = Sampled | Unsampled | Decision
# Numbers in a step's activations, tokens x width, from which several threads pay.
_SMALL_STEP = 64 * 256
_SPARE_BYTES = 2 << 30
# Tokens from which a step takes the device so long (85 ms on an H200) that it may wait 3 ms for its beginning.
_LONG_STEP = 4096


@dataclass(slots=True)
class _Flight:
    """A step that the device was told to compute.

    A row of logits [M, V], hidden [M, E] and, where it was found there, the likeliest token [M] for each id in `rows`.
    """

    works: list[Work]
    rows: dict[str, int]
    logits: torch.Tensor
    hidden: torch.Tensor
    greedy: torch.Tensor | None
    likeliest: Likeliest | None = None
    """Where nothing else decides about the next tokens: greedy, on its way to the host."""
    computed: torch.cuda.Event | None = None
    is_short: bool = False
    """Whether it is a graph, and over before the kernels of a long step could be launched."""


class Runner:
    """Owns what lives on the device: the KV cache, media rows, and per-sequence sampling state."""

    def __init__(
        self,
        model: Model,
        num_blocks: int,
        block_size: int,
        device: torch.device,
        dtype: torch.dtype,
        readout: Readout | None = None,
    ) -> None:
        self.model = model
        self._threads = torch.get_num_threads()
        self._plan_class = paged_attention(device, dtype).implementation
        self.device, self._dtype = device, dtype
        self.block_size = block_size
        self.readout = readout or Readout(model)
        shape = (2, num_blocks, block_size, model.num_kv_heads, model.head_dim)
        self.kv = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(model.num_layers)]
        self.rows: dict[bytes, torch.Tensor] = {}
        self.encoder_s = Histograms(MEDIA_S)
        """Modality -> seconds of one pass of its encoder."""
        self.stopwatch = Stopwatch(device, self.encoder_s)
        self.device_s = Histograms(MEDIA_S)
        """Pass of a step -> seconds on the device."""
        self.passes = Stopwatch(device, self.device_s)
        self._decodes: DecodeGraphs | None = None
        self._chunks: ChunkGraphs | None = None
        self._shapes: list[ShapeGraphs] = []
        self._rehearsal: Iterator[None] = iter(())
        self._mixed: ChunkGraphs | None = None
        """Chunks beside more decodes than _chunks takes."""
        self._ahead: _Flight | None = None
        self._launched: deque[torch.cuda.Event] = deque()

    @torch.inference_mode()
    def record_graphs(self, most: int, max_len: int, mixed: bool = False, frames: Seq[MediaItem] = ()) -> None:
        """Record steps of up to `most` sequences of up to max_len tokens, where the kernels allow it.

        mixed: also those of many decodes beside a few tokens of prompts. frames: see Model.rehearse.
        """
        if self._plan_class.decode_plan is None or self.model.head_dim & (self.model.head_dim - 1):
            return
        blocks = -(-max_len // self.block_size)
        self._decodes = DecodeGraphs(self.model, self.kv, self._plan_class, self.block_size, most, blocks)
        self._chunks = ChunkGraphs(self.model, self.kv, self._plan_class, self.block_size, blocks, later=LATER_TOKENS)
        if mixed and most > CHUNK_SEQUENCES:
            self._mixed = self._record_mixed(most, blocks)
        self.model.wrap_encoders(self._by_shape)
        steps = steps_by_kernel(self.model, self._plan_class, self.block_size, most, self.kv[0])
        self._rehearsal = chain(self._chunks.record_later(), steps, self.model.rehearse(frames))

    def _by_shape(self, encode: Callable[..., torch.Tensor], is_pure: bool) -> ShapeGraphs:
        made = ShapeGraphs(encode, at_rest=is_pure)
        self._shapes.append(made)
        return made

    def _record_mixed(self, most: int, blocks: int) -> ChunkGraphs | None:
        """Steps of many decodes beside chunks, if they give what their kernels give one by one; see agrees."""
        try:
            made = ChunkGraphs(self.model, self.kv, self._plan_class, self.block_size, blocks, decodes=most)
            if agrees(made, self.model, self.kv, self._plan_class, self.block_size):
                return made
            log.warning("steps of decodes and chunks do not come out right as graphs: they go kernel by kernel")
        except Exception:
            log.warning("steps of decodes and chunks cannot be graphs: they go kernel by kernel", exc_info=True)
        return None

    @torch.inference_mode()
    def rehearse(self) -> bool:
        """A part of what is better done before anybody waits, up to a second of it. False: there is nothing left.

        With little memory free only what was needed before is.
        """
        try:
            if any(shapes.record_wanted() for shapes in self._shapes):
                return True
            if self.device.type == "cuda" and torch.cuda.mem_get_info(self.device)[0] < _SPARE_BYTES:
                return False
            return next(self._rehearsal, self) is not self
        except Exception:
            log.warning("a rehearsal failed; what it was for is done when it is needed", exc_info=True)
            return False

    @torch.inference_mode()
    def rehearse_all(self) -> None:
        """What `rehearse` does in parts, now; kernels are compiled side by side."""
        if self._decodes is not None:
            with compiling(self.device):
                for _ in steps_by_kernel(self.model, self._plan_class, self.block_size, self._decodes.most, self.kv[0]):
                    pass
        while self.rehearse():
            pass
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what shapes took before they were recorded

    @torch.inference_mode()
    def encode(self, items: Seq[MediaItem]) -> dict[bytes, Exception]:
        """Compute media rows. Returns what failed, per key; one bad item does not take the others along."""
        failed: dict[bytes, Exception] = {}
        self._use_threads(_SMALL_STEP)
        for item in items:
            if "embeds" in item.arrays:
                given = torch.from_numpy(item.arrays["embeds"])
                self._store([item], [given.to(self.device, self._dtype)])
        items = [item for item in items if item.key not in self.rows]
        for modality in sorted({item.modality for item in items}):
            group = [item for item in items if item.modality == modality]
            try:
                with self.stopwatch.time(modality):
                    rows = self.model.encode(modality, group)
                self._store(group, rows)
            except Exception:
                for item in group:
                    try:
                        self._store([item], self.model.encode(modality, [item]))
                    except Exception as error:
                        failed[item.key] = error
        return failed

    def _store(self, items: Seq[MediaItem], rows: list[torch.Tensor]) -> None:
        for item, part in zip(items, rows, strict=True):
            if part.shape[0] != item.rows:
                raise RuntimeError(f"the encoder returned {part.shape[0]} rows for an item of {item.rows}")
            self.rows[item.key] = part

    def drop_rows(self, keys: Seq[bytes]) -> None:
        for key in keys:
            self.rows.pop(key, None)

    @property
    def runs_ahead(self) -> bool:
        """Whether `run` can start the next step before the tokens of this one are known to the host."""
        return self._decodes is not None

    @torch.inference_mode()
    def run(
        self,
        batch: Batch,
        follow: Callable[[Callable[[], bool]], Seq[Work]] = lambda is_over: (),
        meanwhile: Callable[[Callable[[], bool]], None] = lambda is_over: None,
    ) -> dict[str, Chosen]:
        """Compute the batch. Result: next token per sampling sequence id, or why there is none.

        follow: asked for the next step once the device computes this one, with what tells whether it has. Its works
        that decode continue sequences of this batch, which take the likeliest token. The device goes on with it while
        the host still reads this one's results; a later `run` of those works, or of some of them, finds it done. A long
        step behind a short one is only begun by that.

        meanwhile: called while the device computes this step, when all is launched; as follow.
        """
        works = batch.works
        flight, self._ahead = self._ahead, None
        if flight is None or not {id(work) for work in works} <= {id(work) for work in flight.works}:
            flight = self._start(works, None)

        def is_over() -> bool:
            return flight.computed is None or flight.computed.query()

        next_works = follow(is_over)
        # Starting a long step kernel by kernel takes 12 ms, in which the tokens of a short one would lie unread.
        if next_works and not (flight.is_short and sum(work.count for work in next_works) >= _LONG_STEP):
            self._ahead = self._start(next_works, flight)
        meanwhile(is_over)
        # Media of the next step that could not be encoded may have ended some.
        return self._read(flight, [work for work in works if work.seq.status is not Status.FINISHED])

    def _start(self, works: Seq[Work], before: _Flight | None) -> _Flight:
        """before: the step on the device whose tokens these works may continue."""
        if len(self._launched) == 2:
            # Two steps wait on the device at most; memory that the numbers of a step are sent from serves every other.
            self._launched.popleft().synchronize()
        flight = self._replay(works, before) if self._decodes is not None else None
        flight = flight or self._compute(works, before)
        if flight.greedy is not None and self._all_likeliest(works):
            flight.likeliest = Likeliest(flight.greedy)
        if self.device.type == "cuda":
            flight.computed = torch.cuda.Event()
            flight.computed.record()
            self._launched.append(flight.computed)
        return flight

    def _all_likeliest(self, works: Seq[Work]) -> bool:
        """Whether all that is wanted of a step are its likeliest tokens."""
        states, speaks = self.readout.states, self.readout.speaks
        return all(
            not work.seq.resident and states[work.seq.id].takes_likeliest and not speaks(work.seq.id)
            for work in works
            if work.sample
        )

    def _compute(self, works: Seq[Work], before: _Flight | None) -> _Flight:
        """The step, one kernel after the other."""
        num_tokens = sum(work.count for work in works)
        self._use_threads(num_tokens * self.model.hidden_size)
        x = self.model.embed(self._ids(works, before))
        self._fuse(x, works)
        lens, positions, _ = self._places(works)
        tables = [work.seq.blocks for work in works]
        plan = self._plan_class([work.count for work in works], lens, tables, self.block_size, self.device)
        picked = self._picked(works)
        rows = None if len(picked) == len(x) else upload(np.asarray(picked, np.int64), self.device)
        every = self.readout.is_observing
        at = upload(np.array(positions if len(positions) > 1 else positions[0]), self.device)
        inputs = ModelInputs(at, plan, self.kv, None if every else rows)
        with self.passes.time("prefill" if num_tokens > len(works) else "decode"):
            hidden = self.model.forward(x, inputs)
            if every:
                self.readout.observe(works, hidden)
                hidden = hidden if rows is None else hidden[rows]
            logits = self.model.logits(hidden) if picked else hidden
        greedy = pick(logits) if picked and self.runs_ahead and self._all_likeliest(works) else None
        sampled = (work.seq.id for work in works if work.sample)
        return _Flight(list(works), {name: row for row, name in enumerate(sampled)}, logits, hidden, greedy)

    def _read(self, flight: _Flight, works: Seq[Work]) -> dict[str, Chosen]:
        """What comes after `works`, which are of the flight."""
        seqs = [work.seq for work in works if work.sample]
        if not seqs:
            return {}
        rows = [flight.rows[seq.id] for seq in seqs]
        if flight.likeliest is not None:
            tokens, states = flight.likeliest.tolist(), self.readout.states
            return {seq.id: states[seq.id].take(tokens[row]) for seq, row in zip(seqs, rows, strict=True)}
        logits, hidden, greedy = flight.logits, flight.hidden, flight.greedy
        with self.passes.time("choose"):
            if len(rows) < len(logits):
                at = upload(rows, self.device)
                logits, hidden, greedy = logits[at], hidden[at], None if greedy is None else greedy[at]
            return self.readout.choose(seqs, logits, hidden, greedy)

    @torch.inference_mode()
    def move_rows(self, moves: RowMoves) -> None:
        """Move rows of the KV cache, keys rotated to their new positions."""
        numbers = np.stack((moves.sources, moves.targets, moves.before, moves.after))
        sources, targets, before, after = upload(numbers, self.device)
        turn = self.model.turn(before, after)
        for layer in self.kv:
            keys, values = layer.view(2, -1, *layer.shape[3:]).unbind()
            moved = turn(keys.index_select(0, sources))
            keys.index_copy_(0, targets, moved)
            values.index_copy_(0, targets, values.index_select(0, sources))

    def _picked(self, works: Seq[Work]) -> list[int]:
        """The rows of the step that something comes after: of each sequence the last, or the one that decides."""
        ends = np.cumsum([work.count for work in works]) - 1
        if not self.readout.deciders:
            return [int(end) for end, work in zip(ends, works, strict=True) if work.sample]
        return [int(end) - _behind(work) for end, work in zip(ends, works, strict=True) if work.sample]

    def _replay(self, works: Seq[Work], before: _Flight | None) -> _Flight | None:
        """The step as a graph, if it is small enough and one was recorded."""
        counts = [work.count for work in works]
        assert self._decodes is not None
        assert self._chunks is not None
        decodes = max(counts) == 1 and len(works) <= self._decodes.most and not any(map(_takes_media, works))
        chunks = self._chunks if self._mixed is None or self._chunks.fits(counts) else self._mixed
        if not decodes and not chunks.fits(counts):
            return None
        # Graphs end in logits; what pools or scores a prompt reads hidden rows.
        if any(work.seq.needs_every_row or work.seq.request.pooling is not None for work in works):
            return None
        lens, positions, tables = self._places(works)
        if decodes:
            numbers, source = self._numbers(works, before)
            with self.passes.time("decode"):
                found = self._decodes.run(numbers, positions, lens, tables, source)
        else:
            x = chunks.x[: sum(counts)]
            x.copy_(self.model.embed(self._ids(works, before)))
            self._fuse(x, works)
            behind = [_behind(work) for work in works] if self.readout.deciders else None
            with self.passes.time("prefill"):
                found = chunks.run(counts, lens, positions, tables, behind)
        logits, greedy, hidden = found
        rows = {work.seq.id: row for row, work in enumerate(works)}
        is_short = len(counts) > CHUNK_SEQUENCES or sum(counts) < LATER_TOKENS[0]
        return _Flight(list(works), rows, logits, hidden, greedy, is_short=is_short)

    def _places(self, works: Seq[Work]) -> tuple[list[int], np.ndarray, list[list[int]]]:
        """Lengths after the step, positions [axes, N] and block tables of works."""
        lens = [work.start + work.count for work in works]
        tables = [work.seq.blocks[: -(-length // self.block_size)] for work, length in zip(works, lens, strict=True)]
        axes = self.model.position_axes
        if all(work.count == 1 and work.seq.positions is None for work in works):
            return lens, np.broadcast_to(np.asarray(lens) - 1, (axes, len(lens))), tables
        return lens, np.concatenate([_axis_positions(work, axes) for work in works], axis=1), tables

    def _use_threads(self, size: int) -> None:
        """On a CPU, let one thread compute small steps.

        Their products are over before a second thread has woken up, and a core that waits at a barrier is one that
        HTTP and media do not get.
        """
        if self.device.type == "cpu":
            torch.set_num_threads(1 if size < _SMALL_STEP else self._threads)

    def _numbers(self, works: Seq[Work], before: _Flight | None) -> tuple[list[int], torch.Tensor | None]:
        """Token ids of works; with a source [any] on the device they are places in it."""
        ids: list[int] = []
        unread: list[int] = []
        """Where in ids there are rows of `before` instead."""
        for work in works:
            if work.count == 1 and work.start < len(work.seq.ids):
                ids.append(work.seq.ids[work.start])
            elif work.start < len(work.seq.ids):
                ids.extend(work.seq.ids[work.start : work.start + work.count])
            else:
                assert before is not None
                unread.append(len(ids))
                ids.append(before.rows[work.seq.id])
        if not unread:
            return ids, None
        assert before is not None
        assert before.greedy is not None
        tokens = before.greedy.clamp(min=0)  # -1 where a row holds a NaN: what follows it is computed in vain
        if len(unread) == len(ids):
            return ids, tokens
        places, first = np.arange(len(ids)) + len(tokens), np.asarray(unread)
        places[first] = np.asarray(ids)[first]
        return places.tolist(), torch.cat((tokens, upload(np.asarray(ids, np.int64), self.device)))

    def _ids(self, works: Seq[Work], before: _Flight | None) -> torch.Tensor:
        numbers, source = self._numbers(works, before)
        there = upload(np.asarray(numbers, np.int64), self.device)
        return there if source is None else source[there]

    def _fuse(self, x: torch.Tensor, works: Seq[Work]) -> None:
        """Overwrite the placeholder rows of x [N, E] with media rows."""
        offset = 0
        for work in works:
            if _takes_media(work):
                stop = work.start + work.count
                for span in work.seq.spans_in(work.start, stop):
                    first, last = max(span.start, work.start), min(span.stop, stop)
                    rows = self.rows[work.seq.media[span.media].key]
                    part = rows[span.row + first - span.start : span.row + last - span.start]
                    x[offset + first - work.start : offset + last - work.start] = part
            offset += work.count


def _takes_media(work: Work) -> bool:
    """Whether rows of media may be among its tokens."""
    return bool(work.seq.span_starts) and work.start < work.seq.spans[-1].stop


def _behind(work: Work) -> int:
    """Rows of a work behind the one that something comes after."""
    seq = work.seq
    return work.start + work.count - 1 - seq.deciding if work.sample and isinstance(seq, Resident) else 0


def _axis_positions(work: Work, axes: int) -> np.ndarray:
    """Positions [axes, count] of a work: as the prompt says, then counting on from its largest."""
    seq = work.seq
    if seq.positions is None:
        return np.broadcast_to(np.arange(work.start, work.start + work.count), (axes, work.count))
    known = seq.positions.shape[1]
    stop = work.start + work.count
    tail = np.arange(max(work.start, known), stop) - known + int(seq.positions.max()) + 1
    return np.concatenate(
        [seq.positions[:, work.start : min(stop, known)], np.broadcast_to(tail, (axes, tail.size))], axis=1
    )
