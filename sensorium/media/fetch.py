"""The one way from a media reference to bytes, for server, offline use and batches."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from socket import AF_UNSPEC, AddressFamily
from typing import Any
from urllib.parse import urljoin

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from sensorium.config import MediaLimits
from sensorium.envs import Environment
from sensorium.errors import (
    MediaBlockedError,
    MediaFetchError,
    MediaHostError,
    MediaTimeoutError,
    SensoriumError,
    TooLargeError,
)
from sensorium.inline import Pieces
from sensorium.media.addresses import Listing, WebAddress, parse_url
from sensorium.media.disk_cache import DiskCache
from sensorium.media.local import check_size, read_local
from sensorium.types import MediaRef

MAX_REDIRECTS = 3
_MAX_ADDRESSES, _MAX_LOOK_UPS = 32, 8
_FAILED_NAME_S = 5.0
_CHUNK = 1 << 16
_GROWTH = 4
"""Each further attempt may take so many times as long, and the wait before it grows likewise."""
_HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "sensorium"}
_BLOCKED = "this media address is not allowed"


@dataclass(slots=True)
class Budget:
    """What one request may still download, repeated attempts included."""

    left: int


@dataclass(slots=True)
class FetchStats:
    fetched: int = 0
    bytes: int = 0
    retries: int = 0
    blocked: int = 0
    failed: int = 0


class _Again(Exception):
    """What may succeed in another attempt: status 5xx, or no answer."""


class Fetcher:
    """Fetches under one set of limits. Make and close it inside the event loop that it is used in."""

    def __init__(
        self, limits: MediaLimits, environment: Environment | None = None, files: Executor | None = None
    ) -> None:
        """files: where files and data: URLs are read; by default the loop's own executor."""
        env = environment or Environment()
        self._limits, self._files = limits, files
        self._listing = Listing(limits.allowed_domains, private=limits.allow_private_addresses)
        self._timeouts = {
            "image": env.image_fetch_timeout,
            "audio": env.audio_fetch_timeout,
            "video": env.video_fetch_timeout,
        }
        self._attempts = max(env.media_fetch_max_retries, 1)
        self._cache = DiskCache.of(env)
        self._redirects = MAX_REDIRECTS if env.media_url_allow_redirects else 0
        self.stats = FetchStats()
        # Without memory: no cookies, no proxies, no reuse of connections or names.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_CheckedResolver(limits, self._listing),
                use_dns_cache=False,
                force_close=True,
                limit=32,
                limit_per_host=4,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(sock_connect=limits.connect_timeout_s),
        )

    async def close(self) -> None:
        await self._session.close()

    async def fetch(self, ref: MediaRef, budget: Budget | None = None) -> bytes | Pieces:
        """The referenced bytes. Raises MediaBlockedError, MediaFetchError and those below it, TooLargeError."""
        if isinstance(ref.source, bytes):
            return read_local(ref, self._limits)
        if not isinstance(ref.source, str) or ref.source[:5].lower() in ("data:", "file:"):
            read = functools.partial(read_local, ref, self._limits)
            return await asyncio.get_running_loop().run_in_executor(self._files, read)
        try:
            data = await self._web(ref, ref.source, budget or Budget(self._limits.max_request_download_bytes))
        except MediaBlockedError:
            self.stats.blocked += 1
            raise
        except MediaFetchError:
            self.stats.failed += 1
            raise
        self.stats.fetched += 1
        self.stats.bytes += len(data)
        return data

    async def _web(self, ref: MediaRef, url: str, budget: Budget) -> bytes:
        """What is kept of an address that policy still lets us ask, or what the network says."""
        cache, loop = self._cache, asyncio.get_running_loop()
        if cache is None:
            return await self._fetch_web(ref, url, budget)
        self._allowed(url, ref, tls_only=False)
        kept = await loop.run_in_executor(self._files, cache.get, url)
        if kept is not None:
            check_size(len(kept), ref, self._limits)
            return kept
        data = await self._fetch_web(ref, url, budget)
        await loop.run_in_executor(self._files, cache.put, url, data)
        return data

    async def _fetch_web(self, ref: MediaRef, url: str, budget: Budget) -> bytes:
        first = self._limits.fetch_timeout_s or self._timeouts[ref.modality]
        deadline = time.monotonic() + _GROWTH * first
        for attempt in range(self._attempts):
            timeout = min(first * _GROWTH**attempt, deadline - time.monotonic())
            try:
                return await asyncio.wait_for(self._follow(ref, url, budget), timeout)
            except SensoriumError:
                raise
            except (asyncio.TimeoutError, _Again, aiohttp.ClientError, OSError, ValueError) as error:
                pause = float(_GROWTH**attempt)
                left = deadline - time.monotonic()
                if attempt + 1 == self._attempts or left <= pause or not _is_passing(error):
                    raise self._failure(ref, url, error, first) from None
                self.stats.retries += 1
                await asyncio.sleep(pause)
        raise AssertionError("at least one attempt is made")

    def _failure(self, ref: MediaRef, url: str, error: Exception, timeout_s: float) -> MediaFetchError:
        target = parse_url(url)
        host = target.host if target else "the host"
        if isinstance(error, asyncio.TimeoutError):
            return MediaTimeoutError(
                f"{host} took more than {timeout_s:g} s to send the {ref.modality}; "
                f"SENSORIUM_{ref.modality.upper()}_FETCH_TIMEOUT sets how long it may take",
                param=ref.part,
            )
        said = f": {error}" if isinstance(error, _Again) else ""
        return MediaHostError(f"the {ref.modality} could not be fetched from {host}{said}", param=ref.part)

    async def _follow(self, ref: MediaRef, url: str, budget: Budget) -> bytes:
        came_by_tls = False
        for _ in range(self._redirects + 1):
            target = self._allowed(url, ref, tls_only=came_by_tls)
            try:
                async with self._session.get(yarl.URL(target.url, encoded=True), allow_redirects=False) as response:
                    if response.status not in (301, 302, 303, 307, 308):
                        return await _read_body(response, ref, self._limits, budget)
                    if not self._redirects:
                        raise MediaFetchError(
                            "the host redirects, and SENSORIUM_MEDIA_URL_ALLOW_REDIRECTS is 0", param=ref.part
                        )
                    url, came_by_tls = urljoin(url, response.headers.get("Location", "")), target.scheme == "https"
            except _Refused:
                raise MediaBlockedError(_BLOCKED, param=ref.part) from None
        raise MediaFetchError(f"the host redirects more than {self._redirects} times", param=ref.part)

    def _allowed(self, url: str, ref: MediaRef, *, tls_only: bool) -> WebAddress:
        """The target of one hop, when policy lets us ask for it; names are checked again once they are resolved."""
        target = parse_url(url)
        if target is None or (tls_only and target.scheme != "https"):
            raise MediaBlockedError(_BLOCKED, param=ref.part)
        if not self._listing.names(target.host, target.address):
            allowed = ", ".join(self._limits.allowed_domains)[:500]
            raise MediaBlockedError(f"The URL must be from one of the allowed domains: {allowed}", param=ref.part)
        if not self._listing.admits(target):
            raise MediaBlockedError(_BLOCKED, param=ref.part)
        return target


class _Refused(Exception):
    """An address that policy forbids."""


class _CheckedResolver(AbstractResolver):
    """Looks a name up once and hands out the addresses that were checked; the connection is made to those."""

    def __init__(self, limits: MediaLimits, listing: Listing) -> None:
        self._limits, self._listing = limits, listing
        self._free = asyncio.Semaphore(_MAX_LOOK_UPS)
        self._failed: dict[str, float] = {}

    async def resolve(self, host: str, port: int = 0, family: AddressFamily = AF_UNSPEC) -> list[ResolveResult]:
        host = host.lower().removesuffix(".")
        if time.monotonic() - self._failed.get(host, -_FAILED_NAME_S) < _FAILED_NAME_S:
            raise OSError("the name could not be looked up")
        try:
            found = await asyncio.wait_for(self._look_up(host, port, family), self._limits.connect_timeout_s)
        except (asyncio.TimeoutError, OSError):
            if len(self._failed) >= 1024:
                self._failed.clear()
            self._failed[host] = time.monotonic()
            raise OSError("the name could not be looked up") from None
        results: list[ResolveResult] = []
        for answer_family, _, protocol, _, address in found[:_MAX_ADDRESSES]:
            text = str(address[0])
            if not self._listing.admits_address(ipaddress.ip_address(text.partition("%")[0]), host):
                raise _Refused
            results.append(
                {"hostname": host, "host": text, "port": port, "family": answer_family, "proto": protocol, "flags": 0}
            )
        return results

    async def close(self) -> None:
        """Nothing is kept open."""

    async def _look_up(self, host: str, port: int, family: AddressFamily) -> list[Any]:
        """In a thread of its own, which nobody waits for: a look-up that hangs must not hold up anything else."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Any]] = loop.create_future()

        def settle(set_it: Callable[[], None]) -> None:
            self._free.release()
            if not answer.done():
                set_it()

        def ask() -> None:
            try:
                found = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
                done = functools.partial(answer.set_result, found)
            except Exception as error:
                done = functools.partial(answer.set_exception, OSError(str(error)))
            try:
                loop.call_soon_threadsafe(settle, done)
            except RuntimeError:
                return  # the loop has closed meanwhile

        await self._free.acquire()
        threading.Thread(target=ask, name="sensorium-name", daemon=True).start()
        return await answer


def _is_passing(error: Exception) -> bool:
    """Whether another attempt may go better: silence, refused and broken connections, 5xx."""
    passing = (asyncio.TimeoutError, _Again, aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)
    return isinstance(error, passing) and not isinstance(error, aiohttp.ClientSSLError)


async def _read_body(response: aiohttp.ClientResponse, ref: MediaRef, limits: MediaLimits, budget: Budget) -> bytes:
    if response.status >= 500:
        raise _Again(f"it answered with status {response.status}")
    if response.status != 200:
        raise MediaFetchError(f"the host answered with status {response.status}", param=ref.part)
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise MediaFetchError("the host compresses its answer, which was not asked for", param=ref.part)
    if response.content_length is not None:
        check_size(response.content_length, ref, limits)
    body = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK):
        check_size(len(body) + len(chunk), ref, limits)
        budget.left -= len(chunk)
        if budget.left < 0:
            most = limits.max_request_download_bytes
            raise TooLargeError(
                f"the media of this request have more than {most} bytes (max_request_download_bytes)", param=ref.part
            )
        body += chunk
    return bytes(body)
