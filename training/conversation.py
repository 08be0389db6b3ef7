"""Conversations as token ids: the prompts that the processor renders, several turns with the answers to learn.

A conversation is a list of turns; media stand in the first message of the turn that shows them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from random import Random

import tokenizers

from training.ask_scene import Ask
from training.ask_speech import Clip, rows_of
from training.scenes import Scene
from training.views import MAX_SLICES, windows

QUERIES = 64
THINK = "<think>\n\n</think>\n\n"
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. You can accept audio and text input and output voice and text.",
    "Answer briefly.",
    "你是一个有用的助手。",
    "You are sensorium-tiny.",
)


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A picture in the prompt. rows: media rows it takes, 64 per slice."""

    scene: Scene
    max_slices: int = MAX_SLICES
    numbered: bool = True

    @property
    def slices(self) -> int:
        return len(windows(self.scene.width, self.scene.height, self.max_slices)[0])


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """A span of a clip: its embeddings [row, row + rows)."""

    clip: Clip
    row: int
    rows: int


@dataclass(slots=True)
class Turn:
    parts: list[Shown | Heard | str]
    ask: Ask
    joint: str = "\n"


@dataclass(slots=True)
class Encoded:
    """Ids, with what replaces some of them and what is to be learned."""

    ids: list[int] = field(default_factory=list)
    media: list[tuple[int, object, int, int]] = field(default_factory=list)
    """(start, Shown or Clip, first row, rows)"""
    answers: list[tuple[str, int, int]] = field(default_factory=list)
    """(task, start, stop): the answer's tokens, the end mark included, stand at [start, stop)."""


class Encoder:
    """Text to ids in the pieces that the prompt is made of."""

    def __init__(self, path: str) -> None:
        self.tokenizer = tokenizers.Tokenizer.from_file(path)
        self.text = lru_cache(maxsize=200_000)(self._text)
        self.letters = lru_cache(maxsize=4096)(self._letters)
        self.unk = self.tokenizer.token_to_id("<unk>")
        self.end = self.tokenizer.token_to_id("<|im_end|>")

    def _text(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _letters(self, char: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(char, add_special_tokens=False).ids)

    def answer(self, ask: Ask) -> list[int]:
        if not ask.spell:
            return list(self.text(ask.answer))
        return [i for char in ask.answer for i in self.letters(char)]


def encode(encoder: Encoder, turns: list[Turn], random: Random, limit: int) -> Encoded | None:
    """As many turns as fit in `limit` ids; None if not even the first does."""
    out = Encoded()
    if random.random() < 0.08:
        out.ids += encoder.text(f"<|im_start|>system\n{random.choice(SYSTEM_PROMPTS)}<|im_end|>\n")
    # Turns before the last have no think block in a real prompt; showing it at every turn half of the time makes every
    # answer an example of what the generation prompt asks for.
    always = random.random() < 0.6
    speech = any(isinstance(part, Heard) for turn in turns for part in turn.parts)
    tail = THINK + ("<|tts_bos|>" if speech else "")
    pictures = 0
    for number, turn in enumerate(turns):
        mark = len(out.ids), len(out.media), pictures
        pictures = _add_message(encoder, out, turn, pictures)
        last = number == len(turns) - 1
        out.ids += encoder.text("<|im_start|>assistant\n" + (tail if always or last else ""))
        start = len(out.ids)
        out.ids += [*encoder.answer(turn.ask), encoder.end]
        if len(out.ids) >= limit:  # one more for the newline
            del out.ids[mark[0] :], out.media[mark[1] :]
            return out if out.answers else None
        out.answers.append((turn.ask.task, start, len(out.ids)))
        out.ids += encoder.text("\n")
    return out


def _add_message(encoder: Encoder, out: Encoded, turn: Turn, pictures: int) -> int:
    """The user's message; returns the number of pictures so far."""
    text = "<|im_start|>user\n"
    for position, part in enumerate([*turn.parts, turn.ask.question]):
        text += turn.joint if position and part != "" else ""
        if isinstance(part, str):
            text += part
            continue
        if isinstance(part, Shown) and part.numbered:
            text += f"<image_id>{pictures}</image_id>"
        text = _add_media(encoder, out, part, text)
        pictures += isinstance(part, Shown)
    out.ids += encoder.text(text + "<|im_end|>\n")
    return pictures


def _add_media(encoder: Encoder, out: Encoded, part: Shown | Heard, text: str) -> str:
    """Writes `text` up to the media, then the media; returns the text that follows it directly."""
    if isinstance(part, Heard):
        out.ids += encoder.text(text + "<|audio_start|>")
        _span(encoder, out, part.clip, part.row, part.rows)
        return "<|audio_end|>"
    out.ids += encoder.text(text + "<image>")
    _span(encoder, out, part, 0, QUERIES)
    text = "</image>"
    _, grid = windows(part.scene.width, part.scene.height, part.max_slices)
    columns, rows = grid or (0, 0)
    for number in range(columns * rows):
        text += "\n" if number and number % columns == 0 else ""
        out.ids += encoder.text(text + "<slice>")
        _span(encoder, out, part, (1 + number) * QUERIES, QUERIES)
        text = "</slice>"
    return text


def _span(encoder: Encoder, out: Encoded, owner: object, row: int, rows: int) -> None:
    out.media.append((len(out.ids), owner, row, rows))
    out.ids += [encoder.unk] * rows


def seconds_of(clip: Clip, count: int) -> list[Heard]:
    """A clip of `count` whole seconds as one span per second."""
    return [Heard(clip, i * 10, rows_of(16_000)) for i in range(count)]
