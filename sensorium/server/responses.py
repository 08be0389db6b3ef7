"""POST /v1/responses, and on servers that keep answers GET /v1/responses/{id} and its cancel."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response as HttpResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sensorium.config import ServerConfig
from sensorium.errors import NotFoundError, OverloadedError, RequestError
from sensorium.server.answer_form import AnswerForm
from sensorium.server.door import read_request
from sensorium.server.generation import Generation, Job, Origin, prepare_chat, send_json, unless_gone
from sensorium.server.media_rules import check_media_options, check_template
from sensorium.server.metrics import Metrics
from sensorium.server.responses_schema import (
    RESPONSES_REQUEST,
    UNSUPPORTED,
    FunctionChoice,
    JsonObjectFormat,
    JsonSchemaFormat,
    Response,
    ResponsesRequest,
    TextFormat,
    TextOptions,
    to_messages,
)
from sensorium.server.responses_stream import ResponseCodec, Silent
from sensorium.server.sampling import check_counts, check_logprobs, to_sampling
from sensorium.server.schema import SamplingFields, TokenFields, refuse_foreign
from sensorium.server.served import Served
from sensorium.server.tools import Named, ToolPlan, plan_tools
from sensorium.types import ChatOptions, Message, SamplingParams, StructuredOutputs

MAX_KEPT, MAX_KEPT_BYTES = 1024, 256 << 20
MAX_BACKGROUND = 64
_OFF = "this server keeps no answers; start it with --enable-responses-store"


@dataclass(slots=True)
class _Kept:
    """An answer, whose it is, and the conversation that led to it (in bytes: about so much)."""

    response: Response
    owner: str
    messages: list[Message]
    size: int
    task: asyncio.Task[None] | None = None


class Store:
    """Answers in memory, the oldest given up first. Only the key that asked may see one."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._size = 0

    def put(self, kept: _Kept) -> None:
        self._kept[kept.response.id] = kept
        self._size += kept.size
        while len(self._kept) > MAX_KEPT or self._size > MAX_KEPT_BYTES:
            oldest = next((name for name, item in self._kept.items() if item.task is None), None)
            if oldest is None:
                break
            self._size -= self._kept.pop(oldest).size

    def get(self, name: str, owner: str, param: str) -> _Kept:
        kept = self._kept.get(name)
        if kept is None or kept.owner != owner:
            raise NotFoundError(f"there is no response {name[:200]!r}", param=param)
        return kept

    @property
    def running(self) -> int:
        return sum(kept.task is not None for kept in self._kept.values())


def responses_routes(served: Served, config: ServerConfig, metrics: Metrics) -> list[Route]:
    door = Responses(served, config, metrics)
    return [
        Route("/v1/responses", door, methods=["POST"]),
        Route("/v1/responses/{name}", door.retrieve, methods=["GET"]),
        Route("/v1/responses/{name}/cancel", door.cancel, methods=["POST"]),
    ]


class Responses:
    """The endpoint, as raw ASGI."""

    def __init__(self, served: Served, config: ServerConfig, metrics: Metrics) -> None:
        self._served = served
        self._config = config
        self._metrics = metrics
        self._store = Store() if config.enable_responses_store else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, size = await read_request(self._served, self._config, RESPONSES_REQUEST, UNSUPPORTED, scope, receive)
        self._check(request)
        await unless_gone(receive, self._answer(request, size, scope, send))

    async def retrieve(self, request: Request) -> HttpResponse:
        return _json(self._find(request).response)

    async def cancel(self, request: Request) -> HttpResponse:
        kept = self._find(request)
        if not kept.response.background:
            raise RequestError("only a response that was made in the background can be cancelled", param="response_id")
        if kept.task is not None:
            kept.response.status = "cancelled"
            kept.task.cancel()
        return _json(kept.response)

    def _find(self, request: Request) -> _Kept:
        if self._store is None:
            raise NotFoundError(_OFF, param="response_id")
        return self._store.get(request.path_params["name"], _owner(request.scope), "response_id")

    def _check(self, request: ResponsesRequest) -> None:
        """What the types cannot say."""
        refuse_foreign(request)
        check_counts(None, None, request.stop, self._served.environment)
        check_template(request.chat_template, self._config)
        check_media_options(request.media_io_kwargs, request.mm_processor_kwargs, self._config)
        check_logprobs("top_logprobs", request.top_logprobs, self._served.client().config.max_logprobs)
        if request.structured_outputs is not None and request.text is not None and request.text.format is not None:
            raise RequestError("structured_outputs: not together with text.format", param="structured_outputs")
        if self._store is None:
            for name in ("previous_response_id", "background"):
                if getattr(request, name):
                    raise RequestError(f"{name}: {_OFF}", param=name)
        if request.background and request.stream:
            raise RequestError("stream: an answer made in the background is fetched by its id", param="stream")
        if request.background and request.store is False:
            raise RequestError("store: an answer made in the background must be kept", param="store")
        if request.top_logprobs and "message.output_text.logprobs" not in (request.include or ()):
            raise RequestError("top_logprobs: only with message.output_text.logprobs in include", param="top_logprobs")

    async def _answer(self, request: ResponsesRequest, size: int, scope: Scope, send: Send) -> None:
        client, config = self._served.client(), self._config
        origin = Origin.of(scope, "resp_", salt=request.cache_salt, priority=request.priority)
        # Never an id that a client chose: answers are kept and found by it.
        origin = replace(origin, id=f"resp_{uuid.uuid4().hex}")
        origin.facts["id"] = origin.id
        origin.note(user=request.user, session_id=request.session_id, request_id=request.request_id)
        earlier, messages = self._earlier(request, scope), to_messages(request)
        request.input = ""  # inline media would otherwise stay in memory as text until the answer is done
        opening = [Message("system", (request.instructions,))] if request.instructions else []
        tools = _tools(request, config)
        prompt = await prepare_chat(client, [*opening, *earlier, *messages], _options(request, config, tools))
        form = AnswerForm.of(config, prompt, tools)
        sampling = _sampling(request, client.default_sampling)
        sampling = replace(sampling, **form.demands(sampling.structured_outputs, client))
        generation = Generation(
            client, self._metrics, origin, [Job(prompt, sampling)], interval=request.stream_interval
        )
        response = _response(request, origin.id, self._served.name, sampling, stored=self._keeps(request))
        wants_logprobs = "message.output_text.logprobs" in (request.include or ())
        codec = ResponseCodec(
            response,
            len(prompt.ids),
            generation.tallies[0],
            form.splitter(),
            client.tokenizer.token_bytes if wants_logprobs else None,
        )
        kept = _Kept(response, _owner(scope), [*earlier, *messages], size)
        if request.background:
            self._begin(generation, codec, kept)
            await send_json(send, msgspec.json.encode(response))
            return
        if request.stream:
            await generation.stream(codec, send, config.sse_keep_alive_interval)
        else:
            await generation.reply(Silent(codec), send)
        if self._store is not None and self._keeps(request):
            self._store.put(kept)

    def _keeps(self, request: ResponsesRequest) -> bool:
        return self._store is not None and request.store is not False

    def _earlier(self, request: ResponsesRequest, scope: Scope) -> list[Message]:
        """The conversation that a response ended, its own words included."""
        if self._store is None or not request.previous_response_id:
            return []
        kept = self._store.get(request.previous_response_id, _owner(scope), "previous_response_id")
        if kept.task is not None:
            raise RequestError("previous_response_id: that response is not finished", param="previous_response_id")
        said = ResponsesRequest(input=kept.response.output)
        return [*kept.messages, *(to_messages(said) if kept.response.output else ())]

    def _begin(self, generation: Generation, codec: ResponseCodec, kept: _Kept) -> None:
        """Run on without the client."""
        assert self._store is not None
        if self._store.running >= MAX_BACKGROUND:
            raise OverloadedError(
                f"{MAX_BACKGROUND} responses are being made in the background already", reason="background"
            )

        async def run() -> None:
            try:
                await generation.run(Silent(codec))
            except asyncio.CancelledError:
                codec.response.status = "cancelled"
            except Exception as error:
                codec.fail(error)
            finally:
                kept.task = None

        kept.task = asyncio.create_task(run())
        self._store.put(kept)


def _tools(request: ResponsesRequest, config: ServerConfig) -> ToolPlan:
    functions: list[dict[str, Any]] = [
        {"name": tool.name, "description": tool.description or "", "parameters": tool.parameters or {"type": "object"}}
        for tool in request.tools or ()
    ]
    choice = request.tool_choice or "auto"
    named = Named(choice.name, "tool_choice.name") if isinstance(choice, FunctionChoice) else choice
    return plan_tools(functions, named, config, parallel=request.parallel_tool_calls is not False)


def _options(request: ResponsesRequest, config: ServerConfig, tools: ToolPlan) -> ChatOptions:
    variables = dict(config.default_chat_template_kwargs)
    if request.reasoning is not None and request.reasoning.effort is not None:
        variables |= {"reasoning_effort": request.reasoning.effort}
        variables |= {"enable_thinking": request.reasoning.effort != "none"}
    return ChatOptions(
        template_kwargs=variables | (request.chat_template_kwargs or {}),
        media_kwargs=_given(request.mm_processor_kwargs),
        media_io_kwargs={name: _given(options) for name, options in (request.media_io_kwargs or {}).items()},
        tools=tools.in_prompt,
        template=request.chat_template or config.chat_template,
        template_is_trusted=request.chat_template is None,
        content_format=config.chat_template_content_format,
        interleave=config.interleave_mm_strings,
    )


def _given(options: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (options or {}).items() if value is not None}


def _sampling(request: ResponsesRequest, defaults: SamplingParams) -> SamplingParams:
    fields: dict[str, Any] = {name: getattr(request, name) for name in TokenFields.__struct_fields__}
    sampling = to_sampling(SamplingFields(max_tokens=request.max_output_tokens, **fields), defaults)
    if "message.output_text.logprobs" in (request.include or ()):
        sampling = replace(sampling, logprobs=request.top_logprobs or 0)
    match request.text.format if request.text else None:
        case JsonSchemaFormat(schema=schema):
            return replace(sampling, structured_outputs=StructuredOutputs(json=schema))
        case JsonObjectFormat():
            return replace(sampling, structured_outputs=StructuredOutputs(json_object=True))
        case _:
            return sampling


def _response(request: ResponsesRequest, id_: str, model: str, sampling: SamplingParams, *, stored: bool) -> Response:
    return Response(
        id=id_,
        created_at=int(time.time()),
        status="in_progress",
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        model=model,
        output=[],
        parallel_tool_calls=request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        background=bool(request.background),
        prompt_cache_key=request.prompt_cache_key,
        reasoning=request.reasoning,
        safety_identifier=request.safety_identifier,
        service_tier=request.service_tier or "auto",
        store=stored,
        temperature=sampling.temperature,
        text=request.text or TextOptions(format=TextFormat()),
        tool_choice=request.tool_choice or "auto",
        tools=request.tools or [],
        top_logprobs=request.top_logprobs or 0,
        top_p=sampling.top_p,
        metadata=request.metadata or {},
        user=request.user,
    )


def _owner(scope: Scope) -> str:
    return scope["state"].get("key", "")


def _json(response: Response) -> HttpResponse:
    content = msgspec.json.encode(response)
    return HttpResponse(content, 200, {"cache-control": "no-store"}, "application/json")
