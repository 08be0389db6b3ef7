"""The tokenizer of a checkpoint folder, through the `tokenizers` library; control tokens only where they are meant."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from sensorium.errors import CheckpointError, RequestError

# How Qwen2 and everything built on it cuts text before BPE: contractions, words, single digits, punctuation, spaces.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CACHED_CHARS = 512
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """Text to ids and back. Safe to share between threads.

    A control token is any token outside the model's own vocabulary file ("added" tokens), special or not. They are
    recognised only where the caller says so: `encode(..., allow_special=True)` and the control text of `encode_mixed`.
    """

    def __init__(self, folder: Path, *, stop_tokens: Sequence[str] = ()) -> None:
        """stop_tokens: spellings that end generation besides those the folder names, if the vocabulary has them."""
        self.config = read_json(folder / "tokenizer_config.json")
        self._full = _load(folder, self.config)
        added = self._full.get_added_tokens_decoder()
        self.control_ids: dict[str, int] = {
            token.content: token_id for token_id, token in added.items() if token.content
        }
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.vocab_size = max(self._full.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.control_pattern = _spellings(list(added.values()))
        self.special_pattern = _spellings([token for token in added.values() if token.special])
        self._normalised_control = any(token.normalized for token in added.values())
        # The same model without any added token: whatever it is given stays plain text. The model itself is shared.
        self._plain = tokenizers.Tokenizer(self._full.model)
        for part in ("normalizer", "pre_tokenizer", "decoder"):
            if getattr(self._full, part) is not None:
                setattr(self._plain, part, getattr(self._full, part))
        self._byte_level = b"ByteLevel" in self._decoder_state()
        self._from_unicode = {char: byte for byte, char in _byte_chars().items()}
        self.eos_ids = self._find_eos(folder, stop_tokens)
        self._encode_cached = lru_cache(maxsize=4096)(self._encode_uncached)
        self.token_bytes = lru_cache(maxsize=None)(self._token_bytes)

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Token ids. Unless allow_special, text that spells a control token is encoded as plain text."""
        if len(text) <= _CACHED_CHARS:
            return list(self._encode_cached(text, allow_special))
        return list(self._encode_uncached(text, allow_special))

    def encode_mixed(self, text: str, literals: Mapping[str, str]) -> list[int]:
        """Ids of control text in which every key of `literals` stands for text that must stay plain.

        Without literals this is encode(text, allow_special=True): one call over the whole string, as references do.
        """
        if not any(mark in text for mark in literals):
            return self.encode(text, allow_special=True)
        marks = re.compile("|".join(map(re.escape, literals)))
        ids: list[int] = []
        end = 0
        for match in self.control_pattern.finditer(text):
            ids += self._encode_plain(marks.sub(lambda m: literals[m[0]], text[end : match.start()]))
            spelling = match[0] if match[0] in self.control_ids else match[0].strip()
            ids.append(self.control_ids[spelling])
            end = match.end()
        return ids + self._encode_plain(marks.sub(lambda m: literals[m[0]], text[end:]))

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        kept = [token_id for token_id in ids if not (skip_special and token_id in self.special_ids)]
        data = b"".join(self.token_bytes(token_id) for token_id in kept)
        if not self._byte_level and kept and self._starts_word(kept[0]):
            data = data[1:]  # sentencepiece writes the blank before the first word too
        return data.decode("utf-8", errors="replace")

    def spells_control(self, text: str, *, special_only: bool = False) -> bool:
        """Whether `text` would produce a control token (or a special one) if they were allowed in it."""
        pattern = self.special_pattern if special_only else self.control_pattern
        if pattern.search(text):
            return True
        normalizer = self._full.normalizer
        if not self._normalised_control or normalizer is None:
            return False
        return bool(pattern.search(normalizer.normalize_str(text)))

    def id(self, spelling: str) -> int:
        """Id of one token the model family cannot do without."""
        token_id = self._full.token_to_id(spelling)
        if token_id is None:
            raise CheckpointError(f"the tokenizer has no token {spelling}")
        return token_id

    def _encode_uncached(self, text: str, allow_special: bool) -> tuple[int, ...]:
        if allow_special or not self.spells_control(text):
            return tuple(_run(self._full, text))
        return tuple(self._encode_plain(text))

    def _encode_plain(self, text: str) -> list[int]:
        if not text:
            return []
        ids = _run(self._plain, text)
        if self.special_ids.isdisjoint(ids):
            return ids
        # Some vocabularies hold control tokens as ordinary words too: cut every spelling before its last character.
        cuts = [match.start() + len(match[0].rstrip()) - 1 for match in self.control_pattern.finditer(text)]
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        return [token_id for piece in pieces for token_id in _run(self._plain, piece)]

    def _token_bytes(self, token_id: int) -> bytes:
        """The bytes a token adds to the text; control tokens: their spelling; ids without a token: nothing."""
        piece = self._full.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None
        if piece is None:
            return b""
        if self.control_ids.get(piece) == token_id:
            return piece.encode()
        if self._byte_level:
            try:
                return bytes(self._from_unicode[char] for char in piece)
            except KeyError:
                return piece.encode()
        if match := _BYTE_PIECE.fullmatch(piece):
            return bytes([int(match[1], 16)])
        return piece.replace("▁", " ").encode()

    def _starts_word(self, token_id: int) -> bool:
        return token_id not in self.control_ids.values() and self.token_bytes(token_id).startswith(b" ")

    def _decoder_state(self) -> bytes:
        decoder = self._full.decoder
        return decoder.__getstate__() if decoder is not None else b""

    def _find_eos(self, folder: Path, stop_tokens: Sequence[str]) -> tuple[int, ...]:
        found: list[Any] = []
        for name in ("generation_config.json", "config.json"):
            value = read_json(folder / name).get("eos_token_id")
            found += value if isinstance(value, list) else [value]
        spelled = [_content(self.config.get("eos_token")), *stop_tokens]
        found += [self._full.token_to_id(token) for token in spelled if token]
        return tuple(dict.fromkeys(i for i in found if isinstance(i, int) and 0 <= i < self.vocab_size))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint folder; empty when the file is absent."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is not readable JSON") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} must hold a JSON object")
    return value


def _run(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    try:
        return tokenizer.encode(text, add_special_tokens=False).ids
    except (UnicodeError, TypeError):  # lone surrogates
        raise RequestError("text is not valid Unicode") from None


def _load(folder: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    if (folder / "tokenizer.json").is_file():
        try:
            core = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError("tokenizer.json cannot be read") from error
        core.no_truncation()
        core.no_padding()
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        core = _from_merges(folder, str(config.get("tokenizer_class", "")))
    else:
        raise CheckpointError("the checkpoint has neither tokenizer.json nor vocab.json with merges.txt")
    _add_declared(core, folder, config)
    return core


def _from_merges(folder: Path, class_name: str) -> tokenizers.Tokenizer:
    """Byte-level BPE from the two files of GPT-2 and its heirs."""
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    if lines[0].startswith("#version"):  # not every file has this header: the first line may be a merge
        lines = lines[1:]
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines if line.strip())]
    core = tokenizers.Tokenizer(models.BPE(vocab=read_json(folder / "vocab.json"), merges=merges, fuse_unk=False))
    core.decoder = decoders.ByteLevel()
    if class_name.startswith("GPT2"):
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return core
    core.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return core


def _add_declared(core: tokenizers.Tokenizer, folder: Path, config: Mapping[str, Any]) -> None:
    """Adds the tokens that tokenizer_config.json and added_tokens.json declare, and checks that they get their ids."""
    declared: dict[int, AddedToken] = {}
    for token_id, entry in config.get("added_tokens_decoder", {}).items():
        flags = {name: bool(entry.get(name)) for name in ("lstrip", "rstrip", "single_word", "normalized", "special")}
        declared[int(token_id)] = AddedToken(entry["content"], **flags)
    special = {_content(token) for token in config.get("additional_special_tokens") or ()}
    for spelling, token_id in read_json(folder / "added_tokens.json").items():
        declared.setdefault(token_id, AddedToken(spelling, normalized=False, special=spelling in special))
    known = core.get_added_tokens_decoder()
    missing = [token for token_id, token in sorted(declared.items()) if token_id not in known]
    core.add_tokens(missing)
    for token_id, token in declared.items():
        if core.token_to_id(token.content) != token_id:
            raise CheckpointError(f"token {token.content} should have id {token_id}")


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _spellings(tokens: Sequence[AddedToken]) -> re.Pattern[str]:
    """Matches any of the tokens, the longest first, with the blanks that lstrip and rstrip tokens swallow."""
    ordered = sorted((token for token in tokens if token.content), key=lambda token: len(token.content), reverse=True)
    alternatives = [
        (r"\s*" if token.lstrip else "") + re.escape(token.content) + (r"\s*" if token.rstrip else "")
        for token in ordered
    ]
    return re.compile("|".join(alternatives) or r"(?!)")


def _byte_chars() -> dict[int, str]:
    """The printable character that byte-level BPE writes for each byte: itself when printable, else from U+0100 up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    hidden = [byte for byte in range(256) if byte not in table]
    return table | {byte: chr(0x100 + index) for index, byte in enumerate(hidden)}
