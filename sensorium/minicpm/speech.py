"""Spoken answers of chat(): hidden states of what is said, the codes made of them, and their sound."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sensorium.engine.fed_stream import failure
from sensorium.engine.stream import Stream
from sensorium.errors import RequestError, UnsupportedError
from sensorium.media import audio
from sensorium.media.wav import read_wav
from sensorium.minicpm.generation import draw_seed
from sensorium.minicpm.utils import load_audio
from sensorium.models.base import SpeechModel, SpeechSettings
from sensorium.models.token2wav import Token2Wav, Voice, to_wav
from sensorium.types import (
    CallFailed,
    Codes,
    Failed,
    Media,
    MediaRef,
    Message,
    Prompt,
    SamplingParams,
    SpeechOptions,
    SpeechSampling,
)

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient

log = logging.getLogger(__name__)
OWN_VOICE = "default"
"""What the engine calls the voice that a checkpoint brings."""
_NO_EFFECT = ("min_p", "win_size", "tau_r")
"""Of MiniCPM's TTSSamplingParams: they do nothing there either."""


@dataclass(frozen=True, slots=True)
class Speech:
    """How an answer is spoken. embeds: a file for the rows that the speech LM is given, if wanted."""

    voice: Voice
    path: Path
    sampling: SpeechSampling
    embeds: Path | None = None


def write_sound(
    client: EngineClient, model: SpeechModel, codec: Token2Wav, how: Speech, before: Prompt, said: Sequence[int]
) -> None:
    """Speak ids that stand behind a prompt, into a WAV file. The whole is one piece for the codec, as published."""
    # What fills the context has no place left for the token that every request asks for.
    said = said[: client.max_model_len - 1 - len(before.ids)]
    if how.embeds is not None:
        torch.save(condition_rows(model, said, hidden_states(client, before, said)), how.embeds)
    sampling = how.sampling
    if sampling.seed is None:
        sampling = replace(sampling, seed=draw_seed())
    speech = SpeechOptions(None, "chat", sampling, spoken_prompt=len(said))
    whole = replace(before, ids=(*before.ids, *said))
    codes: list[int] = []
    for event in client.submit(whole, SamplingParams(temperature=0.0, max_tokens=1), speech=speech):
        if isinstance(event, Failed | CallFailed):
            raise failure(event)
        if isinstance(event, Codes):
            codes += event.codes
    how.path.write_bytes(to_wav(codec(codes, how.voice)))


@torch.inference_mode()
def condition_rows(model: SpeechModel, ids: Sequence[int], hidden: np.ndarray) -> torch.Tensor:
    """[1, n + 2, width]: what the speech LM is given for ids, on the CPU."""
    end, begin = model.marks()
    given = torch.from_numpy(hidden).to(end.device, end.dtype)
    text = model.condition(torch.tensor(list(ids), device=end.device), given)
    return torch.cat((text, end, begin))[None].cpu()


def spoken_part(prompt: Prompt, ids: Sequence[int], begin: int, end: int) -> tuple[Prompt, list[int]]:
    """What is before the words that are spoken, and those: they follow the last `begin` mark, up to an `end` mark."""
    whole = [*prompt.ids, *ids]
    start = len(whole) - whole[::-1].index(begin) if begin in whole else len(prompt.ids)
    said = whole[start:]
    said = said[: said.index(end)] if end in said else said
    return replace(prompt, ids=tuple(whole[:start]), text=None), said


def hidden_states(client: EngineClient, before: Prompt, ids: Sequence[int]) -> np.ndarray:
    """Final-norm hidden states [n, E] of ids that are fed one by one behind a prompt."""
    length = len(before.ids) + len(ids)
    session = client.open_session(
        replace(before, ids=before.ids[:-1]),
        "half_duplex",
        {"window_high_tokens": length + 1, "window_low_tokens": length + 1},
        max_len=min(length + client.config.block_size, client.max_model_len),
        max_units=1,
        return_hidden=True,
    )
    try:
        session.opened()
        done = session.run(Prompt(before.ids[-1:]), options={"forced_ids": list(ids), "max_new_tokens": len(ids)})
    finally:
        _end(session)
    assert done.hidden is not None
    return done.hidden


def _end(stream: Stream) -> None:
    """Wait until its place is free."""
    stream.abort()
    deque(stream, maxlen=0)


def read_sampling(given: Any, config: SpeechSettings) -> SpeechSampling:
    """tts_sampling_params: None, a SpeechSampling, a dict, or an object with the fields of TTSSamplingParams.

    config: the checkpoint's, for None.
    """
    if given is None:
        return SpeechSampling(config.temperature, config.top_p, config.top_k, config.repetition_penalty)
    if isinstance(given, SpeechSampling):
        return given
    values: dict[str, Any] = dict(given) if isinstance(given, Mapping) else dict(vars(given))
    known = {field.name for field in fields(SpeechSampling)}
    if unknown := [name for name in values if name not in known and name not in _NO_EFFECT]:
        raise UnsupportedError(
            f"tts_sampling_params: unknown {unknown[0]}; known: {', '.join(sorted(known))}", param="tts_sampling_params"
        )
    return SpeechSampling(**{name: value for name, value in values.items() if name in known})


def forced_text(conversations: Sequence[Sequence[Message]]) -> tuple[str, list[list[Message]]]:
    """The text that teacher_forcing speaks, from an assistant's message at the end, and the conversation before it."""
    (*before, last) = conversations[0]
    text = last.parts[0] if len(conversations) == 1 and len(last.parts) == 1 else None
    if last.role != "assistant" or not isinstance(text, str):
        raise RequestError(
            "teacher_forcing: the last message must be the assistant's, with the text to speak", param="teacher_forcing"
        )
    return text.rpartition("<|tts_bos|>")[2].partition("<|tts_eos|>")[0], [before]


def first_voice(messages: Sequence[Message]) -> np.ndarray:
    """The first sound of a conversation, at 16 kHz: the voice that answers are spoken in."""
    for message in messages:
        for part in message.parts:
            if isinstance(part, Media) and part.modality == "audio":
                return part.data
            if isinstance(part, MediaRef) and part.modality == "audio" and isinstance(part.source, bytes):
                return load_audio(part.source)
    raise RequestError(
        "generate_audio: there is no voice to speak in; put a recording into the system message, as "
        "get_sys_prompt(ref_audio=...) does",
        param="generate_audio",
    )


def read_recording(source: Any, name: str) -> tuple[np.ndarray, int]:
    """Samples and rate of a WAV file at its own rate, of other files at 16 kHz, or of an array, which has 16 kHz."""
    if not isinstance(source, str | Path | bytes):
        samples = np.asarray(source.detach().cpu() if hasattr(source, "detach") else source)
        if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
            raise RequestError(f"{name}: give a path, or a 1-D array of floats at 16 kHz", param=name)
        return samples.astype(np.float32), audio.RATE
    data = source if isinstance(source, bytes) else None
    if data is None and Path(str(source)).expanduser().is_file():
        data = Path(str(source)).expanduser().read_bytes()
    wav = None if data is None else read_wav(data)
    return (wav.read(0, wav.frames), wav.rate) if wav is not None else (load_audio(source), audio.RATE)
