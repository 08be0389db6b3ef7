"""Duplex conversations as arrays of fixed shapes, as training.batches does for questions.

B rows of W ids · V views · U units of a row at most · N learned tokens · D decided units
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np

from training.batches import _padded
from training.conversation import QUERIES, Encoder
from training.duplex_items import MAX_UNITS, UNIT, Director, Pace, Talk, Tokens, Voices
from training.espeak import Espeak
from training.scenes import BACKGROUND_WIDTH, MAX_ROWS, ROW_WIDTH, Scene
from training.speech_items import Speaker
from training.views import MAX_PATCHES, view_rows

SOUND_ROWS = 10
"""Rows of a unit's sound."""
MAX_CTC = 400
TASKS = ("listen", "answer", "go on", "remark", "stop")
TASK_NUMBERS = {name: number for number, name in enumerate(TASKS)}


@dataclass(frozen=True, slots=True)
class DuplexShape:
    rows: tuple[int, int] = (16, 2048)
    views: int = 352
    learned: int = 2400
    units: int = 16 * MAX_UNITS

    def fields(self) -> dict[str, tuple[tuple[int, ...], type]]:
        count = self.rows[0]
        return {
            "ids": (self.rows, np.int16),
            "rows": (self.rows, np.int32),
            "learn_at": ((self.learned,), np.int32),
            "learn_target": ((self.learned,), np.int16),
            "learn_unit": ((self.learned,), np.int16),
            "unit_task": ((self.units,), np.int16),
            "unit_length": ((self.units,), np.int16),
            "scene_rows": ((self.views, MAX_ROWS, ROW_WIDTH), np.float32),
            "scene_counts": ((self.views,), np.int32),
            "backdrops": ((self.views, BACKGROUND_WIDTH), np.float32),
            "views": ((self.views, 8), np.float32),
            "waves": ((count, MAX_UNITS * UNIT), np.int16),
            "wave_lengths": ((count,), np.int32),
            "ctc": ((count, MAX_CTC), np.int16),
            "ctc_lengths": ((count,), np.int32),
        }

    def nbytes(self) -> int:
        return sum(_padded(int(np.prod(shape)) * np.dtype(kind).itemsize) for shape, kind in self.fields().values())


@dataclass(slots=True)
class Written:
    """A talk as ids. media: (start, scene or number of a unit). units: task, the place that decides, [start, stop)."""

    ids: list[int]
    media: list[tuple[int, Scene | int]]
    units: list[tuple[str, int, int, int]]


def tokens_of(encoder: Encoder) -> Tokens:
    names = ("<|speak|>", "<|listen|>", "<|turn_eos|>", "<|chunk_eos|>")
    return Tokens(*(encoder.text(name)[0] for name in names))


def write(encoder: Encoder, talk: Talk) -> Written:
    """The rows of a live session, as sensorium.models.minicpm_live and minicpm_units make them."""
    text = encoder.text
    out = Written([*text("<|im_start|>system\n"), *text(talk.instructions), *text("<|im_end|>")], [], [])
    begin, end = text("<unit>"), text("</unit>")
    before, after = text("<image>"), text("</image>")
    for number, second in enumerate(talk.seconds):
        out.ids += begin
        if second.frame is not None:
            out.ids += before
            out.media.append((len(out.ids), second.frame))
            out.ids += [encoder.unk] * QUERIES
            out.ids += after
        out.media.append((len(out.ids), number))
        out.ids += [encoder.unk] * SOUND_ROWS
        deciding = len(out.ids) - 1
        # Typed words stand behind the sound, whose last row decides.
        out.ids += text(second.typed) if second.typed else ()
        if second.is_learned:
            out.units.append((second.task, deciding, len(out.ids), len(out.ids) + len(second.ids)))
        out.ids += second.ids
        out.ids += end
    return out


class DuplexWriter:
    """Fills one batch after another."""

    def __init__(
        self, seed: int, engine: Espeak, encoder: Encoder, shape: DuplexShape, symbols: dict[str, int]
    ) -> None:
        self.random, self.encoder, self.shape, self._symbols = Random(seed), encoder, shape, symbols
        tokens = tokens_of(encoder)
        pace = Pace(Speaker(engine, encoder.tokenizer), tokens)
        self.director = Director(self.random, Voices(self.random, engine), pace, tokens)

    def fill(self, out: dict[str, np.ndarray]) -> None:
        for name, values in out.items():
            values[:] = -1 if name in ("rows", "learn_unit") else 0
        out["views"][:] = (0, 1, 1, 0, 0, 1, 1, 1)
        self.out = out
        self.num_views = self.num_learned = self.num_units = 0
        for row in range(self.shape.rows[0]):
            for _ in range(6):
                if self._add(self.director.talk(self.shape.rows[1]), row):
                    break

    def _add(self, talk: Talk, row: int) -> bool:
        """False if it is too long, or the batch has no room for its pictures."""
        shape, out = self.shape, self.out
        written = write(self.encoder, talk)
        frames = sum(isinstance(what, Scene) for _, what in written.media)
        learned = sum(stop - start for _, _, start, stop in written.units)
        if (
            len(written.ids) > shape.rows[1]
            or self.num_views + frames > shape.views
            or self.num_learned + learned > shape.learned
        ):
            return False
        out["ids"][row, : len(written.ids)] = written.ids
        sound = shape.views * QUERIES + row * MAX_UNITS * SOUND_ROWS
        for start, what in written.media:
            if isinstance(what, Scene):
                first, count = self._add_picture(what) * QUERIES, QUERIES
            else:
                first, count = sound + what * SOUND_ROWS, SOUND_ROWS
            out["rows"][row, start : start + count] = np.arange(first, first + count)
        for unit in written.units:
            self._add_unit(written.ids, unit, row * shape.rows[1])
        out["waves"][row, : len(talk.samples)] = talk.samples
        out["wave_lengths"][row] = len(talk.samples)
        labels = [self._symbols[c] for c in talk.words if c in self._symbols][:MAX_CTC]
        out["ctc"][row, : len(labels)] = labels
        out["ctc_lengths"][row] = len(labels)
        return True

    def _add_unit(self, ids: list[int], unit: tuple[str, int, int, int], offset: int) -> None:
        task, deciding, start, stop = unit
        at = slice(self.num_learned, self.num_learned + stop - start)
        self.out["learn_at"][at] = offset + np.array([deciding, *range(start, stop - 1)])
        self.out["learn_target"][at] = ids[start:stop]
        self.out["learn_unit"][at] = self.num_units
        self.out["unit_task"][self.num_units] = TASK_NUMBERS[task]
        self.out["unit_length"][self.num_units] = stop - start
        self.num_units += 1
        self.num_learned += stop - start

    def _add_picture(self, scene: Scene) -> int:
        """One view of it: live frames are not cut into slices."""
        number, rows = self.num_views, scene.rows()
        self.out["scene_rows"][number, : len(rows)] = rows
        self.out["scene_counts"][number] = len(rows)
        self.out["backdrops"][number] = scene.backdrop()
        (view,) = view_rows(self.random, number, scene.width, scene.height, 1)
        assert view[1] * view[2] <= MAX_PATCHES
        self.out["views"][number] = view
        self.num_views += 1
        return number
