"""GET and POST /v1/audio/voices, DELETE /v1/audio/voices/{id}."""

from __future__ import annotations

import msgspec
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sensorium.errors import RequestError, TooLargeError
from sensorium.server.body import decode_fields
from sensorium.server.door import reply
from sensorium.server.generation import unless_gone
from sensorium.server.multipart import read_form
from sensorium.server.served import Served
from sensorium.server.speech.schema import CreateVoice, VoiceDeleted, VoiceList
from sensorium.server.speech.voices import Voices, owner_of, require_speaking
from sensorium.types import MediaRef

PATH = "/v1/audio/voices"
UPLOAD = "audio_sample"
MAX_BYTES = 10 << 20
"""Of an upload, as OpenAI allows it."""
_WORDS = "making a voice from words (send audio_sample)"
UNSUPPORTED = {"prompt": _WORDS, "model": _WORDS, "script_hint": _WORDS}


def voice_routes(served: Served, voices: Voices) -> list[Route]:
    doors = VoiceDoors(served, voices)
    return [
        Route(PATH, doors.list, methods=["GET"]),
        Route(PATH, AddVoice(served, voices), methods=["POST"]),
        Route(PATH + "/{name}", doors.delete, methods=["DELETE"]),
    ]


class VoiceDoors:
    def __init__(self, served: Served, voices: Voices) -> None:
        self._served = served
        self._voices = voices

    async def list(self, request: Request) -> Response:
        client = self._served.client()
        require_speaking(client)
        cards = self._voices.cards(client, owner_of(request.scope["state"]))
        return _json(VoiceList(cards))

    async def delete(self, request: Request) -> Response:
        client = self._served.client()
        require_speaking(client)
        ident = request.path_params["name"]
        await self._voices.delete(ident, owner_of(request.scope["state"]), client)
        return _json(VoiceDeleted(ident))


class AddVoice:
    """As raw ASGI: the upload is read piece by piece, and decoded in a process that may die of it."""

    def __init__(self, served: Served, voices: Voices) -> None:
        self._served = served
        self._voices = voices

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = self._served.client()
        require_speaking(client)
        client.check_cloning(UPLOAD)
        if Headers(scope=scope).get("content-type", "").startswith("application/json"):
            reason = "the body must be a form with a recording as audio_sample; voices are not made from words here"
            raise RequestError(reason, param="body")
        too_large = TooLargeError(f"{UPLOAD}: more than {MAX_BYTES >> 20} MiB", param=UPLOAD)
        fields, file = await read_form(scope, receive, MAX_BYTES, UPLOAD, too_large)
        if fields.get("type") == "prompt":
            reason = "type: voices are made from recordings here; send audio_sample"
            raise RequestError(reason, param="type")
        wanted = decode_fields(fields, CreateVoice, UNSUPPORTED)
        if file is None:
            raise RequestError(f"{UPLOAD}: this field is required", param=UPLOAD)
        await unless_gone(receive, self._add(wanted, file, scope, send))

    async def _add(self, wanted: CreateVoice, file: bytes, scope: Scope, send: Send) -> None:
        client = self._served.client()
        media = await client.adecode(MediaRef("audio", file, UPLOAD))
        voice = await self._voices.add(wanted.name, owner_of(scope["state"]), media.data, wanted.consent, client)
        await reply(send, voice.card())


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
