"""Forms with one file (multipart/form-data), held in memory under limits: an upload is never written to disk."""

from __future__ import annotations

import contextlib
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from sensorium.errors import RequestError, TooLargeError
from sensorium.server.body import read_pieces
from sensorium.server.errors import HttpError

MAX_PARTS, MAX_FIELD_BYTES, MAX_HEAD_BYTES = 64, 64 << 10, 4 << 10
OVERHEAD_BYTES = 1 << 20
"""What the fields and the borders of a form may add to its file."""


async def read_form(
    scope: Scope,
    receive: Receive,
    max_file_bytes: int,
    upload: str = "file",
    too_large: RequestError | None = None,
) -> tuple[dict[str, Any], bytes | None]:
    """Fields by name (names ending in [] as lists), and the content of the file. Raises RequestError, HttpError.

    upload: what the file must be called. too_large: raised for one of more bytes.
    """
    kind, options = parse_options_header(Headers(scope=scope).get("content-type", ""))
    if kind != b"multipart/form-data":
        raise HttpError(415, "unsupported_media_type", "the body must be sent as multipart/form-data")
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise RequestError("the form has no boundary", param="body")
    too_large = too_large or _too_large(max_file_bytes)
    form = _Form(boundary, max_file_bytes, upload, too_large)
    pieces = read_pieces(scope, receive, max_file_bytes + OVERHEAD_BYTES)
    try:
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                form.feed(piece)
    except TooLargeError:
        raise too_large from None
    except FormParserError:
        raise RequestError("the form is not well formed", param="body") from None
    if not form.ended:
        raise RequestError("the form ends before its last border", param="body")
    return form.fields, form.file


class _Form:
    """Takes the body piece by piece."""

    def __init__(self, boundary: bytes, max_file_bytes: int, upload: str, too_large: RequestError) -> None:
        self._upload, self._too_large = upload, too_large
        self.fields: dict[str, Any] = {}
        self.file: bytes | None = None
        self.ended = False
        self._max_file_bytes = max_file_bytes
        self._parts = self._head_bytes = 0
        self._key, self._value = bytearray(), bytearray()
        self._data, self._name, self._is_file = bytearray(), "", False
        callbacks: Any = {
            "on_part_begin": self._begin,
            "on_header_field": self._add_key,
            "on_header_value": self._add_value,
            "on_header_end": self._header,
            "on_part_data": self._add_data,
            "on_part_end": self._end,
            "on_end": self._close,
        }
        self._parser = MultipartParser(boundary, callbacks)

    def feed(self, piece: bytes) -> None:
        self._parser.write(piece)

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise RequestError(f"the form has more than {MAX_PARTS} parts", param="body")
        self._data, self._name, self._is_file, self._head_bytes = bytearray(), "", False, 0

    def _add_key(self, data: bytes, start: int, end: int) -> None:
        self._grow(self._key, data[start:end])

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._grow(self._value, data[start:end])

    def _grow(self, text: bytearray, more: bytes) -> None:
        self._head_bytes += len(more)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise RequestError("a part of the form has too large headers", param="body")
        text += more

    def _header(self) -> None:
        if bytes(self._key).lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            self._name = options.get(b"name", b"").decode("utf-8", "replace")
            self._is_file = b"filename" in options
        self._key.clear()
        self._value.clear()

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file and self._name != self._upload:
            raise RequestError(f"{self._name[:100]}: the upload must be called {self._upload}", param=self._name)
        if not self._is_file and self._name == self._upload:
            raise HttpError(422, "invalid_request", f"{self._upload}: must be an upload, not a text")
        self._data += data[start:end]
        if len(self._data) > (self._max_file_bytes if self._is_file else MAX_FIELD_BYTES):
            if self._is_file:
                raise self._too_large
            raise RequestError(f"{self._name[:100]}: longer than {MAX_FIELD_BYTES} bytes", param=self._name)

    def _end(self) -> None:
        name = self._name
        if not name:
            raise RequestError("a part of the form has no name", param="body")
        if name in self.fields or (self._is_file and self.file is not None):
            raise RequestError(f"{name[:100]}: given twice", param=name)
        if self._is_file:
            self.file = bytes(self._data)
            return
        try:
            value = self._data.decode()
        except UnicodeDecodeError:
            raise RequestError(f"{name[:100]}: not valid UTF-8", param=name) from None
        if name.endswith("[]"):
            self.fields.setdefault(name[:-2], []).append(value)
        else:
            self.fields[name] = value

    def _close(self) -> None:
        self.ended = True


def _too_large(max_file_bytes: int) -> RequestError:
    reason = f"Maximum file size exceeded: {max_file_bytes >> 20} MB are allowed (--max-audio-filesize-mb)"
    return RequestError(reason, param="audio_filesize_mb")
