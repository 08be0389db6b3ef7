"""Frames between a client and an engine process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sensorium.config import EngineConfig, MediaLimits
from sensorium.engine.histogram import Buckets
from sensorium.engine.protocol import (
    Abort,
    AppendUnit,
    BargeIn,
    CloseSession,
    EngineStats,
    OpenSession,
    PauseSession,
    RewindSession,
)
from sensorium.engine.wire import Connection, Outbox, Pulse, Start, encode
from sensorium.types import (
    Finished,
    MediaItem,
    Pooled,
    PoolingParams,
    Prompt,
    PromptScored,
    Request,
    SamplingParams,
    SessionOpened,
    Span,
    StructuredOutputs,
    TextDelta,
    Timings,
    TokenLogprob,
    Unit,
    UnitFailed,
    UnitPart,
    Usage,
)


def test_what_sessions_say_arrives_equal(ends):
    unit = Unit(3, Prompt((1, 2)), 1.5, 2.5, None, {"force_listen": True, "temperature": 0.5})
    hidden = np.arange(6, dtype=np.float32).reshape(2, 3)
    messages = [
        OpenSession(Request("s", Prompt(()), SamplingParams()), "turn", {"a": [1, None, "x"]}, 64, 4, 2.0, True),
        RewindSession("s", -1),
        BargeIn("s", 2, {"heard_ms": 120}),
        PauseSession("s", False),
        CloseSession("s"),
        SessionOpened("s", 7),
        UnitFailed("s", 3, 1, "overloaded", "behind", 429),
    ]
    arrived = cross(ends, *messages, AppendUnit("s", unit), UnitPart("s", 3, 1, (5, 6), hidden))
    assert arrived[1:7] == messages[1:7]
    assert (arrived[0].request.id, replace(arrived[0], request=None)) == ("s", replace(messages[0], request=None))
    assert (arrived[7].unit.prompt.ids, replace(arrived[7].unit, prompt=None)) == ((1, 2), replace(unit, prompt=None))
    part = arrived[8]
    assert (part.index, part.turn, part.ids, part.hidden.tolist()) == (3, 1, (5, 6), hidden.tolist())


@pytest.fixture
def ends() -> Iterator[tuple[Connection, Connection]]:
    one, other = socket.socketpair()
    pair = Connection(one), Connection(other)
    yield pair
    for end in pair:
        end.close()


def cross(ends: tuple[Connection, Connection], *messages: object) -> list[Any]:
    sender = threading.Thread(target=ends[0].send, args=(encode(messages),))
    sender.start()
    received = ends[1].receive(lambda: None)
    sender.join()
    return received


def test_what_is_sent_arrives_equal(ends):
    logprob = TokenLogprob(3, -0.5, ((3, -0.5), (9, float("-inf"))), 1)
    sampling = SamplingParams(
        stop=("a", "b"), logit_bias={7: -1.5}, structured_outputs=StructuredOutputs(choice=("x", "y")), seed=2**63 - 1
    )
    messages = [
        Start(
            EngineConfig(
                model="m",
                limits=MediaLimits(allowed_local_path=Path("somewhere")),
                hf_overrides={"text_config": {"rope_scaling": {"factor": 2.5}}},
                limit_mm_per_prompt={"image": 2, "video": {"count": 1, "num_frames": 8}},
                kv_cache_bytes=5 << 30,
            ),
            20,
        ),
        Request("plain", Prompt((1, 2)), sampling, namespace="n", priority=-3, arrival_s=1.25),
        Request("pooled", Prompt((1,)), SamplingParams(), pooling=PoolingParams(dimensions=4)),
        Abort("plain"),
        TextDelta("plain", "\ud7ff文", (3,), (logprob,)),
        PromptScored("plain", (None, logprob)),
        Finished("plain", "stop", Usage(2, 1, media_tokens={"image": 4}), Timings(0.0, None, 1.5), stop_reason="b"),
        Pulse(EngineStats(steps=4, step_tokens=Buckets((1, 2), 5.0), encoder_s={"image": Buckets((0, 1), 0.5)}), 0.5),
    ]
    received = cross(ends, *messages)
    for message, arrived in zip(messages, received, strict=True):
        if isinstance(message, Request):  # prompts compare by identity
            assert (arrived.prompt.ids, arrived.prompt.spans) == (message.prompt.ids, message.prompt.spans)
            assert replace(arrived, prompt=message.prompt) == message
        else:
            assert arrived == message


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.int32).reshape(2, 3, 4),
        np.arange(24, dtype=np.float32).reshape(4, 6).T,
        np.zeros((0, 3), dtype=np.uint8),
        np.array(2.5),
        np.array([True, False]),
        np.random.default_rng(1).integers(0, 256, 3_000_001, dtype=np.uint8),
    ],
    ids=["three axes", "transposed", "empty", "no axes", "bool", "larger than the socket's buffer"],
)
def test_arrays_arrive_whole_writable_and_in_order(ends, array: np.ndarray):
    item = MediaItem("image", b"\x00key", 4, {"first": array, "second": np.arange(3)})
    prompt = Prompt((1, 2, 3, 4), (Span(0, 4, 0),), (item,), positions=np.arange(12).reshape(3, 4))
    request, pooled = cross(ends, Request("a", prompt, SamplingParams()), Pooled("b", np.ones((2, 2), np.float32)))
    arrived = request.prompt.media[0]
    np.testing.assert_array_equal(arrived.arrays["first"], array)
    assert arrived.arrays["first"].dtype == array.dtype
    assert arrived.arrays["first"].flags.writeable
    assert arrived.arrays["first"].flags.aligned
    np.testing.assert_array_equal(arrived.arrays["second"], np.arange(3))
    np.testing.assert_array_equal(request.prompt.positions, prompt.positions)
    np.testing.assert_array_equal(pooled.data, np.ones((2, 2)))


def test_the_end_is_an_end_wherever_it_comes(ends):
    frame = encode([Abort("a")])[0]
    ends[0].send([frame[: len(frame) // 2]])
    ends[0].shut()
    with pytest.raises(EOFError):
        ends[1].receive(lambda: None)
    with pytest.raises(OSError):
        ends[0].send([b"more"])


def test_one_message_that_cannot_cross_does_not_keep_the_others(ends):
    refused: list[tuple[object, Exception]] = []
    outbox = Outbox(ends[0], "test-outbox", lambda message, error: refused.append((message, error)))
    odd = Request("odd", Prompt((1,), text=object()), SamplingParams())  # pyright: ignore
    outbox.put([Abort("one"), odd, Abort("two")])
    outbox.close()
    assert ends[1].receive(lambda: None) == [Abort("one"), Abort("two")]
    assert [(message, type(error)) for message, error in refused] == [(odd, TypeError)]
