"""What preprocessor_config.json says about pictures, for families that scale and normalise them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from sensorium.errors import CheckpointError, UnsupportedError
from sensorium.types import Media

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")


@dataclass(frozen=True, slots=True)
class PictureSettings:
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: Image.Resampling

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any]) -> PictureSettings:
        for step in _STEPS:
            if settings.get(step, True) is not True:
                raise CheckpointError(f"preprocessor_config.json: {step} {settings[step]!r} is not supported")
        if abs(settings.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
            raise CheckpointError("preprocessor_config.json: only a rescale_factor of 1/255 is supported")
        mean, std = (tuple(settings.get(name, default)) for name, default in _CONSTANTS)
        if not all(np.isfinite(mean)) or not all(np.isfinite(std)) or min(std, default=0) <= 0:
            raise CheckpointError(
                "preprocessor_config.json: image_mean and image_std must be finite, image_std above 0"
            )
        return cls(mean, std, Image.Resampling(settings.get("resample", Image.Resampling.BICUBIC)))

    @property
    def constants(self) -> dict[str, np.ndarray]:
        """What the model needs beside the pixels to normalise them on its own device."""
        return {"mean": np.array(self.mean, dtype=np.float32), "std": np.array(self.std, dtype=np.float32)}


_CONSTANTS = (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD))


def check_options(media: Media) -> None:
    """Refuse options of one picture. Asking for one slice (low detail) is granted: these families cut no slices."""
    asked = {name: value for name, value in media.options.items() if value is not None}
    if asked.pop("max_slice_nums", 1) != 1 or asked:
        name = min(asked, default="max_slice_nums")
        raise UnsupportedError(f"unknown image option {str(name)[:64]}", param=media.part or None)
