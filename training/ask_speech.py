"""Spoken clips and questions about them."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np

from training import sentences
from training.ask_scene import Ask, capital, phrase, stop
from training.espeak import Espeak, Voice, sample_voice
from training.lexicon import COLOURS
from training.speech_texts import VOICE, said

MAX_SAMPLES = 81_920
"""5.12 s: the longest clip in training."""


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """samples int16 [S] at 16 kHz. text: as written; words: as spoken, in lower case; digits: of a number, else ""."""

    samples: np.ndarray
    text: str
    words: str
    digits: str
    language: str
    female: bool

    @property
    def rows(self) -> int:
        """Embeddings the encoder makes of it: 100 mel frames a second, halved, averaged five at a time."""
        return rows_of(len(self.samples))


def rows_of(samples: int) -> int:
    return ((-(-samples // 160) - 1) // 2 + 1) // 5


def make_clip(random: Random, engine: Espeak, held_out: bool = False, longest: int = MAX_SAMPLES) -> Clip:
    """A sentence or a number in a random voice, with some silence around it."""
    while True:
        language = "en" if random.random() < 0.74 else "zh"
        digits = ""
        if random.random() < 0.16:
            words, digits = sentences.number(random) if language == "en" else sentences.chinese_number(random)
        else:
            words = sentences.english(random) if language == "en" else sentences.chinese(random)
        voice = sample_voice(random, language, held_out)
        samples = with_silence(random, engine.speak(words, voice))
        if 3200 < len(samples) <= longest:
            text = sentences.written(words) if language == "en" else words + "。"
            return Clip(samples, text, words.lower(), digits, language, voice.female)


def answer_clip(random: Random, engine: Espeak) -> Clip:
    """What the model itself says, often in the voice that it learned from: it is to understand itself."""
    while True:
        text = said(random)
        voice = VOICE if random.random() < 0.4 else sample_voice(random, "en")
        samples = with_silence(random, engine.speak(text, voice))
        if len(samples) <= MAX_SAMPLES and not any(c.isdigit() for c in text):
            words = "".join(c for c in text.lower() if c.isalpha() or c in " '")
            return Clip(samples, text, words, "", "en", voice.female)


def speak_text(random: Random, engine: Espeak, text: str, language: str, held_out: bool = False) -> Clip | None:
    """A given text, for spoken questions; None if it is too long."""
    voice: Voice = sample_voice(random, language, held_out)
    samples = with_silence(random, engine.speak(text, voice))
    if len(samples) > MAX_SAMPLES:
        return None
    words = "".join(c for c in text.lower() if c.isalpha() or c in " '")
    return Clip(samples, text, words, "", language, voice.female)


def with_silence(random: Random, samples: np.ndarray) -> np.ndarray:
    before, after = (int(16_000 * random.choice((0.0, 0.02, 0.1, random.uniform(0, 0.5)))) for _ in range(2))
    return np.pad(samples, (before, after))


def ask_transcribe(random: Random, clip: Clip, language: str) -> Ask | None:
    task = "number_transcribe" if clip.digits else f"transcribe_{clip.language}"
    return Ask(task, phrase(random, "transcribe", language), clip.text)


def ask_gender(random: Random, clip: Clip, language: str) -> Ask | None:
    answers = {"en": ("A man.", "A woman."), "zh": ("男声。", "女声。")}
    return Ask("gender", phrase(random, "gender", language), answers[language][clip.female])


def ask_language(random: Random, clip: Clip, language: str) -> Ask | None:
    names = {"en": {"en": "English.", "zh": "英文。"}, "zh": {"en": "Chinese.", "zh": "中文。"}}
    return Ask("language", phrase(random, "language", language), names[clip.language][language])


def ask_word_at(random: Random, clip: Clip, language: str) -> Ask | None:
    words = clip.text.rstrip(".").split(" ")
    if clip.language != "en" or clip.digits or len(words) < 2:
        return None
    last = random.random() < 0.5
    slots = {"o": "last" if last else "first", "o2": "last" if last else "first"}
    if language == "zh":
        slots["o"] = "最后一" if last else "第一"
    return Ask("word_at", phrase(random, "word_at", language, **slots), capital(words[-1 if last else 0]) + ".")


def ask_said(random: Random, clip: Clip, language: str) -> Ask | None:
    if clip.language != "en" or clip.digits:
        return None
    words = clip.words.split(" ")
    word = random.choice(words) if random.random() < 0.5 else random.choice(sentences.NOUNS + sentences.ADJECTIVES)
    answers = {"en": ("No.", "Yes."), "zh": ("没有。", "有。")}
    return Ask("said", phrase(random, "said", language, w=word), answers[language][word in words])


def ask_number(random: Random, clip: Clip, language: str) -> Ask | None:
    return Ask("number_said", phrase(random, "number_said", language), clip.digits, spell=True) if clip.digits else None


def ask_colour_said(random: Random, clip: Clip, language: str) -> Ask | None:
    said = [c for c in COLOURS if (c.en in clip.words.split(" ") if clip.language == "en" else c.zh in clip.words)]
    if len(said) != 1 or clip.digits:
        return None
    question = "Which color is mentioned?" if language == "en" else "提到了哪种颜色？"
    return Ask("colour_said", question, capital(said[0][language]) + stop(language))


SPEECH_ASKERS = {
    "transcribe": ask_transcribe,
    "gender": ask_gender,
    "language": ask_language,
    "word_at": ask_word_at,
    "said": ask_said,
    "number_said": ask_number,
    "colour_said": ask_colour_said,
}
