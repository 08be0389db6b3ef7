"""The OpenAPI description, generated from the types that also validate."""

from __future__ import annotations

from typing import Any, get_args

import msgspec

from sensorium import __version__
from sensorium.media.encode import SoundFormat, media_type
from sensorium.server.anthropic import CountRequest, MessageOut, MessagesRequest, TokenCountOut
from sensorium.server.chat_schema import ChatChunk, ChatCompletion, ChatRequest
from sensorium.server.completions import Completion, CompletionRequest
from sensorium.server.errors import ErrorBody
from sensorium.server.pooling_schema import (
    ClassifyRequest,
    EmbeddingRequest,
    Embeddings,
    PoolingRequest,
    Ranking,
    RerankRequest,
    ScoreRequest,
    Scores,
)
from sensorium.server.realtime.client_secrets import SecretOut, SecretRequest
from sensorium.server.responses_schema import Response, ResponsesRequest
from sensorium.server.schema import ModelCard, ModelList
from sensorium.server.speech.schema import (
    CreateSpeech,
    CreateVoice,
    SpeechDelta,
    SpeechDone,
    VoiceCard,
    VoiceDeleted,
    VoiceList,
)
from sensorium.server.tokenize import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest
from sensorium.server.transcriptions import SpeechRequest, Transcript

_ERRORS = {
    "400": "The request is wrong; param names the field",
    "401": "No valid API key",
    "404": "No such model or route",
    "408": "The body arrives too slowly",
    "413": "The body, or a medium, is too large",
    "415": "The body is not sent as the type that is described",
    "421": "The server does not answer to that host name",
    "422": "A media host answered with something else than the media, or a form has a text where its file should be",
    "429": "The server is full; see Retry-After",
    "500": "Our fault, for this request",
    "502": "A media host failed or could not be reached",
    "503": "The engine is not there; see Retry-After",
    "504": "A media host was too slow",
}
_SIMPLE = ("400", "401", "404", "421", "503")
"""Those that a request without a body may meet."""


# Path -> what it does, the type of its request and that of its answer.
_POSTS: dict[str, tuple[str, Any, Any]] = {
    "/v1/chat/completions": ("Answer a conversation with text, pictures, sound and video", ChatRequest, ChatCompletion),
    "/v1/completions": ("Continue prompts, or score them", CompletionRequest, Completion),
    "/v1/responses": ("Answer items", ResponsesRequest, Response),
    "/v1/messages": ("Answer a conversation as Anthropic's API does", MessagesRequest, MessageOut),
    "/v1/messages/count_tokens": ("Count the tokens of one", CountRequest, TokenCountOut),
    "/v1/embeddings": ("Vectors of texts and conversations", EmbeddingRequest, Embeddings),
    "/pooling": ("The same, or a vector for every token", PoolingRequest, None),
    "/classify": ("Classes of texts", ClassifyRequest, None),
    "/v1/realtime/client_secrets": ("Make a key for a browser's realtime sessions", SecretRequest, SecretOut),
    "/tokenize": ("Tokens of a prompt or a conversation", TokenizeRequest, Tokenized),
    "/detokenize": ("Text of tokens", DetokenizeRequest, Detokenized),
    **dict.fromkeys(("/score", "/v1/score"), ("How alike texts are", ScoreRequest, Scores)),
    **dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), ("Order documents for a query", RerankRequest, Ranking)),
}
_SPEECH = {CreateSpeech, SpeechDelta, SpeechDone, CreateVoice, VoiceCard, VoiceList, VoiceDeleted}
_SOUNDS = sorted(map(media_type, get_args(SoundFormat)))
_FORMS = {"/v1/audio/transcriptions": "Write down speech", "/v1/audio/translations": "Write down speech in English"}
_GETS: dict[str, tuple[str, str, Any]] = {
    "/v1/models": ("The model served", "A list, one entry for each of its names", ModelList),
    "/v1/models/{name}": ("One model", "The model", ModelCard),
    "/v1/responses/{name}": ("An answer that was kept", "The answer", Response),
    "/health": ("Whether requests can be answered", "200 if so, else 503", None),
    "/version": ("The server's version", "The version", None),
    "/load": ("Requests in flight", "Their number", None),
}


def describe_api() -> dict[str, Any]:
    """An OpenAPI 3.1 document as a dict."""
    types = {kind for _, *kinds in (*_POSTS.values(), *_GETS.values()) for kind in kinds if isinstance(kind, type)}
    types |= {ChatChunk, SpeechRequest, Transcript, ErrorBody, *_SPEECH}
    ordered = sorted(types, key=lambda kind: kind.__qualname__)
    references, schemas = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    known = dict(zip(ordered, references, strict=True))
    failures = {status: _response(text, known[ErrorBody]) for status, text in _ERRORS.items()}
    paths: dict[str, Any] = {}
    for path, (summary, request, answer) in _POSTS.items():
        given = known[request]
        answers = {"200": _response("The answer", known.get(answer, {})), **failures}
        paths[path] = {"post": {"summary": summary, "requestBody": _body(given), "responses": answers}}
    chat = paths["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    chat["text/event-stream"] = {"schema": known[ChatChunk]}
    paths.update(_speech_paths(known, failures))
    for path, summary in _FORMS.items():
        answers = {"200": _response("The text", known[Transcript]), **failures}
        body = _body(known[SpeechRequest], "multipart/form-data")
        paths[path] = {"post": {"summary": summary, "requestBody": body, "responses": answers}}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    for path, (summary, text, answer) in _GETS.items():
        refusals = {status: failures[status] for status in _SIMPLE}
        paths[path] = {"get": _get(summary, _response(text, known.get(answer, {})), refusals)}
        if "{name}" in path:
            paths[path]["parameters"] = [name]
    plain = {"426": _response("The request asks for no WebSocket", known[ErrorBody])}
    opened = {"101": {"description": "A WebSocket"}, **plain, **{status: failures[status] for status in _SIMPLE}}
    paths["/v1/realtime"] = {"get": {"summary": "Realtime events; see docs/realtime.md", "responses": opened}}
    paths["/v1/duplex"] = {"get": {"summary": "Full duplex; see docs/duplex-protocol.md", "responses": opened}}
    paths["/v1/live/sessions"] = {"get": {"summary": "OpenAI's Live events; see docs/live.md", "responses": opened}}
    paths["/metrics"] = {"get": _get("Prometheus metrics", {"description": "Text exposition format"})}
    cancelled = {"200": _response("The answer", known[Response]), **failures}
    cancel = {"summary": "Stop an answer in the background", "responses": cancelled}
    paths["/v1/responses/{name}/cancel"] = {"parameters": [name], "post": cancel}
    return {
        "openapi": "3.1.0",
        "info": {"title": "sensorium", "version": __version__},
        "security": [{"key": []}, {}],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _speech_paths(known: dict[Any, Any], failures: dict[str, Any]) -> dict[str, Any]:
    """Text read aloud, and the voices for it."""
    sound: dict[str, Any] = {name: {"schema": {"type": "string", "format": "binary"}} for name in _SOUNDS}
    sound["text/event-stream"] = {"schema": {"anyOf": [known[SpeechDelta], known[SpeechDone]]}}
    spoken: dict[str, Any] = {"200": {"description": "The sound, as it is made", "content": sound}, **failures}
    created = {"200": _response("The voice", known[VoiceCard]), **failures}
    refusals = {status: failures[status] for status in ("400", *_SIMPLE)}
    gone = {"200": _response("That it is gone", known[VoiceDeleted]), **refusals, "403": failures["400"]}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    upload: dict[str, Any] = {"properties": {"audio_sample": {"type": "string", "format": "binary"}}}
    form = {"allOf": [known[CreateVoice], upload]}
    speak = {"summary": "Read a text aloud", "requestBody": _body(known[CreateSpeech]), "responses": spoken}
    add = {"summary": "Make a voice of a recording", "requestBody": _body(form, "multipart/form-data")}
    return {
        "/v1/audio/speech": {"post": speak},
        "/v1/audio/voices": {
            "get": _get("The voices to speak in", _response("A list", known[VoiceList]), refusals),
            "post": {**add, "responses": created},
        },
        "/v1/audio/voices/{name}": {
            "parameters": [name],
            "delete": {"summary": "Forget a voice", "responses": gone},
        },
    }


def _body(schema: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
    return {"required": True, "content": {kind: {"schema": schema}}}


def _get(summary: str, response: dict[str, Any], refusals: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": response, **(refusals or {})}}


def _response(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}
