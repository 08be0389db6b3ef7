"""What the published demo's conversations in turns share: parts of messages, and answers with their sound."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from sensorium.config import ServerConfig
from sensorium.errors import RequestError, SensoriumError, UnsupportedError
from sensorium.media.audio import from_array
from sensorium.server.answer_form import AnswerForm
from sensorium.server.chat_answer import Answer
from sensorium.server.generation import Generation, Job, Origin, Progress, Tally, Unwritten, prepare_chat
from sensorium.server.live.clock import Clock, within
from sensorium.server.live.demo_talk import binary_of, samples_of
from sensorium.server.live.sockets import POLICY, HangUpError, Socket
from sensorium.server.metrics import Metrics
from sensorium.server.served import Served
from sensorium.server.speech.spoken import spoken_messages, spoken_options
from sensorium.server.speech.voices import Picked, Voices
from sensorium.server.tools import ToolPlan
from sensorium.types import ChatOptions, Media, MediaRef, Message, PromptScored, SamplingParams, Sound, SpeechOptions

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient

MAX_MESSAGE = 16 << 20
WRITE_S = 30.0
"""How long a client may take to read a message."""
RATES = (8_000, 96_000)


class TextPart(msgspec.Struct, tag="text", forbid_unknown_fields=True):
    text: str


class ImagePart(msgspec.Struct, tag="image", forbid_unknown_fields=True):
    data: str


class AudioPart(msgspec.Struct, tag="audio", forbid_unknown_fields=True):
    """data: base64 of float32 samples."""

    data: str
    sample_rate: int = 16_000


class VideoPart(msgspec.Struct, tag="video", forbid_unknown_fields=True):
    """data: base64 of a video file."""

    data: str
    stack_frames: int = 1


Part = TextPart | ImagePart | AudioPart | VideoPart


class GenerationOptions(msgspec.Struct, forbid_unknown_fields=True):
    """length_penalty: the demo's own value, which only its streams of units use."""

    max_new_tokens: int = 256
    length_penalty: float = 1.1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None

    def sampling(self) -> dict[str, Any]:
        """Fields of SamplingParams. Raises for what is not served, naming it."""
        if self.length_penalty not in (1.0, 1.1):
            reason = "generation.length_penalty: answers in turns have none; leave it at 1.1"
            raise UnsupportedError(reason, param="generation.length_penalty")
        if not 1 <= self.max_new_tokens <= 1 << 20:
            reason = "generation.max_new_tokens: must be at least 1, and no more than the model's context"
            raise RequestError(reason, param="generation.max_new_tokens")
        named = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "repetition_penalty")}
        wanted: dict[str, Any] = {
            "max_tokens": self.max_new_tokens,
            **{name: v for name, v in named.items() if v is not None},
        }
        SamplingParams(**wanted)
        return wanted


class TtsOptions(msgspec.Struct, forbid_unknown_fields=True):
    enabled: bool = True
    ref_audio_data: str | None = None

    def check(self) -> None:
        if self.ref_audio_data is not None:
            reason = "tts.ref_audio_data: answers are in a voice of the server's; leave it out"
            raise UnsupportedError(reason, param="tts.ref_audio_data")


def parts_of(content: str | Sequence[Part], place: str) -> tuple[str | Media | MediaRef, ...]:
    """What the model is given of a message. Raises RequestError naming the part."""
    if isinstance(content, str):
        return (content,)
    return tuple(_part(part, f"{place}[{number}]") for number, part in enumerate(content))


def _part(part: Part, place: str) -> str | Media | MediaRef:
    if isinstance(part, TextPart):
        return part.text
    if isinstance(part, AudioPart):
        if not RATES[0] <= part.sample_rate <= RATES[1]:
            reason = f"{place}.sample_rate: must be {RATES[0]} to {RATES[1]}"
            raise RequestError(reason, param=f"{place}.sample_rate")
        return from_array(samples_of(part.data, f"{place}.data"), part.sample_rate, place)
    if isinstance(part, VideoPart) and part.stack_frames != 1:
        reason = f"{place}.stack_frames: only 1 is served; full duplex takes frames that are stacked"
        raise UnsupportedError(reason, param=f"{place}.stack_frames")
    modality = "image" if isinstance(part, ImagePart) else "video"
    return MediaRef(modality, binary_of(part.data, f"{place}.data"), place)


@dataclass(frozen=True, slots=True)
class Turns:
    """Makes answers for the clients of one door."""

    served: Served
    config: ServerConfig
    metrics: Metrics
    voices: Voices

    async def voice(self, wanted: bool, owner: str) -> Picked | None:
        """Whom answers sound like; None where none is wanted, or the server has none."""
        client = self.served.client()
        if not (wanted and client.can_sound and self.voices.has_default(client)):
            return None
        return await self.voices.pick(None, owner, client, "tts")

    async def begin(
        self,
        origin: Origin,
        messages: Sequence[Message],
        options: ChatOptions,
        sampling: dict[str, Any],
        voice: Picked | None,
    ) -> Reply:
        """Raises what is wrong with the conversation."""
        client = self.served.client()
        variables = {**self.config.default_chat_template_kwargs, **options.template_kwargs}
        options = replace(options, template_kwargs=variables, namespace=origin.namespace)
        if voice is not None:
            messages, options = spoken_messages(client, messages, voice), spoken_options(client, options)
        prompt = await prepare_chat(client, messages, options)
        form = AnswerForm.of(self.config, prompt, ToolPlan())
        params = replace(client.default_sampling, **{**form.demands(None, client), **sampling})
        job = Job(prompt, params, speech=None if voice is None else SpeechOptions(voice.name))
        return Reply(client, self.metrics, origin, job, form)


class Reply(Unwritten):
    """An answer that is being made. `pieces` are its text and sound, 16-bit at 24 kHz, as they come."""

    def __init__(self, client: EngineClient, metrics: Metrics, origin: Origin, job: Job, form: AnswerForm) -> None:
        self.num_prompt_tokens = len(job.prompt.ids)
        self._answer = Answer(0, form, keep_reasoning=False)
        self._sound: list[bytes] = []
        self._generation = Generation(client, metrics, origin, [job], hear=self._hear)

    @property
    def tally(self) -> Tally:
        return self._generation.tallies[0]

    async def pieces(self) -> AsyncGenerator[tuple[str, bytes], None]:
        """Closing it ends the work."""
        async with contextlib.aclosing(self._generation.events(self)) as events:
            async for _ in events:
                text, pcm = self._answer.take_news().content, b"".join(self._sound)
                self._sound.clear()
                if text or pcm:
                    yield text, pcm

    def take(self, number: int, event: Progress) -> None:
        if not isinstance(event, PromptScored):
            self._answer.add(event)

    def _hear(self, number: int, event: Sound) -> None:
        self._sound.append(event.pcm)


class Telling:
    """Says things to a client, one after the other, and hangs up on one that does not read them."""

    def __init__(self, socket: Socket, clock: Clock) -> None:
        self._socket = socket
        self._clock = clock

    async def tell(self, kind: str, **fields: Any) -> None:
        """Raises HangUpError."""
        data = msgspec.json.encode({"type": kind, **fields}).decode()
        try:
            await within(self._clock, WRITE_S, self._socket.write(data))
        except asyncio.TimeoutError:
            raise HangUpError(POLICY) from None

    async def tell_error(self, error: SensoriumError) -> None:
        await self.tell("error", error=reason_of(error))


def reason_of(error: SensoriumError) -> str:
    """One text for clients that are told no field: it names the field."""
    named = f"{error.param}: " if error.param and error.param not in error.message else ""
    return f"{named}{error.message}"[:1000]


def refusal(error: SensoriumError) -> str:
    return msgspec.json.encode({"type": "error", "error": reason_of(error)}).decode()
