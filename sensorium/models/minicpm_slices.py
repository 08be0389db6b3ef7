"""How MiniCPM-V and -o cut a picture: an overview plus a grid of slices, each a whole number of 14 px patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

PATCH = 14


@dataclass(frozen=True, slots=True)
class SlicePlan:
    """Pixel sizes are (width, height). grid is (columns, rows) of `refined`, or None for an overview alone."""

    overview: tuple[int, int]
    grid: tuple[int, int] | None = None
    refined: tuple[int, int] | None = None

    @property
    def count(self) -> int:
        """Slices, the overview included."""
        return 1 + (self.grid[0] * self.grid[1] if self.grid else 0)

    @property
    def num_pixels(self) -> int:
        """Of all slices."""
        return sum(size[0] * size[1] for size in (self.overview, self.refined) if size)

    @property
    def patch_sizes(self) -> list[tuple[int, int]]:
        """(rows, columns) of patches per slice, overview first."""
        sizes = [(self.overview[1] // PATCH, self.overview[0] // PATCH)]
        if self.grid and self.refined:
            width, height = self.refined[0] // self.grid[0], self.refined[1] // self.grid[1]
            sizes += [(height // PATCH, width // PATCH)] * (self.count - 1)
        return sizes


def plan_slices(width: int, height: int, max_slices: int, scale: int = 448) -> SlicePlan:
    """scale: side of the square a slice should be about as large as."""
    grid = _best_grid(width, height, max_slices, scale)
    if grid is None:
        return SlicePlan(_fit(width, height, scale, enlarge=True))
    columns, rows = grid
    cell = _fit(_snap(width, columns) / columns, _snap(height, rows) / rows, scale, enlarge=True)
    return SlicePlan(_fit(width, height, scale, enlarge=False), grid, (cell[0] * columns, cell[1] * rows))


def scaled(pixels: np.ndarray, plan: SlicePlan) -> tuple[np.ndarray, ...]:
    """[H, W, 3] uint8 -> the overview and, if there is a grid, what it cuts. Pillow's bicubic, as in training."""
    return tuple(_resize(pixels, size) for size in (plan.overview, plan.refined) if size)


def _best_grid(width: int, height: int, max_slices: int, scale: int) -> tuple[int, int] | None:
    wanted = min(math.ceil(width * height / (scale * scale)), max_slices)
    if wanted <= 1:
        return None
    counts = [n for n in (wanted - 1, wanted, wanted + 1) if 1 < n <= max_slices]
    shapes = [(columns, n // columns) for n in counts for columns in range(1, n + 1) if n % columns == 0]
    ratio = math.log(width / height)
    return min(shapes, key=lambda shape: abs(ratio - math.log(shape[0] / shape[1])))  # the first wins a tie


def _snap(length: float, step: int) -> int:
    return max(round(length / step) * step, step)


def _fit(width: float, height: float, scale: int, *, enlarge: bool) -> tuple[int, int]:
    if enlarge or width * height > scale * scale:
        ratio = width / height
        height = int(scale / math.sqrt(ratio))
        width = int(height * ratio)
    return _snap(width, PATCH), _snap(height, PATCH)


def _resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Columns first, then rows: newer Pillow may choose the other order, which rounds some pixels differently."""
    height, width = pixels.shape[:2]
    if size == (width, height):
        return pixels
    image = Image.fromarray(pixels)
    if size[0] != width:
        image = image.resize((size[0], height), Image.Resampling.BICUBIC)
    if size[1] != height:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image)


def picture_arrays(pictures: Sequence[tuple[SlicePlan, Sequence[np.ndarray]]]) -> dict[str, np.ndarray]:
    """What an item holds of pictures: each with its plan and either its own pixels or its scaled ones (see scaled).

    Sources, "source.0" [H, W, 3] uint8 and so on, and "cuts" int32 [C, 5]: source, width, height, columns, rows.
    """
    arrays: dict[str, np.ndarray] = {}
    cuts: list[tuple[int, ...]] = []
    for plan, sources in pictures:
        first = len(arrays)
        arrays |= {f"source.{first + i}": pixels for i, pixels in enumerate(sources)}
        cuts.append((first, *plan.overview, 1, 1))
        if plan.grid and plan.refined:
            cuts.append((first + len(sources) - 1, *plan.refined, *plan.grid))
    arrays["cuts"] = np.array(cuts, dtype=np.int32)
    return arrays
