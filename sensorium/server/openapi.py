"""The OpenAPI description, generated from the types that also validate."""

from __future__ import annotations

from typing import Any

import msgspec

from sensorium import __version__
from sensorium.server.chat_schema import ChatChunk, ChatCompletion, ChatRequest
from sensorium.server.errors import ErrorBody
from sensorium.server.schema import ModelCard, ModelList

_ERRORS = {
    "400": "The request is wrong; param names the field",
    "401": "No valid API key",
    "404": "No such model or route",
    "413": "The body is too large",
    "429": "The server is full; see Retry-After",
    "503": "The engine is not there; see Retry-After",
}


def describe_api() -> dict[str, Any]:
    """An OpenAPI 3.1 document as a dict."""
    types = (ChatRequest, ChatCompletion, ChatChunk, ModelCard, ModelList, ErrorBody)
    references, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    request, completion, chunk, model, models, error = references
    failures = {status: _response(text, error) for status, text in _ERRORS.items()}
    answer = _response("The answer, or a stream of chunks", completion)
    answer["content"]["text/event-stream"] = {"schema": chunk}
    chat = {
        "summary": "Answer a conversation with text, pictures, sound and video",
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": {"200": answer, **failures},
    }
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "sensorium", "version": __version__},
        "security": [{"key": []}, {}],
        "paths": {
            "/v1/chat/completions": {"post": chat},
            "/v1/models": {"get": _get("The model served", _response("A list of one", models))},
            "/v1/models/{name}": {"parameters": [name], "get": _get("One model", _response("The model", model))},
            "/health": {"get": _get("Whether requests can be answered", _response("200 if so, else 503", {}))},
            "/version": {"get": _get("The server's version", _response("The version", {}))},
            "/metrics": {"get": _get("Prometheus metrics", {"description": "Text exposition format"})},
        },
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _get(summary: str, response: dict[str, Any]) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": response}}


def _response(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}
