"""How MiniCPM-V and -o cut a picture: an overview plus a grid of slices, each a whole number of 14 px patches."""

from __future__ import annotations

import math
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


def slice_image(pixels: np.ndarray, plan: SlicePlan) -> list[np.ndarray]:
    """[H, W, 3] uint8 to one [h, w, 3] uint8 per slice: overview, then row-major. Pillow's bicubic, as in training."""
    image = Image.fromarray(pixels)
    slices = [_resize(image, plan.overview)]
    if plan.grid and plan.refined:
        refined = _resize(image, plan.refined)
        columns, rows = plan.grid
        width, height = plan.refined[0] // columns, plan.refined[1] // rows
        slices += [
            refined[y * height : (y + 1) * height, x * width : (x + 1) * width]
            for y in range(rows)
            for x in range(columns)
        ]
    return slices


def to_patches(pixels: np.ndarray) -> np.ndarray:
    """[14 R, 14 C, 3] uint8 to [R*C, 588], patches row-major, each in (channel, y, x) order."""
    rows, columns = pixels.shape[0] // PATCH, pixels.shape[1] // PATCH
    blocks = pixels.reshape(rows, PATCH, columns, PATCH, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(blocks).reshape(rows * columns, 3 * PATCH * PATCH)


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


def _resize(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Columns first, then rows: newer Pillow may choose the other order, which rounds some pixels differently."""
    if size[0] != image.width:
        image = image.resize((size[0], image.height), Image.Resampling.BICUBIC)
    if size[1] != image.height:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image)
