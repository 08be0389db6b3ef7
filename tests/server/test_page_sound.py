"""What the page does with sound and frames before any server hears of it, in a real browser."""

from __future__ import annotations

import base64
import io
import json
import struct
import wave
from collections.abc import Iterator

import numpy as np
import pytest
from server.browser import Page, opened
from server.live import Live


@pytest.fixture(scope="module")
def page(live: Live, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with opened(tmp_path_factory.mktemp("profile")) as page:
        page.call("Page.navigate", url=f"{live.url}/")
        page.wait("document.querySelector('#status')?.dataset.state === 'ok'")
        yield page
        assert page.complaints == []


def call(page: Page, script: str, *arguments: object) -> object:
    return page.run(f"({script.strip()})({', '.join(map(json.dumps, arguments))})")


def resampled(page: Page, samples: np.ndarray, rate: int, piece: int) -> np.ndarray:
    script = """
        async (samples, rate, piece) => {
            const { Resampler } = await import("./resample.js");
            const resampler = new Resampler(rate, 16000);
            const out = [];
            for (let at = 0; at < samples.length; at += piece) {
                out.push(...resampler.push(Float32Array.from(samples.slice(at, at + piece))));
            }
            return out;
        }
    """
    return np.array(call(page, script, samples.round(6).tolist(), rate, piece))


@pytest.mark.parametrize("rate", [48000, 44100, 24000])
def test_the_microphone_is_resampled_without_aliases(page: Page, rate: int):
    t = np.arange(rate // 4) / rate
    low, high = np.sin(2 * np.pi * 1000 * t), np.sin(2 * np.pi * 10000 * t)
    got = resampled(page, low, rate, 128)
    assert abs(len(got) - 4000) < 60
    middle = got[500:-500]
    wanted = np.sin(2 * np.pi * 1000 * np.arange(len(got)) / 16000)[500:-500]
    assert np.abs(middle - wanted).max() < 0.01
    assert np.abs(resampled(page, high, rate, 128)[500:-500]).max() < 0.01
    assert np.allclose(got, resampled(page, low, rate, 1000)[: len(got)], atol=1e-5), "pieces make no difference"


def test_a_microphone_at_the_right_rate_is_left_alone(page: Page):
    samples = np.linspace(-1, 1, 100)
    assert np.allclose(resampled(page, samples, 16000, 30), samples)


def test_frames_are_those_of_the_protocol(page: Page):
    script = """
        async (samples) => {
            const { readSound, writeFrame } = await import("./duplex-frames.js");
            const frame = writeFrame(1, 1, 7, 2 ** 40, Int16Array.from(samples));
            const { sequence, position, samples: read, last } = readSound(frame.buffer);
            return [[...frame], sequence, position, [...read], last];
        }
    """
    samples = [0, 1, -2, 32767]
    frame, *read = call(page, script, samples)  # pyright: ignore[reportGeneralTypeIssues]
    assert bytes(frame) == struct.pack("<BBHIQ4h", 1, 1, 0, 7, 2**40, *samples)
    assert read == [7, 2**40, samples, False]


def test_a_sound_is_saved_as_wav(page: Page):
    script = """
        async (samples) => {
            const { joined, toWav } = await import("./wave.js");
            const pieces = samples.map((piece) => Int16Array.from(piece));
            const bytes = new Uint8Array(await toWav(joined(pieces), 24000).arrayBuffer());
            return btoa(String.fromCharCode(...bytes));
        }
    """
    saved = base64.b64decode(str(call(page, script, [[1, -2], [], [300]])))
    with wave.open(io.BytesIO(saved)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24000, 1, 2)
        assert struct.unpack("<3h", file.readframes(9)) == (1, -2, 300)


def test_the_speaker_plays_and_falls_silent_at_once(page: Page):
    script = """
        async () => {
            const { Speaker } = await import("./speaker.js");
            const speaker = new Speaker();
            let told = () => {};
            const report = (wanted) => new Promise((done) => (told = (data) => wanted(data) && done(data)));
            await speaker.open((data) => told(data));
            speaker.play(new Int16Array(10 * 24000).fill(9000));
            const playing = await report(({ waiting, level }) => waiting < 240000 && level > 0);
            speaker.flush();
            const silent = await report(({ waiting, level }) => !waiting && !level);
            speaker.play(new Int16Array(2400).fill(9000));
            speaker.end();
            const over = await report(({ waiting, taken }) => !waiting && taken === 242400);
            speaker.close();
            return [playing, silent, over];
        }
    """
    playing, silent, over = call(page, script)  # pyright: ignore[reportGeneralTypeIssues]
    assert playing["level"] == pytest.approx(9000 / 32768, abs=1e-3)
    assert silent["starved"] == over["starved"] == 0


def test_what_was_heard_is_found_by_its_position(page: Page):
    script = """
        async () => {
            const { Heard } = await import("./heard.js");
            const heard = new Heard(1000);
            for (let at = 0; at < 3000; at += 100) heard.sound(at, new Int16Array(100).fill(at));
            heard.picture(1500, "a picture");
            return [heard.stretch(1000, 2000, 2), heard.stretch(2500, 3500, 2)];
        }
    """
    first, second = call(page, script)  # pyright: ignore[reportGeneralTypeIssues]
    assert first == {"heights": [1400 / 32768, 1900 / 32768], "blob": "a picture"}
    assert second["heights"] == [2900 / 32768, 0]


def test_a_session_is_recorded_as_it_was_heard(page: Page):
    script = """
        async () => {
            const { Recording } = await import("./recording.js");
            const recording = new Recording(16000);
            const heard = (count) => {
                for (let piece = 0; piece < count; piece += 1) recording.heard(new Int16Array(1600).fill(1000));
            };
            heard(10);
            recording.said(new Int16Array(12000).fill(2000));
            recording.said(new Int16Array(12000).fill(3000));
            heard(10);
            recording.silence();
            heard(10);
            const bytes = new Uint8Array(await recording.save().arrayBuffer());
            return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
        }
    """
    with wave.open(io.BytesIO(base64.b64decode(str(call(page, script))))) as file:
        assert (file.getframerate(), file.getnchannels()) == (24000, 2)
        both = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    assert abs(len(both) - 72000) < 60
    assert np.abs(both[100:, 0] - 1000).max() <= 1, "all that was heard is on the left"
    spoken = both[:, 1]
    first = int(np.flatnonzero(spoken)[0])
    assert abs(first - 27600) < 60, "a second in, and the speaker's delay"
    assert (spoken[first : first + 12000] == 2000).all()
    assert (spoken[first + 12000 : 47900] == 3000).all()
    assert not spoken[48000:].any(), "what was interrupted is not in it"
