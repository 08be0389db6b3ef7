"""/v1/audio/speech and /v1/audio/voices, with the openai SDK and bare sockets, hostile input too."""

from __future__ import annotations

import base64
import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import openai
import pytest
from server.live import Live, eventually, serve
from server.samples import float_wav, sound

from sensorium.engine.client import EngineClient
from sensorium.media.wav import read_wav
from sensorium.server.speech.spoken import reading_prompt, spoken_messages
from sensorium.server.speech.voices import Voices
from sensorium.types import Message

TEXT = "Good morning."
SPEECH = "/v1/audio/speech"
VOICES = "/v1/audio/voices"
FORM = "multipart/form-data; boundary=XYZ"


@pytest.fixture(scope="module")
def sdk(speaking: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{speaking.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def form(*parts: tuple[str, bytes | str], upload: str = "audio_sample") -> bytes:
    """A multipart body with boundary XYZ; bytes are uploads."""
    body = b""
    for name, value in parts:
        filename = f'; filename="{upload}.wav"' if isinstance(value, bytes) else ""
        data = value if isinstance(value, bytes) else value.encode()
        body += f'--XYZ\r\nContent-Disposition: form-data; name="{name}"{filename}\r\n\r\n'.encode() + data + b"\r\n"
    return body + b"--XYZ--\r\n"


def upload(live: Live, name: str, clip: bytes, **headers: str) -> tuple[int, Any]:
    body = form(("name", name), ("audio_sample", clip))
    status, _, answer = live.request("POST", VOICES, body, {"content-type": FORM, **headers})
    return status, json.loads(answer)


def capabilities(live: Live) -> list[str]:
    return json.loads(live.request("GET", "/v1/models")[2])["data"][0]["capabilities"]


def refused(live: Live, **body: Any) -> dict[str, Any]:
    """The error of a request for speech."""
    status, answer = live.post({"input": TEXT, "voice": "default", **body}, SPEECH)
    assert status == 400, answer
    return answer["error"]


# ---- speech -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mp3", "opus", "pcm"])
def test_a_text_is_read_aloud(sdk: openai.OpenAI, kind: Any):
    answer = sdk.audio.speech.create(model="tiny", voice="default", input=TEXT, response_format=kind)
    assert answer.response.headers["content-type"].startswith("audio/")
    if kind == "pcm":
        assert len(answer.content) > 2400
        assert np.frombuffer(answer.content, "<i2").any()
        return
    with av.open(io.BytesIO(answer.content)) as container:
        assert sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0)) > 0.05


def test_the_sdk_streams_a_file_whose_end_is_not_known_yet(sdk: openai.OpenAI):
    with sdk.audio.speech.with_streaming_response.create(
        model="tiny", voice="alloy", input=TEXT, response_format="wav"
    ) as response:
        assert response.headers["content-type"] == "audio/wav"
        assert "content-length" not in response.headers
        whole = read_wav(b"".join(response.iter_bytes()))
    assert whole is not None
    assert (whole.rate, whole.channels) == (24_000, 1)
    assert whole.frames > 2400


def test_speech_as_events(speaking: Live):
    body = {"input": TEXT, "response_format": "pcm", "stream_format": "sse"}
    status, headers, answer = speaking.request(
        "POST", SPEECH, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in answer.decode().split("\n\n") if line]
    *deltas, done = events
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    seconds = sum(len(base64.b64decode(event["audio"])) for event in deltas) / 48_000
    assert done["type"] == "speech.audio.done"
    assert done["usage"]["output_tokens"] == pytest.approx(25 * seconds, abs=1)
    assert done["usage"]["total_tokens"] == done["usage"]["input_tokens"] + done["usage"]["output_tokens"]


def test_speed_and_instructions_are_honoured(sdk: openai.OpenAI):
    answer = sdk.audio.speech.create(
        model="tiny",
        voice="default",
        input="One.",
        response_format="pcm",
        speed=2.0,
        instructions="Whisper, as if somebody slept.",
    )
    assert answer.content


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": " \n\t"}, "input"),
        ({"input": "a" * 4097}, "input"),
        ({"voice": "nobody"}, "voice"),
        ({"voice": {"id": "voice_123"}}, "voice"),
        ({"voice": 7}, "voice"),
        ({"response_format": "ogg"}, "response_format"),
        ({"stream_format": "chunks"}, "stream_format"),
        ({"speed": 5}, "speed"),
        ({"speed": 0}, "speed"),
        ({"instructions": "x" * 5000}, "instructions"),
        ({"language": "en"}, "language"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(speaking: Live, body: dict[str, Any], param: str):
    error = refused(speaking, **body)
    assert error["param"] == param, error
    assert len(error["message"]) < 1000


def test_a_text_longer_than_the_context_is_refused(speaking: Live):
    error = refused(speaking, input="\u0f40" * 2000)  # several tokens a letter
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "input"


def test_a_model_that_does_not_speak_says_so(live: Live):
    status, answer = live.post({"input": TEXT, "voice": "alloy"}, SPEECH)
    assert status == 404
    assert "does not support task speech" in answer["error"]["message"]
    assert live.request("GET", VOICES)[0] == 404


def test_sound_leaves_as_it_is_made_and_leaving_ends_the_work(speaking: Live):
    body = json.dumps({"input": "This goes on. " * 20, "response_format": "pcm"}).encode()
    head = f"POST {SPEECH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.create_connection(("127.0.0.1", speaking.port), timeout=60) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        assert connection.recv(1024).startswith(b"HTTP/1.1 200")
        assert speaking.engine.num_requests == 1
    assert eventually(lambda: speaking.engine.num_requests == 0)


async def test_the_model_hears_the_voice_that_it_is_to_speak_in(spoken_engine: EngineClient):
    voices = Voices(None, 1, 0)
    own = await voices.pick("default", "me", spoken_engine, "voice")
    kept = await voices.add("Anna", "me", np.sin(np.arange(64_000) / 9).astype("f4"), None, spoken_engine)
    hers = await voices.pick("Anna", "me", spoken_engine, "voice")
    for picked, seconds in ((own, 3.0), (hers, 4.0)):
        prompt, count = await reading_prompt(spoken_engine, TEXT, picked, None, "")
        assert prompt.text is None
        assert picked.clip is not None
        assert len(picked.clip.data) == 16_000 * seconds
        assert prompt.media_tokens()["audio"] == pytest.approx(10 * seconds, abs=2)
        assert spoken_engine.tokenizer.decode(prompt.ids[-count:]) == TEXT
        said = [Message("system", ("Be brief.",)), Message("user", ("Hello?",))]
        first, *others = spoken_messages(spoken_engine, said, picked)
        assert (first.role, first.parts[1], first.parts[-1]) == ("system", picked.clip, "Be brief.")
        assert others == said[1:]
    await voices.delete(kept.id, "me", spoken_engine)


def test_speech_is_counted(speaking: Live, sdk: openai.OpenAI):
    sdk.audio.speech.create(model="tiny", voice="default", input=TEXT, response_format="pcm")
    text = speaking.request("GET", "/metrics")[2].decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if "sound" in line)
    [made] = [float(value) for name, value in values.items() if name.startswith("sensorium:sound_seconds_total")]
    [first] = [float(v) for n, v in values.items() if n.startswith("sensorium:time_to_first_sound_seconds_count")]
    assert made > 0
    assert first > 0


# ---- voices -------------------------------------------------------------------------------------------------------


def test_a_voice_is_uploaded_used_and_deleted(sdk: openai.OpenAI, speaking: Live):
    voice = sdk.audio.voices.create(name="Anna", audio_sample=("anna.wav", sound(3.5)), consent="she agreed in writing")
    assert voice.id.startswith("voice_")
    assert (voice.name, voice.object, voice.type) == ("Anna", "audio.voice", "audio_sample")
    listed = json.loads(speaking.request("GET", VOICES)[2])["data"]
    assert [card["name"] for card in listed] == ["default", "Anna"]
    assert listed[1]["consent"] == "she agreed in writing"
    for choice in ("Anna", {"id": voice.id}):
        assert sdk.audio.speech.create(model="tiny", voice=choice, input="Hi.", response_format="pcm").content  # type: ignore[arg-type]
    gone = sdk.audio.voices.delete(voice.id)
    assert (gone.deleted, gone.object) == (True, "audio.voice.deleted")
    assert voice.id not in speaking.engine.voices
    assert refused(speaking, voice="Anna")["param"] == "voice"


def test_a_model_that_clones_no_voices_says_so(speaking: Live, monkeypatch: pytest.MonkeyPatch):
    assert "cloning" in capabilities(speaking)
    monkeypatch.setattr(speaking.engine._speech, "can_clone", False)
    assert "cloning" not in capabilities(speaking)
    status, answer = upload(speaking, "Anna", sound(4.0))
    assert (status, answer["error"]["param"]) == (400, "audio_sample")
    assert "makes no voices of recordings" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("clip", "said"),
    [
        (sound(1.0), "1.0 seconds"),
        (sound(20.0), "20.0 seconds"),
        (b"RIFF", "audio"),
        (b"", "audio"),
        (float_wav([float("nan")] * 64_000), "finite"),
        (float_wav([0.0] * 64_000), "silent"),
    ],
)
def test_what_is_no_recording_of_a_voice_is_refused(speaking: Live, clip: bytes, said: str):
    status, answer = upload(speaking, "Nobody", clip)
    assert status == 400, answer
    assert answer["error"]["param"] == "audio_sample"
    assert said in answer["error"]["message"]
    assert len(json.loads(speaking.request("GET", VOICES)[2])["data"]) == 1


def test_huge_uploads_are_refused_unread(speaking: Live):
    head = f"POST {VOICES} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {FORM}\r\nContent-Length: {100 << 20}\r\n\r\n"
    answer = speaking.raw(head.encode() + form(("name", "Anna"))[:-7])
    assert answer.startswith(b"HTTP/1.1 413"), answer[:200]
    assert b'"audio_sample"' in answer


@pytest.mark.parametrize(
    ("body", "kind", "status", "param"),
    [
        (form(("name", "Anna")), FORM, 400, "audio_sample"),
        (form(("audio_sample", sound(3.0))), FORM, 400, "name"),
        (form(("name", "../../x"), ("audio_sample", sound(3.0))), FORM, 400, "name"),
        (form(("name", "default"), ("audio_sample", sound(3.0))), FORM, 400, "name"),
        (form(("name", "Anna"), ("type", "prompt"), ("prompt", "a deep voice")), FORM, 400, "type"),
        (form(("name", "Anna"), ("file", sound(3.0))), FORM, 400, "file"),
        (form(("name", "Anna"), ("audio_sample", "text")), FORM, 422, None),
        (b"{}", "application/json", 400, "body"),
    ],
)
def test_other_forms_are_refused_by_name(speaking: Live, body: bytes, kind: str, status: int, param: str | None):
    found, _, answer = speaking.request("POST", VOICES, body, {"content-type": kind})
    assert (found, json.loads(answer)["error"]["param"]) == (status, param), answer


def test_a_voice_belongs_to_its_key(spoken_engine: EngineClient):
    hers, his = {"authorization": "Bearer hers"}, {"authorization": "Bearer his"}
    with serve(spoken_engine, api_keys=("hers", "his"), max_voices=1) as locked:
        status, card = upload(locked, "Anna", sound(3.0), **hers)
        assert status == 200
        assert [voice["name"] for voice in json.loads(locked.request("GET", VOICES, headers=his)[2])["data"]] == [
            "default"
        ]
        assert locked.request("DELETE", f"{VOICES}/{card['id']}", headers=his)[0] == 404
        assert locked.request("DELETE", f"{VOICES}/default", headers=hers)[0] == 403
        body = json.dumps({"input": TEXT, "voice": card["id"]}).encode()
        assert locked.request("POST", SPEECH, body, {"content-type": "application/json", **his})[0] == 400
        assert upload(locked, "Bert", sound(3.0), **his)[0] == 429  # the only place is taken
        assert locked.request("DELETE", f"{VOICES}/{card['id']}", headers=hers)[0] == 200


def test_voices_stay_in_the_operator_s_folder(spoken_engine: EngineClient, tmp_path: Path):
    (tmp_path / "marin.wav").write_bytes(sound(4.0, rate=24_000))
    with serve(spoken_engine, voice_folder=tmp_path) as first:
        status, card = upload(first, "Anna", sound(3.0))
        assert status == 200
        assert names(first) == ["default", "marin", "Anna"]
        assert first.request("DELETE", f"{VOICES}/marin")[0] == 403
    kept = tmp_path / f"{card['id']}.wav"
    assert kept.stat().st_mode & 0o077 == 0
    with serve(spoken_engine, voice_folder=tmp_path) as second:
        assert names(second) == ["default", "marin", "Anna"]
        status, _, spoken = second.request(
            "POST",
            SPEECH,
            json.dumps({"input": "Hi.", "voice": "Anna", "response_format": "pcm"}).encode(),
            {"content-type": "application/json"},
        )
        assert (status, bool(spoken)) == (200, True)
        assert second.request("DELETE", f"{VOICES}/{card['id']}")[0] == 200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["marin.wav"]


def names(live: Live) -> list[str]:
    return [card["name"] for card in json.loads(live.request("GET", VOICES)[2])["data"]]
