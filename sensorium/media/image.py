"""Images: bytes, PIL pictures and arrays to RGB, bounded before anything is decoded."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from sensorium.config import MediaLimits
from sensorium.errors import MediaError, SensoriumError, TooLargeError
from sensorium.types import Media

MAX_SIDE = 16_384
_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
}


def from_bytes(data: bytes, part: str, limits: MediaLimits, options: Mapping[str, Any] | None = None) -> Media:
    """Decodes PNG, JPEG, WebP, GIF, BMP or TIFF: first frame, upright, transparency on white, 16 bits scaled to 8."""
    format_name = _sniff(data)
    if format_name is None:
        raise MediaError("this is not a PNG, JPEG, WebP, GIF, BMP or TIFF image", param=part)
    try:
        with Image.open(io.BytesIO(data), formats=[format_name]) as image:
            _check_size(image.size, part, limits)
            image.load()
            pixels = _to_rgb(_upright(image))
    except SensoriumError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooLargeError(f"the image has more than {limits.max_pixels} pixels", param=part) from None
    except Exception:  # damaged files make the decoders raise nearly anything
        raise MediaError("the image is damaged and cannot be decoded", param=part) from None
    digest = hashlib.blake2b(data, digest_size=32, person=b"image").digest()
    return Media("image", pixels, digest, part=part, options=dict(options or {}))


def from_pil(
    image: Image.Image, part: str = "", limits: MediaLimits | None = None, options: Mapping[str, Any] | None = None
) -> Media:
    """A PIL picture, treated as from_bytes treats a decoded one."""
    limits = limits or MediaLimits()
    _check_size(image.size, part, limits)
    try:
        image.load()
        pixels = _to_rgb(_upright(image))
    except Exception:  # a lazy picture decodes only now
        raise MediaError("the image is damaged and cannot be decoded", param=part) from None
    return from_array(pixels, part, limits, options)


def from_array(
    pixels: np.ndarray, part: str = "", limits: MediaLimits | None = None, options: Mapping[str, Any] | None = None
) -> Media:
    """[H, W], [H, W, 1], [H, W, 3] or [H, W, 4] uint8; the last axis is always the channel."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        raise MediaError(
            "an image array must be uint8 with shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]", param=part
        )
    _check_size((pixels.shape[1], pixels.shape[0]), part, limits or MediaLimits())
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim == 2 or pixels.shape[2] == 4:
        pixels = _to_rgb(Image.fromarray(pixels))
    pixels = np.ascontiguousarray(pixels)
    digest = hashlib.blake2b(pixels.data, digest_size=32, person=b"image", salt=_shape_salt(pixels)).digest()
    return Media("image", pixels, digest, part=part, options=dict(options or {}))


def _sniff(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for magic, name in _MAGIC.items() if data.startswith(magic)), None)


def _check_size(size: tuple[int, int], part: str, limits: MediaLimits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise MediaError("the image has no pixels", param=part)
    if width * height > limits.max_pixels or max(size) > MAX_SIDE:
        raise TooLargeError(
            f"the image is {width}x{height}; at most {limits.max_pixels} pixels and {MAX_SIDE} per side", param=part
        )


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation asks; unreadable EXIF data are ignored."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF is free-form input
        return image


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = Image.fromarray(_deep_grey(np.asarray(image)))
    elif image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        overlay = image.convert("RGBA")
        image = Image.new("RGBA", image.size, "white")
        image.alpha_composite(overlay)
    return np.array(image.convert("RGB"))


def _deep_grey(values: np.ndarray) -> np.ndarray:
    """Grey above 8 bits to 8: integers over 255 are 16-bit; floats are 0..1 unless one is larger, then 0..255."""
    top = values.max(initial=0)
    if np.issubdtype(values.dtype, np.floating):
        scale = 255.0 if top <= 1.0 else 1.0
    else:
        scale = 255.0 / 65535.0 if top > 255 or values.dtype == np.uint16 else 1.0
    return np.clip(np.rint(np.nan_to_num(values.astype(np.float64)) * scale), 0, 255).astype(np.uint8)


def _shape_salt(array: np.ndarray) -> bytes:
    """Arrays with equal bytes but another shape are other content."""
    return hashlib.blake2b(repr(array.shape).encode(), digest_size=16).digest()
