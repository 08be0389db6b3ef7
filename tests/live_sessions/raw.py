"""A WebSocket made by hand, which may break every rule of RFC 6455."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
GONE = 1006
"""In place of a close code: the connection ended without one."""


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, reserved: int = 0, masked: bool = True) -> bytes:
    """As a client writes it. reserved: the three reserved bits. The mask is zero, which is one too."""
    head = bytes([fin << 7 | reserved << 4 | opcode])
    length = len(payload)
    if length < 126:
        size = bytes([masked << 7 | length])
    elif length < 1 << 16:
        size = bytes([masked << 7 | 126]) + struct.pack(">H", length)
    else:
        size = bytes([masked << 7 | 127]) + struct.pack(">Q", length)
    return head + size + (bytes(4) if masked else b"") + payload


def announced(length: int) -> bytes:
    """The head of a text frame of so many bytes, which never come."""
    return bytes([0x81, 0xFF]) + struct.pack(">Q", length) + bytes(4)


class Refused(Exception):
    """The handshake was answered with another status than 101."""

    def __init__(self, status: int, head: bytes) -> None:
        super().__init__(status)
        self.status, self.head = status, head


class Raw:
    """`headers` are the server's answer to the handshake."""

    def __init__(
        self,
        port: int,
        path: str,
        headers: Sequence[str] = (),
        host: str = "localhost",
        receive_bytes: int | None = None,
    ) -> None:
        """receive_bytes: of the socket's buffer, for a peer that is soon full."""
        self.socket = socket.socket()
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(120)
        self.socket.connect(("127.0.0.1", port))
        self._received = b""
        lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade"]
        lines += ["Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13", *headers, "", ""]
        self.socket.sendall("\r\n".join(lines).encode())
        while b"\r\n\r\n" not in self._received:
            if not self._more():
                break
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        self.headers = head.decode().lower()
        if not head.startswith(b"HTTP/1.1 101 "):
            self.socket.close()
            raise Refused(int(head.split()[1]) if head else 0, head)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def say(self, message: dict[str, Any] | str | bytes) -> None:
        """Bytes as a binary message, anything else as a text."""
        if isinstance(message, bytes):
            self.send(frame(BINARY, message))
        else:
            text = message if isinstance(message, str) else json.dumps(message)
            self.send(frame(TEXT, text.encode()))

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Opcode and payload of what comes, to the end of the connection."""
        while True:
            while (found := self._parsed()) is None:
                if not self._more():
                    return
            yield found

    def next(self) -> dict[str, Any]:
        """The next message: JSON, or sound as {"type": "sound"}. Pings are answered."""
        for opcode, payload in self.frames():
            if opcode == TEXT:
                return json.loads(payload)
            if opcode == BINARY:
                return {"type": "sound", "data": payload}
            if opcode == PING:
                self.send(frame(PONG, payload))
            if opcode == CLOSE:
                raise AssertionError(f"closed: {payload!r}")
        raise AssertionError("the connection has ended")

    def until(self, *kinds: str) -> dict[str, Any]:
        while (event := self.next())["type"] not in kinds:
            pass
        return event

    def closed(self) -> tuple[int, str]:
        """Code and reason that the server closes with; what comes before is left out."""
        for opcode, payload in self.frames():
            if opcode == CLOSE:
                return (struct.unpack(">H", payload[:2])[0], payload[2:].decode()) if payload else (1005, "")
        return GONE, ""

    def vanish(self) -> None:
        """With a reset, as a peer that has crashed."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _more(self) -> bool:
        try:
            piece = self.socket.recv(1 << 16)
        except ConnectionError:
            return False
        self._received += piece
        return bool(piece)

    def _parsed(self) -> tuple[int, bytes] | None:
        data = self._received
        if len(data) < 2:
            return None
        length, start = data[1] & 127, 2
        if length > 125:
            size = 2 if length == 126 else 8
            if len(data) < 2 + size:
                return None
            length, start = int.from_bytes(data[2 : 2 + size], "big"), 2 + size
        if len(data) < start + length:
            return None
        self._received = data[start + length :]
        return data[0] & 15, data[start : start + length]


@contextmanager
def raw(port: int, path: str, headers: Sequence[str] = (), **options: Any) -> Iterator[Raw]:
    peer = Raw(port, path, headers, **options)
    try:
        yield peer
    finally:
        peer.socket.close()


def descriptors() -> int:
    """Open files of this process, which the server under test is a part of."""
    return len(os.listdir("/proc/self/fd"))
