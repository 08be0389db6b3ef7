"""/v1/embeddings, /pooling, /classify, /score and /rerank: prompts as vectors, and what follows from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sensorium.config import ServerConfig
from sensorium.errors import RequestError
from sensorium.server.chat_plan import to_messages, to_options
from sensorium.server.chat_schema import ChatRequest
from sensorium.server.door import read_request, reply
from sensorium.server.generation import Generation, Job, Origin, prepare_chat, unless_gone
from sensorium.server.metrics import Metrics
from sensorium.server.pooling_schema import (
    CLASSIFY_REQUEST,
    EMBEDDING_REQUEST,
    POOLING_REQUEST,
    RERANK_REQUEST,
    SCORE_REQUEST,
    UNSUPPORTED,
    ClassifyRequest,
    Embedding,
    EmbeddingRequest,
    Embeddings,
    PooledData,
    PoolingFields,
    PoolingRequest,
    Poolings,
    PoolingUsage,
    Ranked,
    RankedDocument,
    Ranking,
    RerankRequest,
    Score,
    ScoreInput,
    ScoreInputs,
    ScoreItem,
    ScoreRequest,
    Scores,
)
from sensorium.server.prompts import PromptInput, check_length, prepare_text, split_prompts, truncate
from sensorium.server.served import Served
from sensorium.server.transcriptions import require_task
from sensorium.server.vectors import to_base64, to_bytes
from sensorium.types import PoolingParams, Prompt, SamplingParams

MAX_HEADER_BYTES = 6 << 10
_CHAT = ("add_generation_prompt", "continue_final_message", "chat_template", "chat_template_kwargs")
_MEDIA = ("mm_processor_kwargs", "media_io_kwargs")
_PAIRS = (("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2"))


def pooling_routes(served: Served, config: ServerConfig, metrics: Metrics) -> list[Route]:
    desk = Desk(served, config, metrics)

    def door(path: str, decoder: msgspec.json.Decoder[Any], prefix: str, answer: Answer, task: str = "embed") -> Route:
        return Route(path, _Door(desk, config, decoder, prefix, answer, task), methods=["POST"])

    return [
        door("/v1/embeddings", EMBEDDING_REQUEST, "embd-", _embeddings),
        door("/pooling", POOLING_REQUEST, "pool-", _pooling, "token_embed"),
        door("/classify", CLASSIFY_REQUEST, "classify-", _classify, "classify"),
        *(door(path, SCORE_REQUEST, "score-", _score) for path in ("/score", "/v1/score")),
        *(door(path, RERANK_REQUEST, "rerank-", _rerank) for path in ("/rerank", "/v1/rerank", "/v2/rerank")),
    ]


class Desk:
    """Prompts of all forms to vectors."""

    def __init__(self, served: Served, config: ServerConfig, metrics: Metrics) -> None:
        self.served = served
        self._config = config
        self._metrics = metrics

    async def texts(self, request: PoolingFields, value: PromptInput, name: str) -> list[Prompt]:
        client, special = self.served.client(), request.add_special_tokens is not False
        prompts: list[Prompt] = []
        for place, text in split_prompts(value, name):
            try:
                prompt = await prepare_text(client, text, special=special)
            except RequestError as error:
                error.param = place if error.param in (None, "prompt") else error.param
                raise
            prompts.append(self._cut(request, prompt, place))
        return prompts

    async def chat(self, request: PoolingFields, messages: list[dict[str, Any]], place: str, **options: Any) -> Prompt:
        """options: fields of ChatRequest besides those of media."""
        given: dict[str, Any] = {name: getattr(request, name) for name in _MEDIA}
        chat = ChatRequest(messages=messages, **given, **options)
        try:
            prompt = await prepare_chat(
                self.served.client(), to_messages(chat, self._config), to_options(chat, self._config)
            )
        except RequestError as error:
            error.param = (
                (error.param or "messages").replace("messages[0]", place) if place != "messages" else error.param
            )
            raise
        return self._cut(request, prompt, place)

    async def inputs(
        self, request: PoolingFields, value: PromptInput | None, messages: list[dict[str, Any]] | None, **options: Any
    ) -> list[Prompt]:
        """Of a request that has either `input` or `messages`."""
        if (value is None) == (messages is None):
            raise RequestError("input: give either input or messages", param="input")
        if messages is not None:
            return [await self.chat(request, messages, "messages", **options)]
        for name, given in options.items():
            if given is not None and given is not False:
                raise RequestError(f"{name}: only with messages", param=name)
        return await self.texts(request, "" if value is None else value, "input")

    async def pool(self, prompts: Sequence[Prompt], params: PoolingParams, origin: Origin) -> list[np.ndarray]:
        """One array per prompt."""
        jobs = [Job(prompt, SamplingParams(), params) for prompt in prompts]
        return await Generation(self.served.client(), self._metrics, origin, jobs).vectors()

    def heading(self, origin: Origin) -> dict[str, Any]:
        return {"id": origin.id, "created": int(time.time()), "model": self.served.name}

    def _cut(self, request: PoolingFields, prompt: Prompt, place: str) -> Prompt:
        limit, wanted = self.served.client().max_model_len, request.truncate_prompt_tokens
        if wanted is not None:
            prompt = truncate(prompt, limit if wanted == -1 else wanted, request.truncation_side or "right")
        elif request.truncation_side is not None:
            raise RequestError("truncation_side: only with truncate_prompt_tokens", param="truncation_side")
        check_length(prompt, limit, place)
        return prompt


Answer = Callable[[Desk, Any, Origin, Send], Coroutine[Any, Any, None]]


class _Door:
    """One endpoint, as raw ASGI."""

    def __init__(
        self,
        desk: Desk,
        config: ServerConfig,
        decoder: msgspec.json.Decoder[Any],
        prefix: str,
        answer: Answer,
        task: str,
    ) -> None:
        self._desk = desk
        self._config = config
        self._decoder = decoder
        self._prefix = prefix
        self._answer = answer
        self._task = task

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        require_task(self._desk.served, self._task)
        served, config = self._desk.served, self._config
        request: PoolingFields
        request, _ = await read_request(served, config, self._decoder, UNSUPPORTED, scope, receive)
        origin = Origin.of(
            scope, self._prefix, request_id=request.request_id, salt=request.cache_salt, priority=request.priority
        )
        origin.note(user=request.user)
        await unless_gone(receive, self._answer(self._desk, request, origin, send))


# ---- vectors ------------------------------------------------------------------------------------------------------


async def _embeddings(desk: Desk, request: EmbeddingRequest, origin: Origin, send: Send) -> None:
    _check_encoding(request)
    prompts = await _inputs(desk, request)
    vectors = await desk.pool(prompts, _params(request, "embed"), origin)
    if request.encoding_format in ("bytes", "bytes_only"):
        await _send_bytes(desk, request, origin, prompts, vectors, send)
        return
    data = [Embedding(index=index, embedding=_coded(vector, request)) for index, vector in enumerate(vectors)]
    await reply(send, Embeddings(**desk.heading(origin), data=data, usage=_usage(prompts)))


async def _pooling(desk: Desk, request: PoolingRequest, origin: Origin, send: Send) -> None:
    tasks = desk.served.client().tasks
    task = request.task or ("embed" if "embed" in tasks else "token_embed")
    require_task(desk.served, task)
    _check_encoding(request)
    prompts = await _inputs(desk, request)
    vectors = await desk.pool(prompts, _params(request, task), origin)
    if request.encoding_format in ("bytes", "bytes_only"):
        await _send_bytes(desk, request, origin, prompts, vectors, send)
        return
    coded = request.encoding_format == "base64"
    data = [
        PooledData(index=index, data=_coded(vector, request), shape=list(vector.shape) if coded else UNSET)
        for index, vector in enumerate(vectors)
    ]
    await reply(send, Poolings(**desk.heading(origin), data=data, usage=_usage(prompts)))


async def _classify(desk: Desk, request: ClassifyRequest, origin: Origin, send: Send) -> None:
    """Reached by no model there is: their tasks end a request before."""
    require_task(desk.served, "classify")


async def _inputs(desk: Desk, request: EmbeddingRequest) -> list[Prompt]:
    options = {name: getattr(request, name) for name in _CHAT}
    if request.messages is not None:
        options["add_generation_prompt"] = bool(request.add_generation_prompt)
    return await desk.inputs(request, request.input, request.messages, **options)


def _params(request: EmbeddingRequest, task: Any) -> PoolingParams:
    wanted = request.use_activation if request.use_activation is not None else request.normalize
    given = {} if wanted is None else {"normalize": wanted}
    return PoolingParams(task=task, dimensions=request.dimensions, **given)


def _check_encoding(request: EmbeddingRequest) -> None:
    for name in ("embed_dtype", "endianness"):
        if getattr(request, name) not in (None, "float32", "native") and request.encoding_format in (None, "float"):
            raise RequestError(f"{name}: only with encoding_format base64, bytes or bytes_only", param=name)


def _coded(vector: np.ndarray, request: EmbeddingRequest) -> Any:
    if request.encoding_format == "base64":
        return to_base64(vector, request.embed_dtype or "float32", request.endianness or "native")
    return vector.tolist()


async def _send_bytes(
    desk: Desk, request: EmbeddingRequest, origin: Origin, prompts: list[Prompt], vectors: list[np.ndarray], send: Send
) -> None:
    """All vectors one after the other; where each lies is said in the header `metadata`, unless bytes_only."""
    kind, order = request.embed_dtype or "float32", request.endianness or "native"
    pieces = [to_bytes(vector, kind, order) for vector in vectors]
    headers: dict[str, str] = {}
    if request.encoding_format == "bytes":
        data: list[dict[str, Any]] = []
        end = 0
        for index, (piece, vector) in enumerate(zip(pieces, vectors, strict=True)):
            start, end = end, end + len(piece)
            place = {"index": index, "embed_dtype": kind, "endianness": order, "start": start, "end": end}
            data.append({**place, "shape": list(vector.shape)})
        metadata = msgspec.json.encode({**desk.heading(origin), "data": data, "usage": _usage(prompts)})
        if len(metadata) > MAX_HEADER_BYTES:
            reason = f"encoding_format: {len(vectors)} vectors are too many for the header of bytes; use bytes_only"
            raise RequestError(reason, param="encoding_format")
        headers["metadata"] = metadata.decode("ascii", "backslashreplace")
    await reply(send, b"".join(pieces), headers=headers, media_type="application/octet-stream")


# ---- scores -------------------------------------------------------------------------------------------------------


async def _score(desk: Desk, request: ScoreRequest, origin: Origin, send: Send) -> None:
    first, second = _pair(request)
    left, right = _listed(getattr(request, first)), _listed(getattr(request, second))
    if len(left) not in (1, len(right)):
        reason = f"{first}: one, or as many as {second} ({len(right)}), not {len(left)}"
        raise RequestError(reason, param=first)
    prompts = await _scored(desk, request, first, left) + await _scored(desk, request, second, right)
    values = await _cosines(desk, origin, prompts, len(left))
    data = [Score(index=index, score=value) for index, value in enumerate(values)]
    await reply(send, Scores(**desk.heading(origin), data=data, usage=_usage(prompts)))


async def _rerank(desk: Desk, request: RerankRequest, origin: Origin, send: Send) -> None:
    prompts = await _scored(desk, request, "query", [request.query])
    prompts += await _scored(desk, request, "documents", request.documents)
    values = await _cosines(desk, origin, prompts, 1)
    ranked = sorted(enumerate(values), key=lambda pair: -pair[1])[: request.top_n or None]
    shown = request.return_documents is not False
    results = [
        Ranked(index=index, relevance_score=value, document=_shown(request.documents[index]) if shown else UNSET)
        for index, value in ranked
    ]
    ranking = Ranking(id=origin.id, model=desk.served.name, results=results, usage=_usage(prompts))
    await reply(send, ranking)


def _pair(request: ScoreRequest) -> tuple[str, str]:
    """The names of the two sides that a request uses."""
    given = {name for pair in _PAIRS for name in pair if getattr(request, name) is not None}
    for pair in _PAIRS:
        if given == set(pair):
            return pair
    names = ", ".join("+".join(pair) for pair in _PAIRS)
    raise RequestError(f"queries: give one of {names}", param=min(given) if given else "queries")


def _listed(value: ScoreInputs) -> list[ScoreInput]:
    return value if isinstance(value, list) else [value]


async def _scored(desk: Desk, request: PoolingFields, name: str, items: Sequence[ScoreInput]) -> list[Prompt]:
    prompts: list[Prompt] = []
    for number, item in enumerate(items):
        place = name if name == "query" else f"{name}[{number}]"
        if isinstance(item, ScoreItem):
            message = {"role": "user", "content": item.content}
            prompts.append(await desk.chat(request, [message], place, add_generation_prompt=False))
        else:
            prompts += await desk.texts(request, item, place)
    return prompts


async def _cosines(desk: Desk, origin: Origin, prompts: list[Prompt], queries: int) -> list[float]:
    """Between the first `queries` prompts, one or as many as there are others, and the others."""
    vectors = await desk.pool(prompts, PoolingParams(task="embed", normalize=True), origin)
    left, right = np.stack(vectors[:queries]).astype(np.float64), np.stack(vectors[queries:]).astype(np.float64)
    return [float(value) for value in (left * right).sum(axis=1)]


def _shown(item: ScoreInput) -> RankedDocument:
    if isinstance(item, str):
        return RankedDocument(text=item)
    return RankedDocument(multi_modal=list(item.content))


def _usage(prompts: Sequence[Prompt]) -> PoolingUsage:
    count = sum(len(prompt.ids) for prompt in prompts)
    return PoolingUsage(prompt_tokens=count, total_tokens=count)
