"""Spoken items for the speech LM: text, sound on the grid of codes, and the orders in which the engine feeds them.

An order is a row of numbers: what is fed at each place, and what should be picked after it. T places · n codes
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import tokenizers

from training.espeak import Espeak, Voice, resample
from training.speech_texts import VOICE, text

RATE, CODE_SAMPLES, BLOCK = 24_000, 960, 25
LEAD, TAIL = 1, 2
"""Codes of silence around what is said."""
MAX_IDS, MAX_CODES = 96, 240
CONTEXT = 160
SHORT, LONG = 192, 384
"""Places of an order, in batches of short and of long ones. LONG is as far as the speech LM ever looks."""
GROUP, MIN_CHAT = 10, 50
SLACK = 3
"""Codes that the last unit of a duplex turn keeps free: more than a unit's are never heard."""
PAD, TEXT_END, BEGIN, QUIET, CODE = 0, 200, 201, 202, 300
"""What is fed: 1 + i is text token i of the item, CODE + j its code j, QUIET the code of silence."""
IGNORE, END_CODE = -1, 2
"""What is picked: nothing in particular, the end; else QUIET or CODE + j."""


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """samples int16 [960 n] at 24 kHz; starts [ids]: the code at which each token begins to be heard."""

    text: str
    ids: list[int]
    starts: list[int]
    samples: np.ndarray

    @property
    def num_codes(self) -> int:
        return len(self.samples) // CODE_SAMPLES


class Speaker:
    def __init__(self, engine: Espeak, tokenizer: tokenizers.Tokenizer, voice: Voice = VOICE) -> None:
        self._engine, self._tokenizer, self._voice = engine, tokenizer, voice

    def say(self, said: str) -> Item:
        samples, words = self._engine.speak_timed(said, self._voice)
        samples = resample(samples.astype(np.float32) * 0.8, self._engine.rate, RATE)
        count = LEAD + -(-len(samples) // CODE_SAMPLES) + TAIL
        samples = np.pad(samples, (LEAD * CODE_SAMPLES, (count - LEAD) * CODE_SAMPLES - len(samples)))
        encoded = self._tokenizer.encode(said, add_special_tokens=False)
        scale = RATE / self._engine.rate / CODE_SAMPLES
        at = dict(words) | {0: 0}
        characters = sorted(at)
        times = [at[character] * scale + LEAD for character in characters]
        begins = np.interp([start for start, _ in encoded.offsets], [*characters, len(said)], [*times, count - TAIL])
        starts = np.minimum(count, np.rint(np.maximum.accumulate(begins))).astype(int).tolist()
        return Item(said, list(encoded.ids), starts, samples)

    def draw(self, random: Random) -> Item:
        while True:
            item = self.say(text(random))
            if len(item.ids) < MAX_IDS and LEAD + TAIL < item.num_codes <= MAX_CODES:
                return item


class Order:
    """Builds one row."""

    def __init__(self) -> None:
        self.fed: list[int] = []
        self.picked: list[int] = []

    def text(self, start: int, stop: int, *marks: int) -> None:
        self.fed += [*range(start + 1, stop + 1), *marks]
        self.picked += [IGNORE] * (stop - start + len(marks))

    def codes(self, values: list[int], end: bool) -> None:
        """Codes after the mark of their begin, then the end, or nothing in particular."""
        for value in [*values, END_CODE if end else IGNORE]:
            self.picked[-1] = value
            if value not in (END_CODE, IGNORE):
                self.fed.append(value)
                self.picked.append(IGNORE)


def chat_order(item: Item) -> Order:
    order, n = Order(), item.num_codes
    order.text(0, len(item.ids), TEXT_END, BEGIN)
    order.codes([CODE + j for j in range(n)] + [QUIET] * (MIN_CHAT - n), end=True)
    return order


def turn_order(item: Item, first: int = 0) -> Order:
    """Half duplex: ten tokens, their codes, the end; from group `first` on, as a turn that was cut begins."""
    order, count = Order(), len(item.ids)
    for start in range(first * GROUP, count, GROUP):
        stop = min(start + GROUP, count)
        last = stop == count
        order.text(start, stop, *((TEXT_END, BEGIN) if last else (BEGIN,)))
        begin = item.starts[start] if start else 0
        end = item.num_codes if last else item.starts[stop]
        order.codes([CODE + j for j in range(begin, end)], end=True)
    return order


def duplex_order(item: Item, random: Random) -> Order:
    """A unit's tokens, then its 25 codes. Text comes ahead of the sound, or sometimes too late."""
    order, count, n = Order(), len(item.ids), item.num_codes
    given = said = 0
    late, eager = random.random() < 0.25, random.choice((0, 2, 4, 20))
    while True:
        fresh = 0
        if given < count:
            needed = next((i for i in range(given, count) if item.starts[i] >= said + BLOCK), count) - given
            fresh = random.randint(1, 6) if late else needed + random.randint(0, eager)
            fresh = min(max(fresh, 1), 20, count - given)
        last = given + fresh == count and n + SLACK <= said + BLOCK
        # Behind the item's tokens stands the end of the turn, which is fed as they are.
        order.text(given, given + fresh + last, BEGIN)
        given += fresh
        heard = n if given == count else item.starts[given]
        now = list(range(said, min(said + BLOCK, heard)))
        said += len(now)
        values = [CODE + j for j in now]
        if last:
            order.codes(values, end=True)
            return order
        order.codes(values + [QUIET] * (BLOCK - len(values)), end=False)


def draw_order(item: Item, random: Random) -> Order:
    kind = random.random()
    if kind < 0.35:
        return chat_order(item)
    if kind < 0.65:
        groups = -(-len(item.ids) // GROUP)
        return turn_order(item, random.randrange(groups) if random.random() < 0.25 else 0)
    return duplex_order(item, random)
