"""OpenAI batch files: every line a request to an endpoint, run through the same application without a socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from starlette.types import ASGIApp, Message

from sensorium.errors import SensoriumError

URLS = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/score", "/v1/score", "/rerank",
    "/v1/rerank", "/v2/rerank", "/v1/audio/transcriptions", "/v1/audio/translations",
)  # fmt: skip
BUSY = (429, 503)
TRIES, PAUSE_S = 5, 1.0
AHEAD = 4
"""Answers that wait for an earlier line to be written, as a multiple of what is in flight."""


class BatchError(SensoriumError):
    """The batch cannot be run, or its files not be read or written."""

    code = "batch_failed"


@dataclass(frozen=True, slots=True)
class Line:
    """Where a request stands in the input file: a file may be larger than memory."""

    number: int
    offset: int
    custom_id: str


def read_lines(path: Path) -> list[Line]:
    """All lines of the file, checked. Raises BatchError naming the first that is wrong; no request has run by then."""
    lines: list[Line] = []
    seen: set[str] = set()
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if raw.strip():
                custom_id = _check(raw, number)
                if custom_id in seen:
                    raise BatchError(f"Invalid request on line {number}: custom_id {custom_id[:64]!r} is there twice")
                seen.add(custom_id)
                lines.append(Line(number, offset, custom_id))
            offset += len(raw)
    return lines


def _check(raw: bytes, number: int) -> str:
    """The custom_id of a line."""

    def wrong(reason: str) -> BatchError:
        return BatchError(f"Invalid request on line {number}: {reason}")

    try:
        value: Any = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise wrong(f"not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise wrong("not a JSON object")
    line: dict[str, Any] = value  # type: ignore[assignment] - JSON objects have texts for keys
    if unknown := sorted(set(line) - {"custom_id", "method", "url", "body"}):
        raise wrong(f"unknown field {unknown[0][:64]!r}")
    custom_id, body = line.get("custom_id"), line.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        raise wrong("custom_id must be a text")
    if line.get("method") != "POST":
        raise wrong("method must be POST")
    if line.get("url") not in URLS:
        raise wrong(f"url must be one of {', '.join(URLS)}")
    if not isinstance(body, dict):
        raise wrong("body must be an object")
    for name in ("stream", "background"):
        if body.get(name):  # type: ignore[union-attr] - JSON
            raise wrong(f"body.{name}: an answer in a file is written whole")
    return custom_id


def finished_ids(path: Path) -> set[str]:
    """What an earlier run has written. A last line that was cut off is removed."""
    if not path.is_file():
        return set()
    found: set[str] = set()
    good = 0
    with path.open("rb+") as file:
        for raw in file:
            try:
                found.add(str(json.loads(raw)["custom_id"]))
            except (ValueError, KeyError, TypeError):
                if raw.endswith(b"\n"):
                    raise BatchError(f"{path} exists and is no output of a batch; name another file") from None
                break
            if not raw.endswith(b"\n"):
                found.discard(str(json.loads(raw)["custom_id"]))
                break
            good += len(raw)
        file.truncate(good)
    return found


class Batch:
    """Runs lines through an application, so many at a time, and writes their answers in the order of the lines."""

    def __init__(self, app: ASGIApp, source: Path, max_inflight: int) -> None:
        self._app = app
        self._source = source
        self._max_inflight = max_inflight
        self.failed = 0

    async def run(self, lines: list[Line], output: Path, advance: Callable[[], None]) -> None:
        """advance: called for each line that is done. Raises OSError where the output cannot be written."""
        inflight = asyncio.Semaphore(self._max_inflight)
        ahead = asyncio.Semaphore(self._max_inflight * AHEAD)
        done: asyncio.Queue[asyncio.Task[bytes]] = asyncio.Queue()

        async def start() -> None:
            for line in lines:
                await ahead.acquire()
                await inflight.acquire()
                task = asyncio.create_task(self._answer(line))
                task.add_done_callback(lambda _: (inflight.release(), advance()))
                done.put_nowait(task)

        starting = asyncio.create_task(start())
        pending: asyncio.Task[bytes] | None = None
        try:
            with output.open("ab") as file:
                for _ in lines:
                    pending = await done.get()
                    file.write(await pending + b"\n")
                    file.flush()
                    ahead.release()
        finally:
            starting.cancel()
            tasks: list[asyncio.Task[Any]] = [task for task in (starting, pending) if task is not None]
            while not done.empty():
                tasks.append(done.get_nowait())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, line: Line) -> bytes:
        """The output line. Whatever goes wrong with a request is in it."""
        with self._source.open("rb") as file:
            file.seek(line.offset)
            request: Any = msgspec.json.decode(file.readline())
        body = msgspec.json.encode(request["body"])
        status, content, request_id = 500, b"", ""
        for attempt in range(TRIES):
            status, content, request_id = await call(self._app, request["url"], body)
            if status not in BUSY or attempt == TRIES - 1:
                break
            await asyncio.sleep(PAUSE_S)
        answer: Any = _read(content)
        failed = status >= 400
        self.failed += failed
        error: Any = answer.get("error", answer) if isinstance(answer, dict) else answer  # type: ignore[union-attr]
        result: dict[str, Any] = {
            "id": f"batch_req_{uuid.uuid4().hex}",
            "custom_id": line.custom_id,
            "response": {"status_code": status, "request_id": request_id, "body": None if failed else answer},
            "error": error if failed else None,
        }
        return msgspec.json.encode(result)


def _read(content: bytes) -> Any:
    """JSON, or the text of formats that are none."""
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError:
        return content.decode("utf-8", "replace")


async def call(app: ASGIApp, path: str, body: bytes) -> tuple[int, bytes, str]:
    """Status, content and request id of a POST, without a socket."""
    status, content, headers = 500, bytearray(), dict[bytes, bytes]()
    unread = [body]
    never = asyncio.Event()

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await never.wait()  # the client stays
        raise AssertionError

    async def send(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], dict(message["headers"])
        else:
            content.extend(message.get("body", b""))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ],
        "client": None,
        "server": ("localhost", 0),
    }
    await app(scope, receive, send)
    return status, bytes(content), headers.get(b"x-request-id", b"").decode()


# ---- files at addresses -------------------------------------------------------------------------------------------


def is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


async def download(url: str, path: Path) -> None:
    """The file at an address that the operator named. Raises BatchError."""
    with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError):
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            if response.status == 200:
                with path.open("wb") as file:
                    async for piece in response.content.iter_chunked(1 << 20):
                        file.write(piece)
                return
            raise BatchError(f"{url} answered {response.status}")
    raise BatchError(f"{url} could not be fetched")


async def upload(path: Path, url: str) -> None:
    """PUT the file, in up to five tries. Raises BatchError; the file stays."""
    reason = ""
    for attempt in range(TRIES):
        try:
            async with aiohttp.ClientSession() as session:
                with path.open("rb") as file:
                    async with session.put(url, data=file) as response:
                        if response.status < 300:
                            return
                        reason = f"it answered {response.status}"
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            reason = str(error) or type(error).__name__
        if attempt < TRIES - 1:
            await asyncio.sleep(PAUSE_S)
    raise BatchError(f"the output could not be sent to {url}: {reason}; it is in {path}")
