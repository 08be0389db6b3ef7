"""What flow matching remembers: pools of rows, and who holds which of them."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import torch

from sensorium.models.token2wav.config import MELS, FlowConfig
from sensorium.models.token2wav.dit import ROWS, TAPS_PAST
from sensorium.models.token2wav.encoder import CODE_PAST, FRAME_PAST
from sensorium.models.token2wav.prompt import VoicePrompt
from sensorium.models.token2wav.rows import RowPool
from sensorium.models.token2wav.trimming import Trimming, trim_encoder, trim_estimator


@dataclass(slots=True)
class Rows:
    """Rows that one owner holds, and gives back when it is gone. slot: its row of what convolutions keep."""

    codes: list[int] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    estimator: list[int] = field(default_factory=list)
    slot: list[int] = field(default_factory=list)


class FlowVoice:
    """The state after a voice: shared by all its streams, freed when neither they nor anyone else refers to it."""

    def __init__(self, prompt: VoicePrompt, rows: Rows, state: FlowState) -> None:
        self.prompt, self.rows, self.state = prompt, rows, state

    @property
    def frames(self) -> int:
        return len(self.prompt.mel)


class FlowStream:
    """What one stream has said so far, as tables of pool rows."""

    def __init__(self, voice: FlowVoice, owned: Rows) -> None:
        self.voice, self.owned = voice, owned
        self.codes, self.frames = list(voice.rows.codes), list(voice.rows.frames)
        self.estimator = list(voice.rows.estimator)

    @property
    def slot(self) -> int:
        return self.owned.slot[0]


class FlowState:
    """The pools: keys and values of frames, and per voice or stream (its slot) columns and the projected speaker."""

    def __init__(self, c: FlowConfig, n_timesteps: int, device: torch.device, dtype: torch.dtype) -> None:
        inner, kind = c.heads * c.head_dim, (device, dtype)
        self.codes = RowPool(1, (c.num_blocks, 2), (c.width,), *kind)
        self.frames = RowPool(1, (c.num_up_blocks, 2), (c.width,), *kind)
        self.estimator = RowPool(n_timesteps, (c.depth, 2), (ROWS * inner,), *kind)
        self.encoder_columns = RowPool(1, (), (CODE_PAST + FRAME_PAST, c.width), *kind)
        self.estimator_columns = RowPool(n_timesteps, (c.depth,), (2, TAPS_PAST, ROWS, c.hidden), *kind)
        self.speakers = RowPool(1, (), (MELS,), *kind)
        self.slots = (self.encoder_columns, self.estimator_columns, self.speakers)

    @property
    def pools(self) -> tuple[RowPool, ...]:
        return self.codes, self.frames, self.estimator, *self.slots

    @property
    def bytes_used(self) -> int:
        tables = sum(pool.used * pool.bytes_per_row for pool in (self.codes, self.frames, self.estimator))
        return tables + self.slots[0].used * sum(pool.bytes_per_row for pool in self.slots)

    def allocate(self, codes: int, frames: int) -> Rows:
        return Rows(self.codes.allocate(codes), self.frames.allocate(frames), self.estimator.allocate(frames))

    def allocate_slot(self) -> list[int]:
        """One row, the same in each of the three pools that have a row per voice or stream; the first one counts."""
        slot = self.slots[0].allocate(1)
        for pool in self.slots[1:]:
            pool.reserve(self.slots[0].rows - 1)
        return slot

    def copy_slot(self, source: int, to: int) -> None:
        for pool in self.slots:
            pool.copy(source, to)

    def free(self, rows: Rows) -> None:
        self.codes.free(rows.codes)
        self.frames.free(rows.frames)
        self.estimator.free(rows.estimator)
        self.slots[0].free(rows.slot)
        rows.codes, rows.frames, rows.estimator, rows.slot = [], [], [], []

    def free_with(self, owner: object, rows: Rows) -> None:
        """Rows go back when their owner is collected."""
        weakref.finalize(owner, self.free, rows).atexit = False

    def advance(self, stream: FlowStream, new: Rows, rule: Trimming) -> None:
        """Adds a chunk's rows to the tables of its stream, and takes back the rows that it no longer sees."""
        voice_frames, owned = stream.voice.frames, stream.owned
        stream.estimator = trim_estimator(new.estimator + stream.estimator, voice_frames, rule)
        stream.codes, stream.frames = trim_encoder(
            stream.codes + new.codes, stream.frames + new.frames, voice_frames, rule
        )
        owned.codes = _keep(self.codes, owned.codes + new.codes, stream.codes)
        owned.frames = _keep(self.frames, owned.frames + new.frames, stream.frames)
        owned.estimator = _keep(self.estimator, owned.estimator + new.estimator, stream.estimator)


def _keep(pool: RowPool, rows: list[int], seen: list[int]) -> list[int]:
    still = set(seen)
    pool.free([row for row in rows if row not in still])
    return [row for row in rows if row in still]
