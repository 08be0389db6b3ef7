"""The tokenizer that LLM.get_tokenizer returns: the usual calls, on the tokenizer that the engine uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sensorium.messages import read_messages
from sensorium.models.base import Tokenizer
from sensorium.types import ChatOptions, Message, Prompt


class Prompts(Protocol):
    """What makes prompts: an EngineClient does."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def prepare_chat(self, messages: Sequence[Message], options: ChatOptions | None = None) -> Prompt: ...

    def prepare_raw(self, text: str) -> Prompt: ...


class OfflineTokenizer:
    """Names follow transformers where it has them."""

    def __init__(self, client: Prompts) -> None:
        self._client = client
        self._inner = client.tokenizer

    @property
    def eos_token_id(self) -> int | None:
        return self._inner.eos_ids[0] if self._inner.eos_ids else None

    @property
    def vocab_size(self) -> int:
        return self._inner.vocab_size

    def __len__(self) -> int:
        return self._inner.vocab_size

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of text in which control tokens are read as such. add_special_tokens: as in a raw prompt."""
        if add_special_tokens:
            return list(self._client.prepare_raw(text).ids)
        return self._inner.encode(text, allow_special=True)

    def decode(self, token_ids: int | Sequence[int], *, skip_special_tokens: bool = False) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        return self._inner.decode(ids, skip_special=skip_special_tokens)

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of one token, or a list of ids. Raises ValueError for text that is not one token."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        ids = self._inner.encode(tokens, allow_special=True)
        if len(ids) != 1:
            raise ValueError(f"{tokens!r} is not one token but {len(ids)}")
        return ids[0]

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        **template_kwargs: Any,
    ) -> str | list[int]:
        """A conversation as the model's prompt: its text, or its ids."""
        options = ChatOptions(
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_kwargs=template_kwargs,
            tools=tuple(tools or ()),
            template=chat_template,
        )
        prompt = self._client.prepare_chat(read_messages(conversation), options)
        return list(prompt.ids) if tokenize else prompt.text or ""
