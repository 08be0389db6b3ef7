"""Prompt assembly for MiniCPM: ids, spans and media items grow together, so placeholders and rows cannot disagree."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sensorium.errors import RequestError
from sensorium.models.minicpm_mel import RATE
from sensorium.models.minicpm_pieces import Picture, Variant
from sensorium.models.minicpm_slices import picture_arrays
from sensorium.models.minicpm_sound import PREPROCESSING, Sound, recording, recording_key
from sensorium.models.tokenizer import Tokenizer
from sensorium.types import MediaItem, Prompt, Span


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
    per_second: bool = False
    on_device: bool = False
    """Whether the model's device computes the features of sounds."""
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
        plan = first.plan
        if any(picture.plan.count != plan.count for picture in pictures):
            raise RequestError("pictures packed together must have the same number of slices", param="temporal_ids")
        media = self._picture_item(pictures)
        if first.numbered:
            self._ids += self.tokenizer.encode(f"<image_id>{self._pictures}</image_id>", allow_special=True)
        self._pictures += len(pictures)
        self._wrap(self.marks.image, media, 0)
        if plan.grid is None:
            return
        columns, rows = plan.grid
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
        rows = sound.rows(self.variant.pool)
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

    def _picture_item(self, pictures: Sequence[Picture]) -> int:
        first = pictures[0]
        if first.embeds is not None:
            if len(pictures) > 1:
                raise RequestError("pictures given as embeddings cannot be packed", param="temporal_ids")
            rows = MediaItem(first.modality, first.digest, len(first.embeds), {"embeds": first.embeds})
            found = self._by_key.get(first.digest)
            return self._keep(rows) if found is None else found
        packed = self.variant.packs_frames
        key = hashlib.blake2b(PREPROCESSING + first.modality.encode(), digest_size=32)
        for picture in pictures:
            key.update(picture.digest + repr((picture.plan, picture.time if len(pictures) > 1 else None)).encode())
        found = self._by_key.get(key.digest())
        if found is not None:
            return found
        count = first.plan.count
        arrays = picture_arrays([(picture.plan, picture.sources) for picture in pictures])
        if packed:
            # Slot k of every frame feeds the rows of group k.
            arrays["temporal_ids"] = np.repeat(np.array([picture.time for picture in pictures], np.int32), count)
            arrays["groups"] = np.tile(np.arange(count, dtype=np.int32), len(pictures))
        return self._keep(MediaItem(first.modality, key.digest(), self.variant.queries * count, arrays))

    def _recording_item(self, group: Sequence[Sound]) -> int:
        found = self._by_key.get(recording_key(group, self.variant.pool))
        return self._keep(recording(group, self.variant.pool, self.on_device)) if found is None else found

    def _keep(self, item: MediaItem) -> int:
        self._media.append(item)
        self._by_key[item.key] = len(self._media) - 1
        return len(self._media) - 1
