"""The page with a model that speaks: answers that are heard, voices that are chosen, added and taken away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from server import samples
from server.browser import Page, opened
from server.live import Live

ANSWERED = "document.querySelector('.answer:last-child[aria-busy=false]')"
BUTTON = "document.querySelector('.spoken .icon')"
KEEP_BODIES = """
    window.bodies = [];
    const plain = window.fetch;
    window.fetch = (address, options) => {
        if (typeof options?.body === "string") bodies.push(JSON.parse(options.body));
        return plain(address, options);
    };
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with opened(tmp_path_factory.mktemp("profile"), KEEP_BODIES) as page:
        yield page


@pytest.fixture
def page(browser: Page, speaking: Live) -> Iterator[Page]:
    browser.complaints.clear()
    browser.size(390, 844)
    browser.call("Page.navigate", url=f"{speaking.url}/")
    browser.wait("document.querySelector('#speak')?.hidden === false")
    browser.run("localStorage.setItem('settings', JSON.stringify({ max_tokens: '8', seed: '1' }))")
    yield browser
    assert browser.complaints == []
    browser.run("localStorage.clear()")


def ask(page: Page, text: str) -> None:
    page.run(f"document.querySelector('#question').value = {json.dumps(text)}")
    page.run("document.querySelector('#composer').requestSubmit()")
    page.wait(ANSWERED)


def test_an_answer_is_heard_and_can_be_heard_again(page: Page):
    page.run("document.querySelector('#speak').click()")
    ask(page, "Say hello")
    assert page.run("document.querySelector('.failure')") is None
    assert page.run("bodies[0].modalities") == ["text", "audio"]
    assert page.run("document.querySelector('.answer .text').textContent")
    assert "sound after" in page.run("document.querySelector('.answer footer').textContent")
    page.wait(f"{BUTTON}.ariaLabel === 'Play the answer'")
    page.run(f"{BUTTON}.click()")
    page.wait(f"{BUTTON}.ariaLabel === 'Stop the voice'")
    page.run(f"{BUTTON}.click()")
    assert page.run(f"{BUTTON}.ariaLabel") == "Play the answer"
    assert page.run("document.querySelector('.spoken .action').textContent") == "Download"
    assert page.run("document.documentElement.scrollWidth") <= 390
    page.wait("(await (await import('./history.js')).all()).length")
    page.call("Page.reload")
    page.wait("document.querySelector('#speak')?.hidden === false")
    page.run("document.querySelector('#history').click()")
    page.wait("document.querySelector('#history-dialog').open")
    page.run("document.querySelector('#kept .choice').click()")
    page.wait(f"{BUTTON}?.ariaLabel === 'Play the answer'")


def test_without_the_button_answers_are_text(page: Page):
    ask(page, "Say hello")
    assert page.run("'modalities' in bodies[0]") is False
    assert page.run("document.querySelector('.spoken')") is None


def test_a_voice_is_added_spoken_in_and_taken_away(page: Page, tmp_path: Path):
    (tmp_path / "ada.wav").write_bytes(samples.sound(4.0))
    page.run("document.querySelector('#settings').click()")
    names = "[...document.querySelectorAll('#voice option')].map((one) => one.textContent)"
    assert page.run(names) == ["Default voice"]
    page.run("document.querySelector('#add-voice').click()")
    page.run("document.querySelector('#voice-name').value = 'Ada'")
    page.run("document.querySelector('#save-voice').click()")
    assert page.run("document.querySelector('#voice-dialog').open"), "nobody has said yet that its owner agrees"
    page.run("document.querySelector('#voice-consent').checked = true")
    page.run("document.querySelector('#save-voice').click()")
    page.wait("!document.querySelector('#voice-problem').hidden")
    page.choose_files("#voice-file", tmp_path / "ada.wav")
    page.wait("document.querySelector('#voice-clip audio')")
    page.run("document.querySelector('#save-voice').click()")
    page.wait("!document.querySelector('#voice-dialog').open")
    assert page.run(names) == ["Default voice", "Ada"]
    assert page.run("document.querySelector('#live-voice').selectedOptions[0].textContent") == "Ada"
    page.run("document.querySelector('#settings-dialog').close()")
    page.run("document.querySelector('#speak').click()")
    ask(page, "Say hello")
    assert page.run("document.querySelector('.failure')") is None
    assert page.run("bodies.at(-1).audio.voice === document.querySelector('#voice').value")
    page.run("document.querySelector('#forget-voice').click()")
    page.wait(f"{names}.length === 1")
    assert page.run("JSON.parse(localStorage.getItem('settings')).voice") == ""


def test_no_voice_can_be_added_where_recordings_are_not_listened_to(
    page: Page, speaking: Live, monkeypatch: pytest.MonkeyPatch
):
    assert page.run("document.querySelector('#add-voice').hidden") is False
    monkeypatch.setattr(speaking.engine._speech, "can_clone", False)
    page.call("Page.reload")
    page.wait("document.querySelectorAll('#voice option').length && document.querySelector('#add-voice').hidden")


def test_a_recording_that_is_no_voice_is_refused_in_words(page: Page, tmp_path: Path):
    (tmp_path / "short.wav").write_bytes(samples.sound(1.0))
    page.run("document.querySelector('#settings').click(); document.querySelector('#add-voice').click()")
    page.run(
        "document.querySelector('#voice-name').value = 'Bo'; document.querySelector('#voice-consent').checked = true"
    )
    page.choose_files("#voice-file", tmp_path / "short.wav")
    page.wait("document.querySelector('#voice-clip audio')")
    page.run("document.querySelector('#save-voice').click()")
    page.wait("!document.querySelector('#voice-problem').hidden")
    assert "1.0 seconds; 3 to 15" in page.run("document.querySelector('#voice-problem').textContent")
    page.complaints.clear()  # the browser notes the 400
