"""/v1/duplex with clients that break its rules, read nothing, vanish, or come back (H-299 to H-321, F-071, F-074)."""

from __future__ import annotations

import contextlib
import random
import socket as sockets
import struct
from typing import Any

import pytest
from live_sessions.tools import HEADER, LISTENS, SPEAKS, Client, LiveServer, duplex, jpeg, noise, serve_live
from server.live import eventually
from websockets.exceptions import ConnectionClosed, InvalidStatus

WRONG: list[tuple[str | bytes, str]] = [
    ("not json", "invalid_request"),
    ("[]", "invalid_request"),
    ("7", "invalid_request"),
    ("null", "invalid_request"),
    ("{}", "invalid_request"),
    ('{"type": "dance"}', "invalid_request"),
    ('{"type": "' + "x" * 100_000 + '"}', "invalid_request"),
    ('{"type": "interrupt", "now": true}', "invalid_request"),
    ('{"type": "text"}', "invalid_request"),
    ('{"type": "text", "text": 7}', "invalid_request"),
    ('{"type": "text", "text": "' + "x" * 5000 + '"}', "invalid_request"),
    ('{"type": "start"}', "invalid_request"),
    ('{"type": "resume", "session": "live_1"}', "invalid_request"),
    ('{"type": "update", "instructions": "Be rude."}', "invalid_request"),
    ('{"type": "update", "sampling": {"seed": 1}}', "invalid_request"),
    ('{"type": "update", "sampling": {"temperature": -1}}', "invalid_request"),
    ('{"type": "update", "sampling": {"top_k": "many"}}', "invalid_request"),
    ('{"type": "played", "samples": -1}', "invalid_request"),
    (b"", "invalid_request"),
    (b"\x01" * 15, "invalid_request"),
    (HEADER.pack(1, 0, 0, 0, 0) + b"odd", "invalid_request"),
    (HEADER.pack(4, 0, 0, 0, 0) + b"opus", "unsupported"),
    (HEADER.pack(9, 0, 0, 0, 0), "invalid_request"),
    (HEADER.pack(1, 255, 0, 0, 0), "invalid_request"),
]


def test_every_wrong_message_is_answered_and_changes_nothing(live: LiveServer):
    with duplex(live) as client:
        client.start(**LISTENS)
        for data, code in WRONG:
            client.socket.send(data)
            error = client.until_error()
            assert (error["code"], error["fatal"]) == (code, False), data[:60]
            assert len(error["message"]) <= 1000
        assert client.second()["n"] == 0


def test_a_flood_of_wrong_messages_ends_the_session(live: LiveServer):
    with duplex(live) as client:
        client.start(**LISTENS)
        for _ in range(33):
            client.say("dance")
        assert client.closed() == 1008
    assert eventually(lambda: not live.engine.num_sessions)


@pytest.mark.parametrize("first", ['{"type": "stop"}', b"\x01" * 20, "[", '{"type": "start", "speed": 2}'])
def test_what_does_not_begin_with_start_is_closed(live: LiveServer, first: str | bytes):
    with duplex(live) as client:
        client.socket.send(first)
        error = client.next()
        assert (error["type"], error["fatal"]) == ("error", True)
        assert client.closed() == 1008


def test_who_says_nothing_is_closed(live: LiveServer):
    with duplex(live) as client:
        assert eventually(lambda: live.clock.advance(10) is None and client.socket.close_code is not None)
        assert client.closed() == 1008


def test_messages_have_a_size(live: LiveServer):
    with duplex(live) as client:
        client.start(**LISTENS)
        client.picture(b"x" * (1 << 20))
        assert client.closed() == 1009


def masked(opcode: int, payload: bytes, *, mask: bool = True) -> bytes:
    head = bytes([0x80 | opcode, (0x80 if mask else 0) | len(payload)])
    return head + (bytes(4) if mask else b"") + payload


@pytest.mark.parametrize(
    ("raw", "code"),
    [(masked(1, b"\xff\xfe"), 1007), (masked(3, b""), 1002), (masked(1, b"{}", mask=False), 1002)],
)
def test_broken_frames_end_the_connection_and_nothing_else(live: LiveServer, raw: bytes, code: int):
    with duplex(live) as client:
        assert client.socket.protocol.extensions == [], "compression is not negotiated"
        client.start(**LISTENS)
        client.socket.socket.sendall(raw)
        assert client.closed() == code
    with duplex(live) as client:
        client.start(**LISTENS)
        assert client.second()["n"] == 0


def test_sound_far_ahead_of_the_clock_is_refused(live: LiveServer):
    with duplex(live) as client:
        client.start(**LISTENS, audio={"in": 8000, "out": None})
        codes: list[str] = []
        for _ in range(8):
            client.sound(noise(0, 80_000))
        while len(codes) < 2:
            event = client.next()
            if event["type"] == "error":
                codes.append(event["code"])
        assert set(codes) == {"buffer_full"}
        live.clock.advance(20)
        client.sound(noise(0, 8000), flags=1)
        client.say("ping")
        client.until("pong")
        late = [event for event in client.events if event.get("code") == "late"]
        assert late, "what no unit was made of was told"
        assert all(event["dropped_ms"] == 1000 for event in late)


def test_keys_guard_the_door(engine: Any):
    with serve_live(engine, api_keys=("right", "other")) as guarded:
        for options in ({}, {"subprotocols": ["sensorium.duplex.v1", "auth.wrong"]}):
            with pytest.raises(InvalidStatus) as refused, duplex(guarded, **options):
                pass
            assert refused.value.response.status_code == 401
        with pytest.raises(InvalidStatus) as refused, duplex(guarded, "?model=nobody", subprotocols=["auth.right"]):
            pass
        assert refused.value.response.status_code == 404
        with duplex(guarded, subprotocols=["sensorium.duplex.v1", "auth.right"]) as client:
            ready = client.start(**LISTENS)
            with duplex(guarded, subprotocols=["auth.other"]) as thief:
                thief.say("resume", session=ready["session"], resume_token=ready["resume_token"])
                assert thief.next()["code"] == "session_not_found"
            assert client.second()["n"] == 0
        assert guarded.empty()


# ---- coming back ----------------------------------------------------------------------------------------------------


def vanish(client: Client) -> None:
    """As a peer that has crashed: no closing handshake, and a reset for what is still on its way."""
    raw = client.socket.socket
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))
    raw.shutdown(sockets.SHUT_RD)


def test_a_session_is_taken_up_where_it_was(live: LiveServer):
    with duplex(live) as client:
        ready = client.start(**SPEAKS)
        first = client.second(1)
        vanish(client)
    live.clock.advance(29)
    with duplex(live) as again:
        again.say("resume", session=ready["session"], resume_token=ready["resume_token"], seq=first["seq"])
        taken = again.until("ready")
        assert (taken["resumed"], taken["session"]) == (True, ready["session"])
        assert taken["in_samples"] == 16_000
        assert taken["resume_token"] != ready["resume_token"]
        assert again.until("unit") == first, "sent again"
        again.position = taken["in_samples"]
        assert again.second(2)["n"] == 1
        with duplex(live) as late:
            late.say("resume", session=ready["session"], resume_token=ready["resume_token"])
            assert late.next()["code"] == "session_not_found", "each token serves once"
            assert late.closed() == 1008
        with duplex(live) as third:
            third.say("resume", session=taken["session"], resume_token=taken["resume_token"], seq=99)
            assert third.until("ready")["resumed"]
            assert again.until_bye()["reason"] == "replaced"
            third.position = 32_000
            assert third.second(3)["n"] == 2
            third.say("stop")
            assert third.until("bye")["usage"]["units"] == 3


def test_who_does_not_come_back_in_time_has_lost_the_session(live: LiveServer):
    with duplex(live) as client:
        ready = client.start(**LISTENS)
        vanish(client)
    assert eventually(lambda: live.service.num_sockets == 0)
    live.clock.advance(30)
    assert eventually(lambda: not live.engine.num_sessions)
    with duplex(live) as again:
        again.say("resume", session=ready["session"], resume_token=ready["resume_token"])
        assert again.next()["code"] == "session_not_found"


@pytest.mark.parametrize("point", ["connected", "queued", "ready", "in a unit", "speaking", "paused", "interrupted"])
def test_a_reset_at_any_point_frees_the_session(live: LiveServer, point: str):
    others: list[Any] = []
    if point == "queued":
        for _ in range(4):
            others.append(duplex(live))
            others[-1].__enter__().start(**LISTENS)
    with duplex(live) as client:
        if point == "queued":
            client.say("start")
            assert client.next()["type"] == "queued"
        elif point != "connected":
            client.start(**SPEAKS)
        if point in ("speaking", "interrupted"):
            client.second()
        if point == "in a unit":
            client.sound(noise())
        if point in ("paused", "interrupted"):
            client.say("pause" if point == "paused" else "interrupt")
        vanish(client)
    for other in others:
        other.__exit__(None, None, None)
    assert live.empty()


@pytest.mark.slow
def test_who_does_not_read_is_dropped_and_hurts_nobody(live: LiveServer):
    slow = sockets.socket()
    slow.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", live.port))
    with duplex(live) as good, duplex(live, sock=slow, max_queue=1) as bad:
        good.start(**LISTENS)
        bad.start(**LISTENS)
        with contextlib.suppress(ConnectionClosed):
            for _ in range(8000):
                bad.say("ping", t="\x01" * 64)
        for number in range(60):
            assert good.second()["n"] == number
            assert good.events[-1]["behind_ms"] == 0
            live.clock.advance(1)
            if live.service.num_sockets == 1:
                break
        assert live.service.num_sockets == 1, "only the good one is served"
        assert good.second()["behind_ms"] == 0


def test_barge_in_again_and_again(live: LiveServer):
    """H-314: no words of a turn after it was cancelled; turns and units stay in their order."""
    with duplex(live) as client:
        client.start(**SPEAKS)
        for n in range(30):
            client.sound(noise(n))
            for _ in range(25):
                client.say("interrupt")
            client.until("unit")
        client.say("stop")
        client.until("bye")
    check(client.events)


@pytest.mark.parametrize("seed", range(6))
def test_random_walks(live: LiveServer, seed: int):
    """H-310: whatever is said in whatever order, what is told follows the rules."""
    rng = random.Random(seed)
    with duplex(live) as client:
        client.start(**SPEAKS)
        # Short enough for a server that reads all of it late: it hangs up on 33 errors within ten seconds.
        for _ in range(50):
            action = rng.randrange(9)
            if action < 3:
                client.sound(noise(action, rng.choice([100, 8000, 16_000])))
            elif action == 3:
                client.picture(jpeg(1))
            else:
                client.say(rng.choice(["interrupt", "pause", "resume", "mute"]))
                if action > 6:
                    client.say("update", listen_bias=float(rng.randrange(2)))
            live.clock.advance(0.5)
        client.say("stop")
        while client.next()["type"] != "bye":
            pass
    check(client.events)


def check(events: list[dict[str, Any]]) -> None:
    """What holds of any session."""
    units = [event["n"] for event in events if event["type"] == "unit"]
    assert units == list(range(len(units)))
    open_turn, last = None, 0
    for event in events:
        if event["type"] == "turn":
            if event["event"] == "start":
                assert open_turn is None
                assert event["id"] == last + 1
                open_turn = last = event["id"]
            else:
                assert event["id"] == open_turn
                open_turn = None
        elif event["type"] in ("text", "sound"):
            assert open_turn is not None
            assert event.get("turn", open_turn) == open_turn
    assert [event["type"] for event in events].count("bye") == 1


def test_opening_and_closing_leaves_nothing(live: LiveServer):
    """F-075, in small."""
    for n in range(25):
        with duplex(live) as client:
            client.start(**LISTENS)
            if n % 3 == 0:
                client.second()
            if n % 2:
                client.say("stop")
                client.until("bye")
            else:
                vanish(client)
        assert live.empty()
    assert live.service.num_sockets == 0
    assert live.service.is_idle
