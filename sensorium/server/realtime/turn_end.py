"""Whether somebody has said what they meant to say: judged where they pause, by their words and by how they end.

Words are weighed by lists of those that a sentence seldom ends with, in English, Chinese, German, French and Spanish;
the ending by its pitch, length and loudness, in any language. The weights are log-odds and set by hand.
"""

from __future__ import annotations

# ruff: noqa: SIM905 - lists of words read better as text
import math
import re
from typing import Protocol

import numpy as np

from sensorium.vad import RATE

_WAITS_MS = {"low": (800, 8000), "medium": (400, 4000), "auto": (400, 4000), "high": (250, 2000)}
"""Eagerness -> how long a pause lasts that ends a turn: after what is surely complete, and after what surely is not."""
TAIL_S = 15.0
"""How much of a turn is looked at: its end says whether it is over."""

FILLERS = frozenset("um uh uhm umm er erm hm hmm mm mmm äh ähm euh heu eh este 嗯 呃 额 唔".split())
OPEN = frozenset(
    """
    and or but because if that which than as although though unless until while whereas i'm i've we're they're
    a an the my your our their its every very i we they he she to of from with into about between without for
    und oder aber weil dass wenn der das ein eine einen einem einer mit von für
    et ou mais parce que le les des du à avec pour dans mon ma
    y o pero porque el los las un una con para por mi
    """.split()
)
"""Words that hardly ever end what somebody wants to say."""
LEANING = frozenset("at in on by is are was were am can could would should will not like well so then also".split())
"""Words that end it now and then."""
OPEN_ENDS = tuple("和 跟 但是 可是 不过 因为 所以 然后 如果 而且 或者 还有 比如 把 被 对于 关于 一个 的话 那么".split())
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_MARKS = {**dict.fromkeys("?!？！", 2.0), **dict.fromkeys(".。", 1.5), **dict.fromkeys(",;:-–—…，、；：", -2.0)}


class TurnEnd(Protocol):
    """Judges a pause."""

    def completeness(self, speech: np.ndarray, text: str | None) -> float:
        """speech: [n] float32 at 16 kHz, the end of what was said so far without the pause; text: its transcript, or
        None where the model writes none. How likely it is complete, 0 to 1."""
        ...


class WordsAndVoice:
    """The judgement described above: log-odds of both sides, added."""

    def completeness(self, speech: np.ndarray, text: str | None) -> float:
        return 1 / (1 + math.exp(-weigh_words(text or "") - weigh_voice(speech)))


def longest_ms(eagerness: str) -> int:
    """The longest pause within a turn."""
    return _WAITS_MS[eagerness][1]


def wait_ms(completeness: float, eagerness: str) -> int:
    """How long the pause must last."""
    shortest, longest = _WAITS_MS[eagerness]
    return round(shortest + (longest - shortest) * (1 - completeness) ** 2)


def weigh_words(text: str) -> float:
    """Log-odds that a transcript is complete; 0 where it says nothing about that."""
    text = text.strip().rstrip("\"'”’)]»」』")
    words = _WORD.findall(text.lower())
    if not words:
        return 0.0
    last, mark = words[-1].replace("’", "'"), _MARKS.get(text[-1], 0.0)
    if last in FILLERS or last[-1] in FILLERS:
        return -4.0
    if text.endswith(("...", "。。")):
        return -2.0
    if mark == 2.0:
        return mark
    if last in OPEN or last.endswith(OPEN_ENDS):
        return -3.0
    if last in LEANING:
        return min(mark, -1.0)
    return mark


def weigh_voice(speech: np.ndarray) -> float:
    """Log-odds by the sound of the last seconds [n] at 16 kHz: pitch that falls and a voice that fades end a sentence,
    a vowel that is held on one pitch goes on. Within -2 and 1.5."""
    pitch, level = pitch_track(speech[-3 * RATE :])
    voiced = np.flatnonzero(pitch > 0)
    if len(voiced) < 12 or len(pitch) - voiced[-1] > 20:
        return 0.0  # too little to compare with, or it ended without a voice
    tones = 12 * np.log2(pitch[voiced])
    fall = float(np.median(tones) - tones[-5:].mean())
    fade = float(np.median(level[voiced]) - level[voiced[-5:]].mean())
    held = _held(voiced, tones)
    goes_on = _within((held - 20) / 12, 0.0, 1.5)
    return _within(fall / 3, -0.5, 1.0) + _within(fade / 12, -0.5, 0.5) - goes_on


def _within(value: float, least: float, most: float) -> float:
    return min(max(value, least), most)


def _held(voiced: np.ndarray, tones: np.ndarray) -> int:
    """How many frames the last sound stays on its pitch, within 0.7 semitones."""
    last = float(np.median(tones[-5:]))
    steady = (np.abs(tones - last) <= 0.7) & (np.diff(voiced, append=voiced[-1] + 1) == 1)
    ended = np.flatnonzero(~steady)
    return len(tones) - (int(ended[-1]) + 1 if len(ended) else 0)


_FRAME, _HOP = 640, 256
_LAGS = slice(RATE // 400, RATE // 65)
"""Of voices between 65 and 400 Hz."""


def pitch_track(speech: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[n] at 16 kHz -> pitch in Hz (0 where there is no voice) and level in dB, of frames of 40 ms every 16 ms.

    Autocorrelation divided by that of the window (Boersma 1993).
    """
    if len(speech) < _FRAME:
        return np.zeros(0), np.zeros(0)
    window = np.hanning(_FRAME)
    frames = np.lib.stride_tricks.sliding_window_view(speech, _FRAME)[::_HOP].astype(np.float64)
    frames = (frames - frames.mean(axis=1, keepdims=True)) * window
    ours, its = _autocorrelation(frames), _autocorrelation(window[None])
    energy = ours[:, :1]
    level = 10 * np.log10(energy[:, 0] / _FRAME + 1e-12)
    likeness = (ours / np.maximum(energy, 1e-12))[:, _LAGS] / (its / its[:, :1])[:, _LAGS]
    best = likeness.max(axis=1)
    # The first lag that is nearly as good: multiples of a period are as much alike.
    lag = _LAGS.start + np.argmax(_peaks(likeness) & (likeness >= 0.9 * best[:, None]), axis=1)
    is_voice = (best > 0.5) & (level > level.max() - 30)
    return np.where(is_voice, RATE / lag, 0.0), level


def _autocorrelation(frames: np.ndarray) -> np.ndarray:
    """[frames, n] -> [frames, n]."""
    power = np.abs(np.fft.rfft(frames, 2 * _FRAME, axis=1)) ** 2
    return np.fft.irfft(power, axis=1)[:, :_FRAME]


def _peaks(rows: np.ndarray) -> np.ndarray:
    """Where values are no smaller than both their neighbours."""
    padded = np.pad(rows, ((0, 0), (1, 1)), constant_values=-np.inf)
    return (rows >= padded[:, :-2]) & (rows >= padded[:, 2:])
