"""A small random omni model's parts, media made from seeds, and a way to drive an engine to rest."""

from __future__ import annotations

import time

import numpy as np

from sensorium.engine.engine import Engine
from sensorium.types import Event, MediaItem, Prompt, Request, SamplingParams, Span, TextDelta

VOCAB, WIDTH, QUERIES = 320, 128, 64
REST_S = 60.0
"""An engine that has not come to rest by then never will."""
CONFIG = {
    "model_type": "minicpmo", "version": "4.5", "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 160, "vocab_size": VOCAB, "rope_theta": 10000,
    "max_position_embeddings": 4096, "query_num": QUERIES, "drop_vision_last_layer": False,
    "slice_config": {"max_slice_nums": 9, "scale_resolution": 448},
    "vision_config": {"hidden_size": 32, "image_size": 980, "intermediate_size": 48, "num_attention_heads": 2,
                      "num_hidden_layers": 2, "patch_size": 14},
    "audio_config": {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 128,
                     "num_mel_bins": 80, "max_source_positions": 1500},
}  # fmt: skip


class ByteTokenizer:
    """Token n below 256 is a byte; 256 ends a text."""

    eos_ids = (256,)
    special_ids = frozenset(range(256, VOCAB))
    vocab_size = VOCAB

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, ids, *, skip_special: bool = True) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b"<%d>" % token_id


class OnlyTokenizer:
    """The part of a processor that an engine reads."""

    tokenizer = ByteTokenizer()


class ManualClock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def image(seed: int, rows: int = 6, columns: int = 7) -> MediaItem:
    rng = np.random.default_rng(seed)
    arrays = {
        "source.0": rng.integers(0, 256, (14 * rows, 14 * columns, 3), dtype=np.uint8),
        "cuts": np.array([[0, 14 * columns, 14 * rows, 1, 1]], dtype=np.int32),
    }
    return MediaItem("image", b"image-%d" % seed, QUERIES, arrays)


def sound(seed: int, frames: int = 200) -> MediaItem:
    rng = np.random.default_rng(seed)
    mel = rng.normal(size=(80, frames)).astype(np.float32)
    return MediaItem("audio", b"sound-%d" % seed, frames // 10, {"mel": mel, "frames": np.array([frames])})


def prompt(text: str, *media: MediaItem) -> Prompt:
    """Text, then each media item between two marks, then more text."""
    ids, spans = list(text.encode()), []
    for number, item in enumerate(media):
        ids.append(300)
        spans.append(Span(len(ids), item.rows, number))
        ids += [299] * item.rows + [301]
    return Prompt((*ids, *b" then"), tuple(spans), media)


def request(name: str, made: Prompt, **sampling: object) -> Request:
    defaults = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
    namespace = str(sampling.pop("namespace", ""))
    return Request(name, made, SamplingParams(**(defaults | sampling)), namespace=namespace)  # pyright: ignore


def drive(engine: Engine, *requests: Request) -> dict[str, list[Event]]:
    """Run requests to their end; events per request. There may be any number of steps while a grammar is compiled."""
    engine.inbox.extend(requests)
    events: dict[str, list[Event]] = {r.id: [] for r in requests}
    end = time.monotonic() + REST_S
    while engine.has_work:
        assert time.monotonic() < end, "the engine did not come to rest"
        for event in engine.step():
            events[event.request_id].append(event)
    return events


def tokens(events: list[Event]) -> list[int]:
    return [token for event in events if isinstance(event, TextDelta) for token in event.token_ids]
