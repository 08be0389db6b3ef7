"""The stored traces of MiniCPM-o's speech and duplex sessions, with the little vocabulary that they use."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from safetensors.torch import load_file

from sensorium.errors import CheckpointError
from sensorium.models.minicpm_duplex import MAX_CHARS
from sensorium.models.minicpm_duplex_tokens import DuplexTokens
from sensorium.types import MediaItem, Prompt, Span
from tests.golden_speech import place_of


def read_config() -> dict[str, Any]:
    return json.loads(place_of("config.json").read_text("utf-8"))


def read_case(name: str) -> dict[str, Any]:
    return json.loads(place_of(f"cases/{name}/case.json").read_text("utf-8"))


def read_case_tensors(name: str) -> dict[str, torch.Tensor]:
    return load_file(place_of(f"cases/{name}/tensors.safetensors"))


class LittleTokenizer:
    """The vocabulary of the traces: the longest spelling that matches is the next token."""

    def __init__(self) -> None:
        config = read_config()
        self.control_ids: dict[str, int] = config["special_token_ids"]
        self.special_ids = frozenset(self.control_ids.values())
        self.config = {"bad_token_ids": config["bad_token_ids"]}
        self.eos_ids = (self.control_ids["<|im_end|>"],)
        self.vocab_size = config["vocab_size"]
        words = json.loads(place_of("vocab.json").read_text("utf-8"))
        self._spelling = dict(enumerate(words)) | {i: text for text, i in self.control_ids.items()}
        self._ids: dict[str, int] = {}
        for token_id, text in self._spelling.items():
            self._ids[text] = token_id  # of equal spellings the last counts

    def id(self, spelling: str) -> int:
        if spelling not in self.control_ids:
            raise CheckpointError(spelling)
        return self.control_ids[spelling]

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        ids: list[int] = []
        while text:
            spelling = max((word for word in self._ids if word and text.startswith(word)), key=len)
            ids.append(self._ids[spelling])
            text = text[len(spelling) :]
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return "".join(self._spelling[i] for i in ids if not (skip_special and i in self.special_ids))

    def token_bytes(self, token_id: int) -> bytes:
        return self._spelling[token_id].encode()


def little_tokens() -> DuplexTokens:
    return DuplexTokens.of(LittleTokenizer())  # type: ignore[arg-type]


TRACES = ("duplex_released_window_off", "duplex_released_window_basic", "duplex_released_window_context")
DEMO = "duplex_demo_deferred_finalize"
_REJECTED = 27
"""The token that the demo's limit of characters rejects."""


@dataclass(frozen=True, slots=True)
class TraceUnit:
    """One unit of a stored session. rows: per decision the name of its logits, and the token raised above all others.

    fed: ids fed by decisions, in context mode followed by the suffix that is computed anew.
    """

    prompt: Prompt
    deciding: int
    options: dict[str, Any]
    rows: list[tuple[str, int | None]]
    fed: tuple[int, ...]
    result: dict[str, Any]
    state: dict[str, Any]
    ops: list[dict[str, Any]]


class Trace:
    """A stored full-duplex session."""

    def __init__(self, name: str) -> None:
        self.case, self.tensors = read_case(name), read_case_tensors(name)
        self.name, self.demo = name, name == DEMO
        self._prepared = next(i for i, op in enumerate(self.case["ops"]) if op["op"] == "prepared")
        self._terminators = little_tokens().terminators

    @property
    def prepared(self) -> dict[str, Any]:
        return self.case["ops"][self._prepared]

    @property
    def session_options(self) -> dict[str, Any]:
        config = self.case["config"]
        return config | {"suffix_ids": [492, 483] if config["sliding_window_mode"] == "context" else []}

    def opening(self) -> Prompt:
        return self._prompt([op for op in self.case["ops"][: self._prepared] if op["op"] == "feed"])

    def units(self) -> Iterator[TraceUnit]:
        """Those that were carried out."""
        ops = self.case["ops"][self._prepared + 1 :]
        starts = [i for i, op in enumerate(ops) if op["op"] == "unit_begin"]
        for start, stop in zip(starts, [*starts[1:], len(ops)], strict=True):
            if any(op["op"] == "prefill_result" and op["success"] for op in ops[start:stop]):
                yield self._unit(ops[start:stop])

    def _unit(self, ops: list[dict[str, Any]]) -> TraceUnit:
        cut = next(i for i, op in enumerate(ops) if op["op"] == "prefill_result")
        asked = [i for i, op in enumerate(ops) if op["op"] == "feed" and op["logits"]]
        return TraceUnit(
            self._prompt([op for op in ops[:cut] if op["op"] == "feed"]),
            sum(op["n"] for op in ops[: asked[0] + 1] if op["op"] == "feed") - 1,
            self._options(ops),
            [(ops[i]["logits_tensor"], _raised(ops[i + 1])) for i in asked],
            tuple(i for op in ops[cut:] if op["op"] == "feed" for i in op["what"]),
            next(op for op in ops if op["op"] == "result"),
            next(op for op in ops if op["op"] == "state"),
            ops,
        )

    def _options(self, ops: list[dict[str, Any]]) -> dict[str, Any]:
        decoded = [op for op in ops if op["op"] == "decode"]
        stored = decoded[0]["params"] if decoded else {"mode": "greedy"}
        given: dict[str, Any] = {"decode_mode" if name == "mode" else name: value for name, value in stored.items()}
        if self.demo:
            fed = [op["what"] for op in ops if op["op"] == "feed"]
            given |= {"max_chars": MAX_CHARS, "force_listen": [502] in fed and not decoded}
        if decoded and decoded[-1]["token"] not in (_REJECTED, *self._terminators):
            given["max_new_speak_tokens_per_chunk"] = len(decoded) + 1
        return given

    def _prompt(self, feeds: list[dict[str, Any]]) -> Prompt:
        ids: list[int] = []
        spans: list[Span] = []
        media: list[MediaItem] = []
        for part in (part for op in feeds for part in (op["what"] if isinstance(op["what"], list) else [op["what"]])):
            if isinstance(part, int):
                ids.append(part)
                continue
            kind, _, number = part.partition(":")
            stored = self.tensors
            rows = stored["image_embeds"][int(number)] if kind == "image" else stored[f"audio_embed_{number}"]
            modality: Literal["image", "audio"] = "image" if kind == "image" else "audio"
            spans.append(Span(len(ids), len(rows), len(media)))
            media.append(MediaItem(modality, f"{self.name} {part}".encode(), len(rows), {"embeds": rows.numpy()}))
            ids += [510] * len(rows)
        return Prompt(tuple(ids), tuple(spans), tuple(media))


def _raised(op: dict[str, Any]) -> int | None:
    return op["token"] if op["op"] == "override" else None
