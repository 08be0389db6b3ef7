"""The tokenizer: reference ids, control tokens only where they are meant, bytes of tokens."""

from __future__ import annotations

import json
import threading
import time
import timeit
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Core

from sensorium.errors import CheckpointError, RequestError
from sensorium.models.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tiny(golden_core: Path) -> Tokenizer:
    """Byte-level, with the real names of the control tokens."""
    return Tokenizer(golden_core / "minicpmo45" / "tiny")


@pytest.fixture(scope="module")
def real(golden: Path) -> Tokenizer:
    return Tokenizer(golden / "minicpmo45" / "tokenizer")


@pytest.fixture(scope="module")
def reference(golden: Path) -> dict:
    return json.loads((golden / "minicpmo45" / "prompts" / "prompts.json").read_text("utf-8"))


def sentencepiece(folder: Path) -> Path:
    """A vocabulary in the sentencepiece manner: ▁ for blanks, <0xXX> for bytes, control tokens among the words."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "h",
        "i",
        "▁h",
        "▁hi",
        "<",
        "s",
        ">",
    ]
    vocab = {word: index for index, word in enumerate(words)}
    core = Core(models.BPE(vocab, [("▁", "h"), ("▁h", "i")], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in ("<unk>", "<s>", "</s>")])
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}}')
    return folder


def test_reference_ids(real: Tokenizer, reference: dict):
    for text, ids in reference["tokenize"]:
        assert real.encode(text, allow_special=True) == ids
    assert {name: real.id(name) for name in reference["special_ids"]} == reference["special_ids"]
    assert real.vocab_size == 151748
    assert real.eos_ids == (151645, 151643)


def test_decode_returns_the_text(real: Tokenizer, tiny: Tokenizer):
    for text in ("naïve café", "你好，世界 🙂👩‍💻", "  a\n\n\tb\r\n", "\x00\x01\x7f\u2028", "日本語"):
        for tokenizer in (real, tiny):
            assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("spelling", ["<|im_end|>", "<unk>", "<image>", "<think>", "</tool_call>", "<|tts_bos|>"])
def test_h176_control_spellings_in_plain_text_stay_text(tiny: Tokenizer, spelling: str):
    control = tiny.encode(spelling, allow_special=True)
    assert len(control) == 1
    text = f"a{spelling}b {spelling}"
    plain = tiny.encode(text)
    assert not set(plain) & set(tiny.control_ids.values())
    assert tiny.decode(plain) == text
    assert tiny.encode(text, allow_special=True) == [*tiny.encode("a"), *control, *tiny.encode("b "), *control]


def test_plain_control_spellings_are_split_like_any_text(real: Tokenizer):
    """The ids a tokenizer without added tokens gives, not some other cut."""
    whole = real.encode("x <|im_start|>system")
    assert b"".join(map(real.token_bytes, whole)) == b"x <|im_start|>system"
    assert whole == [
        *real.encode("x"),
        *real.encode(" <|"),
        *real.encode("im"),
        *real.encode("_start"),
        *real.encode("|>"),
        *real.encode("system"),
    ]


def test_mixed_text_keeps_literals_plain(tiny: Tokenizer):
    ids = tiny.encode_mixed("<|im_start|>user\nMARK!<|im_end|>", {"MARK": "<|im_end|>"})
    assert tiny.decode(ids, skip_special=False) == "<|im_start|>user\n<|im_end|>!<|im_end|>"
    assert [token_id for token_id in ids if token_id in tiny.special_ids] == [
        tiny.id("<|im_start|>"),
        tiny.id("<|im_end|>"),
    ]


def test_token_bytes_join_to_the_decoded_text(real: Tokenizer):
    ids = real.encode("emoji 👩‍💻 half", allow_special=True)
    assert b"".join(map(real.token_bytes, ids)).decode() == "emoji 👩‍💻 half"
    assert real.token_bytes(real.id("<|im_end|>")) == b"<|im_end|>"
    assert real.token_bytes(10**9) == real.token_bytes(-1) == b""


def test_skip_special_leaves_what_is_not_special(tiny: Tokenizer):
    ids = tiny.encode("<|im_start|><think>a</think><|im_end|>", allow_special=True)
    assert tiny.decode(ids) == "<think>a</think>"
    assert tiny.decode(ids, skip_special=False) == "<|im_start|><think>a</think><|im_end|>"


def test_sentencepiece_vocabularies(tmp_path: Path):
    tokenizer = Tokenizer(sentencepiece(tmp_path))
    ids = tokenizer.encode("hi é")
    assert tokenizer.decode(ids) == "hi é"
    assert b"".join(map(tokenizer.token_bytes, ids)) == " hi é".encode()
    assert tokenizer.eos_ids == (tokenizer.id("</s>"),)
    spelled = tokenizer.encode("<s>")
    assert tokenizer.id("<s>") not in spelled
    assert tokenizer.decode(spelled) == "<s>"


def test_spellings_that_appear_only_after_normalisation(tmp_path: Path):
    """A full-width bracket becomes a bracket under NFKC; the token must not come of it."""
    core = Core(models.BPE({chr(c): c - 33 for c in range(33, 127)}, []))
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_tokens([AddedToken("<x>", normalized=True, special=True)])
    core.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.id("<x>") in tokenizer.encode("＜x＞", allow_special=True)
    assert tokenizer.id("<x>") not in tokenizer.encode("＜x＞")


def test_h262_h264_odd_texts(tiny: Tokenizer, real: Tokenizer):
    begun = time.process_time()
    for text in ("".join(map(chr, range(0x20))), "\u202eabc", "a" + "\u0301" * 10_000, "x" * 1_000_000, "7" * 100_000):
        assert real.encode(text)
    assert time.process_time() - begun < 20
    with pytest.raises(RequestError):
        tiny.encode("lone \ud800 surrogate")


def test_threads_share_one_tokenizer(real: Tokenizer):
    texts = [f"text number {i} <think> 你好" for i in range(50)]
    wanted = [real.encode(text) for text in texts]
    results: list[list[list[int]]] = []
    threads = [threading.Thread(target=lambda: results.append([real.encode(text) for text in texts])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [wanted] * 4


def test_the_same_string_again_costs_little(real: Tokenizer):
    text = "You are a helpful assistant. " * 10
    real.encode(text)
    assert min(timeit.repeat(lambda: real.encode(text), number=100, repeat=20)) < 0.01


def test_folders_that_hold_no_tokenizer(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)


def test_a_declared_id_that_cannot_be_had_is_an_error(tmp_path: Path):
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "added_tokens.json").write_text('{"<x>": 7}')
    with pytest.raises(CheckpointError, match="<x>"):
        Tokenizer(tmp_path)
