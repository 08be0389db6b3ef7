"""What of an answer somebody has heard, for a client that says where it stopped the sound."""

from __future__ import annotations

import unicodedata

WIDE_MS, NARROW_MS = 220.0, 65.0
"""How long a character is spoken, of Chinese, Japanese or Korean and of other writings, where nothing else is known."""


def heard_part(text: str, heard_ms: int, total_ms: int | None) -> str:
    """The beginning of the text that was spoken in heard_ms, whole words only.

    total_ms: of the whole text, where that was spoken to its end. It is an estimate: all characters are taken to last
    equally long.
    """
    lengths = [WIDE_MS if unicodedata.east_asian_width(letter) in "WF" else NARROW_MS for letter in text]
    share = total_ms / max(sum(lengths), 1.0) if total_ms is not None else 1.0
    end, left = 0, heard_ms + 0.5  # sums of shares are not exact
    while end < len(text) and left >= lengths[end] * share:
        left -= lengths[end] * share
        end += 1
    while 0 < end < len(text) and lengths[end - 1] == NARROW_MS and _goes_on(text, end):
        end -= 1
    return text[:end].rstrip()


def _goes_on(text: str, place: int) -> bool:
    return not text[place].isspace() and not text[place - 1].isspace()
