"""The glyph atlas: signed distance fields of every shape and of every character of many open fonts, one cell each.

A cell is CELL px wide; a character's em is CELL_EM of a cell, a shape's unit circle has radius 0.4. Built once on a
machine with the fonts (`python -m training.atlas OUT.npz`), then only numpy is needed.
"""

from __future__ import annotations

# ruff: noqa: SIM905 - long lists of words read better as text
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from training.lexicon import GLYPHS, SHAPES

CELL = 64
CELL_EM = 0.6
SPREAD = 8.0
"""Distances are clipped to this many cell pixels and stored as int8."""
SCALE = 4
HELD_OUT = ("Lato-Bold", "OpenSans-Semibold", "NotoSerif-Regular", "LiberationSans-Italic", "Hack-Regular")
STYLES = """
DejaVuSans DejaVuSans-Bold DejaVuSans-Oblique DejaVuSerif DejaVuSerif-Bold DejaVuSansMono DejaVuSansMono-Bold
DejaVuSansCondensed DejaVuSansCondensed-Bold LiberationSans-Regular LiberationSans-Bold LiberationSans-
BoldItalic LiberationSerif-Regular LiberationSerif-Bold LiberationSerif-Italic LiberationMono-Regular
LiberationMono-Bold LiberationSansNarrow-Bold NotoSans-Regular NotoSans-Bold NotoSans-Italic NotoSansMono-
Regular NotoSerif-Bold NotoSerif-Italic NotoSansDisplay-Regular FreeSans FreeSansBold FreeSerif FreeSerifBold
FreeMonoBold Roboto-Regular Roboto-Bold Roboto-Black Roboto-Italic RobotoCondensed-Bold OpenSans-Regular
OpenSans-Bold OpenSans-ExtraBold OpenSans-Italic Lato-Regular Lato-Black Lato-Italic Lato-Medium Inconsolata
Hack-Bold FiraCode-Regular FiraCode-Bold Arimo-Regular Arimo-Bold Tinos-Regular Tinos-Bold Cousine-Bold Carlito-
Regular Carlito-Bold Caladea-Regular Caladea-Bold Quicksand-Medium Quicksand-Bold ComicNeue-Regular ComicNeue-
Bold
""".split()


@dataclass(frozen=True, slots=True)
class Font:
    name: str
    first: int
    advances: tuple[float, ...]
    lift: float
    """Height of a cell's middle above the baseline, in cells."""

    def advance(self, char: str) -> float:
        """In ems."""
        return 0.3 if char == " " else self.advances[GLYPHS.index(char)]

    def cell(self, char: str) -> int:
        return self.first + GLYPHS.index(char)


@dataclass(frozen=True, slots=True)
class Atlas:
    cells: np.ndarray
    """int8 [glyphs, CELL, CELL]"""
    fonts: tuple[Font, ...]
    held_out: tuple[Font, ...]


def distance_field(mask: np.ndarray) -> np.ndarray:
    """bool [CELL * SCALE, CELL * SCALE] -> int8 [CELL, CELL], positive inside."""
    from scipy.ndimage import distance_transform_edt

    signed = distance_transform_edt(mask) - distance_transform_edt(~mask)
    signed = np.where(signed > 0, signed - 0.5, signed + 0.5) / SCALE
    small = signed.reshape(CELL, SCALE, CELL, SCALE).mean((1, 3))
    return np.clip(np.round(small / SPREAD * 127), -127, 127).astype(np.int8)


def shape_cell(shape: int) -> np.ndarray:
    from PIL import Image, ImageDraw

    from training.scenes import OUTLINES, RING

    side = CELL * SCALE
    image = Image.new("1", (side, side))
    draw = ImageDraw.Draw(image)
    points = (OUTLINES[shape] * 0.4 + 0.5) * side
    draw.polygon([tuple(p) for p in points], fill=1)
    if shape == RING:
        inner = (OUTLINES[shape] * 0.4 * 0.58 + 0.5) * side
        draw.polygon([tuple(p) for p in inner], fill=0)
    return distance_field(np.asarray(image, dtype=bool))


def font_cells(path: Path, first: int) -> tuple[np.ndarray, Font]:
    from PIL import Image, ImageDraw, ImageFont

    side = CELL * SCALE
    em = side * CELL_EM
    font = ImageFont.truetype(str(path), round(em))
    middle = 0.36 * em
    cells, advances = [], []
    for char in GLYPHS:
        image = Image.new("1", (side, side))
        advance = font.getlength(char)
        ImageDraw.Draw(image).text((side / 2 - advance / 2, side / 2 + middle), char, fill=1, font=font, anchor="ls")
        cells.append(distance_field(np.asarray(image, dtype=bool)))
        advances.append(advance / em)
    return np.stack(cells), Font(path.stem, first, tuple(advances), middle / side)


def build(path: Path, folder: Path = Path("/usr/share/fonts")) -> None:
    found = {p.stem: p for p in sorted(folder.rglob("*.[to]tf"))}
    cells, fonts = [np.stack([shape_cell(i) for i in range(len(SHAPES))])], []
    first = len(SHAPES)
    for name in (*STYLES, *HELD_OUT):
        if name not in found:
            print(f"no font {name}")
            continue
        drawn, font = font_cells(found[name], first)
        cells.append(drawn)
        fonts.append(font)
        first += len(GLYPHS)
    np.savez_compressed(
        path,
        cells=np.concatenate(cells),
        names=np.array([f.name for f in fonts]),
        advances=np.array([f.advances for f in fonts], dtype=np.float32),
        lifts=np.array([f.lift for f in fonts], dtype=np.float32),
    )


@cache
def load(path: Path) -> Atlas:
    data = np.load(path)
    fonts = tuple(
        Font(str(name), len(SHAPES) + i * len(GLYPHS), tuple(map(float, advances)), float(lift))
        for i, (name, advances, lift) in enumerate(zip(data["names"], data["advances"], data["lifts"], strict=True))
    )
    kept = tuple(f for f in fonts if f.name not in HELD_OUT)
    return Atlas(data["cells"], kept, tuple(f for f in fonts if f.name in HELD_OUT))


if __name__ == "__main__":
    build(Path(sys.argv[1]))
