"""POST /v1/realtime/client_secrets: keys for browsers that soon expire, each with the settings of its sessions."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct
from starlette.routing import Route

from sensorium.config import ServerConfig
from sensorium.errors import OverloadedError
from sensorium.server.door import JsonDoor, State
from sensorium.server.live.clock import Clock
from sensorium.server.realtime.conversation import made_id
from sensorium.server.realtime.schema import SessionUpdate
from sensorium.server.realtime.session import Answers, Session
from sensorium.server.schema import Input
from sensorium.server.served import Served
from sensorium.server.speech.voices import Voices

PATH = "/v1/realtime/client_secrets"
SESSION_S = 3600.0
"""How long a session may last."""
MOST = 4096
"""Secrets that have not expired yet."""


class ExpiresAfter(Input, kw_only=True):
    anchor: Literal["created_at"] = "created_at"
    seconds: Annotated[int, Meta(ge=10, le=7200)] = 600


class SecretRequest(Input, kw_only=True):
    """POST /v1/realtime/client_secrets. session: as in session.update."""

    expires_after: ExpiresAfter | None = None
    session: SessionUpdate | None = None


class SecretOut(Struct):
    value: str
    expires_at: int
    """Seconds since 1970: until then it opens sessions, which may last longer."""
    session: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Secret:
    """key: the digest of the key that it was made with."""

    until_s: float
    key: str
    session: SessionUpdate


class ClientSecrets:
    """Those of this server; in memory, by their digests."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: dict[bytes, Secret] = {}

    def make(self, key: str, session: SessionUpdate, seconds: int) -> str:
        """Raises OverloadedError where there are too many."""
        now_s = self._clock.now()
        self._kept = {digest: secret for digest, secret in self._kept.items() if secret.until_s > now_s}
        if len(self._kept) >= MOST:
            raise OverloadedError(f"there are {MOST} client secrets that have not expired")
        value = f"ek_{secrets.token_urlsafe(24)}"
        self._kept[_digest(value.encode())] = Secret(now_s + seconds, key, session)
        return value

    def find(self, presented: Collection[bytes]) -> Secret | None:
        """The secret in an Authorization header, where it is one that has not expired."""
        for value in presented if len(presented) == 1 else ():
            scheme, _, given = value.partition(b" ")
            secret = self._kept.get(_digest(given))
            if secret is not None and scheme.lower() == b"bearer" and secret.until_s > self._clock.now():
                return secret
        return None

    def key_of(self, presented: Collection[bytes]) -> str | None:
        """The digest of the key that it was made with."""
        secret = self.find(presented)
        return None if secret is None else secret.key


def fresh_session(served: Served, voices: Voices) -> Session:
    """What is in force before a client has asked for anything."""
    client = served.client()
    speaks = client.can_sound and voices.has_default(client)
    answers = Answers(can_speak=client.can_sound, speaks=speaks)
    return Session(made_id("sess"), served.name, int(time.time() + SESSION_S), answers=answers)


def secret_routes(served: Served, config: ServerConfig, voices: Voices, kept: ClientSecrets) -> list[Route]:
    async def make(request: SecretRequest, state: State) -> SecretOut:
        wanted = request.session or SessionUpdate()
        if wanted.model is not UNSET:
            served.check_name(wanted.model)
        session = fresh_session(served, voices).changed(wanted)
        seconds = (request.expires_after or ExpiresAfter()).seconds
        value = kept.make(state.get("key", ""), wanted, seconds)
        return SecretOut(value, int(time.time()) + seconds, session.told())

    door: JsonDoor[SecretRequest] = JsonDoor(served, config, msgspec.json.Decoder(SecretRequest), make)
    return [Route(PATH, door, methods=["POST"])]


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()
