"""Images: bytes, PIL pictures and arrays to RGB, bounded before anything is decoded."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from sensorium.config import MediaLimits
from sensorium.errors import MediaError, RequestError, SensoriumError, TooLargeError, UnsupportedError
from sensorium.types import Media

MAX_SIDE = 16_384
# The EXIF tag that says how a picture is turned; 1 is upright.
ORIENTATION = 0x0112
_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
}


@dataclass(frozen=True, slots=True)
class Look:
    """How a picture becomes RGB."""

    background: tuple[int, int, int] = (255, 255, 255)
    grey: bool = False

    @property
    def key(self) -> bytes:
        """Tells apart what equal bytes become; empty for the default."""
        return b"" if self == Look() else repr((self.background, self.grey)).encode()


def read_options(options: Mapping[str, Any] | None, part: str = "") -> tuple[Look, dict[str, Any]]:
    """The options that are read here, checked, and the rest."""
    rest = dict(options or {})
    color, mode = rest.pop("rgba_background_color", None), rest.pop("image_mode", None)
    if color is not None and not (
        isinstance(color, list | tuple)
        and len(color) == 3
        and all(type(value) is int and 0 <= value <= 255 for value in color)
    ):
        raise RequestError(
            "rgba_background_color must be a list or tuple of 3 integers in the range [0, 255].", param=part or None
        )
    if mode not in (None, "RGB", "L"):
        raise UnsupportedError(f"image_mode {str(mode)[:32]!r}; use RGB, or L for grey", param=part or None)
    red, green, blue = color or (255, 255, 255)
    return Look((red, green, blue), mode == "L"), rest


def from_bytes(data: bytes, part: str, limits: MediaLimits, options: Mapping[str, Any] | None = None) -> Media:
    """Decodes PNG, JPEG, WebP, GIF, BMP or TIFF: first frame, upright, 16 bits scaled to 8.

    options: rgba_background_color, three integers 0..255, is put behind transparent pictures (white); image_mode "L"
    makes them grey. Others are left for the processor.
    """
    how, rest = read_options(options, part)
    format_name = _sniff(data)
    if format_name is None:
        raise MediaError("this is not a PNG, JPEG, WebP, GIF, BMP or TIFF image", param=part)
    try:
        with Image.open(io.BytesIO(data), formats=[format_name]) as image:
            _check_size(image.size, part, limits)
            image.load()
            pixels = _to_rgb(_upright(image), how)
    except SensoriumError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooLargeError(f"the image has more than {limits.max_pixels} pixels", param=part) from None
    except Exception:  # damaged files make the decoders raise nearly anything
        raise MediaError("the image is damaged and cannot be decoded", param=part) from None
    return Media("image", pixels, _digest(b"file" + how.key, data), part=part, options=rest)


def from_pil(
    image: Image.Image, part: str = "", limits: MediaLimits | None = None, options: Mapping[str, Any] | None = None
) -> Media:
    """A PIL picture, treated as from_bytes treats a decoded one, options included."""
    how, rest = read_options(options, part)
    limits = limits or MediaLimits()
    _check_size(image.size, part, limits)
    try:
        image.load()
        pixels = _to_rgb(_upright(image), how)
    except Exception:  # a lazy picture decodes only now
        raise MediaError("the image is damaged and cannot be decoded", param=part) from None
    return _of_pixels(pixels, part, rest)


def from_array(
    pixels: np.ndarray, part: str = "", limits: MediaLimits | None = None, options: Mapping[str, Any] | None = None
) -> Media:
    """[H, W], [H, W, 1], [H, W, 3] or [H, W, 4] uint8; the last axis is always the channel."""
    how, rest = read_options(options, part)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        raise MediaError(
            "an image array must be uint8 with shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]", param=part
        )
    _check_size((pixels.shape[1], pixels.shape[0]), part, limits or MediaLimits())
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim == 2 or pixels.shape[2] == 4 or how.grey:
        pixels = _to_rgb(Image.fromarray(pixels), how)
    else:
        pixels = np.array(pixels, order="C")  # the caller may write to its own at any time
    return _of_pixels(pixels, part, rest)


def _of_pixels(pixels: np.ndarray, part: str, options: dict[str, Any]) -> Media:
    digest = _digest(b"pixels%dx%d" % pixels.shape[1::-1], pixels.data)
    return Media("image", pixels, digest, part=part, options=options)


def _digest(kind: bytes, data: bytes | memoryview) -> bytes:
    """SHA-256, for which processors have instructions: half the time of BLAKE2 there. kind: what equal bytes become."""
    digest = hashlib.sha256(len(kind).to_bytes(8, "little") + kind)
    digest.update(data)
    return digest.digest()


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
        return image if image.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)
    except Exception:  # EXIF is free-form input
        return image


def _to_rgb(image: Image.Image, how: Look) -> np.ndarray:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = Image.fromarray(_deep_grey(np.asarray(image)))
    elif image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        overlay = image.convert("RGBA")
        image = Image.new("RGBA", image.size, (*how.background, 255))
        image.alpha_composite(overlay)
    if how.grey:
        image = image.convert("L")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _deep_grey(values: np.ndarray) -> np.ndarray:
    """Grey above 8 bits to 8: integers over 255 are 16-bit; floats are 0..1 unless one is larger, then 0..255."""
    top = values.max(initial=0)
    if np.issubdtype(values.dtype, np.floating):
        scale = 255.0 if top <= 1.0 else 1.0
    else:
        scale = 255.0 / 65535.0 if top > 255 or values.dtype == np.uint16 else 1.0
    return np.clip(np.rint(np.nan_to_num(values.astype(np.float64)) * scale), 0, 255).astype(np.uint8)
