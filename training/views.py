"""How the processor cuts a picture: overview and slices, each as a window on the canvas."""

from __future__ import annotations

from functools import cache
from random import Random

from sensorium.models.minicpm_slices import plan_slices

SIDE = 224
PATCH = 14
MAX_SLICES = 4
MAX_PATCHES = 288


@cache
def windows(
    width: int, height: int, limit: int = MAX_SLICES
) -> tuple[tuple[tuple[float, ...], ...], tuple[int, int] | None]:
    """Per slice, overview first: patch rows and columns, x, y, width, height (shares of the canvas); and the grid."""
    plan = plan_slices(width, height, limit, SIDE)
    (rows, cols), *cut = plan.patch_sizes
    first = (rows, cols, 0.0, 0.0, 1.0, 1.0)
    if plan.grid is None:
        return (first,), None
    across, down = plan.grid
    places = [(x / across, y / down, 1 / across, 1 / down) for y in range(down) for x in range(across)]
    return (first, *((*size, *place) for size, place in zip(cut, places, strict=True))), plan.grid


def view_rows(random: Random, scene: int, width: int, height: int, limit: int = MAX_SLICES) -> list[list[float]]:
    """Rows for training.draw: see there. Edges are as hard as drawing programs or as soft as enlarged photos."""
    cuts, _ = windows(width, height, limit)
    soft = random.choice((0.35, 0.8, 1.0, 1.0, 1.2, random.uniform(0.5, 2.6)))
    return [
        [
            scene, rows, cols, x * width, y * height,
            w * width / (cols * PATCH), h * height / (rows * PATCH), soft,
        ]
        for rows, cols, x, y, w, h in cuts
    ]  # fmt: skip
