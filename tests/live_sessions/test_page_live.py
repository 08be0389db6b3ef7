"""The page's live tab in a real browser on the real door: a fake camera and microphone, a tiny random model."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import pytest
from live_sessions.tools import LISTENS, LiveServer, duplex
from server.browser import Page, opened
from server.live import eventually

pytestmark = pytest.mark.slow  # the browser's microphone gives a second a second: a busy machine cannot keep up
UNITS = "document.querySelectorAll('#timeline li').length"
STATE = "document.querySelector('#live').dataset.state"
KEEP_SOCKETS = """
    window.sockets = [];
    const Plain = WebSocket;
    window.WebSocket = class extends Plain {
        constructor(...options) {
            super(...options);
            sockets.push(this);
        }
    };
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with opened(tmp_path_factory.mktemp("profile"), KEEP_SOCKETS) as page:
        yield page


@pytest.fixture
def page(browser: Page, live: LiveServer) -> Iterator[Page]:
    browser.complaints.clear()
    browser.size(390, 844)
    browser.call("Page.navigate", url="about:blank")
    browser.call("Page.navigate", url=f"{live.url}/#live")
    browser.wait("document.querySelector('#live')?.hidden === false")
    settings = json.dumps({"listen_bias": "0", "temperature": "0.01"})  # it speaks, and its turns last
    browser.run(f"localStorage.setItem('settings', {json.dumps(settings)})")
    yield browser
    assert browser.complaints == []
    browser.call("Page.navigate", url="about:blank")
    assert live.empty()


def test_the_tab_is_there_because_the_model_holds_live_sessions(live: LiveServer):
    [card] = json.loads(live.request("GET", "/v1/models")[2])["data"]
    assert "duplex" in card["capabilities"]


def click(page: Page, name: str) -> None:
    page.run(f"document.querySelector('{name}').click()")


def wait(page: Page, live: LiveServer, condition: str) -> None:
    """For as long as a busy machine may take; the server's clock goes on meanwhile."""
    for _ in range(180):
        if page.run(f"Boolean({condition})"):
            return
        live.clock.advance(0.5)
        with contextlib.suppress(RuntimeError):
            page.wait(condition, 0.5)
    page.wait(condition, 0)


def press(page: Page, key: str) -> None:
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)


def test_it_hears_sees_speaks_is_interrupted_pauses_and_ends(page: Page, live: LiveServer):
    page.run("document.querySelector('#facing').value = 'user'")
    click(page, "#begin")
    wait(page, live, "document.querySelector('#timeline .speak')")
    first = page.run("[...document.querySelectorAll('#timeline li')].map((unit) => unit.className)")
    assert first[:3] == ["listen"] * 3, "a session begins with listening"
    assert page.run("document.querySelector('#seen').videoWidth") > 0
    assert page.run("document.querySelector('#timeline img').naturalWidth") > 0
    assert "median" in page.run("document.querySelector('#latency-figures').textContent")
    wait(page, live, f"{STATE} === 'speaking'")
    press(page, "Escape")
    wait(page, live, "document.querySelector('#captions small')")
    assert page.run("document.querySelector('#captions small').textContent") == "interrupted"
    page.run("document.querySelector('#typed').value = 'What do you see?'")
    page.run("document.querySelector('#live-bar').requestSubmit()")
    assert page.run("document.querySelector('#captions .typed').textContent") == "What do you see?"
    click(page, "#pause")
    assert page.run("document.querySelector('#live-state').textContent").startswith("Paused, for 60 s")
    click(page, "#pause")
    units = page.run(UNITS)
    wait(page, live, f"{UNITS} > {units}")
    assert page.run("document.documentElement.scrollWidth") <= 390
    click(page, "#begin")
    wait(page, live, f"{STATE} === 'ended'")
    assert eventually(lambda: live.service.num_sessions == 0)
    wait(page, live, "document.querySelector('#recorded audio').duration > 3")
    assert page.run("document.querySelector('#live-problem').hidden")


def test_the_address_says_which_tab(page: Page, live: LiveServer):
    page.run("location.hash = ''")
    page.wait("document.querySelector('#live').hidden")
    page.run("location.hash = '#live'")
    page.wait("!document.querySelector('#live').hidden")
    click(page, "#tab-chat")
    assert page.run("location.hash") == ""


def test_the_newest_second_stays_in_sight_when_the_window_changes(page: Page, live: LiveServer):
    gap = "(list => list.scrollWidth - list.scrollLeft - list.clientWidth)(document.querySelector('#timeline'))"
    page.size(1200, 844)
    click(page, "#begin")
    wait(page, live, f"{UNITS} > 10")
    page.size(390, 844)
    page.wait(f"document.querySelector('#timeline').clientWidth < 400 && {gap} < 40")
    page.run("document.querySelector('#timeline').scrollLeft = 0")
    units = page.run(UNITS)
    wait(page, live, f"{UNITS} > {units}")
    assert page.run(gap) > 40, "who looks at an earlier second keeps looking at it"
    click(page, "#begin")


def test_a_lost_connection_is_taken_up_again(page: Page, live: LiveServer):
    click(page, "#begin")
    wait(page, live, f"{UNITS} === 1")
    page.run("sockets[0].close()")
    wait(page, live, f"sockets.length === 2 && {UNITS} >= 3")
    units = page.run("[...document.querySelectorAll('#timeline time')].map((one) => one.textContent)")
    assert units == sorted(set(units))
    assert live.service.num_sessions == 1
    click(page, "#tab-chat")
    assert eventually(lambda: live.service.num_sessions == 0), "who leaves the tab ends the session"


def test_it_waits_in_the_queue_until_a_place_is_free(page: Page, live: LiveServer):
    with contextlib.ExitStack() as others:
        clients = [others.enter_context(duplex(live)) for _ in range(live.engine.config.max_sessions)]
        for client in clients:
            client.start(**LISTENS)
        click(page, "#begin")
        wait(page, live, f"{STATE} === 'queued'")
        assert page.run("document.querySelector('#live-state').textContent").startswith("1st in the queue, about ")
        assert page.run("document.querySelector('#begin').textContent") == "Cancel"
        clients[0].say("stop")
        wait(page, live, f"{STATE} === 'listening'")
        click(page, "#begin")
        wait(page, live, f"{STATE} === 'ended'")


@pytest.mark.parametrize(
    ("name", "said"), [("NotAllowedError", "Allow it"), ("NotFoundError", "There is no microphone")]
)
def test_without_a_microphone_it_says_why(page: Page, live: LiveServer, name: str, said: str):
    page.run(f"navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', '{name}'))")
    click(page, "#begin")
    wait(page, live, f"{STATE} === 'failed'")
    assert said in page.run("document.querySelector('#live-problem').textContent")
    assert live.service.num_sessions == 0


def test_what_is_wrong_with_the_settings_is_said(page: Page, live: LiveServer):
    page.run("localStorage.setItem('settings', JSON.stringify({ top_p: '7' }))")
    click(page, "#begin")
    wait(page, live, f"{STATE} === 'failed'")
    assert "top_p" in page.run("document.querySelector('#live-problem').textContent")
