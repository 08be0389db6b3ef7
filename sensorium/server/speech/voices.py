"""The voices that clients may speak in: the engine's own, the operator's, and those that clients have uploaded.

A voice of a client belongs to the key that brought it: nobody else sees or uses it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import soxr  # pyright: ignore[reportMissingTypeStubs]

from sensorium.errors import ConfigError, MediaError, NotFoundError, OverloadedError, RequestError, UnsupportedError
from sensorium.media.audio import from_array
from sensorium.media.wav import read_wav
from sensorium.server.errors import HttpError
from sensorium.server.realtime.audio import to_wav
from sensorium.server.speech.schema import VoiceCard
from sensorium.types import Media

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient

log = logging.getLogger(__name__)

RATE = 16_000
MIN_CLIP_S, MAX_CLIP_S = 3.0, 15.0
"""Shorter recordings say too little about a voice; every second of one is kept on the device."""
SILENCE = 1e-3
"""Root mean square below which a recording holds no voice."""
STOCK = frozenset(
    "alloy ash ballad cedar coral echo fable marin nova onyx sage shimmer verse".split()  # noqa: SIM905
)
"""Names that clients of OpenAI's API send without thinking about it."""
DEFAULT = "default"
"""The engine's own voice, where the checkpoint brings one."""
OPERATOR = ""
"""Owner of the voices that everybody may use."""


@dataclass(frozen=True, slots=True, eq=False)
class KeptVoice:
    """samples: float32 [n] at 16 kHz."""

    id: str
    name: str
    owner: str
    created: int
    samples: np.ndarray
    consent: str | None = None

    def card(self) -> VoiceCard:
        return VoiceCard(id=self.id, name=self.name, created_at=self.created, consent=self.consent)


@dataclass(frozen=True, slots=True, eq=False)
class Picked:
    """name: what the engine calls the voice. clip: the recording that it was made of, if it was."""

    name: str
    clip: Media | None = None


class _Note(msgspec.Struct):
    """What lies beside a recording that a client uploaded."""

    name: str
    owner: str
    created: int
    consent: str | None


class Voices:
    """All voices of a server. Belongs to its event loop."""

    def __init__(self, folder: Path | None, limit: int, created: int) -> None:
        """folder: where uploads are kept, and whose other WAVE files are voices for everybody; None keeps them in
        memory. limit: most uploads. created: what is said of voices that nobody uploaded.

        Raises ConfigError for a folder, or a recording in it, that cannot be read.
        """
        self._folder = folder
        self._limit = limit
        self._created = created
        self._kept: dict[str, KeptVoice] = {}
        self._adding: dict[str, asyncio.Lock] = {}
        self._own: dict[str, Media] = {}
        if folder is not None:
            self._kept = {voice.id: voice for voice in _read_folder(folder, created)}

    def cards(self, client: EngineClient, owner: str) -> list[VoiceCard]:
        """What this owner may speak in: the engine's own voices, the operator's, then the owner's by age."""
        kept = [voice for voice in self._kept.values() if voice.owner in (OPERATOR, owner)]
        own = [VoiceCard(id=name, name=name, created_at=self._created) for name in self._built_in(client)]
        return [
            *own,
            *(voice.card() for voice in sorted(kept, key=lambda voice: (voice.owner, voice.created, voice.name))),
        ]

    def has_default(self, client: EngineClient) -> bool:
        """Whether a client that names no voice is spoken to."""
        return DEFAULT in client.voices or self._find(DEFAULT, OPERATOR) is not None

    async def add(
        self, name: str, owner: str, samples: np.ndarray, consent: str | None, client: EngineClient
    ) -> KeptVoice:
        """Keep a recording as a voice. Raises RequestError for a name that is taken or a clip that is no voice, and
        OverloadedError where there are too many."""
        check_clip(samples, "audio_sample")
        if name in self._built_in(client) or any(
            voice.name == name and voice.owner in (OPERATOR, owner) for voice in self._kept.values()
        ):
            raise RequestError(f"name: there is a voice {name[:64]!r} already; delete it first", param="name")
        if sum(voice.owner != OPERATOR for voice in self._kept.values()) >= self._limit:
            raise OverloadedError(f"all {self._limit} places for voices are taken; delete one", reason="voices")
        voice = KeptVoice(f"voice_{uuid.uuid4().hex[:24]}", name, owner, int(time.time()), samples, consent)
        self._kept[voice.id] = voice
        try:
            if self._folder is not None:
                await asyncio.to_thread(_write, self._folder, voice)
            await self._give(voice, client)
        except BaseException:
            self._kept.pop(voice.id, None)
            if self._folder is not None:
                _forget(self._folder, voice.id)
            raise
        return voice

    async def delete(self, ident: str, owner: str, client: EngineClient) -> None:
        """Raises NotFoundError, and HttpError for a voice that is not the client's to delete."""
        voice = self._kept.get(ident)
        if ident in self._built_in(client) or (voice is not None and voice.owner == OPERATOR):
            raise HttpError(403, "permission_denied", f"{ident[:64]!r} is a voice of the server")
        if voice is None or voice.owner != owner:
            raise NotFoundError(f"there is no voice {ident[:64]!r}", param="voice")
        del self._kept[ident]
        self._adding.pop(ident, None)
        if self._folder is not None:
            await asyncio.to_thread(_forget, self._folder, ident)
        if ident in client.voices:
            client.remove_voice(ident)

    async def pick(self, wanted: str | None, owner: str, client: EngineClient, place: str) -> Picked:
        """A voice, which the engine has then. Names of OpenAI's voices stand for the default one.

        Raises UnsupportedError where the model does not speak, RequestError naming `place` for an unknown voice.
        """
        require_speech(client, place)
        built_in = self._built_in(client)
        first = wanted or DEFAULT
        for name in (first, DEFAULT) if first in STOCK else (first,):
            voice = self._find(name, owner)
            if voice is not None:
                await self._give(voice, client)
                return Picked(voice.id, from_array(voice.samples, RATE, place))
            if name in built_in:
                return Picked(name, await self._own_clip(name, client))
        if first == DEFAULT or first in STOCK:
            reason = "this model brings no voice of its own; upload a recording to POST /v1/audio/voices"
            raise RequestError(f"{place}: {reason}", param=place)
        known = ", ".join(card.name for card in self.cards(client, owner)) or "none"
        raise RequestError(f"{place}: there is no voice {first[:64]!r}; there are: {known[:500]}", param=place)

    async def _own_clip(self, name: str, client: EngineClient) -> Media | None:
        """The recording of a voice of the engine's, where it was made of one."""
        path = client.facts.recordings.get(name)
        if name not in self._own and path is not None:
            samples = await asyncio.to_thread(_read_recording, Path(path))
            self._own[name] = from_array(samples[: int(MAX_CLIP_S * RATE)], RATE, "voice")
        return self._own.get(name)

    def _find(self, wanted: str, owner: str) -> KeptVoice | None:
        for voice in self._kept.values():
            if voice.owner in (OPERATOR, owner) and wanted in (voice.id, voice.name):
                return voice
        return None

    def _built_in(self, client: EngineClient) -> tuple[str, ...]:
        return tuple(name for name in client.voices if name not in self._kept)

    async def _give(self, voice: KeptVoice, client: EngineClient) -> None:
        """To the engine, once; one that was started again has lost it."""
        async with self._adding.setdefault(voice.id, asyncio.Lock()):
            if voice.id not in client.voices:
                await client.aadd_voice(voice.id, voice.samples, RATE)


def owner_of(state: dict[str, Any]) -> str:
    """Whose voices a request may use: those of its key. state: of the exchange."""
    return hashlib.sha256(f"voices of {state.get('key') or 'nobody in particular'}".encode()).hexdigest()[:32]


def require_speech(client: EngineClient, place: str) -> None:
    """Raises UnsupportedError naming a field where the model does not speak."""
    if not client.can_sound:
        reason = "this model does not speak; serve one that does, with --init-tts"
        raise UnsupportedError(f"{place}: {reason}", param=place)


def require_speaking(client: EngineClient) -> None:
    """The same for a route of its own, which such a model does not have: NotFoundError."""
    if not client.can_sound:
        reason = f"model {client.model_name} does not support task speech; serve one that speaks, with --init-tts"
        raise NotFoundError(reason, param="model")


def check_clip(samples: np.ndarray, place: str) -> None:
    """Raises MediaError for what is no recording of a voice."""
    seconds = len(samples) / RATE
    if not MIN_CLIP_S <= seconds <= MAX_CLIP_S:
        wanted = f"{MIN_CLIP_S:g} to {MAX_CLIP_S:g} seconds"
        raise MediaError(f"{place}: the recording has {seconds:.1f} seconds; {wanted} are needed", param=place)
    if not np.isfinite(samples).all() or float(np.sqrt(np.mean(np.square(samples)))) < SILENCE:
        raise MediaError(f"{place}: the recording is silent", param=place)


# ---- on disk ------------------------------------------------------------------------------------------------------


def _read_folder(folder: Path, created: int) -> Iterable[KeptVoice]:
    if not folder.is_dir():
        raise ConfigError(f"voice_folder: {folder} is no folder", param="voice_folder")
    for path in sorted(folder.glob("*.wav")):
        samples = _read_recording(path)
        note = path.with_suffix(".json")
        try:
            check_clip(samples, path.name)
            if note.is_file():
                kept = msgspec.json.decode(note.read_bytes(), type=_Note)
                yield KeptVoice(path.stem, kept.name, kept.owner, kept.created, samples, kept.consent)
            else:
                yield KeptVoice(path.stem, path.stem, OPERATOR, created, samples)
        except (MediaError, msgspec.MsgspecError) as error:
            raise ConfigError(f"voice_folder: {error}", param="voice_folder") from None


def _read_recording(path: Path) -> np.ndarray:
    """A WAVE file as float32 [n] at RATE. Raises ConfigError."""
    wav = read_wav(path.read_bytes())
    if wav is None:
        raise ConfigError(f"voice_folder: {path.name} is no WAVE file that can be read", param="voice_folder")
    samples = wav.read(0, wav.frames).mean(axis=1, dtype=np.float32)
    return samples if wav.rate == RATE else soxr.resample(samples, wav.rate, RATE)


def _write(folder: Path, voice: KeptVoice) -> None:
    """The recording last: without its note it would be a voice for everybody."""
    note = msgspec.json.encode(_Note(voice.name, voice.owner, voice.created, voice.consent))
    for ending, data in (("json", note), ("wav", to_wav(voice.samples))):
        part = folder / f"{voice.id}.part"
        part.touch(mode=0o600)
        part.write_bytes(data)
        os.replace(part, folder / f"{voice.id}.{ending}")


def _forget(folder: Path, ident: str) -> None:
    for ending in ("wav", "json", "part"):
        (folder / f"{ident}.{ending}").unlink(missing_ok=True)
