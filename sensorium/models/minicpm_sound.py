"""Sounds of MiniCPM-o prompts, and the recordings in which they are encoded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sensorium.models.minicpm_mel import RATE, log_mel, mel_frames, pooled_rows, split_clips, total_rows
from sensorium.types import MediaItem

PREPROCESSING = b"minicpm-1"
"""Part of every content key of the family; changed whenever its arrays change their meaning."""


@dataclass(frozen=True, slots=True, eq=False)
class Sound:
    """samples [S] float32 at 16 kHz. Sounds of one group are encoded as one recording.

    alone: the recording of this sound on its own. embeds [rows, E] float32 stand for a sound that the caller encoded.
    """

    samples: np.ndarray
    digest: bytes
    group: int = 0
    alone: MediaItem | None = None
    embeds: np.ndarray | None = None

    def rows(self, pool: int) -> int:
        if self.embeds is not None:
            return len(self.embeds)
        return max(total_rows(len(self.samples), pool), RATE // 10 // 320 // pool)


def recording(group: Sequence[Sound], pool: int, on_device: bool = False) -> MediaItem:
    """All sounds of a group, in prompt order, as one item. on_device: the model's device computes the mel features."""
    first = group[0]
    if first.embeds is not None:
        return MediaItem("audio", first.digest, len(first.embeds), {"embeds": first.embeds})
    if len(group) == 1 and first.alone is not None:
        return first.alone
    clips = _clips([_audible(sound.samples, pool) for sound in group], [sound.rows(pool) for sound in group], pool)
    if on_device:
        lengths = np.array([len(clip) for clip in clips], dtype=np.int32)
        arrays = {"samples": np.concatenate(clips) if len(clips) > 1 else clips[0], "lengths": lengths}
    else:
        arrays = {
            "mel": np.concatenate([log_mel(clip) for clip in clips], axis=1),
            "frames": np.array([mel_frames(len(clip)) for clip in clips], dtype=np.int32),
        }
    rows = sum(pooled_rows(len(clip), pool) for clip in clips)
    return MediaItem("audio", recording_key(group, pool), rows, arrays)


def recording_key(group: Sequence[Sound], pool: int) -> bytes:
    if group[0].embeds is not None:
        return group[0].digest
    key = hashlib.blake2b(PREPROCESSING + b"audio", digest_size=32)
    key.update(repr((pool, len(group))).encode())
    for sound in group:
        key.update(sound.digest)
    return key.digest()


def _audible(samples: np.ndarray, pool: int) -> np.ndarray:
    """Sounds too short for a single row are padded with silence to 0.1 s."""
    return samples if total_rows(len(samples), pool) else np.pad(samples, (0, RATE // 10 - len(samples)))


def _clips(sounds: Sequence[np.ndarray], rows: Sequence[int], pool: int) -> list[np.ndarray]:
    """The sounds as one recording in clips of 30 s.

    Each sound rounds its rows on its own, so together they may claim a few more than the recording has: silence at the
    end makes up for them. A last clip too short for a row is left out.
    """
    length = sum(map(len, sounds))
    padded = length
    while total_rows(padded, pool) < sum(rows):
        padded += 160
    samples = sounds[0]
    if len(sounds) > 1 or padded > length:
        samples = np.zeros(padded, dtype=np.float32)
        samples[:length] = np.concatenate(sounds)
    return [clip for clip in split_clips(samples) if pooled_rows(len(clip), pool)]
