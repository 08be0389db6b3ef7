"""The page in a real browser: asking, attaching, recording, stopping, keys. Skips where no Chromium is installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from server import samples
from server.browser import Page, opened
from server.live import Live, eventually, serve

from sensorium.engine.client import EngineClient
from sensorium.server.page import WEB

ANSWERED = "document.querySelector('.answer:last-child[aria-busy=false]')"
READY = "document.querySelector('#status')?.dataset.state === 'ok'"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with opened(tmp_path_factory.mktemp("profile")) as page:
        yield page


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


def test_no_rate_is_told_of_tokens_that_came_together(page: Page):
    page.run("""
        const plain = window.fetch;
        window.fetch = async (...asked) => new Response(await (await plain(...asked)).arrayBuffer());
        localStorage.setItem("settings", JSON.stringify({ max_tokens: "12" }));
    """)
    ask(page, "Say hello")
    page.wait(ANSWERED)
    footer = page.run("document.querySelector('.answer footer').textContent")
    page.run("localStorage.clear()")
    assert footer.startswith("12 tokens · first after")


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


BOXES = """A <ref>star</ref><box>100 50 300 600</box><box>0 0 500 500</box>, <box>400,300,100,100</box>
and a <ref> star </ref>
<box>700 700 1200 900</box>"""


def test_boxes_in_an_answer_are_drawn_on_the_picture_with_a_legend(page: Page):
    page.run("document.querySelector('[data-example=box]').click()")
    page.wait(ANSWERED)
    script = """
        (async (text) => {
            const { drawBoxes } = await import("./boxes.js");
            const picture = document.querySelector(".picture");
            picture.nextSibling?.remove();
            const frame = picture.cloneNode(true);
            frame.querySelectorAll(".box").forEach((box) => box.remove());
            picture.replaceWith(frame);
            return drawBoxes(frame, text).map(({ className, style, textContent }) =>
                [className, style.left, style.top, style.width, style.height, textContent]);
        })
    """
    drawn = page.run(f"({script.strip()})({json.dumps(BOXES)})")
    assert drawn == [
        ["box tone-0", "10%", "5%", "20%", "55%", "star"],
        ["box tone-0", "0%", "0%", "50%", "50%", "star"],
        ["box tone-1", "10%", "10%", "30%", "20%", ""],
        ["box tone-0", "70%", "70%", "30%", "20%", "star"],
    ]
    legend = "[...document.querySelectorAll('.legend button')]"
    assert page.run(f"{legend}.map((button) => button.textContent)") == ["star × 3", "box"]
    page.run(f"{legend}[0].focus()")
    assert page.run("document.querySelectorAll('.box.shown').length") == 3
    page.run(f"{legend}[0].click()")
    assert page.run("document.querySelectorAll('.box[hidden]').length") == 3
    assert page.run(f"{legend}[0].ariaPressed") == "false"


MARKDOWN = {
    "plain *a* **b** `c*d*` ~~e~~ 2*3*4 snake_case_name": (
        "<p>plain <em>a</em> <strong>b</strong> <code>c*d*</code> <del>e</del> 2*3*4 snake_case_name</p>"
    ),
    "# One\ntext": "<h3>One</h3><p>text</p>",
    "say:\n- a\n  - b\n- c\n\n3. d": (
        '<p>say:</p><ul><li>a<ul><li>b</li></ul></li><li>c</li></ul><ol start="3"><li>d</li></ol>'
    ),
    "> q\n> - r": "<blockquote><p>q</p><ul><li>r</li></ul></blockquote>",
    "|a|b|\n|-|-|\n|1|*2*|": (
        '<div class="wide"><table><thead><tr><th>a</th><th>b</th></tr></thead>'
        "<tbody><tr><td>1</td><td><em>2</em></td></tr></tbody></table></div>"
    ),
    "---": "<hr>",
    "[x](javascript:alert(1)) <img src=x onerror=alert(1)>": (
        "<p>[x](javascript:alert(1)) &lt;img src=x onerror=alert(1)&gt;</p>"
    ),
    "see https://example.org/a.": (
        '<p>see <a href="https://example.org/a" target="_blank" rel="noopener noreferrer">https://example.org/a</a>.</p>'
    ),
    "the <ref>star</ref><box>1 2 3 4</box>": '<p>the <mark title="1 2 3 4" tabindex="0">star</mark></p>',
}


def test_markdown_becomes_elements_and_nothing_else_does(page: Page):
    script = """
        (async (texts) => {
            const { Markdown } = await import("./markdown.js");
            return texts.map((text) => {
                const [whole, grown] = [document.createElement("div"), document.createElement("div")];
                new Markdown(whole).show(text);
                const growing = new Markdown(grown);
                for (let end = 1; end <= text.length; end += 1) growing.show(text.slice(0, end));
                return [whole.innerHTML, grown.innerHTML];
            });
        })
    """
    shown = page.run(f"({script.strip()})({json.dumps(list(MARKDOWN))})")
    assert shown == [[html, html] for html in MARKDOWN.values()]


def test_code_stays_code_while_it_grows(page: Page):
    script = """
        (async () => {
            const { Markdown } = await import("./markdown.js");
            const [element, steps] = [document.createElement("div"), []];
            const markdown = new Markdown(element);
            let text = "";
            for (const more of ["first", "\\n```py\\nx = 1", "\\n# no *title*\\n```\\nlast"]) {
                text += more;
                markdown.show(text);
                steps.push([element.firstChild, element.querySelector("pre")?.textContent, element.children.length]);
            }
            return [steps.every(([first]) => first === element.firstChild), ...steps.map((step) => step.slice(1))];
        })()
    """
    assert page.run(script) == [True, [None, 1], ["x = 1", 2], ["x = 1\n# no *title*", 3]]


def test_a_question_can_be_asked_again_and_in_other_words(page: Page):
    for text in ("First?", "Second?"):
        ask(page, text)
        page.wait(ANSWERED)
    page.run("[...document.querySelectorAll('.answer:last-child .action')].pop().click()")
    page.wait(ANSWERED)
    assert page.run("document.querySelectorAll('#log li').length") == 4
    page.run("document.querySelector('.question .action').click()")
    assert page.run("document.querySelector('#question').value") == "First?"
    assert page.run("document.querySelectorAll('#log li').length") == 0


def test_settings_are_kept_and_sent(page: Page):
    page.run("""
        const form = document.querySelector("#settings-form");
        Object.assign(form.elements.max_tokens, { value: "3" });
        Object.assign(form.elements.instructions, { value: "Be brief." });
        form.dispatchEvent(new Event("input"));
    """)
    page.call("Page.reload")
    page.wait(READY)
    assert page.run("document.querySelector('#settings-form').elements.max_tokens.value") == "3"
    sent = page.run("""
        (async () => {
            const whole = window.fetch;
            let body = null;
            window.fetch = (address, options) => {
                if (options?.body) body = options.body;
                return whole(address, options);
            };
            document.querySelector("#question").value = "Who?";
            document.querySelector("#composer").requestSubmit();
            while (!body) await new Promise(requestAnimationFrame);
            return body;
        })()
    """)
    page.wait(ANSWERED)
    request = json.loads(sent)
    assert request["max_tokens"] == 3
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    assert page.run("document.querySelector('.answer footer').textContent").startswith("3 tokens")
    page.run("document.querySelector('#settings-form').reset()")
    assert page.run("localStorage.length") == 0


def test_conversations_are_kept_in_the_browser_and_come_back(page: Page):
    page.run("document.querySelector('[data-example=box]').click()")
    page.wait(ANSWERED)
    answer = page.run("document.querySelector('.answer .text').innerHTML")
    page.wait("(await (await import('./history.js')).all()).length")
    page.call("Page.reload")
    page.wait(READY)
    page.run("document.querySelector('#history').click()")
    page.wait("document.querySelector('#history-dialog').open")
    page.run("document.querySelector('#kept .choice').click()")
    assert page.run("document.querySelector('.answer .text').innerHTML") == answer
    page.wait("document.querySelector('.question img').naturalWidth === 448")
    page.run("document.querySelector('#history').click()")
    page.wait("document.querySelector('#history-dialog').open")
    page.run("document.querySelectorAll('#kept .remove').forEach((button) => button.click())")
    page.wait("(await (await import('./history.js')).all()).length === 0")
    page.run("document.querySelector('#history-dialog').close()")


def test_the_camera_takes_a_picture(page: Page):
    page.run("document.querySelector('#camera').click()")
    page.wait("document.querySelector('#camera-dialog[open] video')?.videoWidth > 0")
    page.run("document.querySelector('#camera-dialog [value=take]').click()")
    page.wait("document.querySelectorAll('#attachments img').length === 1")
    assert page.run("document.querySelector('#camera-dialog video').srcObject") is None
    page.run("document.querySelector('#camera').click()")
    page.wait("document.querySelector('#camera-dialog').open")
    page.run("document.querySelector('#camera-dialog .quiet').click()")
    page.wait("!document.querySelector('#camera-dialog video').srcObject")
    assert page.run("document.querySelectorAll('#attachments img').length") == 1


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
            const names = "h1, #status, .answer .text, .answer footer, #live-hint, #controls select, #interrupt";
            return names.split(", ").map((name) => {
                const text = light(getComputedStyle(document.querySelector(name)).color);
                return (Math.max(text, page) + 0.05) / (Math.min(text, page) + 0.05);
            });
        })()
    """
    assert min(page.run(contrast)) >= 4.5
    page.run("document.querySelector('#tab-live').click()")
    page.run("document.querySelectorAll('#controls [hidden]').forEach((one) => (one.hidden = false))")
    assert page.run("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("tab", ["chat", "live"])
def test_every_control_has_a_name_and_can_be_reached(page: Page, tab: str):
    page.wait("document.querySelector('#status').textContent === 'tiny'")  # after which the page hides nothing
    # Both halves, whatever the model can do: with all that is hidden until it is wanted.
    page.run(f"document.querySelector('#tabs').hidden = false; document.querySelector('#tab-{tab}').click()")
    page.run("document.querySelectorAll('main [hidden]:not(.tab, svg *)').forEach((one) => (one.hidden = false))")
    page.run("document.querySelectorAll('input[type=file]').forEach((one) => (one.hidden = true))")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    named = {}
    for node in nodes:
        facts = {fact["name"]: fact["value"].get("value") for fact in node.get("properties", ())}
        if not node.get("ignored") and facts.get("focusable") and node["role"]["value"] != "RootWebArea":
            named[node.get("name", {}).get("value", "")] = node["role"]["value"]
    assert "" not in named
    expected = {
        "chat": ["Your question", "Send", "Speak the answers"],
        "live": ["Start talking", "Interrupt", "What it sees"],
    }
    assert set(expected[tab]) <= set(named)
    page.run(f"document.querySelector('#tab-{tab}').focus()")
    reached = set()
    for _ in range(20):
        for kind in ("keyDown", "keyUp"):
            page.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        reached.add(page.run("document.activeElement.id"))
    last = {"chat": "send", "live": "begin"}[tab]
    assert {"settings", last} <= reached


def test_arrow_keys_change_tabs(page: Page):
    page.run("document.querySelector('#tabs').hidden = false; document.querySelector('#tab-chat').focus()")
    page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39)
    assert page.run("[document.activeElement.id, document.querySelector('#chat').hidden, location.hash]") == [
        "tab-live", True, "#live",
    ]  # fmt: skip
    page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39)
    assert page.run("[document.activeElement.id, document.querySelector('#live').hidden, location.hash]") == [
        "tab-chat", True, "",
    ]  # fmt: skip


def test_the_page_is_small_and_needs_no_other_host(live: Live):
    files = [path for path in WEB.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 160 << 10
    for path in files:
        name = "" if path.name == "index.html" else path.name
        status, headers, content = live.request("GET", f"/{name}")
        assert status == 200
        assert content == path.read_bytes()
        assert "default-src 'none'" in headers["content-security-policy"]
        assert live.request("GET", f"/{name}", None, {"if-none-match": headers["etag"]})[0] == 304
        assert b"//" not in content.replace(b"http://www.w3.org/2000/svg", b"").replace(b"// ", b"")
