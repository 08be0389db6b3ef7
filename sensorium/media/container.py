"""Opening audio and video files with FFmpeg: the format is decided here, from the first bytes, and never probed.

Probing would let a file pose as a playlist or a list of other files and make FFmpeg open those.
"""

from __future__ import annotations

import io
from typing import Any

import av
from av.error import FFmpegError

from sensorium.errors import MediaError

_MAGIC = {
    b"fLaC": "flac",
    b"OggS": "ogg",
    b"\x1aE\xdf\xa3": "matroska",
    b"ID3": "mp3",
    b"FORM": "aiff",
    b"#!AMR": "amr",
    b"caff": "caf",
    b".snd": "au",
    b"RF64": "wav",
}
_MP4_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})


def sniff(data: bytes) -> str | None:
    """FFmpeg's name of the container, or None when the start is not one of those listed here."""
    if data[:4] == b"RIFF":
        return {b"WAVE": "wav", b"AVI ": "avi"}.get(data[8:12])
    if data[4:8] in _MP4_BOXES:
        return "mp4"
    for magic, name in _MAGIC.items():
        if data.startswith(magic):
            return name
    if len(data) > 2 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:
        return "aac" if data[1] & 0x06 == 0 else "mp3"
    return None


def open_container(data: bytes, format_name: str | None, part: str) -> Any:
    """An av container to read from, as a context manager. Nothing outside `data` can be reached through it."""
    if format_name is None:
        raise MediaError("this is not an audio or video file of a supported format", param=part)
    try:
        return av.open(
            io.BytesIO(data),
            format=format_name,
            options={
                "protocol_whitelist": "",
                "format_whitelist": "wav,avi,flac,ogg,matroska,webm,mp3,aiff,amr,aac,mov,mp4,caf,au",
            },
            metadata_errors="ignore",
        )
    except (FFmpegError, ValueError, OSError):
        raise MediaError("the file is damaged and cannot be opened", param=part) from None
