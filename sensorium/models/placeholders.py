"""Prompts of families that write each medium as one control token, repeated once per embedding.

The checkpoint's chat template places the tokens; here they are found, counted against the media, and expanded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sensorium.errors import CheckpointError, ContextLengthError, RequestError
from sensorium.models.chat_template import ChatTemplate, StandIns, arranged, check_role, check_unfinished
from sensorium.models.generic import HasModality, with_own_placeholders
from sensorium.models.tokenizer import Tokenizer
from sensorium.types import ChatOptions, Embeds, Media, MediaItem, Message, Modality, Prepared, Prompt, Span

_CHARS_PER_TOKEN = 8


@dataclass(frozen=True, slots=True)
class Notation:
    """How a family writes media. ids: placeholder per modality; written: what a template without parts is given."""

    ids: Mapping[Modality, int]
    written: Mapping[str, str]
    prefix: tuple[int, ...] = ()
    """Ids in front of every prompt made from text."""


@dataclass(frozen=True, slots=True)
class Page:
    """A rendered conversation: ids with one placeholder per medium, and the media in the order written."""

    ids: list[int]
    media: list[Media | Embeds | Prepared]
    text: str


class PromptWriter:
    """Keeps no state between calls, so threads may share it."""

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, notation: Notation, max_len: int, fallback_template: str
    ) -> None:
        """fallback_template is used where the checkpoint brings none."""
        self.tokenizer = tokenizer
        self.notation = notation
        self._template = ChatTemplate(folder, {"chat_template": fallback_template} | tokenizer.config)
        self._max_chars = _CHARS_PER_TOKEN * max_len
        spellings = {token_id: spelling for spelling, token_id in tokenizer.control_ids.items()}
        for modality, token_id in notation.ids.items():
            if token_id not in spellings:
                raise CheckpointError(f"the tokenizer has no control token {token_id}, which stands for an {modality}")
        self._spellings = tuple(spellings[token_id] for token_id in notation.ids.values())
        self._own = {name: re.compile(re.escape(spellings[token_id])) for name, token_id in notation.ids.items()}

    # ---- text to ids ----------------------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message], options: ChatOptions) -> Page:
        """The chat template's text as ids. What users wrote stays text, whatever it spells."""
        if not messages:
            raise RequestError("there are no messages", param="messages")
        stand_ins = StandIns(self.tokenizer)
        takes_parts = self._template.takes_parts(options)
        if not takes_parts:
            arrange = options.interleave
            messages = [replace(message, parts=tuple(arranged(message.parts, arrange))) for message in messages]
        drafts = [self._draft(index, message, stand_ins) for index, message in enumerate(messages)]
        if not takes_parts:
            drafts = [draft | {"content": self._joined(draft["content"])} for draft in drafts]
        unfinished = options.continue_final_message
        if unfinished:
            check_unfinished(messages)
            drafts[-1]["content"] = self._with_end(drafts[-1]["content"], stand_ins.end())
        rendered = self._template.render(
            drafts,
            tools=stand_ins.tree(options.tools),
            add_generation_prompt=options.add_generation_prompt and not unfinished,
            variables=stand_ins.tree(dict(options.template_kwargs)),
            max_chars=self._max_chars,
            options=options,
        )
        if unfinished:
            rendered, found, _ = rendered.rpartition(stand_ins.end())
            if not found:
                raise RequestError(
                    "the chat template cannot continue the final message", param="continue_final_message"
                )
        media = [part for message in messages for part in message.parts if isinstance(part, Media | Embeds | Prepared)]
        ids = self.tokenizer.encode_mixed(rendered, stand_ins.literals)
        return Page(self._prefixed(ids), media, stand_ins.restore(rendered))

    def read(self, prompt: str | Sequence[int], media: Sequence[HasModality] = ()) -> list[int]:
        """Ids of a prompt that the caller wrote, control tokens included."""
        if isinstance(prompt, str):
            self._check_length(prompt, "prompt")
            prompt = with_own_placeholders(prompt, media, self.notation.written, self._own)
            return self._prefixed(self.tokenizer.encode(prompt, allow_special=True))
        if any(type(token_id) is not int or not 0 <= token_id < self.tokenizer.vocab_size for token_id in prompt):
            raise RequestError(f"token ids must be integers from 0 to {self.tokenizer.vocab_size - 1}", param="prompt")
        return list(prompt)

    def _prefixed(self, ids: list[int]) -> list[int]:
        prefix = list(self.notation.prefix)
        return ids if ids[: len(prefix)] == prefix else prefix + ids

    def _draft(self, index: int, message: Message, stand_ins: StandIns) -> dict[str, Any]:
        """A message as templates read it, with user text that spells control tokens hidden from them."""
        where = f"messages[{index}]"
        check_role(message, where)
        from_model = message.role == "assistant"
        parts: list[dict[str, str]] = []
        for part in message.parts:
            if isinstance(part, str):
                self._check_length(part, where)
                parts.append({"type": "text", "text": self._hidden(part, stand_ins, from_model)})
            elif isinstance(part, Media | Embeds | Prepared):
                parts.append({"type": part.modality})
            else:
                raise RequestError("media must be fetched and decoded first", param=part.part or where)
        extra = stand_ins.tree(dict(message.extra), special_only=from_model)
        return {**extra, "role": message.role, "content": parts}

    def _hidden(self, text: str, stand_ins: StandIns, from_model: bool) -> str:
        """What a model said may hold <think> and the like for its template to read, but never a placeholder."""
        hidden = stand_ins.text(text, special_only=from_model)
        return stand_ins.text(text) if any(spelling in hidden for spelling in self._spellings) else hidden

    def _joined(self, parts: Sequence[Mapping[str, str]]) -> str:
        return "\n".join(
            part["text"] if part["type"] == "text" else self.notation.written[part["type"]] for part in parts
        )

    @staticmethod
    def _with_end(content: str | list[dict[str, str]], end: str) -> str | list[dict[str, str]]:
        if isinstance(content, str):
            return content + end
        if content and content[-1]["type"] == "text":
            return [*content[:-1], {"type": "text", "text": content[-1]["text"] + end}]
        return [*content, {"type": "text", "text": end}]

    def _check_length(self, text: str, param: str) -> None:
        if len(text) > self._max_chars:
            raise ContextLengthError(f"the text has more than {self._max_chars} characters", param=param)

    # ---- placeholders to spans ------------------------------------------------------------------------------------

    def expand(self, ids: Sequence[int], items: Sequence[MediaItem], text: str | None) -> Prompt:
        """One placeholder per medium becomes its rows; a prompt written with all its placeholders stays as it is."""
        kept: list[MediaItem] = []
        numbers: dict[bytes, int] = {}
        for item in items:
            if item.key not in numbers:
                numbers[item.key] = len(kept)
                kept.append(item)
        out: list[int] = []
        spans: list[Span] = []
        waiting = {token: self._queue(ids, items, modality) for modality, token in self.notation.ids.items()}
        index = 0
        while index < len(ids):
            token = ids[index]
            if token not in waiting:
                out.append(token)
                index += 1
                continue
            queue, expanded = waiting[token]
            item = queue.pop(0)
            taken = item.rows if expanded else 1
            if list(ids[index : index + taken]) != [token] * taken:
                raise RequestError(f"the placeholders at position {index} fit no {item.modality}", param="prompt")
            spans.append(Span(len(out), item.rows, numbers[item.key]))
            out += [token] * item.rows
            index += taken
        return Prompt(tuple(out), tuple(spans), tuple(kept), text=text)

    def _queue(
        self, ids: Sequence[int], items: Sequence[MediaItem], modality: Modality
    ) -> tuple[list[MediaItem], bool]:
        """The media of a modality in prompt order, and whether the prompt has a placeholder for each of their rows."""
        queue = [item for item in items if item.modality == modality]
        found, rows = list(ids).count(self.notation.ids[modality]), sum(item.rows for item in queue)
        if found not in (len(queue), rows):
            raise RequestError(
                f"the prompt has {found} {modality} placeholders; its {modality} items are {len(queue)}. Write "
                f"{self.notation.written[modality]} for each",
                param="prompt",
            )
        return queue, found != len(queue)
