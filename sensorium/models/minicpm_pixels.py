"""From the pixels of pictures to the patches that the tower reads, on the model's device.

An item's arrays (see picture_arrays) are sources and cuts: of which source, scaled to which width and height, how many
columns and rows of slices are made. The slices of all cuts, in order, are the item's slices. Pictures that the
processor has scaled, and those that have the right size, are only cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from sensorium.kernels.resample import resize
from sensorium.kernels.upload import upload_all
from sensorium.models.minicpm_slices import PATCH
from sensorium.types import MediaItem


def slice_sizes(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """(rows, columns) of patches of every slice: int64 [S, 2]."""
    _, width, height, columns, rows = arrays["cuts"].astype(np.int64).T
    sizes = np.stack((height // rows // PATCH, width // columns // PATCH), axis=1)
    return np.repeat(sizes, columns * rows, axis=0)


def slice_patches(items: Sequence[MediaItem], device: torch.device) -> list[list[torch.Tensor]]:
    """Per item, per slice: uint8 [P, 588], patches row-major, each in (channel, y, x) order."""
    counts = [sum(name.startswith("source.") for name in item.arrays) for item in items]
    sources = iter(
        upload_all(
            [item.arrays[f"source.{i}"] for item, n in zip(items, counts, strict=True) for i in range(n)], device
        )
    )
    found: list[list[torch.Tensor]] = []
    for item, count in zip(items, counts, strict=True):
        pictures = [next(sources) for _ in range(count)]
        found.append([])
        for source, width, height, columns, rows in item.arrays["cuts"].tolist():
            found[-1] += _patches(resize(pictures[source], width, height), columns, rows)
    return found


def _patches(pixels: torch.Tensor, columns: int, rows: int) -> Sequence[torch.Tensor]:
    """uint8 [H, W, 3] -> slices, row-major."""
    down, across = pixels.shape[0] // rows // PATCH, pixels.shape[1] // columns // PATCH
    blocks = pixels.view(rows, down, PATCH, columns, across, PATCH, 3).permute(0, 3, 1, 4, 6, 2, 5)
    return blocks.reshape(rows * columns, down * across, 3 * PATCH * PATCH).unbind()
