"""Kinds of conversation, from a family name to the turns of one example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

import numpy as np

from training import ask_series
from training.ask_scene import TEXT_ASKERS, THING_ASKERS, Ask, ask_describe
from training.ask_speech import SPEECH_ASKERS, Clip, answer_clip, make_clip, speak_text
from training.atlas import Font
from training.conversation import Heard, Shown, Turn, seconds_of
from training.espeak import Espeak
from training.scenes import Scene, text_scene, things_scene
from training.small_talk import ask_chat

# How often each family is drawn before adaptation, for short and for long rows.
SHORT = {
    "things": 0.36,
    "text": 0.26,
    "pair": 0.08,
    "more": 0.05,
    "speech": 0.17,
    "spoken": 0.04,
    "fewshot": 0.02,
    "chat": 0.02,
}
LONG = {"large_things": 0.22, "large_text": 0.34, "video": 0.34, "video_sound": 0.06, "large_pair": 0.04}


TASKS = (
    *THING_ASKERS, *TEXT_ASKERS, *SPEECH_ASKERS, "describe_text", "no_text", "same", "changed", "more", "count_in",
    "direction", "video", "order", "colour_at", "grow", "transcribe_en", "transcribe_zh", "number_transcribe", "spoken",
    "spoken_heard", "chat",
)  # fmt: skip
TASK_NUMBERS = {name: number for number, name in enumerate(dict.fromkeys(TASKS))}
# The tasks whose mistakes make a family more frequent.
_WATCHED = {
    "things": ("colour", "shape", "count", "where", "relation", "box", "extreme", "describe"),
    "text": ("read", "read_which"),
    "pair": ("same", "changed"),
    "more": ("more", "count_in"),
    "speech": ("transcribe_en", "transcribe_zh", "number_transcribe", "gender"),
    "spoken": ("spoken",),
    "large_things": ("box", "count"),
    "large_text": ("read", "read_which"),
    "video": ("direction", "order", "colour_at", "video", "grow"),
    "video_sound": ("transcribe_en",),
    "large_pair": ("changed",),
}


class Source:
    """Draws conversations. errors: task -> share of wrong answers lately, which raises how often a task is asked.

    answers: share of clips that say what the model itself would say, rather than a sentence of the grammar.
    """

    def __init__(
        self, seed: int, fonts: tuple[Font, ...], engine: Espeak, errors: Mapping[str, float], answers: float = 0.0
    ) -> None:
        self.answers = answers
        self.random = Random(seed)
        self.fonts = list(fonts)
        self.engine = engine
        self.errors = errors
        self.ease = 0.0
        """Share of examples kept small and simple; run.py lowers it as training goes on."""
        self._clips: list[Clip] = []

    def language(self) -> str:
        return "en" if self.random.random() < 0.6 else "zh"

    def boost(self, family: str) -> float:
        watched = [self.errors.get(task, 0.3) for task in _WATCHED.get(family, ())]
        return 0.6 + 2 * sum(watched) / len(watched) if watched else 1.0

    def draw(self, family: str) -> list[Turn]:
        make: Callable[[], list[Turn]] = getattr(self, f"_{family}")
        return make()

    # ---- pictures -------------------------------------------------------------------------------------------------

    def _turns(self, media: list, asks: list[Ask]) -> list[Turn]:
        """The media stand in the first message, before or (rarely) after its question."""
        turns = [Turn([], ask) for ask in asks]
        if turns and self.random.random() < 0.07:
            ask = turns[0].ask
            turns[0] = Turn([ask.question, *media], Ask(ask.task, "", ask.answer, ask.spell))
        elif turns:
            turns[0].parts = list(media)
        return turns

    def _questions(self, scene: Scene, askers: Mapping[str, Callable], count: int) -> list[Ask]:
        """Up to `count` different questions, in one language or mixed; harder tasks more often."""
        names = list(askers)
        weights = [0.1 + 2 * self.errors.get(name, 0.3) for name in names]
        language = self.language() if self.random.random() < 0.8 else None
        asks: dict[tuple[str, str], Ask] = {}
        for name in self.random.choices(names, weights, k=2 * count):
            ask = askers[name](self.random, scene, language or self.language())
            if ask is not None:
                asks.setdefault((ask.task, ask.answer), ask)  # the same again would be copied, not seen
        return list(asks.values())[:count]

    def _shown(self, scene: Scene) -> Shown:
        return Shown(scene, numbered=self.random.random() < 0.9)

    def _things(self, large: bool = False, count: int = 8) -> list[Turn]:
        r = self.random
        most = 3 if r.random() < self.ease else 9
        number = r.choice((1, 2, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9))
        scene = things_scene(r, min(number, most), large, repeat=r.choice((0.0, 0.0, 0.3, 0.6, 0.9)))
        if not scene.things:
            return self._chat()
        return self._turns([self._shown(scene)], self._questions(scene, THING_ASKERS, count))

    def _text(self, large: bool = False, count: int = 5) -> list[Turn]:
        r = self.random
        lines = 1 if r.random() < max(0.5, self.ease) else r.choice((2, 2, 3))
        things = r.choice((0, 0, 0, 1, 2))
        scene = text_scene(r, self.fonts, lines, things, large)
        asks = self._questions(scene, TEXT_ASKERS, count)
        if scene.things and scene.lines:
            asks += self._questions(scene, {"describe": ask_describe, **THING_ASKERS}, 2)
        r.shuffle(asks)
        return self._turns([self._shown(scene)], asks)

    def _large_things(self) -> list[Turn]:
        return self._things(large=True, count=12)

    def _large_text(self) -> list[Turn]:
        return self._text(large=True, count=8)

    def _pair(self, large: bool = False) -> list[Turn]:
        scenes, asks = ask_series.pair_asks(self.random, self.language())
        return self._turns([self._shown(s) for s in scenes], asks)

    def _large_pair(self) -> list[Turn]:
        language = self.language()
        first, second, change, before, after = ask_series.changed_pair(self.random, large=True)
        answer = ask_series.change_answer(change, before, after, language)
        ask = Ask("changed", ask_series.phrase(self.random, "changed", language), answer)
        return self._turns([Shown(first), Shown(second)], [ask])

    def _more(self) -> list[Turn]:
        scenes, asks = ask_series.more_asks(self.random, self.language())
        return self._turns([self._shown(s) for s in scenes], asks)

    def _fewshot(self) -> list[Turn]:
        """The same question about two or three pictures, one after the other."""
        r, language = self.random, self.language()
        asker = r.choice([THING_ASKERS[n] for n in ("describe", "count", "background")] + [TEXT_ASKERS["read"]])
        turns = []
        for _ in range(2):
            if asker is TEXT_ASKERS["read"]:
                scene = text_scene(r, self.fonts, 1, 0)
            else:
                scene = things_scene(r, r.randint(1, 3))
            ask = asker(r, scene, language) if scene.things or scene.lines else None
            if ask is not None:
                turns.append(Turn([Shown(scene)], ask))
        return turns or self._chat()

    def _chat(self) -> list[Turn]:
        return [Turn([], ask_chat(self.random, self.language())) for _ in range(self.random.randint(1, 4))]

    # ---- video ----------------------------------------------------------------------------------------------------

    def _frames(self, count: int) -> tuple[list[Shown], list[Ask]]:
        make = self.random.choice(ask_series.VIDEOS)
        scenes, asks = make(self.random, count, self.language())
        return [Shown(s, max_slices=1, numbered=False) for s in scenes], asks

    def _video(self) -> list[Turn]:
        frames, asks = self._frames(self.random.randint(3, 8))
        turns = self._turns(frames, asks)
        turns[0].joint = "" if self.random.random() < 0.15 else "\n"
        return turns

    def _video_sound(self) -> list[Turn]:
        """Frames and seconds of one sound track in turn."""
        r = self.random
        clip = self.clip(longest=5 * 16_000)
        count = max(3, -(-len(clip.samples) // 16_000))
        if count > 5:
            return self._video()
        samples = np.pad(clip.samples, (0, count * 16_000 - len(clip.samples)))
        clip = Clip(samples, clip.text, clip.words, clip.digits, clip.language, clip.female)
        frames, asks = self._frames(count)
        language = self.language()
        spoken = [asker(r, clip, language) for asker in SPEECH_ASKERS.values()]
        asks += r.sample([a for a in spoken if a is not None], 2)
        r.shuffle(asks)
        parts = [part for pair in zip(frames, seconds_of(clip, count), strict=True) for part in pair]
        turns = [Turn([], ask) for ask in asks]
        turns[0] = Turn(parts, asks[0], "" if r.random() < 0.3 else "\n")
        return turns

    # ---- sound ----------------------------------------------------------------------------------------------------

    def clip(self, longest: int = 81_920) -> Clip:
        """A new clip, or one of the last few hundred again: its noise and loudness differ each time."""
        if len(self._clips) < 60 or self.random.random() < 0.5:
            make = answer_clip if self.random.random() < self.answers else make_clip
            clip = make(self.random, self.engine)
            self._clips.append(clip)
            if len(self._clips) > 400:
                self._clips.pop(self.random.randrange(400))
        else:
            clip = self.random.choice(self._clips)
        return clip if len(clip.samples) <= longest else self.clip(longest)

    def _speech(self) -> list[Turn]:
        r = self.random
        clip, language = self.clip(), self.language()
        names = [n for n in SPEECH_ASKERS if n != "transcribe"]
        weights = [0.2 + self.errors.get(n, 0.3) for n in names]
        picked = dict.fromkeys(["transcribe", *r.choices(names, weights, k=4)])
        asks = [a for a in (SPEECH_ASKERS[n](r, clip, language) for n in picked) if a is not None]
        r.shuffle(asks)
        turns = self._turns([Heard(clip, 0, clip.rows)], asks)
        if asks[0].task.endswith(("transcribe", "_en", "_zh")) and r.random() < 0.15:
            turns[0] = Turn([Heard(clip, 0, clip.rows)], Ask(asks[0].task, "", asks[0].answer))
        return turns

    def _spoken(self) -> list[Turn]:
        """A question about a picture, asked aloud."""
        r = self.random
        scene = things_scene(r, r.choice((1, 2, 3, 4)), repeat=r.choice((0.0, 0.4)))
        if not scene.things:
            return self._chat()
        askers = {
            n: THING_ASKERS[n] for n in ("colour", "shape", "count", "background", "extreme", "describe", "exists")
        }
        language = "en" if r.random() < 0.8 else "zh"
        asks = [a for a in (askers[n](r, scene, language) for n in r.choices(list(askers), k=4)) if a is not None]
        if not asks:
            return self._things()
        clip = speak_text(r, self.engine, asks[0].question, language)
        if clip is None:
            return self._things()
        parts = [self._shown(scene), Heard(clip, 0, clip.rows)]
        first = Turn(parts, Ask("spoken", r.choice(("", "", "Answer the question.", "请回答问题。")), asks[0].answer))
        heard = Turn(
            [], Ask("spoken_heard", r.choice(("What was the question?", "Transcribe the question.")), clip.text)
        )
        rest = [Turn([], a) for a in asks[1:2]]
        return [first, *rest, heard] if r.random() < 0.5 else [first, *rest]
