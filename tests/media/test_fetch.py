"""Fetching media: what is refused without a packet, how hosts may misbehave, files and data URLs. H numbers: the
project's catalogue of hostile inputs."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import os
import socket
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from sensorium.config import MediaLimits
from sensorium.envs import Environment
from sensorium.errors import ConfigError, MediaError, MediaFetchError, RequestError, TooLargeError
from sensorium.media.addresses import Listing, is_public, parse_url
from sensorium.media.disk_cache import DiskCache
from sensorium.media.fetch import Budget, Fetcher
from sensorium.media.local import read_local
from sensorium.types import MediaRef

LIMITS = MediaLimits(max_bytes=100_000, fetch_timeout_s=30.0, connect_timeout_s=10.0)
OPEN = replace(LIMITS, allow_private_addresses=True)
ONCE = Environment(media_fetch_max_retries=1)
Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def host(answer: Answer) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A web server on loopback that says what the test wants. Yields its address and the requests it saw."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            seen.append(head)
            await answer(head, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", seen


def plain(body: bytes, status: str = "200 OK", *headers: str, length: int | None = None) -> Answer:
    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers, "", ""]
        writer.write("\r\n".join(lines).encode() + body)
        await writer.drain()

    return answer


async def get(url: str | bytes, limits: MediaLimits = LIMITS, modality: str = "image") -> bytes:
    async with fetcher(limits) as one:
        return await one.fetch(MediaRef(modality, url, part="messages[0].content[1]"))  # type: ignore[arg-type]


@asynccontextmanager
async def fetcher(limits: MediaLimits, environment: Environment | None = None) -> AsyncIterator[Fetcher]:
    made = Fetcher(limits, environment or ONCE)
    try:
        yield made
    finally:
        await made.close()


REFUSED_URLS = {
    "H-002": ["http://localhost/", "http://localhost.localdomain/", "http://metadata.google.internal/"],
    "H-003": ["http://169.254.169.254/latest/meta-data/"],
    "H-004": [
        "http://169.254.170.2/",
        "http://100.100.100.200/",
        "http://168.63.129.16/",
        "http://192.0.0.192/",
        "http://[fd00:ec2::254]/",
    ],
    "H-005": [
        "http://10.0.0.1/",
        "http://172.16.0.1/",
        "http://192.168.0.1/",
        "http://100.64.0.1/",
        "http://198.18.0.1/",
    ],
    "H-006": ["http://0.0.0.0/", "http://0/", "http://[::]/"],
    "H-007": ["http://2130706433/"],
    "H-008": ["http://0177.0.0.1/", "http://017700000001/"],
    "H-009": ["http://0x7f.1/", "http://0x7f000001/", "http://127.0.0.0x1/"],
    "H-010": ["http://127.1/", "http://127.0.1/"],
    "H-011": ["http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/"],
    "H-012": ["http://[::127.0.0.1]/"],
    "H-013": ["http://[64:ff9b::a9fe:a9fe]/", "http://[64:ff9b:1::a9fe:a9fe]/"],
    "H-014": ["http://[2002:a9fe:a9fe::1]/", "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/"],
    "H-015": [
        "http://[fe80::1%25lo]/",
        "http://[fe80::1]/",
        "http://[fec0::1]/",
        "http://[ff02::1]/",
        "http://224.0.0.1/",
        "http://255.255.255.255/",
    ],
    "H-016": ["http://allowed.test@127.0.0.1/", "http://allowed.test:80@127.0.0.1:8000/"],
    "H-017": ["http://127.0.0.1\\@allowed.test/", "http://allowed.test\\@127.0.0.1/"],
    "H-018": ["http:\\\\127.0.0.1\\", "http:/127.0.0.1/", "http:///127.0.0.1/", "http:127.0.0.1"],
    "H-019": ["http://127.0.0.1#@allowed.test/", "http://127.0.0.1?@allowed.test/"],
    "H-020": ["http://１２７.0.0.1/", "http://①②⑦.0.0.1/", "http://127。0。0。1/"],
    "H-021": ["http://allowed.test。evil.test/", "http://allowed.te\u017ft/", "http://allowed\u00ad.test/"],
    "H-022": [
        "http://a.test%00.b.test/",
        "http://127.0.0.1%2f@a.test",
        "http://127%2e0%2e0%2e1/",
        "http://%31%32%37.0.0.1/",
    ],
    "H-023": ["http://127.0\t.0.1/", "ht\ntp://a.test/", "http://a.test\r/", " http://a.test/", "http://a .test/"],
    "H-024": ["http://a.test/a\r\nX-Injected:1"],
    "H-026": [f"http://a.test:{port}/" for port in ("22", "6379", "25", "0", "65536", "99999", "-1")],
    "H-027": [
        "ftp://a.test/",
        "gopher://a.test/",
        "dict://a.test/",
        "ldap://a.test/",
        "jar:http://a.test!/",
        "unix:/x",
        "javascript:0",
        "httpx://a.test/",
        "a.test/x.png",
        "",
        "//a.test/",
    ],
    "H-040": ["http://a.test/" + "a" * 1_000_000, "http://a.test/?" + "&".join(f"k{i}=1" for i in range(10_000))],
}


@pytest.mark.parametrize(
    "url", [pytest.param(url, id=f"{case}-{n}") for case in REFUSED_URLS for n, url in enumerate(REFUSED_URLS[case])]
)
async def test_forbidden_addresses_are_refused(url: str):
    with pytest.raises(MediaFetchError) as caught:
        await get(url)
    assert caught.value.message == "this media address is not allowed"
    assert (caught.value.code, caught.value.status) == ("media_url_blocked", 400)
    assert caught.value.param == "messages[0].content[1]"


async def test_h001_no_connection_is_made_to_a_forbidden_host():
    async with host(plain(b"x")) as (url, seen):
        with pytest.raises(MediaFetchError):
            await get(url)
    assert not seen


def test_h038_addresses_of_this_machine_are_not_public():
    assert is_public(ipaddress.ip_address("8.8.8.8"))
    assert is_public(ipaddress.ip_address("2606:4700::1111"))
    assert is_public(ipaddress.ip_address("::ffff:8.8.8.8"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("8.8.8.8", 9))
        except OSError:
            pytest.skip("no route to anywhere")
        assert not is_public(ipaddress.ip_address(probe.getsockname()[0]))


@pytest.mark.parametrize(
    ("host_name", "allowed"),
    [("allowed.test", True), ("ALLOWED.TEST", True), ("allowed.test.", True), ("x.suffix.test", True),
     ("allowed.test.evil.test", False), ("evilallowed.test", False), ("suffix.test", False), ("xsuffix.test", False)],
)  # fmt: skip
def test_h025_allow_list_compares_whole_names(host_name: str, allowed: bool):
    target = parse_url(f"HTTP://{host_name}/")
    assert target is not None
    assert Listing(("allowed.test", ".suffix.test")).names(target.host, None) is allowed


@pytest.mark.parametrize("answers", [["8.8.8.8", "127.0.0.1"], ["2606:4700::1111", "::1"], ["8.8.8.8", "fe80::1%eth0"]])
async def test_h028_h030_one_bad_answer_refuses_the_name(answers: list[str], monkeypatch: pytest.MonkeyPatch):
    asked = answer_names(monkeypatch, [answers])
    with pytest.raises(MediaFetchError, match="not allowed"):
        await get("http://a.test/x.png")
    assert asked == ["a.test"]


async def test_h029_connects_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch):
    """A name that changes its mind gets no second look-up: the first answer, not loopback, is what we try to reach."""
    asked = answer_names(monkeypatch, [["192.0.2.1"], ["127.0.0.1"]])
    reached: list[str] = []

    async def refuse(_: object, __: socket.socket, address: tuple[str, int]) -> None:
        reached.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr("sensorium.media.addresses.is_public", lambda address: str(address) != "127.0.0.1")
    monkeypatch.setattr(type(asyncio.get_running_loop()), "sock_connect", refuse)
    with pytest.raises(MediaFetchError, match="could not be fetched"):
        await get("http://a.test/x.png")
    assert asked == ["a.test"]
    assert set(reached) == {"192.0.2.1"}


async def test_h031_a_look_up_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch):
    go_on = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: go_on.wait(20))
    limits = replace(LIMITS, connect_timeout_s=0.05)
    begun = time.monotonic()
    async with fetcher(limits) as one:
        for _ in range(12):  # more than may hang at once: the failure is remembered for a while
            with pytest.raises(MediaFetchError):
                await one.fetch(MediaRef("image", "http://a.test/"))
        names = [thread for thread in threading.enumerate() if thread.name == "sensorium-name"]
    go_on.set()
    assert len(names) <= 8
    assert time.monotonic() - begun < 15


def answer_names(monkeypatch: pytest.MonkeyPatch, answers: list[list[str]]) -> list[str]:
    """Name look-ups return the given answers in turn. Returns the names asked for."""
    asked: list[str] = []

    def look_up(name: str, port: int, **_: object) -> list[tuple]:
        asked.append(name)
        found = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


async def test_fetches_and_sends_nothing_personal(monkeypatch: pytest.MonkeyPatch):
    """H-036, H-044, H-060: no proxy, no keys, no cookies; H-053: the declared type does not matter."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    answer = plain(b"bytes", "200 OK", "Set-Cookie: a=b", "Content-Type: text/html")
    async with host(answer) as (url, seen), fetcher(OPEN) as one:
        for _ in range(2):
            assert await one.fetch(MediaRef("image", url + "/a%0d%0aX:%201?q")) == b"bytes"
    for head in seen:
        names = {line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:] if line}
        assert names == {b"host", b"accept", b"accept-encoding", b"user-agent", b"connection"}
        assert head.startswith(b"GET /a%0d%0aX:%201?q ")


@pytest.mark.parametrize("status", ["404 X", "403 X", "500 X", "503 X", "204 X", "206 X", "304 X"])
async def test_h051_only_200_will_do(status: str):
    async with host(plain(b"", status)) as (url, seen):
        with pytest.raises(MediaFetchError):
            await get(url, OPEN)
    assert len(seen) == 1


async def drip(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def silence(_: bytes, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def endless(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"4000\r\n" + bytes(0x4000) + b"\r\n")
        await writer.drain()


BAD_HOSTS: dict[str, tuple[Answer, type[RequestError]]] = {
    "H-045 one byte at a time": (drip, MediaFetchError),
    "H-046 never answers": (silence, MediaFetchError),
    "H-047 never ends": (endless, TooLargeError),
    "H-048 announces 10 GB": (plain(b"x", length=10**10), TooLargeError),
    "H-049 closes early": (plain(b"0123456789", length=5000), MediaFetchError),
    "H-050 compressed": (plain(b"\x1f\x8b", "200 OK", "Content-Encoding: gzip"), MediaFetchError),
    "H-050 compressed twice": (plain(b"x", "200 OK", "Content-Encoding: br, gzip"), MediaFetchError),
    "H-054 a header without end": (plain(b"x", "200 OK", "X: " + "y" * 100_000), MediaFetchError),
    "H-056 not HTTP": (plain(b"", "x\r\n\r\n"), MediaFetchError),
    "H-032 redirect without a target": (plain(b"", "302 Found"), MediaFetchError),
    "H-085 redirect to data": (plain(b"", "302 Found", "Location: data:image/png;base64,AAAA"), MediaFetchError),
    "H-033 redirect to a file": (plain(b"", "302 Found", "Location: file:///etc/passwd"), MediaFetchError),
    "H-034 redirect with backslashes": (plain(b"", "302 Found", "Location: \\\\127.0.0.1"), MediaFetchError),
    "H-034 redirect to itself": (plain(b"", "302 Found", "Location: /"), MediaFetchError),
}


@pytest.mark.parametrize("case", BAD_HOSTS)
async def test_hosts_that_misbehave(case: str):
    answer, error = BAD_HOSTS[case]
    timeout_s = 0.3 if answer in (drip, silence) else 60.0
    begun = time.monotonic()
    async with host(answer) as (url, _):
        with pytest.raises(error) as caught:
            await get(url, replace(OPEN, fetch_timeout_s=timeout_s))
    assert isinstance(caught.value, error)
    assert time.monotonic() - begun < 20


async def test_h049_bytes_beyond_the_declared_length_are_never_used():
    async with host(plain(b"0123456789abcdef", length=10)) as (url, _):
        with suppress(MediaFetchError):  # what follows is no HTTP, which aiohttp may notice first
            assert await get(url, OPEN) == b"0123456789"


async def test_redirects_are_followed_three_times_and_checked_each_time():
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        step = int(head.split(b" ")[1].strip(b"/"))
        await (plain(b"end") if step == 0 else plain(b"", "307 X", f"Location: /{step - 1}"))(head, writer)

    async with host(answer) as (url, seen):
        assert await get(f"{url}/3", OPEN) == b"end"
        seen.clear()
        with pytest.raises(MediaFetchError, match="redirects more than 3 times"):
            await get(f"{url}/9", OPEN)
        assert len(seen) == 4


async def test_h033_a_redirect_may_not_leave_the_allow_list():
    limits = replace(OPEN, allowed_domains=("127.0.0.1",))
    async with host(plain(b"secret")) as (inner, seen):
        away = plain(b"", "302 Found", f"Location: {inner.replace('127.0.0.1', 'localhost')}/")
        async with host(away) as (url, _):
            with pytest.raises(MediaFetchError, match="allowed domains: 127"):
                await get(url, limits)
    assert not seen


def test_bytes_are_bounded_too():
    assert read_local(MediaRef("image", b"abc"), LIMITS) == b"abc"
    with pytest.raises(TooLargeError):
        read_local(MediaRef("image", bytes(100_001)), LIMITS)


@pytest.mark.parametrize(
    ("entries", "url", "allowed"),
    [
        ((), "http://a.test/", True),
        ((), "http://10.0.0.7/", False),
        (("a.test",), "http://b.test/", False),
        (("a.test:8080",), "http://a.test:8080/", True),
        (("a.test:8080",), "http://a.test:8081/", False),
        (("store.internal",), "http://store.internal/", True),
        ((".internal",), "http://store.internal/", False),
        (("10.0.0.0/8",), "http://10.0.0.7/", True),
        (("10.0.0.0/8:9000",), "http://10.0.0.7:9000/", True),
        (("10.0.0.0/8",), "http://8.8.8.8/", False),
        (("*", "10.0.0.7"), "http://10.0.0.7/", True),
        (("*", "10.0.0.7"), "http://10.0.0.8/", False),
        (("*", "10.0.0.7"), "http://a.test/", True),
        (("169.254.0.0/16",), "http://169.254.169.254/", False),
        (("[fd00::1]:81",), "http://[fd00::1]:81/", True),
    ],
)
def test_what_the_operator_lists(entries: tuple[str, ...], url: str, allowed: bool):
    listing, target = Listing(entries), parse_url(url)
    assert target is not None
    assert (listing.names(target.host, target.address) and listing.admits(target)) is allowed


@pytest.mark.parametrize(
    ("entries", "address", "allowed"),
    [
        ((), "10.0.0.7", False),
        (("a.test",), "10.0.0.7", True),
        ((".test",), "10.0.0.7", False),
        (("10.0.0.0/8",), "10.0.0.7", True),
        (("a.test",), "169.254.169.254", False),
        (("a.test",), "::ffff:169.254.169.254", False),
    ],
)
def test_where_listed_names_may_lead(entries: tuple[str, ...], address: str, allowed: bool):
    assert Listing(entries).admits_address(ipaddress.ip_address(address), "a.test") is allowed


async def test_another_attempt_after_a_failure_gets_more_time():
    """S003-20 in small: the first answer comes too late for the first attempt, not for the second."""
    calls = 0

    async def slow(head: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(30 if calls == 1 else 0)
        await plain(b"late")(head, writer)

    patient = Environment(media_fetch_max_retries=3, image_fetch_timeout=1.0)
    async with host(slow) as (url, _), fetcher(replace(OPEN, fetch_timeout_s=None), patient) as one:
        assert await one.fetch(MediaRef("image", url)) == b"late"
        assert one.stats.retries == 1


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        (silence, 504, r"127\.0\.0\.1 took more than 0\.2 s .* SENSORIUM_IMAGE_FETCH_TIMEOUT"),
        (plain(b"", "503 Busy"), 502, r"from 127\.0\.0\.1: it answered with status 503"),
        (plain(b"", "404 No"), 422, "status 404"),
    ],
)
async def test_whose_fault_it_is(answer: Answer, status: int, says: str):
    async with host(answer) as (url, _):
        with pytest.raises(MediaFetchError, match=says) as caught:
            await get(url, replace(OPEN, fetch_timeout_s=0.2))
    assert caught.value.status == status
    assert caught.value.code == "media_fetch_failed"


async def test_an_attempt_is_not_repeated_after_a_refusal():
    often = Environment(media_fetch_max_retries=3)
    async with host(plain(b"", "403 No")) as (url, seen), fetcher(OPEN, often) as one:
        with pytest.raises(MediaFetchError):
            await one.fetch(MediaRef("image", url))
    assert len(seen) == 1


async def test_downloads_are_kept_in_a_folder_where_one_is_named(tmp_path: Path):
    folder = tmp_path / "kept"
    env = replace(ONCE, media_cache=str(folder), media_cache_max_size_mb=1, media_cache_ttl_hours=1.0)

    async def ask(url: str, limits: MediaLimits = OPEN) -> bytes:
        async with fetcher(limits, env) as one:  # as after another start
            return bytes(await one.fetch(MediaRef("image", url, part="messages[0]")))

    async with host(plain(b"a" * 90_000)) as (url, seen):
        first = f"{url}/picture.png?size=1"
        assert await ask(first) == await ask(first) == b"a" * 90_000
        assert len(seen) == 1
        [file] = folder.iterdir()
        assert (file.suffix, len(file.stem), file.stat().st_mode & 0o777) == (".png", 20, 0o600)
        with pytest.raises(MediaFetchError):  # what is kept is for addresses that may be asked
            await ask(first, LIMITS)
        with pytest.raises(TooLargeError):
            await ask(first, replace(OPEN, max_bytes=50_000))
        os.utime(file, (time.time(), time.time() - 3601))
        assert await ask(first) == b"a" * 90_000
        assert len(seen) == 2
        for number in range(12):  # the longest unused makes way
            await ask(f"{url}/{number}")
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 1 << 20
        assert len(seen) == 14
        await ask(f"{url}/11")
        assert len(seen) == 14


def test_a_folder_for_downloads_must_be_writable(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="SENSORIUM_MEDIA_CACHE"):
        DiskCache.of(Environment(media_cache=str(tmp_path / "file")))


async def test_redirects_can_be_turned_off():
    """S003-02."""
    stay = replace(ONCE, media_url_allow_redirects=False)
    async with host(plain(b"target")) as (inner, seen), fetcher(OPEN, stay) as one:  # noqa: SIM117 - one needs the other
        async with host(plain(b"", "302 X", f"Location: {inner}/")) as (url, _):
            with pytest.raises(MediaFetchError, match="MEDIA_URL_ALLOW_REDIRECTS"):
                await one.fetch(MediaRef("image", url))
    assert not seen


async def test_a_request_has_one_budget():
    async with host(plain(bytes(60_000))) as (url, _), fetcher(OPEN) as one:
        budget = Budget(100_000)
        await one.fetch(MediaRef("image", url), budget)
        with pytest.raises(TooLargeError, match="max_request_download_bytes"):
            await one.fetch(MediaRef("image", url), budget)


# ---- data: URLs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["data:image/png;base64,aGVsbG8=", "DATA:;base64,aGVsbG8=", "data:image/jpeg;charset=x;BASE64,aGVsbG8=",
     "data:application/octet-stream;base64,aGVsbG8="],
)  # fmt: skip
def test_data_urls(url: str):
    assert read_local(MediaRef("image", url), LIMITS) == b"hello"


BAD_DATA = {
    "H-075": ["data:image/png;base64", "data:,", "data:", "data:image/png,abc"],
    "H-076": ["data:;base64,aGVsbG8", "data:;base64,aGVs bG8=", "data:;base64,aGVs\nbG8=", "data:;base64,_-__",
              "data:;base64,aGVsbG8%3D", "data:;base64,aGVsbG8=aGVs", "data:;base64,aGVsbG8=="],
    "H-080": ["data:text/html;base64,aGVsbG8=", "data:application/x-python-pickle;base64,aGVsbG8=",
              "data:video/mp4;base64,aGVsbG8="],
    "H-081": ["data:image/svg+xml;utf8,%3Csvg%3E", "data:image/png;charset=utf-8,abc"],
    "H-083": ["data:;base64,\u0430GVsbG8="],
}  # fmt: skip


@pytest.mark.parametrize(
    "url", [pytest.param(url, id=f"{case}-{n}") for case in BAD_DATA for n, url in enumerate(BAD_DATA[case])]
)
def test_bad_data_urls(url: str):
    with pytest.raises(MediaError) as caught:
        read_local(MediaRef("image", url, part="p"), LIMITS)
    assert caught.value.param == "p"
    assert len(caught.value.message) < 200


def test_h077_the_size_of_a_data_url_is_checked_before_decoding():
    url = "data:image/png;base64," + "A" * 40_000_000
    tracemalloc.start()
    with pytest.raises(TooLargeError):
        read_local(MediaRef("image", url), LIMITS)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    exact = base64.b64encode(bytes(100_000)).decode()
    assert len(read_local(MediaRef("image", "data:;base64," + exact), LIMITS)) == 100_000


# ---- files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Path:
    folder = tmp_path / "served"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "ok file.png").write_bytes(b"picture")
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "out").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    return folder


def test_files_below_the_allowed_folder(served: Path):
    limits = replace(LIMITS, allowed_local_path=served)
    for url in (
        f"file://{served}/inner/ok%20file.png",
        f"file:{served}/inner/ok file.png",
        f"file://localhost{served}/inner/ok%20file.png",
    ):
        assert read_local(MediaRef("image", url), limits) == b"picture"
    with pytest.raises(MediaFetchError):  # H-061: off unless a folder is named
        read_local(MediaRef("image", f"file://{served}/inner/ok%20file.png"), LIMITS)
    with pytest.raises(TooLargeError):
        read_local(MediaRef("image", f"file://{served}/inner/ok%20file.png"), replace(limits, max_bytes=3))


def test_an_allowed_folder_may_itself_be_a_link(served: Path, tmp_path: Path):
    (tmp_path / "alias").symlink_to(served)
    limits = replace(LIMITS, allowed_local_path=tmp_path / "alias")
    for root in (tmp_path / "alias", served):
        assert read_local(MediaRef("image", f"file://{root}/inner/ok%20file.png"), limits) == b"picture"


BAD_FILES = {
    "H-061": ["file:///etc/passwd"],
    "H-062": ["file://{D}/../secret", "file://{D}/%2e%2e/secret", "file://{D}/..%2fsecret", "file://{D}/....//secret",
              "file://{D}/inner/../../secret"],
    "H-063": ["file://{D}/link", "file://{D}/out/secret"],
    "H-065": ["file://{D}/pipe", "file://{D}/inner", "file://{D}", "file://{D}/", "file://{D}/missing"],
    "H-067": ["file://host{D}/inner/ok file.png", "file:///{D}/inner/ok file.png", "file:////host/x", "file://C:\\x",
              "file:{D}\\inner"],
    "H-068": ["file://{D}/a%00b", "file://{D}/" + "a" * 5000, "file://{D}/%ff%fe", "file://{D}/a\nb", "file:",
              "file://"],
}  # fmt: skip


@pytest.mark.parametrize(
    "url", [pytest.param(url, id=f"{case}-{n}") for case in BAD_FILES for n, url in enumerate(BAD_FILES[case])]
)
def test_bad_file_urls(url: str, served: Path):
    limits = replace(LIMITS, allowed_local_path=served)
    with pytest.raises(MediaFetchError) as caught:
        read_local(MediaRef("image", url.replace("{D}", str(served)), part="p"), limits)
    assert caught.value.message.startswith("this file is not available: ")
    assert str(served) not in caught.value.message


def test_h066_a_sparse_terabyte_is_refused_by_its_size(served: Path):
    with open(served / "huge", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(TooLargeError):
        read_local(MediaRef("video", f"file://{served}/huge"), replace(LIMITS, allowed_local_path=served))
