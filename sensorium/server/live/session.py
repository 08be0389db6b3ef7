"""One live session: what its client sends becomes units for the engine, what the engine tells becomes events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.errors import ContextLengthError, EngineDeadError, RequestError, SensoriumError
from sensorium.params import LiveSettings
from sensorium.server.live.clock import Clock
from sensorium.server.live.events import Closed, Event, Muted, Opened, Paused, Reason, Usage, Wrong
from sensorium.server.live.metrics import LiveMetrics
from sensorium.server.live.told import Handed, Narrator
from sensorium.server.live.units import Backlog, LiveUnit, Pace, UnitCutter
from sensorium.types import ChatOptions, MediaRef, Prepared, Prompt, SpeechOptions, UnitFailed

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient, LivePrompts
    from sensorium.engine.session_client import Session

log = logging.getLogger(__name__)
MAX_TEXT = 4096
IN_ENGINE = 2
"""Units that the engine holds of a session: the one it computes, and the one after it."""
UNIT_S = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class LiveOptions:
    """What a session is opened with. sound: whether sound is wanted; key: whose session it is, for taking it up again.

    max_frames, max_slices: pictures used of a unit, and tiles that each is cut into.
    """

    settings: LiveSettings = field(default_factory=LiveSettings)
    voice: str | None = None
    sound: bool = True
    max_frames: int = 1
    max_slices: int = 1
    key: str = ""
    reference: np.ndarray | None = None
    """A recording that the model hears as the voice it has, float32 at 16 kHz."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of sessions. Seconds: since the opening, without sound, in a pause, without a client; rows of the KV cache."""

    max_s: float = 3600.0
    idle_s: float = 60.0
    pause_s: float = 60.0
    resume_s: float = 30.0
    max_len: int = 8192


@dataclass(slots=True)
class Opening:
    """What is known before there is a place: the prompt that the session begins with."""

    prompts: LivePrompts
    prompt: Prompt
    policy: dict[str, Any]
    max_len: int
    speech: SpeechOptions | None = None


class LiveSession:
    """Made by LiveService.open. What is sent never blocks; iterate it, once, to exactly one Closed."""

    def __init__(
        self,
        session_id: str,
        options: LiveOptions,
        opening: Opening,
        limits: Limits,
        clock: Clock,
        metrics: LiveMetrics,
    ) -> None:
        self.id = session_id
        self.options = options
        self.limits = limits
        self.opened_s: float | None = None
        """When it got its place."""
        self.token = ""
        """What it may be taken up with; see LiveService.token."""
        self._opening = opening
        self._clock = clock
        self._metrics = metrics
        self._settings = options.settings
        self._max_slices = options.max_slices
        self._cutter = UnitCutter(options.max_frames)
        self._backlog = Backlog()
        self._pace = Pace(clock.now())
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._narrator = Narrator(self._tell, clock, metrics, opening.max_len)
        self._engine: Session | None = None
        self._client: EngineClient | None = None
        self._reason: Reason | None = None
        self._closed: Closed | None = None
        self._feeding = asyncio.Event()
        self._room = asyncio.Event()
        self._heard_s = clock.now()
        self._paused_s: float | None = None
        self._pause_s = limits.pause_s
        self._detached_s: float | None = None
        self._is_draining = self._is_finishing = False
        self._started_s = clock.now()
        self._played_s: float | None = None

    # ---- what the service does -------------------------------------------------------------------------------------

    def begin(self, client: EngineClient) -> None:
        """Take a place. Raises BusyError where there is none."""
        opening = self._opening
        self._engine = client.open_session(
            opening.prompt,
            opening.prompts.policy,
            opening.policy,
            sampling=replace(client.default_sampling, seed=self._settings.seed),
            max_len=opening.max_len,
            max_units=IN_ENGINE,
            session_id=self.id,
            namespace=self.options.key,
            speech=opening.speech,
        )
        self._client = client
        self.opened_s = self._clock.now()

    async def run(self) -> None:
        """From the place to the end."""
        assert self._engine is not None
        feeder: asyncio.Task[None] | None = None
        error: SensoriumError | None = None
        try:
            await self._engine.aopened()
            now = self._clock.now()
            self._started_s = self._heard_s = now
            self._tell(Opened(speech=self._opening.speech is not None))
            feeder = asyncio.create_task(self._feed())
            async for event in self._engine:
                error = self._narrator.take(event, self._engine.turn) or error
                self._room.set()
                if isinstance(event, UnitFailed) and event.code == ContextLengthError.code:
                    self._end_if_full()
                self._end_if_drained()
        except SensoriumError as failed:
            error = failed
        except Exception:
            log.exception("a live session failed")
            error = EngineDeadError("the session failed; the server's log has the details")
            self._engine.abort()
        finally:
            if feeder is not None:
                feeder.cancel()
                await asyncio.wait((feeder,))
            self.close_with(self._reason or _reason(error), error if self._reason is None else None)

    def close_with(self, reason: Reason, error: SensoriumError | None = None) -> None:
        """Tell the end, once."""
        if self._closed is None:
            self._backlog.clear()
            self._metrics.ended(reason)
            self._closed = Closed(reason, self.usage, error)
            self._events.put_nowait(self._closed)

    def end(self, reason: Reason) -> None:
        """End at once: what is being said is not finished."""
        if self._reason is None and self._closed is None:
            self._reason = reason
            if self._engine is None:
                self.close_with(reason)
            else:
                self._engine.abort()

    def finish(self) -> None:
        """Hear nothing more; end when all that was heard has been answered."""
        self._is_finishing = True
        self._feeding.set()

    def _end_if_full(self) -> None:
        if self._settings.window == "off":
            self.end("context_full")

    def drain(self) -> None:
        """The server ends: go on until what is being said is finished, and then tell."""
        self._is_draining = True
        self._end_if_drained()

    def _end_if_drained(self) -> None:
        if self._is_draining and self._narrator.is_quiet:
            self.end("shutting_down")

    def tick(self, now_s: float) -> None:
        """Look at the times that have run out."""
        if self.opened_s is None or self._closed is not None:
            return
        limits, paused = self.limits, self._paused_s
        if self._detached_s is not None and now_s - self._detached_s >= limits.resume_s:
            self.end("lost")
        elif now_s - self._started_s >= limits.max_s:
            self.end("expired")
        elif paused is not None and now_s - paused >= self._pause_s:
            self.end("paused")
        elif paused is None and self._detached_s is None and now_s - self._heard_s >= limits.idle_s:
            self.end("idle")

    # ---- what the client sends -------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether what is sent is heard."""
        ending = self._is_finishing or self._reason is not None or self._closed is not None
        return self.opened_s is not None and not ending

    @property
    def is_over(self) -> bool:
        return self._closed is not None or self._reason is not None

    @property
    def heard(self) -> int:
        """Samples heard, at 16 kHz."""
        return self._cutter.end

    @property
    def max_len(self) -> int:
        return self._opening.max_len

    @property
    def usage(self) -> Usage:
        told = self._narrator
        seconds = 0.0 if self.opened_s is None else self._clock.now() - self._started_s
        return Usage(seconds, told.units, told.late, told.spoken_units, self.heard, told.spoken_samples, self._played_s)

    def check_audio(self, samples: int) -> None:
        """Raises what send_audio would raise for so many samples."""
        if self.is_open:
            self._refuse_in_pause("audio")
            self._pace.check(samples, self._clock.now())

    def send_audio(self, pcm: np.ndarray) -> None:
        """Sound, int16 [n] at 16 kHz, of any length. Raises OverloadedError where it runs too far ahead."""
        now = self._clock.now()
        if not self.is_open or not len(pcm):
            return
        self._refuse_in_pause("audio")
        self._pace.take(len(pcm), now)
        self._heard_s = now
        for unit in self._cutter.hear(pcm, now):
            late = self._backlog.put(unit)
            if late is not None:
                self._metrics.dropped(late.dropped_s, late.frames)
                self._tell(late)
            self._feeding.set()

    def send_frame(self, data: bytes) -> None:
        """A picture as a file. Of each unit the newest are used."""
        if self.is_open:
            self._refuse_in_pause("frame")
            self._metrics.superseded(self._cutter.see(data))

    def send_text(self, text: str) -> None:
        """Typed words, read with the next unit."""
        if len(text) > MAX_TEXT:
            raise RequestError(f"text: at most {MAX_TEXT} characters", param="text")
        if self.is_open and text:
            self._refuse_in_pause("text")
            self._cutter.read(text)

    def force_listen(self) -> None:
        """The unit that is being filled listens; a turn ends with it."""
        self._cutter.force_listen()

    def force_speak(self) -> None:
        """The unit that is being filled speaks."""
        self._cutter.force_speak()

    def interrupt(self) -> None:
        """End what is being said, at once."""
        if self._engine is not None and self.is_open:
            self._engine.barge_in()
            self._narrator.interrupt()
            self._end_if_drained()

    def mute(self, on: bool) -> None:
        """What is heard meanwhile counts as silence."""
        self._cutter.muted = on
        self._tell(Muted(on))

    def pause(self, seconds: float | None = None) -> None:
        """Compute nothing until resume(), for so long at most."""
        if self._engine is not None and self.is_open:
            self._pause_s = self.limits.pause_s if seconds is None else min(max(seconds, 0.0), self.limits.pause_s)
            self._paused_s = self._clock.now()
            self._engine.pause()
            self._tell(Paused(True))

    def resume(self) -> None:
        if self._engine is not None and self.is_open and self._paused_s is not None:
            self._paused_s, self._heard_s = None, self._clock.now()
            self._engine.resume()
            self._tell(Paused(False))

    def update(self, settings: LiveSettings, max_frames: int, max_slices: int) -> None:
        """From the next unit on. What a session is opened with, its instructions, window and seed, stays."""
        kept = self._settings
        self._settings = replace(
            settings,
            instructions=kept.instructions,
            window=kept.window,
            seed=kept.seed,
            force_listen_units=kept.force_listen_units,
        )
        self._cutter.max_frames, self._max_slices = max_frames, max_slices

    @property
    def settings(self) -> LiveSettings:
        return self._settings

    @property
    def frames(self) -> tuple[int, int]:
        """Pictures used of a unit, and tiles of each."""
        return self._cutter.max_frames, self._max_slices

    @property
    def pause_s(self) -> float:
        """How long a pause may last that has begun."""
        return self._pause_s

    def played(self, seconds: float) -> None:
        """How much its client has played."""
        self._played_s = seconds

    def detach(self) -> None:
        """Its client is gone; it may be back."""
        self._detached_s = self._clock.now()

    def attach(self) -> None:
        self._detached_s, self._heard_s = None, self._clock.now()

    def _refuse_in_pause(self, what: str) -> None:
        if self._paused_s is not None:
            error = RequestError(f"{what}: the session is paused; resume it first", param=what)
            error.code = "paused"
            raise error

    # ---- out -------------------------------------------------------------------------------------------------------

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            event = await self._events.get()
            yield event
            if isinstance(event, Closed):
                return

    def _tell(self, event: Event) -> None:
        if self._closed is None:
            self._events.put_nowait(event)

    def tell(self, event: Event) -> None:
        """For the service: what is told while it waits."""
        self._tell(event)

    # ---- units to the engine ---------------------------------------------------------------------------------------

    async def _feed(self) -> None:
        engine = self._engine
        assert engine is not None
        with contextlib.suppress(EngineDeadError):
            while True:
                self._feeding.clear()
                while len(self._backlog):
                    self._room.clear()
                    if engine.room <= 0:
                        await self._room.wait()
                        continue
                    await self._hand(engine, self._backlog.take())
                if self._is_finishing:
                    engine.close()
                    return
                await self._feeding.wait()

    async def _hand(self, engine: Session, unit: LiveUnit) -> None:
        """Make a unit ready and append it."""
        prompts, begun = self._opening.prompts, self._clock.now()
        try:
            frames = await self._prepared(unit.frames)
            prompt, deciding = await asyncio.to_thread(prompts.unit, unit.samples, frames, unit.texts)
            now = self._clock.now()
            forced = {"force_listen": unit.force_listen, "force_speak": unit.force_speak}
            options = prompts.unit_options(self._settings, **forced)
            due = unit.heard_s + UNIT_S
            index = engine.append(prompt, deadline_s=due, deciding=deciding, options=options)
        except EngineDeadError:
            raise
        except SensoriumError as error:
            self._tell(Wrong(error))
            return
        handed = Handed(index, unit.end - len(unit.samples), unit.end, unit.heard_s, now, now - begun)
        self._narrator.handed(handed)

    async def _prepared(self, files: list[bytes]) -> list[Prepared]:
        """Pictures as the model takes them; what is no picture is told and left out."""
        if not files or self._client is None:
            return []
        kwargs = self._opening.prompts.frame_options(self._max_slices)
        refs = [MediaRef("image", data, part="frame") for data in files]
        try:
            return await self._client.aprepare_media(refs, ChatOptions(media_kwargs=kwargs))
        except EngineDeadError:
            raise
        except SensoriumError as error:
            self._tell(Wrong(error))
            return []


def _reason(error: SensoriumError | None) -> Reason:
    if error is None:
        return "stopped"
    if error.code == "context_length_exceeded":
        return "context_full"
    return {"engine_dead": "engine_restarted", "shutting_down": "shutting_down"}.get(error.code, "failed")  # type: ignore[return-value]
