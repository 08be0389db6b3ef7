"""The turn-based calls of MiniCPM-o 4.5: a turn is fed piece by piece, the reply comes in pieces of text and sound.

Names, defaults and results are those of the released code; docs/duplex.md says where this differs.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sensorium.engine.fed_stream import failure
from sensorium.engine.session_client import Session
from sensorium.engine.speech_chunks import BLOCK
from sensorium.errors import EngineError, RequestError, SensoriumError, UnsupportedError
from sensorium.minicpm.generation import draw_seed
from sensorium.minicpm.messages import read_conversations
from sensorium.minicpm.speech import read_recording, read_sampling
from sensorium.minicpm.tokenizer import check_processor
from sensorium.models.minicpm_half_duplex import Groups, read_reply
from sensorium.models.minicpm_live_mel import FIRST_SAMPLES, LiveMel
from sensorium.models.minicpm_units import Rows, SessionPrompts
from sensorium.types import (
    ChatOptions,
    Failed,
    Media,
    Message,
    Prompt,
    SamplingParams,
    Sound,
    SpeechOptions,
    TextDelta,
    UnitDone,
    UnitFailed,
)

if TYPE_CHECKING:
    from sensorium.minicpm.omni import MiniCPMO

log = logging.getLogger(__name__)
_numbers = itertools.count()
MAX_LEN = 8000 + 1024
"""Rows of a session: its window keeps it at 8000, and a reply or a piece of a turn goes on top."""
_USER, _NEXT = "<|im_start|>user\n", "<|tts_eos|><|im_end|>\n"
_BOS = "<|im_end|>\n<|im_start|>assistant\n"
_NO_THOUGHTS = "<think>\n\n</think>\n\n"
_VOICE = "half-duplex"
"""The name of the session's voice at the engine."""
_MEDIA = {"image": "<image>./</image>", "audio": "<audio>./</audio>"}


@dataclass(slots=True)
class _Talk:
    """A session that goes on."""

    id: str
    session: Session
    prompts: SessionPrompts
    mel: LiveMel = field(default_factory=LiveMel)
    hears: bool = False
    """Whether sound of this turn has come already."""
    begins_turn: bool = True
    has_replied: bool = False
    last_unit: int = -1


class Simplex:
    """One turn-based session at a time. Calls belong to one thread."""

    def __init__(self, model: MiniCPMO) -> None:
        self.model = model
        self._talk: _Talk | None = None
        self._voice: tuple[np.ndarray, int] | None = None
        self._called = _VOICE
        """The recording of it, and its rate."""
        self._snapshot: _Talk | None = None
        self._is_replying = False

    # ---- sessions -------------------------------------------------------------------------------------------------

    def reset_session(self, reset_token2wav_cache: bool = True) -> None:
        """Forget the session; with reset_token2wav_cache the voice too."""
        if self._talk is not None:
            self._talk.session.abort()
            list(self._talk.session)  # its place is free once its last event has come
        self._talk = self._snapshot = None
        self._is_replying = False
        if reset_token2wav_cache:
            self._voice = None

    def init_token2wav_cache(self, prompt_speech_16k: Any) -> None:
        """The voice to speak in: samples at 16 kHz. Call it before a reply with sound."""
        voice = read_recording(prompt_speech_16k, "prompt_speech_16k")
        self._called = self.model.take_voice(_VOICE, prompt_speech_16k, "prompt_speech_16k")
        self._voice = voice

    def restore_speculative_snapshot(self) -> bool:
        """Take the last reply back, if it was asked for with enable_speculative_snapshot. Once; whether it was done."""
        if self._snapshot is None:
            return False
        self._talk, self._snapshot = self._snapshot, None
        self._talk.session.rewind(self._talk.last_unit)
        return True

    # ---- what the user says ---------------------------------------------------------------------------------------

    def streaming_prefill(
        self,
        session_id: Any,
        msgs: Any,
        omni_mode: bool = True,
        max_slice_nums: int | None = None,
        use_tts_template: bool = True,
        enable_thinking: bool = False,
        is_last_chunk: bool = False,
        tokenizer: Any = None,
        processor: Any = None,
    ) -> str:
        """Feed one message: a system message, which opens a session, or a piece of the user's turn. The prompt as text.

        A session_id other than the last one begins a new session. Sound of a turn comes in pieces of about a second;
        is_last_chunk gives out what is left of it. max_slice_nums: None is 1.
        """
        self._refuse_reply()
        self.model.tokenizer.check_same("tokenizer", tokenizer)
        check_processor(self.model.tokenizer, processor)
        message = self._message(msgs)
        template = {"use_tts_template": use_tts_template, "enable_thinking": enable_thinking}
        limit = 1 if max_slice_nums is None else max_slice_nums
        if self._talk is None or self._talk.id != str(session_id):
            self.reset_session(reset_token2wav_cache=False)
            if message.role != "user":
                return self._open(str(session_id), message, template, omni_mode, limit)
            self._open(str(session_id), None, template, omni_mode, limit)
        talk = self._talk
        assert talk is not None
        if message.role != "user":
            raise RequestError(f"msgs: a {message.role} message can only open a session", param="msgs")
        rows, text = talk.prompts.rows(), ""
        if talk.begins_turn:
            text = (_NEXT if talk.has_replied else "") + _USER
            rows.add(talk.prompts.encode(text))
        text += self._content(talk, rows, message, "" if omni_mode else "\n", limit, is_last_chunk)
        if rows.ids:
            done = talk.session.run(rows.prompt(), deciding=None, options={"reply": False})
            talk.last_unit, talk.begins_turn = done.index, False
        return text

    def _open(self, name: str, message: Message | None, template: dict[str, Any], omni: bool, limit: int) -> str:
        """A session that begins with a message, or with nothing."""
        client, processor = self.model.client, self.model.tokenizer.processor
        opening, longest = Prompt(()), min(MAX_LEN, client.max_model_len)
        if message is not None:
            media = {"max_slice_nums": limit, "use_image_id": False, "omni_mode": omni}
            options = ChatOptions(add_generation_prompt=False, template_kwargs=template, media_kwargs=media)
            opening = client.prepare_chat([message], options)
        own = f"half-duplex-{next(_numbers)}"
        session = client.open_session(
            opening,
            "half_duplex",
            {"protect_opening": message is not None, **_window(longest)},
            sampling=SamplingParams(seed=draw_seed()),
            max_len=longest,
            max_units=1,
            session_id=own,
        )
        session.opened()
        self._talk = _Talk(name, session, SessionPrompts(processor, own))
        return opening.text or ""

    def _message(self, msgs: Any) -> Message:
        found, is_batch = read_conversations(
            msgs, None, ("system", "user", "assistant"), self.model.checkpoint.engine.limits
        )
        if is_batch or len(found[0]) != 1:
            raise RequestError("msgs: give exactly one message a call", param="msgs")
        (message,) = found[0]
        for part in message.parts:
            if not isinstance(part, str) and not (isinstance(part, Media) and part.modality in _MEDIA):
                raise RequestError("msgs: give PIL pictures, sounds at 16 kHz and texts", param="msgs")
        return message

    def _content(
        self, talk: _Talk, rows: Rows, message: Message, joint: str, max_slice_nums: int, is_last: bool
    ) -> str:
        """The parts of a message, in order, as rows; what they are written as."""
        tokenizer, written = self.model.tokenizer.processor.tokenizer, ""
        for number, part in enumerate(message.parts):
            if number and joint:
                rows.add(tokenizer.encode(joint))
            written += joint if number else ""
            if isinstance(part, str):
                rows.add(tokenizer.encode(part))
                written += part
                continue
            assert isinstance(part, Media)
            written += _MEDIA[part.modality]
            if part.modality == "image":
                talk.prompts.add_picture(rows, talk.prompts.picture(part, max_slice_nums), lines=True)
            else:
                self._hear(talk, rows, part.data, is_last and number == _last_sound(message))
        return written

    def _hear(self, talk: _Talk, rows: Rows, samples: np.ndarray, is_last: bool) -> None:
        """The next sound of a turn, as far as it is complete."""
        if not talk.hears and len(samples) < FIRST_SAMPLES:
            samples = np.pad(samples, (FIRST_SAMPLES - len(samples), 0))
        talk.hears = True
        chunk = talk.mel.push(samples, last=is_last)
        if chunk is None or not chunk.rows(self.model.tokenizer.processor.variant.pool):
            return
        rows.add(talk.prompts.encode("<|audio_start|>"))
        talk.prompts.add_live(rows, chunk)
        rows.add(talk.prompts.encode("<|audio_end|>"))

    # ---- what the model says --------------------------------------------------------------------------------------

    def streaming_generate(
        self,
        session_id: Any,
        bos_input: str | None = None,
        generate_audio: bool = True,
        audio_token_chunk_size: int = BLOCK,
        tts_sampling_params: Any = None,
        max_new_tokens: int = 256,
        enable_thinking: bool = False,
        use_tts_template: bool = True,
        do_sample: bool = True,
        enable_speculative_snapshot: bool = False,
        tokenizer: Any = None,
        processor: Any = None,
        teacher_forcing: bool = False,
        teacher_forcing_text: str = "",
        temperature: float = 0.7,
        top_p: float = 0.8,
        top_k: int = 100,
        repetition_penalty: float = 1.02,
        length_penalty: float = 1.0,
    ) -> Iterator[tuple[torch.Tensor, str]] | Iterator[tuple[str, bool]]:
        """The reply to what was fed: (sound float32 [1, N] at 24 kHz, new text), or without sound (text, finished).

        Text leads: all text known so far comes with the next sound. bos_input: what stands between the turn and the
        reply. teacher_forcing: say teacher_forcing_text instead. Leaving the generator ends the reply.
        """
        self._refuse_reply()
        self.model.tokenizer.check_same("tokenizer", tokenizer)
        check_processor(self.model.tokenizer, processor)
        talk = self._talk
        if talk is None or talk.id != str(session_id):
            raise RequestError(
                f"session_id: there is no session {str(session_id)!r}; feed it first", param="session_id"
            )
        if audio_token_chunk_size != BLOCK:
            raise UnsupportedError(
                f"audio_token_chunk_size: blocks have {BLOCK} codes; leave it out", param="audio_token_chunk_size"
            )
        options = {
            "max_new_tokens": max_new_tokens,
            "do_sample": do_sample,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "repetition_penalty": repetition_penalty,
            "length_penalty": length_penalty,
        }
        if teacher_forcing:
            options["forced_ids"] = self.model.tokenizer.processor.tokenizer.encode(teacher_forcing_text)
        read_reply(options)
        opening = _opening(enable_thinking, use_tts_template) if bos_input is None else bos_input
        speech = self._speech_options(tts_sampling_params) if generate_audio else None
        self._snapshot = replace(talk) if enable_speculative_snapshot else None
        return self._reply(talk, talk.prompts.encode(opening), options, speech)

    def _reply(
        self, talk: _Talk, opening: list[int], options: dict[str, Any], speech: SpeechOptions | None
    ) -> Iterator[Any]:
        self._refuse_reply()
        if speech is not None:
            talk.session.change_speech(speech)
        self._is_replying, done = True, None
        index = talk.session.append(Prompt(tuple(opening)), options=options)
        pieces, text = _Pieces(self.model.tokenizer.processor.tokenizer), ""
        wave = np.zeros(0, np.float32)
        try:
            for event in _unit(talk.session, index, speaks=speech is not None):
                if isinstance(event, UnitDone):
                    done = event
                elif isinstance(event, TextDelta):
                    text += pieces.push(event.token_ids)
                else:
                    wave = np.frombuffer(event.pcm, "<i2").astype(np.float32) / 32768
                if isinstance(event, Sound) and event.ended is None:
                    yield torch.from_numpy(wave)[None], text
                    text = ""
                elif speech is None and text:
                    yield text, False
                    text = ""
            text += pieces.finish()
            yield (text, True) if speech is None else (torch.from_numpy(wave)[None], text)
        except SensoriumError:
            self._is_replying = done is not None  # a unit that failed has changed nothing
            raise
        finally:
            if self._talk is talk and self._is_replying:
                if speech is not None:
                    talk.session.change_speech(None)
                if done is None:
                    _cut(talk.session, index)
                self._is_replying = False
                talk.mel, talk.hears = LiveMel(), False
                talk.begins_turn = talk.has_replied = True
                talk.last_unit = index

    def _speech_options(self, params: Any) -> SpeechOptions:
        """How a reply is spoken, if it can be."""
        sampling = read_sampling(params, self.model.speech.config)
        if self._voice is None:
            raise RequestError(
                "generate_audio: there is no voice; call init_token2wav_cache() first", param="generate_audio"
            )
        if self._called not in self.model.client.voices:  # an engine that was started anew
            self.model.client.add_voice(self._called, *self._voice)
        seed = draw_seed() if sampling.seed is None else sampling.seed
        return SpeechOptions(self._called, "half_duplex", replace(sampling, seed=seed))

    def _refuse_reply(self) -> None:
        if self._is_replying:
            raise RequestError("a reply is still being read; finish or close its generator first")


class _Pieces:
    """Text of tokens as they come, in groups, never half a character."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._groups: Groups[int] = Groups()
        self._ids: list[int] = []
        self._told = 0

    def push(self, ids: Sequence[int]) -> str:
        """The text of the groups that are complete now."""
        for group in self._groups.push(ids):
            self._ids += group
        return self._new(self._tokenizer.decode(self._ids).rstrip("\ufffd"))

    def finish(self) -> str:
        """The rest of the text."""
        self._ids += self._groups.finish()
        return self._new(self._tokenizer.decode(self._ids))

    def _new(self, text: str) -> str:
        found, self._told = text[self._told :], max(len(text), self._told)
        return found


def _unit(session: Session, index: int, *, speaks: bool = False) -> Iterator[TextDelta | UnitDone | Sound]:
    """The events of a unit to its end, and to that of its sound. Raises what it failed with."""
    is_over, is_heard = False, not speaks
    for event in session:
        if isinstance(event, UnitFailed | Failed) or (isinstance(event, Sound) and event.code):
            raise failure(event)
        if isinstance(event, TextDelta | UnitDone) or (isinstance(event, Sound) and event.index == index):
            is_over |= isinstance(event, UnitDone) and event.index == index
            is_heard |= isinstance(event, Sound) and event.ended is not None
            yield event
        if is_over and is_heard:
            return
    raise EngineError("the session has ended")


def _cut(session: Session, index: int) -> None:
    """End a reply that nobody reads."""
    session.barge_in()
    for _ in _unit(session, index):
        """What it still says is not told."""


def _window(longest: int) -> dict[str, int]:
    """8000 and 6000 rows as published, or what a smaller context leaves room for."""
    high = min(8000, longest * 7 // 8)
    return {"window_high_tokens": high, "window_low_tokens": high * 3 // 4}


def _opening(enable_thinking: bool, use_tts_template: bool) -> str:
    return _BOS + ("" if enable_thinking else _NO_THOUGHTS) + ("<|tts_bos|>" if use_tts_template else "")


def _last_sound(message: Message) -> int:
    return max(i for i, part in enumerate(message.parts) if isinstance(part, Media) and part.modality == "audio")
