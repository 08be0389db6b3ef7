"""Whole pieces of flow matching in few fixed shapes, on a GPU as CUDA graphs: some 7,000 kernels, one launch.

Batches are padded to powers of two with a stream that nobody hears, tables to multiples of 64 rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from sensorium.models.token2wav.config import CODES_PER_S, FRAMES_PER_CODE, LOOKAHEAD
from sensorium.models.token2wav.flow_piece import PieceShape, numbers_of, shape_of
from sensorium.models.token2wav.flow_state import FlowState, FlowStream, Rows
from sensorium.models.token2wav.trimming import TAIL_FRAMES

_ROUND = 64
PIECE_CODES = CODES_PER_S + LOOKAHEAD
"""Pieces of other sizes are first and last ones: they come once in an utterance and are computed as they are."""
Compute = Callable[[PieceShape, torch.Tensor, bool], torch.Tensor]
"""From a shape, its numbers on the device, and whether they are padded, to mel [B, T, 80]."""
_Graph = tuple[int, "torch.cuda.CUDAGraph | None", torch.Tensor]


class FlowGraphs:
    def __init__(self, compute: Compute, state: FlowState, device: torch.device) -> None:
        self._compute, self._state, self._device = compute, state, device
        self._graphs: dict[PieceShape, tuple[torch.Tensor, _Graph]] = {}
        self._memory = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._nobody = state.allocate(CODES_PER_S, CODES_PER_S * FRAMES_PER_CODE)
        self._nobody.slot = state.allocate_slot()

    def takes(self, num_codes: int, last: bool) -> bool:
        return num_codes == PIECE_CODES and not last

    def run(self, streams: Sequence[FlowStream], codes: Sequence[Sequence[int]], new: Sequence[Rows]) -> torch.Tensor:
        """mel [B, T, 80], which the next run may overwrite."""
        shape = fixed_shape(streams)
        numbers = self._padding(shape)
        numbers[: len(streams)] = numbers_of(shape, streams, codes, new)
        device_numbers, graph = self._recorded(shape)
        device_numbers.copy_(torch.from_numpy(numbers))
        _, recorded, mel = graph
        if recorded is None:
            mel = self._compute(shape, device_numbers, True)
        else:
            recorded.replay()
        return mel[: len(streams)]

    def _padding(self, shape: PieceShape) -> np.ndarray:
        """Numbers of streams that write rows of their own and are not heard."""
        numbers = np.zeros((shape.batch, shape.width), dtype=np.int64)
        numbers[:, shape.codes] = self._nobody.slot[0]
        end = shape.codes + 2
        for length, rows in zip(
            shape.lengths, (self._nobody.codes, self._nobody.frames, self._nobody.estimator), strict=True
        ):
            end += length
            numbers[:, end - len(rows) : end] = rows
        return numbers

    def _recorded(self, shape: PieceShape) -> tuple[torch.Tensor, _Graph]:
        """The graph of a shape; pools that have grown since it was recorded lie elsewhere now."""
        age = sum(pool.grown for pool in self._state.pools)
        found = self._graphs.get(shape)
        if found is not None and found[1][0] == age:
            return found
        numbers = torch.from_numpy(self._padding(shape)).to(self._device)
        made = numbers, self._record(shape, numbers, age)
        self._graphs[shape] = made
        return made

    def _record(self, shape: PieceShape, numbers: torch.Tensor, age: int) -> _Graph:
        if self._device.type != "cuda":
            return age, None, numbers
        self._compute(shape, numbers, True)  # compiles kernels and grows what memory they keep
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            mel = self._compute(shape, numbers, True)
        return age, graph, mel


def fixed_shape(streams: Sequence[FlowStream]) -> PieceShape:
    """One of few shapes that hold these streams, now and for the rest of their utterances."""
    exact = shape_of(streams, PIECE_CODES, last=False)
    most = max(stream.voice.frames for stream in streams) + TAIL_FRAMES + exact.new[1]
    frames, estimator = (-(-max(length, most) // _ROUND) * _ROUND for length in exact.lengths[1:])
    codes = -(-max(exact.lengths[0], most // FRAMES_PER_CODE) // _ROUND) * _ROUND
    return PieceShape(1 << (len(streams) - 1).bit_length(), PIECE_CODES, False, (codes, frames, estimator))
