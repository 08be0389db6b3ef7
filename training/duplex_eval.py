"""How well the packaged model converses: `python -m training.duplex_eval FOLDER --talks 40 --out FILE`.

Live talks of seeds, voices and a renderer that training did not have run through the engine's own sessions, unit by
unit, with the sampling of live sessions. What it says aloud is written down by the model itself.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np

from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient
from sensorium.models.minicpm_live import MiniCPMLive
from sensorium.models.minicpm_processor import Processor
from sensorium.models.minicpm_units import SessionPrompts
from sensorium.params import LiveSettings
from sensorium.types import Event, Finished, Media, Sound, SpeechOptions, UnitDone
from training.conversation import Encoder
from training.duplex_batches import tokens_of
from training.duplex_items import UNIT, Director, Pace, Talk, Voices
from training.espeak import Espeak
from training.evaluate_items import paint
from training.run import PACKAGE
from training.sentences import number_words
from training.speech_eval import errors, transcribe, words
from training.speech_items import Speaker

MAX_LEN = 4096
CODEC_RATE = 24_000


@dataclass(slots=True)
class Heard:
    """What a session did in each unit."""

    listens: list[bool] = field(default_factory=list[bool])
    texts: list[str] = field(default_factory=list[str])
    ends: list[bool] = field(default_factory=list[bool])
    """Whether no turn is open behind the unit."""
    sounds: dict[int, list[bytes]] = field(default_factory=dict[int, list[bytes]])
    seconds: list[float] = field(default_factory=list[float])
    """What the units took."""

    def turn(self, unit: int) -> tuple[str, np.ndarray]:
        """What is said from `unit` on until the turn ends: text, and float32 at 24 kHz."""
        text, pcm = "", b""
        for at in range(unit, len(self.listens)):
            text += self.texts[at]
            pcm += b"".join(self.sounds.get(at, ()))
            if self.ends[at]:
                break
        return text.strip(), np.frombuffer(pcm, "<i2").astype(np.float32) / 32768


class Listener:
    """Runs talks through one engine."""

    def __init__(self, client: EngineClient, speaks: bool) -> None:
        self.client, self._speaks = client, speaks
        assert isinstance(client.processor, Processor)
        self._processor = client.processor

    def run(self, talk: Talk, name: str, seed: int) -> Heard:
        live = MiniCPMLive(SessionPrompts(self._processor, name))
        settings = LiveSettings(instructions=talk.instructions, force_listen_units=0, seed=seed)
        prompt, policy = live.opening(settings, MAX_LEN)
        speech = SpeechOptions("default", "duplex", seed=seed) if self._speaks else None
        sampling = self.client.default_sampling
        session = self.client.open_session(
            prompt, live.policy, policy, sampling=sampling, max_len=MAX_LEN, session_id=name, speech=speech
        )
        session.opened()
        heard, random = Heard(), Random(seed)
        for number, second in enumerate(talk.seconds):
            begin = time.perf_counter()
            frames = []
            if second.frame is not None:
                pixels = np.asarray(paint(second.frame, random, smooth=True))
                media = Media("image", pixels, f"{name} {number}".encode())
                frames = [self._processor.prepare(media, live.frame_options(1))]
            samples = talk.samples[number * UNIT :][:UNIT].astype(np.float32) / 32768
            unit, deciding = live.unit(samples, frames, [second.typed] if second.typed else [])
            options = live.unit_options(settings, force_listen=False, force_speak=False)
            index = session.append(unit, deciding=deciding, options=options)
            for event in session:
                if _take(heard, event) and event.index == index:  # type: ignore[union-attr]
                    break
            heard.seconds.append(time.perf_counter() - begin)
        session.close()
        for event in session:
            _take(heard, event)
            if isinstance(event, Finished):
                break
        return heard


def _take(heard: Heard, event: Event) -> bool:
    """Whether a unit is over."""
    if isinstance(event, Sound):
        heard.sounds.setdefault(event.index, []).append(event.pcm)
    if not isinstance(event, UnitDone):
        return False
    heard.listens.append(bool(event.info["is_listen"]))
    heard.texts.append("" if event.info["is_listen"] else event.text)
    heard.ends.append(not event.info["turn_open"])
    return True


@dataclass(slots=True)
class Score:
    counts: Counter[str] = field(default_factory=Counter[str])
    wrong: list[str] = field(default_factory=list[str])

    def add(self, name: str, right: bool) -> None:
        self.counts[name] += 1
        self.counts[name + " right"] += right

    def talk(self, talk: Talk, heard: Heard) -> None:
        seconds = talk.seconds
        for unit, second in enumerate(seconds):
            listens = second.task in ("listen", "stop")
            self.add("units", heard.listens[unit] == listens)
            self.add("units that listen" if listens else "units that speak", heard.listens[unit] == listens)
            if second.task not in ("answer", "remark", "stop"):
                continue
            self.add("reactions", self._reacts(heard, unit, second.task))
            self.add({"stop": "stops"}.get(second.task, second.task + "s"), self._reacts(heard, unit, second.task))
            if second.task == "stop":
                continue
            begun = next((at for at in (unit, unit + 1) if at < len(seconds) and not heard.listens[at]), None)
            cut = next((s.task for s in seconds[unit + 1 :] if s.task != "go on"), "listen") == "stop"
            if begun is not None and not cut:
                said = heard.turn(begun)[0]
                self.add("texts", said == second.answer)
                if said != second.answer:
                    self.wrong.append(f"{second.answer} | {said}")

    @staticmethod
    def _reacts(heard: Heard, unit: int, task: str) -> bool:
        """In its unit or the next one."""
        near = heard.listens[unit : unit + 2]
        if task == "stop":
            return any(near)
        return not all(near) and (unit == 0 or heard.ends[unit - 1] or not heard.listens[unit])

    def summary(self) -> dict[str, dict[str, float]]:
        names = sorted(name for name in self.counts if not name.endswith(" right"))
        return {
            name: {"asked": self.counts[name], "right": round(self.counts[name + " right"] / self.counts[name], 4)}
            for name in names
        }


def spoken_words(text: str) -> list[str]:
    """Numbers as they are spoken."""
    return " ".join(number_words(int(w)) if w.isdigit() and len(w) < 4 else w for w in words(text)).split()


def talks(seed: int, count: int, folder: Path, espeak: Path | None) -> list[Talk]:
    """Voices and seeds that training does not have."""
    random, encoder, engine = Random(seed), Encoder(str(folder / "tokenizer.json")), Espeak(espeak)
    tokens = tokens_of(encoder)
    director = Director(random, Voices(random, engine, True), Pace(Speaker(engine, encoder.tokenizer), tokens), tokens)
    director.plain_scenes, director.late, director.forced = True, 0.0, (0,)
    return [director.talk(2048) for _ in range(count)]


def evaluate(args: argparse.Namespace) -> dict[str, object]:
    score, missed, spoken, took, begin = Score(), 0, 0, [], time.perf_counter()
    with EngineClient(EngineConfig(model=str(args.folder), init_tts=args.voice > 0)) as client:
        listener, left = Listener(client, args.voice > 0), args.voice
        for number, talk in enumerate(talks(args.seed, args.talks, args.folder, None)):
            heard = listener.run(talk, f"talk {number}", args.seed + number)
            score.talk(talk, heard)
            took += heard.seconds
            for unit, second in enumerate(talk.seconds):
                if left <= 0 or not second.answer or heard.listens[unit]:
                    continue
                text, sound = heard.turn(unit)
                if text != second.answer or len(sound) > 5 * CODEC_RATE:
                    continue  # cut off, said wrongly, or longer than what the model has ever heard at once
                said, known = spoken_words(text), spoken_words(transcribe(client, sound))
                missed, spoken, left = missed + errors(said, known), spoken + len(said), left - 1
                if said != known:
                    score.wrong.append(f"spoken: {' '.join(said)} | heard: {' '.join(known)}")
            print(number, score.summary().get("units"), f"{missed}/{spoken} words", flush=True)
    return {
        "seed": args.seed, "talks": args.talks, "scores": score.summary(),
        "words": {"spoken": spoken, "wrong": missed},
        "unit_seconds": {"p50": round(float(np.median(took)), 3), "p99": round(float(np.quantile(took, 0.99)), 3)},
        "seconds": round(time.perf_counter() - begin), "wrong": score.wrong[:200],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=PACKAGE)
    parser.add_argument("--talks", type=int, default=40)
    parser.add_argument("--seed", type=int, default=990_101)
    parser.add_argument("--voice", type=int, default=60, help="answers that are spoken and written down; 0: no voice")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result = evaluate(args)
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps({k: v for k, v in result.items() if k != "wrong"}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
