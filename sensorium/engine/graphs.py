"""Steps as CUDA graphs, recorded once per size and replayed with new numbers in fixed memory.

The numbers of a step travel in one int32 copy. Results live until the next step.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from sensorium.kernels.ahead import compiling
from sensorium.kernels.capture import capture
from sensorium.kernels.upload import upload
from sensorium.models.base import Model, SpeechModel
from sensorium.types import ModelInputs

_SMALL = (1, 2, 4, 8, 12, 16, 24, 32)
# Steps of a size between two recorded ones after which it gets a graph of its own.
_OFTEN = 64
_CHUNK_TOKENS = (32, 64, 128, 256, 384, 512)
# Recorded when there is time. Above these the device is busy for longer than launching the kernels one by one
# takes: 15 ms, and 30 beside threads that prepare media.
LATER_TOKENS = tuple(range(576, 1025, 64))
CHUNK_SEQUENCES = 32
# Beside more decodes than that, and so many tokens apart.
_MIXED_STEP = 64
# Of a hidden row's length: what different orders of sums may make of 16 bits over a decoder's layers.
_AGREEMENT = 0.1
Result = TypeVar("Result")


def ladder(most: int) -> list[int]:
    """Batch sizes to record: close together where padding would show, at most 16 rows apart above."""
    sizes = [size for size in _SMALL if size < most]
    return [*sizes, *range(48, most, 16), most]


class _Numbers:
    """One int32 buffer on the device with twins in pinned memory: while one is on its way the next may be written."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.device = torch.zeros(size, dtype=torch.int32, device=device)
        pin = device.type == "cuda"
        self._pinned = [torch.zeros(size, dtype=torch.int32, pin_memory=pin) for _ in range(2)]

    @property
    def host(self) -> np.ndarray:
        return self._pinned[0].numpy()

    def send(self, count: int) -> None:
        self.device[:count].copy_(self._pinned[0][:count], non_blocking=True)
        self._pinned.reverse()


class Recorder:
    """Records graphs that share memory: only one of them runs at a time.

    stream: where graphs are recorded that run beside others. Libraries keep working memory for each stream.
    """

    def __init__(self, stream: torch.cuda.Stream | None = None) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = stream or torch.cuda.Stream()

    def record(self, compute: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
        return capture(compute, self._pool, self._stream)


class Likeliest:
    """The likeliest token of each row of a step, -1 where the row holds a NaN: on the device, and soon on the host."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.device = tokens
        self._host = torch.empty(len(tokens), dtype=tokens.dtype, pin_memory=tokens.is_cuda)
        self._host.copy_(tokens, non_blocking=True)
        self._arrived = torch.cuda.Event() if tokens.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    @property
    def is_there(self) -> bool:
        """Whether tolist would not wait."""
        return self._arrived is None or self._arrived.query()

    def tolist(self) -> list[int]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.tolist()


def pick(logits: torch.Tensor) -> torch.Tensor:
    """The likeliest token of each row, -1 where the row holds a NaN."""
    best, greedy = logits.max(-1)
    return torch.where(torch.isnan(best), -1, greedy)


class DecodeGraphs:
    """Steps in which every sequence adds one token.

    Numbers: ids [b], positions [axes, b], lengths [b], the width of the block tables, the tables [b, width].
    """

    def __init__(
        self,
        model: Model,
        kv: list[torch.Tensor],
        plans: Any,
        block_size: int,
        most: int,
        max_blocks: int,
        recorder: Recorder | None = None,
    ) -> None:
        self.most = most
        self._model, self._kv, self._plans, self._block_size = model, kv, plans, block_size
        self._axes = model.position_axes
        self._numbers = _Numbers(most * (2 + self._axes + max_blocks) + 1, kv[0].device)
        self._scratch = plans.scratch(kv[0].device)
        self._sizes = ladder(most)
        self._recorder = recorder or Recorder()
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = {}
        self._used: Counter[int] = Counter()
        # At the start powers of two, which need every kernel there is; the rest as they turn out to be used. The
        # largest first, so that the smaller ones fit into its memory.
        first = [size for size in reversed(self._sizes) if size & (size - 1) == 0 or size == most]
        with compiling(kv[0].device):
            for size in first:
                self._compute(size)
        for size in first:
            self._graphs[size] = self._record(size)

    def _record(self, size: int) -> tuple[torch.cuda.CUDAGraph, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        # It computes the step: with the last one's numbers, placed otherwise, it would write to anybody's rows.
        self._numbers.device.zero_()  # sequences of length 0
        return self._recorder.record(lambda: self._compute(size))

    def run(
        self,
        ids: Sequence[int],
        positions: np.ndarray,
        lens: Sequence[int],
        tables: Sequence[Sequence[int]],
        source: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits [b, V], likeliest tokens [b], -1 for NaN, and hidden rows [b, E].

        positions [axes, b]; lens count the new token.

        With a source [any] on the device, ids are places in it: for tokens that the host does not know yet.
        """
        count = len(lens)
        size = self._size_for(count)
        width = max(map(len, tables))
        host, stop = self._numbers.host, size * (2 + self._axes)
        head = host[:stop].reshape(-1, size)
        head[:] = 0
        head[0, :count] = ids
        head[1 : 1 + self._axes, :count] = positions
        head[-1, :count] = lens
        host[stop] = width
        used = stop + 1 + count * width
        for row, blocks in zip(host[stop + 1 : used].reshape(count, width), tables, strict=True):
            row[: len(blocks)] = blocks
        self._numbers.send(used)
        if source is not None:
            places = self._numbers.device[:count]
            places.copy_(source.index_select(0, places))
        graph, (logits, greedy, hidden) = self._graphs[size]
        graph.replay()
        return logits[:count], greedy[:count], hidden[:count]

    def _size_for(self, count: int) -> int:
        """The recorded size to run in; records the best one when it has been missed often."""
        best = next(size for size in self._sizes if size >= count)
        if best not in self._graphs:
            self._used[best] += 1
            if self._used[best] < _OFTEN:
                return min(size for size in self._graphs if size >= count)
            self._graphs[best] = self._record(best)
        return best

    def _compute(self, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        numbers, stop = self._numbers.device, size * (2 + self._axes)
        ids, *positions, lens = numbers[:stop].view(-1, size).unbind()
        plan = self._plans.decode_plan(lens, numbers[stop + 1 :], numbers[stop:], self._block_size, self._scratch)
        at = positions[0] if self._axes == 1 else torch.stack(positions)
        hidden = self._model.forward(self._model.embed(ids), ModelInputs(at, plan, self._kv))
        logits = self._model.logits(hidden)
        return logits, pick(logits), hidden


class ChunkGraphs:
    """Small steps with chunks of prompts. The caller writes the embeddings, as some are rows of media.

    Up to `decodes` sequences at the head of a step that add one token are computed as decodes; the others, and all of
    them without, as chunks. S is the most sequences of a step.

    Numbers: positions [axes, n], slots [n], tiles [t, 4], last rows [S], lengths of the decodes, the width of the
    tables, tables [b, width].
    """

    def __init__(
        self,
        model: Model | SpeechModel,
        kv: list[torch.Tensor],
        plans: Any,
        block_size: int,
        max_blocks: int,
        recorder: Recorder | None = None,
        decodes: int = 0,
        later: Sequence[int] = (),
    ) -> None:
        """later: ascending numbers of tokens above the others, for record_later."""
        self._sizes, self._later = _CHUNK_TOKENS, later
        if decodes:
            self._sizes = tuple(range(2 * _MIXED_STEP, decodes + _CHUNK_TOKENS[-1] + 1, _MIXED_STEP))
        self.most = self._sizes[-1]
        self._model, self._kv, self._plans, self._block_size = model, kv, plans, block_size
        self._axes, self._rows = model.position_axes, plans.chunk_plan.ROWS
        self._most_decodes, self._sequences = decodes, decodes + CHUNK_SEQUENCES
        device = kv[0].device
        most = max((self.most, *later))
        self.x = torch.zeros(most, model.hidden_size, dtype=kv[0].dtype, device=device)
        """Embeddings [most, E] of the step's tokens."""
        self._numbers = _Numbers(self._layout(most)[-1] + self._sequences * max_blocks, device)
        self._scratch = plans.scratch(device) if decodes else None
        self._results: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        """Where all graphs with decodes leave theirs: apart they would be a gigabyte of logits."""
        self._recorder = recorder or Recorder()
        with compiling(device):
            for size in self._sizes:
                self._compute(size)
        self._graphs = {size: self._record(size) for size in reversed(self._sizes)}

    def _record(self, size: int) -> tuple[torch.cuda.CUDAGraph, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        # As in DecodeGraphs: nothing but padding.
        slots, tiles, *_ = self._layout(size)
        self._numbers.device.zero_()
        self._numbers.device[slots:tiles] = -1
        return self._recorder.record(lambda: self._compute(size))

    def record_later(self) -> Iterator[None]:
        """One size more with each."""
        for size in self._later:
            self._graphs[size] = self._record(size)
            self._sizes, self.most = (*self._sizes, size), size
            yield

    def fits(self, counts: Sequence[int]) -> bool:
        singles = self._singles(counts)
        if self._most_decodes and not singles:
            return False
        return sum(counts) <= self.most and len(counts) - singles <= CHUNK_SEQUENCES

    def _singles(self, counts: Sequence[int]) -> int:
        """How many sequences of a step are computed as decodes."""
        return next((i for i, count in enumerate(counts[: self._most_decodes]) if count > 1), self._most_decodes)

    def run(
        self,
        counts: Sequence[int],
        lens: Sequence[int],
        positions: np.ndarray,
        tables: Sequence[Sequence[int]],
        behind: Sequence[int] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits [b, V], likeliest tokens [b] and hidden rows [b, E] at each sequence's last row.

        counts[i] new tokens end at lens[i]. behind: how many rows before its last a sequence's is.
        """
        total, singles = sum(counts), min(self._singles(counts), len(counts))
        size = next(size for size in self._sizes if size >= total)
        at_slots, at_tiles, at_ends, at_lens, at_width, stop = self._layout(size)
        host, width = self._numbers.host, max(map(len, tables))
        host[:at_slots].reshape(self._axes, size)[:, :total] = positions
        slots, tiles = host[at_slots:at_tiles], host[at_tiles:at_ends].reshape(-1, 4)
        slots[:singles] = -1
        slots[total:] = -1
        host[at_tiles:at_width] = 0
        host[at_lens : at_lens + singles] = lens[:singles]
        host[at_width] = width
        first = tile = 0
        for i, (count, length, table) in enumerate(zip(counts, lens, tables, strict=True)):
            host[stop + i * width : stop + i * width + len(table)] = table
            if i >= singles:
                where = np.arange(length - count, length)
                slots[first : first + count] = np.asarray(table)[where // self._block_size] * self._block_size
                slots[first : first + count] += (where % self._block_size).astype(np.int32)
                for offset in range(0, count, self._rows):
                    rows = min(self._rows, count - offset)
                    tiles[tile] = first + offset, rows, length - count + offset, i
                    tile += 1
            first += count
            host[at_ends + i] = first - 1 - (0 if behind is None else behind[i])
        self._numbers.send(stop + len(tables) * width)
        graph, (logits, greedy, hidden) = self._graphs[size]
        graph.replay()
        return logits[: len(counts)], greedy[: len(counts)], hidden[: len(counts)]

    def _layout(self, size: int) -> tuple[int, int, int, int, int, int]:
        """Where slots, tiles, last rows, lengths of decodes, the tables' width and the tables begin."""
        slots = self._axes * size
        tiles = slots + size
        ends = tiles + 4 * (size // self._rows + CHUNK_SEQUENCES)
        lens = ends + self._sequences
        width = lens + self._most_decodes
        return slots, tiles, ends, lens, width, width + 1

    def _compute(self, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        at_slots, at_tiles, at_ends, at_lens, at_width, stop = self._layout(size)
        numbers = self._numbers.device
        positions = numbers[:at_slots].view(self._axes, size)
        slots, tiles = numbers[at_slots:at_tiles], numbers[at_tiles:at_ends].view(-1, 4)
        tables, width = numbers[stop:], numbers[at_width:]
        plan = self._plans.chunk_plan(slots, tiles, tables, width)
        if self._most_decodes:
            lens = numbers[at_lens : min(at_width, at_lens + size)]
            plan.decodes = self._plans.decode_plan(lens, tables, width, self._block_size, self._scratch)
        ends = numbers[at_ends:at_lens]
        inputs = ModelInputs(positions[0] if self._axes == 1 else positions, plan, self._kv, ends)
        # A copy, as the layers may write to what they are given.
        hidden = self._model.forward(self.x[:size].clone(), inputs)
        logits = self._model.logits(hidden)
        results = logits, pick(logits), hidden
        if not self._most_decodes:
            return results
        if self._results is None:
            self._results = torch.empty_like(logits), torch.empty_like(results[1]), torch.empty_like(hidden)
        for kept, result in zip(self._results, results, strict=True):
            kept.copy_(result)
        return self._results


def agrees(graphs: ChunkGraphs, model: Model, kv: list[torch.Tensor], plans: Any, block_size: int) -> bool:
    """Whether recorded steps give the hidden rows that their kernels give one by one, of two steps of random numbers.

    Before the first request: it writes to the first blocks of the cache. False where there are too few of them.
    """
    device = kv[0].device
    random = np.random.default_rng(0)
    for singles, chunks in ((CHUNK_SEQUENCES + 1, [40, 1, 70]), (7, [90])):
        counts = [1] * singles + chunks
        lens = [count + int(random.integers(2 * block_size)) for count in counts]
        sizes = [-(-length // block_size) for length in lens]
        if sum(sizes) > kv[0].shape[1]:
            return False
        order = random.permutation(sum(sizes)).tolist()
        tables = [[order.pop() for _ in range(size)] for size in sizes]
        for layer in kv:
            layer[:, : sum(sizes)].normal_()
        at = np.concatenate([np.arange(length - count, length) for count, length in zip(counts, lens, strict=True)])
        positions = np.broadcast_to(at, (model.position_axes, len(at)))
        x = model.embed(upload(random.integers(0, model.vocab_size, len(at)), device))
        graphs.x[: len(x)] = x
        ours = graphs.run(counts, lens, positions, tables)[2].float()
        where = upload(np.array(positions if len(positions) > 1 else at), device)
        hidden = model.forward(x, ModelInputs(where, plans(counts, lens, tables, block_size, device), kv))
        theirs = hidden[upload(np.cumsum(counts) - 1, device)].float()
        errors = (ours - theirs).norm(dim=1) / theirs.norm(dim=1)
        if not bool((errors < _AGREEMENT).all()):  # NaN is no agreement
            return False
    for layer in kv:
        layer.zero_()
    return True


class ShapeGraphs:
    """An encoder with one graph per shape of input, for shapes that come a second time.

    Large inputs run as they are: the device is busy for longer than launching takes.
    """

    _MOST_KEPT = 48
    _MOST_WANTED = 8
    _MOST_ELEMENTS = 1 << 25

    def __init__(
        self, encode: Callable[..., torch.Tensor], at_rest: bool = False, recorder: Recorder | None = None
    ) -> None:
        """at_rest: nobody is to wait for a recording, which takes 0.1 to 1.4 s: it is left to `record_wanted`, unless
        a shape comes too often before. The encoder must then have no effect but its result."""
        self._encode = encode
        self._most_seen = _OFTEN if at_rest else 2
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._wanted: dict[tuple[Any, ...], Sequence[Any]] = {}
        self._graphs: OrderedDict[tuple[Any, ...], _Recorded] = OrderedDict()
        # One after the other they may compute in the same memory, as results are copied out of it at once.
        self._recorder = recorder or Recorder()

    def __call__(self, *args: Any) -> torch.Tensor:
        """args: tensors on the device, and what a graph may depend on as it is: None, numbers, booleans."""
        if args[0].numel() > self._MOST_ELEMENTS:
            return self._encode(*args)
        key = tuple((arg.shape, arg.dtype) if isinstance(arg, torch.Tensor) else arg for arg in args)
        graph = self._graphs.get(key)
        if graph is None:
            self._seen[key] += 1
            if len(self._seen) > 1000:
                self._seen.clear()  # shapes that never repeat
            if self._seen[key] < self._most_seen:
                if self._seen[key] > 1 and len(self._wanted) < self._MOST_WANTED:
                    self._wanted[key] = args
                return self._encode(*args)
            graph = self._record(key, args)
        self._graphs.move_to_end(key)
        return graph.run(args)

    def record_wanted(self) -> bool:
        """Record one of the shapes that wait for it. False: there are none."""
        if not self._wanted:
            return False
        self._record(*self._wanted.popitem())
        return True

    def _record(self, key: tuple[Any, ...], args: Sequence[Any]) -> _Recorded:
        self._wanted.pop(key, None)
        self._seen.pop(key, None)
        if len(self._graphs) == self._MOST_KEPT:
            self._graphs.popitem(last=False)
        graph = self._graphs[key] = _Recorded(self._encode, args, self._recorder)
        return graph


class _Recorded:
    """One shape: its inputs are copied to where the graph reads them, its result out of where it writes it."""

    def __init__(self, encode: Callable[..., torch.Tensor], args: Sequence[Any], recorder: Recorder) -> None:
        self._inputs = [arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in args]
        # For a shape that comes again cuDNN's attention is worth the time it takes to prepare; see prefer_any_shape.
        before = torch.backends.cuda.cudnn_sdp_enabled()
        torch.backends.cuda.enable_cudnn_sdp(True)
        try:
            self._graph, self._result = recorder.record(lambda: encode(*self._inputs))
        finally:
            torch.backends.cuda.enable_cudnn_sdp(before)

    def run(self, args: Sequence[Any]) -> torch.Tensor:
        for kept, arg in zip(self._inputs, args, strict=True):
            if isinstance(arg, torch.Tensor):
                kept.copy_(arg)
        self._graph.replay()
        return self._result.clone()
