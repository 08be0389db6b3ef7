"""Text without media, from small_talk.txt: who the model is, what it can do, and a plain refusal for what it cannot."""

from __future__ import annotations

from pathlib import Path
from random import Random

from training.ask_scene import Ask


def _read(path: Path) -> dict[str, list[tuple[str, list[str]]]]:
    """Language -> (answer, its questions). A block is `[language] answer`, then one question a line."""
    talks: dict[str, list[tuple[str, list[str]]]] = {}
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        head, *questions = block.splitlines()
        language, answer = head[1:].split("] ", 1)
        talks.setdefault(language, []).append((answer, questions))
    return talks


TALKS = _read(Path(__file__).parent / "small_talk.txt")


def ask_chat(random: Random, language: str) -> Ask:
    answer, questions = random.choice(TALKS[language])
    return Ask("chat", random.choice(questions), answer)
