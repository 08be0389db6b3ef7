"""Long base64 is taken out of a body as it arrives, and nothing that a client can write tells the difference."""

from __future__ import annotations

import base64
import json
import random
import tracemalloc
from typing import Any

import msgspec
import pybase64
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server.live import Live, user
from server.samples import picture, sound

from sensorium.config import MediaLimits
from sensorium.errors import MediaError, RequestError, TooLargeError
from sensorium.inline import LongText, Pieces, decode_base64
from sensorium.media.local import read_local
from sensorium.server import lift
from sensorium.server.body import decode
from sensorium.server.chat_schema import CHAT_REQUEST, UNSUPPORTED, ChatRequest
from sensorium.server.lift import Body, Lifter
from sensorium.types import MediaRef

BLOCK = 64
"""Of these tests, so that short texts have runs."""
ANYTHING = msgspec.json.Decoder(Any)
MANY = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(autouse=True)
def small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "live" not in request.fixturenames:
        monkeypatch.setattr(lift, "BLOCK", BLOCK)


def lifted(data: bytes, size: int = 1 << 20) -> Body:
    lifter = Lifter()
    for start in range(0, len(data), size):
        lifter.feed(data[start : start + size])
    return lifter.finish()


def whole(value: Any) -> Any:
    """With the texts of media as they were sent."""
    if isinstance(value, LongText):
        return value.runs.whole(value)
    if isinstance(value, list):
        return [whole(item) for item in value]
    if isinstance(value, dict):
        return {whole(name): whole(inner) for name, inner in value.items()}
    return value


def urls(value: Any) -> list[LongText]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [value] if isinstance(value, LongText) else [found for item in inner for found in urls(item)]


base64_texts = st.builds(
    lambda size, seed: base64.b64encode(random.Random(seed).randbytes(size)).decode(),
    st.integers(0, 600),
    st.integers(0, 1 << 16),
)
data_urls = st.builds(lambda kind, text: f"data:{kind};base64,{text}", st.sampled_from(["image/png", ""]), base64_texts)
fragments = st.one_of(
    st.text(max_size=20),
    base64_texts,
    data_urls,
    st.sampled_from(
        ["\\", '"', "\\u0041", "=", "==", "<" + "0" * 32 + ".0>", "<", ".0>", "\n", "é", "\U0001f600", "/"]
    ),
)
texts = st.lists(fragments, max_size=5).map("".join)
names = st.one_of(
    st.sampled_from(
        ["messages", "input", "content", "output", "image_url", "url", "source", "data", "text", "input_audio"]
    ),
    texts,
)
documents = st.recursive(
    st.one_of(texts, st.integers(-99, 99), st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(names, inner, max_size=4)),
    max_leaves=12,
)
conversations = documents.map(lambda inner: {"messages": [{"content": [{"image_url": inner, "text": inner}]}]})


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(st.one_of(documents, conversations), st.booleans(), st.integers(1, 200))
def test_what_is_read_is_what_plain_decoding_reads(document: Any, ascii_only: bool, size: int):
    data = json.dumps(document, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        plain = msgspec.json.decode(data)
    except msgspec.DecodeError:
        with pytest.raises(RequestError):
            decode(lifted(data, size), ANYTHING, {})
        return
    assert whole(decode(lifted(data, size), ANYTHING, {})) == plain


@MANY
@given(st.lists(st.one_of(base64_texts, st.sampled_from(["=", "==", "A", "AA", "AAA", "-", " ", "é"])), max_size=6))
def test_base64_is_as_strict_as_in_one_go(parts: list[str]):
    text = "".join(parts)
    body = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": text}}]}]}
    found = decode(lifted(json.dumps(body).encode()), CHAT_REQUEST, UNSUPPORTED).messages[0]["content"][0]
    try:
        expected = pybase64.b64decode(text, validate=True)
    except ValueError:
        with pytest.raises(ValueError):
            decode_base64(found["image_url"]["url"])
    else:
        assert bytes(decode_base64(found["image_url"]["url"])) == expected


def chat_of(part: dict[str, Any], **more: Any) -> ChatRequest:
    body = {"messages": [{"role": "user", "content": [part]}], **more}
    return decode(lifted(json.dumps(body).encode()), CHAT_REQUEST, UNSUPPORTED)


def test_media_stay_apart_and_texts_come_back_whole():
    payload = random.Random(1).randbytes(5000)
    url = "data:image/png;base64," + base64.b64encode(payload).decode()
    request = chat_of({"type": "image_url", "image_url": {"url": url}}, chat_template_kwargs={"note": url})
    found = request.messages[0]["content"][0]["image_url"]["url"]
    assert isinstance(found, LongText)
    assert len(found) < 300 < found.size == len(url)
    source = read_local(MediaRef("image", found), MediaLimits())
    assert isinstance(source, Pieces)
    assert bytes(source) == payload
    assert type(request.chat_template_kwargs["note"]) is str  # pyright: ignore - it is given
    assert request.chat_template_kwargs["note"] == url  # pyright: ignore
    assert chat_of({"type": "text", "text": url}).messages[0]["content"] == [{"type": "text", "text": url}]
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": {"content": [{"image": url}]}}}
    calls = decode(
        lifted(json.dumps({"messages": [{"role": "assistant", "tool_calls": [call]}]}).encode()),
        CHAT_REQUEST,
        UNSUPPORTED,
    )
    assert calls.messages[0]["tool_calls"] == [call]


def test_a_body_with_many_values_is_parsed_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lift, "MAX_NODES", 10)
    body = {"messages": [{"content": [{"image_url": "A" * 1000, "n": [0] * 20, "bad": "\xff"}]}]}
    assert urls(decode(lifted(json.dumps(body).encode()), ANYTHING, {})) == []
    assert decode(lifted(json.dumps(body).encode()), ANYTHING, {}) == body


def test_deep_nesting_beside_a_picture_is_refused():
    deep = b'{"a":' * 970 + b'"' + b"A" * 1000 + b'"' + b"}" * 970
    with pytest.raises(RequestError, match="nested too deeply"):
        decode(lifted(deep), ANYTHING, {})


def test_equal_items_are_known_as_equal():
    first, second, other = (
        chat_of({"type": "image_url", "image_url": text * 1000}).messages[0]["content"][0]["image_url"]
        for text in ("AAAA", "AAAA", "AAAB")
    )
    assert first == second
    assert hash(first) == hash(second)
    assert first != other
    assert first != str(first)


def test_a_mark_that_a_client_writes_is_text():
    body = lifted(json.dumps({"messages": [{"content": "A" * 1000}]}).encode())
    forged = json.dumps({"messages": [{"content": [{"image_url": f"<{body.runs.nonce}.0>" + "A" * 1000}]}]})
    read = decode(lifted(forged.encode()), ANYTHING, {})
    assert whole(read) == json.loads(forged)


@pytest.mark.parametrize("end", ["!", "=A", "\\u00e9"])
def test_damage_behind_a_run_is_found(end: str):
    found = chat_of({"type": "image_url", "image_url": "data:;base64," + "A" * 1000 + end})
    source = found.messages[0]["content"][0]["image_url"]
    with pytest.raises(MediaError, match="base64 text of this data: URL is not valid"):
        read_local(MediaRef("image", source, "p"), MediaLimits())


def test_sizes_are_those_of_what_was_sent():
    found = chat_of({"type": "image_url", "image_url": "data:;base64," + "A" * 4000})
    ref = MediaRef("image", found.messages[0]["content"][0]["image_url"])
    assert len(bytes(read_local(ref, MediaLimits(max_bytes=3000)))) == 3000
    with pytest.raises(TooLargeError):
        read_local(ref, MediaLimits(max_bytes=2990))


def doors(url: str, data: str) -> dict[str, dict[str, Any]]:
    """The same large picture through each door, and a recording; by path."""
    source = {"type": "base64", "media_type": "image/png", "data": data}
    speech = base64.b64encode(sound(5)).decode()
    pixels = {"type": "image_url", "image_url": {"url": url}}
    recording = {"type": "input_audio", "input_audio": {"data": speech, "format": "wav"}}
    return {
        "/v1/chat/completions": {"messages": user([pixels, recording, "What?"]), "max_tokens": 4, "temperature": 0},
        "/v1/messages": {
            "messages": user([{"type": "image", "source": source}, {"type": "text", "text": "What?"}]),
            "model": "tiny",
            "max_tokens": 4,
            "temperature": 0,
        },
        "/v1/responses": {
            "input": user([{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "What?"}]),
            "max_output_tokens": 4,
            "temperature": 0,
        },
        "/tokenize": {"messages": user([pixels, "What?"])},
    }


def answered(answer: dict[str, Any]) -> Any:
    usage = answer.get("usage", {})
    size = usage.get("prompt_tokens"), answer.get("count")
    return size, [answer.get(name) for name in ("choices", "content", "output_text", "tokens")]


def test_every_door_sees_what_it_sees_in_one_go(live: Live, monkeypatch: pytest.MonkeyPatch):
    """Escaped slashes are the same JSON and leave nothing long enough to be taken out."""
    data = base64.b64encode(picture(400, 300)).decode()
    taken: list[int] = []
    settle = Body.settle
    monkeypatch.setattr(Body, "settle", lambda body, request: taken.append(len(body.runs)) or settle(body, request))
    for path, body in doors(f"data:image/png;base64,{data}", data).items():
        text = json.dumps(body).encode()
        status, first = live.post(text, path)
        assert status == 200, first
        status, second = live.post(text.replace(b"/", b"\\/"), path)
        assert status == 200, second
        assert answered(first) == answered(second)
    assert taken == [2, 0, 1, 0, 1, 0, 1, 0]


def test_a_body_of_too_many_values_is_refused_while_it_arrives():
    lifter = Lifter(most_decoded=1_000_000)
    lifter.feed(b'{"prompt": [')
    for _ in range(24):
        lifter.feed(b"1," * 1000)
    with pytest.raises(TooLargeError, match="max_json_bytes"):
        lifter.feed(b"1," * 2000)


@pytest.mark.parametrize("body", [b'{"prompt": "' + b"x" * 100_000 + b'"}', b'{"image": "' + b"Qk0v" * 100_000 + b'"}'])
def test_long_texts_count_as_one_value(body: bytes):
    lifter = Lifter(most_decoded=1000)
    lifter.feed(body)
    assert lifter.finish().size == len(body)


@pytest.mark.parametrize(
    "value", [[1000 + n for n in range(20_000)], [{"a": 1}] * 5000, ["text"] * 10_000, [[]] * 10_000]
)
def test_the_estimate_is_near_what_python_takes(value: list[Any]):
    text = msgspec.json.encode(value)
    tracemalloc.start()
    kept = ANYTHING.decode(text)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept == value
    assert taken / 2 < lift.decoded_bytes(text) < 4 * taken
