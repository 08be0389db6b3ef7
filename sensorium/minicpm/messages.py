"""Conversations as MiniCPM's chat() takes them: PIL pictures, 16 kHz recordings and texts side by side in a list."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from sensorium.config import MediaLimits
from sensorium.envs import read_environment
from sensorium.errors import MediaError, RequestError
from sensorium.media import audio, image
from sensorium.media.fetch import Budget, Fetcher
from sensorium.messages import read_content
from sensorium.minicpm.utils import get_video_frame_audio_segments
from sensorium.types import Embeds, Media, MediaRef, Message, Modality

Part = str | MediaRef | Media | Embeds
_URL_PARTS: dict[str, Modality] = {"image_url": "image", "audio_url": "audio", "video_url": "video"}
_VIDEO_OPTIONS = ("url", "stack_frames", "use_audio")


def read_conversations(
    msgs: Any, images: Any, roles: Sequence[str], limits: MediaLimits
) -> tuple[list[list[Message]], bool]:
    """The conversations, and whether there came a list of them. images: chat()'s `image`, for texts without one."""
    if isinstance(msgs, str):
        try:
            msgs = json.loads(msgs)
        except ValueError as error:
            raise RequestError(f"msgs: this text is no JSON ({error})", param="msgs") from error
    if not isinstance(msgs, list | tuple) or not msgs:
        raise RequestError("msgs: give a list of messages with role and content, or a list of such lists", param="msgs")
    is_batch = isinstance(msgs[0], list | tuple)
    conversations = list(msgs) if is_batch else [msgs]
    each = list(images) if isinstance(images, list | tuple) else [images] * len(conversations)
    if len(each) != len(conversations):
        raise RequestError(f"image: {len(each)} pictures for {len(conversations)} conversations", param="image")
    read = [
        _conversation(own, picture, f"msgs[{index}]" if is_batch else "msgs", roles, limits)
        for index, (own, picture) in enumerate(zip(conversations, each, strict=True))
    ]
    return read, is_batch


def _conversation(msgs: Any, picture: Any, where: str, roles: Sequence[str], limits: MediaLimits) -> list[Message]:
    if not isinstance(msgs, list | tuple) or not msgs or not all(isinstance(message, Mapping) for message in msgs):
        raise RequestError(f"{where}: give a list of messages with role and content", param="msgs")
    found: list[Message] = []
    for index, message in enumerate(cast("Sequence[Mapping[str, Any]]", msgs)):
        at = f"{where}[{index}]"
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or role not in roles or (index == 0 and role == "assistant"):
            allowed = [name for name in roles if index or name != "assistant"]
            raise RequestError(f"{at}.role is {role!r}; use one of {', '.join(allowed)}", param=f"{at}.role")
        if index == 0 and picture is not None:
            if not isinstance(content, str):
                raise RequestError("image: the first message has a list of parts; put it there", param="image")
            content = [picture, content]
        items = content if isinstance(content, list | tuple) else [content]
        parts = [part for i, item in enumerate(items) for part in _parts(item, f"{at}.content[{i}]", limits)]
        found.append(Message(role, tuple(parts)))
    return found


def _parts(item: Any, where: str, limits: MediaLimits) -> list[Part]:
    """What one item of a content list stands for; a video_url stands for its frames and their sounds."""
    if isinstance(item, str):
        return [item]
    if isinstance(item, Image.Image):
        return [image.from_pil(item, where, limits)]
    if isinstance(item, Mapping):
        return _structured(item, where, limits)
    if hasattr(item, "detach"):
        item = item.detach().cpu().float().numpy()
    if isinstance(item, np.ndarray) and item.ndim == 1:
        return [audio.from_array(item, audio.RATE, where, limits)]
    raise RequestError(
        f"{where} is a {type(item).__name__}; use a PIL picture, a 1-D array of samples at 16 kHz, a string, or a dict "
        "such as {'type': 'image_url', ...}",
        param=where,
    )


def _structured(item: Mapping[str, Any], where: str, limits: MediaLimits) -> list[Part]:
    """A part in OpenAI's form. URLs may be paths of this machine too."""
    kind = str(item.get("type"))
    if kind not in _URL_PARTS:
        return list(read_content([item], where))
    asked = item.get(kind)
    options: Mapping[str, Any] = asked if isinstance(asked, Mapping) else {"url": asked}
    url = options.get("url")
    if not isinstance(url, str | Path):
        raise RequestError(f"{where}.{kind} has no url", param=where)
    known = _VIDEO_OPTIONS if kind == "video_url" else ("url", "detail")
    if unknown := [name for name in options if name not in known]:
        raise RequestError(f"{where}.{kind} has {unknown[0]!r}, which does nothing", param=f"{where}.{unknown[0]}")
    data = _bytes(str(url), _URL_PARTS[kind], where, limits)
    if kind != "video_url":
        return [MediaRef(_URL_PARTS[kind], data, where)]
    frames, sounds, stacked = get_video_frame_audio_segments(
        data, stack_frames=int(options.get("stack_frames", 1)), use_audio=bool(options.get("use_audio", True))
    )
    found: list[Part] = []
    for index, frame in enumerate(frames):
        found.append(image.from_pil(frame, where, limits))
        if sounds is not None:
            found.append(audio.from_array(sounds[index], audio.RATE, where, limits))
        if stacked is not None and index < len(stacked) and (between := stacked[index]) is not None:
            found.append(image.from_pil(between, where, limits))
    return found


def _bytes(url: str, modality: Modality, where: str, limits: MediaLimits) -> bytes:
    scheme, separator, rest = url.partition("://")
    if not separator and not url.startswith("data:"):
        rest, scheme = url, "file"
    if scheme == "file":
        try:
            return Path(rest).expanduser().read_bytes()
        except OSError as error:
            raise MediaError(f"{where}: cannot read {rest!r} ({error.strerror})", param=where) from error
    # Callers may be in an event loop already (notebooks are): fetching has a loop of its own.
    with ThreadPoolExecutor(1, thread_name_prefix="sensorium-fetch") as thread:
        return thread.submit(asyncio.run, _fetched(MediaRef(modality, url, where), limits)).result()


async def _fetched(ref: MediaRef, limits: MediaLimits) -> bytes:
    with ThreadPoolExecutor(1) as thread:
        fetcher = Fetcher(limits, read_environment(), thread)
        try:
            return bytes(await fetcher.fetch(ref, Budget(limits.max_request_download_bytes)))
        finally:
            await fetcher.close()
