"""Routes of vLLM that this server does not have: each answers 501 naming itself and what to use instead."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sensorium.server.errors import HttpError

ROUTES = {
    ("POST", "/v1/audio/voice_consents"): "say in `consent` of POST /v1/audio/voices that the speaker agrees",
    ("POST", "/v1/live/sessions"): "WebRTC is not served; open it as a WebSocket",
    ("POST", "/v1/realtime/calls"): "WebRTC is not served; open /v1/realtime as a WebSocket",
    ("POST", "/v1/realtime/sessions"): "use POST /v1/realtime/client_secrets",
    ("POST", "/v1/realtime/transcription_sessions"): "use POST /v1/realtime/client_secrets",
    ("POST", "/v1/realtime/translations/client_secrets"): "speech is not translated",
    ("POST", "/v1/chat/completions/batch"): "send one request per conversation, or use `sensorium run-batch`",
    ("POST", "/v1/chat/completions/render"): "POST /tokenize gives the tokens of a conversation",
    ("POST", "/v1/completions/render"): "POST /tokenize gives the tokens of a prompt",
    ("POST", "/inference/v1/generate"): "use POST /v1/completions with a list of token ids",
    ("POST", "/v2/embed"): "use POST /v1/embeddings",
    ("POST", "/cohere/v2/chat"): "use POST /v1/chat/completions",
    ("POST", "/invocations"): "send the request to the route of its kind",
    ("POST", "/generative_scoring"): "use POST /v1/completions with echo and logprobs",
    ("POST", "/v1/decisions"): "",
    ("POST", "/v1/systemone"): "",
    ("GET", "/tokenizer_info"): "read the checkpoint's tokenizer files",
    ("POST", "/v1/load_lora_adapter"): "adapters are not supported",
    ("POST", "/v1/unload_lora_adapter"): "adapters are not supported",
    ("POST", "/release_kv_cache_memory"): "",
    ("POST", "/collective_rpc"): "",
    ("POST", "/start_profile"): "",
    ("POST", "/stop_profile"): "",
    ("POST", "/pause"): "",
    ("POST", "/resume"): "",
    ("POST", "/abort_requests"): "closing a request's connection ends it",
    ("GET", "/is_paused"): "",
    ("POST", "/scale_elastic_ep"): "",
    ("GET", "/fault_tolerance/status"): "GET /health says whether requests can be answered",
    ("GET", "/kv_event_sources"): "",
}
"""Method and path -> what to do instead, where there is something."""


def unsupported_routes() -> list[Route]:
    return [Route(path, refuse(path, hint), methods=[method]) for (method, path), hint in ROUTES.items()]


def refuse(path: str, hint: str = "") -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that answers 501."""
    message = f"{path} is not implemented" + (f": {hint}" if hint else "")

    async def endpoint(request: Request) -> Response:
        raise HttpError(501, "not_implemented", message)

    return endpoint
