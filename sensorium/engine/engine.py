"""The engine. One step: control, schedule, encode, run, advance. Single-threaded; the clock is an argument."""

from __future__ import annotations

import logging
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sensorium.engine.answers import Answers, spoken_end
from sensorium.engine.codec import CodecStage
from sensorium.engine.compiling import Compiling
from sensorium.engine.counters import Counters, UnitCounters
from sensorium.engine.detokenizer import Detokenizer
from sensorium.engine.grammar import GrammarCompiler, Matcher
from sensorium.engine.outputs import Output
from sensorium.engine.protocol import (
    Abort,
    AddVoice,
    Control,
    EngineStats,
    ForgetMedia,
    ForgetPrefixes,
    OpenSession,
    OpenSpeech,
    RefuseWaiting,
    RemoveVoice,
    SessionControl,
    SpeechControl,
)
from sensorium.engine.rules import BadWords, ThinkingBudget, bad_word_ids, thinking_marks
from sensorium.engine.runner import Chosen, Runner
from sensorium.engine.sampler import NOT_A_NUMBER, Sampled, SampleState, Unsampled
from sensorium.engine.scheduler import Batch, Scheduler, Work
from sensorium.engine.sequence import Sequence, Status
from sensorium.engine.sessions import Sessions
from sensorium.engine.speakers import Speakers
from sensorium.engine.speech import SpeechStage
from sensorium.engine.speech_calls import SpeechCalls
from sensorium.engine.turns import Turns
from sensorium.engine.voices import VoiceMade, Voices
from sensorium.errors import SensoriumError
from sensorium.models.base import Tokenizer
from sensorium.types import (
    Codes,
    Decision,
    Event,
    Failed,
    Finished,
    FinishReason,
    Pooled,
    PromptScored,
    Request,
    Sound,
    TextDelta,
    Timings,
    Usage,
)

log = logging.getLogger(__name__)
_WORTH, _NEXT = 320, 640
"""Tokens that are worth a step, whose arithmetic then takes longer than reading the weights; and one that is launched
while another runs. Both may become more and still be a graph."""


class Engine:
    """Runs requests to their terminal event. Only its own thread calls `step`; `inbox` may be appended to from any."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        max_model_len: int,
        grammars: GrammarCompiler,
        clock: Callable[[], float] = time.monotonic,
        speech: SpeechStage | None = None,
        codec: CodecStage | None = None,
        voices: Mapping[str, Any] | None = None,
    ) -> None:
        self.runner = runner
        self.scheduler = scheduler
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self.clock = clock
        self.inbox: deque[Request | Control | VoiceMade] = deque()
        self.turns = Turns(1)
        """Of callers that share the interpreter."""
        self.wake: Callable[[], None] = lambda: None
        """Called when something has come into the inbox from a thread of the engine's own."""
        self.stats = EngineStats()
        self.speech, self.codec = speech, codec
        for stage in (speech, codec):
            if stage is not None:
                stage.passes = runner.passes
        # Its parts do not keep it: with its last owner the engine is gone, and gigabytes are free at once.
        me, put = weakref.proxy(self), weakref.WeakMethod(self._put)
        self.voices = Voices(codec, voices or {}, lambda made: (call := put()) and call(made))
        self.speakers = Speakers(speech, codec, self.voices)
        self._calls = SpeechCalls(self.speakers, lambda: me.clock())
        self._answers = Answers(self.speakers, runner.readout, tokenizer)
        self._spoken_end = spoken_end(runner.model, tokenizer)
        self._sequences: dict[str, Sequence] = {}
        self._outputs: dict[str, Output] = {}
        self.sessions = Sessions(scheduler, runner, tokenizer, lambda: me.clock(), self.speakers)
        self._compiling = Compiling(grammars)
        self._follow = Batch()
        """The step after this one, where that is decided already."""
        self._paced_s = 0.0
        """When the step that is computed began, or the one before it was over."""
        self._counters = self._count()

    @property
    def has_work(self) -> bool:
        return bool(self.inbox) or self.scheduler.has_work or bool(self._compiling) or self.speakers.has_work

    def _put(self, message: VoiceMade) -> None:
        self.inbox.append(message)
        self.wake()

    def step(self) -> list[Event]:
        """One step. An exception ends the requests that took part in it, never the engine."""
        events: list[Event] = []
        if not self._follow.works:
            self._paced_s = self.clock()
        laps = self._counters.laps
        laps.start()
        self._drain_inbox(events)
        self.sessions.move_rows()
        self._take_compiled(events)
        laps.lap("control")
        if self.runner.runs_ahead:
            self.turns.hold()  # others go on while the device computes
        batch = self._next_batch()
        laps.lap("schedule")
        self.speakers.mark()
        try:
            self._encode(batch, events)
            laps.lap("encode")
            tokens = self._run(batch, events) if batch.works else {}
        except Exception as error:
            self._follow = Batch()
            log.exception("a step failed; its %d requests end", len(batch.works))
            for work in batch.works:
                self._fail(work.seq, _explain(error), events)
            tokens = {}
        laps.lap("run")
        since, self._paced_s = self._paced_s, self.clock()
        self.scheduler.took(batch, self._paced_s - since)
        self._advance(batch, tokens, events)
        self.sessions.move_rows()
        laps.lap("advance")
        idle = not (batch.works or self.scheduler.has_work)
        if not (batch.works and self.scheduler.has_work and self.speakers.go_beside):
            self.speakers.speak(events, lambda: idle and not self.inbox)
            laps.lap("speech")
            self.speakers.sound(events, lambda: idle and not self.inbox)
        if self.codec is not None:
            self._hear(events)
        self._answers.release(events)
        self.sessions.release(events)
        laps.lap("codec")
        self._counters.step(sum(work.count for work in batch.works))
        self._update_stats()
        laps.lap("count")
        return events

    def _run(self, batch: Batch, events: list[Event]) -> dict[str, Chosen]:
        def meanwhile(is_over: Callable[[], bool]) -> None:
            self.turns.let_go()
            self.speakers.beside(events, is_over)

        return self.runner.run(batch, lambda is_over: self._followers(batch, events, is_over), meanwhile)

    def _hear(self, events: list[Event]) -> None:
        now = self.clock()
        for event in events:
            if isinstance(event, Sound):
                self._counters.units.heard(event, now)

    def _next_batch(self) -> Batch:
        """What the device was told to compute already, less what ended meanwhile; or what the scheduler says."""
        started, self._follow = self._follow, Batch()
        started.works = [work for work in started.works if work.seq.status is Status.RUNNING]
        return started if started.works else self.scheduler.schedule(self.clock())

    def _followers(self, batch: Batch, events: list[Event], is_over: Callable[[], bool]) -> list[Work]:
        """What the device may start before it is known which tokens this step yields."""
        readout = self.runner.readout
        if not self.runner.runs_ahead:
            return []
        if self._is_last(batch):
            self.turns.gather(lambda: is_over() or self.has_enough(_NEXT))
        self._take_early(events)
        if self._compiling or readout.is_observing or (self.inbox and self.sessions):
            return []
        sampling = [work.seq for work in batch.works if work.sample]
        if any(seq.resident or not readout.states[seq.id].takes_likeliest for seq in sampling):
            return []
        if self._answers and any(readout.speaks(seq.id) for seq in sampling):
            return []
        self._follow = self.scheduler.follow(batch, self._ends_next, self.clock())
        self._encode(self._follow, events)
        self._follow.is_encoded = True
        return self._follow.works

    def _is_last(self, batch: Batch) -> bool:
        """Whether no sequence of this step goes on behind it, and none is left out of it."""
        if self.sessions or len(batch.works) < len(self.scheduler.running):
            return False
        return all(work.sample and self._ends_next(work.seq) for work in batch.works)

    def has_enough(self, worth: int = _WORTH) -> bool:
        """Whether those who wait fill a step, or keep a device busy that can be given the next one meanwhile."""
        asked = sum(len(message.prompt.ids) for message in list(self.inbox) if isinstance(message, Request))
        asked += sum(len(seq.ids) for seq in self.scheduler.waiting)
        full = self.scheduler.max_num_batched_tokens
        return asked >= (min(worth, full) if self.runner.runs_ahead else full)

    def _take_early(self, events: list[Event]) -> None:
        """Let requests enter that came while a step was started: the next one need not wait for its end."""
        while self.inbox and isinstance(first := self.inbox[0], Request) and not first.sampling.structured_outputs:
            self.inbox.popleft()
            self._enter(first, None, events)

    def _ends_next(self, seq: Sequence) -> bool:
        return self._outputs[seq.id].ends_next(seq)

    def fail_all(self, message: str, code: str = "engine_dead", status: int = 503) -> list[Event]:
        """Terminal events for everything in flight or in the inbox (shutdown, a dead engine)."""
        failed: list[Event] = [Failed(seq_id, code, message, status) for seq_id in self._sequences]
        failed += [Failed(request_id, code, message, status) for request_id in self._compiling.close()]
        failed += [Failed(r.id, code, message, status) for r in self.inbox if isinstance(r, Request)]
        opening = [m.request.id for m in self.inbox if isinstance(m, OpenSession)]
        failed += [Failed(session_id, code, message, status) for session_id in opening]
        failed += [Failed(m.speech_id, code, message, status) for m in self.inbox if isinstance(m, OpenSpeech)]
        failed += self.sessions.fail_all(message, code, status)
        failed += [Failed(m.request_id, code, message, status) for m in self.inbox if isinstance(m, AddVoice)]
        for part in (self._calls, self._answers, self.voices):
            failed += part.fail_all(message, code, status)
        self.inbox.clear()
        for seq in list(self._sequences.values()):
            self._remove(seq)
        return failed

    # ---- control and new requests ----------------------------------------------------------------------------------

    def _drain_inbox(self, events: list[Event]) -> None:
        messages: list[Request | Control | VoiceMade] = []
        while self.inbox:
            messages.append(self.inbox.popleft())
        aborted = {message.request_id for message in messages if isinstance(message, Abort)}
        for message in messages:
            if isinstance(message, RefuseWaiting):
                self._refuse_waiting(message, events)
            elif isinstance(message, ForgetPrefixes):
                self.scheduler.pool.forget_all()
            elif isinstance(message, ForgetMedia):
                self.scheduler.encoder_cache.forget_idle()
            elif isinstance(message, SessionControl):
                self.sessions.take(message, events)
            elif isinstance(message, SpeechControl):
                self._calls.take(message, events)
            elif isinstance(message, AddVoice | RemoveVoice | VoiceMade):
                self.voices.take(message, events)
            elif isinstance(message, Request) and message.id in aborted:
                self._abandon(message, events)
            elif isinstance(message, Request) and message.sampling.structured_outputs is not None:
                self._compiling.add(message, self._end_ids(message))
            elif isinstance(message, Request):
                self._enter(message, None, events)
        for seq_id in aborted:
            seq = self._sequences.get(seq_id)
            if seq is not None:
                self._finish(seq, "abort", None, events)
            elif seq_id in self.sessions:
                self.sessions.finish(seq_id, "abort", events)
            elif seq_id in self._calls:
                self._calls.finish(seq_id, events)
            elif seq_id in self._answers:
                self._answers.abort(seq_id, events)
            elif seq_id in self.voices:
                self.voices.finish(seq_id, events)
            elif (request := self._compiling.discard(seq_id)) is not None:
                self._abandon(request, events)

    def _abandon(self, request: Request, events: list[Event]) -> None:
        """End a request that never became a sequence."""
        total_s = self.clock() - request.arrival_s
        timings = Timings(total_s, None, total_s)
        if (speech := request.speech) is not None:
            events.append(Sound(request.id, 0, 0, b"", "cut") if speech.voice else Codes(request.id, 0, (), "cut"))
        events.append(Finished(request.id, "abort", Usage(len(request.prompt.ids), 0), timings))

    def _take_compiled(self, events: list[Event]) -> None:
        """Let requests enter whose grammar is ready. Waits a moment if there is nothing else to do."""
        if not self._compiling:
            return
        for request, result in self._compiling.take(wait=not (self.scheduler.has_work or self.speakers.has_work)):
            if isinstance(result, Matcher):
                self._enter(request, result, events)
            else:
                events.append(Failed(request.id, result.code, result.message, result.status, result.param))

    def _refuse_waiting(self, message: RefuseWaiting, events: list[Event]) -> None:
        events += [Failed(seq_id, message.code, message.message, 503) for seq_id in self._compiling.clear()]
        for seq in list(self.scheduler.waiting):
            if seq.first_scheduled_s is None:
                self._fail(seq, message.message, events, message.code, 503)

    def _enter(self, request: Request, matcher: Matcher | None, events: list[Event]) -> None:
        """Take a request; one that cannot be taken fails alone."""
        try:
            self._add(request, matcher=matcher)
        except SensoriumError as error:
            events.append(Failed(request.id, error.code, error.message, error.status, error.param))
        except Exception as error:
            log.exception("a request could not be taken")
            events.append(Failed(request.id, "engine_error", _explain(error)))

    def _add(self, request: Request, *, matcher: Matcher | None = None) -> None:
        seq = Sequence(request, self.max_model_len)
        room = self.max_model_len - seq.prompt_len
        sampling = request.sampling
        eos: frozenset[int] = frozenset() if sampling.ignore_eos else frozenset(self.tokenizer.eos_ids)
        if request.speech is not None and not sampling.ignore_eos:
            eos |= self._spoken_end
        limit = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
        output = Output(Detokenizer(self.tokenizer, sampling), eos, limit, matcher)
        state = self._state(request, matcher)
        if request.speech is not None:
            self._answers.open(request)
        self.runner.readout.open(seq, state)
        # Nothing below fails: a request is known everywhere or nowhere.
        self._outputs[seq.id], self._sequences[seq.id] = output, seq
        self.scheduler.add(seq)

    def _state(self, request: Request, matcher: Matcher | None) -> SampleState:
        sampling, tokenizer = request.sampling, self.tokenizer
        bad_words = BadWords(bad_word_ids(sampling.bad_words, tokenizer)) if sampling.bad_words else None
        thinking = None
        if sampling.thinking_token_budget is not None and (marks := thinking_marks(tokenizer)) is not None:
            thinking = ThinkingBudget.after_prompt(sampling.thinking_token_budget, marks, request.prompt.ids)
        barred = tuple({*tokenizer.eos_ids, *sampling.stop_token_ids})
        return SampleState(sampling, request.prompt.ids, barred, matcher, bad_words, thinking)

    def _end_ids(self, request: Request) -> frozenset[int]:
        """Tokens that may end this request's answer."""
        own = () if request.sampling.ignore_eos else self.tokenizer.eos_ids
        return frozenset((*own, *request.sampling.stop_token_ids))

    # ---- parts of a step -------------------------------------------------------------------------------------------

    def _encode(self, batch: Batch, events: list[Event]) -> None:
        self.runner.drop_rows(self.scheduler.encoder_cache.take_evicted())
        if not batch.encode or batch.is_encoded:
            return
        self._counters.encoded_items += len(batch.encode)
        undone: set[str] = set()
        failed = self.runner.encode(batch.encode)
        for key, error in failed.items():
            log.error("encoding a media item failed", exc_info=error)
            self.scheduler.encoder_cache.discard(key)
            for seq in list(self._sequences.values()):
                if any(item.key == key for item in seq.media):
                    self._fail(seq, _explain(error), events)
            undone |= self.sessions.media_failed(key, _explain(error), events)
        batch.works = [
            work for work in batch.works if work.seq.status is not Status.FINISHED and work.seq.id not in undone
        ]

    def _advance(self, batch: Batch, tokens: dict[str, Chosen], events: list[Event]) -> None:
        now = self.clock()
        for work in batch.works:
            if work.seq.status is Status.FINISHED:
                continue
            try:
                self._advance_one(work, tokens, now, events)
            except Exception as error:
                log.exception("what a step made of one request could not be told; it ends")
                self._fail(work.seq, _explain(error), events)

    def _advance_one(self, work: Work, tokens: dict[str, Chosen], now: float, events: list[Event]) -> None:
        seq = work.seq
        if seq.resident:
            decided = tokens.get(seq.id)
            assert not isinstance(decided, tuple)
            self.sessions.advance(work, decided, now, events)
            return
        self.scheduler.complete(work)
        if work.start < seq.prompt_len:
            stop = min(work.start + work.count, seq.prompt_len)
            self._counters.prompt_tokens += max(stop - max(work.start, seq.counted), 0)
            seq.counted = max(stop, seq.counted)
        if not work.sample:
            if seq.request.pooling is not None and seq.computed == seq.prompt_len:
                self._pool(seq, now, events)
            return
        sampled = tokens[seq.id]
        if isinstance(sampled, Unsampled):
            self._fail(seq, sampled.message, events, sampled.code, sampled.status)
            return
        if (scores := self.runner.readout.take_scores(seq)) is not None:
            events.append(PromptScored(seq.id, scores))
        assert not isinstance(sampled, Decision)
        self._append(seq, sampled, now, events)

    def _pool(self, seq: Sequence, now: float, events: list[Event]) -> None:
        data = self.runner.readout.take_pooled(seq)
        if not np.isfinite(data).all():
            self._fail(seq, NOT_A_NUMBER.message, events)
            return
        seq.first_token_s = now
        events.append(Pooled(seq.id, data))
        self._finish(seq, "stop", None, events)

    def _append(self, seq: Sequence, sampled: Sampled, now: float, events: list[Event]) -> None:
        """Add one token to a sequence: stop rules, text, events."""
        token, logprob = sampled
        seq.ids.append(token)
        self._counters.generation_tokens += 1
        if seq.first_token_s is None:
            seq.first_token_s = now
        text, reason, stop_reason = self._outputs[seq.id].take(seq, token)
        events.append(TextDelta(seq.id, text, (token,), (logprob,) if logprob is not None else ()))
        if seq.request.speech is not None:
            self._answers.told(seq, reason, events)
        if reason is not None:
            self._finish(seq, reason, stop_reason, events)

    # ---- endings ---------------------------------------------------------------------------------------------------

    def _finish(self, seq: Sequence, reason: FinishReason, stop_reason: int | str | None, events: list[Event]) -> None:
        now, arrival = self.clock(), seq.request.arrival_s
        usage = Usage(seq.prompt_len, seq.num_generated, seq.cached, seq.request.prompt.media_tokens())
        timings = Timings(
            queue_s=(seq.first_scheduled_s if seq.first_scheduled_s is not None else now) - arrival,
            ttft_s=None if seq.first_token_s is None else seq.first_token_s - arrival,
            total_s=now - arrival,
            preemptions=seq.num_preemptions,
        )
        self._remove(seq)
        finished = Finished(seq.id, reason, usage, timings, stop_reason)
        if seq.id in self._answers:
            self._answers.hold(finished, events)
        else:
            events.append(finished)

    def _fail(
        self, seq: Sequence, message: str, events: list[Event], code: str = "engine_error", status: int = 500
    ) -> None:
        if seq.id in self.sessions:
            self.sessions.fail(seq.id, message, events, code, status)
        elif seq.id in self._sequences:
            self._remove(seq)
            failed = Failed(seq.id, code, message, status)
            if seq.id in self._answers:
                self._answers.fail(failed, events)
            events.append(failed)

    def _remove(self, seq: Sequence) -> None:
        self.scheduler.finish(seq)
        self.runner.readout.forget(seq.id)
        del self._sequences[seq.id], self._outputs[seq.id]

    def reset_stats(self) -> None:
        """Start counting afresh, e.g. after warm-up."""
        self.runner.encoder_s.clear()
        self.runner.device_s.clear()
        self.scheduler.reset_counters()
        self._counters = self._count()
        self._update_stats()

    def _count(self) -> Counters:
        self.sessions.counted = UnitCounters()
        return Counters(self.runner.encoder_s, self.runner.device_s, self.sessions.counted)

    def _update_stats(self) -> None:
        compiling = self._compiling
        self.runner.stopwatch.read()
        self.runner.passes.read()
        self.stats = self._counters.snapshot(
            self.scheduler, len(self.inbox), len(compiling), compiling.seconds, self.sessions.num_waiting
        )


def _explain(error: Exception) -> str:
    """A message for the caller: what kind of failure, nothing of our insides."""
    name = type(error).__name__
    if "OutOfMemory" in name:
        return "the device ran out of memory; lower max_num_batched_tokens or the KV cache size"
    return f"the engine could not compute this request ({name}); the server log has the details"
