"""From what users write as answer formats to llguidance's grammars and matchers. Slow or fatal for some inputs: see
grammar_worker, where everything is tried first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, StructTag, grammar_from

_WHITE_SPACE = r"[ \t\n\r]{0,20}"
"""Between the parts of JSON, unless asked otherwise: a line and its indentation. Models may find no end of more."""


def limits() -> LLParserLimits:
    """Bounds on a grammar while it is compiled and while it is followed."""
    return LLParserLimits(max_lexer_states=50_000, verbose_errors=False)


class TokenTable:
    """The tokens that llguidance cuts texts into. The last one stands for the end, whatever ends a model's text."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(
        self, tokens: Sequence[bytes], special: Sequence[int], encode: Callable[[str], list[int]] | None = None
    ) -> None:
        """encode: how the model's own texts are cut, for what a grammar forces; else by the longest tokens that fit."""
        self.tokens = [*tokens, b"<end>"]
        self.eos_token_id = len(tokens)
        self.special_token_ids = [*special, len(tokens)]
        self._encode = encode
        left_out = set(special)
        self._ids = {token: index for index, token in enumerate(tokens) if token and index not in left_out}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes | str) -> list[int]:
        """Ids that spell the text exactly. Some tokenizers cannot but put a blank before the first word."""
        data = text.encode() if isinstance(text, str) else text
        if self._encode is not None:
            ids = self._encode(data.decode("utf-8", "replace"))
            if b"".join(self.tokens[i] for i in ids) == data:
                return ids
        return self._cut(data)

    def _cut(self, data: bytes) -> list[int]:
        ids: list[int] = []
        at = 0
        while at < len(data):
            sizes = range(min(self._longest, len(data) - at), 0, -1)
            size = next((size for size in sizes if data[at : at + size] in self._ids), 0)
            ids += [self._ids[data[at : at + size]]] if size else []
            at += size or 1
        return ids

    def build(self) -> LLTokenizer:
        return LLTokenizer(self, n_vocab=len(self.tokens), eos_token=[self.eos_token_id])  # type: ignore[arg-type]


def to_grammar(fields: Mapping[str, Any]) -> str:
    """The grammar of a StructuredOutputs in llguidance's notation. Raises ValueError with a text for the user."""
    if fields.get("json") is not None or fields.get("json_object"):
        schema = json.loads(fields["json"]) if fields.get("json") is not None else {"type": "object"}
        if fields.get("disable_additional_properties"):
            _close_objects(schema)
        space: dict[str, Any] = {"whitespace_pattern": fields.get("whitespace_pattern") or _WHITE_SPACE}
        if fields.get("disable_any_whitespace"):
            space = {"whitespace_flexible": False}
        return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=space)  # type: ignore[arg-type]
    if fields.get("regex") is not None:
        return LLMatcher.grammar_from_regex(fields["regex"])
    if fields.get("choice") is not None:
        return grammar_from("choice", json.dumps(fields["choice"]))
    if fields.get("structural_tag") is not None:
        return _tags(json.loads(fields["structural_tag"]))
    return grammar_from("grammar", fields["grammar"])


def _close_objects(schema: Any) -> None:
    """Let objects have no properties but the listed ones, wherever a schema does not say."""
    if isinstance(schema, dict):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for value in schema.values():
            _close_objects(value)
    elif isinstance(schema, list):
        for value in schema:
            _close_objects(value)


def _tags(spec: Mapping[str, Any]) -> str:
    structures, triggers = spec.get("structures"), spec.get("triggers")
    if not isinstance(structures, list) or not structures or not isinstance(triggers, list) or not triggers:
        raise ValueError("a structural tag needs lists of structures and triggers, none of them empty")
    tags: list[StructTag] = []
    for at, item in enumerate(structures):
        begin, end = (item.get(name) if isinstance(item, dict) else None for name in ("begin", "end"))
        if not isinstance(begin, str) or not isinstance(end, str) or not isinstance(item.get("schema"), dict):
            raise ValueError(f"structures[{at}] needs begin and end as texts and schema as an object")
        trigger = next((text for text in triggers if isinstance(text, str) and text and begin.startswith(text)), None)
        if trigger is None:
            raise ValueError(f"structures[{at}].begin starts with none of the triggers")
        tags.append(StructTag(trigger=trigger, begin=begin, grammar=item["schema"], end=end))
    return StructTag.to_grammar(tags, assume_special=False)


def begin(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """A matcher that has shown that it can choose a first token. Raises ValueError."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits())
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        reason = matcher.get_error()
        raise ValueError("no text fits it" if "NoExtension" in reason else reason)
    return matcher
