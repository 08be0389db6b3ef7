"""H-299 to H-305 and H-316 to H-318 of the catalogue of hostile inputs: sockets, frames and messages, at every door."""

from __future__ import annotations

import json
import logging
import socket
import struct
from collections.abc import Iterator

import pytest
from live_sessions.crowd import Crowd, flood
from live_sessions.doors import DEMO, DOORS, DUPLEX, HALF, LIVE, REALTIME, SPOKEN, Door
from live_sessions.raw import BINARY, CLOSE, CONT, GONE, PING, PONG, TEXT, Raw, Refused, announced, frame, raw
from live_sessions.tools import LiveServer, noise, serve_live
from server.live import eventually

from sensorium.engine.client import EngineClient
from sensorium.server import socket_protocol

every_socket = pytest.mark.parametrize("door", [*DOORS, HALF], ids=[door.name for door in (*DOORS, HALF)])
every_door = pytest.mark.parametrize("door", DOORS, ids=[door.name for door in DOORS])
MILLION = [DUPLEX, *(pytest.param(door, marks=pytest.mark.slow) for door in DOORS if door is not DUPLEX)]
KEYS = ("key-of-a", "key-of-b")


@pytest.fixture(scope="module")
def locked(engine: EngineClient) -> Iterator[LiveServer]:
    with serve_live(engine, served_model_name="tiny", api_keys=KEYS) as server:
        yield server


# ---- H-299: who may come in -----------------------------------------------------------------------------------------

UNWANTED: dict[str, tuple[list[str], str, int]] = {
    "no key": ([], "localhost", 401),
    "wrong key": (["Authorization: Bearer nobody"], "localhost", 401),
    "two keys": ([f"Authorization: Bearer {key}" for key in KEYS], "localhost", 401),
    "wrong key in a subprotocol": (["Sec-WebSocket-Protocol: realtime, auth.nobody"], "localhost", 401),
    "key in the wrong subprotocol": ([f"Sec-WebSocket-Protocol: {KEYS[0]}"], "localhost", 401),
    "foreign origin": ([f"Authorization: Bearer {KEYS[0]}", "Origin: https://evil.test"], "localhost", 403),
    "null origin": ([f"Authorization: Bearer {KEYS[0]}", "Origin: null"], "localhost", 403),
    "wrong host": ([f"Authorization: Bearer {KEYS[0]}"], "evil.test", 421),
}


@every_socket
@pytest.mark.parametrize(("headers", "host", "status"), UNWANTED.values(), ids=UNWANTED)
def test_h299_strangers_are_refused_before_the_socket_opens(
    locked: LiveServer, door: Door, headers: list[str], host: str, status: int
):
    with pytest.raises(Refused) as refused:
        Raw(locked.port, door.path, headers, host)
    assert refused.value.status == status
    with raw(locked.port, door.path, [f"Sec-WebSocket-Protocol: realtime, auth.{KEYS[1]}"]) as peer:
        assert "sec-websocket-accept" in peer.headers


# ---- H-300: sockets without a word ----------------------------------------------------------------------------------


def connect_silently(server: LiveServer, path: str, count: int, headers: list[str] | None = None) -> list[Raw]:
    return [Raw(server.port, path, headers or []) for _ in range(count)]


@every_door
@pytest.mark.parametrize("count", [3, pytest.param(1000, marks=pytest.mark.slow)])
def test_h300_who_says_nothing_is_closed_after_ten_seconds(alone: LiveServer, door: Door, count: int):
    many = alone.service.seats.most
    assert many is None, "without keys there is nobody to leave places for"
    waiting = connect_silently(alone, door.path, min(count, 60) if door is REALTIME else count)
    with raw(alone.port, door.path) as speaks:
        door.open(speaks)
        alone.clock.advance(9.9)
        door.check(speaks)
        alone.clock.advance(0.2)
        for peer in waiting:
            code, reason = peer.closed()
            assert code == 1008
            assert reason.startswith("no ")
            peer.socket.close()
        door.check(speaks)


def test_h300_a_key_may_have_sixteen_silent_sockets(locked: LiveServer):
    assert locked.service.seats.most == 16
    mine, other = ([f"Authorization: Bearer {key}"] for key in KEYS)
    waiting = connect_silently(locked, DUPLEX.path, 16, mine)
    [late] = connect_silently(locked, LIVE.path, 1, mine)
    assert late.closed() == (1013, "session_limit_reached; try again in 5 s")
    with raw(locked.port, DUPLEX.path, other) as peer:
        DUPLEX.open(peer)
        DUPLEX.check(peer)
        peer.say({"type": "stop"})
        peer.until("bye")
    for peer in [*waiting, late]:
        peer.vanish()
    assert eventually(lambda: not locked.service.seats._silent)


# ---- H-301: sizes ---------------------------------------------------------------------------------------------------


@every_door
def test_h301_a_message_has_its_size_also_in_pieces(beside: Crowd, door: Door):
    most = door.max_message
    if door is REALTIME:
        over = [[announced(most + 1)], [announced(17 << 20)]]
    else:
        piece = b"x" * (most // 4)
        pieces = [frame(CONT, piece, fin=False) for _ in range(3)]
        over = [
            [frame(TEXT, b"x" * (most + 1))],
            [frame(TEXT, piece, fin=False), *pieces, frame(CONT, b"x")],
            [announced(17 << 20)],
        ]
    for frames in over:
        with beside.raw(door.path) as peer:
            door.open(peer)
            for data in frames:
                flood(peer, data)
            assert peer.closed()[0] in (1009, GONE)


def test_h301_a_fragment_without_end(beside: Crowd):
    with beside.raw(REALTIME.path) as peer:
        REALTIME.open(peer)
        piece = frame(CONT, b" " * (1 << 20), fin=False)
        flood(peer, frame(TEXT, b"{", fin=False) + piece * 16)
        assert peer.closed()[0] in (1009, GONE)


@pytest.mark.parametrize("door", MILLION, ids=lambda door: door.name)
@pytest.mark.parametrize("payload", [b"", b"x"])
def test_h301_a_message_in_a_million_pieces(beside: Crowd, door: Door, payload: bytes):
    with beside.raw(door.path) as peer:
        door.open(peer)
        most = socket_protocol.MAX_FRAGMENTS
        flood(peer, frame(TEXT, b"{", fin=False) + frame(CONT, payload, fin=False) * most)
        assert peer.closed() == (1009, f"a message has more than {most} frames")


@every_door
def test_h301_a_message_in_some_pieces_is_whole(beside: Crowd, door: Door):
    text = json.dumps(door.alive).encode()
    with beside.raw(door.path) as peer:
        door.open(peer)
        middle = b"".join(frame(CONT, text[n : n + 1], fin=False) for n in range(1, len(text)))
        peer.send(frame(TEXT, text[:1], fin=False) + middle + frame(PING, b"between") + frame(CONT))
        assert peer.until(door.answer)


# ---- H-302 and H-303: frames ----------------------------------------------------------------------------------------


@every_door
def test_h302_compression_is_not_negotiated(beside: Crowd, door: Door):
    offers = [
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
        "Sec-WebSocket-Extensions: x-webkit-deflate-frame",
    ]
    with beside.raw(door.path, headers=offers) as peer:
        assert "sec-websocket-extensions" not in peer.headers
        door.open(peer)
        peer.send(frame(TEXT, b"\x78\x9c" + bytes(1000), reserved=0b100))
        assert peer.closed()[0] == 1002


BROKEN: dict[str, tuple[bytes, int]] = {
    "invalid UTF-8": (frame(TEXT, b'{"type": "\xff\xfe"}'), 1007),
    "half a character": (frame(TEXT, b"\xe2\x82"), 1007),
    "a surrogate": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "unmasked": (frame(TEXT, b"{}", masked=False), 1002),
    "first reserved bit": (frame(TEXT, b"{}", reserved=0b100), 1002),
    "other reserved bits": (frame(TEXT, b"{}", reserved=0b011), 1002),
    "unknown opcode": (frame(3, b""), 1002),
    "unknown control opcode": (frame(11, b""), 1002),
    "a control frame in pieces": (frame(PING, b"x", fin=False), 1002),
    "a control frame of 126 bytes": (frame(PING, b"x" * 126), 1002),
    "a continuation of nothing": (frame(CONT, b"{}"), 1002),
    "a message within a message": (frame(TEXT, b"{", fin=False) + frame(BINARY, b"}"), 1002),
}


@every_socket
@pytest.mark.parametrize(("data", "code"), BROKEN.values(), ids=BROKEN)
def test_h303_broken_frames_end_their_connection(beside_often: Crowd, door: Door, data: bytes, code: int):
    with beside_often.raw(door.path) as peer:
        for kind in door.greeting:
            assert peer.next()["type"] == kind
        peer.send(data)
        assert peer.closed()[0] == code


@every_socket
def test_h303_broken_frames_end_sessions_too(beside: Crowd, door: Door):
    with beside.raw(door.path) as peer:
        door.open(peer)
        peer.send(frame(TEXT, b"{}", masked=False))
        assert peer.closed()[0] == 1002


# ---- H-304 and H-305: messages --------------------------------------------------------------------------------------

WRONG = [
    "{",
    "[]",
    "7",
    "null",
    "{}",
    '"type"',
    '{"type": "dance"}',
    '{"type": 7}',
    '{"type": null}',
    "[" * 50_000,
    b"\x00\xff" * 20,
]
LONG = '{"type": "' + "x" * 1_000_000 + '"}'


@pytest.mark.parametrize("door", SPOKEN, ids=[door.name for door in SPOKEN])
def test_h304_h305_wrong_messages_get_one_error_each(beside: Crowd, door: Door):
    with beside.raw(door.path) as peer:
        door.open(peer)
        for data in [*WRONG, LONG]:
            peer.say(data)
            event = peer.next()
            assert event["type"] == "error", data[:60]
            assert len(json.dumps(event)) < 4096
        door.check(peer) if door.answer != "error" else None


@pytest.mark.parametrize("door", SPOKEN, ids=[door.name for door in SPOKEN])
def test_h305_thirty_two_errors_within_ten_seconds_and_one_more(beside: Crowd, door: Door):
    with beside.raw(door.path) as peer:
        door.open(peer)
        for _ in range(33):
            peer.say('{"type": "dance"}')
        assert peer.closed()[0] == 1008


def test_h305_errors_that_are_far_apart_end_nothing(alone: LiveServer):
    with raw(alone.port, REALTIME.path) as peer:
        REALTIME.open(peer)
        for _ in range(3):
            for _ in range(20):
                peer.say('{"type": "dance"}')
                assert peer.next()["type"] == "error"
            alone.clock.advance(10.1)
        REALTIME.check(peer)


# ---- H-316: control frames ------------------------------------------------------------------------------------------


@every_door
def test_h316_pings_are_answered_until_they_are_a_flood(beside: Crowd, door: Door):
    with beside.raw(door.path) as peer:
        door.open(peer)
        peer.send(frame(PING, b"p" * 125) + frame(PONG, b"nobody asked"))
        assert next(peer.frames()) == (PONG, b"p" * 125)
        door.check(peer)
        flood(peer, frame(PING) * 10_000)
        assert peer.closed()[0] in (1008, GONE)


CLOSES: dict[str, tuple[bytes, int]] = {
    "without a body": (frame(CLOSE), 1005),
    "with a code": (frame(CLOSE, struct.pack(">H", 3000) + b"enough"), 3000),
    "half a code": (frame(CLOSE, b"\x03"), 1002),
    "a code that nobody may send": (frame(CLOSE, struct.pack(">H", 1005)), 1002),
    "a code below all codes": (frame(CLOSE, struct.pack(">H", 999)), 1002),
    "a reason that is no text": (frame(CLOSE, struct.pack(">H", 1000) + b"\xff"), 1007),
    "data after it": (frame(CLOSE, struct.pack(">H", 1000)) + frame(TEXT, b'{"type": "dance"}') * 50, 1000),
}


@every_socket
@pytest.mark.parametrize(("data", "code"), CLOSES.values(), ids=CLOSES)
def test_h316_closing(beside_often: Crowd, door: Door, data: bytes, code: int):
    with beside_often.raw(door.path) as peer:
        for kind in door.greeting:
            assert peer.next()["type"] == kind
        flood(peer, data)
        assert peer.closed()[0] == code


# ---- H-317 and H-318: peers that go without a word ------------------------------------------------------------------

POINTS = ["handshake", "connected", "begun", "in a frame", "in a message", "in a unit", "paused", "closing"]


@every_door
@pytest.mark.parametrize("point", POINTS)
def test_h317_a_reset_at_any_point(beside: Crowd, door: Door, point: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        if point == "handshake":
            peer = Raw.__new__(Raw)
            peer.socket = socket.create_connection(("127.0.0.1", beside.server.port))
            peer.send(f"GET {door.path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: web".encode())
        else:
            peer = Raw(beside.server.port, door.path)
        if point not in ("handshake", "connected"):
            door.open(peer)
        if point == "in a frame":
            peer.send(announced(1000) + b"x" * 10)
        elif point == "in a message":
            peer.send(frame(TEXT, b"{", fin=False))
        elif point == "in a unit":
            peer.say(door.sound(noise(0)))
        elif point == "paused" and door in (DUPLEX, DEMO):
            peer.say({"type": "pause"})
        elif point == "closing":
            peer.send(frame(CLOSE, struct.pack(">H", 1000)))
        peer.vanish()
        beside.unharmed()
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


@every_socket
def test_h318_a_peer_that_answers_no_ping_is_given_up(alone: LiveServer, door: Door):
    alone.server.config.ws_ping_interval = alone.server.config.ws_ping_timeout = 0.05
    with raw(alone.port, door.path) as peer:
        for kind in door.greeting:
            assert peer.next()["type"] == kind
        assert peer.closed() == (1011, "keepalive ping timeout")
    assert eventually(lambda: not alone.service.num_sockets)


def test_h318_pings_come_within_forty_seconds(alone: LiveServer):
    settings = alone.server.config
    assert (settings.ws_ping_interval or 99) + (settings.ws_ping_timeout or 99) <= 40
