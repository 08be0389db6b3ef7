"""Full-duplex conversations: what a microphone hears and a camera shows, second by second, and what is said when.

A talk is a stage with a clock. Acts follow one another: questions, requests, other people's talk, noise, changes of the
scene. What each asks for is written into the units that should answer it; all other units listen.
U units of 16,000 samples
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import numpy as np

from training import sentences
from training.ask_scene import THING_ASKERS, Ask
from training.duplex_noise import noise
from training.duplex_watch import Change, Watch, change_scene, draw_watch, plain_prompt, watch_prompt
from training.espeak import Espeak, sample_voice
from training.scenes import Scene, things_scene
from training.small_talk import TALKS
from training.speech_items import BLOCK, SLACK, Speaker

UNIT = 16_000
MAX_UNITS = 28
"""The encoder of live sound starts anew after 29."""
LOOKAHEAD = 5
"""Codes by which text runs ahead of its sound, as the speech LM has learned."""
QUIET = (3_200, 6_400)
"""Silence at the end of a unit: from the second on the model answers at once, up to the first with the next unit."""
ONSET = (4_000, 8_000)
"""Speech in a unit: up to the first it is not yet an interruption, from the second on it is."""
QUESTIONS = (
    "colour", "shape", "describe", "count", "exists", "where", "relation", "place", "extreme", "bigger", "background"
)  # fmt: skip
STOPS = ("Stop.", "Please stop.", "Be quiet please.", "Stop talking.", "Wait.", "That is enough.")
_UNASKED = ("how many", "where is", "can you", "hello", "thank", "no thank", "good ", "look at", "yes", "please")
# Answers of small talk that are wrong where the model speaks, hears and sees.
_WRITTEN = ("No. I only", "There is no")


@dataclass(slots=True)
class Second:
    """A unit. task: what deciding right means here. ids: what the model decides, its closing token included.

    typed: text that comes behind the sound; it can only be answered in the next unit.
    """

    task: str
    ids: tuple[int, ...]
    frame: Scene | None = None
    typed: str = ""
    answer: str = ""
    """The whole answer, in the unit that begins it."""
    is_learned: bool = True
    """False: it was made to listen, or decided wrongly; what follows makes up for it."""


@dataclass(slots=True)
class Talk:
    """samples int16 [16000 U]. words: all that the user says, in lower case."""

    instructions: str
    samples: np.ndarray
    seconds: list[Second]
    words: str


@dataclass(frozen=True, slots=True)
class Tokens:
    speak: int
    listen: int
    turn_eos: int
    chunk_eos: int


class Pace:
    """How an answer is cut into units: as the voice takes time to say it."""

    def __init__(self, speaker: Speaker, tokens: Tokens) -> None:
        self._speaker, self._tokens = speaker, tokens
        self._known: dict[str, list[tuple[int, ...]]] = {}

    def __call__(self, text: str) -> list[tuple[int, ...]]:
        if text not in self._known:
            if len(self._known) > 20_000:
                self._known.clear()
            self._known[text] = self._cut(text)
        return self._known[text]

    def _cut(self, text: str) -> list[tuple[int, ...]]:
        item, tokens = self._speaker.say(text), self._tokens
        units: list[tuple[int, ...]] = []
        given = 0
        while True:
            said = BLOCK * (len(units) + 1)
            stop = next((i for i, at in enumerate(item.starts) if i >= given and at >= said + LOOKAHEAD), len(item.ids))
            is_last = stop == len(item.ids) and item.num_codes + SLACK <= said
            end = (tokens.turn_eos, tokens.chunk_eos) if is_last else (tokens.chunk_eos,)
            units.append((tokens.speak, *item.ids[given:stop], *end))
            given = stop
            if is_last:
                return units


class Voices:
    """Sentences in many voices; a sentence said before is often taken again."""

    def __init__(self, random: Random, engine: Espeak, held_out: bool = False, keep: int = 3000) -> None:
        self._random, self._engine, self._held_out, self._keep = random, engine, held_out, keep
        self._known: dict[tuple[str, str], list[np.ndarray]] = {}
        self._count = 0

    def __call__(self, text: str, language: str = "en") -> np.ndarray:
        r = self._random
        known = self._known.setdefault((text, language), [])
        if known and r.random() < 0.7:
            return r.choice(known)
        samples = self._engine.speak(text, sample_voice(r, language, self._held_out))
        if self._count < self._keep and not self._held_out:
            known.append(samples)
            self._count += 1
        return samples


@dataclass(slots=True)
class Stage:
    """A talk in the making. at: the first sample that nothing has happened at yet."""

    random: Random
    units: int
    every: int
    """A picture comes with every so many units; 0: there is no camera."""
    first: int
    """The first unit with a picture."""
    scene: Scene
    watch: Watch | None
    samples: np.ndarray
    scenes: list[Scene]
    said: dict[int, Second] = field(default_factory=dict)
    at: int = 0
    forced: int = 0
    """Units at the start that only listen."""
    words: list[str] = field(default_factory=list)

    def shows(self, unit: int) -> bool:
        return self.every > 0 and unit >= self.first and (unit - self.first) % self.every == 0

    @property
    def is_seen(self) -> bool:
        return self.every > 0 and self.at >= (self.first + 1) * UNIT

    def mix(self, clip: np.ndarray, start: int, gain: float) -> None:
        clip = clip[: max(len(self.samples) - start, 0)]
        self.samples[start : start + len(clip)] += gain * clip

    def change(self, scene: Scene, unit: int) -> None:
        self.scene = scene
        self.scenes[unit:] = [scene] * (self.units - unit)


class Director:
    """Draws talks."""

    def __init__(self, random: Random, voices: Voices, pace: Pace, tokens: Tokens) -> None:
        self.random, self._voices, self._pace, self._tokens = random, voices, pace, tokens
        self.late, self.forced = 0.06, (0, 0, 0, 1, 2, 3)
        """Share of answers that come a unit late, and units at the start in which the session is made to listen."""
        self.plain_scenes = False
        """Only what other drawing code can draw too: no borders, backgrounds of one colour."""

    def talk(self, width: int) -> Talk:
        """A talk whose ids fit in `width`."""
        r = self.random
        every = r.choices((1, 2, 3, 5, 0), (0.6, 0.14, 0.08, 0.04, 0.14))[0]
        rows = 13 + (66 / every if every else 0) + 3
        units = min(MAX_UNITS, int((width - 60) / rows))
        is_watch = every > 0 and r.random() < 0.3
        scene = self._scene()
        stage = Stage(
            r, units, every, r.randrange(every) if every and r.random() < 0.3 else 0, scene,
            draw_watch(r, scene) if is_watch else None, np.zeros(units * UNIT, np.float32), [scene] * units,
        )  # fmt: skip
        instructions = watch_prompt(r, stage.watch) if stage.watch else plain_prompt(r)
        stage.forced = r.choice(self.forced)
        stage.at = int(r.uniform(0.1, 3.0) * UNIT)
        while stage.at < (units - 1) * UNIT:
            self._act(stage)
        return self._finish(stage, instructions)

    def _finish(self, stage: Stage, instructions: str) -> Talk:
        listen = (self._tokens.listen,)
        seconds = [stage.said.get(unit) or Second("listen", listen) for unit in range(stage.units)]
        for unit, second in enumerate(seconds):
            if stage.shows(unit):
                second.frame = stage.scenes[unit]
        samples = np.clip(np.round(stage.samples), -32768, 32767).astype(np.int16)
        return Talk(instructions, samples, seconds, " ".join(stage.words))

    def _scene(self) -> Scene:
        while True:
            scene = things_scene(
                self.random, self.random.choice((1, 1, 2, 2, 3, 3, 4, 5)), self.random.random() < 0.4,
                self.random.choice((0.0, 0.0, 0.4)),
            )  # fmt: skip
            if self.plain_scenes:
                scene.rgb2, scene.texture = scene.rgb, 0.0
                for thing in scene.things:
                    thing.outline = 0.0
            if scene.things:
                return scene

    # ---- acts -----------------------------------------------------------------------------------------------------

    def _act(self, stage: Stage) -> None:
        camera = stage.every > 0
        acts: list[tuple[Callable[[Stage], None], float]] = [
            (self._question, 3.0 if camera else 0.6),
            (self._small_talk, 0.5 if camera else 2.0),
            (self._aside, 0.9),
            (self._noise, 0.6),
            (self._pause, 0.4),
            (self._typed, 0.25),
        ]
        if camera:
            acts.append((self._event, 1.2 if stage.watch is None else 3.5))
            if stage.watch is None and stage.is_seen:
                acts.append((self._request, 0.6))
        act = self.random.choices([a for a, _ in acts], [w for _, w in acts])[0]
        act(stage)

    def _pause(self, stage: Stage) -> None:
        stage.at += int(self.random.uniform(0.5, 3.0) * UNIT)

    def _noise(self, stage: Stage) -> None:
        clip = noise(self.random, int(self.random.uniform(0.1, 3.0) * UNIT))
        stage.mix(clip, stage.at, 1.0)
        stage.at += len(clip) + int(self.random.uniform(0.0, 1.0) * UNIT)

    def _aside(self, stage: Stage) -> None:
        """Somebody says something that asks for no answer."""
        text, language = self._statement()
        clip = self._voices(text, language)
        stage.mix(clip, stage.at, self._gain())
        stage.words.append(text.lower())
        stage.at += len(clip) + int(self.random.uniform(0.3, 1.5) * UNIT)

    def _statement(self) -> tuple[str, str]:
        if self.random.random() < 0.2:
            return sentences.chinese(self.random), "zh"
        while True:
            text = sentences.english(self.random)
            if not text.startswith(_UNASKED) and len(text.split()) > 2:
                return text, "en"

    def _gain(self) -> float:
        return self.random.uniform(0.35, 1.0)

    def _small_talk(self, stage: Stage) -> None:
        self._spoken(stage, self._chat())

    def _chat(self) -> Ask:
        while True:
            answer, questions = self.random.choice(TALKS["en"])
            question = self.random.choice(questions)
            if not answer.startswith(_WRITTEN) and ". " not in question:
                return Ask("chat", question, answer)

    def ask(self, stage: Stage) -> Ask | None:
        """A question about what is seen that can be asked aloud in one breath."""
        r = self.random
        if not stage.is_seen and stage.every:
            return None
        for _ in range(8):
            name = r.choices(QUESTIONS, [3 if q == "describe" else 1 for q in QUESTIONS])[0]
            found = THING_ASKERS[name](r, stage.scene, "en")
            if found is not None and not any(mark in found.question for mark in (". ", ": ")):
                if not stage.every:
                    return Ask("no_picture", found.question, "There is no picture.")
                return found
        return None

    def _question(self, stage: Stage) -> None:
        self._spoken(stage, self.ask(stage))

    def _spoken(self, stage: Stage, ask: Ask | None, start: int | None = None) -> bool:
        """Ask aloud, at `start` or soon, and answer. False if there is no time left."""
        if ask is None:
            stage.at += UNIT // 2
            return False
        clip = self._voices(ask.question)
        if start is None:
            start = self._settle(stage.at, len(clip))
        unit = reply_unit(start + len(clip))
        answer = self._pace(ask.answer)
        if unit + len(answer) > stage.units:
            stage.at = stage.units * UNIT
            return False
        stage.mix(clip, start, self._gain())
        stage.words.append(ask.question.lower())
        self._say(stage, unit, ask.answer)
        return True

    def _settle(self, at: int, length: int) -> int:
        """A start from which the end leaves clearly little or clearly much of its unit."""
        while True:
            start = at + int(self.random.uniform(0.0, 1.0) * UNIT)
            if is_clear(start + length):
                return start

    def _say(self, stage: Stage, unit: int, text: str, task: str = "answer") -> None:
        parts = self._pace(text)
        late = max(stage.forced - unit, int(self.random.random() < self.late))
        if unit + late + len(parts) <= stage.units:
            for missed in range(unit, unit + late):
                stage.said[missed] = Second("listen", (self._tokens.listen,), is_learned=False)
            unit += late
        stage.said[unit] = Second(task, parts[0], answer=text)
        for number, ids in enumerate(parts[1:], 1):
            stage.said[unit + number] = Second("go on", ids)
        stage.at = int((unit + len(parts) + self.random.choice((0.1, 0.5, 1.2, 2.5))) * UNIT)
        if len(parts) > 1 and self.random.random() < 0.35:
            self._interrupt(stage, unit, len(parts))
        elif self.random.random() < 0.1:
            clip = noise(self.random, int(self.random.uniform(0.2, 1.5) * UNIT))
            stage.mix(clip, int((unit + 1 + self.random.random()) * UNIT), 1.0)

    def _interrupt(self, stage: Stage, unit: int, count: int) -> None:
        """Somebody speaks while the answer is heard: it ends in the unit in which that is clear."""
        r = self.random
        ask = self.ask(stage) if r.random() < 0.5 else None
        text = ask.question if ask else r.choice(STOPS) if r.random() < 0.7 else self._statement()[0]
        clip = self._voices(text)
        needed = min(ONSET[1], len(clip))
        for _ in range(30):
            start = int((unit + 1 + r.uniform(0.0, count - 1)) * UNIT)
            heard, end = UNIT - start % UNIT, start + len(clip)
            stop = start // UNIT + (heard < needed)
            if ONSET[0] < heard < needed or not is_clear(end) or stop >= unit + count:
                continue
            if end + UNIT > len(stage.samples):
                return
            if ask is None or (reply_unit(end) > stop and reply_unit(end) + len(self._pace(ask.answer)) <= stage.units):
                break
        else:
            return
        for late in range(stop, unit + count):
            del stage.said[late]
        stage.said[stop] = Second("stop", (self._tokens.turn_eos, self._tokens.listen))
        stage.mix(clip, start, self._gain())
        stage.words.append(text.lower())
        stage.at = end + int(r.uniform(0.6, 2.0) * UNIT)
        if ask is not None:
            self._say(stage, reply_unit(end), ask.answer)

    def _typed(self, stage: Stage) -> None:
        ask = self.ask(stage) if self.random.random() < 0.7 else self._chat()
        unit = stage.at // UNIT
        if ask is None or unit in stage.said or unit + 1 + len(self._pace(ask.answer)) > stage.units:
            stage.at += UNIT
            return
        stage.said[unit] = Second("listen", (self._tokens.listen,), typed=ask.question)
        self._say(stage, unit + 1, ask.answer)

    # ---- what the camera shows ------------------------------------------------------------------------------------

    def _request(self, stage: Stage) -> None:
        watch = draw_watch(self.random, stage.scene)
        if watch is not None and self._spoken(stage, Ask("request", watch.request(self.random), "Yes.")):
            stage.watch = watch

    def _event(self, stage: Stage) -> None:
        r = self.random
        unit = -(-stage.at // UNIT) + r.choice((0, 0, 1, 2))
        while unit < stage.units and not stage.shows(unit):
            unit += 1
        stage.at = unit * UNIT
        if unit >= stage.units - 1 or unit <= stage.first or unit in stage.said:
            stage.at += UNIT // 2
            return
        change = change_scene(r, stage.scene, stage.watch)
        if change is None:
            if stage.watch is None:
                stage.change(self._scene(), unit)
            stage.at += UNIT // 2
            return
        self._show(stage, change, unit)

    def _show(self, stage: Stage, change: Change, unit: int) -> None:
        remark = stage.watch.remark(change) if stage.watch else None
        if remark is not None and unit + len(self._pace(remark)) > stage.units:
            stage.at = stage.units * UNIT
            return
        stage.change(change.scene, unit)
        if self.random.random() < 0.15:
            stage.mix(noise(self.random, UNIT // 2), unit * UNIT, 1.0)
        if remark is None:
            stage.at += int(self.random.uniform(1.0, 1.5) * UNIT)
        else:
            self._say(stage, unit, remark, "remark")


def reply_unit(end: int) -> int:
    """The unit that answers what ends at sample `end`."""
    return end // UNIT + (UNIT - end % UNIT < QUIET[1])


def is_clear(end: int) -> bool:
    return not QUIET[0] < UNIT - end % UNIT < QUIET[1]
