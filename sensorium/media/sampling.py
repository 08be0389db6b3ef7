"""Which frames of a video a model sees, and which sound belongs to each. Plain arithmetic; decoding is elsewhere.

Two published recipes are followed exactly: one frame a second with the sound of that second (MiniCPM-o), and frames
packed into groups with times in tenths of a second (MiniCPM-V 4.5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

from sensorium.media.stack import concat_images

RATE = 16_000
MAX_FRAMES = 64
PACKED_FRAMES, MAX_PACKING = 180, 3

T = TypeVar("T")
Decode = Callable[[Sequence[int]], Sequence[np.ndarray]]


def second_times(duration_s: float, max_frames: int = MAX_FRAMES) -> list[float]:
    """One time per second; of a longer video `max_frames` times on a grid of tenths of a second."""
    if duration_s <= max_frames:
        return [float(second) for second in range(math.ceil(duration_s))]
    return _thin([round(0.1 * tenth, 1) for tenth in range(int(duration_s / 0.1))], max_frames)


def uniform(total: int, duration_s: float, num_frames: int | None = None, fps: float | None = None) -> list[int]:
    """Indices of num_frames frames, or of fps a second where that is fewer, from the first to the last."""
    count = min(num_frames or total, total)
    if fps is not None:
        count = min(count, math.floor(duration_s * fps))
    return np.linspace(0, total - 1, max(count, 1)).astype(int).tolist()


def recovered(targets: Sequence[int], total: int, frames: Iterable[tuple[int, T]]) -> Iterator[tuple[int, int, T]]:
    """(target, index, frame) for every target that has its frame, or else one that comes before the next target.

    frames: all that decode, with their indices, in order. One stands for one target at most; the oldest comes first.
    """
    ends = dict(zip(targets, [*targets[1:], total], strict=True))
    todo, pending = list(targets), list[int]()
    for index, frame in frames:
        while todo and todo[0] < index:
            pending.append(todo.pop(0))
        pending = [target for target in pending if ends[target] > index]
        if todo and todo[0] == index:
            yield todo.pop(0), index, frame
        elif pending:
            yield pending.pop(0), index, frame
        if not todo and not pending:
            return


def between_times(duration_s: float, stack_frames: int, max_frames: int = MAX_FRAMES) -> list[float]:
    """The stack_frames - 1 times between every second and the next."""
    steps = [second + j / stack_frames for second in range(math.ceil(duration_s)) for j in range(1, stack_frames)]
    return _thin([time for time in steps if time < duration_s], max_frames * (stack_frames - 1))


def cut_track(samples: np.ndarray, times: Sequence[float]) -> list[np.ndarray]:
    """samples [S] at 16 kHz, cut at the given times (seconds); pieces are padded with silence to at least 0.1 s."""
    pieces = [samples[int(start * RATE) : int(end * RATE)] for start, end in pairwise(times)]
    return [np.pad(piece, (0, max(0, RATE // 10 - len(piece)))) for piece in pieces]


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """frames[i] with the sound from its time to the next; stacked[s]: the frames inside second s as one picture."""

    frames: list[np.ndarray]
    sounds: list[np.ndarray] | None
    stacked: list[np.ndarray | None] | None


def frame_audio_segments(
    decode: Decode,
    num_frames: int,
    fps: float,
    samples: np.ndarray | None,
    *,
    stack_frames: int = 1,
    last_vad_timestamp: float | None = None,
    adjust_audio_length: bool = False,
) -> Segments:
    """The recipe of MiniCPM-o: decode(frame indices) gives frames, samples [S] is the sound track at 16 kHz.

    last_vad_timestamp (seconds) ends the video early. adjust_audio_length gives every frame one second of sound.
    """
    duration = num_frames / fps if last_vad_timestamp is None else last_vad_timestamp
    times = second_times(duration)
    indices = [int(time * fps) for time in times]
    if duration > MAX_FRAMES:
        indices = [min(index, num_frames - 1) for index in indices]
    frames = list(decode(indices))
    sounds = None
    if samples is not None and adjust_audio_length:
        track = np.zeros(len(frames) * RATE, dtype=samples.dtype)
        track[: min(len(track), len(samples))] = samples[: len(track)]
        sounds = list(track.reshape(-1, RATE))
    elif samples is not None:
        sounds = cut_track(samples, [*times, duration])
    return Segments(frames, sounds, _stacked(decode, num_frames, fps, duration, stack_frames))


def _stacked(
    decode: Decode, num_frames: int, fps: float, duration_s: float, stack_frames: int
) -> list[np.ndarray | None] | None:
    if stack_frames <= 1:
        return None
    times = between_times(duration_s, stack_frames)
    inside: list[list[np.ndarray]] = [[] for _ in range(math.ceil(duration_s))]
    for time, frame in zip(times, decode([min(int(time * fps), num_frames - 1) for time in times]), strict=True):
        inside[int(time)].append(frame)
    return [concat_images(frames) if frames else None for frames in inside]


def packed_frames(
    num_frames: int, fps: float, choose_fps: float = 3, force_packing: int | None = None
) -> tuple[list[int], list[list[int]]]:
    """The recipe of MiniCPM-V 4.5: frame indices, and their temporal ids grouped as they are packed."""
    duration = num_frames / fps
    packing = 1
    if choose_fps * int(duration) <= PACKED_FRAMES:
        count = round(min(choose_fps, round(fps)) * min(PACKED_FRAMES, duration))
    else:
        packing = math.ceil(duration * choose_fps / PACKED_FRAMES)
        count = round(duration * choose_fps) if packing <= MAX_PACKING else PACKED_FRAMES * MAX_PACKING
        packing = min(packing, MAX_PACKING)
    if force_packing is not None:
        packing = min(force_packing, MAX_PACKING)
    gap = num_frames / count
    indices = [int(position * gap + gap / 2) for position in range(count)]
    ids = temporal_ids([index / fps for index in indices], duration)
    return indices, [ids[start : start + packing] for start in range(0, count, packing)]


def temporal_ids(times: Sequence[float], duration_s: float) -> list[int]:
    """Tenths of a second: the nearest point of the grid 0, 0.1, … divided by 0.1 and cut off, as in training."""
    grid = np.arange(0, duration_s, 0.1)
    nearest = np.abs(grid[None, :] - np.asarray(times, dtype=np.float64)[:, None]).argmin(axis=1)
    return (grid[nearest] / 0.1).astype(np.int32).tolist()


def _thin(times: list[float], count: int) -> list[float]:
    """At most `count` of the times, evenly spread."""
    if len(times) <= count:
        return times
    return [times[int(position)] for position in np.linspace(0, len(times) - 1, count)]
