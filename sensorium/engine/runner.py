"""Turns a Batch into tensors, runs the encoders and the model, samples."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch

from sensorium.engine.graphs import ChunkGraphs, DecodeGraphs, Likeliest, ShapeGraphs
from sensorium.engine.histogram import MEDIA_S, Histograms
from sensorium.engine.readout import Readout
from sensorium.engine.resident import Resident, RowMoves
from sensorium.engine.sampler import Sampled, Unsampled
from sensorium.engine.scheduler import Batch, Work
from sensorium.engine.stopwatch import Stopwatch
from sensorium.kernels.select import paged_attention
from sensorium.kernels.upload import upload
from sensorium.models.base import Model
from sensorium.types import Decision, MediaItem, ModelInputs

log = logging.getLogger(__name__)
Chosen = Sampled | Unsampled | Decision
# Numbers in a step's activations, tokens x width, from which several threads pay.
_SMALL_STEP = 64 * 256


@dataclass(slots=True)
class _Ahead:
    """A decode step that is on the device and not read yet."""

    works: list[Work]
    likeliest: Likeliest


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
        self._ahead: _Ahead | None = None
        self._rehearsal: Iterator[None] = iter(())

    @torch.inference_mode()
    def record_graphs(self, most: int, max_len: int) -> None:
        """Record steps of up to `most` sequences of up to max_len tokens, where the kernels allow it."""
        if self._plan_class.decode_plan is None or self.model.head_dim & (self.model.head_dim - 1):
            return
        blocks = -(-max_len // self.block_size)
        self._decodes = DecodeGraphs(self.model, self.kv, self._plan_class, self.block_size, most, blocks)
        self._chunks = ChunkGraphs(self.model, self.kv, self._plan_class, self.block_size, blocks)
        self.model.wrap_encoders(ShapeGraphs)
        self._rehearsal = self.model.rehearse()

    @torch.inference_mode()
    def rehearse(self) -> bool:
        """A part of what is better done before anybody waits, 0.1 s at most. False: there is nothing left."""
        try:
            return next(self._rehearsal, self) is not self
        except Exception:
            log.warning("a rehearsal failed; what it was for is done when it is needed", exc_info=True)
            return False

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
    def run(self, batch: Batch, follow: Seq[Work] = ()) -> dict[str, Chosen]:
        """Compute the batch. Result: next token per sampling sequence id, or why there is none.

        follow: the next step of sequences that only decode and take the likeliest token. The device starts with it
        while the host still reads this one's results; a later `run` of those works, or of some of them, finds it done.
        """
        works = batch.works
        ahead, self._ahead = self._ahead, None
        if ahead is not None and {id(work) for work in works} <= {id(work) for work in ahead.works}:
            return self._collect(ahead, works, follow)
        if self._decodes is not None and (replayed := self._replay(works, follow)) is not None:
            return replayed
        self._use_threads(batch.num_tokens * self.model.hidden_size)
        x = self.model.embed(self._ids(works))
        self._fuse(x, works)
        plan = self._plan_class(
            [work.count for work in works],
            [work.start + work.count for work in works],
            [work.seq.blocks for work in works],
            self.block_size,
            self.device,
        )
        picked = self._picked(works)
        rows = None if len(picked) == len(x) else torch.tensor(picked, dtype=torch.int64, device=self.device)
        every = self.readout.is_observing
        inputs = ModelInputs(self._positions(works), plan, self.kv, None if every else rows)
        with self.passes.time("prefill" if batch.num_tokens > len(works) else "decode"):
            hidden = self.model.forward(x, inputs)
        if every:
            self.readout.observe(works, hidden)
            hidden = hidden if rows is None else hidden[rows]
        sampled = [work.seq for work in works if work.sample]
        if not sampled:
            return {}
        with self.passes.time("choose"):
            return self.readout.choose(sampled, self.model.logits(hidden), hidden)

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

    def _replay(self, works: Seq[Work], follow: Seq[Work]) -> dict[str, Chosen] | None:
        """The step as a graph, if it is small enough and one was recorded."""
        counts = [work.count for work in works]
        assert self._decodes is not None
        assert self._chunks is not None
        decodes = max(counts) == 1 and len(works) <= self._decodes.most
        if not decodes and not self._chunks.fits(counts):
            return None
        # Graphs end in logits; what pools or scores a prompt reads hidden rows.
        if any(work.seq.needs_every_row or work.seq.request.pooling is not None for work in works):
            return None
        if decodes:
            ids = [work.seq.ids[work.start] for work in works]
            logits, greedy, hidden = self._decode(self._decodes, works, ids)
            if follow:
                return self._collect(_Ahead(list(works), Likeliest(greedy)), works, follow)
        else:
            x = self._chunks.x[: sum(counts)]
            x.copy_(self.model.embed(self._ids(works)))
            self._fuse(x, works)
            lens, positions, tables = self._places(works)
            behind = [_behind(work) for work in works] if self.readout.deciders else None
            with self.passes.time("prefill"):
                logits, greedy, hidden = self._chunks.run(counts, lens, positions, tables, behind)
        rows = [row for row, work in enumerate(works) if work.sample]
        if not rows:
            return {}
        if len(rows) < len(works):
            at = upload(rows, self.device)
            logits, greedy, hidden = logits[at], greedy[at], hidden[at]
        with self.passes.time("choose"):
            return self.readout.choose([works[row].seq for row in rows], logits, hidden, greedy)

    def _decode(
        self, graphs: DecodeGraphs, works: Seq[Work], ids: list[int], source: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        lens, positions, tables = self._places(works)
        with self.passes.time("decode"):
            return graphs.run(ids, positions, lens, tables, source)

    def _places(self, works: Seq[Work]) -> tuple[list[int], np.ndarray, list[list[int]]]:
        """Lengths after the step, positions [axes, N] and block tables of works."""
        lens = [work.start + work.count for work in works]
        tables = [work.seq.blocks[: -(-length // self.block_size)] for work, length in zip(works, lens, strict=True)]
        axes = self.model.position_axes
        if all(work.count == 1 and work.seq.positions is None for work in works):
            return lens, np.broadcast_to(np.asarray(lens) - 1, (axes, len(lens))), tables
        return lens, np.concatenate([_axis_positions(work, axes) for work in works], axis=1), tables

    def _collect(self, ahead: _Ahead, works: Seq[Work], follow: Seq[Work]) -> dict[str, Chosen]:
        """Start what follows a step that is on the device, then read that step's tokens."""
        rows = {work.seq.id: row for row, work in enumerate(ahead.works)}
        if follow and self._decodes is not None:
            places = [rows[work.seq.id] for work in follow]
            _, greedy, _ = self._decode(self._decodes, follow, places, ahead.likeliest.device)
            self._ahead = _Ahead(list(follow), Likeliest(greedy))
        tokens = ahead.likeliest.tolist()
        states = self.readout.states
        return {work.seq.id: states[work.seq.id].take(tokens[rows[work.seq.id]]) for work in works}

    def _use_threads(self, size: int) -> None:
        """On a CPU, let one thread compute small steps.

        Their products are over before a second thread has woken up, and a core that waits at a barrier is one that
        HTTP and media do not get.
        """
        if self.device.type == "cpu":
            torch.set_num_threads(1 if size < _SMALL_STEP else self._threads)

    def _ids(self, works: Seq[Work]) -> torch.Tensor:
        ids: list[int] = []
        for work in works:
            if work.count == 1:
                ids.append(work.seq.ids[work.start])
            else:
                ids.extend(work.seq.ids[work.start : work.start + work.count])
        return upload(np.asarray(ids, np.int64), self.device)

    def _positions(self, works: Seq[Work]) -> torch.Tensor:
        if all(work.seq.positions is None for work in works):
            flat: list[int] = []
            for work in works:
                flat.extend(range(work.start, work.start + work.count))
            return torch.tensor(flat, device=self.device)
        axes = next(work.seq.positions.shape[0] for work in works if work.seq.positions is not None)
        parts = [_axis_positions(work, axes) for work in works]
        return torch.from_numpy(np.concatenate(parts, axis=1)).to(self.device)

    def _fuse(self, x: torch.Tensor, works: Seq[Work]) -> None:
        """Overwrite the placeholder rows of x [N, E] with media rows."""
        offset = 0
        for work in works:
            if work.seq.span_starts and work.start < work.seq.spans[-1].stop:
                stop = work.start + work.count
                for span in work.seq.spans_in(work.start, stop):
                    first, last = max(span.start, work.start), min(span.stop, stop)
                    rows = self.rows[work.seq.media[span.media].key]
                    part = rows[span.row + first - span.start : span.row + last - span.start]
                    x[offset + first - work.start : offset + last - work.start] = part
            offset += work.count


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
