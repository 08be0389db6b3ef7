"""Paraphrases of every question, by task and language, from questions.txt; and the phrases that answers share.

Braces in a question are filled by the module that asks.
"""

from __future__ import annotations

from pathlib import Path


def _read(path: Path) -> dict[str, dict[str, tuple[str, ...]]]:
    """Blocks headed `[task language]`, one question a line."""
    asks: dict[str, dict[str, tuple[str, ...]]] = {}
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        head, *lines = block.splitlines()
        task, language = head.strip("[]").split(" ")
        asks.setdefault(task, {})[language] = tuple(lines)
    return asks


ASK = _read(Path(__file__).parent / "questions.txt")

PLACES = {
    "en": (
        ("top left", "top center", "top right"),
        ("middle left", "center", "middle right"),
        ("bottom left", "bottom center", "bottom right"),
    ),
    "zh": (("左上角", "上方中间", "右上角"), ("左侧中间", "正中间", "右侧中间"), ("左下角", "下方中间", "右下角")),
}
SIDES = {
    "en": {"left": "left of", "right": "right of", "up": "above", "down": "below"},
    "zh": {"left": "左边", "right": "右边", "up": "上面", "down": "下面"},
}
SIDE_ANSWERS = {
    "en": {"left": "Left.", "right": "Right.", "up": "Above.", "down": "Below."},
    "zh": {"left": "左边。", "right": "右边。", "up": "上面。", "down": "下面。"},
}
MOVES = {
    "en": {"left": "left", "right": "right", "up": "up", "down": "down"},
    "zh": {"left": "左", "right": "右", "up": "上", "down": "下"},
}
YES = {"en": ("No.", "Yes."), "zh": ("没有。", "有。")}
TRUE = {"en": ("No.", "Yes."), "zh": ("不是。", "是。")}
