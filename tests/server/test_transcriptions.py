"""/v1/audio/transcriptions with the openai SDK: what the packaged model hears, every format, streams, hostile forms."""

from __future__ import annotations

import http.client
import io
import json
import re
import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import openai
import pytest
from server import samples
from server.live import Live, eventually, serve

from sensorium.engine.client import EngineClient

PATH = "/v1/audio/transcriptions"
SPEECH = Path(__file__).resolve().parents[2] / "sensorium/packaged/demo/speech.wav"
SAID = "The small bird is near the window."


@pytest.fixture(scope="module")
def sdk(live: Live) -> Iterator[openai.OpenAI]:
    if "transcribe" not in live.engine.tasks:
        pytest.skip("the model does not transcribe")
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def twice() -> bytes:
    """The sentence, a second of silence, and the sentence again: longer than the model hears at once."""
    with wave.open(str(SPEECH)) as file:
        rate, frames = file.getframerate(), file.readframes(file.getnframes())
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(frames + np.zeros(rate * 3, "<i2").tobytes() + frames)
    return buffer.getvalue()


def form(fields: dict[str, str], file: bytes | None = None, name: str = "file") -> tuple[bytes, dict[str, str]]:
    """A form as browsers send it."""
    border = "xXborderXx"
    parts = [
        f'--{border}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
        for key, value in fields.items()
    ]
    if file is not None:
        head = f'--{border}\r\nContent-Disposition: form-data; name="{name}"; filename="a.wav"\r\n\r\n'
        parts.append(head.encode() + file + b"\r\n")
    body = b"".join([*parts, f"--{border}--\r\n".encode()])
    return body, {"content-type": f"multipart/form-data; boundary={border}"}


def test_a_sentence_of_an_unheard_voice_is_written_down(sdk: openai.OpenAI):
    with SPEECH.open("rb") as file:
        answer = sdk.audio.transcriptions.create(model="tiny", file=file)
    assert answer.text == SAID
    assert answer.usage is not None
    assert answer.usage.model_dump() == {"seconds": 3, "type": "duration"}


def test_text_comes_as_text(sdk: openai.OpenAI):
    answer = sdk.audio.transcriptions.create(model="tiny", file=SPEECH, response_format="text", language="en")
    assert answer.strip() == SAID


def test_a_verbose_answer_has_the_times(sdk: openai.OpenAI):
    file = ("twice.wav", twice())
    answer = sdk.audio.transcriptions.create(
        model="tiny", file=file, response_format="verbose_json", timestamp_granularities=["segment"], language="en"
    )
    assert answer.language == "en"
    assert answer.segments is not None
    assert answer.text == " ".join(segment.text for segment in answer.segments)
    assert answer.text.startswith(SAID)
    starts = [segment.start for segment in answer.segments]
    assert starts == sorted(starts)
    assert all(segment.start < segment.end <= float(answer.duration) for segment in answer.segments)
    assert all(segment.end - segment.start <= 5 for segment in answer.segments)
    assert all(segment.avg_logprob <= 0 < segment.compression_ratio for segment in answer.segments)
    assert float(answer.duration) == pytest.approx(2 * 50272 / 22050 + 3, abs=0.01)


def test_subtitles_have_a_cue_per_clip(sdk: openai.OpenAI):
    srt = sdk.audio.transcriptions.create(model="tiny", file=("t.wav", twice()), response_format="srt")
    assert srt.startswith("1\n00:00:00,000 --> 00:00:0")
    assert SAID in srt
    assert "\n2\n" in srt
    vtt = sdk.audio.transcriptions.create(model="tiny", file=SPEECH, response_format="vtt")
    assert vtt == f"WEBVTT\n\n00:00:00.000 --> 00:00:02.280\n{SAID}\n"


def test_a_stream_speaks_to_both_kinds_of_clients(sdk: openai.OpenAI, live: Live):
    whole = sdk.audio.transcriptions.create(model="tiny", file=("t.wav", twice())).text
    events = list(sdk.audio.transcriptions.create(model="tiny", file=("t.wav", twice()), stream=True))
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == whole
    assert "".join(event.delta for event in events if event.type == "transcript.text.delta") == whole
    body, headers = form({"stream": "true"}, twice())
    _, _, answer = live.request("POST", PATH, body, headers)
    *lines, done, _ = answer.decode().split("\n\n")
    assert done == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines]
    assert {chunk["object"] for chunk in chunks} == {"transcription.chunk"}
    assert chunks[0]["id"].startswith("trsc-")
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == whole
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["type"] == "duration"


def test_a_url_may_stand_for_the_file(live: Live, sdk: openai.OpenAI):
    url = samples.data_url("audio/wav", SPEECH.read_bytes())
    status, answer = live.post({"file_url": url}, PATH)
    assert (status, answer["text"]) == (200, SAID)


def test_leaving_ends_the_work(live: Live, sdk: openai.OpenAI):
    def aborted() -> float:
        text = live.request("GET", "/metrics")[2].decode()
        counts = re.findall(r'sensorium:request_success_total{[^}]*finished_reason="abort"[^}]*} (\S+)', text)
        return float(counts[0]) if counts else 0.0

    before = aborted()
    body, headers = form({"temperature": "2"}, samples.sound(60))  # many clips, and words that do not come to an end
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=30)
    connection.request("POST", PATH, body, headers)
    assert eventually(lambda: live.engine.num_requests > 0)
    connection.close()
    assert eventually(lambda: live.engine.num_requests == 0)
    assert eventually(lambda: aborted() > before)


def test_a_model_without_the_task_says_what_it_does(live: Live):
    body, headers = form({}, samples.sound())
    status, _, answer = live.request("POST", "/v1/audio/translations", body, headers)
    assert status == 404
    message = json.loads(answer)["error"]["message"]
    assert message == "model tiny does not support task translation; supported: generate, transcription"


@pytest.fixture(scope="module")
def translator(engine: EngineClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The packaged model with a folder that says how it is asked to translate: all that a family needs for it."""
    if "transcribe" not in engine.tasks:
        pytest.skip("the model does not transcribe")
    folder = tmp_path_factory.mktemp("translator")
    for file in Path(engine.config.model).iterdir():
        if file.name != "preprocessor_config.json":
            (folder / file.name).symlink_to(file)
    settings = json.loads((Path(engine.config.model) / "preprocessor_config.json").read_text())
    spoken = engine.speech_instructions["transcribe"]
    asked = {"transcribe": spoken, "translate": spoken, "translate:de": spoken}
    settings["speech_instructions"] = asked
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    config = replace(engine.config, model=str(folder), max_num_seqs=2)
    with EngineClient(config) as client, serve(client, served_model_name="tiny") as server:
        yield server


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # by OpenAI, whose clients still have it
def test_a_model_that_translates_is_asked_to(translator: Live):
    path = "/v1/audio/translations"
    with openai.OpenAI(base_url=f"{translator.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        with SPEECH.open("rb") as file:
            assert client.audio.translations.create(model="tiny", file=file).text == SAID
        with SPEECH.open("rb") as file:
            whole = client.audio.translations.create(model="tiny", file=file, response_format="verbose_json")
    assert (whole.text, len(whole.segments or [])) == (SAID, 1)
    body, headers = form({"stream": "true"}, SPEECH.read_bytes())
    _, _, sent = translator.request("POST", path, body, headers)
    chunks = [json.loads(line.removeprefix("data: ")) for line in sent.decode().split("\n\n")[:-2]]
    assert {chunk["object"] for chunk in chunks} == {"translation.chunk"}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == SAID
    body, headers = form({"language": "de", "response_format": "verbose_json"}, SPEECH.read_bytes())
    answer = json.loads(translator.request("POST", path, body, headers)[2])
    assert (answer["task"], answer["language"], answer["text"]) == ("translate", "de", SAID)
    body, headers = form({"language": "fr"}, SPEECH.read_bytes())
    status, _, refused = translator.request("POST", path, body, headers)
    assert (status, json.loads(refused)["error"]["param"]) == (400, "language")
    assert "it knows de" in json.loads(refused)["error"]["message"]


def test_usage_in_every_event_where_the_server_says_so(engine: EngineClient):
    if "transcribe" not in engine.tasks:
        pytest.skip("the model does not transcribe")
    with serve(engine, enable_force_include_usage=True) as server:
        body, headers = form({"stream": "true", "stream_include_usage": "false"}, SPEECH.read_bytes())
        _, _, sent = server.request("POST", PATH, body, headers)
    chunks = [json.loads(line.removeprefix("data: ")) for line in sent.decode().split("\n\n")[:-2]]
    assert all(chunk["usage"]["seconds"] for chunk in chunks)


WAV = samples.sound()
HOSTILE: dict[str, tuple[dict[str, str], bytes | None, int, str | None]] = {
    "no file": ({}, None, 400, "file"),
    "a file as text": ({"file": "abc"}, None, 422, None),
    "an empty file": ({}, b"", 400, "file"),
    "no sound": ({}, b"hello", 400, "file"),
    "half a file": ({}, WAV[:30], 400, "file"),
    "not a number": ({}, samples.float_wav([0.1, float("nan")]), 400, "file"),
    "a picture": ({}, samples.picture(), 400, "file"),
    "an unknown language": ({"language": "tlh"}, WAV, 400, "language"),
    "an unknown format": ({"response_format": "docx"}, WAV, 400, "response_format"),
    "a stream of subtitles": ({"response_format": "srt", "stream": "true"}, WAV, 400, "response_format"),
    "times of words": ({"timestamp_granularities[]": "word"}, WAV, 400, "timestamp_granularities"),
    "times in plain text": ({"timestamp_granularities[]": "segment"}, WAV, 400, "timestamp_granularities"),
    "speakers": ({"response_format": "diarized_json"}, WAV, 400, "response_format"),
    "times of words in the right format": (
        {"timestamp_granularities[]": "word", "response_format": "verbose_json"},
        WAV,
        400,
        "timestamp_granularities",
    ),
    "another language": ({"to_language": "de"}, WAV, 400, "to_language"),
    "speakers by name": ({"known_speaker_names[]": "Ada"}, WAV, 400, "known_speaker_names"),
    "arguments of extensions": ({"vllm_xargs": "{}"}, WAV, 400, "vllm_xargs"),
    "too warm": ({"temperature": "9"}, WAV, 400, "temperature"),
    "a word for a number": ({"temperature": "hot"}, WAV, 400, "temperature"),
    "hotwords": ({"hotwords": "a,b"}, WAV, 400, "hotwords"),
    "several": ({"n": "2"}, WAV, 400, "n"),
    "an unknown field": ({"langauge": "en"}, WAV, 400, "langauge"),
    "a long prompt": ({"prompt": "a" * 5000}, WAV, 400, "prompt"),
    "an endless field": ({"prompt": "a" * 100_000}, WAV, 400, "prompt"),
    "usage of no stream": ({"stream_include_usage": "true"}, WAV, 400, "stream_include_usage"),
    "another model": ({"model": "whisper-1"}, WAV, 404, "model"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_wrong_is_named(live: Live, sdk: openai.OpenAI, name: str):
    fields, file, expected, param = HOSTILE[name]
    body, headers = form(fields, file)
    status, _, answer = live.request("POST", PATH, body, headers)
    assert status == expected, answer
    error = json.loads(answer)["error"]
    assert (error["param"] or "").startswith(param or ""), error
    assert live.request("GET", "/health")[0] == 200


def test_forms_that_are_none_are_refused(live: Live, sdk: openai.OpenAI):
    for headers in ({}, {"content-type": "multipart/form-data"}, {"content-type": "text/plain"}):
        status, _, answer = live.request("POST", PATH, b"--x\r\n", headers)
        assert status in (400, 415), (headers, answer)
    whole, headers = form({"language": "en"}, WAV)
    for cut in (10, 60, 200, len(whole) - 30):
        status, _, answer = live.request("POST", PATH, whole[:cut], headers)
        assert status == 400, (cut, answer)
    body, headers = form({}, WAV, name="recording")
    assert live.request("POST", PATH, body, headers)[0] == 400


def test_a_file_past_the_limit_is_refused_as_it_arrives(engine: EngineClient):
    if "transcribe" not in engine.tasks:
        pytest.skip("the model does not transcribe")
    with serve(engine, max_audio_filesize_mb=1) as server:
        body, headers = form({}, bytes(3 << 20))
        status, _, answer = server.request("POST", PATH, body, headers)
        just_above, headers = form({}, bytes((1 << 20) + 5))
        again, _, other = server.request("POST", PATH, just_above, headers)
    assert (status, again) == (400, 400)
    for text in (answer, other):
        assert json.loads(text)["error"]["param"] == "audio_filesize_mb"
        assert "Maximum file size exceeded" in json.loads(text)["error"]["message"]
