"""Log-mel features of live sound, chunk by chunk, as MiniCPM-o's streaming processor makes them.

The reference transforms everything it holds again for every chunk; here only frames that can still change are. A frame
is stable once no later sample reaches into its window.
S samples at 16 kHz · F mel frames, 100 per second
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sensorium.models.minicpm_mel import RATE, log_powers

CHUNK_FRAMES = 100
FIRST_SAMPLES = 16_560
"""Zeros in front make the first chunk of a turn at least so long: 1035 ms."""
_HOP, _REACH = 160, 200
_DUPLEX_CONTEXT = 2
DUPLEX_SHAPES = (
    (CHUNK_FRAMES + _DUPLEX_CONTEXT, 0, _DUPLEX_CONTEXT),
    (CHUNK_FRAMES + 2 * _DUPLEX_CONTEXT, _DUPLEX_CONTEXT, _DUPLEX_CONTEXT),
)
"""Frames of a full-duplex session's first unit and of others, and of them those of the neighbours before and after."""
_LONGEST, _DROPPED = 30 * RATE, 10 * RATE
# Below this much sound the loudest frame says little: only the fixed floor counts, which the logarithm has already.
_DYNAMIC = 5 * RATE


@dataclass(frozen=True, slots=True, eq=False)
class LiveChunk:
    """mel [80, F] float32, whose first `before` and last `after` frames belong to the neighbouring chunks."""

    mel: np.ndarray
    before: int = 0
    after: int = 0

    def rows(self, pool: int) -> int:
        """Embeddings that the encoder makes of the chunk, averaging `pool` of its frames at a time."""
        frames = (self.mel.shape[1] - 1) // 2 + 1
        return (frames - min(self.before, 1) - min(self.after, 1)) // pool


class LiveMel:
    """One stream. redundancy: frames of context given on each side of a chunk (duplex 2, half duplex 0)."""

    def __init__(self, redundancy: int = 0) -> None:
        self.redundancy = redundancy
        self._samples = np.zeros(0)
        self._stable = np.zeros((0, 80))
        self._start = 0
        self._next = 0

    def push(self, samples: np.ndarray, *, last: bool = False) -> LiveChunk | None:
        """More sound [S] float32 -> the whole chunks that it completes, if any; `last` gives out what is left too."""
        self._samples = np.concatenate([self._samples, samples])
        if len(self._samples) >= _LONGEST:
            self._drop()
        frames = self._frames()
        known = len(self._stable) if not last else len(frames)
        ready = known - self.redundancy - (self._next - self._start)
        count = len(frames) - (self._next - self._start) if last else ready // CHUNK_FRAMES * CHUNK_FRAMES
        if count <= 0:
            return None
        first = max(self._next - self._start - self.redundancy, 0)
        stop = min(self._next - self._start + count + self.redundancy, known)
        if len(self._samples) >= _DYNAMIC:
            frames = np.maximum(frames, frames.max() - 8.0)
        mel = ((frames[first:stop].T + 4.0) / 4.0).astype(np.float32)
        before = self._next - self._start - first
        self._next += count
        return LiveChunk(mel, before, mel.shape[1] - before - count)

    def _frames(self) -> np.ndarray:
        """[F, 80] of all samples held. Frames that can no longer change are kept for the next time."""
        length = len(self._samples)
        count = length // _HOP
        at = len(self._stable)
        if count <= at:
            return self._stable
        left = at * _HOP - _REACH
        tail = self._samples[max(left, 0) :]
        padded = np.pad(tail, (max(-left, 0), _REACH), mode="reflect")
        frames = np.concatenate([self._stable, log_powers(padded, count - at)])
        self._stable = frames[: max((length - _REACH) // _HOP + 1, 0)]
        return frames

    def _drop(self) -> None:
        """Forget the oldest 10 s. The first two frames of what stays reach over its new edge."""
        self._samples = self._samples[_DROPPED:]
        self._stable = self._stable[_DROPPED // _HOP :].copy()
        self._start += _DROPPED // _HOP
        edge = np.pad(self._samples[: 3 * _REACH], (_REACH, 0), mode="reflect")
        self._stable[:2] = log_powers(edge, 2)


class LiveSound:
    """Sound of a full-duplex session on its way to the encoder: one second for every unit."""

    def __init__(self) -> None:
        self._mel = LiveMel(_DUPLEX_CONTEXT)
        self._waiting = np.zeros(0, dtype=np.float32)
        self._started = False

    @property
    def needed(self) -> int:
        """Samples that a unit takes: whole frames of the first 1035 ms, then of each second."""
        return RATE if self._started else FIRST_SAMPLES // _HOP * _HOP

    def missing(self, samples: int) -> int:
        """How many samples a unit lacks if so many are added now; 0 or less if it can be made."""
        return self.needed - self.num_waiting - samples if self._started else 0 if samples else self.needed

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def take(self, samples: np.ndarray) -> LiveChunk:
        """Add samples [S] float32 and take one unit's sound; missing() says beforehand whether there is enough."""
        waiting = np.concatenate([self._waiting, samples])
        if not self._started and len(waiting) < FIRST_SAMPLES:
            waiting = np.pad(waiting, (FIRST_SAMPLES - len(waiting), 0))
        count = self.needed
        self._started, self._waiting = True, waiting[count:]
        chunk = self._mel.push(waiting[:count])
        assert chunk is not None, "a unit's samples complete a chunk"
        return chunk

    def keep(self, samples: np.ndarray) -> None:
        """Add samples that do not make a unit yet."""
        self._waiting = np.concatenate([self._waiting, samples])
