"""One connection in OpenAI's events: what the client sends is done in order, answers and transcripts run beside it."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from sensorium.errors import RequestError, SensoriumError
from sensorium.server.errors import describe
from sensorium.server.live.clock import Clock
from sensorium.server.realtime.answers import Answering
from sensorium.server.realtime.audio import Ear, Heard, to_wav, with_media
from sensorium.server.realtime.conversation import Conversation, Item, made_id, spoken_item
from sensorium.server.realtime.judge import Judge
from sensorium.server.realtime.schema import (
    AppendAudio,
    CancelResponse,
    ClearAudio,
    ClearOutput,
    CommitAudio,
    CreateItem,
    CreateResponse,
    DeleteItem,
    Event,
    ResponseInput,
    RetrieveItem,
    SemanticVad,
    ServerVad,
    TruncateItem,
    UpdateSession,
    UpdateTranscriptionSession,
    read_event,
    read_object,
    refusal,
)
from sensorium.server.realtime.session import Session
from sensorium.server.realtime.transcripts import Transcriber
from sensorium.server.realtime.turn_end import TAIL_S
from sensorium.server.realtime.turns import Paused, Started, Stopped, Turns
from sensorium.server.realtime.writer import Response, Writer
from sensorium.vad import RATE, Detector, EnergyDetector

log = logging.getLogger(__name__)
Send = Callable[[dict[str, Any]], Awaitable[None]]
MAX_BESIDE = 8
"""Responses and transcripts of one connection at once."""
LONG_AUDIO = 256 << 10
"""Characters of base64 from which a piece is decoded off the event loop."""


SHORTEST = RATE // 10
"""Samples that can be an item."""


class Connection:
    """Use once: `open`, then `take` for every message, then `close`."""

    def __init__(
        self,
        session: Session,
        answering: Answering,
        transcriber: Transcriber,
        send: Send,
        max_s: float,
        clock: Clock,
        detector: Callable[[], Detector] = EnergyDetector,
    ) -> None:
        """max_s: seconds of sound that may wait in the input buffer. detector: makes what hears speech."""
        # The same throughout: what it knows of the background holds beyond a turn.
        self._detector = detector()
        self._session = session
        self._answering = answering
        self._transcriber = transcriber
        self._send = send
        self._clock = clock
        self._judge = Judge(transcriber, clock)
        # Messages, judgements of pauses and the end of a long silence are dealt with one after the other.
        self._lock = asyncio.Lock()
        self._conversation = Conversation()
        self._judging: asyncio.Task[None] | None = None
        self._silence: asyncio.Task[None] | None = None
        self._silent_from: int | None = None
        self._heard = Heard(int(max_s * RATE))
        self._ear = Ear(session.format)
        self._turns = self._listen()
        self._speaking: str | None = None
        self._active: asyncio.Task[None] | None = None
        self._response: Response | None = None
        self._beside: dict[asyncio.Task[None], Response | None] = {}

    async def open(self) -> None:
        created = self._session.told()
        # The last two fields are what a client of vLLM's dialect reads.
        await self._tell("session.created", session=created, id=self._session.id, created=self._session.expires_at)

    async def close(self) -> None:
        """Nobody listens any more: stop all work."""
        tasks = [task for task in (self._active, self._judging, self._silence, *self._beside) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def take(self, data: str | bytes) -> bool:
        """One message of the client; whether it was good. What is wrong with it is told and changes nothing else."""
        ident: str | None = None
        async with self._lock:
            try:
                event = read_event(data)
                ident = event.event_id
                await self._dispatch(event)
            except Exception as error:
                await self._tell_failure(error, ident or _ident_of(data))
                return False
        return True

    async def _tell_failure(self, error: Exception, event_id: str | None = None) -> None:
        if not isinstance(error, SensoriumError):
            log.exception("a message to /v1/realtime failed")
        await self.tell_error(error, event_id)

    async def tell_error(self, error: BaseException, event_id: str | None = None) -> None:
        _, body, _ = describe(error)
        detail = body.error
        kind = detail.type if detail.type != "not_found_error" else "invalid_request_error"
        told = {"type": kind, "code": detail.code, "message": detail.message, "param": detail.param}
        await self._tell("error", error={**told, "event_id": event_id})

    async def _tell(self, kind: str, **fields: Any) -> None:
        await self._send({"type": kind, "event_id": made_id("event"), **fields})

    async def _dispatch(self, event: Event) -> None:
        match event:
            case UpdateSession():
                await self._update(event)
            case UpdateTranscriptionSession(session=wanted):
                wanted.type = "transcription"
                await self._update(event)
            case AppendAudio(audio=audio):
                await self._append(audio)
            case CommitAudio():
                await self._commit()
            case ClearAudio():
                self._forget_input()
                await self._tell("input_audio_buffer.cleared")
            case ClearOutput():
                await self._clear_output()
            case CreateItem():
                await self._create(event)
            case RetrieveItem(item_id=ident):
                item = self._conversation.get(ident, "item_retrieve_invalid_item_id")
                told = await asyncio.to_thread(with_media, item, self._session.format)
                await self._tell("conversation.item.retrieved", item=told)
            case DeleteItem(item_id=ident):
                self._conversation.delete(ident)
                await self._tell("conversation.item.deleted", item_id=ident)
            case TruncateItem():
                await self._truncate(event)
            case CreateResponse(response=wanted):
                await self._respond(wanted or ResponseInput())
            case CancelResponse(response_id=ident):
                self._cancel(ident)

    # ---- session --------------------------------------------------------------------------------------------------

    async def _update(self, event: UpdateSession | UpdateTranscriptionSession) -> None:
        before, given = self._session, event.session
        session = before.changed(given)
        if given.model is not msgspec.UNSET and given.model != before.model:
            raise RequestError("session.model: cannot change during a session", param="session.model")
        if session.answers.tools:  # else a choice may come before the tools that it is about
            self._answering.tools(session.answers)
        if session.answers.voice != before.answers.voice and self._conversation.is_heard:
            reason = "session.audio.output.voice: cannot change once an answer was heard; connect again"
            raise refusal("cannot_update_voice", reason, "session.audio.output.voice")
        await self._answering.voice(session.answers)
        unable = session.transcription is not None and not self._transcriber.is_able(session.transcription)
        if unable:
            session = replace(session, transcription=None)
        if session.format != before.format:
            self._forget_input()
            self._ear = Ear(session.format)
        self._session = session
        if session.turn_detection != before.turn_detection:
            self._break_silence()
            self._turns = self._listen()
        prefix = "transcription_" if isinstance(event, UpdateTranscriptionSession) else ""
        await self._tell(f"{prefix}session.updated", session=session.told())
        if unable:
            reason = "session.audio.input.transcription: this model cannot write down speech"
            raise refusal("transcription_unavailable", reason, "session.audio.input.transcription")

    def _listen(self) -> Turns | None:
        """Begin anew to find turns in what is heard from here on."""
        detection = self._session.turn_detection
        self._speaking = None
        if self._judging is not None:
            self._judging.cancel()
            self._judging = None
        return None if detection is None else Turns(detection, self._heard.end, self._detector)

    # ---- sound ----------------------------------------------------------------------------------------------------

    async def _append(self, audio: str) -> None:
        if len(audio) > LONG_AUDIO:
            samples = await asyncio.to_thread(self._ear.hear, audio)
        else:
            samples = self._ear.hear(audio)
        await self._hear(samples)

    async def _hear(self, samples: np.ndarray) -> None:
        self._heard.add(samples)
        if self._turns is not None:
            self._turns.feed(samples)
            if self._judging is None:
                await self._find_turns(self._turns, is_long=len(samples) > RATE)

    async def _find_turns(self, turns: Turns, *, is_long: bool) -> None:
        """Deal with what is in the sound, up to a pause that has to be judged first."""
        while event := await asyncio.to_thread(turns.next) if is_long else turns.next():
            if isinstance(event, Started):
                await self._begin_turn(event)
            elif isinstance(event, Stopped):
                await self._end_turn(event)
            else:
                self._judging = _started(self._weigh(turns, event))
                return
        self._forget_heard(turns)

    def _forget_heard(self, turns: Turns) -> None:
        needed = turns.needed
        self._heard.forget(needed if self._silent_from is None else min(needed, self._silent_from))

    async def _weigh(self, turns: Turns, pause: Paused) -> None:
        session = self._session
        detection = session.turn_detection
        assert isinstance(detection, SemanticVad)
        said = self._heard.copy(max(pause.start, pause.at - int(TAIL_S * RATE)), pause.at)
        try:
            turns.wait(await self._judge.wait_ms(said, detection, session.transcription))
        except Exception as error:  # the longest wait holds
            await self._tell_failure(error)
        async with self._lock:
            if self._turns is turns:
                self._judging = None
                try:
                    await self._find_turns(turns, is_long=True)
                except Exception as error:
                    await self._tell_failure(error)

    async def _begin_turn(self, event: Started) -> None:
        self._break_silence()
        self._speaking = made_id("item")
        await self._tell("input_audio_buffer.speech_started", audio_start_ms=_ms(event.at), item_id=self._speaking)
        if self._detection.interrupt_response and self._active is not None:
            self._stop("turn_detected")

    async def _end_turn(self, event: Stopped) -> None:
        ident, self._speaking = self._speaking or made_id("item"), None
        await self._tell("input_audio_buffer.speech_stopped", audio_end_ms=_ms(event.at), item_id=ident)
        await self._put_spoken(ident, self._heard.take(event.start, event.at))
        if self._detection.create_response and self._session.kind == "realtime":
            await self._respond(ResponseInput())

    @property
    def _detection(self) -> ServerVad | SemanticVad:
        assert self._session.turn_detection is not None
        return self._session.turn_detection

    # ---- a silence that lasts -------------------------------------------------------------------------------------

    def _await_silence(self, played_s: float) -> None:
        """From when an answer has been heard to its end, count the silence after it."""
        detection = self._session.turn_detection
        timeout = detection.idle_timeout_ms if isinstance(detection, ServerVad) else None
        if timeout is not None and self._active is None and self._speaking is None:
            self._break_silence()
            self._silence = _started(self._be_silent(played_s, timeout / 1000))

    def _break_silence(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
        self._silence = self._silent_from = None

    async def _be_silent(self, played_s: float, timeout_s: float) -> None:
        end = self._clock.now() + played_s
        await self._clock.sleep_until(end)
        self._silent_from = self._heard.end
        await self._clock.sleep_until(end + timeout_s)
        async with self._lock:
            start, end_ = self._silent_from, self._heard.end
            self._silence = self._silent_from = None
            if self._turns is None or self._active is not None:
                return
            ident = made_id("item")
            place = {"audio_start_ms": _ms(start), "audio_end_ms": _ms(end_)}
            await self._tell("input_audio_buffer.timeout_triggered", **place, item_id=ident)
            self._turns.skip(end_)
            try:
                await self._put_spoken(ident, self._heard.take(start, end_))
                await self._respond(ResponseInput())
            except Exception as error:
                await self._tell_failure(error)

    async def _commit(self) -> None:
        if self._turns is None:
            self._heard.add(self._ear.end())
        self._break_silence()
        if self._heard.end - self._heard.start < SHORTEST:
            raise refusal("input_audio_buffer_commit_empty", "the input buffer holds less than 100 ms of sound")
        ident = self._speaking or made_id("item")
        samples = self._heard.take(self._heard.start, self._heard.end)
        self._turns = self._listen()
        await self._put_spoken(ident, samples)

    def _forget_input(self) -> None:
        self._heard.forget(self._heard.end)
        if self._silent_from is not None:
            self._silent_from = self._heard.end
        self._turns = self._listen()

    async def _put_spoken(self, ident: str, samples: np.ndarray) -> None:
        is_sound = len(samples) >= SHORTEST
        item = spoken_item(ident, to_wav(samples) if is_sound else None)
        before = self._conversation.add(item)
        await self._tell("input_audio_buffer.committed", item_id=ident, previous_item_id=before)
        await self._told_item(item, before)
        if self._session.transcription is not None and is_sound:
            tell = functools.partial(self._tell, item_id=ident, content_index=0)
            seconds, logprobs = len(samples) / RATE, bool(self._session.include)
            work = self._transcriber.transcribe(item, self._session.transcription, seconds, tell, logprobs=logprobs)
            self._aside(work)

    # ---- items ----------------------------------------------------------------------------------------------------

    async def _create(self, event: CreateItem) -> None:
        item = self._conversation.read(event.item, self._as_wav)
        before = self._conversation.add(item, event.previous_item_id)
        await self._told_item(item, before)

    def _as_wav(self, audio: str) -> bytes:
        ear = Ear(self._session.format)
        return to_wav(np.concatenate([ear.hear(audio), ear.end()]))

    async def _told_item(self, item: Item, before: str | None) -> None:
        for kind in ("conversation.item.added", "conversation.item.done"):
            await self._tell(kind, previous_item_id=before, item=item.told())

    async def _truncate(self, event: TruncateItem) -> None:
        item = self._conversation.get(event.item_id)
        if item.role != "assistant":
            raise RequestError("item_id: only answers can be truncated", param="item_id")
        if item.status == "in_progress" and self._active is not None:
            self._stop("client_cancelled")  # whoever has heard enough of it wants no more
            await asyncio.wait({self._active})
        if not 0 <= event.content_index < len(item.content):
            raise RequestError("content_index: there is no such part", param="content_index")
        if item.sound_ms is None:
            raise RequestError("audio_end_ms: that answer has no sound", param="audio_end_ms")
        if event.audio_end_ms > item.sound_ms + 1:  # clients round
            reason = f"audio_end_ms: that answer has {item.sound_ms} ms of sound"
            raise RequestError(reason, param="audio_end_ms")
        item.cut(min(event.audio_end_ms, item.sound_ms))
        told = {"content_index": event.content_index, "audio_end_ms": event.audio_end_ms}
        await self._tell("conversation.item.truncated", item_id=item.id, **told)

    async def _clear_output(self) -> None:
        """What was sent is with the client; more of it is not made."""
        active = self._response
        self._stop("client_cancelled")
        await self._tell("output_audio_buffer.cleared", response_id=active.id if active is not None else "")

    # ---- answers --------------------------------------------------------------------------------------------------

    async def _respond(self, wanted: ResponseInput) -> None:
        if self._session.kind == "transcription":
            raise RequestError("response.create: a transcription session has no answers", param="type")
        joins, active = wanted.conversation == "auto", self._response
        if joins and active is not None and active.stopped is None:
            reason = "a response is being made already; cancel it or wait for response.done"
            raise refusal("conversation_already_has_active_response", reason)
        answers = self._session.answers.changed(wanted, "response")
        self._answering.tools(answers)
        await self._answering.voice(answers, "response.audio.output.voice")
        given = None
        if wanted.input is not None:
            places = enumerate(wanted.input)
            given = [self._conversation.read(item, self._as_wav, f"response.input[{n}]") for n, item in places]
        if joins and self._active is not None:
            await asyncio.wait({self._active})  # it was cancelled, and says so before the next one begins
        response = Response(made_id("resp"), self._conversation.id if joins else None, wanted.metadata, answers)
        items = [item for item in self._conversation if not item.is_left_out] if given is None else given
        work = self._make(response, items, is_kept=given is None and joins)
        if joins:
            self._break_silence()
            self._response = response
            self._active = _started(work)
        else:
            self._aside(work, response)

    async def _make(self, response: Response, items: list[Item], *, is_kept: bool) -> None:
        joins = response.conversation_id is not None

        def add(item: Item) -> str | None:
            return self._conversation.add(item) if joins else None

        writer = Writer(response, self._tell, add)
        try:
            await self._tell("response.created", response=response.told())
            await self._answering.answer(response, items, writer, self._session.truncation, is_kept=is_kept)
        except asyncio.CancelledError:
            if response.stopped is None:
                raise  # the connection is gone
            response.status = "cancelled"
            response.status_details = {"type": "cancelled", "reason": response.stopped}
        response.stopped = response.stopped or "ended"  # too late to stop it: its end is told whole
        await writer.end("completed" if response.status == "completed" else "incomplete")
        if joins:
            self._active = self._response = None
        await self._tell("response.done", response=response.told())
        await self._tell("rate_limits.updated", rate_limits=[])
        if joins and response.status in ("completed", "incomplete"):
            self._await_silence(sum(item.sound_ms or 0 for item in response.output) / 1000)

    def _cancel(self, ident: str | None) -> None:
        """Of the conversation's response, or of the one that is named."""
        running = [(self._response, self._active), *((response, task) for task, response in self._beside.items())]
        for response, task in running[:1] if ident is None else running:
            if response is None or task is None or response.stopped is not None or ident not in (None, response.id):
                continue
            response.stopped = "client_cancelled"
            task.cancel()
            return
        raise refusal("response_cancel_not_active", "Cancellation failed: there is no such response to cancel")

    def _stop(self, reason: str) -> None:
        if self._active is not None and self._response is not None and self._response.stopped is None:
            self._response.stopped = reason
            self._active.cancel()

    def _aside(self, work: Coroutine[Any, Any, None], response: Response | None = None) -> None:
        if len(self._beside) >= MAX_BESIDE:
            work.close()
            raise RequestError(f"more than {MAX_BESIDE} things are being done for this connection; wait for one")
        task = _started(work)
        self._beside[task] = response
        task.add_done_callback(self._beside.pop)


def _ident_of(data: str | bytes) -> str | None:
    """The event_id of a message that could not be read: clients wait for what becomes of it."""
    ident = read_object(data).get("event_id")
    return ident[:512] if isinstance(ident, str) else None


def _started(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task of whose failure nobody need ask: what fails outside its own care is that the client has gone."""
    task = asyncio.create_task(work)
    task.add_done_callback(lambda done: None if done.cancelled() else done.exception())
    return task


def _ms(place: int) -> int:
    return place * 1000 // RATE
