"""Chat messages and pictures to prompts for LLaVA-1.5."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sensorium.errors import CheckpointError, UnsupportedError
from sensorium.models.given_rows import one_tensor, rows_item
from sensorium.models.llava_config import Config
from sensorium.models.picture_settings import PictureSettings, check_options
from sensorium.models.placeholders import Notation, PromptWriter
from sensorium.models.tokenizer import Tokenizer, read_json
from sensorium.types import ChatOptions, Embeds, Media, MediaItem, Message, Modality, Prepared, Prompt

PREPROCESSING = b"llava-1"
"""Part of every content key; changed whenever the arrays below change their meaning."""
MAX_RATIO = 50

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role != 'system' %}{{ message.role | upper + ': ' }}{% endif %}"
    "{% for part in message.content if part.type == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text + ' ' }}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


class Processor:
    """Keeps no state between calls, so threads may share it."""

    piece_types = (MediaItem,)

    def __init__(self, folder: Path, config: Config) -> None:
        self.tokenizer = Tokenizer(folder)
        self._rows, self._width = config.rows, config.decoder.width
        settings = read_json(folder / "preprocessor_config.json")
        self._pictures = PictureSettings.from_hf(settings)
        self._edge, self._crop = _edge(settings), _side(settings)
        if self._crop != config.image_size:
            raise CheckpointError(
                f"preprocessor_config.json: crop_size {self._crop} is not the tower's image_size {config.image_size}"
            )
        notation = Notation({"image": config.image_token}, {"image": "<image>"}, self._bos())
        self._writer = PromptWriter(folder, self.tokenizer, notation, config.decoder.max_len, TEMPLATE)

    def _bos(self) -> tuple[int, ...]:
        bos = self.tokenizer.config.get("bos_token")
        spelled = bos.get("content") if isinstance(bos, Mapping) else bos
        if not isinstance(spelled, str) or not self.tokenizer.config.get("add_bos_token", True):
            return ()
        return (self.tokenizer.id(spelled),)

    def chat(self, messages: Sequence[Message], options: ChatOptions) -> Prompt:
        """Render the chat template and expand pictures."""
        page = self._writer.render(messages, options)
        return self._writer.expand(page.ids, self._items(page.media, options), page.text)

    def raw(
        self, text: str | Sequence[int], media: Sequence[Media | Embeds | Prepared], options: ChatOptions
    ) -> Prompt:
        """A prompt with one <image> per picture, or with all its placeholders."""
        ids = self._writer.read(text, media)
        return self._writer.expand(ids, self._items(media, options), text if isinstance(text, str) else None)

    def prepare(self, media: Media | Embeds, options: Mapping[str, Any]) -> Prepared:
        """One picture as the MediaItem it becomes."""
        _refuse(options)
        item = self._embeds(media) if isinstance(media, Embeds) else self._item(media)
        return Prepared("image", item, media.part)

    def largest(self, modality: Modality, longest: int, options: Mapping[str, Any]) -> Media:
        """Every picture has the same number of rows."""
        return Media(modality, np.zeros((self._crop, self._crop, 3), dtype=np.uint8), b"largest")

    def _items(self, media: Sequence[Media | Embeds | Prepared], options: ChatOptions) -> list[MediaItem]:
        _refuse(options.media_kwargs)
        ready = [item if isinstance(item, Prepared) else self.prepare(item, options.media_kwargs) for item in media]
        return [item.content for item in ready]

    def _embeds(self, embeds: Embeds) -> MediaItem:
        rows = one_tensor(embeds, "image_embeds")
        return rows_item(embeds, rows, self._width, PREPROCESSING, expected=self._rows)

    def _item(self, media: Media) -> MediaItem:
        if media.modality != "image":
            raise UnsupportedError(f"this model takes no {media.modality} input", param=media.part or None)
        check_options(media)
        arrays = {"pixels": self._cropped(media.data)} | self._pictures.constants
        key = hashlib.blake2b(PREPROCESSING + media.digest, digest_size=32)
        return MediaItem("image", key.digest(), self._rows, arrays)

    def _cropped(self, pixels: np.ndarray) -> np.ndarray:
        """The shorter side scaled to `edge`, then the middle square of `crop` pixels."""
        height, width = pixels.shape[:2]
        short = min(height, width)
        if max(height, width) > MAX_RATIO * short:
            # Scaled as a whole, a thread of pixels would fill the memory, and the middle is all that is seen.
            pixels = _middle(pixels, min(height, MAX_RATIO * short), min(width, MAX_RATIO * short))
            height, width = pixels.shape[:2]
        size = (int(width * self._edge / short), int(height * self._edge / short))
        resized = np.asarray(Image.fromarray(pixels).resize(size, self._pictures.resample))
        return _middle(resized, self._crop, self._crop).copy()


def _refuse(options: Mapping[str, Any]) -> None:
    if options:
        name = min(map(str, options))
        raise UnsupportedError(f"unknown media option {name[:64]}; this model takes none", param="media_kwargs")


def _middle(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def _edge(settings: Mapping[str, Any]) -> int:
    size = settings.get("size", 224)
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else size
    if not isinstance(edge, int):
        raise CheckpointError(f"preprocessor_config.json: size {size!r} is not supported; give its shortest_edge")
    return edge


def _side(settings: Mapping[str, Any]) -> int:
    crop = settings.get("crop_size", 224)
    sides = {crop.get("height"), crop.get("width")} if isinstance(crop, Mapping) else {crop}
    side = sides.pop()
    if sides or not isinstance(side, int):
        raise CheckpointError(f"preprocessor_config.json: crop_size {crop!r} is not a square")
    return side
