"""What is asked in a benchmark: made up from a seed, or read from a file of the user's. No torch."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.bench import synthetic
from sensorium.errors import ConfigError
from sensorium.types import Modality

NAMES = ("random", "random-mm", "custom", "sharegpt")
CountTokens = Callable[[str], int]
# Modality -> the kind of a content part, and the type of our files of it.
_PARTS = {
    "image": ("image_url", "image/jpeg"),
    "audio": ("audio_url", "audio/wav"),
    "video": ("video_url", "video/mp4"),
}
_SYLLABLES = [a + b for a in "bdfghklmnprstvz" for b in "aeiou"]


@dataclass(frozen=True, slots=True)
class Item:
    """One file of media."""

    modality: Modality
    data: bytes


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    text: str
    max_tokens: int
    media: tuple[Item, ...] = ()


def content(ask: Ask) -> str | list[dict[str, Any]]:
    """A user message in the OpenAI form: its media as data URLs, then the text."""
    parts: list[dict[str, Any]] = []
    for item in ask.media:
        kind, mime = _PARTS[item.modality]
        parts.append({"type": kind, kind: {"url": f"data:{mime};base64,{base64.b64encode(item.data).decode()}"}})
    return [*parts, {"type": "text", "text": ask.text}] if parts else ask.text


@dataclass(frozen=True, slots=True)
class Dataset:
    """The options of the command line that say what is asked. Lengths are in tokens."""

    name: str = "random"
    path: Path | None = None
    num_prompts: int = 100
    seed: int = 0
    input_len: int = 128
    output_len: int = 128
    range_ratio: float = 0.0
    """Lengths are spread evenly over length * (1 - ratio) to length * (1 + ratio)."""
    items: int = 1
    buckets: Mapping[str, float] | None = None
    """"(height, width, frames)" -> its share; of one frame it is a picture, of more a video of so many."""
    own_output_len: int | None = None
    """custom and sharegpt: tokens to generate, in place of what the file says."""

    def __post_init__(self) -> None:
        if not 0 <= self.range_ratio < 1:
            raise ConfigError(
                f"random_range_ratio must be at least 0 and below 1, not {self.range_ratio:g}",
                param="random_range_ratio",
            )
        if self.name in ("custom", "sharegpt") and self.path is None:
            raise ConfigError(f"--dataset-name {self.name} reads a file: give --dataset-path", param="dataset_path")

    def load(self, count_tokens: CountTokens) -> list[Ask]:
        """The requests, in the order in which they are sent. Files that hold fewer give fewer."""
        if self.name == "custom":
            asks = list(_custom(_existing(self.path), self))
        elif self.name == "sharegpt":
            asks = list(_sharegpt(_existing(self.path), self, count_tokens))
        else:
            asks = list(_random(self, count_tokens))
        if not asks:
            raise ConfigError(f"{self.path} holds no request that could be sent", param="dataset_path")
        return asks


def random_text(rng: np.random.Generator, tokens: int, count_tokens: CountTokens) -> str:
    """Made-up words, of about so many tokens."""
    words = _words(rng, tokens)
    for _ in range(3):
        found = count_tokens(" ".join(words))
        if found == tokens:
            break
        wanted = max(round(len(words) * tokens / max(found, 1)), 1)
        words = (words + _words(rng, max(wanted - len(words), 0)))[:wanted]
    return " ".join(words)


def _words(rng: np.random.Generator, count: int) -> list[str]:
    picked = rng.integers(0, len(_SYLLABLES), (count, 2))
    return [_SYLLABLES[a] + _SYLLABLES[b] for a, b in picked]


def _random(options: Dataset, count_tokens: CountTokens) -> Iterator[Ask]:
    rng = np.random.default_rng(options.seed)
    buckets = _read_buckets(options.buckets) if options.name == "random-mm" else []
    for _ in range(options.num_prompts):
        input_len, output_len = (_length(rng, n, options.range_ratio) for n in (options.input_len, options.output_len))
        text = random_text(rng, input_len, count_tokens)
        media = tuple(_item(rng, buckets) for _ in range(options.items)) if buckets else ()
        yield Ask(text, output_len, media)


def _length(rng: np.random.Generator, length: int, ratio: float) -> int:
    return max(int(rng.integers(round(length * (1 - ratio)), round(length * (1 + ratio)) + 1)), 1)


def _read_buckets(buckets: Mapping[str, float] | None) -> list[tuple[float, int, int, int]]:
    found: list[tuple[float, int, int, int]] = []
    for size, share in (buckets or {"(256, 256, 1)": 1.0}).items():
        numbers = re.fullmatch(r"\(?\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\)?", size)
        if not numbers or not all(int(number) for number in numbers.groups()) or share < 0:
            raise ConfigError(
                f'random_mm_bucket_config: {size!r} is not "(height, width, frames)" with a share',
                param="random_mm_bucket_config",
            )
        height, width, frames = map(int, numbers.groups())
        found.append((share, height, width, frames))
    if not sum(bucket[0] for bucket in found) > 0:
        raise ConfigError("random_mm_bucket_config: the shares add up to 0", param="random_mm_bucket_config")
    return found


def _item(rng: np.random.Generator, buckets: list[tuple[float, int, int, int]]) -> Item:
    shares = np.array([bucket[0] for bucket in buckets])
    _, height, width, frames = buckets[rng.choice(len(buckets), p=shares / shares.sum())]
    if frames == 1:
        return Item("image", synthetic.picture(rng, width, height))
    return Item("video", synthetic.video(rng, width, height, frames / 10, fps=10))


def _existing(path: Path | None) -> Path:
    if path is None or not path.is_file():
        raise ConfigError(f"dataset_path: there is no file {path}", param="dataset_path")
    return path


def _custom(path: Path, options: Dataset) -> Iterator[Ask]:
    """One JSON object a line, with `prompt` and perhaps `output_tokens`."""
    with path.open(encoding="utf-8") as file:
        lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    for number, line in lines[: options.num_prompts]:
        entry = _json(line, f"{path}, line {number}")
        prompt, length = (entry.get("prompt"), entry.get("output_tokens")) if isinstance(entry, dict) else (None, None)
        if not isinstance(prompt, str) or not isinstance(length, int | None):
            raise ConfigError(
                f'{path}, line {number}: not an object with a text "prompt" and perhaps a number "output_tokens"',
                param="dataset_path",
            )
        yield Ask(prompt, options.own_output_len or length or options.output_len)


def _sharegpt(path: Path, options: Dataset, count_tokens: CountTokens) -> Iterator[Ask]:
    """The first question of each conversation, and the length of its answer."""
    entries = _json(path.read_text("utf-8"), str(path))
    if not isinstance(entries, list):
        raise ConfigError(f"{path} is no list of conversations", param="dataset_path")
    found = 0
    for entry in entries:
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        values: list[Any] = [turn.get("value") for turn in turns or [] if isinstance(turn, dict)][:2]
        texts = [value for value in values if isinstance(value, str) and value]
        if len(texts) < 2:
            continue
        found += 1
        yield Ask(texts[0], options.own_output_len or max(count_tokens(texts[1]), 1))
        if found == options.num_prompts:
            return


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON: {error}", param="dataset_path") from None
