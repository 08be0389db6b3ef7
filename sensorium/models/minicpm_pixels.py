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
    parts: list[list[Sequence[torch.Tensor]]] = []
    alike: dict[tuple[int, ...], list[tuple[int, int, torch.Tensor]]] = {}
    for number, (item, count) in enumerate(zip(items, counts, strict=True)):
        pictures = [next(sources) for _ in range(count)]
        cuts = item.arrays["cuts"].tolist()
        parts.append([()] * len(cuts))
        for place, (source, width, height, *grid) in enumerate(cuts):
            pixels = resize(pictures[source], width, height)
            alike.setdefault((width, height, *grid), []).append((number, place, pixels))
    # Pictures that are cut alike are cut together: one operation for many requests.
    for (_, _, columns, rows), members in alike.items():
        pixels = [member[2] for member in members]
        cut = _patches(torch.stack(pixels) if len(pixels) > 1 else pixels[0][None], columns, rows)
        for (number, place, _), slices in zip(members, cut, strict=True):
            parts[number][place] = slices.unbind()
    return [[patches for slices in part for patches in slices] for part in parts]


class Slices:
    """The slices of items. An item crosses to the device when one of its slices is first taken: while the device
    encodes some, others are on their way."""

    def __init__(self, items: Sequence[MediaItem], device: torch.device) -> None:
        self._items, self._device = items, device
        self._there: dict[int, list[torch.Tensor]] = {}

    def take(self, wanted: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        """wanted: numbers of items and of slices in them. As slice_patches."""
        new = list(dict.fromkeys(number for number, _ in wanted if number not in self._there))
        self._there |= zip(new, slice_patches([self._items[number] for number in new], self._device), strict=True)
        return [self._there[number][place] for number, place in wanted]


def _patches(pixels: torch.Tensor, columns: int, rows: int) -> torch.Tensor:
    """uint8 [N, H, W, 3] -> slices, row-major: [N, S, P, 588]."""
    count, height, width, _ = pixels.shape
    down, across = height // rows // PATCH, width // columns // PATCH
    blocks = pixels.view(count, rows, down, PATCH, columns, across, PATCH, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
    return blocks.reshape(count, rows * columns, down * across, 3 * PATCH * PATCH)
