"""Refusals for want of room, while they still cost next to nothing: before a body is read, parsed and prepared."""

from __future__ import annotations

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from sensorium.server.served import Served


class Gate:
    """Lets no request for generated text or vectors in that the engine would only refuse once it is prepared."""

    def __init__(self, app: ASGIApp, served: Served, paths: Collection[str], root_path: str) -> None:
        """paths: where POST asks for such work."""
        self._app = app
        self._served = served
        self._paths = frozenset(paths)
        self._root = root_path.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            client = self._served.loaded
            if client is not None and scope["path"].removeprefix(self._root) in self._paths:
                client.refuse_if_full()
        await self._app(scope, receive, send)
