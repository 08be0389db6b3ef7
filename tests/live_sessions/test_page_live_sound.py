"""The live tab with a model that speaks, in a real browser: its voice is played, cut short, and goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from live_sessions.test_page_live import KEEP_SOCKETS, STATE, click, press, wait
from live_sessions.tools import LiveServer
from server.browser import Page, opened

pytestmark = pytest.mark.slow  # the browser's microphone gives a second a second: a busy machine cannot keep up
SPY = """
    window.contexts = [];
    window.given = [];
    window.told = [];
    window.loudest = 0;
    const address = URL.createObjectURL;
    URL.createObjectURL = (blob) => address.call(URL, (window.saved = blob));
    const PlainContext = AudioContext, PlainNode = AudioWorkletNode;
    window.AudioContext = class extends PlainContext {
        constructor(...options) {
            super(...options);
            contexts.push(this);
        }
    };
    window.AudioWorkletNode = class extends PlainNode {
        constructor(context, name, options) {
            super(context, name, options);
            if (name !== "speaker") return;
            window.speakers = context;
            const post = this.port.postMessage.bind(this.port);
            this.port.postMessage = (message) => {
                given.push(message.flush ? "flush" : message.sound ? message.sound.length : "end");
                post(message);
            };
            this.port.addEventListener("message", ({ data }) => {
                told.push({ ...data, given: given.length });
                const live = document.querySelector("#live");
                loudest = Math.max(loudest, Number(live.style.getPropertyValue("--said")));
            });
        }
    };
"""
INKED = """[...document.querySelectorAll("#timeline canvas.voice")].some((canvas) => canvas.width && canvas.height
    && canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value))"""
"""The page has drawn its voice."""
SILENT = "one.waiting === 0 && one.level === 0"
SUM = "given.filter((one) => one > 0).reduce((a, b) => a + b, 0)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with opened(tmp_path_factory.mktemp("profile"), KEEP_SOCKETS + SPY) as page:
        yield page


@pytest.fixture
def page(browser: Page, speaking: LiveServer) -> Iterator[Page]:
    browser.size(390, 844)
    browser.call("Page.navigate", url=f"{speaking.url}/#live")
    browser.wait("document.querySelector('#live')?.hidden === false")
    settings = json.dumps({"listen_bias": "0", "temperature": "0.01"})  # it speaks, and its turns last
    browser.run(f"localStorage.setItem('settings', {json.dumps(settings)})")
    yield browser
    assert browser.complaints == []
    browser.call("Page.navigate", url="about:blank")


def test_its_voice_is_played_cut_short_and_goes_on_after_a_lost_line(page: Page, speaking: LiveServer, tmp_path: Any):
    page.run("document.querySelector('#facing').value = 'user'")
    click(page, "#begin")

    # What comes is decoded and played: the device takes it, its clock runs, and the page shows how loud it is.
    wait(page, speaking, f"{STATE} === 'speaking' && told.some((one) => one.level > 0.01)")
    wait(page, speaking, "loudest > 0.1")
    assert page.run("speakers.state") == "running"
    assert page.run("speakers.sampleRate") == 24_000
    began = page.run("speakers.currentTime")
    wait(page, speaking, f"speakers.currentTime > {began} + 0.2")
    assert page.run(f"told.at(-1).taken <= {SUM}")
    wait(page, speaking, "told.some((one) => one.waiting > 0)")
    wait(page, speaking, "document.querySelector('#captions li')")
    wait(page, speaking, INKED)
    page.screenshot(tmp_path / "speaking.png")

    # Whoever interrupts hears nothing more of that turn: what waits is thrown away.
    wait(page, speaking, "told.at(-1).waiting > 0")
    press(page, "Escape")
    wait(page, speaking, "given.includes('flush')")
    wait(
        page, speaking, "told.some((one) => one.given > given.indexOf('flush') && one.waiting === 0 && one.level === 0)"
    )
    wait(page, speaking, "document.querySelector('#captions small')")

    # The next turn is heard again, and so is what comes after a lost connection.
    wait(page, speaking, "given.lastIndexOf('flush') < given.findLastIndex((one) => one > 0)")
    heard = page.run(SUM)
    page.run("sockets[0].close()")
    wait(page, speaking, f"sockets.length === 2 && {SUM} > {heard} + 24000")
    wait(page, speaking, "told.at(-1).level > 0")
    assert speaking.service.num_sessions == 1
    page.screenshot(tmp_path / "resumed.png")

    # The recording holds both voices.
    click(page, "#begin")
    wait(page, speaking, f"{STATE} === 'ended'")
    loud = page.run("""(async () => {
        const sound = await new OfflineAudioContext(2, 1, 24000).decodeAudioData(await saved.arrayBuffer());
        return [0, 1].map((side) => sound.getChannelData(side).reduce((most, one) => Math.max(most, one)));
    })()""")
    assert min(loud) > 0.01
    page.screenshot(tmp_path / "ended.png")
