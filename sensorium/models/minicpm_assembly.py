"""Prompt assembly for MiniCPM: ids, spans and media items grow together, so placeholders and rows cannot disagree."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sensorium.errors import RequestError
from sensorium.models.minicpm_mel import RATE, log_mel, mel_frames, pooled_rows, split_clips, total_rows
from sensorium.models.minicpm_pieces import Picture, Sound, Variant
from sensorium.models.minicpm_slices import SlicePlan, plan_slices, slice_image, to_patches
from sensorium.models.tokenizer import Tokenizer
from sensorium.types import MediaItem, Prompt, Span

PREPROCESSING = b"minicpm-1"
"""Part of every content key; changed whenever the arrays below change their meaning."""


@dataclass(frozen=True, slots=True)
class Marks:
    """Ids of the control tokens around media."""

    unk: int
    image: tuple[int, int]
    slice: tuple[int, int]
    audio: tuple[int, int] | None

    @classmethod
    def of(cls, tokenizer: Tokenizer, variant: Variant) -> Marks:
        audio = (tokenizer.id("<|audio_start|>"), tokenizer.id("<|audio_end|>")) if variant.omni else None
        image = (tokenizer.id("<image>"), tokenizer.id("</image>"))
        return cls(tokenizer.id("<unk>"), image, (tokenizer.id("<slice>"), tokenizer.id("</slice>")), audio)


@dataclass(slots=True)
class _Recording:
    """Where the next sound of a group takes its rows from."""

    media: int
    next_row: int = 0


@dataclass(slots=True)
class Assembly:
    """One prompt under construction. Call the methods in prompt order, then finish()."""

    tokenizer: Tokenizer
    variant: Variant
    marks: Marks
    scale: int
    per_second: bool = False
    _ids: list[int] = field(default_factory=list)
    _spans: list[Span] = field(default_factory=list)
    _media: list[MediaItem] = field(default_factory=list)
    _by_key: dict[bytes, int] = field(default_factory=dict)
    _recordings: dict[int, _Recording] = field(default_factory=dict)
    _pictures: int = 0

    def add_ids(self, ids: Sequence[int]) -> None:
        self._ids += ids

    def add_pictures(self, pictures: Sequence[Picture]) -> None:
        """One picture, or the frames of one packed group: they share the placeholder of the first."""
        first = pictures[0]
        plans = [plan_slices(p.pixels.shape[1], p.pixels.shape[0], p.max_slices, self.scale) for p in pictures]
        if any(plan.count != plans[0].count for plan in plans):
            raise RequestError("pictures packed together must have the same number of slices", param="temporal_ids")
        media = self._picture_item(pictures, plans)
        if first.numbered:
            self._ids += self.tokenizer.encode(f"<image_id>{self._pictures}</image_id>", allow_special=True)
        self._pictures += len(pictures)
        self._wrap(self.marks.image, media, 0)
        if plans[0].grid is None:
            return
        columns, rows = plans[0].grid
        nested = self.variant.nested_slices
        if nested:
            self._ids.append(self.marks.slice[0])
        for row in range(rows):
            if row:
                self._ids += self.tokenizer.encode("\n")
            for column in range(columns):
                slot = 1 + row * columns + column
                self._wrap(self.marks.image if nested else self.marks.slice, media, slot)
        if nested:
            self._ids.append(self.marks.slice[1])

    def add_sound(self, sound: Sound, group: Sequence[Sound]) -> None:
        """One sound of a group; the group is all sounds encoded together, in prompt order."""
        assert self.marks.audio is not None
        recording = self._recordings.get(sound.group)
        if recording is None:
            recording = self._recordings[sound.group] = _Recording(self._recording_item(group))
        rows = _rows(sound.samples, self.variant.pool)
        step = RATE // 320 // self.variant.pool if self.per_second else rows
        for start in range(0, rows, step):
            length = min(step, rows - start)
            self._ids.append(self.marks.audio[0])
            self._span(recording.media, recording.next_row, length)
            self._ids.append(self.marks.audio[1])
            recording.next_row += length

    def finish(self, text: str | None) -> Prompt:
        return Prompt(tuple(self._ids), tuple(self._spans), tuple(self._media), text=text)

    def _wrap(self, marks: tuple[int, int], media: int, slot: int) -> None:
        self._ids.append(marks[0])
        self._span(media, slot * self.variant.queries, self.variant.queries)
        self._ids.append(marks[1])

    def _span(self, media: int, row: int, length: int) -> None:
        self._spans.append(Span(len(self._ids), length, media, row))
        self._ids += [self.marks.unk] * length

    def _picture_item(self, pictures: Sequence[Picture], plans: Sequence[SlicePlan]) -> int:
        packed = self.variant.packs_frames
        key = hashlib.blake2b(PREPROCESSING + pictures[0].modality.encode(), digest_size=32)
        for picture, plan in zip(pictures, plans, strict=True):
            key.update(picture.digest + repr((plan, picture.time if len(pictures) > 1 else None)).encode())
        found = self._by_key.get(key.digest())
        if found is not None:
            return found
        cut = [slice_image(picture.pixels, plan) for picture, plan in zip(pictures, plans, strict=True)]
        # Slot by slot, and within a slot frame by frame: slot k of every frame feeds the rows of group k.
        slices = [frame[slot] for slot in range(plans[0].count) for frame in cut]
        arrays = {
            "patches": np.concatenate([to_patches(pixels) for pixels in slices]),
            "sizes": np.array([(pixels.shape[0] // 14, pixels.shape[1] // 14) for pixels in slices], dtype=np.int32),
        }
        if packed:
            times = [picture.time for picture in pictures]
            arrays["temporal_ids"] = np.array(times * plans[0].count, dtype=np.int32)
            arrays["groups"] = np.repeat(np.arange(plans[0].count, dtype=np.int32), len(pictures))
        return self._keep(MediaItem(pictures[0].modality, key.digest(), self.variant.queries * plans[0].count, arrays))

    def _recording_item(self, group: Sequence[Sound]) -> int:
        key = hashlib.blake2b(PREPROCESSING + b"audio", digest_size=32)
        key.update(repr((self.variant.pool, len(group))).encode())
        for sound in group:
            key.update(sound.digest)
        found = self._by_key.get(key.digest())
        if found is not None:
            return found
        clips = _clips([_audible(sound.samples, self.variant.pool) for sound in group], self.variant.pool)
        arrays = {
            "mel": np.concatenate([log_mel(clip) for clip in clips], axis=1),
            "frames": np.array([mel_frames(len(clip)) for clip in clips], dtype=np.int32),
        }
        rows = sum(pooled_rows(len(clip), self.variant.pool) for clip in clips)
        return self._keep(MediaItem("audio", key.digest(), rows, arrays))

    def _keep(self, item: MediaItem) -> int:
        self._media.append(item)
        self._by_key[item.key] = len(self._media) - 1
        return len(self._media) - 1


def _audible(samples: np.ndarray, pool: int) -> np.ndarray:
    """Sounds too short for a single row are padded with silence to 0.1 s."""
    return samples if total_rows(len(samples), pool) else np.pad(samples, (0, RATE // 10 - len(samples)))


def _rows(samples: np.ndarray, pool: int) -> int:
    return max(total_rows(len(samples), pool), RATE // 10 // 320 // pool)


def _clips(sounds: Sequence[np.ndarray], pool: int) -> list[np.ndarray]:
    """The sounds as one recording in clips of 30 s.

    Each sound rounds its rows on its own, so together they may claim a few more than the recording has: silence at the
    end makes up for them. A last clip too short for a row is left out.
    """
    wanted = sum(_rows(sound, pool) for sound in sounds)
    length = sum(map(len, sounds))
    padded = length
    while total_rows(padded, pool) < wanted:
        padded += 160
    recording = np.zeros(padded, dtype=np.float32)
    recording[:length] = np.concatenate(sounds)
    return [clip for clip in split_clips(recording) if pooled_rows(len(clip), pool)]
