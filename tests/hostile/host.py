"""A web host on loopback that misbehaves: the path says how. It counts its visitors and keeps what they sent."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import unquote

from server import samples

PNG, OTHER = samples.picture(), samples.picture(seed=1)
Answer = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Host:
    port: int = 0
    connections: int = 0
    heads: list[bytes] = field(default_factory=list)

    def seen(self, path: str) -> int:
        return sum(head.split(b" ")[1] == path.encode() for head in self.heads)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            path, _, query = head.split(b" ")[1].decode().partition("?")
            name = path.strip("/").split("/")[0]
            await ANSWERS.get(name, _picture)(unquote(query) or path, writer)
        writer.close()


@contextmanager
def web_host() -> Iterator[Host]:
    host = Host()
    started, ending = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def run() -> None:
        server = await asyncio.start_server(host.serve, "127.0.0.1", 0)
        host.port = server.sockets[0].getsockname()[1]
        started.set()
        await ending.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), name="hostile-host")
    thread.start()
    started.wait()
    try:
        yield host
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join()
        loop.close()


def _plain(body: bytes, status: str = "200 OK", *headers: str, length: int | None = None) -> Answer:
    async def answer(_: str, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers, "", ""]
        writer.write("\r\n".join(lines).encode() + body)
        await writer.drain()

    return answer


_picture = _plain(PNG)


async def _status(path: str, writer: asyncio.StreamWriter) -> None:
    await _plain(b"", f"{path.rpartition('/')[2]} X")(path, writer)


async def _redirect(target: str, writer: asyncio.StreamWriter) -> None:
    await _plain(b"", "302 Found", f"Location: {target}")(target, writer)


async def _chain(path: str, writer: asyncio.StreamWriter) -> None:
    left = int(path.rpartition("/")[2])
    await (_redirect(f"/chain/{left - 1}", writer) if left else _picture("", writer))


async def _drip(_: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def _silence(_: str, __: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def _endless(_: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"4000\r\n" + bytes(0x4000) + b"\r\n")
        await writer.drain()


async def _cut(path: str, writer: asyncio.StreamWriter) -> None:
    part = int(path.rpartition("/")[2])
    await _plain(PNG[: len(PNG) * part // 8], length=len(PNG))(path, writer)


_turns = iter(range(1 << 30))


async def _alternating(path: str, writer: asyncio.StreamWriter) -> None:
    await _plain(PNG if next(_turns) % 2 == 0 else OTHER)(path, writer)


async def _slow(path: str, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.2)
    await _picture(path, writer)


async def _ancient(_: str, writer: asyncio.StreamWriter) -> None:
    writer.write(PNG)


ANSWERS: dict[str, Answer] = {
    "status": _status,
    "redirect": _redirect,
    "chain": _chain,
    "loop": lambda _, writer: _redirect("/loop", writer),
    "drip": _drip,
    "silence": _silence,
    "endless": _endless,
    "cut": _cut,
    "alternating": _alternating,
    "slow": _slow,
    "ancient": _ancient,
    "huge": _plain(b"x", length=10 * 10**9),
    "short-length": _plain(PNG, length=10),
    "long-length": _plain(b"0123456789", length=10_000_000),
    "gzip": _plain(gzip.compress(bytes(10_000_000)), "200 OK", "Content-Encoding: gzip"),
    "nested": _plain(gzip.compress(gzip.compress(PNG)), "200 OK", "Content-Encoding: gzip, gzip"),
    "br": _plain(PNG, "200 OK", "Content-Encoding: br"),
    "zstd": _plain(PNG, "200 OK", "Content-Encoding: zstd"),
    "html": _plain(b"<html>log in</html>", "200 OK", "Content-Type: text/html"),
    "refresh": _plain(b"<meta http-equiv=refresh content='0;url=/trap'>", "200 OK", "Content-Type: text/html"),
    "error": _plain(b'{"error": "x"}', "200 OK", "Content-Type: application/json"),
    "empty": _plain(b""),
    "wrong-type": _plain(PNG, "200 OK", "Content-Type: text/html"),
    "many-headers": _plain(PNG, "200 OK", *(f"X-{n}: {n}" for n in range(300))),
    "large-header": _plain(PNG, "200 OK", "X: " + "y" * (1 << 20)),
    "cookie": _plain(PNG, "200 OK", "Set-Cookie: a=b"),
}
