"""Who may come in: the Host, the Origin and the key of a request, decided before any route sees it."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable, Collection

from starlette.types import Scope

from sensorium.config import ServerConfig
from sensorium.errors import AuthenticationError
from sensorium.server.errors import HttpError

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
KEY_SUBPROTOCOLS = ("openai-insecure-api-key.", "auth.")
"""What a browser puts before its key in the list of subprotocols: OpenAI's clients, and those of /v1/duplex."""
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


def is_loopback(host: str) -> bool:
    """True if only this machine can reach a server bound to `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Refuses by default: a path is open without a key only if it is in `open_paths`.

    A server on a loopback address answers only to loopback names, so that a web page cannot reach it through a name of
    its own that resolves here (DNS rebinding), and to POSTs only from its own pages and `allowed_origins`.
    """

    def __init__(
        self,
        config: ServerConfig,
        open_paths: Collection[str],
        session_key: Callable[[Collection[bytes]], str | None] = lambda presented: None,
    ) -> None:
        """session_key: the digest of the key behind a secret, which opens WebSockets of /v1/realtime alone."""
        self._session_key = session_key
        self._open_paths = frozenset(open_paths)
        self._root = config.root_path.rstrip("/")
        self._digests = [hashlib.sha256(key.encode()).digest() for key in config.api_keys]
        self._origins = config.allowed_origins
        self._hosts: set[str] | None = {host.lower() for host in config.allowed_hosts} or None
        if is_loopback(config.host):
            self._hosts = {"localhost", "127.0.0.1", "[::1]", config.host.lower()} | (self._hosts or set())

    def check(self, scope: Scope) -> None:
        """Raises HttpError or AuthenticationError. Sets scope["state"]["key"] where keys are asked for."""
        host = self._check_host(_values(scope, b"host"))
        # Browsers let any page open a WebSocket, and say only in Origin whose page it is.
        if scope["type"] == "websocket" or scope["method"] not in _SAFE_METHODS:
            self._check_origin(_values(scope, b"origin"), host)
        if self._digests and scope["path"].removeprefix(self._root) not in self._open_paths:
            values = presented(scope)
            opens = scope["type"] == "websocket" and scope["path"].removeprefix(self._root) == "/v1/realtime"
            known = self._session_key(values) if opens else None
            scope["state"]["key"] = self._check_key(values) if known is None else known

    def _check_host(self, values: list[bytes]) -> str:
        host = values[0].decode("latin-1").lower() if len(values) == 1 else ""
        match = _HOST.fullmatch(host)
        if match is None:
            raise HttpError(400, "invalid_host", "the request needs one valid Host header")
        if self._hosts is not None and match[1] not in self._hosts:
            raise HttpError(421, "wrong_host", "this server does not answer to that host name")
        return host

    def _check_origin(self, values: list[bytes], host: str) -> None:
        if not values or "*" in self._origins:
            return
        origin = values[0].decode("latin-1")
        if len(values) > 1 or origin not in {f"http://{host}", f"https://{host}", *self._origins}:
            raise HttpError(403, "origin_refused", "pages of that origin may not use this server")

    def _check_key(self, values: list[bytes]) -> str:
        """The digest of the key presented. Every configured key is compared, in constant time."""
        scheme, _, key = (values[0] if len(values) == 1 else b"").partition(b" ")
        digest = hashlib.sha256(key).digest()
        known = [hmac.compare_digest(digest, other) for other in self._digests]
        if scheme.lower() != b"bearer" or not any(known):
            raise AuthenticationError("a valid API key is needed: send it as `Authorization: Bearer KEY`")
        return digest.hex()


def is_anthropic(path: str) -> bool:
    """Whether a path speaks the Anthropic API, with its form of errors and its header for keys."""
    return path.startswith("/v1/messages")


def presented(scope: Scope) -> list[bytes]:
    """The Authorization header; where the Anthropic API is spoken, its own header may stand for it, and for a WebSocket
    of a browser, which sends no such headers, a subprotocol."""
    values = _values(scope, b"authorization")
    if not values and scope["type"] == "websocket":
        offered = [
            name.removeprefix(p) for name in scope["subprotocols"] for p in KEY_SUBPROTOCOLS if name.startswith(p)
        ]
        return [f"Bearer {key}".encode("latin-1", "replace") for key in offered]
    if not values and is_anthropic(scope["path"]):
        return [b"Bearer " + key for key in _values(scope, b"x-api-key")]
    return values


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for header, value in scope["headers"] if header == name]
