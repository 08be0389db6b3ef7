"""The prompts of MiniCPM-o's sessions: what opens them, and units of pictures, live sound and text.

Rows and their order are those of the released code; see docs/duplex.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from sensorium.errors import MediaError, RequestError, UnsupportedError
from sensorium.models.minicpm_duplex_tokens import DuplexTokens
from sensorium.models.minicpm_live_mel import LiveChunk, LiveSound
from sensorium.models.minicpm_pieces import Picture
from sensorium.models.minicpm_slices import picture_arrays
from sensorium.models.minicpm_sound import Sound, recording
from sensorium.types import Media, MediaItem, Prompt, Span

if TYPE_CHECKING:
    from sensorium.models.minicpm_processor import Processor


@dataclass(slots=True)
class Rows:
    """A prompt under construction."""

    placeholder: int
    ids: list[int] = field(default_factory=list[int])
    spans: list[Span] = field(default_factory=list[Span])
    media: list[MediaItem] = field(default_factory=list[MediaItem])

    def add(self, ids: Sequence[int]) -> None:
        self.ids += ids

    def add_media(self, item: MediaItem) -> int:
        """The number of an item for `span`."""
        self.media.append(item)
        return len(self.media) - 1

    def span(self, media: int, row: int, length: int) -> None:
        self.spans.append(Span(len(self.ids), length, media, row))
        self.ids += [self.placeholder] * length

    def prompt(self) -> Prompt:
        return Prompt(tuple(self.ids), tuple(self.spans), tuple(self.media))


@dataclass(frozen=True, slots=True)
class MadeUnit:
    """A unit's prompt; deciding: the row of it whose logits the policy is asked with."""

    prompt: Prompt
    deciding: int


class SessionPrompts:
    """Makes the prompts of one session. `stream` names the session's sound in the encoder; not to be shared."""

    def __init__(self, processor: Processor, stream: str) -> None:
        """Raises UnsupportedError for a model that was not made for sessions."""
        if not processor.variant.omni or processor.variant.version < (4, 5):
            raise UnsupportedError("duplex sessions need MiniCPM-o 4.5")
        self.processor, self.stream = processor, stream
        self.tokens = DuplexTokens.of(processor.tokenizer)
        self.sound = LiveSound()
        self._num_chunks = 0
        self._placeholder = processor.tokenizer.id("<unk>")

    def encode(self, text: str) -> list[int]:
        """Ids of text of the program's own, control tokens included."""
        return self.processor.tokenizer.encode(text, allow_special=True)

    def rows(self) -> Rows:
        return Rows(self._placeholder)

    def opening(self, prefix: str, suffix: str, reference: Media | None = None) -> tuple[Prompt, tuple[int, ...]]:
        """[prefix][reference sound][suffix], and the ids of the suffix. Control tokens in both texts count."""
        rows, last = self.rows(), self.encode(suffix)
        rows.add(self.encode(prefix))
        if reference is not None:
            self.add_recording(rows, reference)
        rows.add(last)
        return rows.prompt(), tuple(last)

    def unit(
        self,
        sound: np.ndarray | None,
        frames: Sequence[Media] = (),
        texts: Sequence[str] = (),
        max_slice_nums: int | Sequence[int] = 1,
    ) -> MadeUnit:
        """<unit>, pictures, a second of the sound that came in (samples [S] float32), text.

        Raises before anything of the session has changed. `missing` says whether there is enough sound.
        """
        return self.unit_of(sound, self._pictures(frames, max_slice_nums), texts)

    def unit_of(self, sound: np.ndarray | None, pictures: Sequence[Picture], texts: Sequence[str] = ()) -> MadeUnit:
        """As `unit`, with pictures that are prepared already."""
        if sound is not None and (missing := self.sound.missing(len(sound))) > 0:
            raise MediaError(f"the unit's sound lacks {missing} samples", param="audio_waveform")
        written = [self.processor.tokenizer.encode(text) for text in texts]
        rows = self.rows()
        rows.add([self.tokens.unit])
        for picture in pictures:
            self.add_picture(rows, picture)
        if sound is not None:
            self.add_live(rows, self.sound.take(sound))
        deciding = len(rows.ids) - 1
        for ids in written:
            rows.add(ids)
        if sound is None and not pictures:
            deciding = len(rows.ids) - 1
        return MadeUnit(rows.prompt(), deciding)

    # ---- parts ----------------------------------------------------------------------------------------------------

    def add_picture(self, rows: Rows, picture: Picture, *, lines: bool = False) -> None:
        """The overview, then its slices, without a number. lines: rows of slices begin lines, as in a chat."""
        variant = self.processor.variant
        media = rows.add_media(picture_item(picture, variant.queries))
        columns = picture.plan.grid[0] if picture.plan.grid is not None else 0
        for slot in range(picture.plan.count):
            if lines and slot > 1 and (slot - 1) % columns == 0:
                rows.add(self.processor.tokenizer.encode("\n"))
            before, after = self.tokens.slice if slot else self.tokens.image
            rows.add([before])
            rows.span(media, slot * variant.queries, variant.queries)
            rows.add([after])

    def add_live(self, rows: Rows, chunk: LiveChunk) -> None:
        """The next sound of the session's stream."""
        count = chunk.rows(self.processor.variant.pool)
        key = hashlib.blake2b(f"{self.stream} {self._num_chunks}".encode(), digest_size=32).digest()
        self._num_chunks += 1
        context = np.array([chunk.before, chunk.after], dtype=np.int32)
        item = MediaItem("audio", key, count, {"mel": chunk.mel, "context": context}, self.stream)
        rows.span(rows.add_media(item), 0, count)

    def add_recording(self, rows: Rows, media: Media) -> None:
        """A whole recording, as a chat would encode it."""
        item = recording([Sound(media.data, media.digest)], self.processor.variant.pool)
        rows.span(rows.add_media(item), 0, item.rows)

    def picture(self, media: Media, max_slice_nums: int) -> Picture:
        prepared = self.processor.prepare(media, {"max_slice_nums": max_slice_nums, "use_image_id": False})
        (picture,) = prepared.content
        return picture

    def _pictures(self, frames: Sequence[Media], max_slice_nums: int | Sequence[int]) -> list[Picture]:
        limits = [max_slice_nums] * len(frames) if isinstance(max_slice_nums, int) else list(max_slice_nums)
        if len(limits) != len(frames):
            raise RequestError(
                f"max_slice_nums has {len(limits)} entries for {len(frames)} frames; give one number, or one each",
                param="max_slice_nums",
            )
        return [self.picture(frame, limit) for frame, limit in zip(frames, limits, strict=True)]


def picture_item(picture: Picture, queries: int) -> MediaItem:
    """What the encoder reads of a picture: overview and slices, one after another."""
    key = hashlib.blake2b(b"minicpm-unit-1" + picture.digest + repr(picture.plan).encode(), digest_size=32).digest()
    arrays = picture_arrays([(picture.plan, picture.sources)])
    return MediaItem("image", key, queries * picture.plan.count, arrays)
