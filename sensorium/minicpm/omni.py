"""MiniCPM-o 4.5."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from sensorium.engine.checkpoint import CODEC, open_checkpoint
from sensorium.errors import CheckpointError, RequestError, SensoriumError, UnsupportedError
from sensorium.minicpm.answering import Question, ask, ask_stream, prompts
from sensorium.minicpm.generation import Answer, omni_generation
from sensorium.minicpm.messages import read_conversations
from sensorium.minicpm.speech import (
    OWN_VOICE,
    Speech,
    first_voice,
    forced_text,
    read_recording,
    read_sampling,
    spoken_part,
    write_sound,
)
from sensorium.minicpm.system import system_message
from sensorium.minicpm.talking import Talking
from sensorium.minicpm.tokenizer import check_processor
from sensorium.models.base import SpeechModel
from sensorium.models.build import voice_files
from sensorium.models.token2wav import Token2Wav, Voice, VoicePrompt
from sensorium.types import Message

log = logging.getLogger(__name__)
_LONGEST_VOICE_S = 17
"""Where streams of the reference fail."""
ROLES = ("system", "user", "assistant")
_SPOKEN_BEGIN, _SPOKEN_END = "<|tts_bos|>", "<|tts_eos|>"


class MiniCPMO(Talking):
    """The model object of MiniCPM-o 4.5."""

    can_speak = False
    """Whether init_tts() was called."""

    def chat(
        self,
        image: Any = None,
        msgs: Any = None,
        vision_hidden_states: Any = None,
        max_new_tokens: int = 4096,
        min_new_tokens: int = 0,
        do_sample: bool = True,
        max_inp_length: int = 8192,
        max_slice_nums: int | None = None,
        use_image_id: bool | None = None,
        enable_thinking: bool = False,
        use_tts_template: bool = False,
        generate_audio: bool = False,
        output_audio_path: str | Path | None = None,
        output_tts_inputs_embeds_path: str | Path | None = None,
        omni_mode: bool = False,
        teacher_forcing: bool = False,
        return_prompt: bool = False,
        tts_proj_layer: int = -1,
        tts_sampling_params: Any = None,
        merge_audio_from_same_content: bool = True,
        stream: bool = False,
        stream_input: bool = False,
        tokenizer: Any = None,
        processor: Any = None,
        **kwargs: Any,
    ) -> str | list[str] | tuple[str | list[str], str | list[str]] | Iterator[str]:
        """The answer to a conversation; with stream its pieces; for a list of conversations a list of answers.

        msgs: [{"role", "content"}]; a content is a string or a list of PIL pictures, 1-D arrays of sound at 16 kHz,
        strings, and dicts in OpenAI's form. generate_audio: speak the answer into output_audio_path, in the voice of
        the first sound; init_tts() comes before. kwargs: num_beams (3, as published; 1 is faster), top_p, top_k,
        temperature, repetition_penalty. See docs/minicpm.md. Raises RequestError that names the argument.
        """
        self.tokenizer.check_same("tokenizer", tokenizer)
        check_processor(self.tokenizer, processor)
        _refuse(stream, generate_audio, teacher_forcing, tts_proj_layer)
        conversations, is_batch = read_conversations(msgs, image, ROLES, self.checkpoint.engine.limits)
        paths = (output_audio_path, output_tts_inputs_embeds_path)
        speech = self._speech_for(conversations, is_batch, paths, tts_sampling_params) if generate_audio else None
        media = {"omni_mode": omni_mode, "stream_input": stream_input, "use_image_id": use_image_id}
        media |= {"max_slice_nums": max_slice_nums, "merge_audio_from_same_content": merge_audio_from_same_content}
        forced, conversations = forced_text(conversations) if teacher_forcing else ("", conversations)
        question = Question(
            conversations,
            is_batch,
            omni_generation(do_sample, stream, kwargs, (max_new_tokens, min_new_tokens)),
            max_inp_length,
            {"enable_thinking": enable_thinking, "use_tts_template": use_tts_template or teacher_forcing},
            media,
            stop_ids=(self.tokenizer.convert_tokens_to_ids(_SPOKEN_END),),
            vision_hidden_states=vision_hidden_states,
        )
        if stream:
            return ask_stream(self, question)
        answers = self._given(question, forced) if teacher_forcing else ask(self, question)
        if speech is not None:
            self._say(answers[0], speech)
        return _one_or_all([self._spelled(answer.ids) for answer in answers], answers, is_batch, return_prompt)

    def get_sys_prompt(
        self,
        ref_audio: str | Path | np.ndarray | None = None,
        mode: str = "default",
        language: str = "en",
        ref_audio_max_ms: float | None = None,
    ) -> dict[str, Any]:
        """The system message for a purpose, with the voice to speak in.

        mode: omni, audio_assistant, audio_roleplay or voice_cloning; anything else is a plain assistant. language: en
        or zh. ref_audio: a path, or samples at 16 kHz; of it the first ref_audio_max_ms milliseconds.
        """
        return system_message(ref_audio, mode, language, ref_audio_max_ms)

    # ---- speech ----------------------------------------------------------------------------------------------------

    def init_tts(
        self,
        model_dir: str | Path | None = None,
        enable_float16: bool = False,
        n_timesteps: int = 10,
        streaming: bool | None = None,
    ) -> Token2Wav:
        """Start the engine with what speech is made with, and return the codec.

        model_dir: its folder, by default assets/token2wav of the checkpoint. enable_float16: the flow in 16 bits.
        n_timesteps: its steps. streaming: accepted, one codec does both. Raises CheckpointError naming what is missing,
        UnsupportedError where the extra `speech` is not installed.
        """
        if not self.checkpoint.init_tts:
            raise RequestError("init_tts: the model was opened with init_tts=False; leave that out", param="init_tts")
        wanted = replace(self._engine, init_tts=True, codec="auto", speech_slots=1)
        folder = open_checkpoint(wanted)[0] / CODEC if model_dir is None else Path(model_dir).expanduser()
        if not folder.is_dir():
            raise CheckpointError(f"there is no codec folder {folder}; a speaking checkpoint has one at {CODEC}")
        settings = {"n_timesteps": n_timesteps, "dtype": "float16" if enable_float16 else "float32"}
        settings["voice_s"] = _LONGEST_VOICE_S
        before, self.can_speak = self._engine, True
        try:
            # One place for speech is what this object uses; an engine that runs without it starts anew.
            self._change(replace(wanted, codec=str(folder), codec_config=settings))
            return self.codec
        except SensoriumError:
            self.can_speak = before.init_tts
            self._change(before)
            raise

    @property
    def codec(self) -> Token2Wav:
        """What init_tts() returned: the engine's own."""
        if not self.can_speak or (stage := self.client.loaded.engine.codec) is None:
            raise RequestError("there is no speech output yet; call init_tts() first", param="init_tts")
        return cast("Token2Wav", stage.codec)

    @property
    def speech(self) -> SpeechModel:
        """The speech LM, which init_tts() asks for."""
        if not self.can_speak or (speech := self.client.loaded.model.speech) is None:
            raise RequestError("there is no speech output yet; call init_tts() first", param="init_tts")
        return speech

    def read_voice(self, source: str | Path | bytes | np.ndarray, name: str = "prompt_wav_path") -> Voice:
        """A voice for the codec, from a file, or from samples at 16 kHz."""
        return self.codec.voice(*read_recording(source, name))

    def take_voice(self, name: str, source: Any, param: str) -> str:
        """What the engine calls the voice of a recording: `name`, or its own where it makes none of recordings."""
        own = self._own_voice()
        if own is not None:
            log.warning("%s: this model makes no voices of recordings; it speaks in its own", param)
            return OWN_VOICE
        self.client.add_voice(name, *read_recording(source, param))
        return name

    def _own_voice(self) -> Voice | None:
        """The one that comes with a codec which makes none of recordings."""
        path = voice_files(self.checkpoint.folder, self.client.config).get(OWN_VOICE)
        if self.codec.can_clone or path is None or path.suffix != ".safetensors":
            return None
        return Voice(VoicePrompt.load(path))

    def _speech_for(
        self, conversations: Sequence[Sequence[Message]], is_batch: bool, paths: Sequence[Any], sampling: Any
    ) -> Speech | None:
        """All that can be wrong with the wish to hear an answer, found before it is generated."""
        path, embeds = (None if path is None else Path(path) for path in paths)
        codec = self.codec
        if is_batch:
            raise UnsupportedError(
                "generate_audio: for one conversation, not for a list of them", param="generate_audio"
            )
        if path is None:
            log.warning("chat(): generate_audio makes no sound without output_audio_path")
            return None
        for name, file in (("output_audio_path", path), ("output_tts_inputs_embeds_path", embeds)):
            if file is not None and not file.absolute().parent.is_dir():
                raise RequestError(f"{name}: there is no folder {str(file.parent)!r}", param=name)
        voice = self._own_voice() or codec.voice(first_voice(conversations[0]), 16_000)
        return Speech(voice, path, read_sampling(sampling, self.speech.config), embeds)

    def _given(self, question: Question, text: str) -> list[Answer]:
        """An answer that the caller wrote."""
        (prepare,) = prompts(self, question)
        return [Answer(prepare(), tuple(self.tokenizer.encode(text, add_special_tokens=False)))]

    def _say(self, answer: Answer, speech: Speech) -> None:
        """Speak an answer. As in the reference, a failure costs the sound and not the text."""
        marks = [self.tokenizer.convert_tokens_to_ids(mark) for mark in (_SPOKEN_BEGIN, _SPOKEN_END)]
        before, said = spoken_part(answer.prompt, answer.ids, *marks)
        if not said:
            log.warning("chat(): the answer has no words to speak; %s is not written", speech.path)
            return
        try:
            write_sound(self.client, self.speech, self.codec, speech, before, said)
        except Exception:  # whatever it is, the text is there
            log.exception("chat(): the answer could not be spoken; %s is not written", speech.path)

    def _spelled(self, ids: tuple[int, ...]) -> str:
        return self.tokenizer.decode(ids).removeprefix("<|im_start|>").partition(_SPOKEN_END)[0]


def _refuse(stream: bool, generate_audio: bool, teacher_forcing: bool, tts_proj_layer: int) -> None:
    if tts_proj_layer != -1:
        raise UnsupportedError("tts_proj_layer: speech is made of the last layer, -1", param="tts_proj_layer")
    if stream and generate_audio:
        raise UnsupportedError(
            "generate_audio: a stream has text only; pieces of sound come from streaming_generate()",
            param="generate_audio",
        )
    if teacher_forcing and not generate_audio:
        raise RequestError(
            "teacher_forcing: speaks a given text; it needs generate_audio=True", param="teacher_forcing"
        )


def _one_or_all(texts: list[str], answers: Sequence[Answer], is_batch: bool, with_prompt: bool) -> Any:
    asked = [answer.prompt.text or "" for answer in answers]
    found, prompt = (texts, asked) if is_batch else (texts[0], asked[0])
    return (found, prompt) if with_prompt else found
