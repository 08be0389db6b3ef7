"""Chat templates: what they may do, what they may not, and text that must not become control tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sensorium.errors import CheckpointError, ContextLengthError, RequestError
from sensorium.models.chat_template import ChatTemplate, StandIns, arranged
from sensorium.models.tokenizer import Tokenizer
from sensorium.types import ChatOptions, MediaRef

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


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", False),
        ("{% for m in messages %}{{ m['content'] | trim }}{% endfor %}", False),
        ("{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}", True),
        ("{% for m in messages %}{% for p in m['content'] | list %}{{ p.text }}{% endfor %}{% endfor %}", True),
        ("{% for m in messages %}{% set c = m.content %}{% for p in c %}{{ p.text }}{% endfor %}{% endfor %}", True),
        ("{% macro show(content) %}{% for p in content %}{{ p.text }}{% endfor %}{% endmacro %}x", True),
    ],
)
def test_whether_a_template_reads_parts(tmp_path: Path, source: str, parts: bool):
    template = ChatTemplate(tmp_path, {"chat_template": source})
    assert template.takes_parts(ChatOptions()) is parts
    assert template.takes_parts(ChatOptions(content_format="openai"))
    assert not template.takes_parts(ChatOptions(content_format="string"))


@pytest.mark.parametrize(
    ("parts", "interleave", "expected"),
    [
        ("ti", None, "it"),
        ("it", None, "it"),
        ("iit", None, "iit"),
        ("tti", None, "itt"),
        ("tit", None, "tit"),
        ("iti", None, "iti"),
        ("tit", False, "itt"),
        ("ti", True, "ti"),
    ],
)
def test_where_media_stand_in_one_string(parts: str, interleave: bool | None, expected: str):
    image = MediaRef("image", "data:,")
    written = ["text" if letter == "t" else image for letter in parts]
    assert "".join("t" if isinstance(part, str) else "i" for part in arranged(written, interleave)) == expected


def test_developers_speak_as_the_system_where_they_are_not_known(render: Callable[..., str]):
    messages = [{"role": "developer", "content": "x"}]
    assert render("{{ messages[0].role }}", messages) == "system"
    assert render("{% if messages[0].role == 'developer' %}known{% endif %}", messages) == "known"


def theirs(source: str) -> ChatOptions:
    return ChatOptions(template=source, template_is_trusted=False)


def test_a_template_of_a_request_is_rendered_elsewhere(render: Callable[..., str]):
    source = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}{{ x }}"
    assert render("never", options=theirs(source), variables={"x": [1]}) == "<s>user: hi[1]"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes more than"),
        ("{{ 'x' * 10**10 }}", "does not fit|takes more"),
        ("{{ raise_exception('no') }}", "no$"),
        ("{% if %}", "chat_template: "),
        ("{{ ''.__class__ .__mro__ }}", "does not fit"),
    ],
)
def test_h259_a_template_of_a_request_cannot_do_harm(
    render: Callable[..., str], monkeypatch: pytest.MonkeyPatch, source: str, words: str
):
    monkeypatch.setenv("SENSORIUM_CHAT_TEMPLATE_RENDER_TIMEOUT", "0.3")
    with pytest.raises(RequestError, match=words) as caught:
        render("never", options=theirs(source))
    assert caught.value.param == "chat_template"


def test_a_template_of_a_request_that_writes_too_much(render: Callable[..., str]):
    with pytest.raises(ContextLengthError):
        render("never", options=theirs("{% for i in range(9999) %}xxxxxxxxxx{% endfor %}"), max_chars=1000)
