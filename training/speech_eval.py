"""How well the packaged model understands itself: `python -m training.speech_eval FOLDER --count 50`.

Held-out sentences are spoken by the engine's speech stage and codec and written down by the model itself.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import tokenizers
import torch

from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient
from sensorium.engine.speech import SpeechStage
from sensorium.engine.speech_rules import RuleName, SpeechWork
from sensorium.kernels.reference import PackedPlan
from sensorium.messages import read_messages
from sensorium.models.loader import load
from sensorium.models.minicpmo import Config, Model
from sensorium.models.token2wav import Token2Wav, Voice, VoicePrompt, to_wav
from sensorium.types import ModelInputs, SamplingParams
from training import sentences
from training.conversation import THINK

PROMPT = "<|im_start|>user\nWhat do you see?<|im_end|>\n<|im_start|>assistant\n" + THINK + "<|tts_bos|>"


class Mouth:
    """Text to sound through the engine's parts, with the backbone's states of the text as an answer."""

    def __init__(self, folder: Path, n_timesteps: int = 10) -> None:
        config = Config.from_hf(json.loads((folder / "config.json").read_text("utf-8")), init_tts=True)
        self._model = load(Model, config, folder, torch.device("cpu"), torch.float32)
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        place = folder / "assets" / "token2wav"
        self._codec = Token2Wav.load(place, n_timesteps, cloning=False)
        self._voice = Voice(VoicePrompt.load(place / "voices" / "default.safetensors"))
        assert self._model.speech is not None
        self._stage = SpeechStage(self._model.speech, 32)

    @torch.inference_mode()
    def _works(self, texts: Sequence[str], rule: RuleName, seed: int) -> list[tuple[int, list[int], torch.Tensor]]:
        before = self._tokenizer.encode(PROMPT, add_special_tokens=False).ids
        works = []
        for number, text in enumerate(texts):
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            row = torch.tensor([*before, *ids])
            inputs = ModelInputs(torch.arange(len(row)), PackedPlan(1))
            hidden = self._model(self._model.embed(row), inputs)[len(before) :]
            slot = self._stage.open(rule, replace(self._stage.default_sampling, seed=seed + number))
            works.append((slot, ids, hidden))
        return works

    def codes(self, texts: Sequence[str], rule: RuleName, seed: int = 0) -> list[list[int]]:
        """Codes of each text: as one call, in groups of ten tokens, or in units of four tokens."""
        works = self._works(texts, rule, seed)
        size = {"chat": 10_000, "half_duplex": 10, "duplex": 5}[rule]
        said: list[list[int]] = [[] for _ in works]
        units = max(-(-len(ids) // size) for _, ids, _ in works) + (3 if rule == "duplex" else 0)
        for unit in range(units):
            calls = []
            for i, (slot, ids, hidden) in enumerate(works):
                part = slice(unit * size, (unit + 1) * size)
                least = -(-len(ids) // size) + (3 if rule == "duplex" else 0)
                if unit < least:
                    calls.append((i, SpeechWork(slot, ids[part], hidden[part], last=unit == least - 1)))
            for (i, _), codes in zip(calls, self._stage.speak([work for _, work in calls]), strict=True):
                said[i] += codes
        for slot, _, _ in works:
            self._stage.close(slot)
        return said

    def sound(self, codes: Sequence[int], streamed: bool) -> np.ndarray:
        """float32 at 24 kHz."""
        if not streamed:
            return self._codec(codes, self._voice)
        rest = [4218] * 3 + list(codes)
        stream, pieces = self._codec.open(self._voice), []
        while len(rest) >= 28:
            pieces += self._codec.stream([(stream, rest[:28], False)])
            rest = rest[25:]
        return np.concatenate([*pieces, *self._codec.stream([(stream, rest, True)])])


def transcribe(client: EngineClient, sound: np.ndarray) -> str:
    data = base64.b64encode(to_wav(sound)).decode()
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    text = {"type": "text", "text": "Transcribe the speech."}
    prompt = client.prepare_chat(read_messages([{"role": "user", "content": [part, text]}]))
    stream = client.submit(prompt, SamplingParams(temperature=0, max_tokens=64))
    return "".join(getattr(event, "text", "") for event in stream)


def words(text: str) -> list[str]:
    return "".join(c if c.isalnum() or c in " '" else " " for c in text.lower()).split()


def errors(said: list[str], heard: list[str]) -> int:
    row = list(range(len(heard) + 1))
    for i, a in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=990_001)
    parser.add_argument("--rules", default="chat,half_duplex,duplex")
    parser.add_argument("--out", type=Path, help="folder for the sounds")
    args = parser.parse_args()
    source = random.Random(args.seed)
    texts: list[str] = []
    while len(texts) < args.count:
        text = sentences.written(sentences.english(source))
        if text not in texts and len(words(text)) > 2:
            texts.append(text)
    mouth = Mouth(args.folder)
    with EngineClient(EngineConfig(model=str(args.folder))) as client:
        for rule in args.rules.split(","):
            wrong = count = seconds = 0
            begin = time.perf_counter()
            for start in range(0, len(texts), 32):
                some = texts[start : start + 32]
                for text, codes in zip(some, mouth.codes(some, rule, args.seed), strict=True):
                    sound = mouth.sound(codes, streamed=rule != "chat")
                    heard = transcribe(client, sound)
                    missed = errors(words(text), words(heard))
                    wrong, count, seconds = wrong + missed, count + len(words(text)), seconds + len(sound) / 24_000
                    if missed:
                        print(f"  {text} -> {heard} ({len(codes)} codes)", flush=True)
                    if args.out:
                        args.out.mkdir(parents=True, exist_ok=True)
                        name = f"{rule}-{texts.index(text):03d}.wav"
                        (args.out / name).write_bytes(to_wav(sound))
            took = time.perf_counter() - begin
            print(
                f"{rule}: word errors {100 * wrong / count:.1f} % of {count}; {seconds:.0f} s in {took:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
