"""What a chat request asks for, checked and brought into the engine's terms. Pure functions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from sensorium.config import ServerConfig
from sensorium.errors import RequestError, UnsupportedError
from sensorium.params import SamplingParams
from sensorium.server.answer_form import AnswerForm
from sensorium.server.beams import check_beams
from sensorium.server.chat_schema import WITHOUT_EFFECT, ChatRequest, NamedTool
from sensorium.server.media_rules import check_media_options, check_template
from sensorium.server.messages import Reading, read_messages
from sensorium.server.sampling import check_logprobs, to_rule, to_sampling
from sensorium.server.schema import refuse_foreign
from sensorium.server.speech.voices import require_speech
from sensorium.server.tools import Named, ToolPlan, plan_tools
from sensorium.types import ChatOptions, Message

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient

log = logging.getLogger(__name__)
_DEFAULTS = ServerConfig()
_told: set[str] = set()


def check(request: ChatRequest, client: EngineClient, config: ServerConfig) -> None:
    """What the types cannot say: fields that make sense only together, or only for some servers."""
    _check_together(request)
    if speaks(request):
        require_speech(client, "modalities")
        _check_spoken(request)
    refuse_foreign(request)
    for name in WITHOUT_EFFECT:
        if getattr(request, name) is not None and name not in _told:
            _told.add(name)
            log.warning("requests send %s, which has no effect here; this is said once", name)
    most = client.config.max_logprobs
    check_logprobs("top_logprobs", request.top_logprobs, most)
    check_logprobs("prompt_logprobs", request.prompt_logprobs, most)
    for name in ("max_completion_tokens", "max_tokens"):
        if (getattr(request, name) or 0) > client.max_model_len:
            reason = f"{name}: {getattr(request, name)} is more than this model's context of {client.max_model_len}"
            raise RequestError(reason, param=name)
    if (request.min_tokens or 0) >= client.max_model_len:
        raise RequestError("min_tokens: larger than the context", param="min_tokens")
    if request.priority and client.config.scheduling_policy != "priority":
        raise RequestError("priority: needs a server started with --scheduling-policy priority", param="priority")


def _check_together(request: ChatRequest) -> None:
    limit = request.max_completion_tokens or request.max_tokens
    wrong = {
        "stream_options": (request.stream_options is not None and not request.stream, "only with stream"),
        "top_logprobs": (bool(request.top_logprobs) and not request.logprobs, "only with logprobs"),
        "prompt_logprobs": (bool(request.prompt_logprobs) and bool(request.stream), "not with stream"),
        "continue_final_message": (
            bool(request.add_generation_prompt and request.continue_final_message),
            "not together with add_generation_prompt",
        ),
        "min_tokens": (limit is not None and (request.min_tokens or 0) > limit, "larger than max_tokens"),
        "best_of": (request.best_of not in (None, request.n or 1), "must equal n"),
        "length_penalty": (
            request.length_penalty is not None and not request.use_beam_search,
            "only with use_beam_search",
        ),
        "truncation_side": (
            request.truncation_side is not None and request.truncate_prompt_tokens is None,
            "only with truncate_prompt_tokens",
        ),
        "truncate_prompt_tokens": (request.truncate_prompt_tokens == 0, "must be at least 1, or -1"),
        "tools": (request.tools == [], "must not be empty; leave it out instead"),
        "tool_choice": (request.tools is None and request.tool_choice not in (None, "none"), "only with tools"),
        "parallel_tool_calls": (request.parallel_tool_calls is False and request.tools is None, "only with tools"),
        "audio": (request.audio is not None and not speaks(request), "only with modalities that name audio"),
        "add_special_tokens": (
            bool(request.add_special_tokens),
            "a conversation has the special tokens of its chat template",
        ),
    }
    if request.use_beam_search:
        check_beams(request)
    for name, (is_wrong, reason) in wrong.items():
        if is_wrong:
            raise RequestError(f"{name}: {reason}", param=name)


def speaks(request: ChatRequest) -> bool:
    """Whether the answer is to be heard."""
    return "audio" in (request.modalities or ())


def _check_spoken(request: ChatRequest) -> None:
    """What an answer that is heard cannot be."""
    form = request.audio.format if request.audio else None
    wrong = {
        "n": ((request.n or 1) > 1, "one answer is spoken at a time"),
        "use_beam_search": (bool(request.use_beam_search), "an answer of beams is not spoken"),
        "tools": (
            bool(request.tools) and request.tool_choice != "none",
            "a spoken answer calls no tools here; leave audio out of modalities, or use /v1/realtime",
        ),
        "audio.format": (
            bool(request.stream) and form not in (None, "pcm16"),
            "a stream has pcm16; other formats come with a whole answer, or from /v1/audio/speech",
        ),
    }
    for name, (is_wrong, reason) in wrong.items():
        if is_wrong:
            raise UnsupportedError(f"{name}: {reason}", param=name)


# ---- the prompt ---------------------------------------------------------------------------------------------------


def to_messages(
    request: ChatRequest, config: ServerConfig = _DEFAULTS, recall: Callable[[str], str | None] = lambda ident: None
) -> list[Message]:
    """The conversation, its media as references that carry their place for error messages. recall: see Reading."""
    loading: dict[str, dict[str, Any]] = {
        modality: {name: value for name, value in options.items() if value is not None}
        for modality, options in (request.media_io_kwargs or {}).items()
    }
    return read_messages(request.messages, Reading(loading, config.allow_unknown_fields, recall))


def to_options(
    request: ChatRequest, config: ServerConfig = _DEFAULTS, tools: tuple[Mapping[str, Any], ...] = ()
) -> ChatOptions:
    """Raises RequestError for options and a template that this server takes from nobody."""
    check_template(request.chat_template, config)
    check_media_options(request.media_io_kwargs, request.mm_processor_kwargs, config)
    continues = bool(request.continue_final_message)
    generates = request.add_generation_prompt
    variables = {**config.default_chat_template_kwargs, **_effort(request), **(request.chat_template_kwargs or {})}
    if request.documents is not None:
        variables["documents"] = request.documents
    processing = {name: value for name, value in (request.mm_processor_kwargs or {}).items() if value is not None}
    return ChatOptions(
        add_generation_prompt=not continues if generates is None else generates,
        continue_final_message=continues,
        template_kwargs=variables,
        media_kwargs=processing,
        tools=tools,
        template=request.chat_template or config.chat_template,
        template_is_trusted=request.chat_template is None,
        content_format=config.chat_template_content_format,
        interleave=config.interleave_mm_strings,
    )


def _effort(request: ChatRequest) -> dict[str, Any]:
    effort = request.reasoning_effort
    return {} if effort is None else {"reasoning_effort": effort, "enable_thinking": effort != "none"}


# ---- the answer ---------------------------------------------------------------------------------------------------


def functions_of(request: ChatRequest) -> list[dict[str, Any]]:
    """What the request says about each tool."""
    return [
        {name: value for name, value in msgspec.to_builtins(tool.function).items() if value is not None}
        for tool in request.tools or ()
    ]


def to_tools(request: ChatRequest, config: ServerConfig) -> ToolPlan:
    functions = functions_of(request)
    choice = request.tool_choice or "auto"
    named = Named(choice.function.name, "tool_choice.function.name") if isinstance(choice, NamedTool) else choice
    return plan_tools(functions, named, config, parallel=request.parallel_tool_calls is not False)


def plan_sampling(request: ChatRequest, client: EngineClient, form: AnswerForm) -> list[SamplingParams]:
    """One for each choice."""
    more = {"prompt_logprobs": request.prompt_logprobs, **form.demands(to_rule(request), client)}
    return [to_sampling(request, client.default_sampling, choice, **more) for choice in range(request.n or 1)]


def room_for_prompt(request: ChatRequest, client: EngineClient) -> int | None:
    """How many tokens of the prompt may be kept; None is all."""
    count = request.truncate_prompt_tokens
    if count != -1:
        return count
    return max(client.max_model_len - (request.max_completion_tokens or request.max_tokens or 1), 1)
