"""The openai SDK for JavaScript: chat, speech, realtime over ws with TLS, live sessions."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients.conftest import HERE, MODEL, PARSERS, run_program
from server.live import serve

from sensorium.engine.client import EngineClient

SAID = "The small bird is near the window."
FOLDER = HERE / "js"
Flow = Callable[[str], Any]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with key.pem and cert.pem for localhost."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def node() -> str:
    found = shutil.which("node")
    if found is None or not (FOLDER / "node_modules" / "openai").is_dir():
        pytest.skip("node, or the openai SDK for it, is not installed (make test-all does where npm is)")
    return found


@pytest.fixture(scope="module")
def flow(node: str, engine: EngineClient, certificate: Path, sounds: Path) -> Iterator[Flow]:
    """One flow of client.mjs; its OpenAIRealtimeWS opens wss: addresses only."""
    tls = {"ssl_keyfile": certificate / "key.pem", "ssl_certfile": certificate / "cert.pem"}
    with serve(engine, served_model_name=MODEL, **PARSERS, **tls) as live:

        def run(name: str) -> Any:
            address = f"https://localhost:{live.port}/v1"
            trusted = str(certificate / "cert.pem")
            return run_program([node, FOLDER / "client.mjs", name, address, MODEL, sounds], NODE_EXTRA_CA_CERTS=trusted)

        yield run


def told(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == kind]


def test_chat_whole_and_streamed(flow: Flow):
    answer = flow("chat")
    assert "".join(answer["pieces"]) == answer["whole"] != ""
    assert len(answer["pieces"]) > 1


def test_speech_and_a_recording(flow: Flow):
    answer = flow("speech")
    assert answer["head"] == "RIFF"
    assert 1.0 < (answer["bytes"] - 44) / 48_000 < 5.0
    assert answer["text"] == SAID


def test_a_text_is_answered(flow: Flow):
    events = flow("text")["events"]
    [done] = told(events, "response.done")
    [part] = done["response"]["output"][0]["content"]
    assert part["type"] == "output_text"
    assert part["text"] == "".join(event["delta"] for event in told(events, "response.output_text.delta")) != ""
    assert not told(events, "error")


def test_speech_is_answered_with_speech_and_cut(flow: Flow):
    events = flow("audio")["events"]
    [done] = told(events, "response.done")
    assert done["response"]["status"] == "completed"
    [part] = done["response"]["output"][0]["content"]
    assert part == {"type": "output_audio", "transcript": SAID}
    pcm = b"".join(base64.b64decode(event["delta"]) for event in told(events, "response.output_audio.delta"))
    assert np.frombuffer(pcm, "<i2").any()
    assert 1.0 < len(pcm) / 48_000 < 5.0
    [cut] = told(events, "conversation.item.truncated")
    assert (cut["item_id"], cut["audio_end_ms"]) == (done["response"]["output"][0]["id"], 500)
    assert not told(events, "error")


def test_an_answer_is_cancelled(flow: Flow):
    events = flow("cancel")["events"]
    [done] = told(events, "response.done")
    assert done["response"]["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    after = events[events.index(done) + 1 :]
    assert [event["type"] for event in after] in ([], ["rate_limits.updated"])
    assert not told(events, "error")


def test_the_server_hears_where_a_turn_ends(flow: Flow):
    events = flow("vad")["events"]
    names = [event["type"] for event in events if event["type"].startswith("input_audio_buffer")]
    assert [name.removeprefix("input_audio_buffer.") for name in names] == [
        "speech_started",
        "speech_stopped",
        "committed",
    ]
    [written] = told(events, "conversation.item.input_audio_transcription.completed")
    [done] = told(events, "response.done")
    assert written["transcript"] == done["response"]["output"][0]["content"][0]["text"] == SAID
    assert not told(events, "error")


def test_a_live_session(node: str, live_url: str, sounds: Path):
    """LiveWS takes ws: addresses too."""
    events = run_program([node, FOLDER / "client.mjs", "live", f"{live_url}/v1", "speaks", sounds])["events"]
    assert events[0]["type"] == "session.started"
    assert told(events, "session.output_transcript.delta")[0]["delta"]
    pieces = told(events, "session.output_audio.delta")
    assert {len(base64.b64decode(event["delta"])) for event in pieces} == {4800}
    assert events[-1]["type"] == "session.closed"
    assert not told(events, "error")
