"""What MiniCPM prompts are made from: the options of a request, and message parts cut into pictures and sounds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from sensorium.errors import MediaError, RequestError, UnsupportedError
from sensorium.media.sampling import cut_track, temporal_ids
from sensorium.media.stack import concat_images
from sensorium.models.given_rows import named, one_tensor, rows_item
from sensorium.models.minicpm_slices import SlicePlan, plan_slices, scaled
from sensorium.models.minicpm_sound import PREPROCESSING, Sound, recording
from sensorium.types import Embeds, Media, Modality


@dataclass(frozen=True, slots=True)
class Variant:
    """What tells the members of the family apart. Spans of audio: one per clip, or one per second."""

    version: tuple[int, ...]
    omni: bool
    queries: int
    pool: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Variant:
        """config: the content of config.json."""
        omni = config.get("model_type") == "minicpmo"
        written = config.get("version") or ("2.6" if omni else "2.5")
        version = tuple(int(number) for number in str(written).split("."))
        pool = int(config.get("audio_pool_step", 2 if version < (4,) else 5))
        return cls(version, omni, int(config.get("query_num", 96 if version < (2, 6) else 64)), pool)

    @property
    def nested_slices(self) -> bool:
        """V-2.5 wraps the whole grid in one <slice> pair and numbers no images."""
        return self.version < (2, 6)

    @property
    def packs_frames(self) -> bool:
        """V-4.5 encodes several video frames into the rows of one."""
        return not self.omni and self.version >= (4, 5)

    @property
    def brackets(self) -> bool:
        """All but o-4.5 write media in prompts as (<image>./</image>)."""
        return not (self.omni and self.version >= (4, 5))

    @property
    def per_second(self) -> bool:
        return self.omni and self.version < (4,)

    @property
    def speech_tail(self) -> str:
        """What o-2.6 expects at the end of a prompt to a speaking model; later templates write it themselves."""
        return "<|spk_bos|><|spk|><|spk_eos|><|tts_bos|>" if self.omni and self.version < (4,) else ""


@dataclass(frozen=True, slots=True)
class Settings:
    """The media_kwargs of ChatOptions. None means the checkpoint's own value."""

    max_slice_nums: int | None = None
    """Slices per picture besides the overview; frames of a video take 1."""
    use_image_id: bool | None = None
    """Whether pictures are numbered in the prompt; frames of a video are not."""
    scale_resolution: int | None = None
    """Side in pixels of the square a slice is about as large as."""
    omni_mode: bool = False
    """Parts of a message are joined without line breaks."""
    stream_input: bool = False
    """As omni_mode, and audio takes one span per second."""
    merge_audio_from_same_content: bool = True
    """The sounds of one message are encoded as one recording."""
    temporal_ids: tuple[tuple[int, ...], ...] | None = None
    """V-4.5: groups of consecutive pictures to pack, each with its time in tenths of a second."""

    @classmethod
    def read(cls, values: Mapping[str, Any], param: str = "media_kwargs") -> Settings:
        if not values:
            return _DEFAULT
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(map(str, values)) - known):
            raise UnsupportedError(
                f"unknown media option {unknown[0][:64]}; known are {', '.join(sorted(known))}", param=param
            )
        checked: dict[str, Any] = {}
        for name, value in values.items():
            if value is None:
                continue
            if name == "temporal_ids":
                checked[name] = _groups(value, param)
            elif name in _RANGES:
                low, high = _RANGES[name]
                if type(value) is not int or not low <= value <= high:
                    raise RequestError(f"{name} must be an integer from {low} to {high}", param=param)
                checked[name] = value
            elif type(value) is not bool:
                raise RequestError(f"{name} must be true or false", param=param)
            else:
                checked[name] = value
        return cls(**checked)

    @property
    def joint(self) -> str:
        return "" if self.omni_mode or self.stream_input else "\n"


_DEFAULT = Settings()
_RANGES = {"max_slice_nums": (1, 36), "scale_resolution": (56, 1792)}


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """sources: [H, W, 3] uint8, the picture itself or its scaled ones. time: tenths of a second if packed, else -1.
    follows: packed with the one before. embeds [rows, E] float32 stand for a picture that the caller encoded."""

    plan: SlicePlan
    sources: tuple[np.ndarray, ...]
    digest: bytes
    numbered: bool
    time: int = -1
    follows: bool = False
    modality: Modality = "image"
    embeds: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class PieceCutter:
    """Turns media of a request into pictures and sounds. Defaults are the checkpoint's."""

    variant: Variant
    settings: Settings
    max_slices: int
    numbered: bool
    hears: bool
    """Whether the audio tower is there; without it videos are silent."""
    scale: int
    width: int
    scales_on_device: bool
    """Whether the model's device scales pictures and computes features of sounds, faster than anything here can."""

    def cut(self, media: Media | Embeds) -> list[Picture | Sound]:
        """One picture, one sound, or the frames (with their sound) of a video."""
        if media.modality == "audio" and not self.hears:
            raise UnsupportedError("this model does not take audio", param=media.part or None)
        if isinstance(media, Embeds):
            return [self._given(media)]
        if media.modality == "image":
            return [self._picture(media)]
        if media.modality == "video":
            return list(self._video(media))
        sound = Sound(media.data, media.digest)
        # Where features are left to the device there is nothing to do ahead, and samples cross processes once.
        return [sound if self.scales_on_device else replace(sound, alone=recording([sound], self.variant.pool))]

    def _given(self, embeds: Embeds) -> Picture | Sound:
        if embeds.modality == "audio":
            rows = one_tensor(embeds, "audio_embeds")
            item = rows_item(embeds, rows, self.width, PREPROCESSING)
            return Sound(np.zeros(0, dtype=np.float32), item.key, embeds=item.arrays["embeds"])
        if embeds.modality != "image":
            raise UnsupportedError("this model takes embeddings of images and audio", param=embeds.part or None)
        rows, size = named(embeds, ("image_embeds", "image_sizes"))
        sides = size.reshape(-1).tolist() if size.dtype == np.int64 else []
        if len(sides) != 2 or not 1 <= min(sides) <= max(sides) <= _MAX_SIDE:
            raise MediaError("image_sizes must be two integers, width and height", param=embeds.part or None)
        limit = _first(self.settings.max_slice_nums, self.max_slices)
        plan = plan_slices(sides[0], sides[1], limit, self.settings.scale_resolution or self.scale)
        wanted = plan.count * self.variant.queries
        item = rows_item(embeds, rows, self.width, PREPROCESSING, expected=wanted)
        return Picture(plan, (), item.key, self._is_numbered({}), embeds=item.arrays["embeds"])

    def _is_numbered(self, own: Mapping[str, Any]) -> bool:
        wanted = _first(own.get("use_image_id"), self.settings.use_image_id, self.numbered)
        return wanted and not self.variant.nested_slices

    def _sliced(self, pixels: np.ndarray, limit: int) -> tuple[SlicePlan, tuple[np.ndarray, ...]]:
        scale = self.settings.scale_resolution or self.scale
        plan = plan_slices(pixels.shape[1], pixels.shape[0], limit, scale)
        if self.scales_on_device and pixels.shape[0] * pixels.shape[1] <= _LARGER * plan.num_pixels:
            return plan, (pixels,)
        return plan, scaled(pixels, plan)

    def _picture(self, media: Media) -> Picture:
        if unknown := sorted(set(map(str, media.options)) - _PER_PICTURE):
            raise UnsupportedError(f"unknown image option {unknown[0][:64]}", param=media.part)
        own = Settings.read(media.options, media.part)
        limit = _first(own.max_slice_nums, self.settings.max_slice_nums, self.max_slices)
        numbered = self._is_numbered({"use_image_id": own.use_image_id})
        return Picture(*self._sliced(media.data, limit), media.digest, numbered)

    def _video(self, media: Media) -> Iterator[Picture | Sound]:
        """Frame, its second of sound, the frames between as one picture, next frame …"""
        times = media.times_s if media.times_s is not None else np.arange(len(media.data), dtype=np.float64)
        main = media.options.get("main_frames") or range(len(media.data))
        moments = media.options.get("main_times_s") or [float(times[index]) for index in main]
        duration = float(media.options.get("duration_s") or times[-1] + 1.0)
        packing = int(media.options.get("packing") or 1)
        if packing > 1 and not self.variant.packs_frames:
            raise UnsupportedError("this model does not pack video frames", param=media.part or None)
        tenths = temporal_ids([float(times[index]) for index in main], duration) if packing > 1 else None
        if media.options.get("use_audio") and not self.hears:
            raise UnsupportedError("this model hears nothing: leave use_audio_in_video out", param=media.part or None)
        sounds = self._sounds(media, [*moments, duration])
        for position, index in enumerate(main):
            follows = packing > 1 and position % packing > 0
            yield self._frame(media.data[index], media.digest, str(index), tenths[position] if tenths else -1, follows)
            if sounds is not None:
                yield sounds[position]
            end = main[position + 1] if position + 1 < len(main) else len(media.data)
            if end > index + 1:
                between = concat_images(list(media.data[index + 1 : end]))
                yield self._frame(between, media.digest, f"{index + 1}-{end}")

    def _frame(self, pixels: np.ndarray, digest: bytes, name: str, time: int = -1, follows: bool = False) -> Picture:
        limit = _first(self.settings.max_slice_nums, 1)
        numbered = bool(self.settings.use_image_id) and not self.variant.nested_slices
        key = hashlib.blake2b(name.encode(), digest_size=32, key=digest).digest()
        return Picture(*self._sliced(pixels, limit), key, numbered, time, follows, "video")

    def _sounds(self, media: Media, times: Sequence[float]) -> list[Sound] | None:
        if media.audio is None or not self.hears:
            return None
        pieces = cut_track(media.audio.data, times)
        names = (f"{start!r}-{len(piece)}" for start, piece in zip(times, pieces, strict=False))
        key = media.audio.digest
        return [
            Sound(piece, hashlib.blake2b(name.encode(), digest_size=32, key=key).digest())
            for piece, name in zip(pieces, names, strict=True)
        ]


_MAX_SIDE = 1 << 15
# So many times the slices' pixels may a picture have that crosses to the device as it is.
_LARGER = 2
_PER_PICTURE = frozenset({"max_slice_nums", "use_image_id"})


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _groups(value: Any, param: str) -> tuple[tuple[int, ...], ...]:
    valid = isinstance(value, list | tuple) and all(isinstance(group, list | tuple) and group for group in value)
    if not valid or any(type(time) is not int or not -1 <= time < 72_000 for group in value for time in group):
        raise RequestError("temporal_ids must be a list of non-empty lists of integers from -1 to 71999", param=param)
    return tuple(tuple(group) for group in value)
