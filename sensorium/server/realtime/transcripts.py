"""What a user said as text, by models that can be asked to write down speech."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from sensorium.errors import RequestError, SensoriumError
from sensorium.server.errors import describe
from sensorium.server.generation import Generation, Job, Origin, Progress, Unwritten
from sensorium.server.metrics import Metrics
from sensorium.server.realtime.conversation import Item, made_id
from sensorium.server.realtime.schema import Transcription
from sensorium.server.realtime.writer import Tell
from sensorium.types import MediaRef, TextDelta

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient

EVENT = "conversation.item.input_audio_transcription"


class _Texts(Unwritten):
    """The texts of the clips of a recording; see generation.Codec."""

    def __init__(self, count: int) -> None:
        self.texts = [""] * count

    def take(self, number: int, event: Progress) -> None:
        if isinstance(event, TextDelta):
            self.texts[number] += event.text


class Transcriber:
    def __init__(self, client: Callable[[], EngineClient], metrics: Metrics, origin: Origin) -> None:
        self._client = client
        self._metrics = metrics
        self._origin = origin

    def is_able(self, wanted: Transcription) -> bool:
        """Whether the model writes down speech. Raises RequestError for a language that it does not know."""
        if "transcribe" not in self._client().speech_instructions:
            return False
        self._instruction(wanted.language)
        return True

    async def transcribe(self, item: Item, wanted: Transcription, seconds: float, tell: Tell) -> None:
        """Tells the item's transcript as it grows, and that it is done or has failed."""
        whole = ""
        try:
            media = item.parts[0]
            assert isinstance(media, MediaRef)
            async with contextlib.aclosing(self.texts(media, wanted)) as deltas:
                async for delta in deltas:
                    whole += delta
                    await tell(f"{EVENT}.delta", delta=delta)
        except SensoriumError as error:
            detail = describe(error)[1].error
            reason = {"type": detail.type, "code": detail.code, "message": detail.message, "param": detail.param}
            await tell(f"{EVENT}.failed", error=reason)
            return
        item.content[0]["transcript"] = whole
        await tell(f"{EVENT}.completed", transcript=whole, usage={"type": "duration", "seconds": round(seconds, 3)})

    async def texts(self, recording: MediaRef, wanted: Transcription) -> AsyncGenerator[str, None]:
        """The transcript in pieces; a long recording is heard in clips, whose texts come in order."""
        client = self._client()
        clips = await client.aprepare_speech(recording, self._instruction(wanted.language), wanted.prompt or "")
        sampling = replace(client.default_sampling, temperature=0.0)
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
                    yield whole[len(sent) :]
                    sent = whole

    def _instruction(self, language: str | None) -> str:
        instructions = self._client().speech_instructions
        name = "transcribe" if language is None else f"transcribe:{language.lower()}"
        if name not in instructions:
            known = ", ".join(sorted(n.partition(":")[2] for n in instructions if n.startswith("transcribe:")))
            reason = f"language: {language!r} is not known to this model; it knows {known or 'none: leave it out'}"
            raise RequestError(reason, param="language")
        return instructions[name]
