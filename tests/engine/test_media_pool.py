"""Decoding in worker processes: what an item can do to its process, and that nobody else notices. H-115, F-017."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import textwrap
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from sensorium.config import EngineConfig, MediaLimits
from sensorium.engine.checkpoint import open_processor, read_config, resolve_folder
from sensorium.engine.media_pool import MediaPool
from sensorium.errors import DecodeTimeoutError, MediaError, OverloadedError, TooLargeError
from sensorium.media.decode import decode
from sensorium.models.base import Processor
from sensorium.models.registry import load_processor
from sensorium.types import MediaRef, Prepared

LIMITS = MediaLimits(decode_timeout_s=60.0, video_decode_timeout_s=120.0)
"""Of time, more than any machine needs."""


@pytest.fixture(scope="module")
def processor() -> Processor:
    folder = resolve_folder("")
    return load_processor(folder, read_config(folder))


@contextmanager
def pool(processor: Processor, limits: MediaLimits = LIMITS, **settings: int) -> Iterator[MediaPool]:
    made = MediaPool(processor, limits, **{"workers": 1, "video_workers": 1, **settings})
    try:
        yield made
    finally:
        made.close()


def picture(width: int = 64, height: int = 48) -> MediaRef:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(out, "PNG")
    return MediaRef("image", out.getvalue(), "messages[0].content[0]")


def sound() -> bytes:
    """Half a second of silence."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(16_000))
    return out.getvalue()


@pytest.fixture(scope="module")
def long_film() -> MediaRef:
    """Takes seconds to decode: large frames, and only the first can be jumped to. The others are one, repeated."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 1280, 960, "yuv420p"
        stream.codec_context.gop_size = 10_000
        frame = av.VideoFrame.from_ndarray(np.zeros((960, 1280, 3), dtype=np.uint8), format="rgb24")
        first, again = (stream.encode(frame)[0] for _ in range(2))
        file.mux(first)
        for number in range(1, 600):
            packet = av.Packet(bytes(again))
            packet.stream, packet.time_base = stream, again.time_base
            packet.pts = packet.dts = number
            file.mux(packet)
    return MediaRef("video", out.getvalue(), "messages[0].content[0]")


async def ready(check: Callable[[], bool]) -> None:
    """Gives other tasks the loop until something has come about; the test's own timeout bounds it."""
    while not check():  # noqa: ASYNC110 - what is waited for happens in other processes
        await asyncio.sleep(0.005)


def proc(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def is_running(pid: int) -> bool:
    try:
        return proc(pid, "stat").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_pictures_come_back_as_the_processor_makes_them(processor: Processor):
    with pool(processor) as workers:
        found = await workers.prepare(picture(), {})
    media = decode(picture(), LIMITS)
    expected = processor.prepare(media, {})
    assert found.content[0].digest == expected.content[0].digest
    assert all(map(np.array_equal, found.content[0].sources, expected.content[0].sources))


async def test_errors_name_the_part(processor: Processor):
    with pool(processor) as workers, pytest.raises(MediaError, match="PNG") as caught:
        await workers.prepare(MediaRef("image", b"no picture", "messages[3].content[1]"), {})
    assert caught.value.param == "messages[3].content[1]"


@pytest.mark.parametrize("with_signal", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
async def test_a_crash_costs_one_item(processor: Processor, long_film: MediaRef, with_signal: signal.Signals):
    with pool(processor) as workers:
        doomed = asyncio.ensure_future(workers.prepare(long_film, {}))
        await ready(lambda: len(workers.pids()) == 2)
        await workers.prepare(picture(), {})  # a worker of the other lane lives on
        victim = workers.pids()[1]
        os.kill(victim, with_signal)
        with pytest.raises(MediaError, match="decoder stopped"):
            await doomed
        assert isinstance(await workers.prepare(picture(), {}), Prepared)
        assert victim not in workers.pids()
        assert workers.stats.replaced == 1


async def test_a_worker_that_was_killed_while_idle_costs_nothing(processor: Processor):
    with pool(processor) as workers:
        await workers.prepare(picture(), {})
        idle = workers.pids()[1]
        os.kill(idle, signal.SIGKILL)
        await ready(lambda: not is_running(idle))
        await workers.prepare(picture(70, 50), {})
        assert workers.stats.replaced == 0


async def test_h115_a_hanging_decoder_is_killed_at_the_deadline(processor: Processor):
    with pool(processor) as workers:
        await workers.prepare(picture(), {})
        stuck = workers.pids()[1]
        os.kill(stuck, signal.SIGSTOP)
        await ready(lambda: proc(stuck, "stat").rpartition(")")[2].split()[0] == "T")
        workers.limits = replace(LIMITS, decode_timeout_s=0.5)
        with pytest.raises(DecodeTimeoutError, match=r"0\.5 seconds"):
            await workers.prepare(picture(), {})
        workers.limits = LIMITS
        await workers.prepare(picture(), {})
        assert stuck not in workers.pids()
        await ready(lambda: not is_running(stuck))


async def test_memory_is_bounded(processor: Processor):
    limits = replace(LIMITS, decode_memory_bytes=64 << 20)
    with pool(processor, limits) as workers:
        with pytest.raises((TooLargeError, MediaError)):
            await workers.prepare(picture(8000, 6000), {})
        assert isinstance(await workers.prepare(picture(), {}), Prepared)


async def test_leaving_stops_the_work_at_once(processor: Processor, long_film: MediaRef):
    with pool(processor) as workers:
        going = asyncio.ensure_future(workers.prepare(long_film, {}))
        await ready(lambda: len(workers.pids()) == 2)
        busy = workers.pids()[1]
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going
        await ready(lambda: not is_running(busy))
        assert isinstance(await workers.prepare(picture(), {}), Prepared)


async def test_videos_never_hold_up_pictures(processor: Processor, long_film: MediaRef):
    with pool(processor) as workers:
        await workers.prepare(picture(), {})
        films = [asyncio.ensure_future(workers.prepare(long_film, {})) for _ in range(2)]
        await workers.prepare(picture(), {})
        assert not any(film.done() for film in films)
        for film in films:
            film.cancel()
        await asyncio.gather(*films, return_exceptions=True)


async def test_the_queue_is_bounded(processor: Processor, long_film: MediaRef):
    with pool(processor, max_waiting=1) as workers:
        films = [asyncio.ensure_future(workers.prepare(long_film, {})) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await workers.prepare(long_film, {})
        for film in films:
            film.cancel()
        await asyncio.gather(*films, return_exceptions=True)


async def test_the_first_process_is_replaced_too(processor: Processor):
    with pool(processor) as workers:
        await workers.prepare(picture(), {})
        first, second = workers.pids()
        os.kill(first, signal.SIGKILL)
        await ready(lambda: not is_running(second))  # workers do not outlive it
        assert isinstance(await workers.prepare(picture(), {}), Prepared)
        assert first not in workers.pids()


async def test_closing_leaves_no_process(processor: Processor):
    with pool(processor) as workers:
        await workers.prepare(picture(), {})
        pids = workers.pids()
    await ready(lambda: not any(map(is_running, pids)))


async def test_workers_hold_no_secrets_and_write_no_files(processor: Processor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SENSORIUM_API_KEY", "secret-of-the-server")
    with pool(processor) as workers:
        await workers.prepare(picture(), {})
        for pid in workers.pids():
            assert "secret-of-the-server" not in proc(pid, "environ")
        limits = proc(workers.pids()[1], "limits")
        assert "Max file size             0 " in limits
        assert "Max core file size        0 " in limits


def test_a_script_without_a_main_guard(tmp_path: Path):
    """Workers are a program of their own: what the caller's script does at the top happens once."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import io
            from PIL import Image
            from sensorium import LLM

            print("started")
            out = io.BytesIO()
            Image.new("RGB", (40, 30), "blue").save(out, "PNG")
            llm = LLM()
            text = [{"type": "text", "text": "What is this?"}, {"type": "image", "image": out.getvalue()}]
            print(len(llm.chat([{"role": "user", "content": text}], use_tqdm=False)))
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout.split() == ["started", "1"], done.stderr


async def test_a_changed_configuration_reaches_the_workers():
    folder = resolve_folder("")
    hf_config = read_config(folder) | {"batch_vision_input": True, "changed": 1}
    changed = open_processor(folder, hf_config, EngineConfig(tokenizer=str(folder)))
    with pool(changed) as workers:
        assert isinstance(await workers.prepare(picture(), {}), Prepared)


def test_sounds_may_have_workers_of_their_own(processor: Processor):
    with pool(processor) as shared, pool(processor, audio_workers=1) as apart:
        assert set(shared.waiting) == {"media", "video"}
        assert set(apart.waiting) == {"media", "video", "audio"}
        recording = MediaRef("audio", sound(), "part")
        for each in (shared, apart):
            asyncio.run(each.prepare(recording, {}))
            asyncio.run(each.prepare(picture(), {}))
        # The one worker did both; with a lane for sounds each kind has its own.
        assert [len(each.pids()) for each in (shared, apart)] == [2, 3]
