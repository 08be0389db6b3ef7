"""From messages as a caller wrote them to a Prompt: fetch, decode, preprocess. Runs in media threads; no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from sensorium.config import MediaLimits
from sensorium.errors import RequestError, UnsupportedError
from sensorium.media import audio, image, video
from sensorium.media.fetch import fetch_blocking
from sensorium.media.split import split_audio
from sensorium.models.base import Processor
from sensorium.types import ChatOptions, Clip, Embeds, Media, MediaRef, Message, Prompt

CUT_WITHIN_S = 1.0
_DECODERS = {"image": image.from_bytes, "audio": audio.from_bytes, "video": video.from_bytes}


class Preparer:
    """Turns messages or a raw prompt into what the engine takes. Safe to call from several threads."""

    def __init__(self, processor: Processor, modalities: Sequence[str], limits: MediaLimits) -> None:
        self._processor = processor
        self._modalities = modalities
        self._limits = limits

    def chat(self, messages: Sequence[Message], options: ChatOptions) -> Prompt:
        self._check([part for message in messages for part in message.parts if not isinstance(part, str)])
        loaded = [
            replace(message, parts=tuple(part if isinstance(part, str) else self._load(part) for part in message.parts))
            for message in messages
        ]
        return self._processor.chat(loaded, options)

    def raw(self, text: str | Sequence[int], media: Sequence[MediaRef | Media], options: ChatOptions) -> Prompt:
        self._check(media)
        return self._processor.raw(text, [self._load(part) for part in media], options)

    def speech(self, recording: MediaRef, instruction: str, hint: str = "") -> list[Clip]:
        """A recording in clips that a model hears at once, cut where it is quiet.

        instruction: see Processor.speech_instructions. hint: what the model should know beforehand, if anything.
        """
        self._check([recording])
        media = self._load(recording)
        rate = media.rate or 1
        before, _, after = instruction.partition("{audio}")
        opening = [Message("system", (hint,))] if hint else []
        clips: list[Clip] = []
        start, longest_s = 0, getattr(self._processor, "speech_clip_s", 30.0)
        for samples in split_audio(media.data, rate, longest_s, CUT_WITHIN_S, rate // 10):
            digest = hashlib.blake2b(media.digest, digest_size=32, salt=start.to_bytes(8, "little")).digest()
            part = replace(media, data=samples, digest=digest)
            question = Message(
                "user", tuple(item for item in (before, part, after) if not isinstance(item, str) or item)
            )
            prompt = self._processor.chat([*opening, question], ChatOptions())
            clips.append(Clip(prompt, start / rate, (start + len(samples)) / rate))
            start += len(samples)
        return clips

    def _check(self, media: Sequence[MediaRef | Media | Embeds]) -> None:
        """Refuse by kind and count before a byte is fetched."""
        if len(media) > self._limits.max_items:
            raise RequestError(
                f"{len(media)} media items in one request; at most {self._limits.max_items} are allowed",
                param="messages",
            )
        for part in media:
            if part.modality not in self._modalities:
                known = ", ".join(self._modalities) or "text only"
                raise UnsupportedError(f"this model takes no {part.modality} input ({known})", param=part.part or None)

    def _load(self, part: MediaRef | Media | Embeds) -> Media:
        if isinstance(part, Embeds) or (isinstance(part, MediaRef) and part.form == "embeds"):
            raise UnsupportedError("this version takes no embeddings as input", param=part.part or None)
        if isinstance(part, Media):
            return part
        data, options = fetch_blocking(part, self._limits), part.options
        if part.modality == "video":
            # A family that chooses frames in its own way says how, for what the request leaves open.
            options = getattr(self._processor, "video_options", dict)(options)
        return _DECODERS[part.modality](data, part.part, self._limits, options)
