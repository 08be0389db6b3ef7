"""AutoTokenizer and AutoProcessor: what prompts are made with, without an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sensorium.engine.checkpoint import open_processor
from sensorium.errors import RequestError
from sensorium.models.base import Tokenizer
from sensorium.offline.tokenizer import OfflineTokenizer
from sensorium.types import ChatOptions, Message, Prompt

if TYPE_CHECKING:
    from sensorium.minicpm.model import Checkpoint

# Text on which tokenizers of different models part: control tokens, Chinese, digits, code.
_PROBE = "<|im_start|>user\n<image><unk></image>用户数据 1234 == don't!<|tts_bos|><|reserved_3|><|im_end|>"


class _Prompts:
    """What OfflineTokenizer asks of an engine, from a processor alone."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.tokenizer: Tokenizer = processor.tokenizer

    def prepare_chat(self, messages: Sequence[Message], options: ChatOptions | None = None) -> Prompt:
        return self.processor.chat(messages, options or ChatOptions())

    def prepare_raw(self, text: str) -> Prompt:
        return self.processor.raw(text, (), ChatOptions())


class MiniCPMTokenizer(OfflineTokenizer):
    """The tokenizer of a checkpoint. Names follow transformers where it has them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.processor: Any = open_processor(checkpoint.folder, checkpoint.hf_config, checkpoint.engine)
        self.name_or_path = str(checkpoint.folder)
        super().__init__(_Prompts(self.processor))

    def __call__(self, text: str | Sequence[str], *, add_special_tokens: bool = True) -> dict[str, Any]:
        """{"input_ids", "attention_mask"} of one text, or lists of them."""
        if isinstance(text, str):
            ids = self.encode(text, add_special_tokens=add_special_tokens)
            return {"input_ids": ids, "attention_mask": [1] * len(ids)}
        each = [self(one, add_special_tokens=add_special_tokens) for one in text]
        return {name: [one[name] for one in each] for name in ("input_ids", "attention_mask")}

    def batch_decode(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool = False) -> list[str]:
        return [self.decode(ids, skip_special_tokens=skip_special_tokens) for ids in sequences]

    def check_same(self, name: str, other: Any) -> None:
        """Refuse a tokenizer (argument `name`) that cuts text in another way than the model's own."""
        if other is None or other is self or (isinstance(other, MiniCPMTokenizer) and _equal(self, other)):
            return
        try:
            ids = list(other.encode(_PROBE, add_special_tokens=False))
        except (AttributeError, TypeError) as error:
            raise RequestError(f"{name}: {type(other).__name__} is no tokenizer", param=name) from error
        if ids != self.encode(_PROBE, add_special_tokens=False):
            raise RequestError(
                f"{name}: it is not the tokenizer of {self.name_or_path!r}; leave {name} out, or load both from the "
                "same checkpoint",
                param=name,
            )


def _equal(one: MiniCPMTokenizer, two: MiniCPMTokenizer) -> bool:
    return one.name_or_path == two.name_or_path


class MiniCPMProcessor:
    """What AutoProcessor gives: it holds the tokenizer. chat() prepares media itself."""

    def __init__(self, tokenizer: MiniCPMTokenizer) -> None:
        self.tokenizer = tokenizer

    def apply_chat_template(self, conversation: Sequence[Mapping[str, Any]], **options: Any) -> str | list[int]:
        """As the tokenizer's."""
        return self.tokenizer.apply_chat_template(conversation, **options)


def check_processor(own: MiniCPMTokenizer, given: Any) -> None:
    """Refuse a processor whose tokenizer is another model's."""
    if given is not None:
        own.check_same("processor", getattr(given, "tokenizer", given))
