"""What callers in Python write, as messages and media: OpenAI-style dicts, and live objects such as PIL pictures."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sensorium.errors import MediaError, RequestError
from sensorium.media import audio, image
from sensorium.types import Media, MediaRef, Message, Modality

ROLES = ("system", "user", "assistant", "tool")
# Part type -> (modality, where the part keeps what it holds).
URL_PARTS: dict[str, Modality] = {"image_url": "image", "audio_url": "audio", "video_url": "video"}
OBJECT_PARTS: dict[str, Modality] = {"image": "image", "image_pil": "image", "audio": "audio", "video": "video"}
PARTS = ("text", *URL_PARTS, "input_audio", *OBJECT_PARTS)


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Chat messages in the OpenAI form; a part may also be {"type": "image", "image": object} for live objects."""
    if isinstance(messages, Mapping) or not all(isinstance(message, Mapping) for message in messages):
        raise RequestError("messages must be a list of dicts with role and content", param="messages")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _message(message: Mapping[str, Any], where: str) -> Message:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise RequestError(f"{where}.role is {role!r}; use one of {', '.join(ROLES)}", param=f"{where}.role")
    extra = {key: value for key, value in message.items() if key not in ("role", "content")}
    if content is None and role == "assistant":
        content = ""
    if isinstance(content, str):
        return Message(role, (content,), extra)
    if not isinstance(content, Sequence):
        raise RequestError(f"{where}.content must be a string or a list of parts", param=f"{where}.content")
    parts = tuple(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    return Message(role, parts, extra)


def _part(part: Any, where: str) -> str | MediaRef | Media:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str) or kind not in PARTS:
        raise RequestError(f"{where} has type {kind!r}; use one of {', '.join(PARTS)}", param=where)
    inside: Any = part.get(kind)
    if kind == "text":
        if not isinstance(inside, str):
            raise RequestError(f"{where}.text must be a string", param=f"{where}.text")
        return inside
    if kind in URL_PARTS:
        url = inside.get("url") if isinstance(inside, Mapping) else inside
        if not isinstance(url, str):
            raise RequestError(f"{where}.{kind} has no url", param=f"{where}.{kind}")
        return MediaRef(URL_PARTS[kind], url, f"{where}.{kind}")
    if kind == "input_audio":
        try:
            return MediaRef("audio", base64.b64decode(inside["data"], validate=True), f"{where}.{kind}")
        except (KeyError, TypeError, ValueError) as error:
            raise MediaError(f"{where}.input_audio.data is not base64", param=f"{where}.{kind}") from error
    return read_media(OBJECT_PARTS[kind], inside, f"{where}.{kind}")


def read_media(modality: Modality, value: Any, part: str) -> Media | MediaRef:
    """One live object, file or byte string as media. Paths are the caller's own and are read as they are."""
    if isinstance(value, bytes):
        return MediaRef(modality, value, part)
    if isinstance(value, str | Path):
        try:
            return MediaRef(modality, Path(value).expanduser().read_bytes(), part)
        except OSError as error:
            raise MediaError(f"{part}: cannot read {str(value)!r} ({error.strerror})", param=part) from error
    try:
        return {"image": _image, "audio": _audio, "video": _video}[modality](value, part)
    except RequestError:
        raise
    except (TypeError, ValueError) as error:
        raise MediaError(f"{part}: {error}", param=part) from error


def _image(value: Any, part: str) -> Media:
    """A PIL picture, or an array [H, W], [H, W, 3], [H, W, 4] or [3, H, W] of bytes."""
    return image.from_pil(value, part) if isinstance(value, Image.Image) else image.from_array(_pixels(value), part)


def _audio(value: Any, part: str) -> Media:
    """(samples, rate), or samples at 16 kHz: [S], [channels, S] or [S, channels]; float in -1..1, or integers."""
    rate = audio.RATE
    if _has_rate(value):
        value, rate = value[0], int(value[1])
    samples = _array(value)
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        samples = samples.T
    return audio.from_array(samples, rate, part)


def _video(value: Any, part: str) -> Media:
    """Frames, or (frames, frames per second). Frames are a list of pictures or an array [F, H, W, 3]; 1 a second."""
    fps = 1.0
    if _has_rate(value):
        value, fps = value[0], float(value[1])
    if not fps > 0:
        raise ValueError(f"video has {fps} frames per second")
    frames = [_image(frame, f"{part}[{i}]") for i, frame in enumerate(value)]
    if not frames:
        raise ValueError("a video needs at least one frame")
    digest = hashlib.blake2b(b"".join(frame.digest for frame in frames), digest_size=32, person=b"video")
    digest.update(repr(fps).encode())
    pixels = np.stack([frame.data for frame in frames])
    return Media("video", pixels, digest.digest(), times_s=np.arange(len(frames)) / fps, part=part)


def _has_rate(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and np.ndim(value[1]) == 0


def _pixels(value: Any) -> np.ndarray:
    """An array with the channel last."""
    pixels = _array(value)
    is_first = pixels.ndim == 3 and pixels.shape[0] == 3 and pixels.shape[2] not in (1, 3, 4)
    return pixels.transpose(1, 2, 0) if is_first else pixels


def _array(value: Any) -> np.ndarray:
    """numpy arrays, lists of numbers, and torch tensors."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if not np.issubdtype(array.dtype, np.number):
        raise ValueError(f"cannot read media from {type(value).__name__}")
    return array
