"""The stored traces of MiniCPM-o's speech and duplex sessions, with the little vocabulary that they use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sensorium.errors import CheckpointError
from sensorium.models.minicpm_duplex_tokens import DuplexTokens

ROOT = Path(__file__).resolve().parents[3] / "shared" / "golden" / "minicpmo45-speech"
needs_golden = pytest.mark.skipif(not ROOT.is_dir(), reason="the reference data (../shared/golden) are not here")


def read_config() -> dict[str, Any]:
    return json.loads((ROOT / "config.json").read_text("utf-8"))


def read_case(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "cases" / name / "case.json").read_text("utf-8"))


def read_case_tensors(name: str) -> dict[str, torch.Tensor]:
    return load_file(ROOT / "cases" / name / "tensors.safetensors")


class LittleTokenizer:
    """The vocabulary of the traces: the longest spelling that matches is the next token."""

    def __init__(self) -> None:
        config = read_config()
        self.control_ids: dict[str, int] = config["special_token_ids"]
        self.special_ids = frozenset(self.control_ids.values())
        self.config = {"bad_token_ids": config["bad_token_ids"]}
        self.eos_ids = (self.control_ids["<|im_end|>"],)
        self.vocab_size = config["vocab_size"]
        words = json.loads((ROOT / "vocab.json").read_text("utf-8"))
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
