"""MiniCPM-V 2.5 to 4.5, and MiniCPM-o 2.6 as far as it answers in text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sensorium.errors import RequestError, UnsupportedError
from sensorium.minicpm.answering import Question, ask, ask_stream
from sensorium.minicpm.generation import vision_generation
from sensorium.minicpm.messages import read_conversations
from sensorium.minicpm.model import MiniCPM
from sensorium.minicpm.tokenizer import check_processor

ROLES = ("user", "assistant")
_THINK = "<think>\n"


class MiniCPMV(MiniCPM):
    """The model object of MiniCPM-V."""

    def chat(
        self,
        image: Any = None,
        msgs: Any = None,
        tokenizer: Any = None,
        processor: Any = None,
        vision_hidden_states: Any = None,
        max_new_tokens: int = 2048,
        min_new_tokens: int = 0,
        sampling: bool = True,
        max_inp_length: int | None = None,
        system_prompt: str = "",
        stream: bool = False,
        max_slice_nums: int | None = None,
        use_image_id: bool | None = None,
        temporal_ids: Any = None,
        enable_thinking: bool = False,
        **kwargs: Any,
    ) -> str | list[str] | Iterator[str]:
        """The answer to a conversation; with stream its pieces; for a list of conversations a list of answers.

        msgs: [{"role", "content"}]; a content is a string or a list of PIL pictures and strings. temporal_ids: groups
        of consecutive pictures to be seen together, each picture with its time in tenths of a second (V-4.5).
        max_inp_length: by default 16384 tokens for V-4.5 and as published for others. kwargs: num_beams, top_p, top_k,
        temperature, repetition_penalty, do_sample. Raises RequestError, a ValueError, that names the argument.
        """
        self.tokenizer.check_same("tokenizer", tokenizer)
        check_processor(self.tokenizer, processor)
        if stream and not sampling:
            raise RequestError("stream: needs sampling=True", param="stream")
        if enable_thinking and self.version < (4, 5):
            raise UnsupportedError("enable_thinking: versions before 4.5 do not think", param="enable_thinking")
        conversations, is_batch = read_conversations(msgs, image, ROLES, self.checkpoint.engine.limits)
        question = Question(
            conversations,
            is_batch,
            vision_generation(sampling, self.version, kwargs, (max_new_tokens, min_new_tokens)),
            max_inp_length or self._max_inp_length,
            {"enable_thinking": enable_thinking},
            {"max_slice_nums": max_slice_nums, "use_image_id": use_image_id},
            temporal_ids,
            system_prompt,
            vision_hidden_states=vision_hidden_states,
        )
        thinking = _THINK if enable_thinking else ""
        if stream:
            return ask_stream(self, question, thinking)
        texts = [thinking + self._spelled(answer.ids).strip() for answer in ask(self, question)]
        return texts if is_batch else texts[0]

    @property
    def _max_inp_length(self) -> int:
        if self.tokenizer.processor.variant.omni:
            return 32_768
        if self.version >= (4, 5):
            return 16_384
        return 8192 if self.version >= (2, 6) else 2048

    def _spelled(self, ids: tuple[int, ...]) -> str:
        return self.tokenizer.decode(ids).removeprefix("<|im_start|>")
