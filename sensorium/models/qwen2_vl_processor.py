"""Chat messages, pictures and videos to prompts for Qwen2-VL and Qwen2.5-VL."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sensorium.errors import CheckpointError, MediaError, RequestError, UnsupportedError
from sensorium.models import mrope
from sensorium.models.given_rows import named, rows_item
from sensorium.models.mrope import Grid
from sensorium.models.picture_settings import PictureSettings, check_options
from sensorium.models.placeholders import Notation, PromptWriter
from sensorium.models.qwen2_vl_config import Config
from sensorium.models.tokenizer import Tokenizer, read_json
from sensorium.types import ChatOptions, Embeds, Media, MediaItem, Message, Modality, Prepared, Prompt

PREPROCESSING = b"qwen2-vl-1"
"""Part of every content key; changed whenever the arrays below change their meaning."""
MAX_RATIO = 200
VIDEO_FPS, MIN_FRAMES = 2.0, 4
_MAX_GRID = 1 << 16
# Placeholder tokens that the frames of one video share where the checkpoint caps them.
VIDEO_TOKENS = 0.9 * 128_000

TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}"
    "{% else %}<|vision_start|><|{{ part.type }}_pad|><|vision_end|>{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class PixelLimits:
    """Least and most pixels of a picture, or of a frame. shared: frames also share a budget."""

    least: int
    most: int
    shared: bool = False

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any], least: int, most: int) -> PixelLimits:
        size = settings.get("size") or {}
        found = cls(
            int(settings.get("min_pixels") or size.get("shortest_edge") or least),
            int(settings.get("max_pixels") or size.get("longest_edge") or most),
            bool(settings.get("cap_pixels_per_frame", False)),
        )
        if not 0 < found.least <= found.most:
            raise CheckpointError(f"preprocessor_config.json: min_pixels {found.least}, max_pixels {found.most}")
        return found

    def changed(self, wishes: Mapping[str, Any]) -> PixelLimits:
        """With min_pixels and max_pixels of a request, which may only narrow what the checkpoint allows."""
        most = min(wishes.get("max_pixels", self.most), self.most)
        return replace(self, least=min(wishes.get("min_pixels", self.least), most), most=most)

    def for_frames(self, count: int, factor: int, temporal: int) -> PixelLimits:
        if not self.shared:
            return self
        share = VIDEO_TOKENS * factor**2 / count * temporal
        return replace(self, most=max(min(self.most, share), int(self.least * 1.05)))


def smart_resize(height: int, width: int, factor: int, limits: PixelLimits) -> tuple[int, int]:
    """Height and width, multiples of `factor`, near the given ones and inside the limits."""
    tall, wide = round(height / factor) * factor, round(width / factor) * factor
    if tall * wide > limits.most:
        beta = math.sqrt(height * width / limits.most)
        tall, wide = (max(factor, math.floor(side / beta / factor) * factor) for side in (height, width))
    elif tall * wide < limits.least:
        beta = math.sqrt(limits.least / (height * width))
        tall, wide = (math.ceil(side * beta / factor) * factor for side in (height, width))
    return tall, wide


class Processor:
    """Keeps no state between calls, so threads may share it."""

    piece_types = (MediaItem,)

    def __init__(self, folder: Path, config: Config) -> None:
        self.tokenizer = Tokenizer(folder)
        self._tower, self._width = config.tower, config.decoder.width
        self._factor = config.tower.patch_size * config.tower.merge
        self._tokens_per_second = config.tokens_per_second
        settings = read_json(folder / "preprocessor_config.json")
        video = read_json(folder / "video_preprocessor_config.json")
        for name, ours in (("patch_size", "patch_size"), ("merge_size", "merge"), ("temporal_patch_size", "temporal")):
            if any(part.get(name, wanted := getattr(config.tower, ours)) != wanted for part in (settings, video)):
                raise CheckpointError(f"preprocessor_config.json: {name} is not that of config.json")
        self._pictures = PictureSettings.from_hf(settings)
        if PictureSettings.from_hf(settings | video) != self._pictures:
            raise CheckpointError("video_preprocessor_config.json: frames must be normalised as pictures are")
        self._sampling = {"fps": video.get("fps") or VIDEO_FPS, "min_frames": video.get("min_frames") or MIN_FRAMES}
        self._limits = PixelLimits.from_hf(settings, 56 * 56, 28 * 28 * 1280)
        self._video_limits = PixelLimits.from_hf(video, 128 * 28 * 28, 768 * 28 * 28)
        written = {name: f"<|vision_start|><|{name}_pad|><|vision_end|>" for name in ("image", "video")}
        notation = Notation({"image": config.image_token, "video": config.video_token}, written)
        self._writer = PromptWriter(folder, self.tokenizer, notation, config.decoder.max_len, TEMPLATE)

    def video_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """How the frames of a video file are chosen, unless the request says how many it wants."""
        chosen = {} if given.get("fps") or given.get("num_frames") else self._sampling
        return {**chosen, "multiple_of": self._tower.temporal, "use_audio": False, **given}

    def chat(self, messages: Sequence[Message], options: ChatOptions) -> Prompt:
        """Render the chat template and expand media."""
        page = self._writer.render(messages, options)
        return self._placed(self._writer.expand(page.ids, self._items(page.media, options), page.text))

    def raw(
        self, text: str | Sequence[int], media: Sequence[Media | Embeds | Prepared], options: ChatOptions
    ) -> Prompt:
        """A prompt with one <|image_pad|> or <|video_pad|> per medium, or with all its placeholders."""
        ids = self._writer.read(text, media)
        shown = text if isinstance(text, str) else None
        return self._placed(self._writer.expand(ids, self._items(media, options), shown))

    # ---- positions ------------------------------------------------------------------------------------------------

    def _placed(self, prompt: Prompt) -> Prompt:
        """With positions on three axes; text alone needs none."""
        if not prompt.spans:
            return prompt
        grids = [self._grid(prompt.media[span.media]) for span in prompt.spans]
        return replace(prompt, positions=mrope.positions(len(prompt.ids), prompt.spans, grids))

    def _grid(self, item: MediaItem) -> Grid:
        if "embeds" in item.arrays:
            grid = Grid(*item.arrays["grid"].tolist())
        else:
            frames, height, width, _ = item.arrays["frames"].shape
            grid = Grid(-(-frames // self._tower.temporal), height // self._factor, width // self._factor)
        if self._tokens_per_second is None:
            return grid
        return replace(grid, seconds=float(item.arrays["seconds"][0]), per_second=self._tokens_per_second)

    # ---- media ----------------------------------------------------------------------------------------------------

    def prepare(self, media: Media | Embeds, options: Mapping[str, Any]) -> Prepared:
        """One picture or video as the MediaItem it becomes."""
        wishes = self._wishes(options)
        if isinstance(media, Embeds):
            item = self._embeds(media, wishes)
        else:
            item = self._picture(media, wishes) if media.modality == "image" else self._video(media, wishes)
        return Prepared(media.modality, item, media.part)

    def largest(self, modality: Modality, longest: int, options: Mapping[str, Any]) -> Media:
        """A picture with a number of rows that its sides can have, or frames of that size at VIDEO_FPS."""
        wishes, temporal = self._wishes(options), self._tower.temporal
        if modality == "image":
            rows = min(self._limits.changed(wishes).most // self._factor**2, longest)
            sides, frames = _sides(rows), 1
        else:
            limits = self._video_limits.changed(wishes)
            found: list[tuple[int, int, tuple[int, int]]] = []
            for slices in range(1, longest + 1):
                most = limits.for_frames(slices * temporal, self._factor, temporal).most
                sides = _sides(int(min(most // self._factor**2, longest // slices)))
                if sides[0] * sides[1] * self._factor**2 < limits.least:
                    break
                found.append((sides[0] * sides[1] * slices, slices, sides))
            # Of equally many rows, the fewest frames: theirs are the largest pieces that the tower sees.
            _, slices, sides = max(found or [(0, 1, _sides(longest))], key=lambda one: (one[0], -one[1]))
            frames = slices * temporal
        blank = np.broadcast_to(np.uint8(0), (frames, *(side * self._factor for side in sides), 3))
        times = np.arange(frames, dtype=np.float64) / VIDEO_FPS if modality == "video" else None
        return Media(modality, blank[0] if modality == "image" else blank, b"largest", times_s=times)

    def _items(self, media: Sequence[Media | Embeds | Prepared], options: ChatOptions) -> list[MediaItem]:
        self._wishes(options.media_kwargs)
        ready = [item if isinstance(item, Prepared) else self.prepare(item, options.media_kwargs) for item in media]
        return [item.content for item in ready]

    def _embeds(self, embeds: Embeds, wishes: Mapping[str, Any]) -> MediaItem:
        """Rows of the tower with their grid (time, height, width) in patches, as the reference names them."""
        kind, merge = embeds.modality, self._tower.merge
        rows, grid = named(embeds, (f"{kind}_embeds", f"{kind}_grid_thw"), optional=("second_per_grid_ts",))
        sides = grid.reshape(-1).tolist() if grid.dtype == np.int64 else []
        bad = len(sides) != 3 or min(sides) < 1 or max(sides) > _MAX_GRID or sides[1] % merge or sides[2] % merge
        if bad or (kind == "image" and sides[0] != 1):
            raise MediaError(
                f"{kind}_grid_thw must be three integers, time, height and width in patches, the last two multiples of "
                f"{merge}" + (", and time 1 for a picture" if kind == "image" else ""),
                param=embeds.part or None,
            )
        merged = (sides[0], sides[1] // merge, sides[2] // merge)
        seconds = embeds.tensors.get("second_per_grid_ts")
        if seconds is not None and (seconds.size != 1 or not 0 <= float(seconds.reshape(-1)[0]) <= 3600):
            raise MediaError("second_per_grid_ts must be one number of seconds", param=embeds.part or None)
        default = self._tower.temporal / float(wishes.get("fps") or VIDEO_FPS) if kind == "video" else 0.0
        extra = {
            "grid": np.array(merged, dtype=np.int64),
            "seconds": np.array([default if seconds is None else float(seconds.reshape(-1)[0])], dtype=np.float64),
        }
        return rows_item(embeds, rows, self._width, PREPROCESSING, expected=math.prod(merged), extra=extra)

    def _wishes(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The media_kwargs of a request, checked."""
        known = ("min_pixels", "max_pixels", "fps")[: 2 if self._tokens_per_second is None else 3]
        wishes = {name: value for name, value in given.items() if value is not None}
        least, most = self._factor**2, max(self._limits.most, self._video_limits.most)
        for name, value in wishes.items():
            if name not in known:
                raise UnsupportedError(
                    f"unknown media option {str(name)[:64]}; known are {', '.join(known)}", param="media_kwargs"
                )
            if name == "fps":
                if type(value) not in (int, float) or not 0 < value <= 240:
                    raise RequestError("fps must be a number above 0 and at most 240", param="media_kwargs")
            elif type(value) is not int or not least <= value <= most:
                raise RequestError(f"{name} must be an integer from {least} to {most}", param="media_kwargs")
        if wishes.get("min_pixels", least) > wishes.get("max_pixels", most):
            raise RequestError("min_pixels is above max_pixels", param="media_kwargs")
        return wishes

    def _picture(self, media: Media, wishes: Mapping[str, Any]) -> MediaItem:
        check_options(media)
        return self._item(media, media.data[None], self._limits.changed(wishes), 0.0)

    def _video(self, media: Media, wishes: Mapping[str, Any]) -> MediaItem:
        for name, silent in (("stack_frames", 1), ("packing", 1), ("use_audio", False)):
            if media.options.get(name, silent) != silent:
                raise UnsupportedError(f"this model does not take the video option {name}", param=media.part or None)
        frames, temporal = media.data, self._tower.temporal
        if missing := -len(frames) % temporal:
            frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
        seconds = temporal / float(wishes.get("fps") or _frame_rate(media))
        limits = self._video_limits.changed(wishes).for_frames(len(frames), self._factor, temporal)
        return self._item(media, frames, limits, seconds)

    def _item(self, media: Media, frames: np.ndarray, limits: PixelLimits, seconds: float) -> MediaItem:
        """seconds: time between two temporal slices."""
        height, width = frames.shape[1:3]
        if max(height, width) > MAX_RATIO * min(height, width):
            raise MediaError(f"{width}x{height} is too narrow; at most {MAX_RATIO} to 1 is possible", param=media.part)
        height, width = smart_resize(height, width, self._factor, limits)
        if frames.shape[1:3] != (height, width) or frames.flags.writeable:
            frames = np.stack([self._resized(frame, height, width) for frame in frames])
        key = hashlib.blake2b(PREPROCESSING + media.modality.encode() + media.digest, digest_size=32)
        # Prompts with equal keys also share positions, in which the time counts.
        key.update(repr((height, width, seconds)).encode())
        arrays = {"frames": frames, "seconds": np.array([seconds], dtype=np.float64)}
        slices = -(-len(frames) // self._tower.temporal)
        rows = slices * (height // self._factor) * (width // self._factor)
        return MediaItem(media.modality, key.digest(), rows, arrays | self._pictures.constants)

    def _resized(self, frame: np.ndarray, height: int, width: int) -> np.ndarray:
        if frame.shape[:2] == (height, width):
            return frame
        return np.asarray(Image.fromarray(frame).resize((width, height), self._pictures.resample))


def _sides(rows: int) -> tuple[int, int]:
    """Height and width of the largest grid of at most so many rows, as near a square as that allows."""
    for count in range(max(rows, 1), 0, -1):
        for height in range(math.isqrt(count), 0, -1):
            if count % height == 0 and count // height <= MAX_RATIO * height:
                return height, count // height
    return 1, 1


def _frame_rate(media: Media) -> float:
    """Frames per second of the frames at hand."""
    count, times = len(media.data), media.times_s
    if duration := media.options.get("duration_s"):
        return count / duration
    if times is None or count < 2 or not times[-1] > times[0]:
        return VIDEO_FPS
    return round((count - 1) / float(times[-1] - times[0]), 6)
