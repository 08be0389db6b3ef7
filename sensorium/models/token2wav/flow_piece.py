"""One shape of a chunk: all numbers that tell one chunk from another lie in one tensor, and the rest is fixed.

So the computation can be recorded once and replayed with other numbers. B streams · k codes · T frames · L rows seen
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from sensorium.models.token2wav.config import FRAMES_PER_CODE, LOOKAHEAD
from sensorium.models.token2wav.dit import Estimator, EstimatorPast
from sensorium.models.token2wav.encoder import Encoder, EncoderPast
from sensorium.models.token2wav.flow_state import FlowState, FlowStream, Rows
from sensorium.models.token2wav.rows import KeyView
from sensorium.models.token2wav.steps import Steps

FIXED = 3
"""Numbers of a stream beside its codes and tables: its slot, where its noise begins, how many codes make sound."""


class PieceShape(NamedTuple):
    """batch: B. lengths: L at the rate of codes, at the rate of frames, and of the estimator."""

    batch: int
    codes: int
    last: bool
    lengths: tuple[int, int, int]

    @property
    def new(self) -> tuple[int, int, int]:
        heard = self.codes - (0 if self.last else LOOKAHEAD)
        return heard, heard * FRAMES_PER_CODE, heard * FRAMES_PER_CODE

    @property
    def width(self) -> int:
        return self.codes + FIXED + sum(self.lengths)


def shape_of(streams: Sequence[FlowStream], num_codes: int, last: bool) -> PieceShape:
    """The smallest shape that holds these streams."""
    shape = PieceShape(len(streams), num_codes, last, (0, 0, 0))
    code, frame, estimator = shape.new
    lengths = (
        max(len(stream.codes) for stream in streams) + code,
        max(len(stream.frames) for stream in streams) + frame,
        max(len(stream.estimator) for stream in streams) + estimator,
    )
    return shape._replace(lengths=lengths)


def numbers_of(
    shape: PieceShape, streams: Sequence[FlowStream], codes: Sequence[Sequence[int]], new: Sequence[Rows]
) -> np.ndarray:
    """int64 [streams, shape.width]: codes, the other numbers, then the three tables, padded in front."""
    numbers = np.zeros((len(streams), shape.width), dtype=np.int64)
    fill_in(numbers, shape, streams, codes, new)
    return numbers


def fill_in(
    numbers: np.ndarray,
    shape: PieceShape,
    streams: Sequence[FlowStream],
    codes: Sequence[Sequence[int]],
    new: Sequence[Rows],
) -> None:
    """Numbers of streams over those of streams that nobody hears; pieces may be shorter than the shape's."""
    for row, stream, given, rows in zip(numbers, streams, codes, new, strict=False):
        row[: shape.codes] = -1
        row[: len(given)] = given
        row[shape.codes : shape.codes + FIXED] = stream.slot, len(stream.estimator), len(rows.codes)
        end = shape.codes + FIXED
        tables = (stream.codes, rows.codes), (stream.frames, rows.frames), (stream.estimator, rows.estimator)
        for length, count, (seen, own) in zip(shape.lengths, shape.new, tables, strict=True):
            end += length
            first = end - count
            row[first - len(seen) : first] = seen
            row[first : first + len(own)] = own
            row[first + len(own) : end] *= -1  # rows of nobody: filled, and not seen


def is_padded(numbers: np.ndarray, shape: PieceShape) -> bool:
    return bool((numbers[:, shape.codes + FIXED :] <= 0).any())


class Piece:
    def __init__(
        self, shape: PieceShape, encoder: Encoder, estimator: Estimator, state: FlowState, noise: torch.Tensor
    ) -> None:
        self.shape = shape
        self._encoder, self._estimator, self._state, self._noise = encoder, estimator, state, noise

    def compute(self, numbers: torch.Tensor, padded: bool) -> Steps[torch.Tensor]:
        """numbers int64 [B, width], on the device, to mel [B, T, 80]. Writes the state of the streams, at the end.

        Pools may grow between slices, so what they hold is looked up where it is used.
        """
        k, state = self.shape.codes, self._state
        codes, slots, starts, heard, *tables = numbers.split((k, 1, 1, 1, *self.shape.lengths), 1)
        slots = slots[:, 0].contiguous()
        views = [
            KeyView(pool, table, new, padded)
            for pool, table, new in zip(
                (state.codes, state.frames, state.estimator), tables, self.shape.new, strict=True
            )
        ]
        before = state.encoder_columns.data[0].index_select(0, slots)
        past = EncoderPast(views[0], views[1], before, heard[:, 0] if padded else None)
        mu, after = self._encoder(codes, self.shape.last, past)
        at = starts + torch.arange(mu.shape[1], device=mu.device)
        noise = self._noise[at.clamp(max=len(self._noise) - 1)]
        speaker = state.speakers.data[0].index_select(0, slots)
        columns = [step.index_select(1, slots) for step in state.estimator_columns.data]
        seen = EstimatorPast(views[2], columns, heard[:, 0] * FRAMES_PER_CODE if padded else None)
        yield None
        mel, columns = yield from self._estimator.solve(noise, mu, speaker, torch.zeros_like(mu), seen)
        state.encoder_columns.data[0].index_copy_(0, slots, after)
        for step, made in zip(state.estimator_columns.data, columns, strict=True):
            step.index_copy_(1, slots, made)
        return mel
