"""An engine that speaks: the small model with a speech LM, and a codec of random weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from small import CONFIG, ManualClock, OnlyTokenizer
from speech_small import SMALL as SPEECH

from sensorium.bench.codec import SMALL, random_parts, random_voice
from sensorium.config import EngineConfig
from sensorium.engine.codec import CodecStage
from sensorium.engine.engine import Engine
from sensorium.engine.loading import build_engine
from sensorium.engine.protocol import MemoryPlan
from sensorium.engine.speech_chunks import Chunks
from sensorium.models import loader
from sensorium.models.minicpmo import Config, Model
from sensorium.models.token2wav import Token2Wav, Voice
from sensorium.types import Codes, Event, Sound, TextDelta

WIDTH = CONFIG["hidden_size"]
FLAT = {"temperature": 8.0, "top_p": None, "top_k": None}
"""Every code is about as likely as the end: calls are short."""
STEPS = 2


def small_model(device: str = "cpu") -> Model:
    """It speaks every token, up to its context."""
    speech = SPEECH | {"llm_dim": WIDTH, "num_text_tokens": CONFIG["vocab_size"], "max_position_embeddings": 1024}
    # Few codes, so that the end is drawn soon.
    speech["num_audio_tokens"] = 24
    parsed = Config.from_hf(CONFIG | {"tts_config": speech}, init_vision=False, init_audio=False, init_tts=True)
    made = loader.build(Model, parsed, "cpu", torch.float32)
    loader.init_random_(made, seed=3, std=0.2)
    if device == "cpu":
        return made
    moved = loader.build(Model, parsed, device, torch.float32)
    moved.load_state_dict(made.state_dict())
    return moved


def small_codec(kind: Any = "causal", *, device: str = "cpu", graphs: bool = False) -> Token2Wav:
    return Token2Wav(random_parts(SMALL, kind, STEPS, device, graphs=graphs))


def voice(name: str) -> Voice:
    return Voice(random_voice(SMALL, 0.6 if name == "default" else 1.0, seed=len(name)))


def speaking_engine(model: Model, codec: Token2Wav | None, *, blocks: int = 512, device: str = "cpu") -> Engine:
    config = EngineConfig(speech_slots=4)
    plan = MemoryPlan(0, 0, 0, 0, blocks * config.block_size)
    place = torch.device(device)
    stage = None if codec is None else CodecStage(codec, place)
    voices = {} if codec is None else {name: voice(name) for name in ("default", "other")}
    processor: Any = OnlyTokenizer()
    made = build_engine(model, processor, config, place, torch.float32, plan, codec=stage, voices=voices)
    made.clock = ManualClock()
    return made


def run(engine: Engine, steps: int | None = None) -> list[Event]:
    """To rest, or so many steps."""
    events: list[Event] = []
    while engine.has_work and steps != 0:
        events += engine.step()
        steps = None if steps is None else steps - 1
    return events


def text_of(events: Iterable[Event], name: str) -> list[int]:
    return [token for e in events if isinstance(e, TextDelta) and e.request_id == name for token in e.token_ids]


def samples(events: Iterable[Event], name: str, index: int | None = None) -> np.ndarray:
    """What was heard of a speaker, int16."""
    heard = [e.pcm for e in events if isinstance(e, Sound) and e.request_id == name and index in (None, e.index)]
    return np.frombuffer(b"".join(heard), np.int16)


def ends(events: Iterable[Event], name: str) -> list[tuple[int, str | None]]:
    """Index and kind of the ends that a speaker's sound came to, in order."""
    return [(e.index, e.ended) for e in events if isinstance(e, Sound) and e.request_id == name and e.ended]


def codes_of(events: Iterable[Event], name: str) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for event in events:
        if isinstance(event, Codes) and event.request_id == name:
            found.setdefault(event.call, []).extend(event.codes)
    return found


def alone(codec: Token2Wav, spoken: Voice, rule: Any, calls: list[tuple[list[int], bool]]) -> np.ndarray:
    """The sound of calls (codes, whether they end the turn) as the reference cuts it, int16."""
    chunks, heard, stream = Chunks(rule), b"", codec.open(spoken)
    for codes, last in calls:
        for block in chunks.take(codes, over=True, ends=last):
            (sound,) = codec.stream([(stream, block.codes, block.last)])
            heard += codec.pcm(sound)
        if last:
            stream = codec.open(spoken)
    return np.frombuffer(heard, np.int16)


def assert_alike(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the last digits of floating point."""
    assert len(found) == len(expected)
    assert len(found)
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), atol=16)
