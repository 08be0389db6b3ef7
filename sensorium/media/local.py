"""Media that need no network: bytes, data: URLs, and files below one folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import unquote_to_bytes

from sensorium.config import MediaLimits
from sensorium.errors import MediaBlockedError, MediaError, TooLargeError
from sensorium.inline import Pieces, decode_base64, part_of, text_size
from sensorium.media import frame_list
from sensorium.types import MediaRef

# A declared type is only a hint, but it may not contradict what was asked for. Recorders call sound alone video too.
_FAMILIES = {"image": {"image"}, "audio": {"audio", "video"}, "video": {"video"}}


def read_local(ref: MediaRef, limits: MediaLimits) -> bytes | Pieces:
    if isinstance(ref.source, bytes):
        check_size(len(ref.source), ref, limits)
        return ref.source
    if not isinstance(ref.source, str):
        raise MediaError(f"this {ref.modality} part holds no address and no bytes", param=ref.part)
    if ref.source[:5].lower() == "data:":
        return _read_data_url(ref.source, ref, limits)
    return _read_file_url(ref.source, ref, limits)


def _read_data_url(url: str, ref: MediaRef, limits: MediaLimits) -> bytes | Pieces:
    """data:[type][;parameters];base64,<standard alphabet, padded, nothing else>"""
    comma = url.find(",", 0, 256)
    head = url[5 : max(comma, 5)].lower().split(";")
    if comma < 0 or head[-1].strip() != "base64":
        raise MediaError("a data: URL must look like data:<type>;base64,<data>", param=ref.part)
    family = head[0].strip().partition("/")[0]
    if head[0].strip() not in ("", "application/octet-stream") and family not in _FAMILIES[ref.modality]:
        raise MediaError(f"a data: URL of another type than {ref.modality}", param=ref.part)
    check_size((text_size(url) - comma - 1) // 4 * 3 - 2, ref, limits)
    text = part_of(url, url[comma + 1 :])
    try:
        if ref.modality == "video" and head[0].strip() == "video/jpeg":
            count = text.count(",") + 1
            if count > limits.max_video_frames:
                raise MediaError(
                    f"{count} frames; at most {limits.max_video_frames} (max_video_frames)", param=ref.part
                )
            return frame_list.join([bytes(decode_base64(part_of(text, frame))) for frame in text.split(",")])
        return decode_base64(text)
    except MediaError:
        raise
    except ValueError:
        raise MediaError("the base64 text of this data: URL is not valid", param=ref.part) from None


def _read_file_url(url: str, ref: MediaRef, limits: MediaLimits) -> bytes:
    if limits.allowed_local_path is None:
        raise MediaBlockedError(
            "files of this machine are not served; --allowed-local-media-path names the folder that is", param=ref.part
        )
    try:
        root = limits.allowed_local_path.resolve(strict=True)
        descriptor = _open_below(root, _relative_parts(url, (limits.allowed_local_path.absolute(), root)))
    except (OSError, ValueError):
        raise MediaBlockedError(
            "this file is not available: it must be a plain file and a subpath of --allowed-local-media-path",
            param=ref.part,
        ) from None
    with os.fdopen(descriptor, "rb") as file:
        check_size(os.fstat(descriptor).st_size, ref, limits)
        data = file.read(size_limit(ref, limits) + 1)  # it may grow while we read
    check_size(len(data), ref, limits)
    return data


def _relative_parts(url: str, roots: tuple[Path, ...]) -> tuple[str, ...]:
    """Components of the path below one of the roots; ValueError for anything that leaves them."""
    rest = url[5:]
    if rest.startswith("//"):
        host, slash, rest = rest[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise ValueError("another host")
        rest = slash + rest
    name = unquote_to_bytes(rest).decode("utf-8")
    if "\0" in name or "\\" in name or name.startswith("//") or ".." in name.split("/"):
        raise ValueError("not a plain path")
    for root in roots:
        if Path(name).is_relative_to(root):
            return Path(name).relative_to(root).parts
    raise ValueError("outside")


def _open_below(root: Path, parts: tuple[str, ...]) -> int:
    """Opens root/parts one component at a time, following no symbolic link, so nothing can be swapped in between."""
    if not parts:
        raise ValueError("a directory")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # non-blocking: a pipe must not hold us
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            inner = os.open(part, flags | os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = inner
        descriptor = os.open(parts[-1], flags, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("not a regular file")
    return descriptor


def size_limit(ref: MediaRef, limits: MediaLimits) -> int:
    """Most encoded bytes of this item."""
    return min(
        limits.max_bytes,
        {"image": limits.max_image_bytes, "audio": limits.max_audio_bytes}.get(ref.modality, limits.max_bytes),
    )


def check_size(size: int, ref: MediaRef, limits: MediaLimits) -> None:
    most = size_limit(ref, limits)
    if size > most:
        raise TooLargeError(
            f"this {ref.modality} has more than {most} bytes ({_SETTINGS[ref.modality]})", param=ref.part
        )


_SETTINGS = {"image": "max_image_bytes", "audio": "max_audio_bytes", "video": "max_bytes"}
