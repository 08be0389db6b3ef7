"""What the doors that speak share: prompts for answers that are heard, and text that is read aloud."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sensorium.errors import ContextLengthError, RequestError, UnsupportedError
from sensorium.params import SpeakingPrompts
from sensorium.server.generation import Generation, Job, Origin, Unwritten, prepare_chat
from sensorium.server.metrics import Metrics
from sensorium.server.speech.voices import Picked
from sensorium.types import (
    ChatOptions,
    Media,
    Message,
    Prompt,
    SamplingParams,
    Sound,
    SpeechOptions,
)

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient


def speaking_prompts(client: EngineClient) -> SpeakingPrompts:
    """How the model wants to be asked to speak."""
    return getattr(client.processor, "speaking_prompts", None) or SpeakingPrompts()


def spoken_options(client: EngineClient, options: ChatOptions) -> ChatOptions:
    """Those of a conversation whose answer is spoken. What the request says of the template wins."""
    return replace(options, template_kwargs={**speaking_prompts(client).template_kwargs, **options.template_kwargs})


def spoken_messages(client: EngineClient, messages: Sequence[Message], voice: Picked) -> list[Message]:
    """A conversation whose answers are heard in a voice: its recording goes before the system message's own text."""
    opening = _voiced(client, speaking_prompts(client).assistant, voice)
    if not opening or any(_holds_sound(message) for message in messages if message.role == "system"):
        return list(messages)
    if messages and messages[0].role == "system":
        first = messages[0]
        return [replace(first, parts=(*opening, *first.parts)), *messages[1:]]
    return [Message("system", opening), *messages]


async def reading_prompt(
    client: EngineClient, text: str, voice: Picked, instructions: str | None, namespace: str
) -> tuple[Prompt, int]:
    """A prompt that ends in the tokens of a text to be read aloud, and how many those are."""
    messages, options = reading_messages(client, text, voice, instructions)
    prompt = await prepare_chat(client, messages, replace(options, namespace=namespace))
    return with_reply(client, prompt, text)


def reading_messages(
    client: EngineClient, text: str, voice: Picked, instructions: str | None
) -> tuple[list[Message], ChatOptions]:
    """The conversation that asks for a text to be read aloud. Raises UnsupportedError for instructions that the model
    does not take."""
    prompts = speaking_prompts(client)
    wording = prompts.read
    if instructions:
        if not prompts.read_as:
            raise UnsupportedError("instructions: this model is not told how to speak", param="instructions")
        wording = prompts.read_as.replace("{instructions}", instructions)
    asked = Message("user", (wording.replace("{text}", text),))
    opening = _voiced(client, prompts.reader, voice)
    messages = [Message("system", opening), asked] if opening else [asked]
    return messages, spoken_options(client, ChatOptions())


def reading(num_ids: int, voice: Picked) -> tuple[SamplingParams, SpeechOptions]:
    """What to ask the engine for: the last ids of a prompt as sound, and of an answer as little as possible."""
    return SamplingParams(max_tokens=1, temperature=0.0), SpeechOptions(voice.name, spoken_prompt=num_ids)


def with_reply(client: EngineClient, prompt: Prompt, text: str) -> tuple[Prompt, int]:
    """A prompt whose answer is given already, and how many tokens that has. Raises ContextLengthError."""
    ids = tuple(client.tokenizer.encode(text))
    if not ids:
        raise RequestError("input: there is nothing to read", param="input")
    if len(prompt.ids) + len(ids) >= client.max_model_len:
        reason = f"input: {len(ids)} tokens are too many for this model's context of {client.max_model_len}"
        raise ContextLengthError(reason, param="input")
    positions = prompt.positions
    if positions is not None:
        more = positions.max() + 1 + np.arange(len(ids))
        positions = np.concatenate([positions, np.broadcast_to(more, (len(positions), len(ids)))], axis=1)
    return replace(prompt, ids=prompt.ids + ids, positions=positions, text=None), len(ids)


class Reading(Unwritten):
    """The end of a prompt, read aloud. Iterating over `sound` gives pieces of 16-bit samples at SOUND_RATE as they are
    made; closing it ends the work."""

    def __init__(
        self, client: EngineClient, metrics: Metrics, origin: Origin, prompt: Prompt, num_ids: int, voice: Picked
    ) -> None:
        self._pieces: list[bytes] = []
        sampling, speech = reading(num_ids, voice)
        job = Job(prompt, sampling, speech=speech)
        self._generation = Generation(client, metrics, origin, [job], hear=self._take_sound)
        self.tally = self._generation.tallies[0]

    async def sound(self) -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing(self._generation.events(self)) as events:
            async for _ in events:
                pieces, self._pieces = self._pieces, []
                if pieces:
                    yield b"".join(pieces)

    def take(self, number: int, event: object) -> None:
        """The text is known."""

    def _take_sound(self, _: int, event: Sound) -> None:
        if event.pcm:
            self._pieces.append(event.pcm)


def _voiced(client: EngineClient, wording: str, voice: Picked) -> tuple[str | Media, ...]:
    """Parts of a system message with a voice's recording; none where there is none, or the model is not shown it."""
    if voice.clip is None or not wording or "audio" not in client.modalities:
        return ()
    before, _, after = wording.partition("{audio}")
    return tuple(part for part in (before, voice.clip, after) if part)


def _holds_sound(message: Message) -> bool:
    return any(not isinstance(part, str) and part.modality == "audio" for part in message.parts)
