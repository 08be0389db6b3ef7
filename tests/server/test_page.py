"""The page in a real browser: asking, attaching, recording, stopping, keys. Skips where no Chromium is installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from server import samples
from server.browser import Page, find_browser
from server.live import Live, eventually, serve

from sensorium.engine.client import EngineClient
from sensorium.server.page import WEB

ANSWERED = "document.querySelector('.answer:last-child[aria-busy=false]')"
READY = "document.querySelector('#status')?.dataset.state === 'ok'"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium is installed")
    page = Page(program, tmp_path_factory.mktemp("profile"))
    yield page
    page.close()


@pytest.fixture
def page(browser: Page, live: Live) -> Iterator[Page]:
    browser.complaints.clear()
    browser.size(1000, 700)
    browser.call("Page.navigate", url=f"{live.url}/")
    browser.wait(READY)
    yield browser
    assert browser.complaints == []


def ask(page: Page, text: str) -> None:
    page.run(f"document.querySelector('#question').value = {json.dumps(text)}")
    page.run("document.querySelector('#composer').requestSubmit()")


def test_a_drawn_example_is_asked_about_and_answered(page: Page):
    page.wait("document.querySelector('#status').textContent === 'tiny'")
    page.run("document.querySelector('[data-example=count]').click()")
    page.wait(ANSWERED)
    assert page.run("document.querySelector('.question p').textContent").startswith("How many ")
    assert page.run("document.querySelector('.question img').naturalWidth") == 448
    assert "tokens" in page.run("document.querySelector('.answer footer').textContent")
    page.run("document.querySelector('#new').click()")
    assert page.run("document.querySelectorAll('#log li').length") == 0


def test_pictures_sounds_and_videos_can_be_attached(page: Page, tmp_path: Path):
    files = {"picture.png": samples.picture(), "sound.wav": samples.sound(), "clip.mp4": samples.video()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    page.choose_files("#files", *(tmp_path / name for name in files))
    page.wait("document.querySelectorAll('#attachments li').length === 3")
    page.run("document.querySelector('#attachments li:last-child button').click()")
    assert page.run("document.querySelectorAll('#attachments li').length") == 2
    ask(page, "What are these?")
    page.wait(ANSWERED)
    assert page.run("document.querySelectorAll('.question img, .question audio').length") == 2
    assert page.run("document.querySelector('.failure')") is None
    assert page.run("document.querySelectorAll('#attachments li').length") == 0


def test_a_recording_becomes_part_of_the_question(page: Page):
    page.run("document.querySelector('#record').click()")
    page.wait("document.querySelector('#record').ariaPressed === 'true'")
    page.run("new Promise((done) => setTimeout(done, 300))")  # what a recorder needs to have something
    page.run("document.querySelector('#record').click()")
    page.wait("document.querySelectorAll('#attachments audio').length === 1")
    ask(page, "")
    page.wait(ANSWERED)
    assert page.run("document.querySelector('.failure')") is None


def test_stopping_ends_the_answer_and_the_work(page: Page, live: Live):
    # Long enough to be caught: the page asks for no limit, and the context is the only one.
    ask(page, "Count on and on. " * 40)
    page.wait("document.querySelector('#send').classList.contains('stop') || " + ANSWERED)
    page.run("document.querySelector('#composer').requestSubmit()")
    page.wait(ANSWERED)
    assert eventually(lambda: live.engine.num_requests == 0)
    assert page.run("document.querySelector('#send').ariaLabel") == "Send"


def test_a_fault_is_shown_where_the_answer_would_be(page: Page):
    page.run("""
        const data = new DataTransfer();
        data.items.add(new File(["no picture"], "broken.png", { type: "image/png" }));
        document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
    """)
    page.wait("document.querySelectorAll('#attachments li').length === 1")
    ask(page, "What is that?")
    page.wait(ANSWERED)
    assert "not a" in page.run("document.querySelector('.failure').textContent")
    page.complaints.clear()  # the browser notes the 400, and the picture it cannot show


@pytest.mark.parametrize("size", [(900, 300), (200, 1200), (40, 30)])
def test_a_picture_s_frame_is_as_large_as_the_picture(page: Page, tmp_path: Path, size: tuple[int, int]):
    (tmp_path / "picture.png").write_bytes(samples.picture(*size))
    page.choose_files("#files", tmp_path / "picture.png")
    page.wait("document.querySelectorAll('#attachments li').length === 1")
    ask(page, "What is this?")
    page.wait(ANSWERED)
    sides = page.run("""
        ["", " img"].map((part) => document.querySelector(".picture" + part).getBoundingClientRect())
            .map((shape) => [Math.round(shape.width), Math.round(shape.height)])
    """)
    assert sides[0] == sides[1], "boxes are placed by shares of the frame"


def test_boxes_in_an_answer_are_drawn_on_the_picture(page: Page):
    page.run("document.querySelector('[data-example=box]').click()")
    page.wait(ANSWERED)
    drawn = page.run("""
        (async () => {
            const { drawBoxes } = await import("./boxes.js");
            const picture = document.querySelector(".picture");
            picture.querySelectorAll("span").forEach((box) => box.remove());
            drawBoxes(picture, "<ref>star</ref><box>100 200 300 600</box> and <box>0 0 500 500</box>");
            const boxes = [...picture.querySelectorAll("span")];
            return boxes.map((box) => [box.style.left, box.style.height, box.textContent]);
        })()
    """)
    assert drawn == [["10%", "40%", "star"], ["0%", "50%", ""]]


def test_the_key_is_asked_for_and_used(browser: Page, engine: EngineClient):
    with serve(engine, api_keys=("open sesame",)) as locked:
        browser.call("Page.navigate", url=f"{locked.url}/")
        browser.wait("document.querySelector('#login')?.open")
        browser.run("document.querySelector('#key').value = 'open sesame'")
        browser.run("document.querySelector('#login button').click()")
        browser.wait(READY + " && document.querySelector('#status').textContent !== 'needs a key'")
        ask(browser, "Hello?")
        browser.wait(ANSWERED)
        assert browser.run("document.querySelector('.failure')") is None
        browser.call("Page.navigate", url="about:blank")
    browser.complaints.clear()


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_can_be_read(page: Page, dark: bool):
    page.size(360, 640, dark=dark)
    page.run("document.querySelector('[data-example=colour]').click()")
    page.wait(ANSWERED)
    assert page.run("document.documentElement.scrollWidth") <= 360
    contrast = """
        (() => {
            const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
            const light = (colour) => {
                canvas.fillStyle = colour;
                canvas.fillRect(0, 0, 1, 1);
                const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
                    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const page = light(getComputedStyle(document.body).backgroundColor);
            return ["h1", "#status", ".answer p", ".answer footer"].map((name) => {
                const text = light(getComputedStyle(document.querySelector(name)).color);
                return (Math.max(text, page) + 0.05) / (Math.min(text, page) + 0.05);
            });
        })()
    """
    assert min(page.run(contrast)) >= 4.5


def test_the_page_is_small_and_needs_no_other_host(live: Live):
    files = [path for path in WEB.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 64 << 10
    for path in files:
        name = "" if path.name == "index.html" else path.name
        status, headers, content = live.request("GET", f"/{name}")
        assert status == 200
        assert content == path.read_bytes()
        assert "default-src 'none'" in headers["content-security-policy"]
        assert live.request("GET", f"/{name}", None, {"if-none-match": headers["etag"]})[0] == 304
        assert b"//" not in content.replace(b"http://www.w3.org/2000/svg", b"").replace(b"// ", b"")
