"""Log-mel features of live sound, chunk by chunk, as MiniCPM-o's streaming processor makes them.

The reference transforms everything it holds again for every chunk; here only frames that can still change are. A frame
is stable once no later sample reaches into its window.
S samples at 16 kHz · F mel frames, 100 per second
"""

from __future__ import annotations

from collections import deque
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
    """One stream. redundancy: frames of context given on each side of a chunk (duplex 2, half duplex 0).

    The reference holds 20 to 30 s of sound, of which it drops the oldest 10 s at a time. What that does to a chunk is
    which frames its loudest one is sought among; so of old frames only their loudest bands are held.
    """

    def __init__(self, redundancy: int = 0) -> None:
        self.redundancy = redundancy
        self._num_samples = 0
        self._samples = np.zeros(0)
        """The newest ones, which frames are still to be made of."""
        self._stable = np.zeros((0, 80))
        self._first = 0
        """The number of the first frame in _stable, whose frames chunks are still to be made of."""
        self._next = 0
        self._start = 0
        """The first frame that the reference holds."""
        self._peaks = np.zeros(0)
        """[F] of the stable frames from there on."""
        self._edge = _DROPPED
        self._edges: deque[np.ndarray] = deque()

    def push(self, samples: np.ndarray, *, last: bool = False) -> LiveChunk | None:
        """More sound [S] float32 -> the whole chunks that it completes, if any; `last` gives out what is left too."""
        self._samples = np.concatenate([self._samples, samples])
        self._num_samples += len(samples)
        self._note_edges()
        frames, loudest = self._frames()
        stop = self._first + len(frames)
        known = stop if last else self._num_stable
        ready = known - self.redundancy - self._next
        count = stop - self._next if last else ready // CHUNK_FRAMES * CHUNK_FRAMES
        chunk = None
        if count > 0:
            before = min(self._next, self.redundancy)
            after = min(known - self._next - count, self.redundancy)
            at = self._next - self._first
            given = frames[at - before : at + count + after]
            if self._num_samples >= _DYNAMIC:
                given = np.maximum(given, loudest - 8.0)
            chunk = LiveChunk(((given.T + 4.0) / 4.0).astype(np.float32), before, after)
            self._next += count
        self._let_go()
        return chunk

    @property
    def _num_stable(self) -> int:
        return self._first + len(self._stable)

    def _frames(self) -> tuple[np.ndarray, float]:
        """[F, 80] from frame `_first` on, and the loudest of all held. Those that can no longer change are kept."""
        at, count = self._num_stable, self._num_samples // _HOP
        new = np.zeros((0, 80))
        if count > at:
            left = at * _HOP - _REACH
            tail = self._samples[max(left, 0) - self._num_samples + len(self._samples) :]
            new = log_powers(np.pad(tail, (max(-left, 0), _REACH), mode="reflect"), count - at)
        peaks = new.max(1)
        num_stable = max((self._num_samples - _REACH) // _HOP + 1 - at, 0)
        frames = np.concatenate([self._stable, new])
        self._stable = frames[: len(self._stable) + num_stable]
        self._peaks = np.concatenate([self._peaks, peaks[:num_stable]])
        if self._num_samples - self._start * _HOP >= _LONGEST:
            self._drop()
        return frames, float(np.concatenate([self._peaks, peaks[num_stable:]]).max(initial=-np.inf))

    def _note_edges(self) -> None:
        """The first two frames of what stays after a drop reach over its new edge."""
        while self._num_samples >= self._edge + 3 * _REACH:
            at = self._edge - self._num_samples + len(self._samples)
            edge = np.pad(self._samples[at : at + 3 * _REACH], (_REACH, 0), mode="reflect")
            self._edges.append(log_powers(edge, 2).max(1))
            self._edge += _DROPPED

    def _drop(self) -> None:
        """Forget the oldest 10 s."""
        self._start += _DROPPED // _HOP
        self._peaks = self._peaks[_DROPPED // _HOP :]
        self._peaks[:2] = self._edges.popleft()

    def _let_go(self) -> None:
        """Keep no frame and no sample that nothing is made of any more."""
        first = max(self._next - self.redundancy, self._first)
        self._stable, self._first = self._stable[first - self._first :].copy(), first
        since = min(max(self._num_stable * _HOP - _REACH, 0), self._edge)
        self._samples = self._samples[since - self._num_samples + len(self._samples) :].copy()


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
