"""The voices of an engine by name, and the thread that makes them of recordings while the engine steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sensorium.engine.codec import CodecStage
from sensorium.engine.protocol import AddVoice, RemoveVoice
from sensorium.errors import EngineError, NotFoundError, SensoriumError, UnsupportedError
from sensorium.types import Event, Failed, Finished, Timings, Usage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VoiceMade:
    """To the engine's thread: a recording has become a voice, or not."""

    request_id: str
    name: str
    future: Future[Any]


class Voices:
    """For the engine's thread. `put` queues a message for it, from any thread."""

    def __init__(self, codec: CodecStage | None, voices: Mapping[str, Any], put: Callable[[VoiceMade], None]) -> None:
        self._codec, self._voices, self._put = codec, dict(voices), put
        self._thread: ThreadPoolExecutor | None = None
        self._making: dict[str, tuple[str, Future[Any]]] = {}
        """Name and what comes of it, by the id of the message that asked."""
        if codec is not None:
            for voice in self._voices.values():
                codec.warm(voice)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._voices)

    def __contains__(self, request_id: str) -> bool:
        """Whether a voice is being made for this message."""
        return request_id in self._making

    def find(self, name: str) -> Any:
        if self._codec is None:
            raise UnsupportedError("this engine has no codec, so its speech ends in codes: give voice=None")
        if name not in self._voices:
            self._wait_for(name)
        if name not in self._voices:
            known = ", ".join(self._voices) or "none"
            raise NotFoundError(f"there is no voice {name!r}; there are: {known}", param="voice")
        return self._voices[name]

    def take(self, message: AddVoice | RemoveVoice | VoiceMade, events: list[Event]) -> None:
        if isinstance(message, RemoveVoice):
            self._voices.pop(message.name, None)
        elif isinstance(message, VoiceMade):
            self._made(message, events)
        elif self._codec is None:
            events.append(Failed(message.request_id, "unsupported", "this engine has no codec", 400))
        else:
            self._thread = self._thread or ThreadPoolExecutor(1, "sensorium-voices")
            future = self._thread.submit(self._codec.hear, message.samples, message.rate)
            self._making[message.request_id] = (message.name, future)
            future.add_done_callback(lambda done: self._put(VoiceMade(message.request_id, message.name, done)))

    def _wait_for(self, name: str) -> None:
        """Nobody asks for a voice before it is made, but for those who waited for an engine that started again."""
        for wanted, future in list(self._making.values()):
            if wanted == name and future.exception() is None:
                self._voices[name] = future.result()

    def _made(self, message: VoiceMade, events: list[Event]) -> None:
        if self._making.pop(message.request_id, None) is None:
            return
        error = message.future.exception()
        if error is None:
            self._voices[message.name] = voice = message.future.result()
            assert self._codec is not None
            self._codec.warm(voice)
            events.append(_done(message.request_id, "stop"))
        elif isinstance(error, SensoriumError):
            events.append(Failed(message.request_id, error.code, error.message, error.status, error.param))
        else:
            log.error("a voice could not be made", exc_info=error)
            why = EngineError(f"the voice could not be made ({type(error).__name__}); the server log has the details")
            events.append(Failed(message.request_id, why.code, why.message, why.status))

    def finish(self, request_id: str, events: list[Event]) -> None:
        """The caller does not want the voice any more."""
        del self._making[request_id]
        events.append(_done(request_id, "abort"))

    def fail_all(self, message: str, code: str, status: int) -> list[Event]:
        """The end of the engine: nothing more is made."""
        failed: list[Event] = [Failed(request_id, code, message, status) for request_id in self._making]
        self._making.clear()
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None
        return failed


def _done(request_id: str, reason: Any) -> Finished:
    return Finished(request_id, reason, Usage(0, 0), Timings(0.0, None, 0.0))
