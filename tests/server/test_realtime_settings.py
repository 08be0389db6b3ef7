"""Settings of /v1/realtime beside turns and sound: retention, log-probabilities, single answers, keys for browsers."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from live_sessions.tools import LiveServer, serve_live
from server import samples
from server.live import Live
from server.test_realtime import ENDLESS, GROWS, Client, send_sound, speech, talk
from websockets.exceptions import InvalidStatus

from sensorium.engine.client import EngineClient


@pytest.fixture
def client(live: Live) -> Iterator[Client]:
    with talk(live) as client:
        client.update()
        yield client


def retention(ratio: float, most: int) -> dict[str, Any]:
    return {"type": "retention_ratio", "retention_ratio": ratio, "token_limits": {"post_instructions": most}}


def test_what_is_left_out_stays_out_until_there_is_too_much_again(client: Client):
    wanted = retention(0.5, 200)
    assert client.update(truncation=wanted)["truncation"] == wanted
    fixed = 0
    lengths = []
    for _ in range(8):
        client.say("word " * 20)
        response = client.answer(max_output_tokens=1)[-2]["response"]
        assert response["status"] != "failed", response
        lengths.append(response["usage"]["input_tokens"])
        fixed = fixed or lengths[0]
    falls = [number for number in range(1, 8) if lengths[number] < lengths[number - 1]]
    assert falls, lengths
    turn = lengths[1] - lengths[0]
    assert max(lengths) <= 200 + fixed
    assert lengths[falls[0]] <= 100 + fixed
    if falls[0] + 1 < 8:
        assert lengths[falls[0] + 1] == pytest.approx(lengths[falls[0]] + turn, abs=3), "nothing more was left out"


def test_transcripts_say_how_sure_they_are(client: Client, packaged_model: Any):
    heard = {"turn_detection": None, "transcription": {"keywords": ["bird"], "languages": ["en"]}}
    include = ["item.input_audio_transcription.logprobs"]
    session = client.update(type="transcription", audio={"input": heard}, include=include)
    assert session["include"] == include
    send_sound(client, speech())
    client.send("input_audio_buffer.commit")
    events = client.until("conversation.item.input_audio_transcription.completed")
    logprobs = events[-1]["logprobs"]
    assert b"".join(bytes(entry["bytes"]) for entry in logprobs).decode().strip().startswith(events[-1]["transcript"])
    assert all(entry["logprob"] <= 0 for entry in logprobs)
    deltas = [event for event in events if event["type"].endswith("transcription.delta")]
    assert [entry for event in deltas for entry in event["logprobs"]] == logprobs


def test_items_are_read_back_with_their_sound_and_pictures(client: Client):
    sound = speech()[:24_000]
    url = samples.data_url("image/png", samples.picture(8, 8))
    parts = [
        {"type": "input_audio", "audio": base64.b64encode(sound.tobytes()).decode()},
        {"type": "input_image", "image_url": url},
    ]
    client.send("conversation.item.create", item={"type": "message", "role": "user", "id": "a", "content": parts})
    added = client.until("conversation.item.done")[0]["item"]
    assert "audio" not in added["content"][0]
    client.send("conversation.item.retrieve", item_id="a")
    heard, seen = client.next()["item"]["content"]
    assert seen["image_url"] == url
    back = np.frombuffer(base64.b64decode(heard["audio"]), "<i2").astype(float)
    middle = slice(2000, 20_000)
    assert abs(len(back) - len(sound)) < 100
    assert np.corrcoef(back[middle], sound[middle])[0, 1] > 0.98


def test_an_answer_beside_the_conversation_is_cancelled_by_its_id(client: Client):
    client.say("Write on.")
    client.send("response.create", response={**ENDLESS, "conversation": "none", "metadata": {"topic": "aside"}})
    begun = client.until(GROWS)[0]["response"]
    assert begun["metadata"] == {"topic": "aside"}
    client.send("response.cancel")
    while (event := client.next())["type"] == GROWS:
        pass
    assert event["error"]["code"] == "response_cancel_not_active", "the conversation itself has none"
    client.send("response.cancel", response_id=begun["id"])
    done = client.until("response.done")[-1]["response"]
    assert (done["id"], done["status_details"]["reason"]) == (begun["id"], "client_cancelled")


def update(**session: Any) -> dict[str, Any]:
    return {"kind": "session.update", "session": session}


LANGUAGES = {"audio": {"input": {"transcription": {"languages": ["en", "zh"]}}}}
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a missing field": (
        {"kind": "conversation.item.truncate", "item_id": "a"},
        "audio_end_ms",
        "missing_required_parameter",
    ),
    "an unknown one": (update(voise="x"), "session.voise", "invalid_value"),
    "MCP": (update(tools=[{"server_label": "x", "type": "mcp"}]), "session.tools[0].type", "unsupported_tool"),
    "a prompt template": (update(prompt={"id": "x"}), "session.prompt", "invalid_value"),
    "a strength of noise reduction": (
        update(audio={"input": {"noise_reduction": {"type": "near_field", "strength": 0.5}}}),
        "session.audio.input.noise_reduction.strength",
        "invalid_value",
    ),
    "several languages": (update(**LANGUAGES), "session.audio.input.transcription.languages", "invalid_value"),
}


@pytest.mark.parametrize(("event", "param", "code"), REFUSED.values(), ids=REFUSED)
def test_refusals_name_their_field(client: Client, event: dict[str, Any], param: str, code: str):
    error = client.error(**event)
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize(
    ("query", "name"), [("?call_id=rtc_1", "call_id"), ("?duplex=1", "duplex"), ("?intent=x", "intent")]
)
def test_what_an_address_cannot_ask_for_is_refused(live: Live, query: str, name: str):
    with pytest.raises(InvalidStatus) as refused, talk(live, query):
        pass
    assert json.loads(refused.value.response.body or b"")["error"]["param"] == name


def test_an_address_can_ask_for_transcripts_alone(live: Live):
    with talk(live, "?intent=transcription") as client:
        assert client.error("response.create")["message"].startswith("response.create: a transcription session")


def test_the_beta_has_an_event_for_that(live: Live, packaged_model: Any):
    with talk(live, additional_headers={"openai-beta": "realtime=v1"}) as client:
        assert client.next()["type"] == "conversation.created"
        wanted = {"input_audio_format": "pcm16", "input_audio_transcription": {"model": "whisper-1"}}
        client.send("transcription_session.update", session={**wanted, "turn_detection": None})
        session = client.until("transcription_session.updated")[-1]["session"]
        assert (session["input_audio_format"], session["turn_detection"]) == ("pcm16", None)
        assert "voice" not in session
        send_sound(client, speech())
        client.send("input_audio_buffer.commit")
        done = client.until("conversation.item.input_audio_transcription.completed")[-1]
        assert "logprobs" not in done
        assert done["transcript"]


# ---- keys for browsers --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(engine: EngineClient) -> Iterator[LiveServer]:
    with serve_live(engine, served_model_name="tiny", api_keys=("open-sesame",)) as server:
        yield server


def test_a_client_secret_opens_sessions_of_its_settings_until_it_expires(locked: LiveServer):
    with openai.OpenAI(base_url=f"{locked.url}/v1", api_key="open-sesame") as sdk:
        wanted: Any = {"type": "realtime", "output_modalities": ["text"], "instructions": "Be brief."}
        secret = sdk.realtime.client_secrets.create(
            session=wanted, expires_after={"anchor": "created_at", "seconds": 60}
        )
    assert secret.value.startswith("ek_")
    assert secret.session.instructions == "Be brief."  # type: ignore[union-attr]
    browser: Any = ["realtime", f"openai-insecure-api-key.{secret.value}"]
    with talk(locked, subprotocols=browser) as client:
        assert client.update()["instructions"] == "Be brief."
    headers = {"authorization": f"Bearer {secret.value}"}
    assert locked.request("GET", "/v1/models", headers=headers)[0] == 401, "it opens nothing else"
    locked.clock.advance(61)
    with pytest.raises(InvalidStatus) as refused, talk(locked, subprotocols=browser):
        pass
    assert refused.value.response.status_code == 401


def test_a_client_secret_wants_a_key_and_good_settings(locked: LiveServer):
    key = {"authorization": "Bearer open-sesame", "content-type": "application/json"}
    path = "/v1/realtime/client_secrets"
    assert locked.request("POST", path, b"{}")[0] == 401
    for session, status in (({"model": "other"}, 404), ({"voise": "x"}, 400), ({"output_modalities": ["audio"]}, 400)):
        body = json.dumps({"session": session}).encode()
        assert locked.request("POST", path, body, key)[0] == status
