"""Request bodies: read under a size and a rate limit, decoded into typed structs, faults named by their path."""

from __future__ import annotations

import ast
import asyncio
import difflib
import logging
import re
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

import msgspec
from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from sensorium.config import ServerConfig
from sensorium.errors import RequestError, TooLargeError, UnsupportedError
from sensorium.server.errors import ClientGone, HttpError
from sensorium.server.lift import Body, Lifter

log = logging.getLogger(__name__)
T = TypeVar("T")

GRACE_S = 10.0
"""A body may take this long, and then as long as MIN_RATE allows for what has arrived."""
MIN_RATE = 16 * 1024 / 10.0
MAX_UNKNOWN = 100
"""Unknown fields of one request that may be ignored, where they are at all."""

_PATTERN = re.compile(r"str matching regex ('.*'|\".*\")")
_MISPLACED = re.compile(r"Object (contains unknown|missing required) field `(.*?)`(?: - at `\$(.*)`)?", re.DOTALL)
_AT_BYTE = re.compile(r"(.*) \(byte (\d+)\)", re.DOTALL)
_KEY = re.compile(rb'"([^"\\]{1,64})"\s*:')
_LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)


async def read_body(scope: Scope, receive: Receive, config: ServerConfig) -> Body:
    """The whole body, within the configured bounds, long base64 taken out. One announced as too long is not read."""
    headers = Headers(scope=scope)
    media_type, _, parameters = headers.get("content-type", "").partition(";")
    encoded_otherwise = "charset" in parameters and "utf-8" not in parameters.lower()
    if media_type.strip().lower() != "application/json" or encoded_otherwise:
        raise HttpError(415, "unsupported_media_type", "the body must be sent as application/json in UTF-8")
    lifter = Lifter(config.max_json_bytes)
    async for piece in read_pieces(scope, receive, config.max_body_bytes):
        lifter.feed(piece)
    return lifter.finish()


async def read_pieces(scope: Scope, receive: Receive, limit: int) -> AsyncGenerator[bytes, None]:
    """The body as it arrives, at most `limit` bytes where that is not 0, not compressed and not too slowly."""
    headers = Headers(scope=scope)
    if headers.get("content-encoding", "identity") != "identity":
        raise HttpError(415, "unsupported_media_type", "compressed request bodies are not accepted")
    too_large = TooLargeError(f"the request body is larger than {limit} bytes")
    if limit and int(headers.get("content-length", "0")) > limit:
        raise too_large
    size = 0
    loop = asyncio.get_running_loop()
    start = loop.time()
    while True:
        patience = start + GRACE_S + size / MIN_RATE - loop.time()
        try:
            message = await asyncio.wait_for(receive(), patience)
        except asyncio.TimeoutError:
            raise HttpError(408, "request_timeout", "the request body arrives too slowly") from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece: bytes = message.get("body", b"")
        size += len(piece)
        if limit and size > limit:
            raise too_large
        yield piece
        if not message.get("more_body", False):
            return


def decode(body: Body, decoder: msgspec.json.Decoder[T], unsupported: dict[str, str], *, lenient: bool = False) -> T:
    """The typed request. Raises RequestError naming the path of the first fault.

    unsupported: top-level fields of the API that this server does not offer -> what they would do. lenient: fields that
    are not known are left out with a warning.
    """
    try:
        return body.settle(_typed(body.text, decoder, unsupported, lenient=lenient))
    except RecursionError:
        raise RequestError("the JSON is nested too deeply") from None


def _typed(text: bytes, decoder: msgspec.json.Decoder[T], unsupported: dict[str, str], *, lenient: bool) -> T:
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        if lenient and _misplaced(str(error), "contains unknown"):
            return _without_unknown(msgspec.json.decode(text), decoder.type, unsupported)
        raise _invalid(str(error), decoder.type, unsupported) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _malformed(str(error), text) from None


def decode_fields(fields: dict[str, Any], kind: type[T], unsupported: dict[str, str]) -> T:
    """The same for the fields of a form, whose texts are read as the numbers and booleans that the type wants."""
    try:
        return msgspec.convert(fields, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), kind, unsupported) from None


def _without_unknown(tree: Any, kind: type[T], unsupported: dict[str, str]) -> T:
    """The typed request from decoded JSON, once every field that is not known has been taken out of it."""
    for _ in range(MAX_UNKNOWN):
        try:
            return msgspec.convert(tree, kind, str_keys=True)
        except msgspec.ValidationError as error:
            place = _misplaced(str(error), "contains unknown")
            if place is None or re.split(r"[.\[]", place[1] + place[0], maxsplit=1)[0] in unsupported:
                raise _invalid(str(error), kind, unsupported) from None
            name, path = place
            log.warning("the unknown field %.200s is ignored", f"{path}.{name}".lstrip("."))
            inner = tree
            for key, index in re.findall(r"\.(\w+)|\[(\d+)\]", path):
                inner = inner[key] if key else inner[int(index)]
            del inner[name]
    raise RequestError(f"the body: more than {MAX_UNKNOWN} unknown fields")


def _misplaced(text: str, problem: str) -> tuple[str, str] | None:
    """The field and its path, where that is what msgspec complains about."""
    match = _MISPLACED.fullmatch(text)
    if match is None or match[1] != problem or "..." in (match[3] or ""):
        return None
    return match[2], match[3] or ""


def _invalid(text: str, kind: type, unsupported: dict[str, str]) -> RequestError:
    """The error for JSON that is well formed but not what the schema asks for."""
    if match := _MISPLACED.fullmatch(text):
        problem, name, path = match.groups()
        param = f"{path or ''}.{name}".lstrip(".")
        reason = "unknown field" if problem.startswith("contains") else "this field is required"
        if problem.startswith("contains") and not path:
            close = difflib.get_close_matches(name[:64], [field.name for field in msgspec.structs.fields(kind)], n=1)
            reason += f"; did you mean {close[0]}?" if close else ""
    else:
        reason, _, path = text.replace("`", "").partition(" - at ")
        param = path.replace("key in ", "").removeprefix("$").lstrip(".")
        reason = (reason[:1].lower() + reason[1:]).replace(" | null", "")
        reason = _PATTERN.sub(lambda match: _in_words(ast.literal_eval(match[1])), reason)
    root = re.split(r"[.\[]", param, maxsplit=1)[0]
    if root in unsupported:
        return UnsupportedError(f"{root}: {unsupported[root]} is not supported by this server", param=root)
    return RequestError(f"{param[:200]}: {reason}" if param else f"the body: {reason}", param=param or None)


def _in_words(pattern: str) -> str:
    """What a pattern of ours wants of a text: they are all one class of characters."""
    match = re.fullmatch(r"\^\[(\^?)(.*)\][*+{].*\$", pattern)
    if match is None:
        return f"text like {pattern}"
    named = {r"\x00-\x1f\x7f": "control characters", r"\x20-\x7e": "printable ASCII", "A-Za-z": "letters a to z",
             "a-zA-Z": "letters a to z", "0-9": "digits"}  # fmt: skip
    rest, words = match[2].replace("\\\\", "\\"), list[str]()
    for piece, name in named.items():
        if piece in rest:
            rest, words = rest.replace(piece, ""), [*words, name]
    return f"text {'without' if match[1] else 'of'} {', '.join([*words, *rest])}"


def _malformed(text: str, body: bytes) -> RequestError:
    """The error for bytes that are not JSON, naming the field before the fault where that can be told."""
    at = int(match[2]) if (match := _AT_BYTE.fullmatch(text)) else len(body)
    reason = match[1] if match else text
    if ("truncated" in text or "surrogate" in text) and (surrogate := _LONE_SURROGATE.search(body)):
        # msgspec reports the first half of a pair without the second as truncated input.
        reason, at = "a string holds half of a surrogate pair", surrogate.start()
    elif match is None and "utf-8" in text:
        reason, at = "the body is not valid UTF-8", 0
    keys = _KEY.findall(body, max(0, at - 4096), at)
    name: Any = keys[-1].decode("utf-8", "replace") if keys else None
    return RequestError(f"{name}: {reason}" if name else f"the body: {reason}", param=name)
