"""MiniCPM prompts continued, with tools, or written by the caller in the model's own notation."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from minicpm_prompts import (
    bounds,
    check,
    film,
    picture,
    sound,
    user,
)

from sensorium.errors import RequestError
from sensorium.models.minicpm_processor import Processor
from sensorium.types import ChatOptions, Media, Message


@pytest.fixture(scope="module")
def tiny(golden_core: Path) -> Processor:
    return Processor(golden_core / "minicpmo45" / "tiny")


def test_a_final_message_can_be_continued(tiny: Processor):
    messages = [*user("Name a colour."), Message("assistant", ("I like ",))]
    prompt = tiny.chat(messages, ChatOptions(continue_final_message=True))
    assert prompt.text == (
        "<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nI like "
    )
    assert tiny.tokenizer.decode(prompt.ids[-7:]) == "I like "


def test_tools_reach_the_template(tiny: Processor):
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"é": 1}}}
    text = tiny.chat(user("x"), ChatOptions(tools=(tool,))).text or ""
    assert '<tools>\n{"type": "function", "function": {"name": "weather", "parameters": {"é": 1}}}\n</tools>' in text


def test_raw_text(tiny: Processor):
    shown, heard = picture(900, 600), sound()
    text = "<|im_start|>user\n{}\n{}\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    bare = tiny.raw(text.format("<image>./</image>", "<audio>./</audio>"), [heard, shown], ChatOptions())
    bracketed = tiny.raw(text.format("(<image>./</image>)", "(<audio>./</audio>)"), [shown, heard], ChatOptions())
    check(bare, tiny)
    assert bare.ids == bracketed.ids
    chat = tiny.chat(user(shown, heard, "What?"), ChatOptions(template_kwargs={"enable_thinking": True}))
    assert chat.ids == (*bare.ids, tiny.tokenizer.id("<|tts_bos|>"))
    assert tiny.tokenizer.control_ids["<|listen|>"] not in tiny.raw("a<|listen|>b", (), ChatOptions()).ids


def test_raw_video(tiny: Processor):
    prompt = tiny.raw("(<video>./</video>)\nx", [film()], ChatOptions())
    check(prompt, tiny)
    assert len(prompt.spans) == 3


@pytest.mark.parametrize(
    ("text", "count"),
    [("no placeholder", 1), ("<image>./</image>", 0), ("<image>./</image><image>./</image>", 1),
     ("<image>./</image>", 2), ("<audio>./</audio>", 1), ("a <unk> b", 0), ("<image><unk></image>", 0)],
)  # fmt: skip
def test_h178_raw_text_and_media_must_agree(tiny: Processor, text: str, count: int):
    with pytest.raises(RequestError):
        tiny.raw(text, [picture()] * count, ChatOptions())


def test_raw_ids(tiny: Processor):
    shown, heard = picture(900, 600), sound()
    chat = tiny.chat(user(heard, shown, "x"), ChatOptions(media_kwargs={"use_image_id": False}))
    prompt = tiny.raw(chat.ids, [shown, heard], ChatOptions())
    check(prompt, tiny)
    assert prompt.ids == chat.ids
    assert bounds(prompt) == bounds(chat)
    assert [prompt.media[span.media].key for span in prompt.spans] == [
        chat.media[span.media].key for span in chat.spans
    ]
    assert tiny.raw([1, 2, 3], (), ChatOptions()).ids == (1, 2, 3)


def test_h178_h179_raw_ids_must_be_ids_and_fit_the_media(tiny: Processor):
    unk, size = tiny.tokenizer.id("<unk>"), tiny.tokenizer.vocab_size
    chat = tiny.chat(user(picture(), "x"), ChatOptions())
    shorter = tuple(token_id for position, token_id in enumerate(chat.ids) if position != chat.spans[0].start)
    wrong: list[tuple[Sequence[Any], list[Media]]] = [
        ([-1], []), ([size], []), ([2**31], []), ([2**63], []), ([1.0], []), (["1"], []), ([True], []),
        ([unk], []), (chat.ids, []), ([1, 2], [picture()]), (chat.ids, [picture(), picture()]), (shorter, [picture()]),
    ]  # fmt: skip
    for ids, media in wrong:
        with pytest.raises(RequestError):
            tiny.raw(ids, media, ChatOptions())


def test_threads_share_one_processor(tiny: Processor):
    shown = picture(900, 600)
    wanted = tiny.chat(user(shown, "x <unk>"), ChatOptions()).ids
    found: list[tuple[int, ...]] = []
    threads = [
        threading.Thread(target=lambda: found.append(tiny.chat(user(shown, "x <unk>"), ChatOptions()).ids))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 4
