"""Sample pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from sensorium.assets.download import asset_path

FOLDER = "vision_model_images"


@dataclass(frozen=True)
class ImageAsset:
    """Among the names are stop_sign, cherry_blossom, hato and RGBA_comp."""

    name: str

    def get_path(self, ext: str) -> Path:
        return asset_path(f"{FOLDER}/{self.name}.{ext}")

    def read_bytes(self, ext: str) -> bytes:
        return self.get_path(ext).read_bytes()

    @property
    def pil_image(self) -> Image.Image:
        return self.pil_image_ext("jpg")

    def pil_image_ext(self, ext: str) -> Image.Image:
        """The published file of this ending: jpg, or png for RGBA_comp."""
        image = Image.open(self.get_path(ext))
        image.load()
        return image

    @property
    def image_embeds(self) -> torch.Tensor:
        """What the tower of LLaVA-1.5 makes of the picture, [rows, E]."""
        return torch.load(self.get_path("pt"), map_location="cpu", weights_only=True)
