"""What a user said as text, by models that can be asked to write down speech."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sensorium.errors import RequestError, SensoriumError
from sensorium.server.errors import describe
from sensorium.server.generation import Generation, Job, Origin, Progress, Unwritten
from sensorium.server.metrics import Metrics
from sensorium.server.realtime.conversation import Item, made_id
from sensorium.server.realtime.schema import Transcription
from sensorium.server.realtime.writer import Tell
from sensorium.server.reports import LEAST
from sensorium.types import MediaRef, TextDelta, TokenLogprob

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient

EVENT = "conversation.item.input_audio_transcription"


class _Texts(Unwritten):
    """The texts of the clips of a recording, and the log-probabilities of their tokens; see generation.Codec."""

    def __init__(self, count: int) -> None:
        self.texts = [""] * count
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in range(count)]

    def take(self, number: int, event: Progress) -> None:
        if isinstance(event, TextDelta):
            self.texts[number] += event.text
            self._logprobs[number] += event.logprobs

    def take_logprobs(self, until: int) -> list[TokenLogprob]:
        """Of the clips before that one, what was not taken yet."""
        taken = [entry for clip in self._logprobs[:until] for entry in clip]
        for clip in self._logprobs[:until]:
            clip.clear()
        return taken


class Transcriber:
    def __init__(self, client: Callable[[], EngineClient], metrics: Metrics, origin: Origin) -> None:
        self._client = client
        self._metrics = metrics
        self._origin = origin

    def is_able(self, wanted: Transcription) -> bool:
        """Whether the model writes down speech. Raises RequestError for a language that it does not know."""
        if "transcribe" not in self._client().speech_instructions:
            return False
        self._instruction(wanted)
        return True

    async def transcribe(
        self, item: Item, wanted: Transcription, seconds: float, tell: Tell, *, logprobs: bool = False
    ) -> None:
        """Tells the item's transcript as it grows, and that it is done or has failed."""
        whole, certain = "", list[dict[str, Any]]()
        try:
            media = item.parts[0]
            assert isinstance(media, MediaRef)
            async with contextlib.aclosing(self.texts(media, wanted, logprobs=logprobs)) as deltas:
                async for delta, entries in deltas:
                    whole += delta
                    told = [self._told(entry) for entry in entries]
                    certain += told
                    await tell(f"{EVENT}.delta", delta=delta, **({"logprobs": told} if logprobs else {}))
        except SensoriumError as error:
            detail = describe(error)[1].error
            reason = {"type": detail.type, "code": detail.code, "message": detail.message, "param": detail.param}
            await tell(f"{EVENT}.failed", error=reason)
            return
        item.content[0]["transcript"] = whole
        usage = {"type": "duration", "seconds": round(seconds, 3)}
        more = {"logprobs": certain} if logprobs else {}
        await tell(f"{EVENT}.completed", transcript=whole, usage=usage, **more)

    def _told(self, entry: TokenLogprob) -> dict[str, Any]:
        spelling = self._client().tokenizer.token_bytes(entry.token_id)
        return {
            "token": spelling.decode("utf-8", "replace"),
            "logprob": max(entry.logprob, LEAST),
            "bytes": list(spelling),
        }

    async def texts(
        self, recording: MediaRef, wanted: Transcription, *, logprobs: bool = False
    ) -> AsyncGenerator[tuple[str, list[TokenLogprob]], None]:
        """The transcript in pieces; a long recording is heard in clips, whose texts come in order."""
        client = self._client()
        hint = "\n".join(filter(None, (wanted.prompt, ", ".join(wanted.keywords or ()))))
        clips = await client.aprepare_speech(recording, self._instruction(wanted), hint)
        sampling = replace(client.default_sampling, temperature=0.0, logprobs=0 if logprobs else None)
        origin = replace(self._origin, id=made_id("trsc"))
        codec = _Texts(len(clips))
        generation = Generation(client, self._metrics, origin, [Job(clip.prompt, sampling) for clip in clips])
        sent = ""
        async with contextlib.aclosing(generation.events(codec)) as events:
            async for _ in events:
                ended = [tally.finished is not None for tally in generation.tallies]
                open_ = ended.index(False) if False in ended else len(ended) - 1
                whole = " ".join(text for part in codec.texts[: open_ + 1] if (text := part.strip()))
                if len(whole) > len(sent) and whole.startswith(sent):
                    yield whole[len(sent) :], codec.take_logprobs(open_ + 1)
                    sent = whole

    def _instruction(self, wanted: Transcription) -> str:
        language = wanted.language or (wanted.languages[0] if wanted.languages else None)
        instructions = self._client().speech_instructions
        name = "transcribe" if language is None else f"transcribe:{language.lower()}"
        if name not in instructions:
            known = ", ".join(sorted(n.partition(":")[2] for n in instructions if n.startswith("transcribe:")))
            reason = f"language: {language!r} is not known to this model; it knows {known or 'none: leave it out'}"
            raise RequestError(reason, param="language")
        return instructions[name]
