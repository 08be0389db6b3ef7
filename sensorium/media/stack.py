"""Several pictures composed into one, as MiniCPM-o saw the frames between two seconds in training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

LINE = 6


def concat_images(images: Sequence[np.ndarray]) -> np.ndarray:
    """[H, W, 3] uint8 each; equal cells, pictures letterboxed on white, black lines of 6 px between cells."""
    width, height = max(image.shape[1] for image in images), max(image.shape[0] for image in images)
    rows, columns = _layout(images, width, height)
    canvas = np.zeros((rows * height + (rows - 1) * LINE, columns * width + (columns - 1) * LINE, 3), dtype=np.uint8)
    for index in range(rows * columns):
        top, left = index // columns * (height + LINE), index % columns * (width + LINE)
        cell = canvas[top : top + height, left : left + width]
        cell[:] = 255
        if index < len(images):
            _letterbox(images[index], cell)
    return canvas


def _layout(images: Sequence[np.ndarray], width: int, height: int) -> tuple[int, int]:
    """(rows, columns): for two and three the nearer to square, wide pictures deciding a tie between two."""
    count = len(images)
    if count == 4:
        return 2, 2
    if count not in (2, 3):
        return 1, count
    long, line = count, (count - 1) * LINE
    beside = abs((long * width + line) / height - 1.0)
    stacked = abs(width / (long * height + line) - 1.0)
    if beside == stacked:
        mean_ratio = sum(image.shape[1] / image.shape[0] for image in images) / count
        return (1, count) if count == 3 or mean_ratio >= 1.0 else (count, 1)
    return (1, count) if beside < stacked else (count, 1)


def _letterbox(image: np.ndarray, cell: np.ndarray) -> None:
    height, width = image.shape[:2]
    scale = min(cell.shape[1] / width, cell.shape[0] / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size != (width, height):
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    left, top = (cell.shape[1] - size[0]) // 2, (cell.shape[0] - size[1]) // 2
    cell[top : top + size[1], left : left + size[0]] = image
