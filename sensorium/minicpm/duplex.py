"""The duplex view of MiniCPM-o 4.5, as as_duplex() returns it, with the names and results of the released code.

docs/duplex.md describes units, decisions and windows, and where this differs.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sensorium.engine.fed_stream import failure
from sensorium.engine.session_client import Session
from sensorium.errors import EngineError, RequestError
from sensorium.media import audio, image
from sensorium.minicpm.duplex_options import DuplexOptions, Left, left
from sensorium.minicpm.generation import draw_seed
from sensorium.minicpm.speech import OWN_VOICE
from sensorium.minicpm.utils import load_audio
from sensorium.models.minicpm_duplex import MAX_CHARS, read_session, read_unit
from sensorium.models.minicpm_duplex_record import SessionRecord
from sensorium.models.minicpm_units import MadeUnit, Rows, SessionPrompts
from sensorium.types import (
    SOUND_RATE,
    CallFailed,
    Codes,
    Event,
    Failed,
    Media,
    Prompt,
    SamplingParams,
    Sound,
    Span,
    SpeechOptions,
    SpeechSampling,
    UnitDone,
    UnitFailed,
)

if TYPE_CHECKING:
    from sensorium.minicpm.omni import MiniCPMO

log = logging.getLogger(__name__)
_numbers = itertools.count()
DEFAULT_PROMPT = "Streaming Omni Conversation."
_UNIT_ROOM = 2048
"""Rows that a session has beyond the height of its window: of a unit with many slices."""


class WindowStats:
    """`duplex.decoder`, for callers who ask it for the state of the window."""

    def __init__(self) -> None:
        self.stats: Mapping[str, Any] = {}

    def get_window_stats(self) -> dict[str, Any]:
        return dict(self.stats)


class Duplex:
    """One full-duplex session at a time: prepare(), then streaming_prefill() and streaming_generate() by turns.

    Calls belong to one thread. Options are those of DuplexOptions, by keyword.
    """

    def __init__(self, model: MiniCPMO, device: Any = None, **overrides: Any) -> None:
        """device: must be the model's own. Raises RequestError naming an option that is unknown or wrong."""
        if device is not None:
            model.to(device)
        self.model = model
        self.options = DuplexOptions.read(overrides)
        read_session(self.options.policy())
        self.decoder = WindowStats()
        self._voice: str | None = None
        """The name of the session's voice at the engine."""
        if self.options.generate_audio:
            self._init_speech(overrides)
        self._is_broken = self._is_stopped = False
        self._session: Session | None = None
        self._clear()

    def _init_speech(self, given: Mapping[str, Any]) -> None:
        """The codec that init_tts() made serves, unless another one is asked for."""
        if not self.model.can_speak or "n_timesteps" in given or "enable_float16" in given:
            self.model.init_tts(enable_float16=self.options.enable_float16, n_timesteps=self.options.n_timesteps)

    def _speech_options(self) -> SpeechOptions:
        sampling = SpeechSampling(
            temperature=self.options.tts_temperature,
            repetition_penalty=self.options.tts_repetition_penalty,
            seed=draw_seed() if self.options.seed is None else self.options.seed,
        )
        return SpeechOptions(self._voice, "duplex", sampling, codes=True, eager=self.options.demo)

    def _take_voice(self, source: str | Path) -> None:
        name = f"duplex-voice-{next(_numbers)}"
        self._voice = self.model.take_voice(name, source, "prompt_wav_path")

    def _add_voice(self, session: Session, source: str | Path) -> None:
        """To a session that was prepared without one."""
        if self.options.generate_audio:
            self._take_voice(source)
            session.change_speech(self._speech_options())

    def _clear(self) -> None:
        self._record = SessionRecord(lambda ids: self.model.tokenizer.decode(list(ids)))
        self._transcript: list[int] = []
        self._pending: list[MadeUnit] = []
        self._num_units = 0
        self._prompts: SessionPrompts | None = None
        self._warned = False
        self.decoder.stats = {}

    # ---- a session ------------------------------------------------------------------------------------------------

    def prepare(
        self,
        prefix_system_prompt: str | None = None,
        ref_audio: np.ndarray | str | Path | None = None,
        prompt_wav_path: str | Path | None = None,
        context_previous_marker: str = "\n\nprevious: ",
        *,
        suffix_system_prompt: str | None = None,
    ) -> str:
        """Begin a session; what was before is forgotten. The whole opening prompt as text.

        prefix_system_prompt: the system prompt's text; with suffix_system_prompt both are used as they are, control
        tokens included, and the reference sound stands between them. ref_audio: a voice that the model hears, samples
        at 16 kHz or a file; prompt_wav_path: a file with the voice it speaks in, without which there is no sound.
        """
        self.clear_break_event()
        self.clear_session_stop()
        self._close()
        self._clear()
        reference = None if ref_audio is None else self._sound(ref_audio, "ref_audio")
        prefix, suffix = _opening(prefix_system_prompt, suffix_system_prompt, reference is not None)
        if self.options.generate_audio and prompt_wav_path is not None:
            self._take_voice(prompt_wav_path)
        name = f"duplex-{next(_numbers)}"
        prompts = SessionPrompts(self.model.tokenizer.processor, name)
        opening, suffix_ids = prompts.opening(prefix, suffix, reference)
        policy = self.options.policy() | {
            "suffix_ids": list(suffix_ids),
            "context_previous_marker": context_previous_marker,
        }
        session = self.model.client.open_session(
            opening,
            "duplex",
            policy,
            sampling=SamplingParams(seed=draw_seed() if self.options.seed is None else self.options.seed),
            max_len=self._max_len(),
            max_units=1,
            session_id=name,
            speech=self._speech_options() if self.options.generate_audio else None,
        )
        session.opened()
        self._session, self._prompts = session, prompts
        return prefix + ("[audio embedding]" if reference is not None else "") + suffix

    def _max_len(self) -> int:
        """Rows to hold: the window's height and a unit, at most the model's context."""
        high = self.options.basic_window_high_tokens
        found = min(self.options.max_len or high + _UNIT_ROOM, self.model.client.max_model_len)
        if self.options.sliding_window_mode == "basic" and high >= found:
            raise RequestError(
                f"basic_window_high_tokens is {high}, and a session holds {found} rows; lower it",
                param="basic_window_high_tokens",
            )
        return found

    def streaming_prefill(
        self,
        audio_waveform: np.ndarray | None = None,
        frame_list: Sequence[Any] | None = None,
        text_list: Sequence[str] | str | None = None,
        max_slice_nums: int | Sequence[int] = 1,
        batch_vision_feed: bool = False,
    ) -> dict[str, Any]:
        """Take in what was seen and heard: samples at 16 kHz, PIL pictures, texts. {"success", "reason", "cost_..."}.

        Nothing is taken in where success is False. Rows are computed by the next streaming_generate, in one step
        whatever batch_vision_feed says, so the costs of embedding and feeding are part of its cost_llm.
        """
        started = time.perf_counter()
        costs = dict.fromkeys(_COSTS, 0.0)
        reason = self._refusal()
        sound = None if audio_waveform is None else self._samples(audio_waveform)
        texts = [text_list] if isinstance(text_list, str) else list(text_list or ())
        frames = list(frame_list or ())
        if not reason and sound is None and not frames and not texts:
            reason = "there is neither sound, nor a picture, nor text"
        if reason or self._prompts is None:
            return {"success": False, "reason": reason, **costs, "cost_all": time.perf_counter() - started}
        if sound is not None and (missing := self._prompts.sound.missing(len(sound))) > 0:
            self._prompts.sound.keep(sound)
            reason = f"{missing} samples are missing for a unit; they may come with the next call"
            return {"success": False, "reason": reason, **costs, "cost_all": time.perf_counter() - started}
        pictures = [self._picture(frame, f"frame_list[{index}]") for index, frame in enumerate(frames)]
        self._pending.append(self._prompts.unit(sound, pictures, texts, max_slice_nums))
        self._num_units += sound is not None or bool(frames)
        spent = time.perf_counter() - started
        costs["cost_audio_process" if sound is not None and not frames else "cost_vision_process"] = spent
        return {"success": True, "reason": "", **costs, "cost_all": spent}

    def streaming_generate(
        self,
        prompt_wav_path: str | Path | None = None,
        max_new_speak_tokens_per_chunk: int = left(20),
        decode_mode: str = "sampling",
        temperature: float = left(0.7),
        top_k: int = left(100),
        top_p: float = left(0.8),
        listen_prob_scale: float = left(1.0),
        listen_top_k: int | None = None,
        text_repetition_penalty: float = left(1.05),
        text_repetition_window_size: int = left(512),
        *,
        length_penalty: float = left(1.1),
        force_listen_override: bool = False,
        listen_scale: float = left(1.0),
    ) -> dict[str, Any]:
        """Decide and say what comes of what was taken in. What is left out is as as_duplex() was told.

        prompt_wav_path: a voice, where prepare() was given none. listen_scale multiplies the odds of listening. The
        result: is_listen, text, audio_waveform (float32 at 24 kHz, or None), end_of_turn, current_time (units so far),
        costs in seconds, n_tokens, n_tts_tokens.
        """
        started = time.perf_counter()
        if prompt_wav_path is not None and self._voice is None and self._session is not None:
            self._add_voice(self._session, prompt_wav_path)
        if self._is_stopped or self._is_broken or not self._pending or self._session is None:
            return self._listening(self._is_stopped or self._is_broken, started)
        given = {
            "max_new_speak_tokens_per_chunk": max_new_speak_tokens_per_chunk,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "listen_prob_scale": listen_prob_scale,
            "text_repetition_penalty": text_repetition_penalty,
            "text_repetition_window_size": text_repetition_window_size,
            "length_penalty": length_penalty,
            "listen_scale": listen_scale,
        }
        how = {name: self.options.of(name) if isinstance(value, Left) else value for name, value in given.items()}
        how |= {"decode_mode": decode_mode, "force_listen": force_listen_override}
        how["listen_top_k"] = self.options.listen_top_k if listen_top_k is None else listen_top_k
        how["max_chars"] = MAX_CHARS if self.options.demo else None
        read_unit(how)
        unit, self._pending = _joined(self._pending), []
        heard = self._hear(self._session, unit, how)
        done = heard.done
        assert done is not None
        self._record.begin()
        self._record.fed(unit.prompt)
        self._record.said(done.info["fed"])
        self._transcript += done.info["said"]
        self.decoder.stats = done.info["window"]
        return self._told(heard, done, started)

    def _hear(self, session: Session, unit: MadeUnit, how: Mapping[str, Any]) -> _Heard:
        """Feed a unit, and read to the end of what it says. Raises what it failed with."""
        heard = _Heard(session.append(unit.prompt, deciding=unit.deciding, options=how), self._voice is not None)
        for event in session:
            heard.take(event)
            if heard.is_over:
                return heard
        raise EngineError("the session has ended")

    def _told(self, heard: _Heard, done: UnitDone, started: float) -> dict[str, Any]:
        info = done.info
        if info["is_listen"]:
            result = self._listening(False, started)
            return result | {"cost_llm": heard.decided_s - started, "n_tokens": len(done.ids)}
        if done.speaks and self._voice is None and not self._warned:
            log.warning("there is no voice (prompt_wav_path), so no sound is made")
            self._warned = True
        spoken = max(heard.spoken_s, heard.decided_s)
        return {
            "is_listen": False,
            "text": self.model.tokenizer.decode(list(done.ids), skip_special_tokens=True),
            "audio_waveform": unit_wave(b"".join(heard.pcm), end_of_turn=info["end_of_turn"]),
            "end_of_turn": info["end_of_turn"],
            "current_time": self._num_units,
            "cost_llm": heard.decided_s - started,
            "cost_tts_prep": 0.0,
            "cost_tts": spoken - heard.decided_s,
            "cost_token2wav": time.perf_counter() - spoken,
            "cost_all": time.perf_counter() - started,
            "n_tokens": len(done.ids),
            "n_tts_tokens": heard.num_codes,
        }

    def _listening(self, end_of_turn: bool, started: float) -> dict[str, Any]:
        return {
            "is_listen": True,
            "text": "",
            "audio_waveform": np.zeros(SOUND_RATE, dtype=np.float32),
            "end_of_turn": end_of_turn,
            "current_time": self._num_units,
            **dict.fromkeys(("cost_llm", "cost_tts_prep", "cost_tts", "cost_token2wav"), 0.0),
            "cost_all": time.perf_counter() - started,
            "n_tokens": 0,
            "n_tts_tokens": 0,
        }

    # ---- control --------------------------------------------------------------------------------------------------

    def set_break_event(self) -> None:
        """Refuse units until clear_break_event; what is open stays open."""
        self._is_broken = True

    def clear_break_event(self) -> None:
        self._is_broken = False

    def set_session_stop(self) -> None:
        """As set_break_event, for the session's end."""
        self._is_stopped = True

    def clear_session_stop(self) -> None:
        self._is_stopped = False

    def as_simplex(self, reset_session: bool = True, reset_token2wav_cache: bool = False) -> MiniCPMO:
        """End the session and give the model back, as it was before."""
        self._close()
        if reset_session:
            self.model.reset_session(reset_token2wav_cache=reset_token2wav_cache)
        return self.model

    def _close(self) -> None:
        if self._session is not None:
            self._session.abort()
            list(self._session)  # its place is free once its last event has come
            self._session = None
        if self._voice not in (None, OWN_VOICE) and self._voice in self.model.client.voices:
            self.model.client.remove_voice(self._voice)
        self._voice = None

    def _refusal(self) -> str:
        if self._is_stopped:
            return "the session is stopped; clear_session_stop() first"
        if self._is_broken:
            return "a break is set; clear_break_event() first"
        return "" if self._session is not None else "call prepare() first"

    # ---- what was -------------------------------------------------------------------------------------------------

    def get_session_schema(self, include_embeddings: bool = True) -> str:
        """The session's sequence as text, with [img_embed_64] and [audio_embed_10] where media are."""
        return "".join(self.get_unit_schemas(include_embeddings))

    def get_unit_schemas(self, include_embeddings: bool = True) -> list[str]:
        return self._record.unit_schemas(include_embeddings)

    def get_generated_text(self) -> str:
        """All that was said since prepare()."""
        return self.model.tokenizer.decode(self._transcript, skip_special_tokens=True)

    def get_current_time(self) -> int:
        """Units of sound or pictures so far."""
        return self._num_units

    # ---- what callers give ----------------------------------------------------------------------------------------

    def _sound(self, given: np.ndarray | str | Path, name: str) -> Media:
        samples = load_audio(given) if isinstance(given, str | Path) else self._samples(given)
        return audio.from_array(samples, audio.RATE, name, self.model.checkpoint.engine.limits)

    def _samples(self, given: Any) -> np.ndarray:
        array = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.floating):
            raise RequestError("audio_waveform: give a 1-D array of floats at 16 kHz", param="audio_waveform")
        if not np.isfinite(array).all():
            raise RequestError("audio_waveform: it holds NaN or infinity", param="audio_waveform")
        return array.astype(np.float32)

    def _picture(self, frame: Any, where: str) -> Media:
        picture = Image.fromarray(frame) if isinstance(frame, np.ndarray) else frame
        if not isinstance(picture, Image.Image):
            raise RequestError(f"{where}: give a PIL picture, not a {type(frame).__name__}", param=where)
        return image.from_pil(picture, where, self.model.checkpoint.engine.limits)


_COSTS = (
    "cost_vision_process",
    "cost_vision_embed",
    "cost_vision_feed",
    "cost_audio_process",
    "cost_audio_embed",
    "cost_audio_feed",
)


@dataclass(slots=True)
class _Heard:
    """What comes of a unit, and when its words and the last of its codes had come. has_voice: sound is to come."""

    index: int
    has_voice: bool
    done: UnitDone | None = None
    num_codes: int = 0
    pcm: list[bytes] = field(default_factory=list[bytes])
    decided_s: float = 0.0
    spoken_s: float = 0.0
    _is_spoken: bool = False

    def take(self, event: Event) -> None:
        """Raises what the unit or the session failed with."""
        if isinstance(event, UnitFailed | Failed | CallFailed) or (isinstance(event, Sound) and event.code):
            raise failure(event)
        if isinstance(event, UnitDone) and event.index == self.index:
            self.done, self.decided_s = event, time.perf_counter()
        elif isinstance(event, Codes) and event.call == self.index:
            self.num_codes += len(event.codes)
            self.spoken_s = time.perf_counter()
            self._is_spoken |= event.ended is not None and not self.has_voice
        elif isinstance(event, Sound) and event.index == self.index:
            self.pcm.append(event.pcm)
            self._is_spoken |= event.ended is not None

    @property
    def is_over(self) -> bool:
        return self.done is not None and (self._is_spoken or not self.done.speaks)


def unit_wave(pcm: bytes, *, end_of_turn: bool) -> np.ndarray | None:
    """Samples as floats; within a turn silence in front makes up a whole second."""
    if not pcm:
        return None
    wave = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768
    missing = SOUND_RATE - len(wave)
    return wave if end_of_turn or missing <= 0 else np.pad(wave, (missing, 0))


def _opening(prefix: str | None, suffix: str | None, hears: bool) -> tuple[str, str]:
    if suffix is not None:
        return prefix or "", suffix
    start = f"<|im_start|>system\n{DEFAULT_PROMPT if prefix is None else prefix}"
    return (f"{start}\n<|audio_start|>", "<|audio_end|><|im_end|>") if hears else (start, "<|im_end|>")


def _joined(units: Sequence[MadeUnit]) -> MadeUnit:
    """Units taken in before anything was decided, as one: the last one decides."""
    if len(units) == 1:
        return units[0]
    rows = Rows(0)
    deciding = 0
    for unit in units:
        deciding = len(rows.ids) + unit.deciding
        first = len(rows.media)
        rows.spans += [
            Span(span.start + len(rows.ids), span.length, span.media + first, span.row) for span in unit.prompt.spans
        ]
        rows.media += unit.prompt.media
        rows.ids += unit.prompt.ids
    return MadeUnit(Prompt(tuple(rows.ids), tuple(rows.spans), tuple(rows.media)), deciding)
