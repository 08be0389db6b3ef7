"""What the packaged model's voice says in training: its own kinds of answers, questions, small talk, sentences."""

from __future__ import annotations

from random import Random

from training import sentences
from training.espeak import Voice
from training.lexicon import COLOURS, DIGIT_WORDS, READ_WORDS, SHAPES
from training.small_talk import TALKS
from training.templates import ASK, PLACES

VOICE = Voice("en", "en-us", "", False, 150, 50, 45)
"""The voice that the packaged model speaks with."""
_COUNTS = DIGIT_WORDS[1:10]
_FORMS = (
    "{A} {colour} {shape}.",
    "{A} {shape}.",
    "{Colour}.",
    "{Shape}.",
    "{Count}.",
    "{digit}",
    "{digit} {shape}s.",
    "Yes.",
    "No.",
    "Left.",
    "Right.",
    "Above.",
    "Below.",
    "The same.",
    "{Place}.",
    "{A} {colour} {shape} and {a} {colour} {shape}.",
    "{A} {colour} {shape}, {a} {colour} {shape} and {a} {colour} {shape}.",
    "There are {count} {shape}s.",
    "There are {digit} {colour} {shape}s.",
    "There is {a} {colour} {shape} in the {place}.",
    "I see {a} {colour} {shape}.",
    "I see {count} {shape}s.",
    "The {colour} {shape} is {colour}.",
    "The {shape} is {colour}.",
    "The {colour} {shape} is {side} the {colour} {shape}.",
    "The {shape} is {side} the {shape}.",
    "The {colour} {shape} moves {move}.",
    "The {shape} is moving {move}.",
    "The {shape} turned {colour}.",
    "The light turned {colour}.",
    "Now the {shape} is {colour}.",
    "{A} {shape} appeared.",
    "{A} {colour} {shape} appeared.",
    "In the {place}.",
    "There is no picture.",
    "The {colour} {shape} is gone.",
    "Look, {a} {colour} {shape}!",
    "First {a} {shape}, then {a} {shape}.",
    "The background is {colour}.",
    "The word is {word}.",
    "It says {word}.",
    "{word} {word} {word}",
    "{Word}, {word}, {word} and {word}.",
    "The {word} and the {word}.",
)


def _question(random: Random) -> str:
    """One of the questions the model is asked, its places filled with names."""
    text = random.choice(ASK[random.choice(list(ASK))]["en"])
    fill = {"w": random.choice(READ_WORDS), "c": random.choice(COLOURS).en, "o": "first", "o2": "first", "e": "largest"}
    for key in ("a", "b"):
        fill[key] = f"{random.choice(COLOURS).en} {random.choice(SHAPES).en}"
    while "{" in text:
        name = text[text.index("{") + 1 : text.index("}")]
        text = text.replace(f"{{{name}}}", fill.get(name) or random.choice(SHAPES).en)
    return text


def _answer(random: Random) -> str:
    text = random.choice(_FORMS)
    side = random.choice(("left of", "right of", "above", "below"))
    fill = {
        "colour": lambda: random.choice(COLOURS).en,
        "shape": lambda: random.choice(SHAPES).en,
        "count": lambda: random.choice(_COUNTS),
        "digit": lambda: str(random.randint(0, 12) if random.random() < 0.7 else random.randint(13, 99)),
        "place": lambda: random.choice(random.choice(PLACES["en"])),
        "side": lambda: side,
        "move": lambda: random.choice(("left", "right", "up", "down")),
        "word": lambda: random.choice(READ_WORDS),
    }
    for name, draw in fill.items():
        for spelled, change in ((name, str), (name.capitalize(), str.capitalize)):
            while f"{{{spelled}}}" in text:
                text = text.replace(f"{{{spelled}}}", change(draw()), 1)
    for article in ("a", "A"):
        while (at := text.find(f"{{{article}}}")) >= 0:
            vowel = text[at + 4] in "aeiou"
            text = text[:at] + article + ("n" if vowel else "") + text[at + 3 :]
    return text


def _plain(random: Random) -> str:
    kind = random.random()
    if kind < 0.5:
        return sentences.written(sentences.english(random))
    if kind < 0.75:
        return _answer(random)
    if kind < 0.82:
        return random.choice(TALKS["en"])[0]
    if kind < 0.92:
        return _question(random)
    words, digits = sentences.number(random)
    return digits if random.random() < 0.5 else sentences.written(words)


def said(random: Random) -> str:
    """One answer of the model's kinds, a sentence of small talk or a question."""
    kind = random.random()
    if kind < 0.7:
        return _answer(random)
    return random.choice(TALKS["en"])[0] if kind < 0.8 else _question(random)


def text(random: Random) -> str:
    """English, one sentence or a few, 1 to about 40 words."""
    said = _plain(random)
    while random.random() < 0.22 and len(said) < 110:
        end = "" if said[-1] in ".!?" else "."
        said = f"{said}{end} {_plain(random)}"
    return said
