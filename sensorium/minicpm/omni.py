"""MiniCPM-o 4.5."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.errors import UnsupportedError
from sensorium.minicpm.answering import Question, ask, ask_stream
from sensorium.minicpm.generation import omni_generation
from sensorium.minicpm.model import MiniCPM
from sensorium.minicpm.system import system_message
from sensorium.minicpm.tokenizer import check_processor

_SPOKEN_END = "<|tts_eos|>"


class MiniCPMO(MiniCPM):
    """The model object of MiniCPM-o 4.5."""

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
        strings, and dicts in OpenAI's form. return_prompt: the answer and the prompt it answers. kwargs: num_beams (3,
        as published; 1 is faster and what streams use), top_p, top_k, temperature, repetition_penalty.
        docs/minicpm.md describes every parameter. Raises RequestError, a ValueError, that names the argument.
        """
        self.tokenizer.check_same("tokenizer", tokenizer)
        check_processor(self.tokenizer, processor)
        _refuse_unspoken(generate_audio, teacher_forcing, output_tts_inputs_embeds_path)
        if vision_hidden_states is not None:
            raise UnsupportedError("vision_hidden_states: pass the pictures themselves", param="vision_hidden_states")
        media = {"omni_mode": omni_mode, "stream_input": stream_input, "use_image_id": use_image_id}
        media |= {"max_slice_nums": max_slice_nums, "merge_audio_from_same_content": merge_audio_from_same_content}
        question = Question(
            msgs,
            image,
            ("system", "user", "assistant"),
            omni_generation(do_sample, stream, kwargs, (max_new_tokens, min_new_tokens)),
            max_inp_length,
            {"enable_thinking": enable_thinking, "use_tts_template": use_tts_template},
            media,
            stop_ids=(self.tokenizer.convert_tokens_to_ids(_SPOKEN_END),),
        )
        if stream:
            return ask_stream(self, question)
        answers = ask(self, question)
        texts = [self._spelled(answer.ids) for answer in answers.of]
        prompts = [answer.prompt.text or "" for answer in answers.of]
        found, asked = (texts, prompts) if answers.is_batch else (texts[0], prompts[0])
        return (found, asked) if return_prompt else found

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

    def _spelled(self, ids: tuple[int, ...]) -> str:
        return self.tokenizer.decode(ids).removeprefix("<|im_start|>").partition(_SPOKEN_END)[0]


def _refuse_unspoken(generate_audio: bool, teacher_forcing: bool, embeds_path: Any) -> None:
    given = {
        "generate_audio": generate_audio,
        "teacher_forcing": teacher_forcing,
        "output_tts_inputs_embeds_path": embeds_path is not None,
    }
    for name, value in given.items():
        if value:
            raise UnsupportedError(f"{name}: this version does not speak yet; leave it out", param=name)
