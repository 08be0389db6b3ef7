"""Batches as arrays of fixed shapes: what worker processes write and the device reads.

B rows of S ids, short and long · V views · C clips · A answers
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np

from training import sentences
from training.ask_scene import EXTREMES
from training.ask_speech import MAX_SAMPLES, Clip
from training.conversation import QUERIES, Encoded, Encoder, Shown, encode
from training.families import LONG, SHORT, Source
from training.lexicon import COLOURS, DIGITS_ZH, SHAPES
from training.scenes import BACKGROUND_WIDTH, MAX_ROWS, ROW_WIDTH
from training.templates import ASK
from training.views import MAX_PATCHES, view_rows

CLIP_ROWS = 51
CTC_ALPHABET = "abcdefghijklmnopqrstuvwxyz' "
CTC_CLASSES = 640
MAX_CTC = 72


@dataclass(frozen=True, slots=True)
class Shape:
    short: tuple[int, int] = (256, 256)
    long: tuple[int, int] = (64, 640)
    views: int = 600
    scenes: int = 520
    clips: int = 72
    answers: int = 2304
    learned: int = 16384

    def fields(self) -> dict[str, tuple[tuple[int, ...], type]]:
        return {
            "ids_short": (self.short, np.int16),
            "rows_short": (self.short, np.int32),
            "ids_long": (self.long, np.int16),
            "rows_long": (self.long, np.int32),
            "learn_at": ((self.learned,), np.int32),
            "learn_target": ((self.learned,), np.int16),
            "learn_answer": ((self.learned,), np.int16),
            "answer_task": ((self.answers,), np.int16),
            "answer_length": ((self.answers,), np.int16),
            "scene_rows": ((self.scenes, MAX_ROWS, ROW_WIDTH), np.float32),
            "scene_counts": ((self.scenes,), np.int32),
            "backdrops": ((self.scenes, BACKGROUND_WIDTH), np.float32),
            "views": ((self.views, 8), np.float32),
            "waves": ((self.clips, MAX_SAMPLES), np.int16),
            "wave_lengths": ((self.clips,), np.int32),
            "ctc": ((self.clips, MAX_CTC), np.int16),
            "ctc_lengths": ((self.clips,), np.int32),
            "female": ((self.clips,), np.int16),
        }

    def nbytes(self) -> int:
        return sum(_padded(int(np.prod(shape)) * np.dtype(kind).itemsize) for shape, kind in self.fields().values())


def _padded(count: int) -> int:
    return -(-count // 64) * 64


def arrays_over(buffer, shape) -> dict[str, np.ndarray]:
    """The fields as views of one block of memory."""
    out, at = {}, 0
    for name, (dims, kind) in shape.fields().items():
        count = int(np.prod(dims))
        out[name] = np.frombuffer(buffer, dtype=kind, count=count, offset=at).reshape(dims)
        at += _padded(count * np.dtype(kind).itemsize)
    return out


def ctc_symbols() -> dict[str, int]:
    """Class of each symbol, from 1 (0 is the blank)."""
    spoken = "".join("".join(words) for words in sentences.ZH_WORDS.values()) + "".join(sentences.ZH_FORMS) + DIGITS_ZH
    spoken += "".join(t for asks in ASK.values() for t in asks["zh"]) + "".join(n.zh for n in (*COLOURS, *SHAPES))
    spoken += "".join(zh for _, zh in EXTREMES.values())
    chinese = sorted({c for c in spoken if "\u4e00" <= c <= "\u9fff"})
    return {symbol: number for number, symbol in enumerate((*CTC_ALPHABET, *chinese), 1)}


def ctc_labels(clip: Clip, symbols: dict[str, int]) -> list[int]:
    """Letters for English, one class per character for Chinese; others are left out."""
    return [symbols[c] for c in clip.words if c in symbols][:MAX_CTC]


class BatchWriter:
    """Fills one batch after another from a source of conversations."""

    def __init__(
        self, source: Source, encoder: Encoder, shape: Shape, tasks: dict[str, int], symbols: dict[str, int]
    ) -> None:
        self.source, self.encoder, self.shape, self.tasks, self.symbols = source, encoder, shape, tasks, symbols
        self.random: Random = source.random

    def fill(self, out: dict[str, np.ndarray]) -> None:
        for name, value in {
            "rows_short": -1,
            "rows_long": -1,
            "learn_answer": -1,
            "learn_target": 0,
            "learn_at": 0,
        }.items():
            out[name][:] = value
        for name in ("ids_short", "ids_long", "answer_task", "scene_counts", "wave_lengths", "ctc_lengths"):
            out[name][:] = 0
        out["answer_length"][:] = 0
        out["views"][:] = (0, 1, 1, 0, 0, 1, 1, 1)
        self.num_scenes = self.num_views = self.num_clips = self.num_answers = self.num_learned = 0
        self.out = out
        offset = 0
        for kind, (count, width), families in (("short", self.shape.short, SHORT), ("long", self.shape.long, LONG)):
            names, weights = list(families), [families[n] * self.source.boost(n) for n in families]
            for row in range(count):
                for _ in range(4):
                    family = self.random.choices(names, weights)[0]
                    encoded = encode(self.encoder, self.source.draw(family), self.random, width)
                    if encoded is not None and self._add(encoded, kind, row, offset + row * width):
                        break
            offset += count * width

    def _add(self, encoded: Encoded, kind: str, row: int, offset: int) -> bool:
        """False if the batch has no room for its media or answers."""
        shown = {id(o): o for _, o, _, _ in encoded.media if isinstance(o, Shown)}
        clips = {id(o): o for _, o, _, _ in encoded.media if isinstance(o, Clip)}
        shape = self.shape
        learned = sum(stop - start for _, start, stop in encoded.answers)
        if (
            self.num_views + sum(s.slices for s in shown.values()) > shape.views
            or self.num_scenes + len(shown) > shape.scenes
            or self.num_clips + len(clips) > shape.clips
            or self.num_answers + len(encoded.answers) > shape.answers
            or self.num_learned + learned > shape.learned
        ):
            return False
        first_row = {key: self._add_picture(s) * QUERIES for key, s in shown.items()}
        first_row |= {key: shape.views * QUERIES + self._add_clip(c) * CLIP_ROWS for key, c in clips.items()}
        self.out[f"ids_{kind}"][row, : len(encoded.ids)] = encoded.ids
        for start, owner, first, rows in encoded.media:
            at = first_row[id(owner)] + first
            self.out[f"rows_{kind}"][row, start : start + rows] = np.arange(at, at + rows)
        for task, start, stop in encoded.answers:
            self._add_answer(encoded.ids, task, start, stop, offset)
        return True

    def _add_answer(self, ids: list[int], task: str, start: int, stop: int, offset: int) -> None:
        n = stop - start
        at = slice(self.num_learned, self.num_learned + n)
        # The hidden state one position earlier predicts a token.
        self.out["learn_at"][at] = offset + np.arange(start - 1, stop - 1)
        self.out["learn_target"][at] = ids[start:stop]
        self.out["learn_answer"][at] = self.num_answers
        self.out["answer_task"][self.num_answers] = self.tasks[task]
        self.out["answer_length"][self.num_answers] = n
        self.num_answers += 1
        self.num_learned += n

    def _add_picture(self, shown: Shown) -> int:
        """Returns the number of its first view."""
        scene, number = shown.scene, self.num_scenes
        rows = scene.rows()
        self.out["scene_rows"][number, : len(rows)] = rows
        self.out["scene_counts"][number] = len(rows)
        self.out["backdrops"][number] = scene.backdrop()
        views = view_rows(self.random, number, scene.width, scene.height, shown.max_slices)
        assert all(v[1] * v[2] <= MAX_PATCHES for v in views)
        first = self.num_views
        self.out["views"][first : first + len(views)] = views
        self.num_scenes += 1
        self.num_views += len(views)
        return first

    def _add_clip(self, clip: Clip) -> int:
        n = self.num_clips
        self.out["waves"][n, : len(clip.samples)] = clip.samples
        self.out["wave_lengths"][n] = len(clip.samples)
        labels = ctc_labels(clip, self.symbols)
        self.out["ctc"][n, : len(labels)] = labels
        self.out["ctc_lengths"][n] = len(labels)
        self.out["female"][n] = clip.female
        self.num_clips += 1
        return n
