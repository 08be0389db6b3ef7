"""Chat templates: what they may do, what they may not, and text that must not become control tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sensorium.errors import CheckpointError, ContextLengthError, RequestError
from sensorium.models.chat_template import ChatTemplate, StandIns
from sensorium.models.tokenizer import Tokenizer

USER = [{"role": "user", "content": "hi"}]


@pytest.fixture
def render(tmp_path: Path) -> Callable[..., str]:
    def call(source: str, messages: list = USER, **options: object) -> str:
        template = ChatTemplate(tmp_path, {"chat_template": source, "bos_token": {"content": "<s>"}, "eos_token": None})
        return template.render(messages, add_generation_prompt=True, **options)

    return call


@pytest.mark.parametrize(
    ("source", "rendered"),
    [
        ("{{ bos_token }}{{ messages[0].content }}", "<s>hi"),
        ("{%- for m in messages %}\n    {{- m.role }}\n{% endfor %}x", "user\nx"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "hi"}]'),
        ("{{ {'a': 'é<'} | tojson(indent=1) }}", '{\n "a": "é<"\n}'),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "hi!"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ tools is none }}{{ add_generation_prompt }}", "TrueTrue"),
        ("{% if enable_thinking is defined and enable_thinking is false %}off{% endif %}", "off"),
    ],
)
def test_what_published_templates_use(render: Callable[..., str], source: str, rendered: str):
    assert render(source, variables={"enable_thinking": False}) == rendered


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('Only users may speak') }}",
        "{{ messages[7].content.strip() }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages[0].content + 1 }}",
        "{% for i in range(10**9) %}{% endfor %}",
    ],
)
def test_template_failures_are_request_errors(render: Callable[..., str], source: str):
    with pytest.raises(RequestError) as caught:
        render(source)
    assert caught.value.param == "messages"
    assert "__" not in caught.value.message


def test_a_template_may_explain_its_refusal(render: Callable[..., str]):
    with pytest.raises(RequestError, match="Only users may speak"):
        render("{{ raise_exception('Only users may speak') }}")


def test_giant_outputs_are_stopped_while_they_grow(render: Callable[..., str]):
    with pytest.raises(ContextLengthError):
        render("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", max_chars=10_000)


def test_the_callers_variables_cannot_replace_ours(render: Callable[..., str]):
    for name in ("messages", "tools", "add_generation_prompt", "raise_exception"):
        with pytest.raises(RequestError, match=name):
            render("x", variables={name: 1})


def test_sources(tmp_path: Path):
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    template = ChatTemplate(tmp_path, {"chat_template": named})
    assert template.render(USER, add_generation_prompt=True) == "plain"
    assert template.render(USER, add_generation_prompt=True, tools=[{}]) == "tools"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "json"}')
    assert ChatTemplate(tmp_path, {"chat_template": "config"}).render(USER, add_generation_prompt=True) == "json"
    (tmp_path / "chat_template.jinja").write_text("jinja")
    assert ChatTemplate(tmp_path, {}).render(USER, add_generation_prompt=True) == "jinja"


def test_missing_and_broken_templates(tmp_path: Path):
    with pytest.raises(RequestError, match="no chat template"):
        ChatTemplate(tmp_path, {}).render(USER, add_generation_prompt=True)
    with pytest.raises(CheckpointError):
        ChatTemplate(tmp_path, {"chat_template": "{% if %}"})


@pytest.fixture(scope="module")
def tokenizer(golden_core: Path) -> Tokenizer:
    return Tokenizer(golden_core / "minicpmo45" / "tiny")


def test_marks_hide_spellings_and_give_them_back(tokenizer: Tokenizer):
    marks = StandIns(tokenizer)
    hidden = marks.text("a <|im_end|> b <think> <|nothing|>")
    assert "<|im_end|>" not in hidden
    assert "<think>" not in hidden
    assert "<|nothing|>" in hidden
    assert marks.restore(hidden) == "a <|im_end|> b <think> <|nothing|>"
    assert "<think>" in marks.text("<think>", special_only=True)
    assert marks.tree({"<|im_end|>": ["<unk>", 1, None]}) not in ({"<|im_end|>": ["<unk>", 1, None]},)


def test_every_medium_appears_exactly_once(tokenizer: Tokenizer):
    marks = StandIns(tokenizer)
    first, second = marks.media(0), marks.media(1)
    assert marks.split(f"a{second}b{first}c", 2) == ["a", 1, "b", 0, "c"]
    for rendered in (f"a{first}", f"{first}{first}{second}", ""):
        with pytest.raises(RequestError, match="no place for media"):
            marks.split(rendered, 2)


def test_marks_cannot_be_guessed(tokenizer: Tokenizer):
    assert StandIns(tokenizer).media(0) != StandIns(tokenizer).media(0)
