"""Rules of media and templates that seed 003 relies on, through a server: patience, damaged frames, chat templates."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media.clips import video_file
from PIL import Image
from server import samples
from server.live import Live, serve

from sensorium.config import EngineConfig, MediaLimits
from sensorium.engine.client import EngineClient
from sensorium.messages import read_media

TEXT = {"type": "text", "text": "What is it?"}


@contextmanager
def served(model: Path, settings: dict[str, Any] | None = None, **server: Any) -> Iterator[Live]:
    base = {"max_model_len": 1024, "kv_cache_bytes": 32 << 20, "media_threads": 1}
    with (
        EngineClient(EngineConfig(model=str(model), **(base | (settings or {})))) as engine,
        serve(engine, served_model_name="m", **server) as live,
    ):
        yield live


def chat(*parts: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": [*parts, TEXT]}], "max_tokens": 4, **more}


# ---- S003-20, -23, -29: how long a host is waited for ---------------------------------------------------------------


class SlowHost:
    """Leaves the first request for each path without an answer until it is closed."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files
        self.asked: dict[str, int] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="slow-host")
        self._ready = threading.Event()
        self._thread.start()
        self._ready.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        self.asked[path] = self.asked.get(path, 0) + 1
        if self.asked[path] == 1:
            await self._over.wait()
        else:
            body = self._files[path]
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
            await writer.drain()
        writer.close()


KINDS = {"/image": ("image_url", "IMAGE"), "/video": ("video_url", "VIDEO"), "/audio": ("audio_url", "AUDIO")}


@contextmanager
def slow_host() -> Iterator[SlowHost]:
    files = {"/image": samples.picture(), "/video": samples.video(), "/audio": samples.sound()}
    host = SlowHost(files)
    try:
        yield host
    finally:
        host.close()


@pytest.mark.parametrize(("prefix", "attempts"), [("SENSORIUM_", 1), ("VLLM_", 1), ("VLLM_", 2)])
def test_how_long_a_host_is_waited_for(
    packaged_model: Path, monkeypatch: pytest.MonkeyPatch, prefix: str, attempts: int
):
    """The host never answers the first request for a thing; without another attempt that is a 504."""
    patience = {path: 0.6 + number / 10 for number, path in enumerate(KINDS)}
    for path, (_, name) in KINDS.items():
        monkeypatch.setenv(f"{prefix}{name}_FETCH_TIMEOUT", str(patience[path]))
    monkeypatch.setenv(f"{prefix}MEDIA_FETCH_MAX_RETRIES", str(attempts))
    with slow_host() as host, ThreadPoolExecutor(len(KINDS)) as pool:
        address = f"127.0.0.1:{host.port}"
        with served(packaged_model, {"limits": MediaLimits(allowed_domains=(address,))}) as live:
            bodies = [
                chat({"type": kind, kind: {"url": f"http://{address}{path}"}}) for path, (kind, _) in KINDS.items()
            ]
            answers = dict(zip(KINDS, pool.map(live.post, bodies), strict=True))
    assert host.asked == dict.fromkeys(KINDS, attempts)
    for path, (status, answer) in answers.items():
        name = KINDS[path][1]
        if attempts > 1:
            assert status == 200, answer
            continue
        assert status == 504, answer
        assert f"127.0.0.1 took more than {patience[path]:g} s" in answer["error"]["message"]
        assert f"{name}_FETCH_TIMEOUT" in answer["error"]["message"]
        assert answer["error"]["param"].startswith("messages[0].content[0]")


# ---- S003-24: frames that damage took ------------------------------------------------------------------------------


def film(shades: list[int], damaged: set[int] = frozenset()) -> dict[str, Any]:  # pyright: ignore
    """A part with a film of grey frames, each coded for itself; of the damaged ones the bytes are gone."""
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as file:
        stream = file.add_stream("mjpeg", rate=10, options={"qmin": "2", "qmax": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"  # pyright: ignore
        for shade in shades:
            pixels = np.full((48, 64, 3), 12 * shade, dtype=np.uint8)
            pixels[: 2 * shade + 4, : 3 * shade + 4] = 255 - 12 * shade
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))  # pyright: ignore
        file.mux(stream.encode(None))  # pyright: ignore
    data = bytearray(out.getvalue())
    with av.open(io.BytesIO(data), format="matroska") as file:
        packets = [bytes(packet) for packet in file.demux(video=0) if packet.size]
    for number in damaged:
        start = data.index(packets[number])
        data[start : start + len(packets[number])] = bytes(len(packets[number]))
    url = "data:video/x-matroska;base64," + base64.b64encode(bytes(data)).decode()
    return {"type": "video_url", "video_url": {"url": url}}


def scores(live: Live, part: dict[str, Any]) -> tuple[int, list[float]]:
    status, answer = live.post(chat(part, temperature=0, logprobs=True, ignore_eos=True))
    assert status == 200, answer
    return answer["usage"]["prompt_tokens"], [one["logprob"] for one in answer["choices"][0]["logprobs"]["content"]]


VECTORS = [
    ({6}, [0, 7, 12, 19]),
    ({6, 7, 8}, [0, 9, 12, 19]),
    (set(range(6, 13)), [0, 13, 19]),
    ({19}, [0, 6, 12]),
    (set(range(15, 20)), [0, 6, 12]),
    ({12}, [0, 6, 13, 19]),
    (set(), [0, 6, 12, 19]),
]


def test_who_stands_for_damaged_frames(packaged_model: Path):
    """A damaged film answers as one that has nothing but the frames that stand for its own."""
    every = list(range(20))
    options: dict[str, Any] = {"num_frames": 4}
    with served(packaged_model, {"media_io_kwargs": {"video": options | {"frame_recovery": True}}}) as live:
        found: dict[tuple[int, ...], Any] = {}
        for damaged, sources in VECTORS:
            wanted = found[tuple(sources)] = scores(live, film(sources))
            tokens, seen = scores(live, film(every, damaged))
            assert tokens == wanted[0], (damaged, sources)
            assert seen == pytest.approx(wanted[1], abs=1e-5), (damaged, sources)
        assert len({str(answer) for answer in found.values()}) == len(found)
        status, answer = live.post(chat(film(every, set(every))))
        assert (status, answer["error"]["param"]) == (400, "messages[0].content[0].video_url")
    with served(packaged_model, {"media_io_kwargs": {"video": options}}) as live:
        tokens, seen = scores(live, film(every, {6}))
        wanted = scores(live, film([0, 12, 19]))
        assert (tokens, seen) == (wanted[0], pytest.approx(wanted[1], abs=1e-5))


# ---- sound of videos, and all of their frames ----------------------------------------------------------------------


def clip(sound: str | None, frames: int = 50) -> dict[str, Any]:
    data = video_file(frames=frames, sound=sound)
    return {"type": "video_url", "video_url": {"url": samples.data_url("video/mp4", data)}}


def test_a_request_says_whether_a_video_is_heard(live: Live):
    def asked(part: dict[str, Any], hears: object) -> tuple[int, Any]:
        return live.post(chat(part, mm_processor_kwargs={"use_audio_in_video": hears}) | {"model": "tiny"})

    with_sound, silent = clip("aac"), clip(None)
    tokens = {hears: asked(with_sound, hears)[1]["usage"]["prompt_tokens"] for hears in (True, False, None)}
    assert tokens[True] == tokens[None] > tokens[False]
    assert asked(silent, None)[1]["usage"]["prompt_tokens"] == tokens[False]
    status, answer = asked(silent, True)
    assert (status, answer["error"]["param"]) == (400, "messages[0].content[0].video_url")
    assert "use_audio_in_video" in answer["error"]["message"]
    assert asked(with_sound, "yes")[0] == 400


def test_minus_one_is_all_frames(live: Live):
    def tokens(**video: object) -> int:
        status, answer = live.post(chat(clip(None, 12), media_io_kwargs={"video": video}) | {"model": "tiny"})
        assert status == 200, answer
        return answer["usage"]["prompt_tokens"]

    assert tokens(num_frames=4) < tokens(num_frames=-1, fps=16) < tokens(num_frames=-1) == tokens(num_frames=12)
    assert tokens(fps=-1) == tokens()
    status, _ = live.post(chat(clip(None, 12), media_io_kwargs={"video": {"num_frames": -2}}) | {"model": "tiny"})
    assert status == 400


# ---- S003-32: chat templates ---------------------------------------------------------------------------------------


def without_template(source: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in source.iterdir():
        if path.name == "tokenizer_config.json":
            config = json.loads(path.read_text("utf-8"))
            config.pop("chat_template", None)
            (folder / path.name).write_text(json.dumps(config), "utf-8")
        elif not path.name.startswith("chat_template"):
            (folder / path.name).symlink_to(path)
    return folder


def test_a_model_without_a_template_needs_one(packaged_model: Path, tmp_path: Path):
    model = without_template(packaged_model, tmp_path / "model")
    with served(model) as live:
        status, answer = live.post(chat())
        assert status == 400
        assert "--chat-template" in answer["error"]["message"]
        with serve(live.engine, chat_template="{{ messages[0].content }}", served_model_name="m") as other:
            assert other.post(chat())[0] == 200


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_families_bring_a_template_of_their_own(golden: Path, tmp_path: Path, name: str):
    model = without_template(golden / "models" / name, tmp_path / "model")
    with served(model) as live:
        assert live.post(chat())[0] == 200


EMBEDDING_TEMPLATE = (
    "{% for part in messages[0].content %}{{ '<image>' if part.type == 'image' else part.text }}\n{% endfor %}"
)
"""As VLM2Vec's: the picture, then what is asked of it, and no roles."""


def test_pictures_are_embedded_by_a_template_of_the_operators(golden: Path):
    pixels = np.asarray(Image.open(io.BytesIO(samples.picture())))
    png = {"type": "image_url", "image_url": {"url": samples.data_url("image/png", samples.picture())}}
    instruction = {"type": "text", "text": "Represent the given picture."}
    with served(golden / "models/llava", {"runner": "pooling"}, chat_template=EMBEDDING_TEMPLATE) as live:
        body = {"model": "m", "messages": [{"role": "user", "content": [png, instruction]}]}
        status, answer = live.post(body, "/v1/embeddings")
        assert status == 200, answer
        (vector,) = [item["embedding"] for item in answer["data"]]
        assert len(vector) == live.engine.facts.hidden_size
        written = "<image>\nRepresent the given picture.\n"
        prompt = live.engine.prepare_raw(written, [read_media("image", pixels, "")])
        assert answer["usage"]["prompt_tokens"] == len(prompt.ids)
        other = live.post(body | {"messages": [{"role": "user", "content": [instruction]}]}, "/v1/embeddings")
        assert other[1]["data"][0]["embedding"] != vector
