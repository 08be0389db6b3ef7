"""The one way from a media reference to bytes, for server, offline use and batches: data:, file: and web addresses."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import stat
from pathlib import Path
from socket import AF_UNSPEC, AddressFamily, gaierror
from urllib.parse import unquote_to_bytes, urljoin

import aiohttp
import pybase64
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from sensorium.config import MediaLimits
from sensorium.errors import MediaError, MediaFetchError, SensoriumError, TooLargeError
from sensorium.media.addresses import WebAddress, domain_allowed, is_local_name, is_public, parse_url
from sensorium.types import MediaRef

MAX_REDIRECTS = 3
_MAX_ADDRESSES = 32
_CHUNK = 1 << 16
_HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "sensorium"}
# A declared type is only a hint, but it may not contradict what was asked for. Recorders call sound alone video too.
_FAMILIES = {"image": {"image"}, "audio": {"audio", "video"}, "video": {"video"}}


async def fetch(ref: MediaRef, limits: MediaLimits, session: aiohttp.ClientSession) -> bytes:
    """The referenced bytes. The session comes from open_session, with the same limits."""
    if not _is_web(ref):
        return await asyncio.to_thread(_fetch_local, ref, limits)
    try:
        return await asyncio.wait_for(_fetch_web(ref, limits, session), limits.fetch_timeout_s)
    except asyncio.TimeoutError:
        raise MediaFetchError("the host took too long to send the media", param=ref.part) from None
    except SensoriumError:
        raise
    except (aiohttp.ClientError, OSError, ValueError):
        raise MediaFetchError("the media could not be fetched from its host", param=ref.part) from None


def fetch_blocking(ref: MediaRef, limits: MediaLimits) -> bytes:
    """As fetch, for a worker thread without an event loop."""
    if not _is_web(ref):
        return _fetch_local(ref, limits)
    loop = asyncio.new_event_loop()  # not asyncio.run: it would wait for a name look-up that hangs
    try:
        return loop.run_until_complete(_fetch_alone(ref, limits))
    finally:
        loop.close()


def open_session(limits: MediaLimits) -> aiohttp.ClientSession:
    """A client without memory: no cookies, no proxies, no reuse of connections or names. Call it inside the loop."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            resolver=_CheckedResolver(limits), use_dns_cache=False, force_close=True, limit=32, limit_per_host=4
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=_HEADERS,
        auto_decompress=False,
        trust_env=False,
        timeout=aiohttp.ClientTimeout(total=limits.fetch_timeout_s, sock_connect=limits.connect_timeout_s),
    )


class _Refused(Exception):
    """An address that policy forbids."""


class _CheckedResolver(AbstractResolver):
    """Looks a name up once and hands out the addresses that were checked; the connection is made to those."""

    def __init__(self, limits: MediaLimits) -> None:
        self._limits = limits

    async def resolve(self, host: str, port: int = 0, family: AddressFamily = AF_UNSPEC) -> list[ResolveResult]:
        look_up = asyncio.get_running_loop().getaddrinfo(host, port, family=family, type=1)
        try:
            found = await asyncio.wait_for(look_up, self._limits.connect_timeout_s)
        except (asyncio.TimeoutError, gaierror):
            raise OSError("the name could not be looked up") from None
        results: list[ResolveResult] = []
        for answer_family, _, protocol, _, address in found[:_MAX_ADDRESSES]:
            text = str(address[0])
            if not (self._limits.allow_private_addresses or is_public(ipaddress.ip_address(text.partition("%")[0]))):
                raise _Refused
            results.append(
                {"hostname": host, "host": text, "port": port, "family": answer_family, "proto": protocol, "flags": 0}
            )
        return results

    async def close(self) -> None:
        """Nothing is kept open."""


async def _fetch_alone(ref: MediaRef, limits: MediaLimits) -> bytes:
    async with open_session(limits) as session:
        return await fetch(ref, limits, session)


def _is_web(ref: MediaRef) -> bool:
    return isinstance(ref.source, str) and ref.source[:5].lower() not in ("data:", "file:")


async def _fetch_web(ref: MediaRef, limits: MediaLimits, session: aiohttp.ClientSession) -> bytes:
    assert isinstance(ref.source, str)
    url, came_by_tls = ref.source, False
    for _ in range(MAX_REDIRECTS + 1):
        target = _allowed(url, limits, came_by_tls)
        if target is None:
            raise MediaFetchError("this media address is not allowed", param=ref.part)
        try:
            async with session.get(yarl.URL(target.url, encoded=True), allow_redirects=False) as response:
                if response.status not in (301, 302, 303, 307, 308):
                    return await _read_body(response, ref, limits)
                url, came_by_tls = urljoin(url, response.headers.get("Location", "")), target.scheme == "https"
        except _Refused:
            raise MediaFetchError("this media address is not allowed", param=ref.part) from None
    raise MediaFetchError(f"the host redirects more than {MAX_REDIRECTS} times", param=ref.part)


def _allowed(url: str, limits: MediaLimits, tls_only: bool) -> WebAddress | None:
    """The target of one hop, when policy lets us ask for it; names are checked again once they are resolved."""
    target = parse_url(url)
    if (
        target is None
        or (tls_only and target.scheme != "https")
        or not domain_allowed(target.host, limits.allowed_domains)
    ):
        return None
    if limits.allow_private_addresses:
        return target
    public = not is_local_name(target.host) if target.address is None else is_public(target.address)
    return target if public and target.port in (80, 443) else None


async def _read_body(response: aiohttp.ClientResponse, ref: MediaRef, limits: MediaLimits) -> bytes:
    if response.status != 200:
        raise MediaFetchError(f"the host answered with status {response.status}", param=ref.part)
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise MediaFetchError("the host compresses its answer, which was not asked for", param=ref.part)
    if response.content_length is not None:
        _check_size(response.content_length, ref, limits)
    body = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK):
        _check_size(len(body) + len(chunk), ref, limits)
        body += chunk
    return bytes(body)


def _fetch_local(ref: MediaRef, limits: MediaLimits) -> bytes:
    if isinstance(ref.source, bytes):
        _check_size(len(ref.source), ref, limits)
        return ref.source
    if not isinstance(ref.source, str):
        raise MediaError(f"this {ref.modality} part holds no address and no bytes", param=ref.part)
    if ref.source[:5].lower() == "data:":
        return _read_data_url(ref.source, ref, limits)
    return _read_file_url(ref.source, ref, limits)


def _read_data_url(url: str, ref: MediaRef, limits: MediaLimits) -> bytes:
    """data:[type][;parameters];base64,<standard alphabet, padded, nothing else>"""
    comma = url.find(",", 0, 256)
    head = url[5 : max(comma, 5)].lower().split(";")
    if comma < 0 or head[-1].strip() != "base64":
        raise MediaError("a data: URL must look like data:<type>;base64,<data>", param=ref.part)
    family = head[0].strip().partition("/")[0]
    if head[0].strip() not in ("", "application/octet-stream") and family not in _FAMILIES[ref.modality]:
        raise MediaError(f"a data: URL of another type than {ref.modality}", param=ref.part)
    _check_size((len(url) - comma - 1) // 4 * 3 - 2, ref, limits)
    try:
        return pybase64.b64decode(url[comma + 1 :], validate=True)
    except ValueError:
        raise MediaError("the base64 text of this data: URL is not valid", param=ref.part) from None


def _read_file_url(url: str, ref: MediaRef, limits: MediaLimits) -> bytes:
    if limits.allowed_local_path is None:
        raise MediaFetchError("files of this machine are not served", param=ref.part)
    try:
        root = limits.allowed_local_path.resolve(strict=True)
        descriptor = _open_below(root, _relative_parts(url, (limits.allowed_local_path.absolute(), root)))
    except (OSError, ValueError):
        raise MediaFetchError("this file is not available", param=ref.part) from None
    with os.fdopen(descriptor, "rb") as file:
        _check_size(os.fstat(descriptor).st_size, ref, limits)
        data = file.read(limits.max_bytes + 1)  # it may grow while we read
    _check_size(len(data), ref, limits)
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


def _check_size(size: int, ref: MediaRef, limits: MediaLimits) -> None:
    if size > limits.max_bytes:
        raise TooLargeError(f"this {ref.modality} has more than {limits.max_bytes} bytes", param=ref.part)
