"""Pieces of flow matching in few fixed shapes, on a GPU as CUDA graphs: some 7,000 kernels, one launch.

All of them are computed as whole pieces: what is shorter, or the last of its utterance, is padded behind its end.
Batches are padded with a stream that nobody hears, tables to multiples of 64 rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from sensorium.models.token2wav.config import CODES_PER_S, FRAMES_PER_CODE, LOOKAHEAD
from sensorium.models.token2wav.fixed import FixedShapes, batch_for
from sensorium.models.token2wav.flow_piece import FIXED, PieceShape, fill_in, shape_of
from sensorium.models.token2wav.flow_state import FlowState, FlowStream, Rows
from sensorium.models.token2wav.trimming import TAIL_FRAMES

_ROUND = 64
PIECE_CODES = CODES_PER_S + LOOKAHEAD
Compute = Callable[[PieceShape, torch.Tensor], torch.Tensor]
"""From a shape and its numbers on the device, padded, to mel [B, T, 80]."""


class FlowGraphs:
    def __init__(self, compute: Compute, state: FlowState, device: torch.device) -> None:
        self._compute = compute
        self.shapes = FixedShapes(state.pools, device)
        self._nobody = state.allocate(CODES_PER_S, CODES_PER_S * FRAMES_PER_CODE)
        self._nobody.slot = state.allocate_slot()

    def takes(self, num_codes: int, last: bool) -> bool:
        return num_codes <= (CODES_PER_S if last else PIECE_CODES)

    def run(self, streams: Sequence[FlowStream], codes: Sequence[Sequence[int]], new: Sequence[Rows]) -> torch.Tensor:
        """mel [B, 50, 80], of each stream as many frames as it has new rows; the next run may overwrite it."""
        shape = fixed_shape(streams)
        blank = self._blank(shape)
        numbers = blank.copy()
        fill_in(numbers, shape, streams, codes, new)
        return self.shapes.run(shape, partial(self._compute, shape), blank, numbers)[: len(streams)]

    def _blank(self, shape: PieceShape) -> np.ndarray:
        """Numbers of streams that write rows of their own and are not heard."""
        numbers = np.zeros((shape.batch, shape.width), dtype=np.int64)
        numbers[:, shape.codes] = self._nobody.slot[0]
        numbers[:, shape.codes + 2] = CODES_PER_S
        end = shape.codes + FIXED
        for length, rows in zip(
            shape.lengths, (self._nobody.codes, self._nobody.frames, self._nobody.estimator), strict=True
        ):
            end += length
            numbers[:, end - len(rows) : end] = rows
        return numbers


def fixed_shape(streams: Sequence[FlowStream]) -> PieceShape:
    """One of few shapes that hold these streams, now and for the rest of their utterances."""
    exact = shape_of(streams, PIECE_CODES, last=False)
    most = max(stream.voice.frames for stream in streams) + TAIL_FRAMES + exact.new[1]
    frames, estimator = (-(-max(length, most) // _ROUND) * _ROUND for length in exact.lengths[1:])
    codes = -(-max(exact.lengths[0], most // FRAMES_PER_CODE) // _ROUND) * _ROUND
    return PieceShape(batch_for(len(streams)), PIECE_CODES, False, (codes, frames, estimator))
