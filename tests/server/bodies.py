"""Request bodies for the hostile cases, and what a case is."""

from __future__ import annotations

import base64
import json
from typing import Any

from server import samples
from server.live import user

Case = tuple[Any, "int | tuple[int, ...]", "str | None"]
OK = 200
PNG, WAV = samples.picture(), samples.sound()
PNG_URL = samples.data_url("image/png", PNG)
IMAGE, AUDIO, AUDIO_URL, VIDEO = (
    f"messages[0].content[0].{kind}" for kind in ("image_url", "input_audio", "audio_url", "video_url")
)


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": user("hi"), "max_tokens": 2, **fields}


def message(**fields: Any) -> dict[str, Any]:
    return chat(messages=[{"role": "user", "content": "hi", **fields}])


def part(**content: Any) -> dict[str, Any]:
    return chat(messages=user([content]))


def raw(field: str, literal: str) -> bytes:
    """A body with one field written as it stands, where json.dumps would not write it."""
    return json.dumps(chat())[:-1].encode() + f', "{field}": {literal}}}'.encode()


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def image(url: str) -> dict[str, Any]:
    return part(**image_part(url))


def png(data: bytes) -> dict[str, Any]:
    return image(samples.data_url("image/png", data))


def audio(data: bytes) -> dict[str, Any]:
    return part(type="input_audio", input_audio={"data": base64.b64encode(data).decode(), "format": "wav"})


def audio_url(url: str) -> dict[str, Any]:
    return part(type="audio_url", audio_url={"url": url})


def video_url(url: str) -> dict[str, Any]:
    return part(type="video_url", video_url={"url": url})


def video(data: bytes, **options: Any) -> dict[str, Any]:
    body = video_url(samples.data_url("video/mp4", data))
    return body | ({"media_io_kwargs": {"video": options}} if options else {})
