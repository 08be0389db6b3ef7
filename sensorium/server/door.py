"""What the doors beside chat share: a JSON request in, one reply out, and the work dropped when its client leaves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from sensorium.config import ServerConfig
from sensorium.server.body import decode, read_body
from sensorium.server.generation import unless_gone
from sensorium.server.served import Served

T = TypeVar("T")
State = dict[str, Any]


async def read_request(
    served: Served,
    config: ServerConfig,
    decoder: msgspec.json.Decoder[T],
    unsupported: dict[str, str],
    scope: Scope,
    receive: Receive,
) -> tuple[T, int]:
    """The typed request of a JSON body for a model that is here, and the size of its body. unsupported: see decode."""
    served.client()
    body = await read_body(scope, receive, config)
    request = decode(body, decoder, unsupported, lenient=config.allow_unknown_fields)
    served.check_name(getattr(request, "model", None))
    return request, body.size


class JsonDoor(Generic[T]):
    """One POST endpoint as raw ASGI.

    `answer` gets the request and the exchange's state, and returns what is sent back as JSON. `ready` may refuse before
    the body is read, as for a task that the model does not have.
    """

    def __init__(
        self,
        served: Served,
        config: ServerConfig,
        decoder: msgspec.json.Decoder[T],
        answer: Callable[[T, State], Awaitable[object]],
        *,
        unsupported: Mapping[str, str] | None = None,
        ready: Callable[[], object] | None = None,
    ) -> None:
        self._served = served
        self._config = config
        self._decoder = decoder
        self._answer = answer
        self._unsupported = dict(unsupported or {})
        self._ready = ready

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._served.client()
        if self._ready is not None:
            self._ready()
        request, _ = await read_request(self._served, self._config, self._decoder, self._unsupported, scope, receive)

        async def work() -> None:
            await reply(send, await self._answer(request, scope["state"]))

        await unless_gone(receive, work())


async def reply(
    send: Send,
    content: object,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    media_type: str = "application/json",
) -> None:
    """Send a whole answer: bytes as they are, anything else as JSON."""
    data = content if isinstance(content, bytes) else msgspec.json.encode(content)
    named = {"content-type": media_type, "content-length": str(len(data)), **(headers or {})}
    raw = [(name.encode(), value.encode()) for name, value in named.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": data})
